//! The thread that reads a source: keeps the newest frame ready, notices stalls, and brings a camera back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::{Recovery, SourceError};
use super::slot::{FrameSlot, Taken};
use super::watch::Watch;
use super::{Description, Frame, Pace, Read, Source, monotonic_ns};

/// How long one read may wait, which is also how long a stop may take.
const READ_SLICE: Duration = Duration::from_millis(50);

/// Pauses between attempts to reopen a camera: doubled each time, up to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first attempt.
    pub first: Duration,
    /// Between later ones; one second after its return, a camera must be back.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), longest: Duration::from_millis(800) }
    }
}

/// How a capture runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Name of its thread, at most 15 bytes of which the system shows.
    pub name: String,
    /// Pauses between attempts to reopen a camera.
    pub backoff: Backoff,
    /// How long a stop waits for a thread that is inside a driver before it leaves it behind.
    pub stop_timeout: Duration,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        let stop_timeout = Duration::from_secs(2);
        Self { name: "capture".to_owned(), backoff: Backoff::default(), stop_timeout }
    }
}

/// What a capture is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CaptureState {
    /// Opened; the first frame has not come yet.
    Starting,
    /// Frames come.
    Running,
    /// No frame for longer than three periods and half a second.
    Stalled,
    /// The device is away or silent, and is being opened again.
    Reopening,
    /// The source has ended, or the capture was stopped.
    Ended,
    /// The source has failed for good.
    Failed,
}

/// What a capture has counted since its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureStats {
    /// What it is doing.
    pub state: CaptureState,
    /// Good frames read.
    pub frames: u64,
    /// Frames that were replaced by a newer one before anybody took them.
    pub dropped: u64,
    /// Times that the source fell silent.
    pub stalls: u64,
    /// Times that the device was opened again.
    pub reopens: u64,
    /// Damaged frames that were left out.
    pub bad_frames: u64,
    /// Age of the last frame that was taken, when it was taken.
    pub last_age: Option<Duration>,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The thread has ended and the source is closed.
    Clean,
    /// The thread is stuck inside a driver and was left behind; it ends when the driver returns.
    LeftBehind,
}

/// A source that is being read by its own thread.
#[derive(Debug)]
pub struct Capture {
    description: Description,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    stop_timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    slot: FrameSlot,
    watch: Watch,
    stop: AtomicBool,
    state: AtomicU8,
    frames: AtomicU64,
    reopens: AtomicU64,
    bad_frames: AtomicU64,
    exited: Mutex<bool>,
    exit: Condvar,
}

impl Capture {
    /// Starts to read `source`: every frame with [`Pace::All`], the newest one with [`Pace::Real`].
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(source: Box<dyn Source>, options: &CaptureOptions) -> Result<Self, SourceError> {
        let description = source.description().clone();
        let shared = Arc::new(Shared {
            slot: FrameSlot::new(),
            watch: Watch::new(description.rate_hz, monotonic_ns()),
            stop: AtomicBool::new(false),
            state: AtomicU8::new(CaptureState::Starting as u8),
            frames: AtomicU64::new(0),
            reopens: AtomicU64::new(0),
            bad_frames: AtomicU64::new(0),
            exited: Mutex::new(false),
            exit: Condvar::new(),
        });
        let reader = Reader { source, shared: Arc::clone(&shared), backoff: options.backoff };
        let origin = description.uri.clone();
        let thread = thread::Builder::new()
            .name(options.name.clone())
            .spawn(move || reader.run_guarded())
            .map_err(|e| SourceError::Thread { origin, reason: format!("could not be started ({e})") })?;
        Ok(Self { description, shared, thread: Some(thread), stop_timeout: options.stop_timeout })
    }

    /// What is being read.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Takes the newest frame, waiting at most `timeout` for one that has not been taken yet.
    ///
    /// # Errors
    /// The source has failed for good; said once, [`Taken::End`] from then on.
    pub fn take(&self, frame: &mut Frame, timeout: Duration) -> Result<Taken, SourceError> {
        self.shared.slot.take(frame, timeout)
    }

    /// What has been counted until now. Also notices a reader that is stuck inside a driver.
    pub fn stats(&self) -> CaptureStats {
        let shared = &self.shared;
        let mut state = shared.state();
        let stalled = shared.watch.check(monotonic_ns());
        if stalled && matches!(state, CaptureState::Starting | CaptureState::Running) {
            state = CaptureState::Stalled;
        }
        CaptureStats {
            state,
            frames: shared.frames.load(Relaxed),
            dropped: shared.slot.dropped(),
            stalls: shared.watch.stalls(),
            reopens: shared.reopens.load(Relaxed),
            bad_frames: shared.bad_frames.load(Relaxed),
            last_age: shared.slot.last_age(),
        }
    }

    /// Stops reading and closes the source. Dropping a capture does the same.
    pub fn stop(mut self) -> Stopped {
        self.stop_inplace()
    }

