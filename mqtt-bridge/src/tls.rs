//! MQTT with TLS: the port on which a client's certificate says which car it is.
//!
//! ```text
//!  files ─► config, replaced when they change        socket ─► handshake ─► VIN of the certificate ─► connection
//!                    └── of each new connection ────────────────┘ └─► refused: a reason, counted and logged
//! ```
//!
//! TLS 1.2 and 1.3, each client with a certificate of `--tls-client-ca`. Its VIN is the one common name (CN) of the
//! certificate's subject, and nothing else of it: no alternative name, no client identifier.
//!
//! No session is resumed: a resumed one would skip the look at the certificate, so that one which has expired, or whose
//! authority was withdrawn, would be let in again. It costs a fleet that reconnects the two signatures of a handshake.
//!
//! What it deliberately does not do: revocation lists. An authority that has signed for the wrong car is replaced.

mod files;
mod handshake;
mod refusal;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use service::ConfigError;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::args::TlsArgs;
use crate::complaints::Complaints;
use crate::metrics::{Metrics, Reason};
use files::{Contents, Files, Loaded};
pub(crate) use handshake::serve;

/// The TLS settings in force.
#[derive(Debug)]
pub(crate) struct Tls {
    files: Files,
    check: Duration,
    config: RwLock<Arc<ServerConfig>>,
    watched: Mutex<Watched>,
    complaints: Complaints,
    metrics: Metrics,
}

/// What was found in the files.
#[derive(Debug)]
struct Watched {
    in_use: Contents,
    /// What was found instead of it, and cannot be used.
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    found: Result<Contents, Vec<String>>,
    told: bool,
}

impl Tls {
    /// Reads the files. `None`: no TLS is asked for.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(crate) fn new(args: &TlsArgs, metrics: Metrics) -> Result<Option<Self>, ConfigError> {
        let (Some(_), Some(cert), Some(key), Some(client_ca)) =
            (&args.tls_listen, &args.tls_cert, &args.tls_key, &args.tls_client_ca)
        else {
            return Ok(None);
        };
        let own = |path: &Path| path.to_owned();
        let files = Files { cert: own(cert), key: own(key), client_ca: own(client_ca) };
        let in_use = files.read().map_err(ConfigError)?;
        let loaded = files.load(&in_use).map_err(ConfigError)?;
        loaded.show(&metrics);
        for reason in refusal::USUAL {
            drop(metrics.connect_refusals.get_or_create(&Reason { reason }));
        }
        Ok(Some(Self {
            files,
            check: args.tls_check,
            config: RwLock::new(loaded.config),
            watched: Mutex::new(Watched { in_use, trouble: None }),
            complaints: Complaints::default(),
            metrics,
        }))
    }

    /// For a new connection.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.read().clone()
    }

    /// Looks at the files now and then, until shutdown. By what they hold rather than when they changed: times are
    /// coarse, and mounted files are often links that are turned elsewhere.
    pub(crate) async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.check) => {}
            }
            let tls = self.clone();
            // If it panicked, the next look is as good.
            let _ = tokio::task::spawn_blocking(move || tls.look()).await;
        }
    }

    fn look(&self) {
        let found = self.files.read();
        let mut watched = self.watched.lock();
        if found.as_ref() == Ok(&watched.in_use) {
            watched.trouble = None;
            self.metrics.tls_files_unusable.set(0);
            return;
        }
        let seen = watched.trouble.take().filter(|trouble| trouble.found == found);
        if seen.as_ref().is_some_and(|trouble| trouble.told) {
            watched.trouble = seen;
            return;
        }
        match found.as_ref().map_err(Clone::clone).and_then(|contents| self.files.load(contents)) {
            Ok(loaded) => {
                self.replace(loaded);
                watched.in_use = found.expect("was loaded");
            }
            Err(problems) => {
                // Files are replaced one after the other: it is trouble if the next look finds the same.
                let told = seen.is_some();
                if told {
                    self.metrics.tls_files_unusable.set(1);
                    let problems = problems.join("; ");
                    tracing::error!("cannot use the new TLS files, continuing with the previous ones: {problems}");
                }
                watched.trouble = Some(Trouble { found, told });
            }
        }
    }

    fn replace(&self, loaded: Loaded) {
        loaded.show(&self.metrics);
        self.metrics.tls_files_unusable.set(0);
        self.metrics.tls_reloads.inc();
        *self.config.write() = loaded.config;
        tracing::info!("loaded the changed TLS files for new connections; open connections are unaffected");
    }
}
