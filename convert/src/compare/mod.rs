//! How far a bundle's answers are from the float model's.
//!
//! The checkpoint is converted to an F32 bundle in a temporary folder (four bytes a parameter; one that is such a bundle is taken as it
//! is), and both bundles see the same. Saccade's own family is compared on held-out episodes ([`episodes`]), published families on text
//! and pictures of the user's ([`published`]).

pub mod episodes;
pub mod heldout;
pub mod published;
pub mod stats;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saccade::config::{CONFIG_FILE, ModelConfig, WEIGHTS_FILE, WeightDtype};
use saccade::engine::EngineOptions;
use saccade::family::{Model, Role, tensors};
use saccade::format::{Rules, read_file_header};
use saccade::session::SessionError;
use serde::Serialize;
use tempfile::TempDir;

use crate::bundle;
use crate::checkpoint::Checkpoint;
use crate::error::{ConvertError, Result, io};
use crate::inspect::ratio;
use crate::progress::Progress;

/// What two models are compared on.
#[derive(Debug, Clone)]
pub struct Given {
    /// The folder of held-out episodes, for Saccade's own family.
    pub data: PathBuf,
    /// Files of plain text, for published families.
    pub texts: Vec<PathBuf>,
    /// PNG or JPEG files, for those that read pictures.
    pub images: Vec<PathBuf>,
    /// Tokens of text that are seen together; without it 512, or as many as the model takes.
    pub window: Option<usize>,
}

/// The report, by what was compared.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// Of Saccade's own family.
    Episodes(Box<episodes::Comparison>),
    /// Of a published one.
    Published(Box<published::Comparison>),
}

impl Report {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Episodes(found) => found.to_text(),
            Self::Published(found) => found.to_text(),
        }
    }
}

/// Compares `bundle` with the checkpoint it was made from, or with an F32 bundle of that.
///
/// # Errors
/// [`ConvertError`]: a bundle, checkpoint, episode, text or picture that cannot be used, or two that do not belong together.
pub fn compare(bundle: &Path, reference: &Path, given: &Given) -> Result<Report> {
    let candidate = Model::open(bundle, &EngineOptions::default())?;
    given.check(bundle, candidate.config())?;
    // What was given is read before the checkpoint is converted, which may take minutes.
    if let ModelConfig::Unimodal(config) = candidate.config() {
        let episodes = heldout::read_all(&given.data, config)?;
        let models = Models::open(bundle, candidate, reference)?;
        return Ok(Report::Episodes(Box::new(episodes::compare(&models, &episodes)?)));
    }
    let shown = published::Shown::read(bundle, &candidate, given)?;
    let models = Models::open(bundle, candidate, reference)?;
    Ok(Report::Published(Box::new(published::compare(&models, &shown)?)))
}

impl Given {
    /// Whether models of this family can be compared on what there is.
    fn check(&self, bundle: &Path, config: &ModelConfig) -> Result<()> {
        let own = matches!(config, ModelConfig::Unimodal(_));
        let reason = if own && !(self.texts.is_empty() && self.images.is_empty()) {
            "is compared on held-out episodes; leave --text and --image out and name their folder with --data"
        } else if !own && self.texts.is_empty() {
            "is compared on text of yours; give at least one file with --text"
        } else if matches!(config, ModelConfig::Llama(_)) && !self.images.is_empty() {
            "reads no pictures; leave --image out"
        } else {
            return Ok(());
        };
        let reason = format!("a model of the family {} {reason}", config.family());
        Err(ConvertError::Refused { path: bundle.into(), reason })
    }
}

/// Both models, and how their files compare.
struct Models {
    /// In float.
    base: Arc<Model>,
    /// The bundle that is judged.
    candidate: Arc<Model>,
    size_ratio_f32: f64,
    size_ratio_linear: f64,
    /// Where the float bundle lies while it is used.
    _scratch: Option<TempDir>,
}

