//! Where models come from, what is refused, and how one takes over from another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use event_log::{Error, Log, LogUrl, TopicDescription};
use lake::LakeUrl;
use scorer::{Metrics, ModelSource};
use service::ConfigError;
use tokio_util::sync::CancellationToken;

use crate::support::{Args, Files, Running, Site, expected, readings, run_to_end, small_model, small_model_with};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_model_nothing_is_scored_and_a_stop_is_clean() {
    let site = Site::new();
    site.append_readings(&readings(2, 0, 10, |_, _| false));
    let running = Running::start(site.args());
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(site.count("scores"), 0);
    assert_eq!(*running.metrics.model_in_force().borrow(), None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_model_takes_over_and_scores_as_if_it_had_always_been_there() {
    let site = Site::new();
    let (first, second) = (small_model(1, 4.0), small_model(2, 3.0));
    let running = Running::start(site.args());
    site.append_readings(&readings(4, 0, 30, |_, _| false));
    site.announce(&first).await;
    running.until("scores of the first", || site.count("scores") == 120).await;
    let in_force = running.until_model(&first.version).await;
    assert_eq!(in_force.threshold, 4.0);
    site.announce(&second).await;
    let later = running.until_model(&second.version).await;
    assert!(later.since_ms >= in_force.since_ms);
    site.append_readings(&readings(4, 30, 60, |_, _| false));
    running.until("scores of the second", || site.count("scores") == 240).await;
    running.stop().await;
    let all = readings(4, 0, 60, |_, _| false);
    let mut wanted = expected(&first, &all);
    wanted.retain(|(_, seq), _| *seq < 30);
    wanted.extend(expected(&second, &all).into_iter().filter(|((_, seq), _)| *seq >= 30));
    assert_eq!(site.scores(), wanted);
}

/// Each score is, to the bit, the one that its model would give if it had scored all readings; and the models of a car
/// follow each other as they were announced, through restarts and whenever a switch comes.
#[tokio::test(flavor = "multi_thread")]
async fn while_models_change_each_reading_has_the_score_of_the_model_it_names() {
    let site = Site::new();
    let models: Vec<_> = (1..=5).map(|seed| small_model(seed, 3.0)).collect();
    let mut next = 0;
    for files in &models {
        site.announce(files).await;
        let running = Running::start(site.args());
        for _ in 0..4 {
            site.append_readings(&readings(6, next, next + 10, |_, _| false));
            next += 10;
            running.until("the scores", || site.count("scores") == 6 * next as usize).await;
        }
        if files.version == models[2].version {
            running.until_model(&files.version).await;
        }
        running.stop().await;
    }
    let running = Running::start(site.args());
    running.until_model(&models[4].version).await;
    site.append_readings(&readings(6, next, next + 10, |_, _| false));
    running.stop().await;
    next += 10;
    let (scores, all) = (site.scores(), readings(6, 0, next, |_, _| false));
    assert_eq!(scores.len(), all.len());
    let expected: Vec<_> = models.iter().map(|files| expected(files, &all)).collect();
    let mut newest: BTreeMap<&str, usize> = BTreeMap::new();
    for reading in &all {
        let identity = (reading.car.clone(), reading.seq);
        let score = &scores[&identity];
        let model = models.iter().position(|files| files.version == score.model_version).unwrap();
        assert_eq!(*score, expected[model][&identity]);
        let before = newest.insert(&reading.car, model).unwrap_or(0);
        assert!(before <= model, "{} {}: model {model} after model {before}", reading.car, reading.seq);
    }
    assert!(newest.values().all(|model| *model == 4), "{newest:?}");
}

/// Edited by hand, it has the version of before.
#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_model_that_was_edited_is_another_one() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    site.append_readings(&readings(4, 0, 30, |_, _| false));
    run_to_end(site.args_with(&model)).await;
    let manifest = String::from_utf8(model.manifest.clone()).unwrap();
    let manifest = manifest.replace("\"threshold\": 4.0", "\"threshold\": 3.0").into_bytes();
    let edited = Files { manifest, ..model };
    let running = Running::start(site.args_with(&edited));
    let models = running.metrics.model_in_force();
    running.until("the threshold", || models.borrow().as_ref().is_some_and(|model| model.threshold == 3.0)).await;
    site.append_readings(&readings(4, 30, 40, |_, _| false));
    running.stop().await;
    let (scores, expected) = (site.scores(), expected(&edited, &readings(4, 0, 40, |_, _| false)));
    assert_eq!(scores.values().filter(|score| score.threshold == 3.0).count(), 40);
    assert!(expected.iter().filter(|((_, seq), _)| *seq >= 30).all(|(identity, score)| scores[identity] == *score));
}

/// An instance that does not know yet of the model that another one has switched to leaves it in force until it has
/// looked once more.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_behind_brings_no_model_back() {
    let (site, cloud) = (Site::new(), Site::new());
    let (old, new) = (small_model(1, 4.0), small_model(2, 3.0));
    site.append_readings(&readings(4, 0, 20, |_, _| false));
    run_to_end(site.args_with(&new)).await;
    cloud.announce(&old).await;
    let once = Arc::new(Once { log: cloud.log.clone(), looks: AtomicI64::new(1) });
    let source = ModelSource::Announced { log: once.clone(), lake: cloud.lake() };
    let running = Running::start_on(site.args(), site.log.clone(), source);
    running.until_model(&new.version).await;
    site.append_readings(&readings(4, 20, 30, |_, _| false));
    running.until("the scores", || site.count("scores") == 120).await;
    assert_eq!(running.metrics.pipeline.states_replaced.get(), 0);
    // It is what was meant: announced last, in a log that answers again.
    once.looks.store(i64::MAX, Ordering::Relaxed);
    running.until_model(&old.version).await;
    running.stop().await;
    assert!(site.scores().values().all(|score| score.model_version == new.version));
}

