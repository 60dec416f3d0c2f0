//! Sources of frames: cameras, pictures, videos and a test pattern behind one small trait.
//!
//! ```text
//! v4l2:///dev/video0   /dev/video0     a V4L2 camera (feature `v4l2`)       ?width= &height= &rate=
//! file://PATH          PATH            JPEG, PNG, a folder, a glob, a video ?pace= &loop= &rate=
//! test://pattern                       moving shapes, always the same       ?width= &height= &rate= &frames= &pace= &loop=
//! ```
//!
//! `pace=all` reads everything, as fast as the reader takes it; `pace=real` plays in real time and drops what nobody
//! took. `loop=-1` repeats for ever, `loop=0` plays once, `loop=N` repeats N times. `rate` is in frames a second,
//! also as a fraction (`rate=30000/1001`).
//!
//! A [`Source`] is read by one thread. [`Capture`] is that thread: it watches for stalls, reopens a camera that went
//! away, and leaves the newest frame in a [`FrameSlot`]. Whoever takes frames from there never waits for a slow
//! camera longer than it wants to, and nothing is allocated or copied on the way.
//!
//! ```
//! use saccade::source::{self, Capture, CaptureOptions, Frame, SourceOptions, Taken};
//! use std::time::Duration;
//!
//! let source = source::open("test://pattern?width=64&height=64&frames=3&pace=all", &SourceOptions::default())?;
//! let capture = Capture::start(source, &CaptureOptions::default())?;
//! let mut frame = Frame::default();
//! while let Taken::Frame { .. } = capture.take(&mut frame, Duration::from_secs(1))? {
//!     assert_eq!(frame.rgb.len(), 64 * 64 * 3);
//! }
//! assert_eq!(capture.stats().frames, 3);
//! # Ok::<(), saccade::source::SourceError>(())
//! ```

mod avi;
mod capture;
mod decode;
mod error;
#[cfg(test)]
mod fake;
mod ffmpeg;
mod file;
mod pace;
mod pattern;
mod pictures;
mod recorded;
mod slot;
mod uri;
mod v4l2;
mod video;
mod watch;

use std::time::Duration;

use crate::picture::{Picture, PixelFormat};
pub use capture::{Backoff, Capture, CaptureOptions, CaptureState, CaptureStats, Stopped};
pub use decode::{decode_picture, picture_size};
pub use error::{AviError, FrameError, Recovery, SourceError};
pub use pace::Pace;
pub use slot::{FrameSlot, Taken};
pub use uri::{Repeat, SourceOptions};
pub use v4l2::{CameraNode, list_cameras, list_video_nodes};

/// One picture, with the time at which it was taken.
///
/// Reused for ever: a source resizes `rgb` when the size changes and only overwrites it otherwise.
///
/// A camera that was opened with [`SourceOptions::raw`] leaves the pixels as it delivers them: [`Frame::picture`] shows them to a
/// tokenizer, and [`Frame::fill_rgb`] turns them into RGB for who wants to see them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Number of the frame in its source, from 0; a gap means that frames were lost on the way. A camera that is
    /// read through nokhwa has its frames numbered as they arrive.
    pub seq: u64,
    /// When it was taken, on the clock of [`monotonic_ns`].
    pub capture_ns: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Pixels, `[height, width, 3] u8`; of a raw frame, nothing until [`Frame::fill_rgb`].
    pub rgb: Vec<u8>,
    /// The bytes of a raw frame; empty where there is nothing but `rgb`.
    pub raw: Vec<u8>,
    /// How the raw bytes lie.
    pub raw_format: PixelFormat,
    /// Raw bytes from one row to the next; fewer than a row has stand for rows without padding.
    pub raw_stride: usize,
    /// How long decoding, converting or copying it took.
    pub decode_ns: u64,
}

