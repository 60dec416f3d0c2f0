//! Whether a model computes what another implementation computed: stored inputs through the runtime, against stored outputs.
//!
//! A golden file is a safetensors file. What it may hold, by name (the batch of one in front of a shape is optional):
//!
//! | tensor | what |
//! |---|---|
//! | `input_ids` I64 `[n]` | the tokens that everything else follows from, with places for those of a picture |
//! | `pixel_values` F32 `[3, h, w]` | what the picture becomes that lies beside the file as `photo.png` |
//! | `image_tokens` I64 `[places]` | the tokens of those values, in some families with an end behind each row |
//! | `image_codes` I64 `[rows, columns]` | the codes of those values |
//! | `image_decoded` F32 `[3, h, w]` | what the codes become |
//! | `video_frames` F32 `[frames, 3, h, w]` | a clip, ready for the encoder |
//! | `video_codes` I64 `[grids, rows, columns]` | its codes |
//! | `video_decoded` F32 `[frames, 3, h, w]` | what the codes become |
//! | `logits` F32 `[n, vocabulary]` | after each of them |
//! | `image_features` F32 `[patches, d_model]` | the features of those values |
//! | `draw_input_ids` I64 `[k]` | a prompt to draw to, up to where the codes begin |
//! | `draw_free_ids` I64 `[l]` | what the sequence without guidance has in its place, if it does not follow from that |
//! | `drawn_image_tokens` I64 `[places]` | the codes that are drawn, each the likeliest, with the family's usual guidance |
//! | `drawn_pixels` F32 `[h, w, 3]` | the picture of those codes |
//! | `generated` I64 `[n + m]` | the greedy continuation, the tokens themselves in front |
//!
//! A bundle that has an ONNX graph looks at the picture twice, by its graph and by our kernels, and the two are compared too.

mod clips;
mod pictures;
mod stored;

use std::path::Path;
use std::sync::Arc;

use saccade::config::{CONFIG_FILE, ModelConfig, WeightDtype};
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::sample::{Sampler, argmax};
use saccade::session::{Session, SessionOptions};
use serde::Serialize;

use crate::bundle;
use crate::checkpoint::Checkpoint;
use crate::compare::stats::{Positions, Rows};
use crate::error::{ConvertError, Result, io};
use crate::progress::Progress;
use stored::Stored;

/// Largest relative error of a float model.
pub const MAX_REL: f64 = 1e-4;
/// Smallest share of positions at which an INT8 model has the same likeliest token.
pub const SAME_TOP: f64 = 0.95;

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

impl Line {
    /// Of ids, which pass when they are equal.
    fn ids(name: &str, equal: bool) -> Self {
        Self { name: name.into(), max_rel: None, ids_equal: Some(equal), pass: equal }
    }
}

/// How far what an imported graph makes of the picture is from what our kernels make of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beside {
    /// The largest difference over our largest value.
    pub max_rel: f64,
    /// Share of the codes that are the same, in models that take codes.
    pub same_codes: Option<f64>,
    /// Whether that is good enough: [`MAX_REL`] and every code in a float model. Others keep these parts in half precision.
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
    /// An imported graph beside our kernels.
    pub graph: Option<Beside>,
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The bundle or the checkpoint.
    pub path: &'a Path,
    /// An ONNX graph to put to a checkpoint; bundles have theirs.
    pub graph: Option<&'a Path>,
    /// How the model and the graph are run.
    pub engine: EngineOptions,
}

/// Runs what `golden` stores on a bundle, or on a checkpoint converted to `dtype` for the occasion.
///
/// # Errors
/// [`ConvertError`]: a model or a golden file that cannot be used, a bundle of another type than `dtype`.
pub fn golden(subject: &Subject<'_>, golden: &Path, dtype: WeightDtype) -> Result<Report> {
    let Subject { path, graph, engine: options } = subject;
    let stored = Stored::open(golden)?;
    if path.join(CONFIG_FILE).exists() {
        if let Some(graph) = graph {
            let reason = "a graph is put to a checkpoint, and a bundle keeps its own; convert again with it, or leave it out";
            return Err(ConvertError::Refused { path: (*graph).into(), reason: reason.into() });
        }
        let model = Model::open(path, options)?;
        if model.bundle().dtype != dtype {
            let reason =
                format!("the bundle is {:?}, not {dtype:?}; name it with --precision", model.bundle().dtype);
            return Err(ConvertError::Refused { path: (*path).into(), reason });
        }
        return run(&model, &stored, dtype);
    }
    let mut checkpoint = Checkpoint::open(path)?;
    if let Some(graph) = graph {
        checkpoint = checkpoint.with_graph(graph)?;
    }
    let scratch = tempfile::tempdir().map_err(io(&std::env::temp_dir()))?;
    let bundle = scratch.path().join("bundle");
    bundle::convert(&mut checkpoint, &bundle, dtype, false, &mut Progress::silent())?;
    run(&Model::open(&bundle, options)?, &stored, dtype)
}

fn run(model: &Arc<Model>, stored: &Stored<'_>, dtype: WeightDtype) -> Result<Report> {
    let mut report = Report { pass: true, tensors: Vec::new(), logits: None, graph: None };
    // A file of drawings has no other tokens.
    if stored.has("input_ids") || !stored.has("draw_input_ids") {
        read(model, stored, dtype, &mut report)?;
    }
    pictures::drawing(model, stored, dtype, &mut report.tensors)?;
    if report.tensors.is_empty() {
        return Err(stored.refuse("it has neither `logits` nor `generated`, so there is nothing to compare"));
    }
    let beside = report.graph.as_ref().is_none_or(|beside| beside.pass);
    report.pass = beside && report.tensors.iter().all(|line| line.pass);
    Ok(report)
}

