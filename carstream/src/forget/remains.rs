//! What is still held of a car that was forgotten: where, and until when.

use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use contract::{Contract, Topic};
use event_log::Error;

use super::Site;
use crate::compact;

/// The compacted topics that hold a row for each car, under its VIN: those that cars publish to.
pub(super) fn tables(contract: &Contract) -> impl Iterator<Item = &Topic> {
    contract.topics_of(contract::Site::Edge).filter(|topic| topic.compacted && topic.cars_publish.is_some())
}

/// The topics of the edge whose records are removed by their age, and what else holds something of the car.
pub(super) fn described(site: &Site<'_>, asked_ms: i64) -> Result<String, Error> {
    let mut text = "still held at the edge, each until its retention has removed it:\n".to_owned();
    for topic in site.contract.topics_of(contract::Site::Edge).filter(|topic| !topic.compacted) {
        let retention = match site.log.describe(&topic.name) {
            Ok(described) if described.settings_known => described.retention,
            Ok(_) => topic.retention,
            Err(Error::UnknownTopic { .. }) => continue,
            Err(error) => return Err(error),
        };
        line(&mut text, topic, retention, asked_ms);
    }
    let _ = writeln!(
        text,
        "  snapshots of the stages: the next one, within ten minutes, is without the car; older ones go once the log \
         has compacted their topics"
    );
    text.push_str("copies in a cloud, which are not touched here:\n");
    for topic in site.contract.topics_of(contract::Site::Cloud).filter(|topic| !topic.compacted) {
        line(&mut text, topic, topic.retention, asked_ms);
    }
    let lake: Vec<_> = site.contract.lake_topics().map(|topic| &*topic.name).collect();
    let _ = writeln!(
        text,
        "  the rows of {} in the lake, under the pseudonym: carstream compact erases those of a day once it is closed, \
         by default those of today from {} on\n  what the sink has set aside under _undecodable/ in the lake: until it \
         is deleted by hand",
        lake.join(", "),
        shown(compact::closes_ms(asked_ms))
    );
    Ok(text)
}

fn line(text: &mut String, topic: &Topic, retention: Option<Duration>, asked_ms: i64) {
    let key = if topic.personal { "VIN" } else { "pseudonym" };
    let until = match retention {
        Some(retention) => shown(asked_ms.saturating_add(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX))),
        None => "it is deleted by hand".to_owned(),
    };
    let _ = writeln!(text, "  {:<28} under the {key}, until {until}", topic.name);
}

fn shown(time_ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(time_ms);
    time.map_or("long".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}
