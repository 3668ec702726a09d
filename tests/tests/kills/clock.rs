//! The edge box with a clock that is wrong: nine days ahead for ten seconds, before it reaches its cloud.

use std::process::Command;
use std::time::Duration;

use super::edge::Site;

/// More than the retention of every topic.
const AHEAD: &str = "+9d";

/// Two runs of retention and more.
const WRONG_FOR: Duration = Duration::from_secs(12);

/// The variables under which a process sees another day. Only its wall clock differs.
fn ahead() -> Option<Vec<(String, String)>> {
    // Where a killed process has had its number and left its files in /dev/shm, it fails, once in a few hundred.
    let ask = || Command::new("faketime").args(["-f", AHEAD, "env"]).output();
    let found = (0..5).map(|_| ask()).find(|found| found.as_ref().is_ok_and(|found| found.status.success()));
    let Some(Ok(found)) = found else {
        assert!(std::env::var("CI").is_err(), "in CI, faketime must be installed");
        eprintln!("skipped: faketime is missing (Debian: apt-get install faketime)");
        return None;
    };
    let text = String::from_utf8(found.stdout).unwrap();
    let of_library = text.lines().filter_map(|line| line.split_once('='));
    let of_library = of_library.filter(|(name, _)| ["LD_PRELOAD", "FAKETIME"].contains(name));
    let mut variables: Vec<_> = of_library.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(variables.len(), 2, "{text}");
    variables.push(("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()));
    Some(variables)
}

#[test]
fn an_edge_box_whose_clock_was_wrong_delivers_every_reading() {
    let Some(ahead) = ahead() else { return };
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let no_uplink = super::edge::no_uplink();
    let edge = site.edge(&no_uplink);
    let cars = site.cars();
    std::thread::sleep(Duration::from_secs(3));
    cars.terminate();
    cars.succeed();
    edge.kill();

    let edge = site.edge_with(&no_uplink, &ahead);
    std::thread::sleep(WRONG_FOR);
    let said = edge.said();
    edge.kill();

    let edge = site.edge(&site.cloud);
    std::thread::sleep(Duration::from_millis(500));
    let audit = site.audit_at_the_end(edge);
    audit.assert_clean();
    assert!(audit.count("clean") > 1_000, "{}", audit.said);
    for hop in ["replicated", "scored"] {
        assert_eq!(audit.count(hop), audit.count("clean"), "{}", audit.said);
    }
    assert!(said.contains("cannot be told from a clock that is wrong"), "it did not notice:\n{said}");
}