/// Compares what the model makes of text and pictures.
fn read(model: &Arc<Model>, stored: &Stored<'_>, dtype: WeightDtype, report: &mut Report) -> Result<()> {
    let ids = stored.ids("input_ids", model)?;
    let generated = stored.has("generated").then(|| stored.ids("generated", model)).transpose()?;
    let new = generated.as_ref().map_or(0, |all| all.len().saturating_sub(ids.len()));
    let options = SessionOptions { max_text_tokens: ids.len() + new, ..SessionOptions::default() };
    let mut session = Session::new(model, &options)?;
    let shown = match model.config() {
        ModelConfig::Chameleon(c) => pictures::codes(model, c, stored, &ids, report)?,
        ModelConfig::Emu3(c) => clips::codes(model, c, stored, &ids, &mut report.tensors)?,
        ModelConfig::Janus(_) => {
            pictures::features(model, stored, &mut session, report)?;
            ids.clone()
        }
        _ => ids.clone(),
    };
    if stored.has("logits") {
        let (line, rows) = logits(&mut session, stored, &shown, dtype)?;
        report.tensors.push(line);
        report.logits = Some(rows);
    }
    if let Some(all) = generated {
        if !all.starts_with(&ids) {
            return Err(stored.refuse("`generated` does not begin with `input_ids`"));
        }
        report.tensors.push(continuation(&mut session, &shown, &all[ids.len()..], dtype)?);
    }
    Ok(())
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
    let mut compared = Compared::default();
    let (first, rest) = ids.split_at(1);
    session.score_vocabulary(first, rest, &mut |row, found| {
        compared.add(&expected[row * width..][..width], found, ids.get(row + 1).map(|&id| id as usize));
    })?;
    let rows = compared.positions.rows();
    let max_rel = compared.worst / f64::from(compared.largest);
    let pass = match dtype {
        WeightDtype::F32 => max_rel <= MAX_REL,
        WeightDtype::F16 | WeightDtype::Int8 => rows.same_top >= SAME_TOP,
    };
    Ok((Line { name: "logits".into(), max_rel: Some(max_rel), ids_equal: None, pass }, rows))
}

/// Logits of both models, as far as they have been seen.
#[derive(Default)]
struct Compared {
    worst: f64,
    largest: f32,
    positions: Positions,
    /// Of one position, what can be said.
    base: Vec<f32>,
    found: Vec<f32>,
}

impl Compared {
    /// Adds a position; where the true token is one that is left out, the likeliest stands in for it.
    fn add(&mut self, expected: &[f32], found: &[f32], target: Option<usize>) {
        self.base.clear();
        self.found.clear();
        let mut at = None;
        for (id, (&expected, &found)) in expected.iter().zip(found).enumerate() {
            // Chameleon as others have it never says codes of pictures: they have the smallest number.
            if expected <= f32::MIN {
                continue;
            }
            if target == Some(id) {
                at = Some(self.base.len());
            }
            let off = f64::from((found - expected).abs());
            // A NaN is as far off as can be.
            self.worst = if off.is_nan() { f64::INFINITY } else { self.worst.max(off) };
            self.largest = self.largest.max(expected.abs());
            self.base.push(expected);
            self.found.push(found);
        }
        let target = at.or_else(|| argmax(&self.base)).unwrap_or(0);
        self.positions.add(&self.base, &self.found, target);
    }
}

/// How floats compare that every model computes alike.
fn floats(name: &str, found: &[f32], expected: &[f32]) -> Line {
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(expected).fold(0.0f64, |worst, (found, expected)| {
        let off = f64::from((found - expected).abs());
        if off.is_nan() { f64::INFINITY } else { worst.max(off) }
    });
    let max_rel = if found.len() == expected.len() { worst / f64::from(largest) } else { f64::INFINITY };
    Line { name: name.into(), max_rel: Some(max_rel), ids_equal: None, pass: max_rel <= MAX_REL }
}

/// The greedy continuation of `ids`.
fn continuation(session: &mut Session, ids: &[u32], expected: &[u32], dtype: WeightDtype) -> Result<Line> {
    let model = Arc::clone(session.model());
    let ends = model.config().end_ids();
    let expected: Vec<u32> = expected.iter().copied().take_while(|id| !ends.contains(id)).collect();
    let mut found = Vec::new();
    session.answer(ids, expected.len(), &mut Sampler::greedy(), &mut found, &mut |_| true)?;
    let equal = found == expected;
    let pass = equal || dtype != WeightDtype::F32;
    Ok(Line { name: "generated".into(), max_rel: None, ids_equal: Some(equal), pass })
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
        if let Some(Beside { max_rel, same_codes, pass }) = &self.graph {
            let verdict = if *pass { "pass" } else { "FAIL" };
            let codes = same_codes
                .map_or_else(String::new, |same| format!(", {:.2} % of codes the same", 100.0 * same));
            text += &format!(
                "{verdict}  {:<16} largest relative error {max_rel:.2e} from our kernels{codes}\n",
                "ONNX graph"
            );
        }
        if let Some(rows) = &self.logits {
            text += &rows.to_text("Logits");
        }
        text
    }
}
