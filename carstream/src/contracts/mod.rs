//! `carstream contract`: what a site has, checked, listed, explained; and the folder of a new stream.
//!
//! ```text
//!  --contract DIR ─► read ─► parse: topics, schemas, streams, models ─┬─► check    all problems, file and line
//!                                                                     ├─► list     topics, streams, groups
//!                                                                     └─► explain  plan and lineage of one stream
//!  new STREAM ─► a commented folder that passes `check`
//! ```
//!
//! No log is opened, no key is read: it runs in a site's CI.

mod args;
mod new;

use std::fmt::Write as _;

use contract::{Contract, Problem, Topic};
use service::ConfigError;

pub use args::{Args, Command, ExplainArgs, NewArgs};

/// Runs `carstream contract`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Check(contract) => {
            let contract = check(contract)?;
            let (streams, topics) = (contract.streams().len(), contract.topics().count());
            let models = contract.models().len();
            let counts = [(streams, "stream"), (topics, "topic"), (models, "model")];
            println!("{}: no problem found", counts.map(|(count, what)| counted(count, what)).join(", "));
        }
        Command::List(contract) => print!("{}", list(&contract.load()?)),
        Command::Explain(args) => print!("{}", explain(args)?),
        Command::New(args) => println!("{}", new::write(args)?),
    }
    Ok(())
}

/// `1 model`, `2 models`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The contract, if every stage can use all of it: its files, its statements and samples, and its models.
fn check(args: &service::ContractArgs) -> Result<Contract, ConfigError> {
    let contract = args.load()?;
    let described = problems(&contract).into_iter().map(|problem| args.describe(problem));
    ConfigError::check(described)?;
    Ok(contract)
}

/// The problems of a contract whose files are valid: in its statements, its samples, the columns of its models.
pub fn problems(contract: &Contract) -> Vec<Problem> {
    let mut problems = preprocessor::trial::check_contract(contract);
    problems.extend(scorer::check_contract(contract));
    problems.extend(trainer::check_contract(contract));
    problems.sort();
    problems
}

fn list(contract: &Contract) -> String {
    let mut text = String::from("streams\n");
    for stream in contract.streams() {
        let (input, output, name) = (&stream.input.topic, &stream.output_topic, &stream.name);
        let _ = writeln!(text, "  {name:<14}{input} ─► {output}; group {}", stream.group());
        for table in &stream.tables {
            let key = &table.schema.fields[table.key].name;
            let _ = writeln!(text, "  {:<14}table {} by {key}, topic {}", "", table.table, table.topic);
        }
    }
    text.push_str("\nmodels\n");
    for model in contract.models() {
        let _ = writeln!(
            text,
            "  {:<14}{} ─► {}, {}",
            model.name, model.readings.name, model.scores.name, model.alerts.name
        );
    }
    text.push_str("\nschema ids, where no schema registry gives them\n");
    for (id, schema) in contract.schemas().with_ids() {
        let _ = writeln!(text, "  {id:<14}{}", schema.file);
    }
    text.push_str("\ntopics\n");
    let width = contract.topics().map(|topic| topic.name.len()).max().unwrap_or_default();
    for topic in contract.topics() {
        let _ = writeln!(text, "  {:<width$}  {}", topic.name, describe(topic));
    }
    text
}

/// A topic in one line.
fn describe(topic: &Topic) -> String {
    let at = match topic.at {
        contract::At::Edge => "edge",
        contract::At::Cloud => "cloud",
        contract::At::Both => "edge, replicated to the cloud",
    };
    let mut facts = vec![at.to_owned()];
    facts.push(match topic.retention {
        _ if topic.compacted => "compacted".to_owned(),
        retention => format!("kept {}", topics::Hours(retention)),
    });
    facts.push(match &topic.value {
        contract::Value::Json => "JSON".to_owned(),
        contract::Value::Avro(file) => format!("Avro {file}"),
        contract::Value::Bytes => "bytes".to_owned(),
    });
    let flags = [(topic.personal, "personal"), (topic.lake, "to the lake"), (topic.wills, "last wills")];
    facts.extend(flags.into_iter().filter(|(is, _)| *is).map(|(_, flag)| flag.to_owned()));
    facts.extend(topic.cars_publish.iter().map(|level| format!("cars publish vehicles/{{vin}}/{level}")));
    facts.extend(topic.cars_receive.iter().map(|level| format!("cars receive vehicles/{{vin}}/{level}")));
    facts.join("; ")
}

fn explain(args: &ExplainArgs) -> anyhow::Result<String> {
    let contract = args.contract.load()?;
    let stream = args.contract.stream(&contract, &args.stream)?;
    let mut text = preprocessor::explain(stream).map_err(|problems| {
        ConfigError(problems.into_iter().map(|problem| args.contract.describe(problem)).collect())
    })?;
    let _ = writeln!(text, "\n  topics");
    let width = stream.topics().iter().map(|topic| topic.len()).max().unwrap_or_default();
    for name in stream.topics() {
        let _ = writeln!(text, "    {name:<width$}  {}", describe(contract.expect_topic(&name)));
    }
    if contract.expect_topic(&stream.output_topic).lake {
        let _ = writeln!(text, "\n  lake\n    {}/date=…/partition=…/", stream.output_topic);
    }
    let _ = writeln!(text, "\n  consumer groups");
    let _ = writeln!(text, "    {:<28}preprocessor, positions in {}", stream.group(), stream.input.topic);
    if contract.expect_topic(&stream.output_topic).at == contract::At::Both {
        let group = replicator::group(&stream.output_topic);
        let _ = writeln!(text, "    {group:<28}replicator, positions in {}", stream.output_topic);
    }
    for model in contract.models().filter(|model| model.readings.name == stream.output_topic) {
        let _ = writeln!(text, "    {:<28}scorer of model {}", scorer::DEFAULT_GROUP, model.name);
    }
    Ok(text)
}
