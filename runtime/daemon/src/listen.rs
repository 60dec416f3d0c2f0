//! The accept loop: how many connections there may be, and how long each may keep us waiting.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::metrics::Metrics;
use crate::patience::WriteTimeout;

/// How much of this machine the clients may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Open connections.
    pub(crate) connections: usize,
    /// From the connection, or the end of the last request, to the end of the next request's header.
    pub(crate) header: Duration,
    /// How long a client may refuse to take a byte.
    pub(crate) write: Duration,
    /// How long open requests may go on once the service stops.
    pub(crate) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            header: Duration::from_secs(5),
            write: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

/// The longest request header, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Opens the listening socket, on the loopback interface only.
///
/// # Errors
/// If the address is no loopback address, or is taken.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() {
        bail!(
            "--listen {address}: this version has no access control and listens on loopback addresses only, such as 127.0.0.1:8484; reach it from elsewhere through `ssh -L`"
        );
    }
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "--listen {address} cannot be opened: another program may hold the port, so choose another one"
        )
    })
}

/// One connection that has not sent a whole request header yet, oldest first in its list.
struct Newcomer {
    has_asked: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Serves until `stop` turns true, then lets open requests finish.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: Arc<Metrics>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut newcomers: VecDeque<Newcomer> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => { metrics.connections.dec(); continue }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that left before it was accepted: neither ends the service.
                log::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        newcomers.retain(|n| !n.has_asked.load(Ordering::Relaxed) && !n.task.is_finished());
        if connections.len() >= limits.connections {
            metrics.connections_evicted.inc();
            // The one that has kept us waiting longest makes room; if all are at work, the new one has to go.
            let Some(oldest) = newcomers.pop_front() else { continue };
            oldest.task.abort();
        }
        metrics.connections.inc();
        let has_asked = Arc::new(AtomicBool::new(false));
        let connection = connection(stream, router.clone(), Arc::clone(&has_asked), limits, stop.clone());
        newcomers.push_back(Newcomer { has_asked, task: connections.spawn(connection) });
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, finish).await.is_err() {
        log::warn!("some connections were still open after {} s: closing them", limits.grace.as_secs());
    }
}

/// Waits until the service stops, or until nobody is left who could stop it.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The guard inside must not live across another await, so it ends here.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One connection, from its first byte to its last.
async fn connection(
    stream: TcpStream,
    router: Router,
    has_asked: Arc<AtomicBool>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    // Tokens are small and late ones are worth nothing: never wait for a full segment.
    let _ = stream.set_nodelay(true);
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let answer = inner.call(request.map(Body::new) as Request);
        async move { answer.await as Result<Response, Infallible> }
    });
    let io = TokioIo::new(WriteTimeout::new(stream, limits.write));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("a connection ended early: {error}");
    }
}
