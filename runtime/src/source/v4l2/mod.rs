//! V4L2 cameras: which there are, and (with the feature `v4l2`) how they are read.
//!
//! nokhwa opens and reads them. Its faults, and who covers each:
//!
//! | fault of nokhwa 0.10.11 | covered by |
//! |---|---|
//! | chooses a format of its own, refuses rates that are no whole number | `device.rs` agrees on an exact format first; such rates are read by `direct.rs` |
//! | looks for grey pictures under a wrong name | `direct.rs` |
//! | lists metadata nodes and codecs | `list.rs` and `device.rs` by index and capabilities |
//! | waits for ever on a silent camera | `threaded.rs` waits on a second handle; before the first frame it stops the stream under nokhwa, so that it lets go |
//! | gives the driver's time as one of the wall clock | `threaded.rs` turns it back |
//! | gives no sequence numbers | nobody: frames are numbered as they arrive, so one that the driver lost leaves no gap (`direct.rs` has them) |
//! | keeps frames waiting in the driver's queue | `threaded.rs` takes each one out at once |
//! | hands over whole buffers, stale bytes included | `decode.rs` ends at the end marker, `pixels.rs` at the last row |
//! | says nothing of the driver's mark on damaged frames | `decode.rs` checks every JPEG; `direct.rs` sees the mark |
//! | panics when closing fails | caught on its thread |
//! | fails on raw Bayer sensors without a word | `device.rs` says what to use instead |

#[cfg(feature = "v4l2")]
mod abi;
#[cfg(feature = "v4l2")]
mod camera;
#[cfg(feature = "v4l2")]
mod device;
#[cfg(feature = "v4l2")]
mod direct;
mod list;
#[cfg(test)]
#[cfg(feature = "v4l2")]
mod tests;
#[cfg(feature = "v4l2")]
mod threaded;

use super::Source;
use super::error::SourceError;
use super::uri::{Query, SourceOptions};

pub use list::{CameraNode, list_cameras, list_video_nodes};

/// Opens a camera by its node.
#[cfg(feature = "v4l2")]
pub(super) fn open(
    node: &str,
    query: &Query,
    options: &SourceOptions,
) -> Result<Box<dyn Source>, SourceError> {
    Ok(Box::new(camera::Camera::open(node, query, options)?))
}

/// Opens a camera by its node.
#[cfg(not(feature = "v4l2"))]
pub(super) fn open(
    node: &str,
    query: &Query,
    _options: &SourceOptions,
) -> Result<Box<dyn Source>, SourceError> {
    query.allow(&["width", "height", "rate", "pace"])?;
    Err(SourceError::NoV4l2 { node: node.to_owned() })
}
