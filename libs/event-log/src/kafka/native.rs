//! What librdkafka can do, and its Rust binding cannot yet: the id of a topic, and the broker's own words.
//!
//! A topic that was deleted and created again has the same name and other records; its id is the only thing that tells.
//! And a broker that refuses to create a topic says why in a sentence, of which the binding keeps only the code. So
//! this module calls the C API. It is the only place in the workspace with `unsafe` code.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as c;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// Waits for the answer a little longer than librdkafka does, so that a time-out is reported by librdkafka.
const GRACE: Duration = Duration::from_secs(2);

/// A topic to be created.
pub(super) struct NewTopic<'a> {
    pub(super) name: &'a str,
    pub(super) partitions: i32,
    /// -1: as many as the cluster's administrator chose.
    pub(super) replicas: i32,
    pub(super) settings: &'a [(&'a str, &'a str)],
}

/// A topic that the broker did not create, and why, in its words.
#[derive(Debug)]
pub(super) struct NotCreated {
    pub(super) code: RDKafkaErrorCode,
    pub(super) why: String,
}

/// Creates a topic. The outer error: no broker has answered.
pub(super) fn create_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &NewTopic<'_>,
    timeout: Duration,
) -> KafkaResult<Result<(), NotCreated>> {
    let name = CString::new(topic.name)?;
    let mut settings = Vec::with_capacity(topic.settings.len());
    for (name, value) in topic.settings {
        settings.push((CString::new(*name)?, CString::new(*value)?));
    }
    let timeout_ms = milliseconds(timeout);
    // SAFETY: as in `topic_id`. The description of the topic copies what it is given; `why` is read before the event
    // that holds it is destroyed.
    unsafe {
        let rk = client.native_ptr();
        let queue = Owned(c::rd_kafka_queue_new(rk), c::rd_kafka_queue_destroy);
        let new = c::rd_kafka_NewTopic_new(name.as_ptr(), topic.partitions, topic.replicas, ptr::null_mut(), 0);
        let new = Owned(new, c::rd_kafka_NewTopic_destroy);
        if new.0.is_null() {
            let why = "its name, partitions or replicas are not possible".to_owned();
            return Ok(Err(NotCreated { code: RDKafkaErrorCode::InvalidArgument, why }));
        }
        for (name, value) in &settings {
            check(c::rd_kafka_NewTopic_set_config(new.0, name.as_ptr(), value.as_ptr()))?;
        }
        let options = options(rk, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS, timeout_ms)?;
        check(c::rd_kafka_AdminOptions_set_operation_timeout(options.0, timeout_ms, ptr::null_mut(), 0))?;
        let mut topics = [new.0];
        c::rd_kafka_CreateTopics(rk, topics.as_mut_ptr(), topics.len(), options.0, queue.0);

        let event = answer(&queue, timeout)?;
        let result = c::rd_kafka_event_CreateTopics_result(event.0);
        let mut count = 0;
        let found = if result.is_null() {
            ptr::null_mut()
        } else {
            c::rd_kafka_CreateTopics_result_topics(result, &raw mut count)
        };
        if found.is_null() || count != 1 {
            return Err(KafkaError::NoMessageReceived);
        }
        let code = c::rd_kafka_topic_result_error(*found);
        if code == c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(Ok(()));
        }
        let why = c::rd_kafka_topic_result_error_string(*found);
        let code = RDKafkaErrorCode::from(code);
        let why = if why.is_null() { code.to_string() } else { CStr::from_ptr(why).to_string_lossy().into_owned() };
        Ok(Err(NotCreated { code, why }))
    }
}

/// The id of `topic`, in base64 as Kafka's own tools print it.
pub(super) fn topic_id<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> KafkaResult<String> {
    let topic = CString::new(topic)?;
    let mut names = [topic.as_ptr()];
    // SAFETY: `client` is a live librdkafka handle, and outlives this block. Every object that is created here is
    // destroyed here, once, through a guard, after the last use of what was read from it; `names` and `topic` outlive
    // the collection, which copies them.
    unsafe {
        let rk = client.native_ptr();
        let queue = Owned(c::rd_kafka_queue_new(rk), c::rd_kafka_queue_destroy);
        let topics = Owned(
            c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            c::rd_kafka_TopicCollection_destroy,
        );
        let options = options(rk, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, milliseconds(timeout))?;
        c::rd_kafka_DescribeTopics(rk, topics.0, options.0, queue.0);

        let event = answer(&queue, timeout)?;
        let result = c::rd_kafka_event_DescribeTopics_result(event.0);
        let mut count = 0;
        let found = if result.is_null() {
            ptr::null_mut()
        } else {
            c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count)
        };
        if found.is_null() || count != 1 {
            return Err(KafkaError::NoMessageReceived);
        }
        check(c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(*found)))?;
        let id = c::rd_kafka_Uuid_base64str(c::rd_kafka_TopicDescription_topic_id(*found));
        if id.is_null() {
            return Err(KafkaError::NoMessageReceived);
        }
        Ok(CStr::from_ptr(id).to_string_lossy().into_owned())
    }
}

/// The options of an operation that waits this long for a broker.
///
/// # Safety
/// `rk` is a live handle of librdkafka, and outlives what is returned.
unsafe fn options(
    rk: *mut c::rd_kafka_t,
    operation: c::rd_kafka_admin_op_t,
    timeout_ms: i32,
) -> KafkaResult<Owned<c::rd_kafka_AdminOptions_t>> {
    // SAFETY: the handle is live, as the caller promises; the options are destroyed once, through their guard.
    unsafe {
        let options = Owned(c::rd_kafka_AdminOptions_new(rk, operation), c::rd_kafka_AdminOptions_destroy);
        check(c::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, ptr::null_mut(), 0))?;
        Ok(options)
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// The answer to the one request whose answer goes to `queue`.
fn answer(queue: &Owned<c::rd_kafka_queue_t>, timeout: Duration) -> KafkaResult<Owned<c::rd_kafka_event_t>> {
    let wait_ms = milliseconds(timeout + GRACE);
    // SAFETY: the queue is live; an event is destroyed once, through its guard.
    unsafe {
        let event = Owned(c::rd_kafka_queue_poll(queue.0, wait_ms), c::rd_kafka_event_destroy);
        check(match event.0.is_null() {
            true => c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT,
            false => c::rd_kafka_event_error(event.0),
        })?;
        Ok(event)
    }
}

fn check(code: c::rd_kafka_resp_err_t) -> KafkaResult<()> {
    match code {
        c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(KafkaError::MetadataFetch(code.into())),
    }
}

/// A C object and what destroys it.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that belongs to this destructor, and nobody else has it.
            unsafe { (self.1)(self.0) }
        }
    }
}
