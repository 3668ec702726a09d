//! What an administrator does to a topic.

use std::time::{Duration, Instant};

use event_log::LogUrl;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use super::{Backend, PATIENCE, wait_until};

/// A client that is none of ours, configured by hand.
pub fn stranger(backend: &Backend) -> ClientConfig {
    let LogUrl::Kafka { bootstrap } = &backend.url else { panic!("{} is not Kafka", backend.url) };
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Gives a topic these settings, and the defaults for all others. Returns once its broker goes by them.
pub fn set(backend: &Backend, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = stranger(backend).create().expect("a client");
    let mut change = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in settings {
        change = change.set(name, value);
    }
    for changed in wait_for(admin.alter_configs(&[change], &AdminOptions::new())).expect("an answer") {
        changed.expect("the settings are accepted");
    }
    wait_until("the settings hold", || {
        let found = wait_for(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()));
        let found = found.expect("an answer").remove(0).expect("the settings");
        settings.iter().all(|(name, value)| found.get(name).and_then(|entry| entry.value.as_deref()) == Some(value))
    });
}

/// Adds partitions to a topic, so that it has `count`.
pub fn add_partitions(backend: &Backend, topic: &str, count: usize) {
    let admin: AdminClient<DefaultClientContext> = stranger(backend).create().expect("a client");
    let wanted = NewPartitions::new(topic, count);
    for added in wait_for(admin.create_partitions([&wanted], &AdminOptions::new())).expect("an answer") {
        added.expect("the partitions are added");
    }
}

/// Waits for a future without a runtime.
pub fn wait_for<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut future = std::pin::pin!(future);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        assert!(Instant::now() < deadline, "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}
