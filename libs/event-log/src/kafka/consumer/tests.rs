//! The group's decisions, in the order in which the caller hears of them.

use super::*;

#[test]
fn an_assignment_ends_before_the_next_begins() {
    // No broker is needed: the test plays the group's decisions.
    let log = Arc::new(KafkaLog::new(&"kafka://127.0.0.1:1".parse().expect("a URL"), &[]).expect("a log"));
    let topic: Arc<str> = "telemetry".into();
    let options = ProcessorOptions { group: "g".into(), instance: "i".into(), topics: vec![topic.clone()] };
    let mut consumer = KafkaConsumer::join(log, &options).expect("a consumer");
    let assign = |consumer: &KafkaConsumer, partitions: &[u32]| {
        let partitions = partitions.iter().map(|p| (topic.to_string(), *p)).collect();
        consumer.client.context().assign(&consumer.client, partitions);
    };
    let place = |consumer: &KafkaConsumer| consumer.member.as_ref().map(Arc::as_ptr);
    let next = |consumer: &mut KafkaConsumer| match consumer.group_event().expect("no error") {
        Some(Event::Assigned(positions)) => {
            consumer.seek(&positions).expect("taken up");
            ("assigned", positions.len())
        }
        Some(Event::Revoked(partitions)) => ("revoked", partitions.len()),
        other => panic!("{other:?}"),
    };
    assign(&consumer, &[0, 1]);
    assert_eq!(next(&mut consumer), ("assigned", 2));
    let before = place(&consumer);

    // The next assignment, as after a pause: librdkafka has not said that the last one is over.
    assign(&consumer, &[1]);
    assert_eq!(next(&mut consumer), ("revoked", 2));
    assert_eq!(place(&consumer), before, "what is pending is committed as a member of the old assignment");
    assert_eq!(next(&mut consumer), ("assigned", 1));
    assert_ne!(place(&consumer), before);

    // And one that leaves nothing to this instance.
    assign(&consumer, &[]);
    assert_eq!(next(&mut consumer), ("revoked", 1));
    assert!(consumer.group_event().expect("no error").is_none());
}
