//! What two models are shown: files of text and pictures, read and held to what the models take.

use std::path::{Path, PathBuf};

use saccade::family::Model;
use saccade::source::{Frame, decode_picture};

use crate::compare::Given;
use crate::error::{ConvertError, Result, io};

/// Tokens of a window, where the user does not say and the model takes so many: llama-perplexity's.
const WINDOW: usize = 512;
/// Fewest tokens of a window.
const MIN_WINDOW: usize = 8;
/// Largest file of text or of a picture.
const MAX_BYTES: u64 = 64 << 20;

/// What both models are shown.
pub(in crate::compare) struct Shown {
    pub(super) texts: Vec<(PathBuf, Vec<u32>)>,
    pub(super) pictures: Vec<(PathBuf, Frame)>,
    pub(super) window: usize,
}

impl Shown {
    /// Reads every file, so that what is wrong with one is said before a model is converted.
    pub(in crate::compare) fn read(bundle: &Path, model: &Model, given: &Given) -> Result<Self> {
        let most = model.config().language().map_or(WINDOW, |c| c.max_positions);
        let window = given.window.unwrap_or_else(|| WINDOW.min(most));
        if !(MIN_WINDOW..=most).contains(&window) {
            let reason =
                format!("a window has {MIN_WINDOW} to {most} tokens here, not {window}; change --window");
            return Err(refuse(bundle, reason));
        }
        let texts = given.texts.iter().map(|path| Ok((path.clone(), text(model, path, window)?)));
        let pictures = given.images.iter().map(|path| Ok((path.clone(), picture(path)?)));
        Ok(Self { texts: texts.collect::<Result<_>>()?, pictures: pictures.collect::<Result<_>>()?, window })
    }
}

fn refuse(path: &Path, reason: String) -> ConvertError {
    ConvertError::Refused { path: path.into(), reason }
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let found = std::fs::metadata(path).map_err(io(path))?.len();
    if found > MAX_BYTES {
        return Err(refuse(
            path,
            format!("it has {found} bytes, at most {MAX_BYTES} are read; give a part of it"),
        ));
    }
    std::fs::read(path).map_err(io(path))
}

/// The tokens of a file, the begin token in front where the model has one.
fn text(model: &Model, path: &Path, window: usize) -> Result<Vec<u32>> {
    let text = String::from_utf8(bytes(path)?)
        .map_err(|_| refuse(path, "it is not UTF-8; --text takes plain text".into()))?;
    let mut ids: Vec<u32> = model.config().language().and_then(|c| c.bos).into_iter().collect();
    ids.extend(model.text()?.encode(&text)?);
    if ids.len() < window {
        let reason = format!(
            "it has {} tokens, fewer than one window of {window}; give a longer text or a smaller --window",
            ids.len()
        );
        return Err(refuse(path, reason));
    }
    Ok(ids)
}

fn picture(path: &Path) -> Result<Frame> {
    let mut frame = Frame::default();
    decode_picture(&bytes(path)?, &mut frame)
        .map_err(|error| refuse(path, format!("{error}; --image takes PNG and JPEG files")))?;
    Ok(frame)
}
