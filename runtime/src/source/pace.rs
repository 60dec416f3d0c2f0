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
        let now = Instant::now();
        let wait = self.due_in(now);
        thread::sleep(wait.min(timeout));
        let due = wait <= timeout;
        if due {
            self.schedule(now);
        }
        due
    }

    /// Time from `now` until the next frame is due.
    fn due_in(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    /// Schedules the frame after the one that was asked for at `now`.
    fn schedule(&mut self, now: Instant) {
        let Some(period) = self.period else { return };
        let due = self.due.unwrap_or(now);
        // A source that fell behind goes on from now: a burst of late frames would help nobody.
        let late = now.saturating_duration_since(due) > period;
        self.due = Some(if late { now + period } else { due + period });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn everything_is_due_at_once_when_all_is_wanted() {
        let (mut pacer, now) = (Pacer::new(Pace::All, 1.0), Instant::now());
        for _ in 0..1000 {
            assert_eq!(pacer.due_in(now), Duration::ZERO);
            pacer.schedule(now);
        }
        assert!(pacer.wait(Duration::ZERO));
    }

    #[test]
    fn frames_are_due_a_period_apart_even_if_they_are_asked_for_late() {
        let (mut pacer, start) = (Pacer::new(Pace::Real, 50.0), Instant::now());
        pacer.schedule(start);
        assert_eq!(pacer.due_in(start), 20 * MS);
        pacer.schedule(start + 27 * MS);
        assert_eq!(pacer.due_in(start + 27 * MS), 13 * MS, "the lateness is made up");
    }

    #[test]
    fn a_source_that_fell_far_behind_does_not_burst() {
        let (mut pacer, start) = (Pacer::new(Pace::Real, 50.0), Instant::now());
        pacer.schedule(start);
        pacer.schedule(start + 400 * MS);
        assert_eq!(pacer.due_in(start + 400 * MS), 20 * MS);
    }

    #[test]
    fn waiting_takes_real_time_and_ends_at_its_timeout() {
        let mut pacer = Pacer::new(Pace::Real, 50.0);
        let start = Instant::now();
        assert!((0..6).all(|_| pacer.wait(Duration::from_secs(9))));
        assert!(start.elapsed() >= 99 * MS, "{:?}", start.elapsed());
        let mut slow = Pacer::new(Pace::Real, 0.1);
        assert!(slow.wait(Duration::ZERO));
        assert!(!slow.wait(MS), "the next one is due in ten seconds");
    }
}
