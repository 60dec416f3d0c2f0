//! Episodes of an arm: LeRobotDataset v3.0 folders whose pictures are PNG bytes in the parquet files.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Frames, decode_frame};
use crate::error::{Error, Result};

/// What is known about each frame besides its picture.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Hand x, y, z in metres and the gripper's opening.
    pub state: Vec<f32>,
    /// What the expert would do.
    pub action: Vec<f32>,
    /// What was done.
    pub executed: Vec<f32>,
    /// What is happening, in the closed language.
    pub caption: String,
    /// Questions with their answers.
    pub qa: Vec<(String, String)>,
}

/// One roll-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// Its frames among all.
    pub frames: Range<usize>,
    /// What the arm was told to do.
    pub instruction: String,
}

/// All episodes of a folder.
#[derive(Debug, Clone, Default)]
pub struct Episodes {
    /// Pictures, in the order of `steps`.
    pub frames: Frames,
    /// One entry a frame.
    pub steps: Vec<Step>,
    /// Which frames belong together.
    pub episodes: Vec<Episode>,
}

/// One decoded row of a data file.
struct Record {
    picture: Vec<u8>,
    step: Step,
    episode: i64,
    task: i64,
}

/// Reads the folder `root` of a LeRobotDataset v3.0, pictures reduced to 64 × 64.
///
/// # Errors
/// If a file is missing or does not have the columns of the data sets' description.
pub fn read(root: &Path) -> Result<Episodes> {
    let info = root.join("meta/info.json");
    let raw = std::fs::read(&info).map_err(Error::file(&info))?;
    let info_json: serde_json::Value =
        serde_json::from_slice(&raw).map_err(|e| Error::content(&info, e.to_string()))?;
    if info_json["codebase_version"] != "v3.0" {
        return Err(Error::content(
            &info,
            "is no LeRobotDataset v3.0; convert it with lerobot's own script first",
        ));
    }
    let instructions = read_tasks(&root.join("meta/tasks.parquet"))?;
    let mut paths = Vec::new();
    collect(&root.join("data"), &mut paths)?;
    paths.sort();
    let mut out = Episodes::default();
    let mut current = None;
    for path in &paths {
        for record in read_file(path)? {
            let at = out.steps.len();
            if current != Some(record.episode) {
                current = Some(record.episode);
                let instruction = instructions.get(&record.task).cloned().ok_or_else(|| {
                    Error::content(path, format!("task {} is not in meta/tasks.parquet", record.task))
                })?;
                out.episodes.push(Episode { frames: at..at, instruction: instruction.to_lowercase() });
            }
            if let Some(episode) = out.episodes.last_mut() {
                episode.frames.end = at + 1;
            }
            out.frames.bytes.extend_from_slice(&record.picture);
            out.steps.push(record.step);
        }
    }
    if out.steps.is_empty() {
        return Err(Error::content(root, "has no frames under data/; generate the data set again"));
    }
    Ok(out)
}

/// All parquet files under `dir`.
fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::file(dir))? {
        let path = entry.map_err(Error::file(dir))?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|e| e == "parquet") {
            paths.push(path);
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(Error::file(path))?;
    SerializedFileReader::new(file).map_err(|e| Error::content(path, e.to_string()))
}

/// Instruction of each task index.
fn read_tasks(path: &Path) -> Result<HashMap<i64, String>> {
    let reader = open(path)?;
    let rows = reader.get_row_iter(None).map_err(|e| Error::content(path, e.to_string()))?;
    let mut out = HashMap::new();
    for row in rows {
        let row = row.map_err(|e| Error::content(path, e.to_string()))?;
        let columns: HashMap<&String, &Field> = row.get_column_iter().collect();
        let text = ["task", "__index_level_0__"].iter().find_map(|n| match columns.get(&(*n).to_owned()) {
            Some(Field::Str(s)) => Some(s.clone()),
            _ => None,
        });
        let (Some(text), Some(Field::Long(index))) = (text, columns.get(&"task_index".to_owned())) else {
            return Err(Error::content(path, "lacks the columns `task` and `task_index`"));
        };
        out.insert(*index, text);
    }
    Ok(out)
}

fn read_file(path: &Path) -> Result<Vec<Record>> {
    let reader = open(path)?;
    let rows = reader.get_row_iter(None).map_err(|e| Error::content(path, e.to_string()))?;
    let rows: Vec<Row> =
        rows.collect::<std::result::Result<_, _>>().map_err(|e| Error::content(path, e.to_string()))?;
    rows.par_iter().map(|row| record(row, path)).collect()
}

fn record(row: &Row, path: &Path) -> Result<Record> {
    let columns: HashMap<&str, &Field> = row.get_column_iter().map(|(n, f)| (n.as_str(), f)).collect();
    let missing = |name: &str| Error::content(path, format!("column `{name}` is missing or of another type"));
    let picture = columns
        .iter()
        .find(|(n, _)| n.starts_with("observation.images."))
        .and_then(|(_, f)| match f {
            Field::Group(g) => g.get_column_iter().find_map(|(_, f)| match f {
                Field::Bytes(b) => Some(b.data()),
                _ => None,
            }),
            _ => None,
        })
        .ok_or_else(|| missing("observation.images.*"))?;
    let floats = |name: &str| -> Result<Vec<f32>> {
        match columns.get(name) {
            Some(Field::ListInternal(list)) => list
                .elements()
                .iter()
                .map(|f| match f {
                    Field::Float(v) => Ok(*v),
                    _ => Err(missing(name)),
                })
                .collect(),
            _ => Err(missing(name)),
        }
    };
    let text = |name: &str| match columns.get(name) {
        Some(Field::Str(s)) => Ok(s.clone()),
        _ => Err(missing(name)),
    };
    let long = |name: &str| match columns.get(name) {
        Some(Field::Long(v)) => Ok(*v),
        _ => Err(missing(name)),
    };
    let qa: Vec<(String, String)> =
        serde_json::from_str(&text("qa")?).map_err(|e| Error::content(path, format!("column `qa`: {e}")))?;
    let action = floats("action")?;
    let executed =
        if columns.contains_key("action.executed") { floats("action.executed")? } else { action.clone() };
    Ok(Record {
        picture: decode_frame(picture, path)?,
        step: Step { state: floats("observation.state")?, action, executed, caption: text("caption")?, qa },
        episode: long("episode_index")?,
        task: long("task_index")?,
    })
}
