//! Properties of whole cars: determinism, bounds, physics over days, faults.

use super::*;

const START_MS: i64 = 1_780_290_000_000;
const DAY_MS: i64 = 86_400_000;

fn spec(seed: u64) -> FleetSpec {
    FleetSpec { seed, interval_ms: 30_000, start_ms: START_MS, fault_share: 0.005, newer_schema_share: 0.3 }
}

fn life(spec: &FleetSpec, index: u32, span_ms: i64) -> (Vec<Reading>, Vec<Fault>) {
    let mut car = Car::new(spec, index);
    let (mut readings, mut faults) = (Vec::new(), Vec::new());
    while car.next_time_ms() < spec.start_ms + span_ms {
        let announced_ms = car.next_time_ms();
        let reading = car.next_reading();
        assert_eq!(reading.event_time_ms, announced_ms);
        readings.push(reading);
        faults.extend(car.take_finding());
    }
    faults.extend(car.inspect(spec.start_ms + span_ms));
    (readings, faults)
}

#[test]
fn the_same_car_in_any_order_and_company() {
    let alone = life(&spec(7), 11, DAY_MS);
    let mut others: Vec<Car> = (0..20).map(|index| Car::new(&spec(7), index)).collect();
    for car in &mut others {
        car.next_reading();
    }
    assert_eq!(alone, life(&spec(7), 11, DAY_MS));
    assert_ne!(alone.0, life(&spec(8), 11, DAY_MS).0);
    // Interleaved with others, one reading at a time.
    let mut again = Car::new(&spec(7), 11);
    for expected in &alone.0 {
        others[3].next_reading();
        assert_eq!(again.next_reading(), *expected);
    }
}

#[test]
fn a_wider_fault_share_changes_no_trip() {
    let calm = life(&FleetSpec { fault_share: 0.0, ..spec(3) }, 5, DAY_MS).0;
    let rough = life(&FleetSpec { fault_share: 0.3, ..spec(3) }, 5, DAY_MS).0;
    let route = |readings: &[Reading]| -> Vec<_> {
        readings.iter().map(|r| (r.event_time_ms, r.trip_id, r.boot_id, r.seq)).collect()
    };
    assert_eq!(route(&calm), route(&rough));
}

#[test]
fn readings_hold_the_bounds_of_the_schema_and_of_the_road() {
    for index in 0..60 {
        let (readings, _) = life(&spec(2), index, 2 * DAY_MS);
        let mut driving = 0;
        for pair in readings.windows(2) {
            let (before, reading) = (&pair[0], &pair[1]);
            let v = reading.values();
            assert!((-30.0..=128.0).contains(&v[0]), "coolant {}", v[0]);
            assert!((-30.0..=80.0).contains(&v[1]), "intake {}", v[1]);
            assert!((200.0..=500.0).contains(&v[4]), "voltage {}", v[4]);
            assert!(v[5].abs() <= 361.0, "current {}", v[5]);
            assert!(v[6] < 50.0, "speed {}", v[6]);
            assert!(v[9..13].iter().all(|psi| (5.0..50.0).contains(psi)), "pressure {:?}", &v[9..13]);
            assert!(v[13..17].iter().all(|g| (-0.1..3.0).contains(g)), "acceleration {:?}", &v[13..17]);
            assert!(reading.event_time_ms > before.event_time_ms);
            if reading.boot_id == before.boot_id {
                assert_eq!(reading.seq, before.seq + 1);
            } else {
                assert_eq!(reading.seq, 0);
            }
            match reading.trip_id {
                Some(_) => driving += 1,
                None if !reading.faulty => assert!(v[6] == 0.0 && v[8] == 0.0, "parked at {} m/s", v[6]),
                None => {}
            }
        }
        assert!(readings.len() > 2 * 144 && driving < readings.len(), "{} readings", readings.len());
    }
}

