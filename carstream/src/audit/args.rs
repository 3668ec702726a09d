//! The settings of the audit.

use std::path::PathBuf;
use std::time::Duration;

use event_log::{CloudLogArgs, EdgeLogArgs, LogUrl};
use lake::{LakeArgs, LakeUrl, S3Args};
use schema_registry::{SchemaRegistryArgs, SchemaSource};
use serde::{Deserialize, Serialize};
use service::{ConfigError, ContractArgs, values};
use telemetry::pseudonym::PseudonymKey;

use super::{Flow, Sources};
use crate::live::{self, Request};

/// Show where every reading went: compare the cars' ledger with every hop. Exits with 1 if any reading is lost or
/// doubled.
///
/// Reads each hop from its beginning, from the log or the store itself, and ignores the stages' own counters. Hops that
/// are not named are left out. Every acknowledged reading must be in the raw topic (or among its dead letters) and
/// exactly once at every later hop; every other reading must be nowhere, or everywhere once. Records that a stage has
/// not reached yet are its lag, not a loss: --wait gives it time. Records that retention has removed are reported, and
/// not expected at a hop. Every record that cannot be processed must be exactly one dead letter.
///
/// While a running edge box has the edge's log open, the box audits it, with its own key, contract and names, and
/// without --cloud-log and --lake.
///
/// Without a --ledger, as with real cars, gaps and repeats are found from the cars' own numbering; a car that drops
/// readings from its own full buffer leaves gaps too, and readings missing at the end of a car's numbering cannot be
/// seen.
///
/// Exit code 0: nothing is missing, doubled or unknown; 1: there are discrepancies, or --wait was not enough; 64:
/// settings.
///
/// Names cars only by their pseudonyms; with access to the edge's log, the printed positions lead to the car. Memory:
/// about 10 bytes per reading (10 million in 100 MB), plus 300 bytes per car.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The edge's log.
    #[command(flatten)]
    pub edge: EdgeLogArgs,
    /// The cloud's log.
    #[command(flatten)]
    pub cloud: CloudLogArgs,
    /// Audit this object store, too: a directory, file:///DIRECTORY, or s3://BUCKET[/PREFIX].
    #[arg(long, env = "CARSTREAM_LAKE", value_name = "URL")]
    pub lake: Option<LakeUrl>,
    /// How S3 is reached.
    #[command(flatten)]
    pub s3: S3Args,
    /// Read the site's secret key for pseudonyms from this file, at least 16 bytes; a site has one key.
    ///
    /// It maps VINs to pseudonyms: needed with an --edge-log or a --ledger.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: Option<PathBuf>,
    /// Compare with this ledger of the simulator; may be repeated, one for each simulator that sent to this edge.
    ///
    /// FILE.run beside it says whether it is complete: if so, a reading that is in no ledger is a discrepancy.
    #[arg(long, env = "CARSTREAM_LEDGER", value_name = "FILE")]
    pub ledger: Vec<PathBuf>,
    /// Wait at most this long until the readings that are at the edge now are at every hop.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub wait: Option<Duration>,
    /// Require a score of each clean reading: `auto` if there are scores, or a topic for them and an announced model.
    #[arg(long, value_enum, default_value_t)]
    pub scores: Scores,
    /// Look for the records of the edge site of this name in the cloud.
    #[arg(long, env = "CARSTREAM_SITE", value_name = "NAME", default_value = replicator::DEFAULT_SITE,
        value_parser = values::name)]
    pub site: String,
    /// Look for the positions of scorers in this consumer group.
    #[arg(long, env = "CARSTREAM_SCORER_GROUP", value_name = "NAME", default_value = scorer::DEFAULT_GROUP)]
    pub scorer_group: String,
    /// The site's streams.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Audit this stream of the contract. Ledgers of the simulator are about the default one, and left out with others.
    #[arg(long, value_name = "NAME", default_value = contract::READINGS)]
    pub stream: String,
    /// Where the schema ids in the logs come from.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// Whether scores are a hop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Scores {
    /// If there are scores, or a topic for them and an announced model.
    #[default]
    Auto,
    /// Yes.
    Yes,
    /// No.
    No,
}

impl Args {
    /// The ledgers that are about the stream. A site may name them in CARSTREAM_LEDGER, for audits of all its streams.
    pub(super) fn ledgers(&self) -> &[PathBuf] {
        if self.stream == contract::READINGS { &self.ledger } else { &[] }
    }

    /// The request for the edge box, if one has the edge's log open.
    pub(super) fn of_a_running_box(&self) -> anyhow::Result<Option<(LogUrl, Request)>> {
        let Some(log) = self.edge.log.as_ref().filter(|log| live::is_served(log)) else { return Ok(None) };
        if self.cloud.log.is_some() || self.lake.is_some() {
            let problem = format!(
                "--edge-log {log}: a running edge box has it open, and audits its own log only: leave out --cloud-log \
                 and --lake, or stop the box"
            );
            return Err(ConfigError(vec![problem]).into());
        }
        let ledgers = self.ledgers().iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        let (stream, wait, scores, json) = (self.stream.clone(), self.wait, self.scores, self.json);
        Ok(Some((log.clone(), Request::Audit { stream, ledgers, wait, scores, json })))
    }

    /// Opens the named places. Reports all problems together, before it opens anything.
    pub(super) fn open(&self) -> anyhow::Result<(Sources, Option<PseudonymKey>)> {
        let mut problems = [self.schema_registry.problems(), self.edge.problems(), self.cloud.problems()].concat();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0)).ok();
        let flow = contract.as_ref().and_then(|contract| {
            let known = self.contract.stream(contract, &self.stream);
            known.map_err(|error| problems.push(format!("--stream {}: {error}", self.stream))).ok()?;
            Flow::of(contract, &self.stream).map_err(|error| problems.push(format!("--stream: {error}"))).ok()
        });
        if self.edge.log.is_none() && self.cloud.log.is_none() && self.lake.is_none() {
            problems.push("--edge-log, --cloud-log, --lake: name at least one of them".to_owned());
        }
        let logs = [("--edge-log", &self.edge.log), ("--cloud-log", &self.cloud.log)];
        for (setting, url) in logs {
            problems.extend(url.as_ref().and_then(|url| crate::missing_log(setting, url)));
        }
        if let Some(LakeUrl::Directory(path)) = &self.lake {
            problems.extend(service::missing_directory("--lake", path));
        }
        let lake = self.lake.clone().map(|lake| LakeArgs { lake, s3: self.s3.clone() });
        problems.extend(lake.iter().flat_map(LakeArgs::problems));
        for ledger in self.ledgers().iter().filter(|ledger| !ledger.is_file()) {
            problems.push(format!("--ledger {}: the file does not exist", ledger.display()));
        }
        let key = match &self.pseudonym_key_file {
            Some(path) => crate::read_key(path).map_err(|problem| problems.push(problem)).ok(),
            None => {
                if self.edge.log.is_some() || !self.ledgers().is_empty() {
                    problems.push("--pseudonym-key-file is missing: the key that the site's preprocessor uses".into());
                }
                None
            }
        };
        ConfigError::check(problems)?;
        let (contract, flow) = contract.zip(flow).expect("their problems are problems");
        let sources = Sources {
            edge: self.edge.open()?,
            cloud: self.cloud.open()?,
            lake: lake.as_ref().map(LakeArgs::open).transpose()?,
            flow,
            schemas: SchemaSource::of(contract.schemas().clone()),
            scores: self.scores,
            site: self.site.clone(),
            scorer_group: self.scorer_group.clone(),
        };
        Ok((sources, key))
    }
}
