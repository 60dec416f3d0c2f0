//! One conversion: plan, write under another name, let the runtime open the result, rename, warm the page cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use regex::Regex;
use saccade::config::{
    BundleConfig, CONFIG_FILE, FORMAT_VERSION, FileEntry, FrontEnd, GRAPH_FILE, ModelConfig, Quantisation,
    TOKENIZER_FILE, WEIGHTS_FILE, WeightDtype,
};
use saccade::engine::EngineOptions;
use saccade::family::{Model, TensorSpec, keep_float};
use saccade::format::{Rules, Writer, plan_header};
use saccade::pages;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, hash_file};
use crate::error::{ConvertError, Result, io};
use crate::journal::{Entry, Journal};
use crate::keep::kept;
use crate::place::Place;
use crate::progress::Progress;
use crate::rounding::{Group, Rounding};
use crate::{memory, store};

/// How an INT8 bundle's numbers came about, as `saccade.json` says it.
pub const RECIPE: &str = "w8a8-symmetric; weights per output row, activations per token (some layers in two INT8 parts), KV per head and token";

/// How a conversion stores numbers.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Element type of the linear layers.
    pub dtype: WeightDtype,
    /// Whether the layers that [`store::two_part`] names get their activations in two INT8 parts: closer to the float model, for about a
    /// quarter more work in them.
    pub two_part: bool,
    /// Linear layers of an INT8 bundle that stay float: those whose names, without `.weight`, match one of these.
    pub keep_float: Vec<Regex>,
}

impl From<WeightDtype> for Recipe {
    fn from(dtype: WeightDtype) -> Self {
        Self { dtype, two_part: true, keep_float: Vec::new() }
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
    /// What the layers that stay float by [`Recipe::keep_float`] take more than they would in INT8.
    ///
    /// Units: bytes.
    pub kept_float_bytes: u64,
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
    /// Most memory that one tensor needs while it is converted: as read, as F32, and turned.
    ///
    /// Units: bytes.
    pub peak_bytes: u64,
    /// The layers that stay float by [`Recipe::keep_float`].
    pub kept_float: BTreeSet<String>,
    /// Every tensor, as it is going to be stored.
    #[serde(skip)]
    specs: Vec<TensorSpec>,
}

/// What a conversion has done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it was going to do.
    #[serde(flatten)]
    pub plan: Plan,
    /// Tensors that an earlier run had written.
    pub resumed_tensors: usize,
    /// What rounding changed, of each kind of layer of an INT8 bundle.
    pub rounding: Vec<Group>,
    /// The most memory that this process had resident until the weights were written; `None` where the system does not say.
    ///
    /// Units: bytes.
    pub peak_memory_bytes: Option<u64>,
    /// The largest tensor of the checkpoint in F32.
    ///
    /// Units: bytes.
    pub largest_tensor_bytes: u64,
}

