//! A writer that is killed. It is this test binary again, started with what to do in its environment.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use event_log::*;

use super::{append, behind, copied};

const LOG: &str = "CARSTREAM_CRASH_LOG";
const TOPICS: &str = "CARSTREAM_CRASH_TOPICS";
const FROM: &str = "CARSTREAM_CRASH_FROM";
const GROUP: &str = "CARSTREAM_CRASH_GROUP";

/// A process that appends numbered records to one topic and copies them to another, and says what is acknowledged.
pub struct Writer {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Writer {
    /// Starts it. `entry` is the test that calls [`write_if_asked`].
    pub fn start(entry: &str, url: &LogUrl, input: &str, output: &str, group: &str, from: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", entry, "--nocapture", "--test-threads", "1"])
            .env(LOG, url.to_string())
            .env(TOPICS, format!("{input} {output}"))
            .env(GROUP, group)
            .env(FROM, from.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    /// The next thing that it says.
    pub fn next(&mut self) -> Said {
        loop {
            let line = self.lines.next().expect("the writer goes on").expect("text");
            if let Some(said) = Said::parse(&line) {
                return said;
            }
        }
    }

    /// kill -9, and what it had said before.
    pub fn kill(mut self) -> Vec<Said> {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is gone");
        self.lines.map_while(Result::ok).filter_map(|line| Said::parse(&line)).collect()
    }
}

/// What a writer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The record with this number is durable.
    Acknowledged(u64),
    /// So many transactions are committed.
    Committed(u64),
}

impl Said {
    /// With a full stop at the end: a line that was cut off was not said.
    fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.strip_suffix('.')?.split_once(' ')?;
        let number = number.parse().ok()?;
        match word {
            "acknowledged" => Some(Self::Acknowledged(number)),
            "committed" => Some(Self::Committed(number)),
            _ => None,
        }
    }
}

/// In a process that [`Writer::start`] started: writes until it is killed. Otherwise nothing.
pub fn write_if_asked() {
    let Ok(url) = std::env::var(LOG) else { return };
    let get = |name| std::env::var(name).expect("set by the parent");
    let topics = get(TOPICS);
    let (input, output) = topics.split_once(' ').expect("two topics");
    let (input, output): (Arc<str>, Arc<str>) = (input.into(), output.into());
    let log = event_log::open(&url.parse().expect("a URL"), &[]).expect("the log opens");

    let copier = {
        let (log, input, group) = (log.clone(), input.clone(), get(GROUP));
        std::thread::spawn(move || copy(&log, &input, &output, group))
    };
    let appender = log.appender(Box::new(|completions| {
        let mut text = String::new();
        for c in completions.iter().filter(|c| c.durable) {
            text += &format!("acknowledged {}.\n", c.token);
        }
        say(&text);
    }));
    let appender = appender.expect("an appender");
    let from: u64 = get(FROM).parse().expect("a number");
    for number in from.. {
        let (key, value) = (format!("key {}", number % 97), format!("{number} {}", "x".repeat(number as usize % 700)));
        let record = Record { key: key.as_bytes(), value: Some(value.as_bytes()), headers: &[], timestamp_ms: 0 };
        append(&*appender, &input, &record, number);
        if number % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!copier.is_finished(), "the copier goes on");
    }
}

fn copy(log: &Arc<dyn Log>, input: &Arc<str>, output: &Arc<str>, group: String) {
    let options = ProcessorOptions { group, instance: "one".to_owned(), topics: vec![input.clone()] };
    let mut processor = Processor::new(log.clone(), log.clone(), &options).expect("a processor");
    let mut commits = 0;
    loop {
        if let Event::Batch(batch) = processor.next(300, Duration::from_millis(100)).expect("it goes on") {
            let mut outputs = Outputs::default();
            copied(&batch, output, &mut outputs);
            processor.commit(&outputs, &[behind(&batch)]).expect("a commit");
            commits += 1;
            say(&format!("committed {commits}.\n"));
        }
    }
}

/// Not `print!`, which the test harness may keep to itself.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).expect("the parent listens");
}
