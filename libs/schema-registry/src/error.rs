//! What can go wrong with a schema registry.

/// A cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Something that a schema registry was asked for and did not give.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
    /// There is no answer; trying again may help.
    #[error("cannot {operation} at the schema registry {registry}")]
    Unavailable {
        /// What was asked for.
        operation: String,
        /// Its URL.
        registry: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The answer was no, and will be.
    #[error(
        "the schema registry {registry} refused to {operation}: {status}{}{message}",
        if message.is_empty() { "" } else { ": " }
    )]
    Refused {
        /// What was asked for.
        operation: String,
        /// Its URL.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// Something answers there that is no schema registry.
    #[error(
        "the server at {registry} is not a schema registry (cannot {operation}: {what}); use the URL of its API, such \
         as http://localhost:8081, or http://localhost:8080/apis/ccompat/v7 for Apicurio"
    )]
    NotARegistry {
        /// What was asked for.
        operation: String,
        /// Its URL.
        registry: String,
        /// What came instead of an answer.
        what: String,
    },
    /// The registry's schemas do not fit this program.
    #[error("the schema registry {registry} does not fit this program: {}", problems.join("; "))]
    Unfit {
        /// Its URL.
        registry: String,
        /// One sentence each, with subject, both versions, and what to do.
        problems: Vec<String>,
    },
}

impl Error {
    /// Whether the same may succeed later, unchanged.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
