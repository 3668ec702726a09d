//! S3, or a store that speaks its protocol, as a setting and as an object store.
//!
//! What is not set here comes from the AWS_… environment variables that every S3 client knows, or from where the
//! process runs (web identity, container, instance). Secrets come from files or from the environment, never from
//! arguments, which anyone on the machine may read. Files are read again for each request: see [`credentials`].
//!
//! ```text
//! who asks ─► attempt, at most `timeout` ─► up to 3 more, within 10 s, where the request had no effect,
//!                                                   or was one that may be repeated ─► the caller's own patience
//! ```
//!
//! A create is repeated after an answer of 5xx although it may have had its effect: then the name is already taken, by
//! this process. A caller that creates objects has to check an existing one in any case.

mod credentials;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, Certificate, ClientConfigKey, ClientOptions, RetryConfig};

use crate::error::BoxError;
use credentials::{Files, FromFiles};

/// A running server accepts a connection at once; a missing one should be noticed soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Hides short failures only: the stages retry longer, and log what they wait for.
const MAX_RETRIES: usize = 3;
const RETRY_FOR: Duration = Duration::from_secs(10);

/// How S3 is reached. Without any of it the usual AWS_… environment variables decide.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct S3Args {
    /// Reach S3 at this server instead of Amazon's: https://HOST or https://HOST:PORT; also AWS_ENDPOINT_URL.
    #[arg(long = "s3-endpoint", env = "CARSTREAM_S3_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// Use the bucket in this region; also AWS_REGION, and us-east-1 without either.
    #[arg(long = "s3-region", env = "CARSTREAM_S3_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// Sign requests to S3 with this access key; also AWS_ACCESS_KEY_ID; without either, by the role of the instance.
    #[arg(
        long = "s3-access-key-id",
        env = "CARSTREAM_S3_ACCESS_KEY_ID",
        value_name = "ID",
        requires = "secret_access_key_file"
    )]
    pub access_key_id: Option<String>,
    /// Read the secret key of --s3-access-key-id from this file, which holds nothing else; also AWS_SECRET_ACCESS_KEY.
    /// The file may be replaced at any time.
    #[arg(
        long = "s3-secret-access-key-file",
        env = "CARSTREAM_S3_SECRET_ACCESS_KEY_FILE",
        value_name = "FILE",
        requires = "access_key_id"
    )]
    pub secret_access_key_file: Option<PathBuf>,
    /// Read the session token of temporary keys from this file, beside --s3-secret-access-key-file; also
    /// AWS_SESSION_TOKEN. The file may be replaced at any time.
    #[arg(
        long = "s3-session-token-file",
        env = "CARSTREAM_S3_SESSION_TOKEN_FILE",
        value_name = "FILE",
        requires = "secret_access_key_file"
    )]
    pub session_token_file: Option<PathBuf>,
    /// Read key, secret and session token from this file, as AWS's own tools write it; also
    /// AWS_SHARED_CREDENTIALS_FILE, and ~/.aws/credentials if a profile is set. The file may be replaced at any time.
    #[arg(
        long = "s3-credentials-file",
        env = "CARSTREAM_S3_CREDENTIALS_FILE",
        value_name = "FILE",
        conflicts_with = "access_key_id"
    )]
    pub credentials_file: Option<PathBuf>,
    /// Use this profile of --s3-credentials-file; also AWS_PROFILE, and `default` without either.
    #[arg(long = "s3-profile", env = "CARSTREAM_S3_PROFILE", value_name = "NAME", conflicts_with = "access_key_id")]
    pub profile: Option<String>,
    /// Trust the certificates that these authorities have signed, in PEM, beside those that the system trusts.
    #[arg(long = "s3-ca-file", env = "CARSTREAM_S3_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Allow an http:// endpoint, where requests can be read and changed on the way; also AWS_ALLOW_HTTP.
    #[arg(long = "s3-allow-http", env = "CARSTREAM_S3_ALLOW_HTTP")]
    pub allow_http: bool,
}

