//! Credentials in files, which may be replaced at any time: by an agent that renews them, or by a mounted secret.
//!
//! ```text
//!  each request ─► read the files ─┬─ they hold credentials ─► these
//!                                  └─ they do not ───────────► the last ones, and a line in the log output
//! ```
//!
//! The files are small and requests are few, so they are read each time: no time-out decides when a change is seen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use parking_lot::Mutex;

/// Where credentials are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Files {
    /// The secret of a key, and the token that belongs to both if they are temporary: each alone in a file.
    Separate { key_id: String, secret: PathBuf, token: Option<PathBuf> },
    /// A profile in a file as AWS's own tools write it.
    Profile { file: PathBuf, profile: String },
}

impl Files {
    /// What they hold now.
    pub(super) fn read(&self) -> Result<AwsCredential, String> {
        match self {
            Self::Separate { key_id, secret, token } => Ok(AwsCredential {
                key_id: key_id.clone(),
                secret_key: read_secret(secret)?,
                token: token.as_deref().map(read_secret).transpose()?,
            }),
            Self::Profile { file, profile } => {
                let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
                let setting = |name| find(&text, profile, name);
                let keys = setting("aws_access_key_id").zip(setting("aws_secret_access_key"));
                let (key_id, secret_key) = keys.ok_or_else(|| {
                    format!(
                        "{} has no aws_access_key_id and aws_secret_access_key in [{profile}]; roles, single sign-on \
                         and credential_process of a profile are not supported",
                        file.display()
                    )
                })?;
                Ok(AwsCredential { key_id, secret_key, token: setting("aws_session_token") })
            }
        }
    }
}

/// The value of a setting in a section of an INI file.
fn find(text: &str, section: &str, name: &str) -> Option<String> {
    let lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| line.strip_prefix('[').and_then(|l| l.strip_suffix(']')).map(str::trim) != Some(section));
    let settings = lines.skip(1).take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('='));
    let mut found = settings.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    found.find(|value| !value.is_empty()).map(str::to_owned)
}

/// The content of a secret's file, without the newline that editors add.
pub(super) fn read_secret(path: &Path) -> Result<String, String> {
    let secret = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    match secret.trim() {
        "" => Err(format!("{} is empty", path.display())),
        secret => Ok(secret.to_owned()),
    }
}

/// Gives each request what the files hold then.
pub(super) struct FromFiles {
    files: Files,
    last: Mutex<Last>,
}

/// What was read last.
struct Last {
    credential: Arc<AwsCredential>,
    /// What is wrong with the files since, if anything.
    problem: Option<String>,
}

impl std::fmt::Debug for FromFiles {
    /// Without what they hold.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FromFiles").field(&self.files).finish()
    }
}

impl FromFiles {
    pub(super) fn open(files: Files) -> Result<Self, String> {
        let credential = Arc::new(files.read()?);
        Ok(Self { files, last: Mutex::new(Last { credential, problem: None }) })
    }

    fn now(&self) -> Arc<AwsCredential> {
        let read = self.files.read();
        let mut last = self.last.lock();
        match read {
            Ok(credential) => {
                last.problem = None;
                if *last.credential != credential {
                    tracing::info!("the credentials for S3 have changed");
                    last.credential = Arc::new(credential);
                }
            }
            Err(problem) if last.problem.as_ref() != Some(&problem) => {
                tracing::warn!("cannot read the credentials for S3, and uses the last ones: {problem}");
                last.problem = Some(problem);
            }
            Err(_) => {}
        }
        last.credential.clone()
    }
}

#[async_trait]
impl CredentialProvider for FromFiles {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(credential: &AwsCredential) -> (&str, &str, Option<&str>) {
        (&credential.key_id, &credential.secret_key, credential.token.as_deref())
    }

    #[test]
    fn files_that_change_are_read_again_and_broken_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [secret, token] = ["secret", "token"].map(|name| folder.path().join(name));
        std::fs::write(&secret, "one\n").unwrap();
        std::fs::write(&token, "of one\n").unwrap();
        let files = Files::Separate { key_id: "me".to_owned(), secret: secret.clone(), token: Some(token.clone()) };
        let provider = FromFiles::open(files).unwrap();
        assert_eq!(parts(&provider.now()), ("me", "one", Some("of one")));
        std::fs::write(&secret, "two").unwrap();
        std::fs::write(&token, "of two").unwrap();
        assert_eq!(parts(&provider.now()), ("me", "two", Some("of two")));
        std::fs::write(&secret, "").unwrap();
        assert_eq!(parts(&provider.now()), ("me", "two", Some("of two")), "half written");
        std::fs::remove_file(&token).unwrap();
        assert_eq!(parts(&provider.now()), ("me", "two", Some("of two")), "gone");
        std::fs::write(&secret, "three").unwrap();
        std::fs::write(&token, "of three").unwrap();
        assert_eq!(parts(&provider.now()), ("me", "three", Some("of three")));
    }

    #[test]
    fn a_profile_is_found_as_awss_tools_write_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        let text = "# by hand\n[default]\naws_access_key_id = A\naws_secret_access_key=a=b\n\n[ site ]\n\
                    AWS_ACCESS_KEY_ID=B\n\
                    aws_secret_access_key = b\naws_session_token = t\nregion = x\n[role]\nrole_arn = r\n";
        std::fs::write(&file, text).unwrap();
        let of = |profile: &str| Files::Profile { file: file.clone(), profile: profile.to_owned() };
        assert_eq!(parts(&of("default").read().unwrap()), ("A", "a=b", None));
        let provider = FromFiles::open(of("site")).unwrap();
        assert_eq!(parts(&provider.now()), ("B", "b", Some("t")));
        std::fs::write(&file, text.replace("= t", "= later")).unwrap();
        assert_eq!(parts(&provider.now()), ("B", "b", Some("later")));
        for wrong in ["role", "nobody"] {
            let problem = of(wrong).read().unwrap_err();
            assert!(problem.contains(wrong) && problem.contains(&file.display().to_string()), "{problem}");
        }
    }
}
