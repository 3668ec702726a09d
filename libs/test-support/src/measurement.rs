//! Measurements (`benches/`): programs with a main of their own, run by hand on a machine that does nothing else.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};

/// The arguments of a measurement: those of its command line without the `--bench` that `cargo bench` adds. The first
/// one is the program.
pub fn arguments() -> impl Iterator<Item = String> {
    std::env::args().filter(|argument| argument != "--bench")
}

/// Criterion, measuring [`CpuTime`].
pub fn criterion() -> Criterion<CpuTime> {
    Criterion::default().with_measurement(CpuTime)
}

/// The CPU time of the calling thread: unlike wall time, it is much the same on a busy machine. Where the system does
/// not tell it (not Linux), it is wall time.
#[derive(Debug)]
pub struct CpuTime;

impl CpuTime {
    /// What this thread has spent on a CPU.
    pub fn now() -> Duration {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
        let nanos = spent.and_then(|spent| spent.split_whitespace().next()?.parse().ok());
        nanos.map_or_else(|| BEGAN.elapsed(), Duration::from_nanos)
    }
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Self::now()
    }

    fn end(&self, start: Duration) -> Duration {
        Self::now().saturating_sub(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &PerMillion
    }
}

/// Shows what an iteration takes in microseconds, and with a throughput in elements the seconds for a million of them.
struct PerMillion;

impl ValueFormatter for PerMillion {
    fn scale_values(&self, _: f64, nanos: &mut [f64]) -> &'static str {
        nanos.iter_mut().for_each(|nanos| *nanos /= 1e3);
        "µs"
    }

    fn scale_throughputs(&self, _: f64, throughput: &Throughput, nanos: &mut [f64]) -> &'static str {
        let (count, unit) = match throughput {
            Throughput::Elements(count) => (*count, "CPU s per million"),
            Throughput::Bytes(count) | Throughput::BytesDecimal(count) => (*count, "CPU s per MB"),
            _ => (1, "CPU s per million iterations"),
        };
        nanos.iter_mut().for_each(|nanos| *nanos /= 1e3 * count as f64);
        unit
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "ns"
    }
}
