//! A real S3 server for a test of its own: started through scripts/s3 on a free port, stopped and removed in the end.
//!
//! Tests find the script by CARSTREAM_TEST_S3_SCRIPT, which scripts/test sets. Without it they print that they are
//! skipped; in CI they fail.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lake::{LakeArgs, S3Args};
use test_support::process::{self, Watcher};

/// A running server with an empty bucket.
pub struct S3 {
    folder: tempfile::TempDir,
    script: PathBuf,
    port: u16,
    _watcher: Watcher,
}

impl S3 {
    /// `None`: there is no script, and the test is skipped.
    pub fn start() -> Option<Self> {
        let Some(script) = std::env::var_os("CARSTREAM_TEST_S3_SCRIPT") else {
            let missing =
                "CARSTREAM_TEST_S3_SCRIPT is not set: it should be the path of scripts/s3 (scripts/test sets it)";
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        };
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let _watcher = Watcher::of_server(&script, folder.path()).unwrap();
        let s3 = Self { folder, script: script.into(), port, _watcher };
        s3.restart();
        Some(s3)
    }

    /// How it is reached; `prefix` keeps lakes apart.
    pub fn lake(&self, prefix: &str) -> LakeArgs {
        LakeArgs {
            lake: format!("s3://lake/{prefix}").parse().unwrap(),
            s3: S3Args {
                endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
                access_key_id: Some("carstream".to_owned()),
                secret_access_key_file: Some(self.folder.path().join("secret-key")),
                allow_http: true,
                ..S3Args::default()
            },
        }
    }

    /// The same as arguments of a process.
    pub fn arguments(&self, prefix: &str) -> Vec<String> {
        let LakeArgs { lake, s3 } = self.lake(prefix);
        let secret = s3.secret_access_key_file.unwrap().display().to_string();
        let pairs = [
            ("--lake", lake.to_string()),
            ("--s3-endpoint", s3.endpoint.unwrap()),
            ("--s3-access-key-id", s3.access_key_id.unwrap()),
            ("--s3-secret-access-key-file", secret),
        ];
        let pairs = pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        pairs.chain(["--s3-allow-http".to_owned()]).collect()
    }

    /// Starts it again, with what it held.
    pub fn restart(&self) {
        self.script(&["start", "--port", &self.port.to_string()]);
    }

    /// Ends it as a power cut of its process would.
    pub fn kill(&self) {
        self.script(&["stop", "--kill"]);
    }

    /// Lets it stand still: it answers nothing, and its connections stay. [`go_on`](Self::go_on) ends that.
    pub fn hang(&self) {
        self.signal("STOP");
    }

    /// Ends [`hang`](Self::hang).
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        process::signal(signal, pid.trim());
    }

    fn script(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.script);
        // The server inherits what is not told otherwise, and a test that waits for the end of its output waits for it.
        command.args(arguments).arg("--data").arg(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{} {arguments:?} failed", self.script.display());
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = Command::new(&self.script).args(["stop", "--kill", "--data"]).arg(self.folder.path()).status();
    }
}
