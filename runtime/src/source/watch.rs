//! The stall watchdog: tells a source that gives nothing from one that merely takes its time.
//!
//! It has no thread and no clock of its own. Whoever is awake calls [`Watch::check`] with the monotonic time: the
//! capture loop between two reads, and anybody who asks for the counters, so that a loop that is stuck inside a
//! driver is noticed too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A source is stalled after this many frame periods without a frame …
const PERIODS: f64 = 3.0;
/// … but never sooner than this.
const FLOOR_NS: u64 = 500_000_000;
/// A source that was just opened has this long for its first frame: cameras set their exposure first.
const FIRST_FRAME_NS: u64 = 3_000_000_000;
/// Stands for "not watched".
const PAUSED: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Watch {
    limit_ns: u64,
    /// When the next frame must be there at the latest.
    deadline_ns: AtomicU64,
    /// Whether this stall has been counted.
    stalled: AtomicBool,
    stalls: AtomicU64,
}

impl Watch {
    /// A watch over a source of this rate that was opened at `now_ns`.
    pub(super) fn new(rate_hz: Option<f64>, now_ns: u64) -> Self {
        let watch = Self {
            limit_ns: stall_after_ns(rate_hz),
            deadline_ns: AtomicU64::new(PAUSED),
            stalled: AtomicBool::new(false),
            stalls: AtomicU64::new(0),
        };
        watch.opened(now_ns);
        watch
    }

    /// The source was opened (again) just now.
    pub(super) fn opened(&self, now_ns: u64) {
        self.deadline_ns.store(now_ns + self.limit_ns.max(FIRST_FRAME_NS), Relaxed);
        self.stalled.store(false, Relaxed);
    }

    /// A good frame came just now.
    pub(super) fn progress(&self, now_ns: u64) {
        self.deadline_ns.store(now_ns + self.limit_ns, Relaxed);
        self.stalled.store(false, Relaxed);
    }

    /// The source is not being read: nothing to watch until the next progress.
    pub(super) fn pause(&self) {
        self.deadline_ns.store(PAUSED, Relaxed);
    }

    /// Whether the source is stalled; the first one to see a stall counts it.
    pub(super) fn check(&self, now_ns: u64) -> bool {
        let late = now_ns > self.deadline_ns.load(Relaxed);
        if late && !self.stalled.swap(true, Relaxed) {
            self.stalls.fetch_add(1, Relaxed);
        }
        late
    }

    pub(super) fn stalls(&self) -> u64 {
        self.stalls.load(Relaxed)
    }
}

/// How long a source of this rate may be silent.
fn stall_after_ns(rate_hz: Option<f64>) -> u64 {
    let periods = rate_hz.map_or(0.0, |hz| PERIODS / hz);
    let ns = std::time::Duration::try_from_secs_f64(periods).map_or(0, |d| d.as_nanos());
    u64::try_from(ns).unwrap_or(FLOOR_NS).max(FLOOR_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_limit_is_three_periods_and_at_least_half_a_second() {
        for (rate, ms) in
            [(None, 500), (Some(30.0), 500), (Some(6.0), 500), (Some(2.0), 1500), (Some(0.1), 30_000)]
        {
            assert_eq!(stall_after_ns(rate).div_ceil(MS), ms, "{rate:?}");
        }
    }

    #[test]
    fn ten_thousand_stalls_are_all_seen_once_and_in_time() {
        let (mut now, watch) = (0, Watch::new(Some(30.0), 0));
        for stall in 1..=10_000 {
            now += 33 * MS;
            watch.progress(now);
            assert!(!watch.check(now + 500 * MS), "half a second is not too long");
            assert!(watch.check(now + 500 * MS + 1));
            assert!(watch.check(now + 900 * MS));
            assert_eq!(watch.stalls(), stall);
            now += 1000 * MS;
        }
    }

    #[test]
    fn a_million_jittered_frames_raise_no_alarm() {
        let (mut now, watch) = (0, Watch::new(Some(10.0), 0));
        let mut state = 1u32;
        for _ in 0..1_000_000 {
            // Intervals from 1 to 500 ms, from a small generator (Numerical Recipes).
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            now += u64::from(state >> 16) % 500 * MS + MS;
            assert!(!watch.check(now));
            watch.progress(now);
        }
        assert_eq!(watch.stalls(), 0);
    }

    #[test]
    fn the_first_frame_has_three_seconds_and_a_pause_has_for_ever() {
        let watch = Watch::new(Some(30.0), 0);
        assert!(!watch.check(2999 * MS));
        assert!(watch.check(3001 * MS));
        watch.opened(4000 * MS);
        assert!(!watch.check(4001 * MS));
        watch.pause();
        assert!(!watch.check(u64::MAX - 1));
        watch.progress(5000 * MS);
        assert!(watch.check(6000 * MS));
        assert_eq!(watch.stalls(), 2);
    }
}
