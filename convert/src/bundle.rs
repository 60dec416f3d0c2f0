//! One conversion: plan, write under another name, let the runtime open the result, rename, warm the page cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use saccade::config::{
    BundleConfig, CONFIG_FILE, FORMAT_VERSION, FileEntry, FrontEnd, GRAPH_FILE, ModelConfig, Quantisation,
    TOKENIZER_FILE, WEIGHTS_FILE, WeightDtype,
};
use saccade::engine::EngineOptions;
use saccade::family::{Model, TensorSpec};
use saccade::format::{Rules, TensorPlan, Writer, Written, plan_header};
use saccade::pages;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, hash_file};
use crate::error::{ConvertError, Result, io};
use crate::place::Place;
use crate::progress::Progress;
use crate::store;

/// How an INT8 bundle's numbers came about, as `saccade.json` says it.
pub const RECIPE: &str = "w8a8-symmetric; weights per output row, activations per token (some layers in two INT8 parts), KV per head and token";

/// How a conversion stores numbers.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Element type of the linear layers.
    pub dtype: WeightDtype,
    /// Whether the layers that [`store::two_part`] names get their activations in two INT8 parts: closer to the float model, for about a
    /// quarter more work in them.
    pub two_part: bool,
}

impl From<WeightDtype> for Recipe {
    fn from(dtype: WeightDtype) -> Self {
        Self { dtype, two_part: true }
    }
}

/// What a conversion is going to write.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Element type of the linear layers.
    pub dtype: WeightDtype,
    /// Parameters of the model.
    pub parameters: u64,
    /// Tensors in the weights file.
    pub tensors: usize,
    /// Length of the weights file.
    ///
    /// Units: bytes.
    pub weights_bytes: u64,
    /// Keys and values of a token.
    ///
    /// Units: bytes.
    pub kv_bytes_per_token: u64,
    /// Length of the text tokenizer.
    ///
    /// Units: bytes.
    pub tokenizer_bytes: u64,
    /// Length of the imported graph, 0 if there is none.
    ///
    /// Units: bytes.
    pub graph_bytes: u64,
    /// Most memory that one tensor needs while it is converted: as stored, as F32, turned and quantised.
    ///
    /// Units: bytes.
    pub peak_bytes: u64,
}

/// Plans a conversion; writes nothing.
///
/// # Errors
/// [`ConvertError::Runtime`] when the plan breaks a rule of the container.
pub fn plan(checkpoint: &Checkpoint, dtype: WeightDtype) -> Result<Plan> {
    let tensors = store::plan(&checkpoint.specs, dtype);
    let (_, header) = plan_header(&tensors, &BTreeMap::new(), Rules::Bundle).map_err(saccade::Error::from)?;
    let largest = checkpoint.specs.iter().map(|spec| spec.parameters() as u64).max().unwrap_or(0);
    Ok(Plan {
        dtype,
        parameters: checkpoint.parameters(),
        tensors: header.tensors.len(),
        weights_bytes: header.file_bytes,
        kv_bytes_per_token: kv_bytes_per_token(&checkpoint.model, dtype),
        tokenizer_bytes: checkpoint.tokenizer.len() as u64,
        graph_bytes: match checkpoint.graph() {
            Some((graph, _)) => graph.metadata().map_err(io(graph))?.len(),
            None => 0,
        },
        // Two bytes read, four as F32, four turned, one or four stored.
        peak_bytes: largest.saturating_mul(14),
    })
}

/// Keys and values of a token: INT8 with a scale and a sum each, or F32.
fn kv_bytes_per_token(model: &ModelConfig, dtype: WeightDtype) -> u64 {
    let c = model.decoder();
    let head = if dtype == WeightDtype::Int8 { 2 * c.head_dim + 12 } else { 8 * c.head_dim };
    (c.n_layers * c.n_kv_heads * head) as u64
}

