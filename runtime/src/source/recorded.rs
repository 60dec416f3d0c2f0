//! What every recorded source has in common: its pace, its repeats, its numbering, and when to give up.

use std::time::Duration;

use super::error::{FrameError, SourceError};
use super::pace::Pacer;
use super::uri::{Query, Repeat, SourceOptions};
use super::{Description, Frame, Pace, Read, Source, monotonic_ns};

/// Frames a second of recordings that do not say.
pub(super) const DEFAULT_RATE_HZ: f64 = 30.0;

/// The options that all recorded sources share, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Playback {
    pub(super) pace: Pace,
    pub(super) repeat: Repeat,
    pub(super) rate_hz: Option<f64>,
}

impl Playback {
    pub(super) fn new(query: &Query, options: &SourceOptions) -> Result<Self, SourceError> {
        Ok(Self {
            pace: query.pace()?.unwrap_or(options.pace),
            repeat: query.repeat()?.unwrap_or(options.repeat),
            rate_hz: query.rate_hz()?.or(options.rate_hz),
        })
    }
}

/// The next thing in a recording.
#[derive(Debug)]
pub(super) enum Next {
    /// The frame's size, pixels and decode time were filled.
    Frame,
    /// This one is damaged; the next one may be good.
    Bad(FrameError),
    /// Nothing came within the time.
    Timeout,
    /// The recording is over.
    End,
    /// The recording is over before its time.
    Broken(SourceError),
}

/// Frames in a row that can be read again from the first one.
pub(super) trait Recording: Send {
    /// Fills size, pixels and decode time of `frame`.
    fn next(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Next, SourceError>;

    /// Back to the first frame.
    fn rewind(&mut self) -> Result<(), SourceError>;
}

/// A recording, played.
pub(super) struct Recorded<R> {
    description: Description,
    recording: R,
    pacer: Pacer,
    repeat: Repeat,
    /// The next frame has been waited for.
    due: bool,
    ended: bool,
    /// It has been said that the recording is broken.
    said_broken: bool,
    seq: u64,
    /// Frames of this pass.
    good: u64,
    bad: u64,
    last_reason: Option<FrameError>,
}

impl<R: Recording> Recorded<R> {
    /// Plays `recording`, of this size and with this many frames a second by itself.
    pub(super) fn new(
        recording: R,
        uri: &str,
        kind: String,
        (width, height): (u32, u32),
        own_rate_hz: Option<f64>,
        playback: Playback,
    ) -> Self {
        let rate_hz = playback.rate_hz.or(own_rate_hz).unwrap_or(DEFAULT_RATE_HZ);
        let pace = playback.pace;
        let uri = uri.to_owned();
        let description = Description { uri, kind, width, height, rate_hz: Some(rate_hz), pace, live: false };
        let pacer = Pacer::new(pace, rate_hz);
        Self {
            description,
            recording,
            pacer,
            repeat: playback.repeat,
            due: false,
            ended: false,
            said_broken: false,
            seq: 0,
            good: 0,
            bad: 0,
            last_reason: None,
        }
    }

    /// Ends a pass; true if there is another one. A pass in which nothing was good is an error: repeating it would be
    /// of no use.
    fn begin_again(&mut self) -> Result<bool, SourceError> {
        let (good, bad) = (std::mem::take(&mut self.good), std::mem::take(&mut self.bad));
        match (good, self.last_reason.take()) {
            (0, Some(reason)) => {
                return Err(SourceError::AllBad {
                    origin: self.description.uri.clone(),
                    frames: bad,
                    reason,
                });
            }
            (0, None) => return Err(SourceError::NoFrames { path: (&self.description.uri).into() }),
            _ => {}
        }
        self.ended = !self.repeat.again();
        if !self.ended {
            self.recording.rewind()?;
        }
        Ok(!self.ended)
    }
}

impl<R: Recording> Source for Recorded<R> {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Read, SourceError> {
        if self.ended {
            return Ok(Read::End);
        }
        self.due = self.due || self.pacer.wait(timeout);
        if !self.due {
            return Ok(Read::Timeout);
        }
        frame.capture_ns = monotonic_ns();
        loop {
            match self.recording.next(frame, timeout)? {
                Next::Timeout => return Ok(Read::Timeout),
                Next::Frame => {
                    frame.seq = self.seq;
                    (self.seq, self.good, self.due) = (self.seq + 1, self.good + 1, false);
                    return Ok(Read::Frame);
                }
                Next::Bad(reason) => {
                    let seq = self.seq;
                    (self.seq, self.bad, self.due) = (seq + 1, self.bad + 1, false);
                    self.last_reason = Some(reason.clone());
                    return Err(SourceError::BadFrame { origin: self.description.uri.clone(), seq, reason });
                }
                Next::End if self.begin_again()? => {}
                Next::End => return Ok(Read::End),
                Next::Broken(error) if !self.begin_again()? => return Err(error),
                Next::Broken(error) if self.said_broken => log::debug!("{error}"),
                Next::Broken(error) => {
                    self.said_broken = true;
                    log::warn!("{error}");
                }
            }
        }
    }
}
