//! What the connections share: the served model's facts, the queue to the engine, and the limits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::admit::{Admitted, Served};
use crate::error::ApiError;
use crate::job::{Event, Job};
use crate::metrics::Metrics;

/// The largest request body, in bytes: four pictures of a camera's usual size, in base64.
pub(crate) const MAX_BODY_BYTES: usize = 10 << 20;
/// All bodies together, from their first byte until their answer is complete, in KiB. While one is admitted its
/// pictures, decoded from base64, come on top: three quarters as much again.
pub(crate) const MAX_BODIES_KIB: usize = 64 << 10;

/// What the connections share.
#[derive(Debug)]
pub(crate) struct App {
    served: OnceLock<Served>,
    stopping: AtomicBool,
    card_lost: AtomicBool,
    queue: SyncSender<Job>,
    /// What is left for bodies, in KiB.
    pub(crate) bodies: Arc<Semaphore>,
    next_id: AtomicU64,
    pub(crate) metrics: Arc<Metrics>,
    /// How long a body may take to arrive.
    pub(crate) body_timeout: Duration,
}

impl App {
    pub(crate) fn new(queue: SyncSender<Job>, metrics: Arc<Metrics>) -> Self {
        Self {
            served: OnceLock::new(),
            stopping: AtomicBool::new(false),
            card_lost: AtomicBool::new(false),
            queue,
            bodies: Arc::new(Semaphore::new(MAX_BODIES_KIB)),
            next_id: AtomicU64::new(unix_s() << 20),
            metrics,
            body_timeout: Duration::from_secs(30),
        }
    }

    /// The model is there: requests are admitted from now on.
    pub(crate) fn ready(&self, served: Served) {
        self.metrics.tell_device(&served.device);
        // A second model would be a bug of ours; the first one stays.
        let _ = self.served.set(served);
    }

    /// No new request is admitted from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The card is lost: that is what every request is told from now on.
    pub(crate) fn lose_card(&self) {
        self.card_lost.store(true, Ordering::Relaxed);
    }

    /// The model's facts.
    ///
    /// # Errors
    /// 503 while the model is being loaded, while the service stops, and when the card was lost.
    pub(crate) fn served(&self) -> Result<&Served, ApiError> {
        if self.card_lost.load(Ordering::Relaxed) {
            return Err(ApiError::card_lost());
        }
        if self.stopping.load(Ordering::Relaxed) {
            return Err(ApiError::stopping());
        }
        self.served.get().ok_or_else(ApiError::loading)
    }

    /// Grows the memory that is set aside for a body to `bytes`, or begins with it.
    ///
    /// # Errors
    /// 413 if the body is too large at all, 429 if the others leave no room for it.
    pub(crate) fn reserve(
        &self,
        bytes: usize,
        held: Option<OwnedSemaphorePermit>,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        if bytes > MAX_BODY_BYTES {
            return Err(ApiError::too_large(MAX_BODY_BYTES));
        }
        let kib = bytes.div_ceil(1024).saturating_sub(held.as_ref().map_or(0, |held| held.num_permits()));
        let kib = u32::try_from(kib).map_err(|_| ApiError::too_large(MAX_BODY_BYTES))?;
        let more = Arc::clone(&self.bodies).try_acquire_many_owned(kib).map_err(|_| ApiError::busy())?;
        Ok(match held {
            None => more,
            Some(mut held) => {
                held.merge(more);
                held
            }
        })
    }

    /// Hands an admitted request to the engine.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 if the engine has gone.
    pub(crate) fn enqueue(
        &self,
        admitted: Admitted,
        memory: OwnedSemaphorePermit,
    ) -> Result<mpsc::Receiver<Event>, ApiError> {
        let (reply, events) = Job::replies(&admitted.prompt);
        let job = Job { prompt: admitted.prompt, reply, queued: Instant::now(), _memory: memory };
        // Counted before it is sent, since the engine may take it at once and count down.
        self.metrics.queue_len.inc();
        self.queue.try_send(job).map_err(|refused| {
            self.metrics.queue_len.dec();
            match refused {
                TrySendError::Full(_) => ApiError::busy(),
                TrySendError::Disconnected(_) => ApiError::stopping(),
            }
        })?;
        Ok(events)
    }

    /// An id that no other completion of this service has.
    pub(crate) fn completion_id(&self) -> String {
        format!("chatcmpl-{:x}", self.next_id.fetch_add(1, Ordering::Relaxed))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
