//! Held-out episodes: what a model has not seen in training, frames with the truth beside them.
//!
//! A folder of pairs: `NAME.png`, the frames of an episode side by side, and `NAME.json` with `instruction` and `steps`,
//! each step with `state`, `executed` (actions until the next frame), `chunk` (the expert's actions from here on),
//! `caption` and `qa`.

use std::path::{Path, PathBuf};

use image::{ImageReader, Limits, RgbImage};
use saccade::config::UnimodalConfig;
use saccade::tokenize::Picture;
use serde::Deserialize;

use crate::error::{ConvertError, Result, io};

/// One episode.
#[derive(Debug)]
pub struct Episode {
    /// Its `.json` file.
    pub path: PathBuf,
    /// What the robot was told.
    pub instruction: String,
    /// Its decision steps, oldest first; at least one.
    pub steps: Vec<Step>,
    frames: Vec<RgbImage>,
}

/// One decision step.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// `[state dims]`
    pub state: Vec<f32>,
    /// `[k, action dims]`: what was carried out until the next frame.
    pub executed: Vec<Vec<f32>>,
    /// `[steps, action dims]`: what the expert wanted from here on.
    pub chunk: Vec<Vec<f32>>,
    /// The true caption.
    pub caption: String,
    /// Questions with their true answers.
    pub qa: Vec<[String; 2]>,
}

#[derive(Deserialize)]
struct RawEpisode {
    instruction: String,
    steps: Vec<Step>,
}

impl Episode {
    /// The frame of each step.
    pub fn frames(&self) -> impl Iterator<Item = Picture<'_>> {
        self.frames
            .iter()
            .map(|frame| Picture::rgb(frame.as_raw(), frame.width() as usize, frame.height() as usize))
    }

    fn read(json: &Path, model: &UnimodalConfig) -> Result<Self> {
        let refuse = |path: &Path, reason: String| ConvertError::Refused { path: path.into(), reason };
        let text = std::fs::read(json).map_err(io(json))?;
        let RawEpisode { instruction, steps } = serde_json::from_slice(&text).map_err(|e| {
            refuse(json, format!("not a held-out episode: {e}; make the folder again with heldout.py"))
        })?;
        for (at, step) in steps.iter().enumerate() {
            step.check(model).map_err(|reason| {
                let hint = "make the folder again with heldout.py or name another with --data";
                refuse(json, format!("step {at}: {reason}; {hint}"))
            })?;
        }

        let png = json.with_extension("png");
        let mut reader = ImageReader::open(&png).map_err(io(&png))?;
        let mut limits = Limits::default();
        (limits.max_image_width, limits.max_image_height, limits.max_alloc) =
            (Some(1 << 18), Some(4096), Some(256 << 20));
        reader.limits(limits);
        let strip =
            reader.decode().map_err(|e| refuse(&png, format!("not a readable PNG: {e}")))?.into_rgb8();
        let (side, count) = (strip.height(), u32::try_from(steps.len()).unwrap_or(u32::MAX));
        if count == 0 || side.checked_mul(count) != Some(strip.width()) {
            let reason = format!(
                "{} × {side} pixels are not {count} square frames side by side, one for each step of the .json file",
                strip.width(),
            );
            return Err(refuse(&png, reason));
        }
        let frame = |i| image::imageops::crop_imm(&strip, i * side, 0, side, side).to_image();
        Ok(Self { path: json.into(), instruction, steps, frames: (0..count).map(frame).collect() })
    }
}

impl Step {
    /// Whether the numbers are as many as the model takes, and numbers at all.
    fn check(&self, model: &UnimodalConfig) -> std::result::Result<(), String> {
        let (state_dims, action) = (model.state.low.len(), &model.action);
        if self.state.len() != state_dims {
            return Err(format!("`state` has {} numbers, the model takes {state_dims}", self.state.len()));
        }
        if self.chunk.len() != action.steps {
            return Err(format!(
                "`chunk` has {} actions, the model predicts {}",
                self.chunk.len(),
                action.steps
            ));
        }
        if self.executed.len() > action.executed {
            let (found, most) = (self.executed.len(), action.executed);
            return Err(format!("`executed` has {found} actions, the model takes at most {most}"));
        }
        let rows = [("chunk", &self.chunk), ("executed", &self.executed)];
        for (name, row) in rows.into_iter().flat_map(|(name, rows)| rows.iter().map(move |row| (name, row))) {
            let (found, dims) = (row.len(), action.low.len());
            if found != dims {
                return Err(format!("an action of `{name}` has {found} numbers, the model's have {dims}"));
            }
        }
        let numbers = [&self.chunk, &self.executed].into_iter().flatten().chain([&self.state]);
        match numbers.flatten().find(|v| !v.is_finite()) {
            Some(v) => Err(format!("{v} is no finite number")),
            None => Ok(()),
        }
    }
}

/// Reads all episodes in `dir`, by name, for a model.
///
/// # Errors
/// [`ConvertError`] with the file and what is wrong with it: no folder, no episodes, damaged, or of other shapes than the
/// model's.
pub fn read_all(dir: &Path, model: &UnimodalConfig) -> Result<Vec<Episode>> {
    files(dir)?.iter().map(|json| Episode::read(json, model)).collect()
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        let reason = "there is no such folder of held-out episodes; name one with --data";
        return Err(ConvertError::Refused { path: dir.into(), reason: reason.into() });
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    if files.is_empty() {
        let reason = "it holds no held-out episodes (NAME.json with NAME.png); make them with heldout.py or name another folder with --data";
        return Err(ConvertError::Refused { path: dir.into(), reason: reason.into() });
    }
    files.sort();
    Ok(files)
}
