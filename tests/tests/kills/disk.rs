//! The edge box on a disk that fills and is freed, twice, under cars that keep sending.

use std::time::Duration;

use test_support::disk::Disk;
use whole_pipeline_tests::process::Process;

use super::edge::Site;

/// Far more than the box writes here.
const ROOM: &str = "1g";

#[test]
fn an_edge_box_whose_disk_was_full_delivers_every_reading() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let Some(disk) = Disk::mount(site.log.as_ref(), ROOM) else { return };
    let cars = site.cars();
    let mut edge = site.edge(&site.cloud);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3));
        disk.fill();
        // It cannot keep its promise, and ends; so does what its supervisor starts before there is room.
        let ends = |edge: Process| {
            let (code, said) = edge.end();
            assert!(code == Some(1) && said.contains("No space left on device"), "{code:?}: {said}");
        };
        ends(edge);
        ends(site.start(&site.cloud, &[]));
        disk.resize(ROOM);
        edge = site.edge(&site.cloud);
    }
    std::thread::sleep(Duration::from_secs(3));
    cars.terminate();
    cars.succeed();
    let audit = site.audit_at_the_end(edge);
    audit.assert_clean();
    assert!(audit.count("clean") > 5_000, "{}", audit.said);
    for hop in ["replicated", "scored"] {
        assert_eq!(audit.count(hop), audit.count("clean"), "{}", audit.said);
    }
}
