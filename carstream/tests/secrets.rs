//! `carstream secrets`: creates missing files, keeps existing ones, and never leaves a partial one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use carstream::secrets::{Args, Rotate, make};
use certificates::{Authority, KeyPem, common_name, from_pem, names};

const FILES: [&str; 6] = ["ca.crt", "ca.key", "mqtt-bridge.crt", "mqtt-bridge.key", "pseudonym.key", "s3-secret-key"];

fn args(directory: &Path) -> Args {
    Args { dir: directory.join("secrets"), server_names: Vec::new(), rotate: None, cars: Vec::new() }
}

/// Everything in the directory, hidden files as well.
fn contents(args: &Args) -> BTreeMap<String, String> {
    let entries = fs::read_dir(&args.dir).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())).collect()
}

fn made(args: &Args) -> Vec<String> {
    make(args).unwrap().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_second_run_changes_nothing_and_each_missing_file_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let args = args(directory.path());
    assert_eq!(made(&args).len(), FILES.len());
    let first = contents(&args);
    assert_eq!(first.keys().collect::<Vec<_>>(), FILES.each_ref());
    assert_eq!((first["pseudonym.key"].len(), first["s3-secret-key"].len()), (64, 40));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&args.dir), 0o755);
    for file in FILES {
        let expected = if file.ends_with(".crt") { 0o644 } else { 0o600 };
        assert_eq!(mode(&args.dir.join(file)), expected, "{file}");
    }
    assert!(made(&args).is_empty());
    assert_eq!(contents(&args), first);
    for file in ["pseudonym.key", "s3-secret-key", "mqtt-bridge.crt"] {
        fs::remove_file(args.dir.join(file)).unwrap();
        assert_eq!(made(&args), [file]);
        let mut now = contents(&args);
        assert_ne!(now.insert(file.to_owned(), first[file].clone()), Some(first[file].clone()));
        assert_eq!(now, first, "all others stay");
        fs::write(args.dir.join(file), &first[file]).unwrap();
    }
}

#[test]
fn who_was_killed_leaves_nothing_that_the_next_run_does_not_complete() {
    let directory = tempfile::tempdir().unwrap();
    let args = args(directory.path());
    let order = made(&args);
    let whole = contents(&args);
    for killed_after in 0..order.len() {
        for file in &order[killed_after..] {
            fs::remove_file(args.dir.join(file)).unwrap();
        }
        // In the middle of writing the next one.
        fs::write(args.dir.join(format!(".{}.new", order[killed_after])), "half").unwrap();
        assert_eq!(made(&args), order[killed_after..]);
        let now = contents(&args);
        assert_eq!(now.keys().collect::<Vec<_>>(), FILES.each_ref());
        for file in &order[..killed_after] {
            assert_eq!(now[file], whole[file], "{file} was there");
        }
        assert!(Authority::from_pem(now["ca.crt"].as_bytes(), &KeyPem(now["ca.key"].clone())).is_ok());
        for (file, text) in &whole {
            fs::write(args.dir.join(file), text).unwrap();
        }
    }
}

#[test]
fn many_at_once_make_one_set() {
    let directory = tempfile::tempdir().unwrap();
    let args = args(directory.path());
    let made: Vec<_> = std::thread::scope(|scope| {
        let at_once: Vec<_> = (0..8).map(|_| scope.spawn(|| make(&args).unwrap().len())).collect();
        at_once.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().sum::<usize>(), FILES.len(), "{made:?}");
    assert_eq!(contents(&args).len(), FILES.len());
    let now = contents(&args);
    assert!(Authority::from_pem(now["ca.crt"].as_bytes(), &KeyPem(now["ca.key"].clone())).is_ok());
}

#[test]
fn the_bridge_gets_a_new_certificate_for_its_old_names_or_for_new_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut args = args(directory.path());
    make(&args).unwrap();
    let names = |args: &Args| names(&from_pem(contents(args)["mqtt-bridge.crt"].as_bytes()).unwrap()[0]).unwrap();
    assert_eq!(names(&args), ["localhost", "mqtt-bridge", "127.0.0.1"]);
    args.rotate = Some(Rotate::Certificate);
    args.server_names = vec!["bridge.example".to_owned()];
    let before = contents(&args);
    assert_eq!(made(&args), ["mqtt-bridge.crt"]);
    assert_eq!(names(&args), ["bridge.example"]);
    assert_eq!(contents(&args)["mqtt-bridge.key"], before["mqtt-bridge.key"]);
    args.server_names.clear();
    args.rotate = Some(Rotate::Key);
    assert_eq!(made(&args), ["mqtt-bridge.key", "mqtt-bridge.crt"]);
    assert_eq!(names(&args), ["bridge.example"], "as before");
    let after = contents(&args);
    assert_ne!(after["mqtt-bridge.key"], before["mqtt-bridge.key"]);
    assert_eq!((&after["ca.crt"], &after["pseudonym.key"]), (&before["ca.crt"], &before["pseudonym.key"]));
}

#[test]
fn a_car_gets_a_key_and_a_certificate_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut args = args(directory.path());
    args.cars = vec!["WVWZZZ1JZXW000001".to_owned()];
    make(&args).unwrap();
    let certificate = contents(&args)["WVWZZZ1JZXW000001.crt"].clone();
    let name = common_name(&from_pem(certificate.as_bytes()).unwrap()[0]).unwrap();
    assert_eq!(name.as_deref(), Some("WVWZZZ1JZXW000001"));
    assert!(made(&args).is_empty());
    for wrong in ["../x", "", "CA", "mqtt-bridge"] {
        args.cars = vec![wrong.to_owned()];
        assert!(make(&args).is_err(), "{wrong}");
    }
}

#[test]
fn a_site_with_a_ca_elsewhere_is_told_what_to_have_signed() {
    let directory = tempfile::tempdir().unwrap();
    let mut args = args(directory.path());
    make(&args).unwrap();
    let whole = contents(&args);
    fs::remove_file(args.dir.join("ca.key")).unwrap();
    assert!(made(&args).is_empty(), "all that is needed is there");
    args.rotate = Some(Rotate::Certificate);
    assert!(make(&args).unwrap_err().to_string().contains("Let that authority sign one for localhost"));
    args.rotate = None;
    args.cars = vec!["A".to_owned()];
    assert!(make(&args).unwrap_err().to_string().contains("CN=A"));
    args.cars.clear();
    fs::remove_file(args.dir.join("mqtt-bridge.key")).unwrap();
    assert!(make(&args).unwrap_err().to_string().contains("mqtt-bridge.crt is here without mqtt-bridge.key"));
    fs::remove_file(args.dir.join("mqtt-bridge.crt")).unwrap();
    assert!(make(&args).unwrap_err().to_string().contains("ca.key is not beside ca.crt"));
    assert_eq!(contents(&args)["ca.crt"], whole["ca.crt"]);
}