/// Converts `checkpoint` into the bundle folder `out`, which must not exist unless `force` is set and it is a bundle.
///
/// # Errors
/// [`ConvertError`]; nothing is left behind then, and an existing bundle stays as it was.
pub fn convert(
    checkpoint: &mut Checkpoint,
    out: &Path,
    recipe: impl Into<Recipe>,
    force: bool,
    progress: &mut Progress,
) -> Result<Plan> {
    let recipe @ Recipe { dtype, .. } = recipe.into();
    let plan = plan(checkpoint, dtype)?;
    let folder = Place::start(out, force)?;
    let weights = write_weights(checkpoint, folder.path(), dtype, progress)?;
    let tokenizer = checkpoint.tokenizer.as_bytes();
    write_durably(&folder.path().join(TOKENIZER_FILE), tokenizer)?;

    let mut files = vec![
        (WEIGHTS_FILE, weights.bytes, weights.blake3),
        (TOKENIZER_FILE, plan.tokenizer_bytes, blake3::hash(tokenizer)),
    ];
    let mut front_end = None;
    if let Some((graph, replaces)) = checkpoint.graph() {
        let (bytes, hash) = copy_durably(graph, &folder.path().join(GRAPH_FILE))?;
        files.push((GRAPH_FILE, bytes, hash));
        front_end = Some(FrontEnd { graph: GRAPH_FILE.into(), replaces });
    }
    let config = BundleConfig {
        format_version: FORMAT_VERSION,
        dtype,
        model: checkpoint.model.clone(),
        quantisation: quantisation(checkpoint, recipe),
        linears: checkpoint
            .specs
            .iter()
            .filter(|spec| spec.is_tiled(dtype))
            .map(|spec| (spec.stem().to_owned(), spec.matrix()))
            .collect(),
        provenance: provenance(checkpoint)?,
        front_end,
        files: files
            .into_iter()
            .map(|(name, bytes, hash)| {
                (name.to_owned(), FileEntry { bytes, blake3: hash.to_hex().to_string() })
            })
            .collect(),
        self_blake3: String::new(),
    };
    let path = folder.path().join(CONFIG_FILE);
    let json = config.to_json().map_err(|source| saccade::Error::Config { path: path.clone(), source })?;
    write_durably(&path, &json)?;

    opens(folder.path())?;
    folder.publish()?;
    // The bundle is whole; if this fails, only its first pass is slower.
    if let Err(error) = pages::warm(&out.join(WEIGHTS_FILE)) {
        log::warn!("the page cache could not be warmed: {}", error.sentence());
    }
    Ok(plan)
}

/// Lets the runtime judge: every tensor, the configuration, and a text tokenizer that fits it.
///
/// # Errors
/// What the runtime refuses.
pub fn opens(dir: &Path) -> Result<()> {
    Model::open(dir, &EngineOptions { threads: 1, ..EngineOptions::default() })?.text()?;
    Ok(())
}

fn write_weights(
    checkpoint: &mut Checkpoint,
    dir: &Path,
    dtype: WeightDtype,
    progress: &mut Progress,
) -> Result<Written> {
    let plan: Vec<TensorPlan> = store::plan(&checkpoint.specs, dtype);
    let mut writer = Writer::create(&dir.join(WEIGHTS_FILE), &plan, &BTreeMap::new(), Rules::Bundle)?;
    for spec in checkpoint.specs.clone() {
        let values = checkpoint.read(&spec)?;
        let stored = store::encode(&spec, values, dtype).map_err(|reason| ConvertError::Tensor {
            path: checkpoint.path().into(),
            name: spec.name.clone(),
            reason,
        })?;
        for (tensor, bytes) in stored {
            writer.write(&tensor.name, &bytes)?;
            progress.advance(bytes.len() as u64, &spec.name);
        }
    }
    Ok(writer.finish()?)
}

fn quantisation(checkpoint: &Checkpoint, Recipe { dtype, two_part }: Recipe) -> Quantisation {
    let recipe = match dtype {
        WeightDtype::Int8 => RECIPE.to_owned(),
        WeightDtype::F16 => "none; linear layers in F16".to_owned(),
        WeightDtype::F32 => "none; everything in F32".to_owned(),
    };
    let float_tensors = match dtype {
        WeightDtype::Int8 => store::float_patterns(&checkpoint.specs, dtype),
        WeightDtype::F16 | WeightDtype::F32 => Vec::new(),
    };
    let tiled = checkpoint.specs.iter().filter(|spec| spec.is_tiled(dtype)).map(TensorSpec::stem);
    let two_part_activations = tiled
        .filter(|stem| two_part && store::two_part(&checkpoint.model, stem))
        .map(str::to_owned)
        .collect();
    Quantisation { recipe, float_tensors, two_part_activations }
}

/// What the trainer said, and what this conversion adds.
fn provenance(checkpoint: &Checkpoint) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut provenance = checkpoint.provenance.clone();
    provenance.insert("converter".into(), concat!("saccade-convert ", env!("CARGO_PKG_VERSION")).into());
    provenance.insert("checkpoint_blake3".into(), checkpoint.blake3()?.to_hex().to_string().into());
    provenance.insert("parameters".into(), checkpoint.parameters().into());
    Ok(provenance)
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create_new(path).map_err(io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(path))
}

/// Copies a file; its length and BLAKE3 are those of the copy.
fn copy_durably(from: &Path, to: &Path) -> Result<(u64, blake3::Hash)> {
    let bytes = std::fs::copy(from, to).map_err(io(from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(io(to))?;
    Ok((bytes, hash_file(to)?))
}
