//! A V4L2 camera as a source.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::decode::{MjpegDecoder, elapsed_ns};
use super::super::error::{FrameError, SourceError};
use super::super::uri::{Query, SourceOptions};
use super::super::{Description, Frame, Pace, Read, Source};
use super::device::{Agreed, Delivered, Device, Request, fourcc};
use super::direct::{DirectStream, Raw};
use super::list::stable_name;
use super::threaded::{self, ThreadedStream};
use crate::picture::Picture;

/// A camera that is open, or was until it went away.
pub(super) struct Camera {
    description: Description,
    /// The name by which it is found again.
    identity: PathBuf,
    request: Request,
    agreed: Agreed,
    stream: Option<Stream>,
    decoder: MjpegDecoder,
    /// Whether pixels stay as the camera delivers them.
    raw: bool,
    seq: u64,
}

enum Stream {
    Nokhwa(ThreadedStream),
    Direct(DirectStream),
}

impl Stream {
    /// How frames come from the driver, in words.
    fn way(&self) -> &'static str {
        match self {
            Self::Nokhwa(_) => "through nokhwa",
            Self::Direct(_) => "read directly",
        }
    }
}

impl Camera {
    pub(super) fn open(node: &str, query: &Query, options: &SourceOptions) -> Result<Self, SourceError> {
        query.allow(&["width", "height", "rate", "pace"])?;
        if query.pace()? == Some(Pace::All) {
            return Err(SourceError::BadOption {
                uri: query.uri.clone(),
                option: "pace",
                value: "all".to_owned(),
                expected: "`real`, which a camera always is, or nothing",
            });
        }
        let request = Request {
            width: query.width()?.or(options.width),
            height: query.height()?.or(options.height),
            rate_hz: query.rate_hz()?.or(options.rate_hz),
        };
        let device = Device::open(Path::new(node))?;
        let identity = stable_name(Path::new("/"), &device.node).unwrap_or_else(|| PathBuf::from(node));
        let card = device.card.clone();
        let (agreed, stream) = start(device, &request)?;
        let format = fourcc(agreed.format).escape_ascii().to_string();
        let description = Description {
            uri: query.uri.clone(),
            kind: format!("camera {card}, {format}, {}", stream.way()),
            width: agreed.width,
            height: agreed.height,
            rate_hz: agreed.rate_hz(),
            pace: Pace::Real,
            live: true,
        };
        log::info!(
            "camera={} card={card:?} format={format} width={} height={} rate_hz={:?} {}",
            identity.display(),
            agreed.width,
            agreed.height,
            agreed.rate_hz(),
            stream.way(),
        );
        let decoder = MjpegDecoder::default();
        let (stream, raw) = (Some(stream), options.raw);
        Ok(Self { description, identity, request, agreed, stream, decoder, raw, seq: 0 })
    }
}

/// Agrees on a format and starts to stream, through nokhwa where that can.
fn start(device: Device, request: &Request) -> Result<(Agreed, Stream), SourceError> {
    let agreed = device.agree(request)?;
    let Some(format) = threaded::request(&agreed) else {
        return Ok((agreed, Stream::Direct(DirectStream::start(device)?)));
    };
    let node = device.node.clone();
    match ThreadedStream::start(device, format) {
        Ok(stream) => Ok((agreed, Stream::Nokhwa(stream))),
        Err(error @ SourceError::Vanished { .. }) => Err(error),
        Err(error) => {
            log::warn!("node={} reading it directly, since nokhwa does not: {error}", node.display());
            let device = Device::open(&node)?;
            let agreed = device.agree(request)?;
            Ok((agreed, Stream::Direct(DirectStream::start(device)?)))
        }
    }
}

impl Source for Camera {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Read, SourceError> {
        let origin = || self.description.uri.clone();
        let Some(stream) = self.stream.as_mut() else {
            return Err(SourceError::Vanished { origin: origin() });
        };
        let (agreed, decoder, keep, seq) = (&self.agreed, &mut self.decoder, self.raw, &mut self.seq);
        let look = |raw: Raw| {
            *seq += raw.step;
            frame.seq = *seq - 1;
            frame.capture_ns = raw.capture_ns;
            if raw.damaged {
                return Err(FrameError::Damaged);
            }
            let Delivered::Raw(format) = agreed.format else { return decoder.decode(raw.bytes, frame) };
            let start = Instant::now();
            let (width, height) = (agreed.width as usize, agreed.height as usize);
            let picture = Picture { bytes: raw.bytes, format, width, height, stride: agreed.stride };
            if keep { frame.take_raw(picture) } else { frame.take_rgb(picture) }?;
            frame.decode_ns = elapsed_ns(start);
            Ok(())
        };
        let looked = match stream {
            Stream::Nokhwa(stream) => stream.next(timeout, look),
            Stream::Direct(stream) => stream.next(timeout, look),
        };
        match looked? {
            None => Ok(Read::Timeout),
            Some(Ok(())) => Ok(Read::Frame),
            Some(Err(reason)) => Err(SourceError::BadFrame { origin: origin(), seq: self.seq - 1, reason }),
        }
    }

    fn reopen(&mut self) -> Result<(), SourceError> {
        // The old one must be closed first: a camera has one stream.
        self.stream = None;
        let device = Device::open(&self.identity)?;
        let (agreed, stream) = start(device, &self.request)?;
        if (agreed.width, agreed.height) != (self.agreed.width, self.agreed.height) {
            log::warn!("camera={} has come back as {agreed:?}", self.identity.display());
        }
        (self.agreed, self.stream) = (agreed, Some(stream));
        Ok(())
    }
}
