//! The second pass, only if there are discrepancies: where the readings that are named, and their neighbours, lie.

use std::collections::HashMap;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::discrepancies::Discrepancy;
use super::extent::Extents;
use super::flow::Flow;
use super::read::{self, HopRecord, RecordKind};
use super::readings::Identity;
use super::tally::Tally;
use super::{Hop, Sources};

/// Places reported for one reading at one hop.
const PLACES: usize = 4;

/// What is found of one reading at one hop.
#[derive(Debug, Clone, Default)]
struct Found {
    places: Vec<String>,
    /// The reading of the same boot with the next lower number, and its place.
    before: Option<(i64, String)>,
    after: Option<(i64, String)>,
}

/// The readings that are looked for.
struct Wanted<'t> {
    tally: &'t Tally,
    readings: Vec<(Identity, [Found; Hop::ALL.len()])>,
    by_boot: HashMap<(u32, i64), Vec<usize>>,
}

/// Reads every hop again, and adds places to the discrepancies that are about a reading.
pub(crate) fn locate(
    discrepancies: &mut [Discrepancy],
    tally: &Tally,
    sources: &Sources,
    extents: &Extents,
    runtime: &Handle,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut wanted = Wanted { tally, readings: Vec::new(), by_boot: HashMap::new() };
    for (identity, _) in discrepancies.iter().filter_map(|discrepancy| discrepancy.about) {
        let boot = wanted.by_boot.entry((identity.car, identity.boot_id)).or_default();
        boot.push(wanted.readings.len());
        wanted.readings.push((identity, Default::default()));
    }
    if wanted.readings.is_empty() {
        return Ok(());
    }
    let mut look = |record: &HopRecord<'_>| {
        wanted.look(record);
        Ok(())
    };
    if let (Some(edge), Some(extent)) = (&sources.edge, &extents.raw) {
        read::raw(&sources.flow, edge, extent, stop, &mut look)?;
    }
    let topics = [
        (Hop::Clean, &sources.edge, &extents.clean),
        (Hop::Cloud, &sources.cloud, &extents.cloud),
        (Hop::Scores, &sources.edge, &extents.scores),
    ];
    for (hop, log, extent) in topics {
        if let (Some(log), Some(extent)) = (log, extent) {
            read::avro(&sources.flow, hop, log, &sources.schemas, extent, stop, &mut look)?;
        }
    }
    if let (Some(lake), Some(extent)) = (&sources.lake, &extents.lake) {
        // What cannot be read was found to be so before.
        read::objects(&sources.flow, lake, extent, runtime, stop, &mut look, |_, _| {})?;
    }
    let mut found = wanted.readings.into_iter();
    for discrepancy in discrepancies.iter_mut() {
        if let Some((_, hop)) = discrepancy.about
            && let Some((_, found)) = found.next()
        {
            discrepancy.places = told(&tally.flow, hop, &found);
        }
    }
    Ok(())
}

impl Wanted<'_> {
    fn look(&mut self, record: &HopRecord<'_>) {
        let RecordKind::Reading { car, boot_id, seq } = record.kind else { return };
        let cars = &self.tally.cars;
        let car = if record.hop == Hop::Raw { cars.find_vin(car) } else { cars.find_pseudonym(car) };
        let Some(wanted) = car.and_then(|car| self.by_boot.get(&(car, boot_id))) else { return };
        for index in wanted {
            let (identity, found) = &mut self.readings[*index];
            let found = &mut found[record.hop as usize];
            let nearer = |than: &Option<(i64, String)>| {
                than.as_ref().is_none_or(|(other, _)| (seq - identity.seq).abs() < (other - identity.seq).abs())
            };
            match seq.cmp(&identity.seq) {
                std::cmp::Ordering::Equal if found.places.len() < PLACES => found.places.push(record.place.to_string()),
                std::cmp::Ordering::Less if nearer(&found.before) => {
                    found.before = Some((seq, record.place.to_string()))
                }
                std::cmp::Ordering::Greater if nearer(&found.after) => {
                    found.after = Some((seq, record.place.to_string()))
                }
                _ => {}
            }
        }
    }
}

/// Where it is, and around where it is not.
fn told(flow: &Flow, concerned: Hop, found: &[Found; Hop::ALL.len()]) -> Vec<String> {
    let at = |hop: Hop| found[hop as usize].places.iter().map(move |place| format!("in {place}{}", hop.side()));
    let mut told: Vec<_> = Hop::ALL.into_iter().flat_map(at).collect();
    let there = &found[concerned as usize];
    if there.places.is_empty() {
        for (side, neighbour) in [("after", &there.before), ("before", &there.after)] {
            if let Some((seq, place)) = neighbour {
                told.push(format!("not in {}, where it belongs {side} {place} (seq {seq})", flow.name(concerned)));
            }
        }
    }
    told
}
