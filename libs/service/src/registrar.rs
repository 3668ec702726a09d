//! Registers metrics below one prefix, and hands out their handles: each metric is written once.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

/// A family of histograms, which all have the same buckets.
pub type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Registers the metrics of one stage.
#[derive(Debug)]
pub struct Registrar<'r>(&'r mut Registry);

impl<'r> Registrar<'r> {
    /// For metrics `carstream_{stage}_…`.
    pub fn new(registry: &'r mut Registry, stage: &str) -> Self {
        Self(registry.sub_registry_with_prefix(format!("carstream_{stage}")))
    }

    /// A counter, a gauge, or a family of them: what the handle's type says.
    pub fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.existing(name, help, M::default())
    }

    /// Like [`metric`](Self::metric); the unit ends its name.
    pub fn metric_in<M: Metric + Clone + Default>(&mut self, name: &str, unit: Unit, help: &str) -> M {
        self.existing_in(name, unit, help, M::default())
    }

    /// A metric that has a handle already, such as a histogram, which needs its buckets.
    pub fn existing<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    /// Like [`existing`](Self::existing); the unit ends its name.
    pub fn existing_in<M: Metric + Clone>(&mut self, name: &str, unit: Unit, help: &str, metric: M) -> M {
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_handle_counts_what_is_registered() {
        let mut registry = Registry::default();
        let mut registrar = Registrar::new(&mut registry, "sink");
        let (rows, stored): (Counter, Counter) =
            (registrar.metric("rows", "Rows stored"), registrar.metric_in("stored", Unit::Bytes, "Parquet stored"));
        let seconds = registrar.existing("wait_seconds", "Waits", Histogram::new([1.0]));
        rows.inc();
        stored.inc_by(7);
        seconds.observe(0.5);
        let mut text = String::new();
        assert!(encode(&mut text, &registry).is_ok());
        for line in [
            "carstream_sink_rows_total 1",
            "carstream_sink_stored_bytes_total 7",
            "carstream_sink_wait_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
