//! `cargo xtask bench`: the frame loop, measured by the daemon's own bench program.

use crate::Outcome;
use crate::step::Step;

pub(crate) fn run(args: &[String]) -> Outcome {
    // `--quiet`: with `--json` stdout is one object, and stderr is for what went wrong.
    Step::cargo("run --quiet --release -p saccaded -- bench").args(args).run()
}