impl S3Args {
    /// What of the settings cannot work, without asking the network.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.files().and_then(|(setting, files)| Some(format!("{setting}: {}", files.read().err()?))));
        problems.extend(self.authorities().err());
        let environment = environment();
        if let Some(endpoint) = self.endpoint(&environment) {
            let http = endpoint.starts_with("http://");
            if !http && !endpoint.starts_with("https://") {
                problems.push(format!("--s3-endpoint: {endpoint:?} is neither https://HOST[:PORT] nor http://…"));
            }
            if http && !self.allow_http(&environment) {
                problems.push(format!(
                    "--s3-endpoint: {endpoint} is not encrypted: use https://, or add --s3-allow-http if this is \
                     intended"
                ));
            }
        }
        problems
    }

    /// The objects under `prefix` in a bucket. Does not contact it.
    pub(crate) fn open(&self, bucket: &str, prefix: &str, timeout: Duration) -> Result<Arc<dyn ObjectStore>, BoxError> {
        if let Some(problem) = self.problems().into_iter().next() {
            return Err(problem.into());
        }
        let mut builder = environment().with_bucket_name(bucket);
        if let Some(endpoint) = self.endpoint(&builder) {
            // The one for S3 alone takes precedence over the one for all of AWS.
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some((_, files)) = self.files() {
            builder = builder.with_credentials(Arc::new(FromFiles::open(files)?));
        }
        // What the environment says of the client stays: its proxy, for one.
        let mut client =
            client_variables().fold(ClientOptions::new(), |client, (key, value)| client.with_config(key, value));
        for authority in self.authorities()? {
            client = client.with_root_certificate(authority);
        }
        let client = client
            .with_timeout(timeout)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(self.allow_http(&builder));
        let retry =
            RetryConfig { backoff: BackoffConfig::default(), max_retries: MAX_RETRIES, retry_timeout: RETRY_FOR };
        let store = builder.with_client_options(client).with_retry(retry).build()?;
        Ok(Arc::new(PrefixStore::new(store, prefix)))
    }

    /// The files with credentials, and the setting that names them. `None`: they come from the environment, or from
    /// where the process runs.
    fn files(&self) -> Option<(&'static str, Files)> {
        if let (Some(id), Some(secret)) = (&self.access_key_id, &self.secret_access_key_file) {
            // A token in the environment belongs to other keys.
            let (key_id, secret, token) = (id.clone(), secret.clone(), self.session_token_file.clone());
            return Some(("--s3-secret-access-key-file", Files::Separate { key_id, secret, token }));
        }
        // As AWS's own tools: keys in the environment are stronger than a profile there.
        let of_environment = |name| variable(name).filter(|_| variable("AWS_ACCESS_KEY_ID").is_none());
        let profile = self.profile.clone().or_else(|| of_environment("AWS_PROFILE"));
        let named = self.credentials_file.clone();
        let file = named.or_else(|| of_environment("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from));
        let of_user = || Some(std::env::home_dir()?.join(".aws").join("credentials"));
        let file = file.or_else(|| profile.as_ref().and_then(|_| of_user()))?;
        let setting = if self.profile.is_some() { "--s3-profile" } else { "--s3-credentials-file, AWS_PROFILE" };
        Some((setting, Files::Profile { file, profile: profile.unwrap_or_else(|| "default".to_owned()) }))
    }

    fn authorities(&self) -> Result<Vec<Certificate>, String> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        let problem = |why: String| format!("--s3-ca-file {}: {why}", path.display());
        let pem = std::fs::read(path).map_err(|error| problem(error.to_string()))?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|error| problem(error.to_string()))?;
        if found.is_empty() {
            return Err(problem("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()));
        }
        Ok(found)
    }

    fn endpoint(&self, environment: &AmazonS3Builder) -> Option<String> {
        let of = |key| environment.get_config_value(&key);
        let of_environment = || of(AmazonS3ConfigKey::S3Endpoint).or_else(|| of(AmazonS3ConfigKey::Endpoint));
        self.endpoint.clone().or_else(of_environment)
    }

    fn allow_http(&self, environment: &AmazonS3Builder) -> bool {
        let key = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
        self.allow_http || environment.get_config_value(&key).is_some_and(|value| value == "true")
    }
}

/// The AWS_… variables that are set: an empty one is not.
fn variables() -> impl Iterator<Item = (AmazonS3ConfigKey, String)> {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let set = variables.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
    set.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().ok()?, value)))
}

fn environment() -> AmazonS3Builder {
    variables().fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
}

/// Those of them that are about the HTTP client.
fn client_variables() -> impl Iterator<Item = (ClientConfigKey, String)> {
    variables().filter_map(|(key, value)| match key {
        AmazonS3ConfigKey::Client(key) => Some((key, value)),
        _ => None,
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(endpoint: &str) -> S3Args {
        S3Args { endpoint: Some(endpoint.to_owned()), ..S3Args::default() }
    }

    #[test]
    fn plain_http_has_to_be_asked_for() {
        assert!(args("https://s3.example.org").problems().is_empty());
        let problems = args("http://s3.example.org").problems();
        assert!(problems.len() == 1 && problems[0].contains("--s3-allow-http"), "{problems:?}");
        let asked_for = S3Args { allow_http: true, ..args("http://s3.example.org") };
        assert!(asked_for.problems().is_empty());
        assert!(asked_for.open("bucket", "", Duration::from_secs(1)).is_ok());
        assert_eq!(args("s3.example.org").problems().len(), 1);
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let args = S3Args {
            access_key_id: Some("me".to_owned()),
            secret_access_key_file: Some(file.clone()),
            ..S3Args::default()
        };
        for content in [None, Some(" \n")] {
            content.iter().for_each(|content| std::fs::write(&file, content).unwrap());
            let problems = args.problems();
            assert!(problems.len() == 1 && problems[0].contains(&file.display().to_string()), "{problems:?}");
        }
        std::fs::write(&file, "secret\n").unwrap();
        assert!(args.problems().is_empty());
        let with_token = S3Args { session_token_file: Some(folder.path().join("token")), ..args };
        let problems = with_token.problems();
        assert!(problems.len() == 1 && problems[0].contains("token"), "{problems:?}");
    }

    #[test]
    fn a_profile_and_an_authority_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let [credentials, ca] = ["credentials", "ca.pem"].map(|name| folder.path().join(name));
        std::fs::write(&credentials, "[site]\naws_access_key_id=a\naws_secret_access_key=b\n").unwrap();
        std::fs::write(&ca, "no certificate").unwrap();
        let of = |profile: &str| S3Args {
            credentials_file: Some(credentials.clone()),
            profile: Some(profile.to_owned()),
            ..S3Args::default()
        };
        assert!(of("site").problems().is_empty());
        assert!(of("site").open("bucket", "", Duration::from_secs(1)).is_ok());
        let problems = of("other").problems();
        assert!(problems.len() == 1 && problems[0].contains("[other]"), "{problems:?}");
        let problems = S3Args { ca_file: Some(ca.clone()), ..of("site") }.problems();
        assert!(problems.len() == 1 && problems[0].contains("--s3-ca-file"), "{problems:?}");
    }
}
