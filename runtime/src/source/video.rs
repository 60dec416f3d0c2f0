//! MJPEG AVI files as a recording.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Frame;
use super::avi::{AviFrame, AviReader};
use super::decode::{MjpegDecoder, check_size};
use super::error::{AviError, FrameError, SourceError};
use super::recorded::{Next, Playback, Recorded, Recording};

/// An MJPEG AVI file.
#[derive(Debug)]
pub(super) struct MjpegAvi {
    path: PathBuf,
    reader: AviReader<BufReader<File>>,
    decoder: MjpegDecoder,
    /// The compressed frame.
    bytes: Vec<u8>,
}

impl MjpegAvi {
    /// Opens the file; `None` when it is an AVI with another codec.
    pub(super) fn open(
        path: &Path,
        uri: &str,
        playback: Playback,
    ) -> Result<Option<Recorded<Self>>, SourceError> {
        let file = File::open(path).map_err(|e| SourceError::io(path, e))?;
        let reader = AviReader::open(BufReader::new(file))
            .map_err(|reason| SourceError::Avi { path: path.to_owned(), reason })?;
        let header = reader.header().clone();
        if !["MJPG", "JPEG"].iter().any(|codec| header.codec.eq_ignore_ascii_case(codec)) {
            return Ok(None);
        }
        let size = (header.width, header.height);
        check_size(size.0, size.1)
            .map_err(|reason| SourceError::Unusable { origin: uri.to_owned(), reason })?;
        let recording =
            Self { path: path.to_owned(), reader, decoder: MjpegDecoder::default(), bytes: Vec::new() };
        Ok(Some(Recorded::new(recording, uri, "MJPEG AVI".to_owned(), size, header.rate_hz, playback)))
    }
}

impl Recording for MjpegAvi {
    fn next(&mut self, frame: &mut Frame, _timeout: Duration) -> Result<Next, SourceError> {
        match self.reader.next_frame(&mut self.bytes) {
            Ok(AviFrame::Whole) => {
                Ok(self.decoder.decode(&self.bytes, frame).map_or_else(Next::Bad, |()| Next::Frame))
            }
            Ok(AviFrame::Cut) => Ok(Next::Bad(FrameError::NoEnd)),
            Ok(AviFrame::End) => Ok(Next::End),
            Err(AviError::Io(reason)) => Err(SourceError::Io { path: self.path.clone(), reason }),
            Err(reason) => Err(SourceError::Avi { path: self.path.clone(), reason }),
        }
    }

    fn rewind(&mut self) -> Result<(), SourceError> {
        self.reader.rewind();
        Ok(())
    }
}
