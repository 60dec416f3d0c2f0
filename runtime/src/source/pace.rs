//! When the next frame of a recorded source is due.

use std::thread;
use std::time::{Duration, Instant};

/// How fast a recorded source is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// Every frame, as fast as the reader takes them.
    #[default]
    All,
    /// At the recorded rate; frames that nobody took in time are dropped.
    Real,
}

/// Holds frames back until they are due.
#[derive(Debug)]
pub(super) struct Pacer {
    period: Option<Duration>,
    due: Option<Instant>,
}

impl Pacer {
    /// A pacer of `rate_hz` frames a second; with [`Pace::All`] every frame is due at once.
    pub(super) fn new(pace: Pace, rate_hz: f64) -> Self {
        let period = (pace == Pace::Real).then(|| Duration::from_secs_f64(1.0 / rate_hz));
        Self { period, due: None }
    }

    /// Waits at most `timeout`; true when the next frame is due, which also schedules the one after it.
    pub(super) fn wait(&mut self, timeout: Duration) -> bool {
        let Some(period) = self.period else { return true };
        let now = Instant::now();
        let due = self.due.unwrap_or(now);
        let wait = due.saturating_duration_since(now);
        if wait > timeout {
            thread::sleep(timeout);
            return false;
        }
        thread::sleep(wait);
        // A source that fell behind goes on from now: a burst of late frames would help nobody.
        let late = now.saturating_duration_since(due) > period;
        self.due = Some(if late { now + period } else { due + period });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_due_at_once_when_all_is_wanted() {
        let mut pacer = Pacer::new(Pace::All, 1.0);
        let start = Instant::now();
        assert!((0..1000).all(|_| pacer.wait(Duration::ZERO)));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn real_time_takes_real_time_and_times_out_before_it_is_due() {
        let mut pacer = Pacer::new(Pace::Real, 50.0);
        let start = Instant::now();
        for _ in 0..6 {
            assert!(pacer.wait(Duration::from_secs(1)));
        }
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
        assert!(!pacer.wait(Duration::ZERO), "the next one is due in 20 ms");
    }

    #[test]
    fn a_late_source_does_not_burst() {
        let mut pacer = Pacer::new(Pace::Real, 20.0);
        assert!(pacer.wait(Duration::ZERO));
        thread::sleep(Duration::from_millis(400));
        assert!(pacer.wait(Duration::ZERO));
        assert!(!pacer.wait(Duration::ZERO), "the frames missed meanwhile must not come at once");
    }
}
