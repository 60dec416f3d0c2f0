//! The latest-frame slot: one frame between a camera and whoever looks at it.
//!
//! Three frames exist: the writer fills one, the slot holds one, the reader looks at one. Handing over swaps two of
//! them under a lock that is held for the swap alone, so neither side ever waits for the other's work, nothing is
//! copied, and after each of the three has seen the picture's size nothing is allocated.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::SourceError;
use super::{Frame, monotonic_ns};

/// What became of a [`FrameSlot::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The frame was filled with the newest one.
    Frame {
        /// Time since it was taken by the camera.
        age: Duration,
        /// Frames that were replaced unread since the last one that was taken.
        dropped: u64,
    },
    /// Nothing new came within the time.
    Timeout,
    /// There will be no more frames.
    End,
}

/// The newest frame of a source, and whether anybody has taken it yet.
#[derive(Debug, Default)]
pub struct FrameSlot {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    frame: Frame,
    unread: bool,
    /// Nobody reads any more.
    closed: bool,
    /// Nobody writes any more.
    ended: bool,
    /// Why, if it was not the end of the source; handed out once.
    error: Option<SourceError>,
    /// Replaced unread, in all and since the last take.
    dropped: u64,
    dropped_since: u64,
    last_age: Option<Duration>,
}

impl FrameSlot {
    /// An empty slot.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock can panic half-way, so a poisoned lock protects a whole value.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves `frame` as the newest one; an unread one is dropped and counted. `frame` gets a used buffer back.
    ///
    /// False when nobody reads any more.
    pub fn publish(&self, frame: &mut Frame) -> bool {
        let mut inner = self.lock();
        if inner.closed {
            return false;
        }
        if inner.unread {
            inner.dropped += 1;
            inner.dropped_since += 1;
        }
        self.hand_over(inner, frame);
        true
    }

    /// As [`FrameSlot::publish`], but waits until the last frame was taken, so that every frame is read.
    ///
    /// False when nobody reads any more.
    pub fn publish_when_taken(&self, frame: &mut Frame) -> bool {
        let inner = self.lock();
        let inner = self
            .changed
            .wait_while(inner, |inner| inner.unread && !inner.closed)
            .unwrap_or_else(PoisonError::into_inner);
        if inner.closed {
            return false;
        }
        self.hand_over(inner, frame);
        true
    }

    fn hand_over(&self, mut inner: MutexGuard<'_, Inner>, frame: &mut Frame) {
        mem::swap(&mut inner.frame, frame);
        inner.unread = true;
        drop(inner);
        self.changed.notify_all();
    }

