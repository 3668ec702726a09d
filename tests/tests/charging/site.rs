//! Where these tests keep their files, and what they do with the commands.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// On a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The contract of the example.
pub(crate) fn contract() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/charging").display().to_string()
}

/// A directory of one test, with a site's key.
pub(crate) struct Site(tempfile::TempDir);

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        std::fs::write(site.key(), "a key of one test site, and no other").unwrap();
        site
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    pub(crate) fn key(&self) -> String {
        self.path("site.key")
    }
}

/// What a command prints; it must succeed.
pub(crate) fn output(name: &str, args: &[&str]) -> String {
    output_of(name, args, b"")
}

/// What a command prints when it is given this on standard input; it must succeed.
pub(crate) fn output_of(name: &str, args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new(whole_pipeline_tests::binary(name));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Rows in all Parquet files below a directory.
pub(crate) fn parquet_rows(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let rows = |path: &Path| {
        let file = std::fs::File::open(path).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap()
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let count = |path: PathBuf| match path.is_dir() {
        true => parquet_rows(&path),
        false if path.extension().is_some_and(|e| e == "parquet") => rows(&path),
        false => 0,
    };
    paths.map(count).sum()
}
