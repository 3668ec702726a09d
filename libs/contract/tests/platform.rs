//! The platform's own contract, as it is compiled in.
#![allow(clippy::unwrap_used)]

use contract::{At, Contract, Files, Site};
use telemetry::schema::{Bounds, Pii};

#[test]
fn it_has_what_the_platform_is_made_of() {
    let contract = Contract::builtin();
    let names: Vec<_> = contract.streams().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["faults", "telemetry"]);
    let stream = contract.stream(contract::READINGS).unwrap();
    assert_eq!((stream.identity, stream.clean_identity()), ([0, 1, 2], ["car", "boot_id", "seq"]));
    assert_eq!(stream.tables[0].table, "drivers");
    assert_eq!(stream.group(), "preprocessor-telemetry");
    let model = contract.model(contract::MODEL).unwrap();
    assert_eq!((&*model.readings.name, &*model.findings.name), ("telemetry", "faults"));
}

#[test]
fn stages_find_the_topics_that_they_need() {
    let contract = Contract::builtin();
    let levels: Vec<_> = contract.cars_publish().map(|(level, topic)| (level, &*topic.name)).collect();
    let wanted =
        [("drivers", "drivers"), ("faults", "faults.raw"), ("status", "status.raw"), ("telemetry", "telemetry.raw")];
    assert_eq!(levels, wanted);
    let levels: Vec<_> = contract.cars_receive().map(|(level, topic)| (level, &*topic.name)).collect();
    assert_eq!(levels, [("alerts", "alerts")]);
    let names =
        |topics: &mut dyn Iterator<Item = &contract::Topic>| topics.map(|t| t.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&mut contract.lake_topics()), ["faults", "scores", "telemetry"]);
    assert_eq!(names(&mut contract.leaving_the_edge()), ["alerts", "faults", "scores", "telemetry"]);
    assert_eq!(
        contract.dead_letters().iter().map(|t| &**t).collect::<Vec<_>>(),
        ["faults.dead-letter", "scorer.dead-letter", "telemetry.dead-letter"]
    );
}

#[test]
fn personal_data_is_declared_at_the_edge_only() {
    let contract = Contract::builtin();
    let names = |site| contract.topics_of(site).map(|topic| topic.name.to_string()).collect::<Vec<_>>();
    assert!(contract.topics_of(Site::Cloud).all(|topic| !topic.personal && topic.at != At::Edge));
    assert_eq!(names(Site::Cloud), ["alerts", "faults", "models", "replicator.state", "scores", "telemetry"]);
    assert!(!names(Site::Edge).contains(&"models".to_owned()));
    assert_eq!(names(Site::All).len(), contract.topics().count());
    assert!(contract.is_personal("nobody-knows"));
}

#[test]
fn its_schemas_parse() {
    let schemas = Contract::builtin().schemas();
    let raw = schemas.file("telemetry_raw.avsc").unwrap();
    assert_eq!(raw.field("vin").unwrap().pii, Some(Pii::Identifier));
    assert_eq!(raw.field("vin").unwrap().bounds, Some(Bounds::Length { min: 17, max: 17 }));
    assert_eq!(raw.field("speed").unwrap().bounds, Some(Bounds::Real { min: 0.0, max: 120.0 }));
    assert!(raw.field("ambient_temp").unwrap().nullable);
    let (v1, v2) = (schemas.id(1).unwrap(), schemas.id(2).unwrap());
    assert_eq!((v1.name.as_str(), &v1.name), ("carstream.Telemetry", &v2.name));
    assert_eq!(v2.fields.len(), v1.fields.len() + 1);
    assert_eq!(v2.arrow.field_with_name("speed").unwrap().metadata()["unit"], "m/s");
    let versions: Vec<_> = schemas.versions_of("telemetry.v1.avsc").iter().map(|s| s.file.clone()).collect();
    assert_eq!(versions, ["telemetry.v1.avsc", "telemetry.v2.avsc"]);
    for (_, schema) in schemas.with_ids() {
        for other in schemas.versions_of(&schema.file) {
            assert_eq!(schema.differences(&other), [""; 0]);
        }
    }
}

#[test]
fn a_contract_that_replaces_it_need_not_repeat_the_stages_own_topics() {
    let alone = Files::from([("contract.json".to_owned(), r#"{"extends": "nothing"}"#.to_owned())]);
    let contract = Contract::parse(alone).unwrap();
    let names: Vec<_> = contract.topics().map(|topic| topic.name.to_string()).collect();
    assert_eq!(names, ["dead-letter.replayed", "preprocessor.state", "replicator.state", "stages.gaps"]);
    assert_eq!((contract.streams().len(), contract.models().len()), (0, 0));
}
