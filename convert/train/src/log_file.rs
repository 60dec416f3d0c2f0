//! One JSON object a line: what a run measured, step by step.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The log of one run, appended to, and its progress bar.
pub struct RunLog {
    path: PathBuf,
    file: File,
    stage: &'static str,
    start: Instant,
    bar: ProgressBar,
}

impl RunLog {
    /// Opens `log.jsonl` in `out` and shows a bar of `steps`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn open(out: &Path, stage: &'static str, steps: usize) -> Result<RunLog> {
        std::fs::create_dir_all(out).map_err(Error::file(out))?;
        let path = out.join("log.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file(&path))?;
        let bar = ProgressBar::new(steps as u64);
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(stage);
        Ok(RunLog { path, file, stage, start: Instant::now(), bar })
    }

    /// Seconds since the run began.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Moves the bar.
    pub fn at(&self, step: usize, message: String) {
        self.bar.set_position(step as u64);
        self.bar.set_message(message);
    }

    /// Appends one line; `stage` and `seconds` are added.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn line(&mut self, fields: Value) -> Result<()> {
        let mut all = Map::new();
        all.insert("stage".into(), self.stage.into());
        all.insert("seconds".into(), Value::from((self.seconds() * 10.0).round() / 10.0));
        if let Value::Object(fields) = fields {
            all.extend(fields);
        }
        writeln!(self.file, "{}", Value::Object(all)).map_err(Error::file(&self.path))
    }
}
