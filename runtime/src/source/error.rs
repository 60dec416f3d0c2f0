//! Every way a source of frames can refuse, and what a capture loop should do about each.

use std::io;
use std::path::PathBuf;

/// What can be opened, for the sentences that must list it.
pub(super) const KNOWN_SOURCES: &str =
    "v4l2:///dev/videoN, file://PATH (picture, folder, glob or video), test://pattern, or a plain path";

/// A source of frames failed.
///
/// [`SourceError::recovery`] says whether the frame, the device or the whole source is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The URI's scheme means nothing here.
    #[error("`{uri}`: the scheme `{scheme}://` is not known; use {KNOWN_SOURCES}")]
    UnknownScheme {
        /// The URI as given.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// The URI is well known, but there is no code for it yet.
    #[error("`{uri}`: {what} are not supported yet; use {KNOWN_SOURCES}")]
    NotYet {
        /// The URI as given.
        uri: String,
        /// The kind of source, plural.
        what: &'static str,
    },
    /// The URI's scheme is known, the rest is not.
    #[error("`{uri}`: {reason}")]
    BadUri {
        /// The URI as given.
        uri: String,
        /// What is wrong and what is right.
        reason: &'static str,
    },
    /// An option that this kind of source does not have.
    #[error("`{uri}`: unknown option `{option}`; known here: {known}")]
    UnknownOption {
        /// The URI as given.
        uri: String,
        /// The option's name.
        option: String,
        /// The names that are known, separated by commas.
        known: String,
    },
    /// An option with a value that makes no sense.
    #[error("`{uri}`: `{option}={value}` is not possible; give {expected}")]
    BadOption {
        /// The URI as given.
        uri: String,
        /// The option's name.
        option: &'static str,
        /// Its value as given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// There is nothing of that name.
    #[error("{path}: no such file or folder; check the path, or use test://pattern to try without one", path = path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// A file or device could not be read.
    #[error("{path}: {reason}", path = path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A folder or glob without a picture.
    #[error("{path}: no picture matches; put .jpg, .jpeg or .png files there, or give another path", path = path.display())]
    NoPictures {
        /// The folder or glob.
        path: PathBuf,
    },
    /// A file that is neither picture nor video.
    #[error("{path}: this is neither a picture nor a video; give a JPEG, PNG, MJPEG AVI or another video file", path = path.display())]
    NotAVideo {
        /// The file concerned.
        path: PathBuf,
    },
    /// A video that needs the ffmpeg program, which is not there.
    #[error("{path}: this video needs the ffmpeg program, which was not found; install it (apt-get install ffmpeg) or give an MJPEG AVI", path = path.display())]
    FfmpegMissing {
        /// The file concerned.
        path: PathBuf,
    },
    /// The ffmpeg program could not read the video.
    #[error("{path}: ffmpeg cannot read this video: {said}", path = path.display())]
    Ffmpeg {
        /// The file concerned.
        path: PathBuf,
        /// Its last error, or its last line.
        said: String,
    },
    /// The ffmpeg program could read a video only in part.
    #[error("{path}: this video is damaged: ffmpeg gave {frames} frames and says: {said}; record it again or repair it", path = path.display())]
    FfmpegBroken {
        /// The file concerned.
        path: PathBuf,
        /// How many frames it gave.
        frames: u64,
        /// Its last error, or how it ended.
        said: String,
    },
    /// An AVI file broke a rule of its format.
    #[error("{path}: {reason}", path = path.display())]
    Avi {
        /// The file concerned.
        path: PathBuf,
        /// The rule.
        reason: AviError,
    },
    /// One frame could not be used; the next one may be good.
    #[error("{origin}: frame {seq}: {reason}")]
    BadFrame {
        /// Where it came from.
        origin: String,
        /// Its number.
        seq: u64,
        /// What is wrong with it.
        reason: FrameError,
    },
    /// Not one frame of a whole pass could be used.
    #[error(
        "{origin}: none of its {frames} frames can be decoded, the last because {reason}; give another file"
    )]
    AllBad {
        /// Where they came from.
        origin: String,
        /// How many there were.
        frames: u64,
        /// What is wrong with the last one.
        reason: FrameError,
    },
    /// A file whose only picture, or whose size, cannot be used.
    #[error("{origin}: {reason}; give another file")]
    Unusable {
        /// The file concerned.
        origin: String,
        /// What is wrong with it.
        reason: FrameError,
    },
    /// A video without a single frame.
    #[error("{path}: this video holds no frame; record it again or give another", path = path.display())]
    NoFrames {
        /// The file concerned.
        path: PathBuf,
    },
    /// The program was built without camera support.
    #[error(
        "{node}: this build has no camera support; build with `--features v4l2` (needs libclang), or use file:// or test://pattern"
    )]
    NoV4l2 {
        /// The camera asked for.
        node: String,
    },
    /// There is no such camera.
    #[error("{node}: no such camera; plug it in, or give one of: {present}")]
    NoCamera {
        /// The camera asked for.
        node: String,
        /// The cameras that are there.
        present: String,
    },
    /// A node of `/dev` that delivers no pictures.
    #[error("{node}: this node delivers no pictures ({what}); give one of: {present}")]
    NotACamera {
        /// The node asked for.
        node: String,
        /// What it is instead.
        what: String,
        /// The cameras that are there.
        present: String,
    },
    /// A sensor without an image processor in front of it.
    #[error(
        "{node}: this is a raw Bayer CSI sensor ({formats}), whose pictures need the board's image processor; use csi://N for it (not supported yet) or a USB camera"
    )]
    RawBayer {
        /// The node asked for.
        node: String,
        /// Its pixel formats.
        formats: String,
    },
    /// A camera with pixel formats that nobody here can read.
    #[error(
        "{node}: none of the camera's pixel formats ({formats}) can be read; use a camera with MJPG, YUYV, NV12, GREY, RGB3 or BGR3"
    )]
    NoFormat {
        /// The node asked for.
        node: String,
        /// Its pixel formats.
        formats: String,
    },
    /// A camera refused a request.
    #[error("{node}: {reason}")]
    Camera {
        /// The camera concerned.
        node: String,
        /// What it said and what to do.
        reason: String,
    },
    /// A source went away while it was read.
    #[error("{origin}: the camera was unplugged; plug it in again, it is reopened when it returns")]
    Vanished {
        /// The source concerned.
        origin: String,
    },
    /// A source that cannot be opened again was asked to.
    #[error("{origin}: this source cannot be reopened; open it anew")]
    NotLive {
        /// The source concerned.
        origin: String,
    },
    /// The thread of a capture could not be started or has died.
    #[error("{origin}: the capture thread {reason}; start the capture again")]
    Thread {
        /// The source concerned.
        origin: String,
        /// What happened to the thread.
        reason: String,
    },
}

