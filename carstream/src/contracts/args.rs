//! The settings of `carstream contract`.

use std::path::PathBuf;

use service::ContractArgs;

/// Check, list and explain what a site has: topics, schemas, streams, models; begin a new stream.
///
/// Without --contract it is the platform's contract, which is compiled in.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with the contract.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Check that every stage can use the contract; report all problems together, with file and line.
    ///
    /// Checks the files, plans every statement, follows personal data through it, and sends the sample readings through
    /// their streams. Needs no log and no key. Exit code 0: no problem; 64: problems.
    Check(ContractArgs),
    /// List streams, models and topics.
    List(ContractArgs),
    /// Print one stream: the origin of every output column, what stays at the edge, topics, consumer groups.
    Explain(ExplainArgs),
    /// Write the folder of a new stream into a contract: commented files that pass `check`, to be changed.
    New(NewArgs),
}

/// Settings of `explain`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    /// Name of the stream.
    pub stream: String,
    /// The site's contract.
    #[command(flatten)]
    pub contract: ContractArgs,
}

/// Settings of `new`.
#[derive(Debug, Clone, clap::Args)]
pub struct NewArgs {
    /// Name of the stream: lower-case letters, digits and '_', beginning with a letter.
    pub stream: String,
    /// Write into this contract; the directory is created if it does not exist.
    #[arg(long, env = "CARSTREAM_CONTRACT", value_name = "DIR")]
    pub contract: PathBuf,
}
