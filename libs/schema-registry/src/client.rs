//! The requests. Each is one exchange that ends within a bound; who retries is the caller.
//!
//! About 150 lines over an HTTP client that the build has anyway (the lake's). It is blocking, as its callers are: the
//! exchange itself runs on the runtime that the client was made in, so it may be called from any thread but one of a
//! runtime's own that nothing else could run on.

use std::sync::mpsc;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Method, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{Error, RegistryUrl};

/// A registry answers within milliseconds, or its database does not.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A schema has some kilobytes. Whatever sends more is not a registry.
const MAX_ANSWER_BYTES: usize = 8 << 20;

const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A client of one registry.
#[derive(Debug)]
pub struct Registry {
    http: reqwest::Client,
    url: RegistryUrl,
    credentials: Option<(String, String)>,
    runtime: Handle,
}

/// A schema as a subject has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Which version of the subject it is, from 1.
    pub version: u32,
    /// Its id, on the wire.
    pub id: u32,
    /// Its text.
    pub schema: String,
}

impl Registry {
    pub(crate) fn new(
        url: RegistryUrl,
        credentials: Option<(String, String)>,
        authorities: Vec<Certificate>,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let http = authorities
            .into_iter()
            .fold(reqwest::Client::builder(), ClientBuilder::add_root_certificate)
            .user_agent(concat!("carstream/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|e| Error::Settings(format!("cannot make an HTTP client for {url}: {e}")))?;
        Ok(Self { http, url, credentials, runtime })
    }

    /// Where it is.
    pub fn url(&self) -> &RegistryUrl {
        &self.url
    }

    /// All versions of a subject, oldest first; none if it does not exist.
    pub fn versions(&self, subject: &str) -> Result<Vec<Registered>, Error> {
        let what = format!("read the versions of {subject}");
        let Some(versions) = self.ask(Method::GET, &format!("subjects/{subject}/versions"), None, &what)? else {
            return Ok(Vec::new());
        };
        let versions: Vec<u32> = serde_json::from_value(versions).map_err(|e| self.strange(&what, e))?;
        let mut found = Vec::with_capacity(versions.len());
        for version in versions {
            let what = format!("read version {version} of {subject}");
            // One that is gone was deleted between the two questions.
            if let Some(answer) =
                self.ask(Method::GET, &format!("subjects/{subject}/versions/{version}"), None, &what)?
            {
                found.push(self.registered(&what, &answer)?);
            }
        }
        Ok(found)
    }

    /// This very schema, if the subject has it.
    pub fn find(&self, subject: &str, schema: &str) -> Result<Option<Registered>, Error> {
        let what = format!("look up a schema in {subject}");
        let answer = self.ask(Method::POST, &format!("subjects/{subject}"), Some(json!({"schema": schema})), &what)?;
        answer.map(|answer| self.registered(&what, &answer)).transpose()
    }

    /// The text of the schema with this id, if there is one.
    pub fn schema(&self, id: u32) -> Result<Option<String>, Error> {
        let what = format!("read schema id {id}");
        let Some(answer) = self.ask(Method::GET, &format!("schemas/ids/{id}"), None, &what)? else { return Ok(None) };
        let text = answer["schema"].as_str().ok_or_else(|| self.strange(&what, &answer))?;
        Ok(Some(text.to_owned()))
    }

    /// The compatibility that holds for a subject: its own, or else the registry's.
    pub fn compatibility(&self, subject: &str) -> Result<Option<String>, Error> {
        let what = format!("read the compatibility of {subject}");
        let answer = self.ask(Method::GET, &format!("config/{subject}?defaultToGlobal=true"), None, &what)?;
        Ok(answer.and_then(|answer| answer["compatibilityLevel"].as_str().map(str::to_owned)))
    }

    /// Sets the compatibility of a subject, which need not exist yet.
    pub fn set_compatibility(&self, subject: &str, compatibility: &str) -> Result<(), Error> {
        let what = format!("set the compatibility of {subject}");
        let body = json!({"compatibility": compatibility});
        self.ask(Method::PUT, &format!("config/{subject}"), Some(body), &what)?;
        Ok(())
    }

    /// Adds a version to a subject. A schema that the subject has is not added again.
    pub fn register(&self, subject: &str, schema: &str) -> Result<(), Error> {
        let what = format!("register a schema in {subject}");
        let answer =
            self.ask(Method::POST, &format!("subjects/{subject}/versions"), Some(json!({"schema": schema})), &what)?;
        answer.map(drop).ok_or_else(|| self.strange(&what, "404"))
    }

    fn registered(&self, what: &str, answer: &Value) -> Result<Registered, Error> {
        let number = |name: &str| answer[name].as_u64().and_then(|number| u32::try_from(number).ok());
        match (number("version"), number("id"), answer["schema"].as_str()) {
            (Some(version), Some(id), Some(schema)) => Ok(Registered { version, id, schema: schema.to_owned() }),
            _ => Err(self.strange(what, answer)),
        }
    }

    /// One exchange. `None`: the registry says that there is no such subject, version or schema.
    fn ask(&self, method: Method, path: &str, body: Option<Value>, what: &str) -> Result<Option<Value>, Error> {
        let mut request = self.http.request(method, format!("{}/{path}", self.url.as_str()));
        request = request.header("Accept", format!("{MEDIA_TYPE}, application/json"));
        if let Some((user, password)) = &self.credentials {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request.header("Content-Type", MEDIA_TYPE).body(body.to_string());
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.runtime.spawn(async move { sender.send(exchange(request).await) });
        let (status, bytes) = receiver
            .recv()
            .map_err(|_| self.unavailable(what, "the process is ending"))?
            .map_err(|e| self.unavailable(what, e))?;
        let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
        // Its own number says whose 404 it is: 404xx are the registry's.
        let code = answer.as_ref().map_or(0, |answer| answer["error_code"].as_u64().unwrap_or_default());
        let message = answer.as_ref().and_then(|answer| answer["message"].as_str()).unwrap_or_default().to_owned();
        match status {
            status if status.is_success() => match answer {
                Some(answer) => Ok(Some(answer)),
                None => Err(self.strange(what, "an answer that is not JSON")),
            },
            StatusCode::NOT_FOUND if code / 100 == 404 => Ok(None),
            StatusCode::NOT_FOUND => Err(self.strange(what, "404, without a registry's error code")),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(self.unavailable(what, status.to_string()))
            }
            status if status.is_server_error() => Err(self.unavailable(what, format!("{status} {message}"))),
            status => Err(Error::Refused {
                operation: what.to_owned(),
                registry: self.url.to_string(),
                status: status.as_u16(),
                message,
            }),
        }
    }

    fn unavailable(&self, what: &str, source: impl Into<crate::BoxError>) -> Error {
        Error::Unavailable { operation: what.to_owned(), registry: self.url.to_string(), source: source.into() }
    }

    fn strange(&self, what: &str, found: impl std::fmt::Display) -> Error {
        Error::NotARegistry { operation: what.to_owned(), registry: self.url.to_string(), what: found.to_string() }
    }
}

async fn exchange(request: reqwest::RequestBuilder) -> Result<(StatusCode, Vec<u8>), crate::BoxError> {
    let mut response = request.send().await.map_err(without_url)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(without_url)? {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes").into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((response.status(), bytes))
}

/// The message that this is the cause of names the URL.
fn without_url(error: reqwest::Error) -> crate::BoxError {
    error.without_url().into()
}
