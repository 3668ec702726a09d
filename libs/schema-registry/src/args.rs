//! Where the schema registry is, as a setting.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use reqwest::Certificate;
use service::{Readiness, Waiting};
use telemetry::schema::Schemas;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{Error, Registry, SchemaSource};

/// The settings of a process that writes or reads Avro.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SchemaRegistryArgs {
    /// Take the ids of schemas from this schema registry: http://HOST:PORT, for Apicurio with /apis/ccompat/v7.
    ///
    /// All that write and read a log need the same one, or all none: then the ids are those of the contract.
    #[arg(long, env = "CARSTREAM_SCHEMA_REGISTRY", value_name = "URL")]
    pub schema_registry: Option<RegistryUrl>,
    /// Read USER:PASSWORD for the schema registry from this file.
    #[arg(long, env = "CARSTREAM_SCHEMA_REGISTRY_CREDENTIALS_FILE", value_name = "FILE")]
    pub schema_registry_credentials_file: Option<PathBuf>,
    /// Trust the authorities in this file (PEM) as well as the system's, for https:// with a private authority.
    #[arg(long, env = "CARSTREAM_SCHEMA_REGISTRY_CA_FILE", value_name = "FILE")]
    pub schema_registry_ca_file: Option<PathBuf>,
}

impl SchemaRegistryArgs {
    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        self.credentials().err().into_iter().chain(self.authorities().err()).collect()
    }

    /// The registry, which is not asked for anything yet. `None`: there is none. Within a tokio runtime.
    pub fn connect(&self) -> Result<Option<Registry>, Error> {
        let credentials = self.credentials().map_err(Error::Settings)?;
        let authorities = self.authorities().map_err(Error::Settings)?;
        let Some(url) = &self.schema_registry else { return Ok(None) };
        Registry::new(url.clone(), credentials, authorities, Handle::current()).map(Some)
    }

    /// The schemas of a stage that uses each of these files for the values of that topic, with the ids of the registry,
    /// or of `own` if there is no registry. `None`: shut down meanwhile.
    ///
    /// Waits for an unreachable registry; meanwhile, and later while it waits for a schema, the stage is not ready. A
    /// registry whose schemas do not fit this program is an [`Error::Unfit`]: nothing is registered here.
    pub async fn open(
        &self,
        own: &Schemas,
        uses: &[(&str, &str)],
        readiness: &Readiness,
        shutdown: &CancellationToken,
    ) -> Result<Option<SchemaSource>, Error> {
        let Some(registry) = self.connect()? else { return Ok(Some(SchemaSource::of(own.clone()))) };
        let uses: Vec<_> = uses.iter().map(|(topic, file)| ((*topic).to_owned(), (*file).to_owned())).collect();
        let (own, readiness, shutdown) = (own.clone(), readiness.clone(), shutdown.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let waiting = Waiting::new(format!("the schema registry {}", registry.url())).with_readiness(&readiness);
            let asked = service::retry_until(&shutdown, waiting, Error::is_retriable, || registry.check(&own, &uses))?;
            Ok(asked.map(|found| SchemaSource::of_registry(own.with_ids_of(found), registry, readiness, shutdown)))
        });
        // A thread that cannot be joined has panicked: it has no answer to continue with.
        opened.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    fn credentials(&self) -> Result<Option<(String, String)>, String> {
        self.schema_registry_credentials_file.as_deref().map(read_credentials).transpose()
    }

    fn authorities(&self) -> Result<Vec<Certificate>, String> {
        let Some(path) = &self.schema_registry_ca_file else { return Ok(Vec::new()) };
        let problem = |why: String| format!("--schema-registry-ca-file {}: {why}", path.display());
        let pem = std::fs::read(path).map_err(|error| problem(error.to_string()))?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|error| problem(error.to_string()))?;
        if found.is_empty() {
            return Err(problem("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()));
        }
        Ok(found)
    }
}

fn read_credentials(path: &Path) -> Result<(String, String), String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("cannot read --schema-registry-credentials-file {shown}: {e}"))?;
    match text.trim_end().split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok((user.to_owned(), password.to_owned())),
        _ => Err(format!("--schema-registry-credentials-file {shown} does not hold USER:PASSWORD")),
    }
}

/// The URL of a schema registry's API, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryUrl(String);

impl RegistryUrl {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryUrl {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(s).map_err(|e| format!("{s:?} is not a URL: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("{s:?} is not http://HOST:PORT or https://HOST:PORT, with an optional path"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            // It would be in the list of processes, and in every message.
            return Err("put user and password into --schema-registry-credentials-file, not into the URL".into());
        }
        Ok(Self(s.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_keep_their_path_and_hold_no_password() {
        let url: RegistryUrl = "http://registry:8080/apis/ccompat/v7/".parse().unwrap();
        assert_eq!(url.to_string(), "http://registry:8080/apis/ccompat/v7");
        for wrong in ["registry:8080", "kafka://registry:9092", "", "http://user:secret@registry", "http://r/?a=b"] {
            let error = wrong.parse::<RegistryUrl>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn credentials_that_cannot_be_used_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("credentials");
        let args = SchemaRegistryArgs {
            schema_registry_credentials_file: Some(file.clone()),
            ..SchemaRegistryArgs::default()
        };
        assert!(args.problems()[0].contains("cannot read"));
        std::fs::write(&file, "nobody\n").unwrap();
        assert!(args.problems()[0].contains("does not hold USER:PASSWORD"));
        std::fs::write(&file, "somebody:pass:word\n").unwrap();
        assert_eq!(args.credentials().unwrap(), Some(("somebody".to_owned(), "pass:word".to_owned())));
        let args = SchemaRegistryArgs { schema_registry_ca_file: Some(file), ..args };
        let problems = args.problems();
        assert!(problems.len() == 1 && problems[0].contains("--schema-registry-ca-file"), "{problems:?}");
    }
}