/// Plans a conversion; writes nothing.
///
/// # Errors
/// [`ConvertError::Runtime`] when the plan breaks a rule of the container, [`ConvertError::KeepFloat`] when the recipe does not fit the model.
pub fn plan(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Plan> {
    let dtype = recipe.dtype;
    let kept_float = kept(&checkpoint.specs, &recipe.keep_float, dtype)?;
    let mut specs = checkpoint.specs.clone();
    keep_float(&mut specs, &kept_float).expect("`kept` names linear layers of these");
    let bytes = |specs: &[TensorSpec]| {
        let (_, header) = plan_header(&store::plan(specs, dtype), &BTreeMap::new(), Rules::Bundle)
            .map_err(saccade::Error::from)?;
        Ok::<_, ConvertError>(header)
    };
    let header = bytes(&specs)?;
    Ok(Plan {
        dtype,
        parameters: checkpoint.parameters(),
        tensors: header.tensors.len(),
        weights_bytes: header.file_bytes,
        kept_float_bytes: header.file_bytes.saturating_sub(bytes(&checkpoint.specs)?.file_bytes),
        kv_bytes_per_token: kv_bytes_per_token(&checkpoint.model, dtype),
        tokenizer_bytes: checkpoint.tokenizer.len() as u64,
        graph_bytes: match checkpoint.graph() {
            Some((graph, _)) => graph.metadata().map_err(io(graph))?.len(),
            None => 0,
        },
        // Four bytes read, four as F32, four turned; what is stored comes when those that were read are gone.
        peak_bytes: largest(&specs).saturating_mul(12),
        kept_float,
        specs,
    })
}

/// Parameters of the largest tensor.
fn largest(specs: &[TensorSpec]) -> u64 {
    specs.iter().map(|spec| spec.parameters() as u64).max().unwrap_or(0)
}

/// Keys and values of a token: INT8 with a scale and a sum each, or F32.
fn kv_bytes_per_token(model: &ModelConfig, dtype: WeightDtype) -> u64 {
    let c = model.decoder();
    let head = if dtype == WeightDtype::Int8 { 2 * c.head_dim + 12 } else { 8 * c.head_dim };
    (c.n_layers * c.n_kv_heads * head) as u64
}

/// Converts `checkpoint` into the bundle folder `out`, which must not exist unless `force` is set and it is a bundle. Goes on where an
/// earlier run with the same checkpoint and recipe was stopped; the bundle is the same to the byte.
///
/// # Errors
/// [`ConvertError`]; an existing bundle stays as it was then, and but for [`ConvertError::Stopped`] nothing is left behind.
pub fn convert(
    checkpoint: &mut Checkpoint,
    out: &Path,
    recipe: impl Into<Recipe>,
    force: bool,
    progress: &mut Progress,
) -> Result<Report> {
    let recipe = recipe.into();
    let plan = plan(checkpoint, &recipe)?;
    let part = Place::part_of(out);
    let start = Place::start(out, force, &fingerprint(checkpoint, &recipe)?);
    let (folder, mut journal) = start.map_err(|error| stopped(error, &part, &plan))?;
    let filled = fill(checkpoint, folder.path(), (&plan, &recipe), &mut journal, progress);
    let report = match filled.map_err(|error| stopped(error, &part, &plan)) {
        Err(error @ ConvertError::Stopped { .. }) => {
            folder.leave();
            return Err(error);
        }
        filled => filled?,
    };
    opens(folder.path())?;
    journal.close()?;
    folder.publish()?;
    // The bundle is whole; if this fails, only its first pass is slower.
    if let Err(error) = pages::warm(&out.join(WEIGHTS_FILE)) {
        log::warn!("the page cache could not be warmed: {}", error.sentence());
    }
    Ok(report)
}

/// A hash of everything that the bytes of a bundle depend on.
fn fingerprint(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<String> {
    let Recipe { dtype, two_part, keep_float } = recipe;
    let patterns: Vec<_> = keep_float.iter().map(Regex::as_str).collect();
    let converter = env!("CARGO_PKG_VERSION");
    let graph = match checkpoint.graph() {
        Some((graph, _)) => Some(hash_file(graph)?.to_hex().to_string()),
        None => None,
    };
    let all = serde_json::json!({
        "converter": converter, "format": FORMAT_VERSION, "dtype": dtype, "two_part": two_part, "keep_float": patterns,
        "graph": graph, "checkpoint": checkpoint.fingerprint()?.to_hex().to_string(),
    });
    Ok(blake3::hash(all.to_string().as_bytes()).to_hex().to_string())
}

/// What to say when a file in the folder `part` cannot be written; other errors say it themselves.
fn stopped(error: ConvertError, part: &Path, plan: &Plan) -> ConvertError {
    match error {
        ConvertError::Io { path, source } | ConvertError::Runtime(saccade::Error::Io { path, source })
            if path != part && path.starts_with(part) =>
        {
            let all = plan.weights_bytes + plan.tokenizer_bytes + plan.graph_bytes;
            let missing = all.saturating_sub(bytes_in(part));
            let full = matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
            );
            let advice = match full {
                true => format!("make room for {missing} more bytes on that disk"),
                false => "see that this disk can be written to".into(),
            };
            ConvertError::Stopped { path, part: part.into(), advice, source }
        }
        error => error,
    }
}

/// Bytes of the files in a folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

/// Writes every file of the bundle into `dir`.
fn fill(
    checkpoint: &mut Checkpoint,
    dir: &Path,
    (plan, recipe): (&Plan, &Recipe),
    journal: &mut Journal,
    progress: &mut Progress,
) -> Result<Report> {
    let resumed_tensors;
    let weights = {
        let tensors = store::plan(&plan.specs, plan.dtype);
        let marks: Vec<_> = journal.entries.iter().map_while(Entry::mark).collect();
        let path = dir.join(WEIGHTS_FILE);
        let mut writer = Writer::resume(&path, &tensors, &BTreeMap::new(), Rules::Bundle, &marks)?;
        resumed_tensors = writer.written();
        journal.keep(resumed_tensors)?;
        write_weights(checkpoint, plan, &mut writer, journal, progress)?;
        writer.finish()?
    };
    let peak_memory_bytes = memory::peak_bytes();
    let tokenizer = checkpoint.tokenizer.as_bytes();
    write_durably(&dir.join(TOKENIZER_FILE), tokenizer)?;

    let mut files = vec![
        (WEIGHTS_FILE, weights.bytes, weights.blake3),
        (TOKENIZER_FILE, plan.tokenizer_bytes, blake3::hash(tokenizer)),
    ];
    let mut front_end = None;
    if let Some((graph, replaces)) = checkpoint.graph() {
        let (bytes, hash) = copy_durably(graph, &dir.join(GRAPH_FILE))?;
        files.push((GRAPH_FILE, bytes, hash));
        front_end = Some(FrontEnd { graph: GRAPH_FILE.into(), replaces });
    }
    let config = BundleConfig {
        format_version: FORMAT_VERSION,
        dtype: plan.dtype,
        model: checkpoint.model.clone(),
        quantisation: quantisation(checkpoint, plan, recipe),
        linears: plan
            .specs
            .iter()
            .filter(|spec| spec.is_tiled(plan.dtype))
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
    let path = dir.join(CONFIG_FILE);
    let json = config.to_json().map_err(|source| saccade::Error::Config { path: path.clone(), source })?;
    write_durably(&path, &json)?;
    let rounded = plan.specs.iter().zip(&journal.entries).filter_map(|(spec, entry)| {
        Some((spec.stem(), entry.rounding?, plan.kept_float.contains(spec.stem())))
    });
    Ok(Report {
        plan: plan.clone(),
        resumed_tensors,
        rounding: Group::of(rounded),
        peak_memory_bytes,
        largest_tensor_bytes: 4 * largest(&plan.specs),
    })
}

/// Lets the runtime judge: every tensor, the configuration, and a text tokenizer that fits it.
///
/// # Errors
/// What the runtime refuses.
pub fn opens(dir: &Path) -> Result<()> {
    Model::open(dir, &EngineOptions { threads: 1, ..EngineOptions::default() })?.text()?;
    Ok(())
}

/// Writes the tensors that are missing, one at a time, and an entry of the journal behind each.
fn write_weights(
    checkpoint: &mut Checkpoint,
    plan: &Plan,
    writer: &mut Writer,
    journal: &mut Journal,
    progress: &mut Progress,
) -> Result<()> {
    let mut tensors = 0;
    let resumed = writer.written();
    for spec in &plan.specs {
        let parts = spec.stored(plan.dtype).len();
        tensors += parts;
        if tensors <= resumed {
            let tensors = &writer.header().tensors[tensors - parts..tensors];
            progress.advance(tensors.iter().map(|tensor| tensor.bytes).sum(), &spec.name);
            continue;
        }
        let values = checkpoint.read(spec)?;
        let quantised = spec.is_tiled(plan.dtype) || plan.kept_float.contains(spec.stem());
        let rounding = quantised.then(|| Rounding::of(&values, spec.matrix()[1]));
        let stored = store::encode(spec, values, plan.dtype).map_err(|reason| ConvertError::Tensor {
            path: checkpoint.path().into(),
            name: spec.name.clone(),
            reason,
        })?;
        for (tensor, bytes) in stored {
            writer.write(&tensor.name, &bytes)?;
            progress.advance(bytes.len() as u64, &spec.name);
        }
        journal.add(writer.mark()?, rounding)?;
    }
    Ok(())
}

fn quantisation(checkpoint: &Checkpoint, plan: &Plan, recipe: &Recipe) -> Quantisation {
    let dtype = plan.dtype;
    let words = match dtype {
        WeightDtype::Int8 => RECIPE.to_owned(),
        WeightDtype::F16 => "none; linear layers in F16".to_owned(),
        WeightDtype::F32 => "none; everything in F32".to_owned(),
    };
    let float_tensors = match dtype {
        WeightDtype::Int8 => store::float_patterns(&checkpoint.specs, dtype),
        WeightDtype::F16 | WeightDtype::F32 => Vec::new(),
    };
    let tiled = plan.specs.iter().filter(|spec| spec.is_tiled(dtype)).map(TensorSpec::stem);
    let two_part_activations = tiled
        .filter(|stem| recipe.two_part && store::two_part(&checkpoint.model, stem))
        .map(str::to_owned)
        .collect();
    Quantisation { recipe: words, float_tensors, two_part_activations, kept_float: plan.kept_float.clone() }
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
    let mut source = File::open(from).map_err(io(from))?;
    let mut file = File::create(to).map_err(io(to))?;
    // Whoever cannot go on here is nearly always the disk that is written to.
    let bytes = std::io::copy(&mut source, &mut file).map_err(io(to))?;
    file.sync_all().map_err(io(to))?;
    Ok((bytes, hash_file(to)?))
}
