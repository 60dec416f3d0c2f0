//! Streaming through nokhwa, on a thread of its own because it may wait for ever.
//!
//! What nokhwa leaves open is covered around it: the exact format is set before (`device.rs`), the wait for a frame is
//! a bounded one on a second handle of the device, frames are copied out at once so that no old one waits in the
//! driver's queue, and the thread is left behind if the driver never returns. Only the first frame cannot be waited
//! for so, since reading it is what starts the stream: closing a camera that has never given one stops the stream.

use std::any::Any;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nokhwa::utils::{
    ApiBackend, CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType, Resolution,
};
use nokhwa::{Buffer, Camera};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::error::SourceError;
use super::super::monotonic_ns;
use super::device::{Agreed, Delivered, Device, refused};
use super::direct::Raw;
use crate::picture::PixelFormat;

/// How long opening may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the thread waits for a frame before it looks whether it is still wanted.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long closing waits for the thread, this many times.
const CLOSE_SLICE: Duration = Duration::from_millis(100);
const CLOSE_SLICES: usize = 5;
/// No frame is older than this when it arrives: a driver that says so has another clock.
const OLDEST: Duration = Duration::from_secs(10);

/// A camera that nokhwa streams from.
#[derive(Debug)]
pub(super) struct ThreadedStream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    device: Arc<Device>,
    node: String,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// The newest frame, until it is taken.
    frame: Option<Buffer>,
    capture_ns: u64,
    /// Frames since the last one that was taken.
    fresh: u64,
    opened: bool,
    /// The first frame has come.
    started: bool,
    stop: bool,
    exited: bool,
    error: Option<SourceError>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, timeout: Duration, until: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let wait = self.changed.wait_timeout_while(self.lock(), timeout, |inner| !until(inner));
        wait.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// nokhwa's name of a format, if it can read it: it looks for grey under a name that no driver uses.
fn frame_format(format: Delivered) -> Option<FrameFormat> {
    match format {
        Delivered::Mjpg => Some(FrameFormat::MJPEG),
        Delivered::Raw(PixelFormat::Yuyv) => Some(FrameFormat::YUYV),
        Delivered::Raw(PixelFormat::Nv12) => Some(FrameFormat::NV12),
        Delivered::Raw(PixelFormat::Rgb) => Some(FrameFormat::RAWRGB),
        Delivered::Raw(PixelFormat::Bgr) => Some(FrameFormat::RAWBGR),
        Delivered::Raw(PixelFormat::Grey) => None,
    }
}

/// The agreed format in nokhwa's words; none if it has no word for it, or if the rate is no whole number.
pub(super) fn request(agreed: &Agreed) -> Option<CameraFormat> {
    let format = frame_format(agreed.format)?;
    let (1, rate) = agreed.interval? else { return None };
    Some(CameraFormat::new(Resolution::new(agreed.width, agreed.height), format, rate))
}

/// The number in `/dev/videoN`.
fn index_of(node: &Path) -> Option<u32> {
    node.file_name()?.to_str()?.strip_prefix("video")?.parse().ok()
}

impl ThreadedStream {
    /// Starts to stream in exactly this format, which the device has agreed to.
    pub(super) fn start(device: Device, format: CameraFormat) -> Result<Self, SourceError> {
        let node = device.node.display().to_string();
        let camera_error = |reason: String| SourceError::Camera { node: node.clone(), reason };
        let index = index_of(&device.node)
            .ok_or_else(|| camera_error("the node has no number; name it as /dev/videoN".to_owned()))?;
        let (shared, device) = (Arc::new(Shared::default()), Arc::new(device));
        let thread = thread::Builder::new()
            .name(format!("v4l2-video{index}"))
            .spawn({
                let (shared, device) = (Arc::clone(&shared), Arc::clone(&device));
                move || run(&device, index, format, &shared)
            })
            .map_err(|e| {
                camera_error(format!("no thread could be started for it ({e}); close other programs"))
            })?;
        let stream = Self { shared, thread: Some(thread), device, node: node.clone() };
        let mut inner = stream.shared.wait_for(OPEN_TIMEOUT, |inner| inner.opened || inner.exited);
        let opened = inner.opened;
        let error = inner.error.take();
        drop(inner);
        match error {
            Some(error) => Err(error),
            None if opened => Ok(stream),
            None => Err(camera_error("the camera does not open; plug it in again".to_owned())),
        }
    }

