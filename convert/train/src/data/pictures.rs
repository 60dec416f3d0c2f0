//! Single pictures with questions: easy-VQA, and photos in class folders.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Frames, read_frame};
use crate::error::{Error, Result};

/// One question, its answer and the picture it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Lower case, with its question mark.
    pub question: String,
    /// Lower case.
    pub answer: String,
    /// Index of the picture.
    pub picture: usize,
}

/// Pictures and the questions about them.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// The pictures.
    pub frames: Frames,
    /// The questions, in the order of the set.
    pub questions: Vec<Question>,
}

impl Pictures {
    /// The questions of every picture.
    pub fn by_picture(&self) -> Vec<Vec<&Question>> {
        let mut lists = vec![Vec::new(); self.frames.len()];
        for q in &self.questions {
            if let Some(list) = lists.get_mut(q.picture) {
                list.push(q);
            }
        }
        lists
    }
}

/// Reads all `paths` in parallel, in order.
fn read_all(paths: &[PathBuf]) -> Result<Frames> {
    let frames: Vec<Vec<u8>> = paths.par_iter().map(|p| read_frame(p)).collect::<Result<_>>()?;
    Ok(Frames { bytes: frames.concat() })
}

/// The folder of the `train` or `test` part under `root`, the unpacked wheel.
fn easy_vqa_folder(root: &Path, part: &str) -> PathBuf {
    let inner = root.join("easy_vqa/data").join(part);
    if inner.is_dir() { inner } else { root.join(part) }
}

/// The file with the questions of a part.
pub(super) fn easy_vqa_list(root: &Path, part: &str) -> PathBuf {
    easy_vqa_folder(root, part).join("questions.json")
}

/// The questions of the `train` or `test` part of easy-VQA 1.0 under `root` (the unpacked wheel).
///
/// # Errors
/// If the folder is not there or not complete.
pub fn easy_vqa_questions(root: &Path, part: &str) -> Result<Vec<Question>> {
    let list = easy_vqa_list(root, part);
    let raw = std::fs::read(&list).map_err(Error::file(&list))?;
    let rows: Vec<(String, String, usize)> =
        serde_json::from_slice(&raw).map_err(|e| Error::content(&list, e.to_string()))?;
    if rows.iter().any(|r| r.2 > 1_000_000) {
        return Err(Error::content(&list, "names a picture beyond one million; unpack the wheel again"));
    }
    let question = |(q, answer, picture): (String, String, usize)| Question {
        question: q.to_lowercase(),
        answer,
        picture,
    };
    Ok(rows.into_iter().map(question).collect())
}

/// The `train` or `test` part of easy-VQA 1.0 with its pictures.
///
/// # Errors
/// If the folder is not there or not complete.
pub fn easy_vqa(root: &Path, part: &str) -> Result<Pictures> {
    let questions = easy_vqa_questions(root, part)?;
    let n = questions.iter().map(|q| q.picture + 1).max().unwrap_or(0);
    let images = easy_vqa_folder(root, part).join("images");
    let paths: Vec<PathBuf> = (0..n).map(|i| images.join(format!("{i}.png"))).collect();
    Ok(Pictures { frames: read_all(&paths)?, questions })
}

/// Photos in class folders under `root`, at most `per_class` of each: paths and questions.
fn photo_list(root: &Path, per_class: usize) -> Result<(Vec<PathBuf>, Vec<Question>)> {
    let places = [root.join("cifar10/train"), root.join("train"), root.to_owned()];
    let root = places.iter().find(|p| p.is_dir()).unwrap_or(&places[2]);
    let mut paths = Vec::new();
    let mut questions = Vec::new();
    for class in sorted(root)? {
        let Some(name) = class.file_name().and_then(|n| n.to_str()).filter(|_| class.is_dir()) else {
            continue;
        };
        for photo in sorted(&class)?.into_iter().take(per_class) {
            let question = "what is this?".to_owned();
            questions.push(Question { question, answer: name.to_lowercase(), picture: paths.len() });
            paths.push(photo);
        }
    }
    Ok((paths, questions))
}

/// The question about each photo: its class.
///
/// # Errors
/// If a folder cannot be read.
pub fn photo_questions(root: &Path, per_class: usize) -> Result<Vec<Question>> {
    Ok(photo_list(root, per_class)?.1)
}

/// Photos in class folders under `root`, at most `per_class` of each, each with the question `what is this?`.
///
/// # Errors
/// If a folder or a photo cannot be read.
pub fn photos(root: &Path, per_class: usize) -> Result<Pictures> {
    let (paths, questions) = photo_list(root, per_class)?;
    Ok(Pictures { frames: read_all(&paths)?, questions })
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::file(dir))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(Error::file(dir))?;
    paths.sort();
    Ok(paths)
}
