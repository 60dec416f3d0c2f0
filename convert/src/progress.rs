//! How far a long job is: a bar on a terminal, a plain line per tenth anywhere else, always on stderr.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// What a program shows of its progress.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    view: View,
}

#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    /// Tenths already reported.
    Lines(u64),
    Silent,
}

impl Progress {
    /// Starts a job of `total` units; `what` it does stands before the bar. Bytes are shown with their unit.
    #[must_use]
    pub fn new(what: &'static str, total: u64) -> Self {
        let view = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes} {eta} {msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what);
            View::Bar(bar)
        } else {
            View::Lines(0)
        };
        Self { what, total, done: 0, view }
    }

    /// As [`Progress::new`] for a job counted in `unit`s instead of bytes.
    #[must_use]
    pub fn counted(what: &'static str, total: u64) -> Self {
        let progress = Self::new(what, total);
        if let View::Bar(bar) = &progress.view
            && let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {eta} {msg}")
        {
            bar.set_style(style);
        }
        progress
    }

    /// A job that nobody watches.
    #[must_use]
    pub fn silent() -> Self {
        Self { what: "", total: 0, done: 0, view: View::Silent }
    }

    /// Reports `units` more, the last of them on `item`.
    #[allow(clippy::print_stderr, reason = "progress belongs on stderr")]
    pub fn advance(&mut self, units: u64, item: &str) {
        self.done = self.done.saturating_add(units);
        match &mut self.view {
            View::Bar(bar) => {
                bar.set_position(self.done);
                bar.set_message(item.to_owned());
            }
            View::Lines(tenths) => {
                let now = self.done.saturating_mul(10).checked_div(self.total).unwrap_or(10);
                if now > *tenths {
                    *tenths = now;
                    eprintln!("{}: {} of {} ({}%) {item}", self.what, self.done, self.total, now * 10);
                }
            }
            View::Silent => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}
