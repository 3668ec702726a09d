//! What the operating system counts of this process, under the names that Prometheus' own clients give it.
//!
//! Read from `/proc` at each scrape, so on Linux only; elsewhere these metrics are missing.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// `USER_HZ`: 100 on every architecture that Rust's Linux targets run on, whatever the kernel's own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory, CPU time, open files, and since when.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    start_time_seconds: f64,
}

impl ProcessMetrics {
    /// Of a process that starts now.
    pub(crate) fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { start_time_seconds: since_epoch.map_or(0.0, |since| since.as_secs_f64()) }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let start = self.start_time_seconds;
        gauge("process_start_time", "Start of the process, since the epoch", Some(&Unit::Seconds), start)?;
        if let Some(bytes) = memory_bytes("VmRSS:") {
            gauge("process_resident_memory", "Resident memory", Some(&Unit::Bytes), bytes)?;
        }
        if let Some(bytes) = memory_bytes("VmSize:") {
            gauge("process_virtual_memory", "Virtual memory", Some(&Unit::Bytes), bytes)?;
        }
        if let Some(files) = open_files() {
            gauge("process_open_fds", "Open file descriptors", None, files)?;
        }
        if let Some(files) = max_files() {
            gauge("process_max_fds", "File descriptors that may be open", None, files)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let cpu = ConstCounter::new(seconds);
            let help = "CPU time, user and system";
            cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), cpu.metric_type())?)?;
        }
        Ok(())
    }
}

/// A line of `/proc/self/status` in kB.
fn memory_bytes(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    Some(kilobytes.parse::<f64>().ok()? * 1024.0)
}

fn open_files() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

fn max_files() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    // "unlimited" is no number, and then there is none to tell.
    soft.parse().ok()
}

/// Fields 14 and 15 of `/proc/self/stat`. The second field is a name in parentheses, which may hold anything.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (after_name.next()?.parse::<f64>().ok()?, after_name.next()?.parse::<f64>().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_process_that_works_shows_what_it_takes() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new()));
        let sample = |name: &str| -> f64 {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
        };
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(sample("process_resident_memory_bytes") > held.len() as f64);
        assert!(sample("process_virtual_memory_bytes") > sample("process_resident_memory_bytes"));
        let before = sample("process_open_fds");
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(sample("process_open_fds") > before - 8.0, "other tests open and close files meanwhile");
        assert!(sample("process_max_fds") >= before);
        drop(file);
        let mut spun = 0u64;
        while sample("process_cpu_seconds_total") < 0.05 {
            spun = std::hint::black_box(spun + 1);
        }
        assert!(sample("process_start_time_seconds") > 1.7e9);
    }
}
