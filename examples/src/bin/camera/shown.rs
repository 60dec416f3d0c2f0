//! The newest published frame, for any number of readers at their own pace.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use saccade::source::CaptureState;

use crate::stats::Summary;

/// What view and page show of the newest published frame.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    /// Counts what was published; 0 before the first frame.
    pub(crate) number: u64,
    /// The picture, `[height, width, 3] u8`.
    pub(crate) rgb: Vec<u8>,
    /// Its width in pixels.
    pub(crate) width: u32,
    /// Its height in pixels.
    pub(crate) height: u32,
    /// What was asked.
    pub(crate) question: String,
    /// What the model said.
    pub(crate) text: String,
    /// One name per action dimension.
    pub(crate) action_names: Vec<String>,
    /// The predicted actions, `[steps, dims]`, as fractions of their ranges.
    pub(crate) action_units: Vec<f32>,
    /// The same as values.
    pub(crate) action: Vec<f32>,
    /// Number of the frame in its source.
    pub(crate) seq: u64,
    /// Age of the frame when the answer was there, in milliseconds.
    pub(crate) age_ms: f64,
    /// Frames dropped since the start.
    pub(crate) dropped: u64,
    /// The last few seconds.
    pub(crate) summary: Summary,
    /// Why no frame comes, or nothing.
    pub(crate) trouble: &'static str,
}

/// The newest frame, for any number of readers at their own pace.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    shown: Mutex<Shown>,
    changed: Condvar,
}

impl Latest {
    /// Shows something new.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Shown)) {
        let mut shown = self.lock();
        shown.number += 1;
        change(&mut shown);
        drop(shown);
        self.changed.notify_all();
    }

    /// Says why no frame comes; the next frame takes it back.
    pub(crate) fn waiting(&self, state: CaptureState) {
        let trouble = match state {
            CaptureState::Starting => "waiting for the first frame",
            CaptureState::Stalled => "the source has fallen silent",
            CaptureState::Reopening => "the source is away, trying to open it again",
            _ => return,
        };
        if self.read(|shown| shown.trouble != trouble) {
            self.update(|shown| shown.trouble = trouble);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        // Nothing under the lock panics half-way, so a poisoned one still holds a whole value.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the newest frame.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Shown) -> T) -> T {
        look(&self.lock())
    }

    /// Waits at most `timeout` for a frame other than `number`, and copies it; false if none came.
    pub(crate) fn wait_after(&self, number: u64, timeout: Duration, into: &mut Shown) -> bool {
        let shown = self.lock();
        let waited = self.changed.wait_timeout_while(shown, timeout, |shown| shown.number == number);
        let (shown, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if shown.number != number {
            into.clone_from(&shown);
        }
        shown.number != number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_wait_for_news_only() {
        let latest = Latest::default();
        let mut copy = Shown::default();
        assert!(!latest.wait_after(0, Duration::from_millis(1), &mut copy));
        latest.update(|shown| shown.seq = 9);
        assert!(latest.wait_after(0, Duration::from_millis(1), &mut copy));
        assert_eq!((copy.number, copy.seq), (1, 9));
        assert!(!latest.wait_after(1, Duration::from_millis(1), &mut copy));
    }

    #[test]
    fn trouble_is_news_once() {
        let latest = Latest::default();
        latest.waiting(CaptureState::Running);
        assert_eq!(latest.read(|shown| shown.number), 0);
        latest.waiting(CaptureState::Reopening);
        latest.waiting(CaptureState::Reopening);
        assert_eq!(latest.read(|shown| (shown.number, shown.trouble.contains("away"))), (1, true));
    }
}
