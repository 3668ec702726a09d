//! A test that dies takes its children with it.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use test_support::process::OwnedChild;

/// Not a test: the process that starts a child and dies.
#[test]
fn parent() {
    let Ok(how) = std::env::var("TEST_SUPPORT_PARENT_ENDS_BY") else { return };
    let mut sleep = OwnedChild::spawn(Command::new("sleep").arg("600").stdout(Stdio::null())).expect("sleep runs");
    println!("\nchild {}", sleep.id());
    assert!(how != "panic", "as a test that fails");
    sleep.wait().expect("not before this process is killed");
}

#[test]
fn no_child_outlives_its_test() {
    for how in ["panic", "TERM", "KILL"] {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "parent", "--nocapture"]).env("TEST_SUPPORT_PARENT_ENDS_BY", how);
        let mut parent = OwnedChild::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null())).expect("it starts");
        let mut lines = BufReader::new(parent.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let child = lines.find_map(|line| Some(line.strip_prefix("child ")?.to_owned())).expect("it has a child");
        if how != "panic" {
            parent.signal(how);
        }
        assert!(!parent.wait().expect("it ends").success(), "{how}");
        let began = Instant::now();
        while is_running(&child) {
            assert!(began.elapsed() < Duration::from_secs(60), "after {how}, process {child} still runs");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A process that nobody waits for any more has ended all the same.
fn is_running(pid: &str) -> bool {
    let found = Command::new("ps").args(["-o", "stat=", "-p", pid]).output().expect("ps runs");
    let state = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}
