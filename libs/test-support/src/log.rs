//! Logs that wrap another log.

/// Writes the named methods of an `impl event_log::Log`, which pass on to the log in the field `$inner`.
///
/// ```text
/// impl Log for Growing {
///     passes_on!(log: url ensure_topic committed);
///     fn describe(&self, topic: &str) -> Result<TopicDescription, Error> { … }
/// }
/// ```
#[macro_export]
macro_rules! passes_on {
    ($inner:ident: $($method:ident)+) => { $($crate::passes_on!(@ $inner $method);)+ };
    (@ $inner:ident url) => {
        fn url(&self) -> &::event_log::LogUrl {
            self.$inner.url()
        }
    };
    (@ $inner:ident identity) => {
        fn identity(&self) -> String {
            self.$inner.identity()
        }
    };
    (@ $inner:ident ensure_topic) => {
        fn ensure_topic(&self, spec: &::event_log::TopicSpec) -> ::std::result::Result<(), ::event_log::Error> {
            self.$inner.ensure_topic(spec)
        }
    };
    (@ $inner:ident describe) => {
        fn describe(
            &self,
            topic: &str,
        ) -> ::std::result::Result<::event_log::TopicDescription, ::event_log::Error> {
            self.$inner.describe(topic)
        }
    };
    (@ $inner:ident committed) => {
        fn committed(
            &self,
            group: &str,
            topic: &str,
        ) -> ::std::result::Result<Vec<Option<u64>>, ::event_log::Error> {
            self.$inner.committed(group, topic)
        }
    };
    (@ $inner:ident appender) => {
        fn appender(
            self: ::std::sync::Arc<Self>,
            on_completion: ::event_log::OnCompletion,
        ) -> ::std::result::Result<::std::sync::Arc<dyn ::event_log::Appender>, ::event_log::Error> {
            self.$inner.clone().appender(on_completion)
        }
    };
    (@ $inner:ident reader) => {
        fn reader(
            self: ::std::sync::Arc<Self>,
            ranges: Vec<::event_log::Range>,
        ) -> ::std::result::Result<Box<dyn ::event_log::Reader>, ::event_log::Error> {
            self.$inner.clone().reader(ranges)
        }
    };
    (@ $inner:ident consumer) => {
        fn consumer(
            self: ::std::sync::Arc<Self>,
            options: &::event_log::ProcessorOptions,
        ) -> ::std::result::Result<Box<dyn ::event_log::Consumer>, ::event_log::Error> {
            self.$inner.clone().consumer(options)
        }
    };
    (@ $inner:ident consumer_of) => {
        fn consumer_of(
            self: ::std::sync::Arc<Self>,
            source: ::std::sync::Arc<dyn ::event_log::Log>,
            options: &::event_log::ProcessorOptions,
        ) -> ::std::result::Result<Box<dyn ::event_log::Consumer>, ::event_log::Error> {
            self.$inner.clone().consumer_of(source, options)
        }
    };
    (@ $inner:ident transactor) => {
        fn transactor(
            self: ::std::sync::Arc<Self>,
            options: &::event_log::ProcessorOptions,
        ) -> ::std::result::Result<Box<dyn ::event_log::Transactor>, ::event_log::Error> {
            self.$inner.clone().transactor(options)
        }
    };
    (@ $inner:ident maintain) => {
        fn maintain(&self) -> ::std::result::Result<(), ::event_log::Error> {
            self.$inner.maintain()
        }
    };
}
