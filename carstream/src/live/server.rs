//! The box's side: takes requests, and carries them out on the open log.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use contract::Contract;
use event_log::Log;
use telemetry::pseudonym::PseudonymKey;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Answer, REQUEST_BYTES, Request, socket};
use crate::audit::{self, Evidence, Flow, Scores, Sources};
use crate::forget::{self, Forgotten, forget};
use crate::{dead_letter, groups, resume};

/// After a connection that cannot be taken: no descriptor is free, say.
const PAUSE: Duration = Duration::from_secs(1);

/// What the box answers for.
pub(crate) struct Site {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) contract: Contract,
    pub(crate) pseudonym_key_file: PathBuf,
    pub(crate) name: String,
    pub(crate) schemas: schema_registry::SchemaRegistryArgs,
}

impl Site {
    fn key(&self) -> anyhow::Result<PseudonymKey> {
        crate::read_key(&self.pseudonym_key_file).map_err(anyhow::Error::msg)
    }
}

/// Takes requests until `stop`. A box whose socket cannot be made works without it.
pub(crate) async fn serve(site: Site, stop: CancellationToken) {
    let Some(socket) = socket(site.log.url()) else { return };
    match listen(&socket) {
        Ok(listener) => {
            stop.run_until_cancelled(accept(listener, site, &stop)).await;
            // A client then learns at once that nobody listens.
            let _ = std::fs::remove_file(&socket);
        }
        Err(error) => tracing::warn!(
            "cannot listen at {}: carstream dead-letter, audit, forget, groups and resume need this box to be stopped: \
             {error}",
            socket.display()
        ),
    }
}

fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    // What a killed box has left; no other one runs, since the log is ours.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, site: Site, stop: &CancellationToken) {
    let site = Arc::new(site);
    let turn = Arc::new(Mutex::new(()));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot take a command: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (site, turn, stop) = (site.clone(), turn.clone(), stop.child_token());
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &site, &turn, stop).await {
                tracing::debug!("a command got no answer: {error:#}");
            }
        });
    }
}

/// Reads one request, carries it out and answers.
async fn answer(stream: UnixStream, site: &Arc<Site>, turn: &Mutex<()>, stop: CancellationToken) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(REQUEST_BYTES));
    let mut line = String::new();
    if read.read_line(&mut line).await? == 0 {
        // A client that only looked whether somebody listens.
        return Ok(());
    }
    // Ends the work when the client ends; `stop` itself ends with the box.
    let _stop = stop.clone().drop_guard();
    let done = async {
        let _turn = turn.lock().await;
        match serde_json::from_str(&line) {
            Ok(request) => carry_out(site.clone(), request, stop).await,
            Err(error) => Answer::of(
                String::new(),
                Err(error).context("the edge box is of another version than this command, and does not know it"),
            ),
        }
    };
    let done = tokio::select! {
        done = done => done,
        // The client has sent all it has to say: this is its end.
        gone = read.read_u8() => return gone.map(|_| ()).context("the client is gone"),
    };
    write.write_all(&serde_json::to_vec(&done)?).await?;
    Ok(write.shutdown().await?)
}

async fn carry_out(site: Arc<Site>, request: Request, stop: CancellationToken) -> Answer {
    let said = match request {
        Request::DeadLetter(question) => {
            blocking(move || dead_letter::answer(&question, &site.log, &site.contract, &stop)).await
        }
        Request::Resume(question) => blocking(move || resume::answer(&question, &site.log, &site.contract, true)).await,
        Request::Groups { forget } => blocking(move || groups::answer(&*site.log, &forget)).await,
        Request::Forget { vin, former, wait } => {
            match blocking(move || forgotten(&site, &vin, &former, wait, &stop)).await {
                Ok(done) => return Answer::of(done.text.clone(), done.verdict()),
                Err(error) => Err(error),
            }
        }
        Request::Audit { stream, ledgers, wait, scores, json } => {
            match audited(&site, &stream, ledgers, wait, scores, stop).await {
                Ok(report) => return Answer::of(report.shown(json), report.verdict()),
                Err(error) => Err(error),
            }
        }
    };
    match said {
        Ok(said) => Answer::of(said, Ok(())),
        Err(error) => Answer::of(String::new(), Err(error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the command did not finish")?
}

fn forgotten(
    site: &Site,
    vin: &str,
    former: &[String],
    wait: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Forgotten> {
    let key = site.key()?;
    let scorer_group = scorer::DEFAULT_GROUP;
    let site = forget::Site { log: &site.log, contract: &site.contract, key: &key, scorer_group };
    forget(&site, vin, former, wait, stop)
}

async fn audited(
    site: &Site,
    stream: &str,
    ledgers: Vec<PathBuf>,
    wait: Option<Duration>,
    scores: Scores,
    stop: CancellationToken,
) -> anyhow::Result<audit::Report> {
    let flow = Flow::of(&site.contract, stream).with_context(|| format!("the edge box has no stream {stream}"))?;
    let key = site.key()?;
    let mut sources = Sources::of(&site.contract, flow, Some(site.log.clone()), None, None);
    (sources.scores, sources.site) = (scores, site.name.clone());
    sources.open_schemas(&site.schemas, &stop).await?;
    audit::audit(sources, Evidence { ledgers, key: Some(key) }, wait, stop).await
}

#[cfg(test)]
mod tests {
    use event_log::LogUrl;

    use super::*;

    #[test]
    fn the_url_of_a_kafka_log_has_no_socket() {
        assert_eq!(socket(&"kafka://h:1".parse::<LogUrl>().unwrap()), None);
    }
}
