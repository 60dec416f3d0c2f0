//! `saccaded doctor`: what this machine is and what its user should know.

use std::io::Write as _;

use anyhow::Context as _;
use saccade_boards::{Report, Root};

/// Prints the report, as rows or as one JSON object.
///
/// # Errors
/// If a board profile is damaged, or stdout is closed.
pub(crate) fn run(json: bool) -> anyhow::Result<()> {
    let report = Report::collect(&Root::system())?;
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
    std::io::stdout().write_all(text.as_bytes()).context("stdout cannot be written")
}