#[test]
fn heat_has_inertia_and_pressure_follows_temperature() {
    let healthy = FleetSpec { fault_share: 0.0, ..spec(4) };
    let mut warm_ups = 0;
    for index in 0..30 {
        let (readings, _) = life(&healthy, index, DAY_MS);
        for pair in readings.windows(2).filter(|p| p[1].event_time_ms - p[0].event_time_ms == 30_000) {
            let rise = pair[1].values()[0] - pair[0].values()[0];
            assert!(rise.abs() < 12.0, "coolant jumps by {rise} in 30 s");
        }
        let trips: Vec<&[Reading]> =
            readings.chunk_by(|a, b| a.trip_id == b.trip_id && a.boot_id == b.boot_id).collect();
        for trip in trips.iter().filter(|t| t[0].trip_id.is_some() && t.len() > 60) {
            let (first, last) = (trip[0].values(), trip[trip.len() - 1].values());
            if first[0] < 30.0 {
                assert!(last[0] > 70.0, "warm after half an hour: {}", last[0]);
                assert!(last[9] > first[9] + 1.0, "tyres gain pressure: {} {}", first[9], last[9]);
                warm_ups += 1;
            }
        }
    }
    assert!(warm_ups >= 5, "{warm_ups} cold starts seen");
}

#[test]
fn faults_have_their_share_and_findings_match_the_readings() {
    let (mut faulty, mut all, mut found, mut kinds) = (0, 0, 0, std::collections::HashSet::new());
    for index in 0..200 {
        let (readings, faults) = life(&spec(1), index, 3 * DAY_MS);
        for reading in &readings {
            let inside = faults.iter().filter(|f| (f.began_ms..f.repaired_ms).contains(&reading.event_time_ms)).count();
            assert_eq!(inside, usize::from(reading.faulty), "car {index} at {}", reading.event_time_ms);
        }
        for fault in &faults {
            assert!(readings.iter().any(|r| r.event_time_ms == fault.began_ms));
            let last = fault.repaired_ms == START_MS + 3 * DAY_MS;
            assert!(last || readings.iter().any(|r| r.event_time_ms == fault.repaired_ms && !r.faulty));
            kinds.insert(fault.kind);
        }
        faulty += readings.iter().filter(|r| r.faulty).count();
        all += readings.len();
        found += faults.len();
    }
    let share = faulty as f64 / all as f64;
    assert!((0.0035..0.0065).contains(&share), "{faulty} of {all} readings, share {share}, {found} faults");
    assert_eq!(kinds.len(), FaultKind::ALL.len());
}

#[test]
fn networks_are_lost_and_come_back() {
    let (mut fading, mut offline, mut all) = (0, 0, 0);
    for index in 0..50 {
        let (readings, _) = life(&spec(6), index, DAY_MS);
        for pair in readings.windows(2) {
            if pair[1].coverage == Coverage::Offline {
                assert_ne!(pair[0].coverage, Coverage::Online, "a network fades before it is gone");
            }
        }
        fading += readings.iter().filter(|r| r.coverage == Coverage::Fading).count();
        offline += readings.iter().filter(|r| r.coverage == Coverage::Offline).count();
        all += readings.len();
    }
    assert!(fading > 50 && offline > fading && offline < all / 4, "{fading} {offline} {all}");
}

#[test]
fn a_fleet_that_begins_weeks_later_lives_the_same_life_weeks_later() {
    for (index, weeks) in [(0, 5), (1, 26), (2, -40), (3, 1000)] {
        let moved_ms = weeks * 7 * DAY_MS;
        let moved = FleetSpec { start_ms: START_MS + moved_ms, fault_share: 0.3, ..spec(4) };
        let (readings, faults) = life(&moved, index, 3 * DAY_MS);
        let (mut expected, mut expected_faults) = life(&FleetSpec { fault_share: 0.3, ..spec(4) }, index, 3 * DAY_MS);
        expected.iter_mut().for_each(|reading| reading.event_time_ms += moved_ms);
        for fault in &mut expected_faults {
            (fault.began_ms, fault.repaired_ms) = (fault.began_ms + moved_ms, fault.repaired_ms + moved_ms);
        }
        assert_eq!((readings, faults), (expected, expected_faults), "car {index}, {weeks} weeks");
    }
}
