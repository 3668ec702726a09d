//! A writer that is killed. It is this test binary again, started with what to do in its environment.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use event_log::*;
use test_support::process::OwnedChild;
use test_support::random::Random;

use super::{append, behind, copied};

const LOG: &str = "CARSTREAM_CRASH_LOG";
const TOPICS: &str = "CARSTREAM_CRASH_TOPICS";
const FROM: &str = "CARSTREAM_CRASH_FROM";
const GROUP: &str = "CARSTREAM_CRASH_GROUP";

/// One in this many records goes to the table too.
pub const TABLE_EVERY: u64 = 16;
/// As many keys as cars.
pub const KEYS: u64 = 97;
/// What is added to the numbers of the table's records to tell them apart.
const TABLE: u64 = 1 << 62;

/// A process that appends numbered records to a topic, copies them to another, keeps a compacted table of the last
/// number of each key, and says what is acknowledged.
pub struct Writer {
    child: OwnedChild,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Writer {
    /// Starts it. `entry` is the test that calls [`write_if_asked`].
    pub fn start(entry: &str, url: &LogUrl, topics: [&str; 3], group: &str, from: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["--exact", entry, "--nocapture", "--test-threads", "1"])
            .env(LOG, url.to_string())
            .env(TOPICS, topics.join(" "))
            .env(GROUP, group)
            .env(FROM, from.to_string())
            .stdout(Stdio::piped());
        let mut child = OwnedChild::spawn(&mut command).expect("the writer starts");
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
    /// The record with this number is durable in the table.
    Kept(u64),
    /// So many transactions are committed.
    Committed(u64),
}

impl Said {
    /// With a full stop at the end: a line that was cut off was not said.
    fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.strip_suffix('.')?.split_once(' ')?;
        let number = number.parse().ok()?;
        match word {
            "acknowledged" if number >= TABLE => Some(Self::Kept(number - TABLE)),
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
    let topics: Vec<Arc<str>> = topics.split(' ').map(Arc::from).collect();
    let [input, output, table] = topics.try_into().expect("three topics");
    let log = event_log::open(&url.parse().expect("a URL"), &[]).expect("the log opens");

    let copier = {
        let (log, input, group) = (log.clone(), input.clone(), get(GROUP));
        std::thread::spawn(move || copy(&log, &input, &output, group))
    };
    let maintained = log.clone();
    std::thread::spawn(move || {
        loop {
            maintained.maintain().expect("maintenance");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
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
        let (key, value) = (format!("key {}", number % KEYS), value(number));
        let record = Record { key: key.as_bytes(), value: Some(value.as_bytes()), headers: &[], timestamp_ms: 0 };
        append(&*appender, &input, &record, number);
        if number % TABLE_EVERY == 0 {
            append(&*appender, &table, &record, TABLE + number);
        }
        if number % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!copier.is_finished(), "the copier goes on");
    }
}

/// The value of a record, by which it can be told whether it is whole: its number and some text that hardly compresses,
/// now and then long, so that tables are written too.
pub fn value(number: u64) -> String {
    let mut random = Random::new(number);
    let len = if number.is_multiple_of(8) { number % 20_000 } else { number % 200 };
    let noise = (0..len).map(|_| char::from(b' ' + random.below(95) as u8));
    format!("{number} ").chars().chain(noise).collect()
}

fn copy(log: &Arc<dyn Log>, input: &Arc<str>, output: &Arc<str>, group: String) {
    let options = ProcessorOptions { group, instance: "one".to_owned(), topics: vec![input.clone()] };
    let mut processor = Processor::new(log.clone(), log.clone(), &options).expect("a processor");
    let mut commits = 0;
    loop {
        if let Event::Batch(batch) = processor.next(300, Duration::from_millis(100)).expect("it goes on") {
            let mut outputs = Outputs::default();
            copied(&batch, output, &mut outputs);
            assert_eq!(processor.commit(&outputs, &[behind(&batch)]).expect("a commit"), Outcome::Committed);
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