    fn stop_inplace(&mut self) -> Stopped {
        let Some(thread) = self.thread.take() else { return Stopped::Clean };
        self.shared.stop.store(true, Relaxed);
        self.shared.slot.close();
        thread.thread().unpark();
        let exited = self.shared.exited.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.shared.exit.wait_timeout_while(exited, self.stop_timeout, |exited| !*exited);
        if *wait.unwrap_or_else(PoisonError::into_inner).0 {
            // Its last act was to say so; a panic was caught and reported by then.
            let _ = thread.join();
            return Stopped::Clean;
        }
        log::warn!(
            "source={} the capture thread is stuck inside its driver and is left behind",
            self.description.uri
        );
        Stopped::LeftBehind
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop_inplace();
    }
}

impl Shared {
    fn set(&self, state: CaptureState) {
        self.state.store(state as u8, Relaxed);
    }

    fn state(&self) -> CaptureState {
        use CaptureState::{Ended, Failed, Reopening, Running, Stalled, Starting};
        let all = [Starting, Running, Stalled, Reopening, Ended, Failed];
        all[usize::from(self.state.load(Relaxed)).min(all.len() - 1)]
    }

    fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// The part that lives on the thread.
struct Reader {
    source: Box<dyn Source>,
    shared: Arc<Shared>,
    backoff: Backoff,
}

impl Reader {
    fn run_guarded(mut self) {
        let shared = Arc::clone(&self.shared);
        let origin = self.source.description().uri.clone();
        // The source is closed inside as well: a driver's clean-up may panic too.
        let ended = catch_unwind(AssertUnwindSafe(move || {
            let ended = self.run();
            drop(self);
            ended
        }))
        .unwrap_or_else(|_| Err(SourceError::Thread { origin, reason: "has died of a panic".to_owned() }));
        shared.watch.pause();
        shared.set(if ended.is_ok() { CaptureState::Ended } else { CaptureState::Failed });
        shared.slot.end(ended.err());
        *shared.exited.lock().unwrap_or_else(PoisonError::into_inner) = true;
        shared.exit.notify_all();
    }

    fn run(&mut self) -> Result<(), SourceError> {
        let every_frame = self.source.description().pace == Pace::All;
        let live = self.source.description().live;
        let mut frame = Frame::default();
        let mut pause = self.backoff.first;
        while !self.shared.stopping() {
            let lost = match self.source.read(&mut frame, READ_SLICE) {
                Ok(Read::Frame) => {
                    self.shared.watch.progress(monotonic_ns());
                    self.shared.frames.fetch_add(1, Relaxed);
                    self.shared.set(CaptureState::Running);
                    pause = self.backoff.first;
                    if !self.publish(&mut frame, every_frame) {
                        return Ok(());
                    }
                    continue;
                }
                Ok(Read::End) => return Ok(()),
                Ok(Read::Timeout) => None,
                Err(error) => match error.recovery() {
                    Recovery::Skip => {
                        log::debug!("{error}");
                        self.shared.bad_frames.fetch_add(1, Relaxed);
                        None
                    }
                    Recovery::Reopen if live => Some(error),
                    _ => return Err(error),
                },
            };
            let stalled = self.shared.watch.check(monotonic_ns());
            if stalled {
                self.shared.set(CaptureState::Stalled);
            }
            match lost {
                Some(error) => log::warn!("{error}"),
                None if stalled && live => {
                    log::warn!(
                        "source={} no frame for too long, opening it again",
                        self.source.description().uri
                    );
                }
                None => continue,
            }
            self.reopen(&mut pause);
        }
        Ok(())
    }

    /// False when nobody reads any more.
    fn publish(&self, frame: &mut Frame, every_frame: bool) -> bool {
        if !every_frame {
            return self.shared.slot.publish(frame);
        }
        // A reader that takes its time is no stall of the source.
        self.shared.watch.pause();
        let read_on = self.shared.slot.publish_when_taken(frame);
        self.shared.watch.progress(monotonic_ns());
        read_on
    }

    /// Tries until the source is open again or the capture is stopped.
    fn reopen(&mut self, pause: &mut Duration) {
        self.shared.set(CaptureState::Reopening);
        self.shared.watch.pause();
        loop {
            let deadline = Instant::now() + *pause;
            loop {
                if self.shared.stopping() {
                    return;
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                thread::park_timeout(left);
            }
            // Until a frame comes, the pauses grow: a device that opens and gives nothing is not hammered.
            *pause = (*pause * 2).min(self.backoff.longest);
            match self.source.reopen() {
                Ok(()) => {
                    self.shared.reopens.fetch_add(1, Relaxed);
                    self.shared.watch.opened(monotonic_ns());
                    self.shared.set(CaptureState::Starting);
                    log::info!("source={} opened again", self.source.description().uri);
                    return;
                }
                Err(error) => log::debug!("{error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
