//! From nothing to the first token, in a new process.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use saccade::config::WEIGHTS_FILE;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::pages::{self, Pages};
use saccade::session::Session;
use serde::{Deserialize, Serialize};

use super::engine::{median, options, prompt, read};
use crate::metrics::anonymous_bytes;

/// Tokens of the prompt after which memory is looked at.
const PROMPT: usize = 576;
/// Tokens of the prompt before the first token: a task prefix, or as many tokens of text.
const FIRST: usize = 4;

/// What one new process measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct First {
    /// From opening the bundle to the most likely token after a prefix.
    pub(super) ms: f64,
    /// Share of the mapping that lies in huge pages.
    pub(super) huge: f64,
    /// Anonymous memory after a long prompt, at its highest: nothing is given back before. 0 where the system does not say.
    pub(super) anon_bytes: i64,
    /// Of which keys and values.
    pub(super) arena_bytes: u64,
}

impl First {
    /// What the process itself does.
    pub(super) fn measure(dir: &Path, threads: usize, small_pages: bool) -> anyhow::Result<Self> {
        let start = Instant::now();
        let pages = if small_pages { Pages::Small } else { Pages::Huge };
        let model = Model::open_in(dir, &EngineOptions { threads, ..EngineOptions::default() }, pages)?;
        let mut session = Session::new(&model, &options(PROMPT, 1))?;
        read(&mut session, &prompt(&model, FIRST))?;
        let ms = super::ms(start.elapsed());
        #[allow(clippy::cast_precision_loss, reason = "a share")]
        let huge = model.huge_bytes().unwrap_or(0) as f64 / model.mapped().len().max(1) as f64;
        read(&mut session, &prompt(&model, PROMPT))?;
        Ok(Self {
            ms,
            huge,
            anon_bytes: anonymous_bytes().unwrap_or(0),
            arena_bytes: session.kv_bytes() as u64,
        })
    }

    /// The median of some new processes; `--cold` among `flags` drops the weights from the page cache before each.
    pub(super) fn median(dir: &Path, threads: usize, flags: &[&str], times: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program cannot be found again")?;
        let mut all = Vec::new();
        for _ in 0..times {
            if flags.contains(&"--cold") {
                let path = dir.join(WEIGHTS_FILE);
                let file =
                    File::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
                pages::drop_cached(&file, 0);
            }
            let output = Command::new(&program)
                .args(["bench", "--first-token", "--threads", &threads.to_string(), "--model"])
                .arg(dir)
                .args(flags.iter().filter(|flag| **flag != "--cold"))
                .output()
                .with_context(|| format!("{} cannot be started", program.display()))?;
            if !output.status.success() {
                bail!("a new process failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            all.push(
                serde_json::from_slice::<Self>(&output.stdout)
                    .context("a new process says something else")?,
            );
        }
        let ms = median(&all.iter().map(|first| first.ms).collect::<Vec<_>>());
        let last = all.pop().context("nothing was measured")?;
        Ok(Self { ms, ..last })
    }
}