    /// Takes the newest frame, waiting at most `timeout` for one that has not been taken yet.
    ///
    /// A frame that was left before the source ended or failed is still handed out.
    ///
    /// # Errors
    /// The source has failed for good; said once, [`Taken::End`] from then on.
    pub fn take(&self, frame: &mut Frame, timeout: Duration) -> Result<Taken, SourceError> {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        loop {
            if inner.unread {
                mem::swap(&mut inner.frame, frame);
                inner.unread = false;
                let age = Duration::from_nanos(monotonic_ns().saturating_sub(frame.capture_ns));
                inner.last_age = Some(age);
                let dropped = mem::take(&mut inner.dropped_since);
                drop(inner);
                self.changed.notify_all();
                return Ok(Taken::Frame { age, dropped });
            }
            if let Some(error) = inner.error.take() {
                return Err(error);
            }
            if inner.ended || inner.closed {
                return Ok(Taken::End);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Taken::Timeout);
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says that no more frames will come, and why if it is not the end of the source.
    pub fn end(&self, error: Option<SourceError>) {
        let mut inner = self.lock();
        if !inner.ended {
            inner.ended = true;
            inner.error = error;
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Says that nobody will take frames any more; writers that wait are let go.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Frames that were replaced unread.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Age of the frame that was taken last, when it was taken.
    pub fn last_age(&self) -> Option<Duration> {
        self.lock().last_age
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(10);

    fn numbered(seq: u64) -> Frame {
        Frame { seq, capture_ns: monotonic_ns(), ..Frame::default() }
    }

    #[test]
    fn the_newest_frame_wins_and_the_others_are_counted() {
        let (slot, mut out) = (FrameSlot::new(), Frame::default());
        for seq in 0..5 {
            assert!(slot.publish(&mut numbered(seq)));
        }
        let Taken::Frame { dropped, .. } = slot.take(&mut out, SOON).unwrap() else { panic!() };
        assert_eq!((out.seq, dropped, slot.dropped()), (4, 4, 4));
        assert_eq!(slot.take(&mut out, SOON).unwrap(), Taken::Timeout);
        slot.publish(&mut numbered(5));
        let Taken::Frame { dropped, .. } = slot.take(&mut out, SOON).unwrap() else { panic!() };
        assert_eq!((out.seq, dropped, slot.dropped()), (5, 0, 4));
    }

    #[test]
    fn an_age_counts_from_the_capture() {
        let (slot, mut out) = (FrameSlot::new(), Frame::default());
        let mut old = Frame { capture_ns: monotonic_ns() - 50_000_000, ..Frame::default() };
        slot.publish(&mut old);
        let Taken::Frame { age, .. } = slot.take(&mut out, SOON).unwrap() else { panic!() };
        assert!(age >= Duration::from_millis(50) && age < LONG, "{age:?}");
        assert_eq!(slot.last_age(), Some(age));
    }

    #[test]
    fn three_buffers_go_round_and_none_is_made() {
        let slot = FrameSlot::new();
        let (mut written, mut read) = (Frame::default(), Frame::default());
        let mut seen = std::collections::HashSet::new();
        for seq in 0..1000 {
            written.resize(32, 32);
            written.seq = seq;
            seen.insert(written.rgb.as_ptr() as usize);
            slot.publish(&mut written);
            if seq % 3 != 0 {
                slot.take(&mut read, SOON).unwrap();
                assert_eq!(read.seq, seq);
            }
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn the_last_frame_and_then_the_error_and_then_the_end_are_handed_out() {
        let (slot, mut out) = (FrameSlot::new(), Frame::default());
        slot.publish(&mut numbered(7));
        slot.end(Some(SourceError::Vanished { origin: "x".to_owned() }));
        slot.end(None);
        assert!(matches!(slot.take(&mut out, SOON), Ok(Taken::Frame { .. })));
        assert!(matches!(slot.take(&mut out, SOON), Err(SourceError::Vanished { .. })));
        assert_eq!(slot.take(&mut out, SOON).unwrap(), Taken::End);
    }

    #[test]
    fn a_writer_that_waits_loses_nothing_and_is_let_go_when_the_reader_leaves() {
        let slot = Arc::new(FrameSlot::new());
        let writer = thread::spawn({
            let slot = Arc::clone(&slot);
            move || (0..).take_while(|&seq| slot.publish_when_taken(&mut numbered(seq))).count()
        });
        let mut out = Frame::default();
        for seq in 0..500 {
            assert!(matches!(slot.take(&mut out, LONG).unwrap(), Taken::Frame { dropped: 0, .. }));
            assert_eq!(out.seq, seq);
        }
        slot.close();
        assert!(writer.join().unwrap() >= 500);
        assert_eq!(slot.dropped(), 0);
        assert!(!slot.publish(&mut out));
    }

    #[test]
    fn a_reader_that_waits_is_woken_by_the_frame() {
        let slot = Arc::new(FrameSlot::new());
        let reader = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                let start = Instant::now();
                let taken = slot.take(&mut Frame::default(), LONG).unwrap();
                (taken, start.elapsed())
            }
        });
        thread::sleep(SOON);
        slot.publish(&mut numbered(1));
        let (taken, waited) = reader.join().unwrap();
        assert!(matches!(taken, Taken::Frame { .. }));
        assert!(waited < LONG);
    }
}
