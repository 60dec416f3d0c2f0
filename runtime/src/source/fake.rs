//! A camera that fails on command, for the tests of everything that must survive one.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::error::{FrameError, SourceError};
use super::{Description, Frame, Pace, Read, Source, monotonic_ns};

/// What the fake does at one read.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A good frame.
    Good,
    /// A damaged frame.
    Bad,
    /// Silence, for this many reads.
    Silent(u32),
    /// Unplugged; opening it again fails this often.
    Vanish(u32),
    /// Stuck inside the driver, deaf to timeouts, until the gate opens.
    Stuck,
    /// A bug.
    Panic,
}

/// A source that follows a script, then ends.
pub(super) struct Fake {
    description: Description,
    script: VecDeque<Step>,
    seq: u64,
    away: u32,
    /// The "device": an open file, so that a leak shows in the list of open files.
    node: PathBuf,
    device: Option<File>,
    pub(super) gate: Arc<Gate>,
}

/// Opens once.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        drop(self.changed.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
    }
}

impl Fake {
    /// A fake camera of 1,000 frames a second, whose device is the file `node`.
    pub(super) fn new(node: PathBuf, script: impl IntoIterator<Item = Step>) -> Self {
        let description = Description {
            uri: "fake://camera".to_owned(),
            kind: "fake".to_owned(),
            width: 8,
            height: 8,
            rate_hz: Some(1000.0),
            pace: Pace::Real,
            live: true,
        };
        let device = Some(File::create(&node).unwrap());
        let script = script.into_iter().collect();
        Self { description, script, seq: 0, away: 0, node, device, gate: Arc::default() }
    }

    pub(super) fn with_pace(mut self, pace: Pace) -> Self {
        self.description.pace = pace;
        self
    }
}

impl Source for Fake {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Read, SourceError> {
        let origin = || self.description.uri.clone();
        assert!(self.device.is_some(), "a vanished device is not read");
        match self.script.pop_front() {
            None => return Ok(Read::End),
            Some(Step::Good) => {
                frame.resize(8, 8);
                frame.rgb.fill(u8::try_from(self.seq % 256).unwrap());
                frame.capture_ns = monotonic_ns();
                frame.seq = self.seq;
                self.seq += 1;
                return Ok(Read::Frame);
            }
            Some(Step::Bad) => {
                self.seq += 1;
                // What a careless source leaves behind must never be published.
                frame.rgb.fill(255);
                return Err(SourceError::BadFrame {
                    origin: origin(),
                    seq: self.seq - 1,
                    reason: FrameError::NoEnd,
                });
            }
            Some(Step::Silent(reads)) => {
                if reads > 1 {
                    self.script.push_front(Step::Silent(reads - 1));
                }
                thread::sleep(timeout);
            }
            Some(Step::Vanish(away)) => {
                self.device = None;
                self.away = away;
                return Err(SourceError::Vanished { origin: origin() });
            }
            Some(Step::Stuck) => self.gate.wait(),
            Some(Step::Panic) => panic!("a bug in a driver"),
        }
        Ok(Read::Timeout)
    }

    fn reopen(&mut self) -> Result<(), SourceError> {
        self.device = None;
        if self.away > 0 {
            self.away -= 1;
            return Err(SourceError::Vanished { origin: self.description.uri.clone() });
        }
        self.device = Some(File::create(&self.node).unwrap());
        // A returning camera does not go on with the silence it was closed for.
        if matches!(self.script.front(), Some(Step::Silent(_))) {
            self.script.pop_front();
        }
        Ok(())
    }
}