/// A log that tells what is on topic `models` so many times.
struct Once {
    log: Arc<dyn Log>,
    looks: AtomicI64,
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Once({:?})", self.log)
    }
}

impl Log for Once {
    test_support::passes_on!(log: url ensure_topic committed appender reader consumer transactor);

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        if self.looks.fetch_sub(1, Ordering::Relaxed) > 0 {
            return self.log.describe(topic);
        }
        Err(Error::Unavailable { operation: "describe", log: self.url().to_string(), source: "no uplink".into() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_announcements_the_last_counts() {
    let site = Site::new();
    let (first, second) = (small_model(1, 4.0), small_model(2, 3.0));
    for model in [&first, &second, &first, &second] {
        site.announce(model).await;
    }
    site.append("models", &[(b"another-model".to_vec(), Some(b"not for us".to_vec()))]);
    site.append_readings(&readings(2, 0, 10, |_, _| false));
    run_to_end(site.args()).await;
    assert!(site.scores().values().all(|score| score.model_version == second.version));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_may_be_announced_in_another_log() {
    let (edge, cloud, model) = (Site::new(), Site::new(), small_model(1, 4.0));
    cloud.announce(&model).await;
    edge.append_readings(&readings(2, 0, 10, |_, _| false));
    let mut args = edge.args();
    args.cloud.log = Some(cloud.log.url().clone());
    args.lake = cloud.args().lake;
    run_to_end(args).await;
    assert_eq!(edge.count("scores"), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_announcement_is_refused_and_the_model_in_force_stays() {
    let site = Site::new();
    let good = small_model(1, 4.0);
    site.announce(&good).await;
    let running = Running::start(site.args());
    running.until_model(&good.version).await;
    let refused = |n: u64| {
        let metrics = running.metrics.clone();
        move || metrics.models_refused.get() == n
    };

    site.announce_raw(b"not json");
    running.until("the refusal of what is not JSON", refused(1)).await;

    site.announce_raw(small_model(3, 4.0).announcement().as_bytes());
    running.until("the refusal of what is not in the lake", refused(2)).await;

    let other_features = small_model_with(4, 4.0, |manifest| manifest.features.swap(0, 1));
    site.announce(&other_features).await;
    running.until("the refusal of other features", refused(3)).await;

    let mut damaged = small_model(5, 4.0);
    damaged.weights[500] ^= 1;
    site.announce(&damaged).await;
    running.until("the refusal of damaged weights", refused(4)).await;

    let stranger = small_model(6, 4.0);
    let renamed = Files { version: "20990101T000000Z-0123456789ab".to_owned(), ..stranger };
    site.announce(&renamed).await;
    running.until("the refusal of another version's manifest", refused(5)).await;

    site.append_readings(&readings(2, 0, 10, |_, _| false));
    running.until("scores", || site.count("scores") == 20).await;
    assert!(site.scores().values().all(|score| score.model_version == good.version));

    let better = small_model(8, 4.0);
    site.announce(&better).await;
    running.until_model(&better.version).await;
    running.stop().await;
}

async fn problems(args: Args) -> Vec<String> {
    let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
    let error = scorer::run_with(args, metrics, CancellationToken::new()).await.unwrap_err();
    match error.downcast::<ConfigError>() {
        Ok(ConfigError(problems)) => problems,
        Err(other) => panic!("not a matter of configuration: {other:#}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_fixed_model_is_a_bad_setting() {
    let site = Site::new();
    let args = |name: &str| Args { model: Some(site.path(name)), ..site.args() };

    let missing = problems(args("nowhere")).await;
    assert!(missing[0].contains("nowhere: the directory does not exist"), "{missing:?}");

    std::fs::create_dir(site.path("empty")).unwrap();
    let empty = problems(args("empty")).await;
    assert_eq!(empty.len(), 2, "{empty:?}");
    assert!(empty[0].contains("manifest.json is missing") && empty[1].contains("weights.safetensors is missing"));

    let model = small_model(1, 4.0);
    let mut truncated = model.clone();
    truncated.weights.truncate(100);
    let mut other = small_model_with(1, 4.0, |manifest| manifest.features[0].name = "oil_temp".to_owned());
    other.version = model.version.clone();
    let not_json = Files { manifest: b"{".to_vec(), ..model.clone() };
    for (name, files, words) in [
        ("truncated", truncated, "weights have SHA-256"),
        ("other-features", other, "oil_temp"),
        ("not-json", not_json, "manifest of the model cannot be read"),
    ] {
        files.write(&site.path(name));
        let found = problems(args(name)).await;
        assert!(found.len() == 1 && found[0].contains(words) && found[0].contains(name), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_there_is_waited_for_and_a_stop_is_clean() {
    let site = Site::new();
    // A port that was free a moment ago: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log: LogUrl = format!("kafka://127.0.0.1:{port}").parse().unwrap();
    let model = small_model(1, 4.0);
    for args in [
        Args::new(log.clone(), LakeUrl::Directory(site.path("lake"))),
        Args { log: event_log::LogArgs::new(log), ..site.args_with(&model) },
    ] {
        let running = Running::start(args);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        running.stop().await;
    }
}
