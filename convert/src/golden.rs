//! Whether a model computes what another implementation computed: stored inputs through the runtime, against stored outputs.
//!
//! A golden file is a safetensors file. What it may hold, by name (the batch of one in front of a shape is optional):
//!
//! | tensor | what |
//! |---|---|
//! | `input_ids` I64 `[n]` | the tokens that everything else follows from |
//! | `logits` F32 `[n, vocabulary]` | after each of them |
//! | `generated` I64 `[n + m]` | the greedy continuation, the tokens themselves in front |

use std::path::Path;
use std::sync::Arc;

use saccade::config::{CONFIG_FILE, WeightDtype};
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::format::{Dtype, Header, Rules, read_file_header};
use saccade::sample::Sampler;
use saccade::session::{Session, SessionOptions};
use serde::Serialize;

use crate::bundle;
use crate::checkpoint::Checkpoint;
use crate::compare::stats::{Positions, Rows};
use crate::error::{ConvertError, Result, io};
use crate::progress::Progress;

/// Largest relative error of a float model.
pub const MAX_REL: f64 = 1e-4;
/// Smallest share of positions at which an INT8 model has the same likeliest token.
pub const SAME_TOP: f64 = 0.95;
/// Largest golden file.
const MAX_BYTES: u64 = 4 << 30;

/// How one tensor compares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Of the golden tensor.
    pub name: String,
    /// The largest difference over the largest golden value; of floats.
    pub max_rel: Option<f64>,
    /// Whether every id is the same; of ids.
    pub ids_equal: Option<bool>,
    /// Whether that is good enough: [`MAX_REL`] and equal ids in a float model; in an INT8 model [`SAME_TOP`] of the logits, and whatever
    /// the greedy continuation.
    pub pass: bool,
}

/// How a model compares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether every tensor passes.
    pub pass: bool,
    /// Each golden tensor that something was compared with.
    pub tensors: Vec<Line>,
    /// The distributions at each position, ours against the golden ones.
    pub logits: Option<Rows>,
}

/// Runs what `golden` stores on a bundle, or on a checkpoint converted to `dtype` for the occasion.
///
/// # Errors
/// [`ConvertError`]: a model or a golden file that cannot be used, a bundle of another type than `dtype`.
pub fn golden(path: &Path, golden: &Path, dtype: WeightDtype) -> Result<Report> {
    let stored = Stored::open(golden)?;
    if path.join(CONFIG_FILE).exists() {
        let model = Model::open(path, &EngineOptions::default())?;
        if model.bundle().dtype != dtype {
            let reason =
                format!("the bundle is {:?}, not {dtype:?}; name it with --precision", model.bundle().dtype);
            return Err(ConvertError::Refused { path: path.into(), reason });
        }
        return run(&model, &stored, dtype);
    }
    let mut checkpoint = Checkpoint::open(path)?;
    let scratch = tempfile::tempdir().map_err(io(&std::env::temp_dir()))?;
    let bundle = scratch.path().join("bundle");
    bundle::convert(&mut checkpoint, &bundle, dtype, false, &mut Progress::silent())?;
    run(&Model::open(&bundle, &EngineOptions::default())?, &stored, dtype)
}

fn run(model: &Arc<Model>, stored: &Stored<'_>, dtype: WeightDtype) -> Result<Report> {
    let ids = stored.ids("input_ids", model)?;
    let generated = stored.has("generated").then(|| stored.ids("generated", model)).transpose()?;
    let new = generated.as_ref().map_or(0, |all| all.len().saturating_sub(ids.len()));
    let options = SessionOptions { max_text_tokens: ids.len() + new, ..SessionOptions::default() };
    let mut session = Session::new(model, &options)?;
    let mut report = Report { pass: true, tensors: Vec::new(), logits: None };
    if stored.has("logits") {
        let (line, rows) = logits(&mut session, stored, &ids, dtype)?;
        report.tensors.push(line);
        report.logits = Some(rows);
    }
    if let Some(all) = generated {
        report.tensors.push(continuation(&mut session, &ids, &all, dtype)?);
    }
    if report.tensors.is_empty() {
        return Err(stored.refuse("it has neither `logits` nor `generated`, so there is nothing to compare"));
    }
    report.pass = report.tensors.iter().all(|line| line.pass);
    Ok(report)
}

