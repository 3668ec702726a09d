//! The id that Kafka gave a topic when it was created.
//!
//! A topic that was deleted and created again has the same name and other records; its id is the only thing that tells.
//! librdkafka can ask for it (`DescribeTopics`), the Rust binding cannot yet, so this module calls the C API. It is the
//! only place in the workspace with `unsafe` code.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as c;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult};

/// Waits for the answer a little longer than librdkafka does, so that a time-out is reported by librdkafka.
const GRACE: Duration = Duration::from_secs(2);

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
        let options = Owned(
            c::rd_kafka_AdminOptions_new(rk, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS),
            c::rd_kafka_AdminOptions_destroy,
        );
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        check(c::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, ptr::null_mut(), 0))?;
        c::rd_kafka_DescribeTopics(rk, topics.0, options.0, queue.0);

        let wait_ms = i32::try_from((timeout + GRACE).as_millis()).unwrap_or(i32::MAX);
        let event = c::rd_kafka_queue_poll(queue.0, wait_ms);
        if event.is_null() {
            return check(c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT).map(|()| String::new());
        }
        let event = Owned(event, c::rd_kafka_event_destroy);
        check(c::rd_kafka_event_error(event.0))?;
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
