//! `saccaded serve`: loads, listens, and stops when it is told to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use saccade::engine::EngineOptions;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::app::App;
use crate::exit::CardLost;
use crate::job::QUEUE_LEN;
use crate::metrics::Metrics;
use crate::{infer, listen, routes};

/// Threads that wait for the network. The engine has its own; these only parse and copy.
const NETWORK_THREADS: usize = 2;

/// How long `/health` says that the card was lost, for whoever asks every second.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves the bundle in `model` until SIGTERM or SIGINT.
///
/// # Errors
/// If the address or the bundle cannot be opened, or the card is lost.
pub(crate) fn run(
    model: Option<PathBuf>,
    address: SocketAddr,
    options: EngineOptions,
    context: usize,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .context("the network threads cannot be started")?;
    runtime.block_on(serve(model, address, options, context))
}

async fn serve(
    model: Option<PathBuf>,
    address: SocketAddr,
    options: EngineOptions,
    context: usize,
) -> anyhow::Result<()> {
    let listener = listen::bind(address).await?;
    let address = listener.local_addr().context("the listening socket has no address")?;
    log::info!("listening address=http://{address}");

    let metrics = Arc::new(Metrics::new());
    let (queue, jobs) = sync_channel(QUEUE_LEN);
    let app = Arc::new(App::new(queue, Arc::clone(&metrics)));
    let (ended, engine_ended) = oneshot::channel();
    let engine = {
        let (app, metrics) = (Arc::clone(&app), Arc::clone(&metrics));
        thread::Builder::new()
            .name("inference".into())
            .spawn(move || {
                // The application is let go as soon as it is ready: what is left of it ends the engine's queue.
                let weak = Arc::downgrade(&app);
                let lost = move || {
                    if let Some(app) = weak.upgrade() {
                        app.lose_card();
                    }
                };
                let ready = move |served| app.ready(served);
                let result = infer::run(model.as_deref(), &options, context, ready, &lost, &jobs, &metrics);
                // Nobody waits any more if the service is already going down.
                let _ = ended.send(result);
            })
            .context("the inference thread cannot be started")?
    };

    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(listen::serve(
        listener,
        routes::router(Arc::clone(&app)),
        metrics,
        listen::Limits::default(),
        stopped,
    ));
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = engine_ended => ended.unwrap_or_else(|_| Err(anyhow::anyhow!("the inference thread has died: this is a bug in saccaded"))),
    };
    if result.as_ref().is_err_and(|error| error.is::<CardLost>()) {
        log::error!("{CardLost}: the service ends in {} s", LAST_WORDS.as_secs());
        tokio::time::sleep(LAST_WORDS).await;
    }
    log::info!("stopping");
    app.stop();
    // Closed receivers are fine: then the server has ended by itself.
    let _ = stop.send(true);
    let _ = server.await;
    drop(app);
    let joined = tokio::task::spawn_blocking(move || engine.join());
    // A panic of the engine has been reported above.
    let _ = joined.await;
    result
}
