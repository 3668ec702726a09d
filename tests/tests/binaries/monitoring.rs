//! What an operator sees: the admin ports, and a Prometheus that watches them and is asked what the dashboards ask.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use test_support::process::OwnedChild;
use whole_pipeline_tests::process::Process;

const PATIENCE: Duration = Duration::from_secs(60);

/// The whole test fits in, so that what happened early counts as well.
const RATE_INTERVAL: &str = "10m";

/// What a stage's own port answers: status and body.
pub(crate) fn ask(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The admin port of a process that was started with `--admin 127.0.0.1:0`.
pub(crate) fn admin_of(process: &mut Process) -> String {
    let line = process.line_with(&["metrics at http://"]);
    line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned()
}

/// A Prometheus with the rules of infra/prometheus. Killed when dropped.
pub(crate) struct Prometheus {
    _child: OwnedChild,
    url: String,
    targets: PathBuf,
    watched: Vec<(String, String)>,
}

impl Prometheus {
    /// Starts one that watches nothing yet. `None`: there is none here, which in CI is a failure.
    pub(crate) fn start(directory: &Path) -> Option<Self> {
        let found = Command::new("prometheus").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            let missing = "there is no prometheus here (Debian: apt-get install prometheus)";
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("skipped: {missing}: the dashboards are not looked at");
            return None;
        }
        let (config, targets) = (directory.join("prometheus.yml"), directory.join("targets.json"));
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/prometheus/rules/*.rules.yml");
        let settings = serde_json::json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "carstream", "file_sd_configs": [{"files": [targets]}]}],
        });
        // JSON is YAML.
        std::fs::write(&config, settings.to_string()).unwrap();
        std::fs::write(&targets, "[]").unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = OwnedChild::spawn(&mut command).unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listening = lines.by_ref().find(|line| line.contains("Listening on")).expect("Prometheus ended");
        let address = listening.split("address=").nth(1).unwrap().trim();
        let url = format!("http://{address}");
        // It must not stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { _child: child, url, targets, watched: Vec::new() })
    }

    /// Watches a process, too, until it ends.
    pub(crate) fn watch(&mut self, service: &str, admin: String) {
        self.watched.push((service.to_owned(), admin));
        let target = |(service, admin): &(String, String)| {
            let labels = serde_json::json!({"service": service});
            serde_json::json!({"targets": [admin], "labels": labels})
        };
        let targets: Vec<_> = self.watched.iter().map(target).collect();
        // Whole or not at all: it may be read at any moment.
        let written = self.targets.with_extension("new");
        std::fs::write(&written, serde_json::to_vec(&targets).unwrap()).unwrap();
        std::fs::rename(&written, &self.targets).unwrap();
    }

    /// Every panel of every dashboard shows something.
    pub(crate) fn dashboards_have_data(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/check-dashboards");
        let output = Command::new(script).args([&self.url, "--rate-interval", RATE_INTERVAL]).output().unwrap();
        let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{wrong}");
    }
}

/// Waits until a stage says that it is ready.
pub(crate) fn wait_until_ready(admin: &str) {
    let began = Instant::now();
    loop {
        let (status, said) = ask(admin, "/readyz");
        if status == 200 {
            assert_eq!(said, "ok\n");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "not ready: {status} {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