    /// Waits at most `timeout` for a frame and shows the newest one to `look`; `None` when none came.
    pub(super) fn next<T>(
        &mut self,
        timeout: Duration,
        look: impl FnOnce(Raw) -> T,
    ) -> Result<Option<T>, SourceError> {
        let mut inner = self.shared.wait_for(timeout, |inner| inner.frame.is_some() || inner.exited);
        if let Some(frame) = inner.frame.take() {
            let (step, capture_ns) = (std::mem::take(&mut inner.fresh), inner.capture_ns);
            drop(inner);
            return Ok(Some(look(Raw { bytes: frame.buffer(), capture_ns, step, damaged: false })));
        }
        if !inner.exited {
            return Ok(None);
        }
        let gone = || SourceError::Vanished { origin: self.node.clone() };
        Err(inner.error.take().unwrap_or_else(gone))
    }
}

impl Drop for ThreadedStream {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        let exited = (0..CLOSE_SLICES).any(|_| {
            if !self.shared.lock().started
                && let Err(error) = self.device.stop_other_handles()
            {
                log::debug!("node={} its stream cannot be stopped: {error}", self.node);
            }
            self.shared.wait_for(CLOSE_SLICE, |inner| inner.exited).exited
        });
        let Some(thread) = self.thread.take() else { return };
        if exited {
            // It has said all it had to say.
            let _ = thread.join();
        } else {
            log::warn!(
                "node={} the camera's thread is stuck inside its driver and is left behind",
                self.node
            );
        }
    }
}

/// The thread: opens, streams until it is not wanted any more or the device fails, closes.
fn run(device: &Device, index: u32, format: CameraFormat, shared: &Shared) {
    // nokhwa and the crate below it panic on what they do not expect, also while they clean up.
    let ended = catch_unwind(AssertUnwindSafe(|| stream(device, index, format, shared)));
    let node = device.node.display().to_string();
    let error = match ended {
        Ok(Ok(())) => None,
        Ok(Err(_)) if device.is_gone() => Some(SourceError::Vanished { origin: node }),
        Ok(Err(error)) => Some(refused(&node, "gives no frame", &std::io::Error::other(error.to_string()))),
        Err(panic) => Some(refused(&node, "makes its library panic", &std::io::Error::other(words(&*panic)))),
    };
    let mut inner = shared.lock();
    inner.exited = true;
    inner.error = error;
    drop(inner);
    shared.changed.notify_all();
}

fn stream(
    device: &Device,
    index: u32,
    format: CameraFormat,
    shared: &Shared,
) -> Result<(), nokhwa::NokhwaError> {
    let decoders = [format.format()];
    let exactly = RequestedFormat::with_formats(RequestedFormatType::Exact(format), &decoders);
    let mut camera = Camera::with_backend(CameraIndex::Index(index), exactly, ApiBackend::Video4Linux)?;
    camera.open_stream()?;
    shared.lock().opened = true;
    shared.changed.notify_all();
    loop {
        // The first read starts the stream; before it there is nothing to wait for.
        while shared.lock().started && !frame_is_there(device) {
            if shared.lock().stop {
                return Ok(());
            }
        }
        let frame = camera.frame()?;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let capture_ns = capture_ns(frame.capture_timestamp(), wall, monotonic_ns());
        let mut inner = shared.lock();
        if inner.stop {
            return Ok(());
        }
        inner.frame = Some(frame);
        inner.capture_ns = capture_ns;
        inner.fresh += 1;
        inner.started = true;
        drop(inner);
        shared.changed.notify_all();
    }
}

/// When the driver took the frame, which nokhwa tells by the wall clock, on the monotonic clock; `now_ns` where it does
/// not tell. Both clocks are read again here, so a step of the wall clock can move a stamp only in these microseconds.
fn capture_ns(stamp: Option<Duration>, wall: Duration, now_ns: u64) -> u64 {
    let age =
        stamp.and_then(|stamp| wall.checked_sub(stamp)).filter(|age| *age <= OLDEST).unwrap_or_default();
    now_ns.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(0))
}

/// Waits a while for a frame; an error counts as one, since reading it tells which.
fn frame_is_there(device: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&device, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&POLL)), Ok(0))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_the_wall_clock_becomes_one_of_the_monotonic_clock() {
        let (wall, now_ns) = (Duration::from_secs(1_700_000_000), 5_000_000_000);
        let taken = |age: Duration| capture_ns(Some(wall - age), wall, now_ns);
        assert_eq!(taken(Duration::from_millis(40)), now_ns - 40_000_000);
        assert_eq!(taken(Duration::ZERO), now_ns);
        // No stamp, one from the future, and one of another clock: the time of arrival.
        assert_eq!(capture_ns(None, wall, now_ns), now_ns);
        assert_eq!(capture_ns(Some(wall + Duration::from_nanos(1)), wall, now_ns), now_ns);
        assert_eq!(taken(OLDEST + Duration::from_nanos(1)), now_ns);
    }
}
