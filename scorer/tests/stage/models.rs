//! Where models come from, what is refused, and how one takes over from another.

use event_log::LogUrl;
use lake::LakeUrl;
use scorer::Metrics;
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