/// What a capture loop should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Count it and read the next frame.
    Skip,
    /// Close the device and open it again.
    Reopen,
    /// Nothing helps: end.
    Stop,
}

impl SourceError {
    /// What a capture loop should do about this error.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::BadFrame { .. } => Recovery::Skip,
            Self::Vanished { .. } | Self::Camera { .. } | Self::NoCamera { .. } => Recovery::Reopen,
            _ => Recovery::Stop,
        }
    }

    /// An error of the system about a path; a missing file gets its own sentence.
    pub(super) fn io(path: impl Into<PathBuf>, reason: io::Error) -> Self {
        let path = path.into();
        if reason.kind() == io::ErrorKind::NotFound {
            Self::NotFound { path }
        } else {
            Self::Io { path, reason }
        }
    }
}

/// What is wrong with one frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Neither JPEG nor PNG.
    #[error("it is neither JPEG nor PNG")]
    UnknownKind,
    /// A JPEG picture that does not begin as one.
    #[error("the JPEG start marker is missing")]
    NoStart,
    /// A JPEG picture that stops early.
    #[error("the JPEG data ends before its end marker")]
    NoEnd,
    /// A JPEG picture without size or scan.
    #[error("the JPEG has no frame header before its data")]
    NoHeader,
    /// A broken length inside a JPEG picture.
    #[error("a JPEG segment is longer than the data")]
    BadSegment,
    /// More pixels than the runtime is ready to decode.
    #[error("it is {width} by {height} pixels; at most 4096 by 4096 are read")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// More bytes than a frame can have.
    #[error("it has {bytes} bytes; at most {limit} are read")]
    TooLong {
        /// Bytes found.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A frame without pixels.
    #[error("it has no pixels")]
    Empty,
    /// Fewer bytes than the pixel format needs.
    #[error("it has {found} bytes where its size needs {expected}")]
    Short {
        /// Bytes needed.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The driver marked the frame as damaged.
    #[error("the driver marked it as damaged")]
    Damaged,
    /// The decoder gave up.
    #[error("the decoder refused it: {0}")]
    Decode(String),
    /// The file could not be read.
    #[error("it cannot be read: {0}")]
    Read(String),
}

/// A rule of the AVI format that a file broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AviError {
    /// Not an AVI file at all.
    #[error("this is not an AVI file")]
    NotAvi,
    /// No video stream is described.
    #[error("the AVI file describes no video stream; record it again")]
    NoVideo,
    /// The video is not MJPEG.
    #[error("the AVI's video is `{0}`, not MJPEG")]
    NotMjpeg(String),
    /// No list of frames.
    #[error("the AVI file has no list of frames (`movi`); record it again")]
    NoMovi,
    /// A chunk's size is impossible.
    #[error(
        "the AVI chunk `{id}` at byte {offset} claims {bytes} bytes, more than can be there; the file is damaged"
    )]
    BadSize {
        /// The chunk's four letters.
        id: String,
        /// Where it begins in the file.
        offset: u64,
        /// The size that it claims.
        bytes: u64,
    },
    /// The file ends inside its header.
    #[error("the AVI file ends inside its header; copy or record it again")]
    Truncated,
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}
