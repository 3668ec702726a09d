//! A stage that runs in this process, as its binary would run it.

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A stage that runs, and how to stop it.
#[derive(Debug)]
pub(crate) struct RunningStage {
    pub(crate) name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl RunningStage {
    /// Starts a stage; it is given the token that asks it to drain. When it ends, for whatever reason, `ended` is
    /// cancelled.
    pub(crate) fn start<F>(
        name: &'static str,
        ended: &CancellationToken,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let (running, ended) = (run(stop.clone()), ended.clone());
        let task = tokio::spawn(async move {
            // Also when it panics.
            let _ended = ended.drop_guard();
            running.await
        });
        Self { name, stop, task }
    }

    /// Whether it has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Asks the stage to drain, and waits until it has.
    pub(crate) async fn drain(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let name = self.name;
        self.task.await.with_context(|| format!("the {name} panicked"))?.with_context(|| format!("the {name} failed"))
    }
}