impl Models {
    fn open(bundle: &Path, candidate: Arc<Model>, reference: &Path) -> Result<Self> {
        let (size_ratio_f32, size_ratio_linear) = size_ratios(bundle, &candidate)?;
        let (base, scratch) = if reference.join(CONFIG_FILE).exists() {
            let base = Model::open(reference, &EngineOptions::default())?;
            if base.bundle().dtype != WeightDtype::F32 {
                let reason = format!(
                    "the bundle is {:?}; name the float checkpoint, or a bundle made of it with --dtype f32",
                    base.bundle().dtype
                );
                return Err(ConvertError::Refused { path: reference.into(), reason });
            }
            check_same_model(bundle, &candidate, reference, base.config(), made_from(&base))?;
            (base, None)
        } else {
            let mut checkpoint = Checkpoint::open(reference)?;
            let hash = checkpoint.blake3()?.to_hex();
            check_same_model(bundle, &candidate, reference, &checkpoint.model, Some(hash.as_str()))?;
            let scratch = tempfile::tempdir().map_err(io(&std::env::temp_dir()))?;
            let float = scratch.path().join("float");
            bundle::convert(&mut checkpoint, &float, WeightDtype::F32, false, &mut Progress::silent())?;
            (Model::open(&float, &EngineOptions::default())?, Some(scratch))
        };
        Ok(Self { base, candidate, size_ratio_f32, size_ratio_linear, _scratch: scratch })
    }
}

/// BLAKE3 of the checkpoint that a bundle says it was made from.
fn made_from(model: &Model) -> Option<&str> {
    model.bundle().provenance.get("checkpoint_blake3").and_then(|hash| hash.as_str())
}

fn check_same_model(
    bundle: &Path,
    candidate: &Model,
    reference: &Path,
    model: &ModelConfig,
    hash: Option<&str>,
) -> Result<()> {
    let other = |reason: &str| ConvertError::OtherModel {
        bundle: bundle.into(),
        reference: reference.into(),
        reason: reason.into(),
    };
    // A published model is called after its folder or file, which may have another name by now.
    if candidate.config() != model && *candidate.config() != renamed(model, candidate.config().name()) {
        return Err(other("their model descriptions differ"));
    }
    if made_from(candidate).zip(hash).is_some_and(|(made_from, hash)| made_from != hash) {
        return Err(other("the bundle's provenance names another file by its BLAKE3"));
    }
    Ok(())
}

/// The same model under another name, where names come from files.
fn renamed(model: &ModelConfig, name: &str) -> ModelConfig {
    let mut model = model.clone();
    match &mut model {
        ModelConfig::Llama(c) => c.name = name.into(),
        ModelConfig::Chameleon(c) => c.language.name = name.into(),
        ModelConfig::Janus(c) => c.language.name = name.into(),
        ModelConfig::Emu3(c) => c.language.name = name.into(),
        _ => {}
    }
    model
}

/// How much smaller than F32 the weights file is, and the linear layers alone.
fn size_ratios(dir: &Path, model: &Model) -> Result<(f64, f64)> {
    let header = read_file_header(&dir.join(WEIGHTS_FILE), Rules::Bundle)?;
    let bytes: HashMap<&str, u64> = header.tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
    let (mut parameters, mut linear, mut linear_bytes) = (0, 0, 0);
    for spec in tensors(model.config()) {
        let count = spec.parameters() as u64;
        parameters += count;
        if spec.role == Role::Linear {
            linear += count;
            let stored = spec.stored(model.bundle().dtype);
            linear_bytes += stored.iter().filter_map(|t| bytes.get(t.name.as_str())).sum::<u64>();
        }
    }
    Ok((4.0 * ratio(parameters, header.file_bytes), 4.0 * ratio(linear, linear_bytes)))
}

/// Why something could not be compared.
enum Fault {
    /// The runtime refused it.
    Runtime(saccade::Error),
    /// A model, by its name in the sentence, gave logits that are NaN or infinite.
    NotANumber(&'static str),
}

impl Fault {
    /// What the runtime refused, with the name of the model where that matters.
    fn of(model: &'static str, error: saccade::Error) -> Self {
        match error {
            saccade::Error::Session(SessionError::NumericFault) => Self::NotANumber(model),
            error => Self::Runtime(error),
        }
    }

    /// The sentence, with the file that it happened in.
    fn in_file(self, path: &Path) -> ConvertError {
        match self {
            Self::Runtime(source) => ConvertError::Episode { path: path.into(), source },
            Self::NotANumber(model) => ConvertError::NotANumber { path: path.into(), model },
        }
    }
}

impl From<saccade::Error> for Fault {
    fn from(error: saccade::Error) -> Self {
        Self::Runtime(error)
    }
}