impl Frame {
    /// Time since the frame was taken.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.capture_ns))
    }

    /// Its pixels, raw or as RGB.
    pub fn picture(&self) -> Picture<'_> {
        let (width, height) = (self.width as usize, self.height as usize);
        if self.raw.is_empty() {
            return Picture::rgb(&self.rgb, width, height);
        }
        Picture { bytes: &self.raw, format: self.raw_format, width, height, stride: self.raw_stride }
    }

    /// Fills `rgb` where the frame is raw.
    ///
    /// # Panics
    /// If the raw bytes, which are public, were made fewer than the size needs.
    pub fn fill_rgb(&mut self) {
        if !self.raw.is_empty() && self.width > 0 && self.height > 0 {
            let mut rgb = std::mem::take(&mut self.rgb);
            rgb.resize(self.width as usize * self.height as usize * 3, 0);
            self.picture().write_rgb(&mut rgb);
            self.rgb = rgb;
        }
    }

    /// Sets the size and makes room for the pixels; allocates only when the picture grows.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        self.set_size(width, height);
        self.rgb.resize(width as usize * height as usize * 3, 0);
    }

    /// Sets the size of what lies in `rgb` or will; raw bytes of another frame go.
    pub(crate) fn set_size(&mut self, width: u32, height: u32) {
        (self.width, self.height) = (width, height);
        self.raw.clear();
    }
}

// Raw pixels come from cameras alone.
#[cfg(any(test, feature = "v4l2"))]
impl Frame {
    /// Takes the pixels of a picture as they are. More bytes than it has are fine: drivers hand over whole buffers.
    fn take_raw(&mut self, picture: Picture<'_>) -> Result<(), FrameError> {
        let (width, height) = sides(picture)?;
        self.set_size(width, height);
        self.rgb.clear();
        self.raw.extend_from_slice(&picture.bytes[..picture.sizes().0]);
        (self.raw_format, self.raw_stride) = (picture.format, picture.stride);
        Ok(())
    }

    /// Takes the pixels of a picture as RGB.
    fn take_rgb(&mut self, picture: Picture<'_>) -> Result<(), FrameError> {
        let (width, height) = sides(picture)?;
        self.resize(width, height);
        picture.write_rgb(&mut self.rgb);
        Ok(())
    }
}

/// Width and height of a picture that has pixels, and enough bytes for them.
#[cfg(any(test, feature = "v4l2"))]
fn sides(picture: Picture<'_>) -> Result<(u32, u32), FrameError> {
    let (expected, found) = (picture.sizes().0, picture.bytes.len());
    match [picture.width, picture.height].map(u32::try_from) {
        [Ok(0), _] | [_, Ok(0)] => Err(FrameError::Empty),
        [Ok(width), Ok(height)] if found >= expected => Ok((width, height)),
        _ => Err(FrameError::Short { expected, found }),
    }
}

/// What became of a [`Source::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// The frame was filled.
    Frame,
    /// Nothing came within the time; try again.
    Timeout,
    /// There will be no more frames.
    End,
}

/// What a source is, known once it is open.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The URI or path it was opened by.
    pub uri: String,
    /// What it is, in words: `MJPEG AVI`, `USB camera, YUYV`.
    pub kind: String,
    /// Width in pixels of its first frame.
    pub width: u32,
    /// Height in pixels of its first frame.
    pub height: u32,
    /// Frames a second, where that is known.
    pub rate_hz: Option<f64>,
    /// Whether it is read completely or in real time.
    pub pace: Pace,
    /// Whether it is a device, which can stall, vanish and return.
    pub live: bool,
}

/// Something that yields frames, read by one thread.
pub trait Source: Send {
    /// What it is.
    fn description(&self) -> &Description;

    /// Waits at most `timeout` for the next frame and fills `frame`, whose buffers are reused.
    ///
    /// After an error with [`Recovery::Skip`] the next call reads on.
    ///
    /// # Errors
    /// A damaged frame, a device that went away, a file that cannot be read on.
    fn read(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Read, SourceError>;

    /// Closes a live source and opens the same device again, wherever it is now.
    ///
    /// # Errors
    /// The device is still away, or the source is no device.
    fn reopen(&mut self) -> Result<(), SourceError> {
        Err(SourceError::NotLive { origin: self.description().uri.clone() })
    }
}

/// Opens a source by its URI; `options` hold what applies where the URI says nothing.
///
/// # Errors
/// One sentence for whatever is wrong: an unknown scheme or option, a missing or foreign file, no camera.
pub fn open(uri: &str, options: &SourceOptions) -> Result<Box<dyn Source>, SourceError> {
    match uri::Location::parse(uri)? {
        uri::Location::Camera { node, query } => v4l2::open(&node, &query, options),
        uri::Location::File { path, query } => file::open(&path, &query, options),
        uri::Location::Pattern { query } => {
            Ok(Box::new(pattern::Pattern::open(&query, options)?) as Box<dyn Source>)
        }
    }
}

/// The system's monotonic clock, in nanoseconds: the one that camera drivers stamp frames with.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    secs * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests;
