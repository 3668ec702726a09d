//! Snapshots as they lie in the topic, whole and not.

use event_log::Batch;

use super::*;

const VERSION: &str = "v1";
const SOURCE: &str = "id";

fn at(offset: u64) -> Position {
    Position { topic: "in".into(), partition: 2, offset }
}

fn state(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| seed.wrapping_add((i % 251) as u8)).collect()
}

/// The records of snapshots, as they would lie in the topic.
struct Topic {
    records: Batch,
    slots: Slots,
}

impl Topic {
    fn new() -> Self {
        Self { records: Batch::new("state".into(), 0), slots: finder("g", &at(0)).finish().slots }
    }

    fn write(&mut self, offset: u64, state: &[u8], version: &str, source: &str) {
        let mut writing = self.begin(offset, state, version, source);
        while !writing.is_whole() {
            self.piece(&mut writing);
        }
        self.slots = writing.slots();
    }

    fn begin(&self, offset: u64, state: &[u8], version: &str, source: &str) -> Writing {
        let id = SnapshotId { group: "g", at: &at(offset), state_version: version, source_id: source };
        Writing::new(id, state.to_vec(), self.slots, CHUNK_BYTES)
    }

    fn piece(&mut self, writing: &mut Writing) {
        let mut outputs = Outputs::default();
        let written = writing.piece(&mut outputs, &"state".into(), 0);
        writing.committed(written);
        assert!(outputs.batches().map(Batch::bytes).sum::<usize>() < PIECE_BYTES + PIECE_BYTES / 8);
        for record in outputs.batches().flat_map(Batch::iter) {
            let offset = self.records.next_offset().unwrap_or(0);
            self.records.push(offset, record.timestamp_ms, record.key, record.value, record.headers);
        }
    }

    /// What is found without the records that `lost` names by place.
    fn find(&self, until: u64, lost: &[usize]) -> Found {
        let mut finder = finder("g", &at(until));
        for (_, record) in self.records.iter().enumerate().filter(|(i, _)| !lost.contains(i)) {
            finder.take(&record);
        }
        finder.finish()
    }
}

fn finder(group: &str, at: &Position) -> Finder {
    Finder::new(SnapshotId { group, at, state_version: VERSION, source_id: SOURCE })
}

fn found(found: Found) -> Option<(u64, Vec<u8>)> {
    found.snapshot.map(|s| (s.position, s.state))
}

#[test]
fn the_newest_whole_one_up_to_the_position_is_found() {
    let mut topic = Topic::new();
    let states: Vec<_> = [3 * CHUNK_BYTES, 0, CHUNK_BYTES, CHUNK_BYTES + 1].map(|n| state(n as u8, n)).into();
    for (i, state) in states.iter().enumerate() {
        topic.write(10 * i as u64, state, VERSION, SOURCE);
    }
    let all = topic.find(1000, &[]);
    assert_eq!((all.slots, all.unusable.clone()), (topic.slots, None));
    assert_eq!(all.slots.taken.iter().sum::<u32>(), 2, "of those before nothing is left");
    assert!(found(all) == Some((30, states[3].clone())));
    let before = topic.find(29, &[]);
    assert_eq!(before.unusable, Some(Unusable::Ahead(30)));
    assert!(found(before) == Some((20, states[2].clone())));
    assert!(found(topic.find(19, &[])) == Some((10, Vec::new())), "an empty state is one, too");
}

/// Whatever is lost of it, nothing is found but a snapshot that was written.
#[test]
fn what_is_not_whole_is_not_found() {
    let (mut topic, old, new) = (Topic::new(), state(1, 2 * CHUNK_BYTES), state(2, 3 * CHUNK_BYTES - 7));
    topic.write(5, &old, VERSION, SOURCE);
    topic.write(9, &new, VERSION, SOURCE);
    assert_eq!(topic.records.len(), 5 + 2, "and the first one is removed");
    for lost in 0u32..32 {
        let lost: Vec<_> = (0..5).filter(|i| lost & (1 << i) != 0).collect();
        let expected = match (lost.iter().any(|i| *i >= 2), lost.iter().any(|i| *i < 2)) {
            (false, _) => Some((9, &new)),
            (true, false) => Some((5, &old)),
            (true, true) => None,
        };
        assert!(found(topic.find(1000, &lost)) == expected.map(|(at, s)| (at, s.clone())), "without {lost:?}");
    }
    assert_eq!(topic.find(1000, &[4]).unusable, Some(Unusable::Torn));
}

#[test]
fn until_its_last_piece_is_written_the_one_before_is_found() {
    let (mut topic, old, new) = (Topic::new(), state(1, CHUNK_BYTES + 1), state(2, 2 * PIECE_BYTES + 1));
    topic.write(5, &old, VERSION, SOURCE);
    let mut writing = topic.begin(9, &new, VERSION, SOURCE);
    for pieces in 1..=3 {
        topic.piece(&mut writing);
        let (expected, unusable) = if pieces < 3 { ((5, &old), Some(Unusable::Torn)) } else { ((9, &new), None) };
        let so_far = topic.find(1000, &[]);
        assert_eq!((so_far.slots, so_far.unusable.clone()), (writing.slots(), unusable), "{pieces}");
        assert!(found(so_far) == Some((expected.0, expected.1.clone())), "{pieces}");
    }
    // One that is given up leaves keys behind, which the next one removes.
    topic.slots = writing.slots();
    let mut given_up = topic.begin(12, &new, VERSION, SOURCE);
    topic.piece(&mut given_up);
    topic.slots = topic.find(1000, &[]).slots;
    topic.write(15, &old, VERSION, SOURCE);
    let last = topic.find(1000, &[]);
    assert_eq!((last.slots, last.slots.taken.iter().sum::<u32>()), (topic.slots, 2));
    assert!(found(last) == Some((15, old)));
}

#[test]
fn what_is_anothers_is_not_found() {
    for (version, source, why) in
        [("v2", SOURCE, Unusable::OtherVersion), (VERSION, "id before", Unusable::OtherSource)]
    {
        let mut topic = Topic::new();
        topic.write(5, b"state", version, source);
        let nothing = topic.find(1000, &[]);
        assert_eq!((nothing.slots, nothing.unusable.clone()), (topic.slots, Some(why)));
        assert!(found(nothing).is_none());
    }
    let mut topic = Topic::new();
    topic.write(5, b"state", VERSION, SOURCE);
    for (group, of) in [("g2", at(9)), ("g", Position { partition: 22, ..at(9) })] {
        let mut finder = finder(group, &of);
        topic.records.iter().for_each(|record| finder.take(&record));
        assert!(found(finder.finish()).is_none(), "{group} {of:?}");
    }
}

#[test]
fn bytes_that_changed_are_not_believed() {
    let (mut topic, state) = (Topic::new(), state(1, 1000));
    topic.write(5, &state, VERSION, SOURCE);
    let good = topic.records.get(0);
    for (value, headers, why) in [
        (&state[..999], good.headers, Unusable::Damaged),
        (&[&state[1..], &state[..1]].concat()[..], good.headers, Unusable::Damaged),
        (&state[..], Headers::default(), Unusable::NoHeaders),
    ] {
        let mut finder = finder("g", &at(9));
        finder.take(&RecordRef { value: Some(value), headers, ..good });
        let nothing = finder.finish();
        assert_eq!(nothing.unusable, Some(why));
        assert!(found(nothing).is_none());
    }
}
