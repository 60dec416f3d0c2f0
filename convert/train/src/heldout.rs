//! The held-out sample under `examples/heldout`: unseen episodes, one JSON file and one strip of pictures each.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// One decision step.
#[derive(Debug, Clone, Deserialize)]
pub struct HeldOutStep {
    /// Hand x, y, z in metres and the gripper's opening.
    pub state: Vec<f32>,
    /// Actions executed until the next frame, `[k, 4]`.
    pub executed: Vec<Vec<f32>>,
    /// What the expert would do, `[8, 4]`.
    pub chunk: Vec<Vec<f32>>,
    /// What is happening.
    pub caption: String,
    /// Questions with their answers.
    pub qa: Vec<(String, String)>,
}

/// The JSON file; fields that evaluation does not need are left out.
#[derive(Debug, Deserialize)]
struct Raw {
    task: String,
    instruction: String,
    steps: Vec<HeldOutStep>,
}

/// One episode.
#[derive(Debug, Clone)]
pub struct HeldOutEpisode {
    /// The simulator's task.
    pub task: String,
    /// What the arm was told to do.
    pub instruction: String,
    /// Its steps.
    pub steps: Vec<HeldOutStep>,
    /// One frame a step, `[64, 64, 3] u8`.
    pub frames: Vec<Vec<u8>>,
}

/// Reads all episodes of `dir`, by file name.
///
/// # Errors
/// If there is none, or a strip does not have one frame a step.
pub fn read(dir: &Path) -> Result<Vec<HeldOutEpisode>> {
    let entries = std::fs::read_dir(dir).map_err(Error::file(dir))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(Error::file(dir))?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "json") && p.with_extension("png").is_file());
    paths.sort();
    if paths.is_empty() {
        return Err(Error::content(
            dir,
            "holds no episode (a .json beside a .png); give the folder of held-out data",
        ));
    }
    paths.iter().map(|p| episode(p)).collect()
}

fn episode(path: &Path) -> Result<HeldOutEpisode> {
    let raw = std::fs::read(path).map_err(Error::file(path))?;
    let raw: Raw = serde_json::from_slice(&raw).map_err(|e| Error::content(path, e.to_string()))?;
    let png = path.with_extension("png");
    let bytes = std::fs::read(&png).map_err(Error::file(&png))?;
    let strip = image::load_from_memory(&bytes).map_err(|e| Error::content(&png, e.to_string()))?.to_rgb8();
    let side = usize::try_from(strip.height()).unwrap_or(0);
    let (width, n) = (usize::try_from(strip.width()).unwrap_or(0), raw.steps.len());
    if side != 64 || width != side * n {
        let what = format!("is {width} × {side} pixels, {n} steps want {} × 64", 64 * n);
        return Err(Error::content(&png, what));
    }
    let pixels = strip.into_raw();
    let frame = |i: usize| {
        let row = |y: usize| &pixels[(y * width + i * side) * 3..][..side * 3];
        (0..side).flat_map(row).copied().collect()
    };
    Ok(HeldOutEpisode {
        task: raw.task,
        instruction: raw.instruction,
        frames: (0..n).map(frame).collect(),
        steps: raw.steps,
    })
}