fn logits(
    session: &mut Session,
    stored: &Stored<'_>,
    ids: &[u32],
    dtype: WeightDtype,
) -> Result<(Line, Rows)> {
    let expected = stored.floats("logits")?;
    let width = session.model().config().text_range().len();
    if expected.len() != ids.len() * width {
        let reason = format!("`logits` has {} values, expected {} × {width}", expected.len(), ids.len());
        return Err(stored.refuse(&reason));
    }
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let (mut worst, mut positions) = (0.0f64, Positions::default());
    let (first, rest) = ids.split_at(1);
    session.score_answer(first, rest, &mut |row, found| {
        let expected = &expected[row * width..][..width];
        for (found, expected) in found.iter().zip(expected) {
            let off = f64::from((found - expected).abs());
            // A NaN is as far off as can be.
            worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
        }
        positions.add(expected, found, ids.get(row + 1).map_or(0, |&id| id as usize));
    })?;
    let rows = positions.rows();
    let max_rel = worst / f64::from(largest);
    let pass = match dtype {
        WeightDtype::F32 => max_rel <= MAX_REL,
        WeightDtype::F16 | WeightDtype::Int8 => rows.same_top >= SAME_TOP,
    };
    Ok((Line { name: "logits".into(), max_rel: Some(max_rel), ids_equal: None, pass }, rows))
}

/// The greedy continuation of `ids`, which `all` begins with.
fn continuation(session: &mut Session, ids: &[u32], all: &[u32], dtype: WeightDtype) -> Result<Line> {
    let model = Arc::clone(session.model());
    let expected = &all[ids.len().min(all.len())..];
    let ends = model.config().end_ids();
    let expected: Vec<u32> = expected.iter().copied().take_while(|id| !ends.contains(id)).collect();
    let mut found = Vec::new();
    session.answer(ids, expected.len(), &mut Sampler::greedy(), &mut found, &mut |_| true)?;
    let equal = all.starts_with(ids) && found == expected;
    let pass = equal || dtype != WeightDtype::F32;
    Ok(Line { name: "generated".into(), max_rel: None, ids_equal: Some(equal), pass })
}

/// A golden file.
struct Stored<'a> {
    path: &'a Path,
    header: Header,
    bytes: Vec<u8>,
}

impl<'a> Stored<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let header = read_file_header(path, Rules::Foreign)?;
        if header.file_bytes > MAX_BYTES {
            let reason = format!("it has {} bytes, at most {MAX_BYTES} are read", header.file_bytes);
            return Err(ConvertError::Refused { path: path.into(), reason });
        }
        let bytes = std::fs::read(path).map_err(io(path))?;
        Ok(Self { path, header, bytes })
    }

    fn has(&self, name: &str) -> bool {
        self.header.find(name).is_some()
    }

    fn refuse(&self, reason: &str) -> ConvertError {
        ConvertError::Refused { path: self.path.into(), reason: reason.into() }
    }

    fn data(&self, name: &str, dtype: Dtype) -> Result<&[u8]> {
        let tensor = self.header.find(name).ok_or_else(|| self.refuse(&format!("it has no `{name}`")))?;
        if tensor.dtype != dtype {
            return Err(self.refuse(&format!("`{name}` is {}, expected {dtype}", tensor.dtype)));
        }
        tensor.data(&self.bytes).ok_or_else(|| self.refuse(&format!("`{name}` is cut off")))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.data(name, Dtype::F32)?.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect())
    }

    /// Token ids, each of the model's vocabulary.
    fn ids(&self, name: &str, model: &Model) -> Result<Vec<u32>> {
        let vocabulary = model.config().decoder().vocab_size;
        let ids = self.data(name, Dtype::I64)?.as_chunks().0.iter().map(|&id| i64::from_le_bytes(id));
        let ids = ids.map(|id| {
            u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary).ok_or_else(|| {
                self.refuse(&format!("`{name}` has the id {id}, the vocabulary ends at {vocabulary}"))
            })
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        if ids.is_empty() { Err(self.refuse(&format!("`{name}` is empty"))) } else { Ok(ids) }
    }
}

impl Report {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for line in &self.tensors {
            let verdict = if line.pass { "pass" } else { "FAIL" };
            let found = match (line.max_rel, line.ids_equal) {
                (Some(max_rel), _) => format!("largest relative error {max_rel:.2e}"),
                (None, Some(true)) => "every id is the same".into(),
                (None, _) => "ids differ".into(),
            };
            text += &format!("{verdict}  {:<16} {found}\n", line.name);
        }
        if let Some(rows) = &self.logits {
            text += &rows.to_text("Logits");
        }
        text
    }
}
