//! Streaming through nokhwa, on a thread of its own because it may wait for ever.
//!
//! What nokhwa leaves open is covered around it: the exact format is set before (`device.rs`), the wait for a frame is
//! a bounded one on a second handle of the device, frames are copied out at once so that no old one waits in the
//! driver's queue, and the thread is left behind if the driver never returns.

use std::any::Any;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nokhwa::Camera;
use nokhwa::utils::{
    ApiBackend, CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType, Resolution,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::error::SourceError;
use super::super::monotonic_ns;
use super::super::pixels::PixelFormat;
use super::device::{Agreed, Device, refused};
use super::direct::Raw;

/// How long opening may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the thread waits for a frame before it looks whether it is still wanted.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long closing waits for the thread.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// A camera that nokhwa streams from.
#[derive(Debug)]
pub(super) struct ThreadedStream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    node: String,
    /// The frame that is being looked at; swapped with the one in the slot.
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    capture_ns: u64,
    /// Frames since the last one that was taken.
    fresh: u64,
    opened: bool,
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
fn frame_format(format: PixelFormat) -> Option<FrameFormat> {
    match format {
        PixelFormat::Mjpg => Some(FrameFormat::MJPEG),
        PixelFormat::Yuyv => Some(FrameFormat::YUYV),
        PixelFormat::Nv12 => Some(FrameFormat::NV12),
        PixelFormat::Rgb3 => Some(FrameFormat::RAWRGB),
        PixelFormat::Bgr3 => Some(FrameFormat::RAWBGR),
        PixelFormat::Grey => None,
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
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new()
            .name(format!("v4l2-video{index}"))
            .spawn({
                let shared = Arc::clone(&shared);
                move || run(&device, index, format, &shared)
            })
            .map_err(|e| {
                camera_error(format!("no thread could be started for it ({e}); close other programs"))
            })?;
        let stream = Self { shared, thread: Some(thread), node: node.clone(), bytes: Vec::new() };
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
        let mut inner = self.shared.wait_for(timeout, |inner| inner.fresh > 0 || inner.exited);
        if inner.fresh > 0 {
            std::mem::swap(&mut inner.bytes, &mut self.bytes);
            let (step, capture_ns) = (std::mem::take(&mut inner.fresh), inner.capture_ns);
            drop(inner);
            return Ok(Some(look(Raw { bytes: &self.bytes, capture_ns, step, damaged: false })));
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
        let exited = self.shared.wait_for(CLOSE_TIMEOUT, |inner| inner.exited).exited;
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
    let mut bytes = Vec::new();
    // The first read starts the stream; before it there is nothing to wait for.
    let mut started = false;
    loop {
        while started && !frame_is_there(device) {
            if shared.lock().stop {
                return Ok(());
            }
        }
        {
            let frame = camera.frame_raw()?;
            bytes.clear();
            bytes.extend_from_slice(&frame);
        }
        started = true;
        let mut inner = shared.lock();
        if inner.stop {
            return Ok(());
        }
        std::mem::swap(&mut inner.bytes, &mut bytes);
        inner.capture_ns = monotonic_ns();
        inner.fresh += 1;
        drop(inner);
        shared.changed.notify_all();
    }
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
