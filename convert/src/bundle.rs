//! One conversion: plan, write under another name, let the runtime open the result, rename.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use saccade::config::{
    BundleConfig, CONFIG_FILE, FORMAT_VERSION, FileEntry, Quantisation, TOKENIZER_FILE, WEIGHTS_FILE,
    WeightDtype,
};
use saccade::engine::EngineOptions;
use saccade::family::{Model, TensorSpec};
use saccade::format::{Rules, TensorPlan, Writer, Written, plan_header};
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::{ConvertError, Result, io};
use crate::progress::Progress;
use crate::store;

/// How an INT8 bundle's numbers came about, as `saccade.json` says it.
pub const RECIPE: &str = "w8a8-symmetric; weights per output row, activations per token (some layers in two INT8 parts), KV per head and token";

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
    /// Length of the text tokenizer.
    ///
    /// Units: bytes.
    pub tokenizer_bytes: u64,
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
        tokenizer_bytes: checkpoint.tokenizer.len() as u64,
        // Two bytes read, four as F32, four turned, one or four stored.
        peak_bytes: largest.saturating_mul(14),
    })
}

/// Converts `checkpoint` into the bundle folder `out`, which must not exist unless `force` is set and it is a bundle.
///
/// # Errors
/// [`ConvertError`]; nothing is left behind then, and an existing bundle stays as it was.
pub fn convert(
    checkpoint: &mut Checkpoint,
    out: &Path,
    dtype: WeightDtype,
    force: bool,
    progress: &mut Progress,
) -> Result<Plan> {
    let plan = plan(checkpoint, dtype)?;
    let folder = PartFolder::create(out, force)?;
    let weights = write_weights(checkpoint, &folder.part, dtype, progress)?;
    let tokenizer = checkpoint.tokenizer.as_bytes();
    write_durably(&folder.part.join(TOKENIZER_FILE), tokenizer)?;

    let files = [
        (WEIGHTS_FILE, weights.bytes, weights.blake3),
        (TOKENIZER_FILE, plan.tokenizer_bytes, blake3::hash(tokenizer)),
    ];
    let config = BundleConfig {
        format_version: FORMAT_VERSION,
        dtype,
        model: checkpoint.model.clone(),
        quantisation: quantisation(checkpoint, dtype),
        linears: checkpoint
            .specs
            .iter()
            .filter(|spec| spec.is_tiled(dtype))
            .map(|spec| (spec.stem().to_owned(), spec.matrix()))
            .collect(),
        provenance: provenance(checkpoint)?,
        files: files
            .into_iter()
            .map(|(name, bytes, hash)| {
                (name.to_owned(), FileEntry { bytes, blake3: hash.to_hex().to_string() })
            })
            .collect(),
        self_blake3: String::new(),
    };
    let path = folder.part.join(CONFIG_FILE);
    let json = config.to_json().map_err(|source| saccade::Error::Config { path: path.clone(), source })?;
    write_durably(&path, &json)?;

    opens(&folder.part)?;
    folder.publish()?;
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

fn quantisation(checkpoint: &Checkpoint, dtype: WeightDtype) -> Quantisation {
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
    let two_part_activations = tiled.filter(|stem| store::two_part(stem)).map(str::to_owned).collect();
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

/// `OUT.part` in the making: removed when dropped, unless it was published as `OUT`.
struct PartFolder {
    out: PathBuf,
    part: PathBuf,
    published: bool,
}

impl PartFolder {
    fn create(out: &Path, force: bool) -> Result<Self> {
        // Without a trailing slash, so that a suffix can be appended.
        let out: PathBuf = out.components().collect();
        if out.file_name().is_none() {
            return Err(ConvertError::NotReplaced { path: out });
        }
        let parent = parent(&out);
        if !parent.is_dir() {
            let reason = "this folder does not exist; create it first or choose another place for the bundle";
            return Err(ConvertError::Refused { path: parent.into(), reason: reason.into() });
        }
        match fs::symlink_metadata(&out) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io(&out)(e)),
            Ok(_) if !force => return Err(ConvertError::Exists { path: out }),
            Ok(found) if found.is_dir() && out.join(CONFIG_FILE).is_file() => {}
            Ok(_) => return Err(ConvertError::NotReplaced { path: out }),
        }
        let part = suffixed(&out, ".part");
        remove_leftover(&part)?;
        fs::create_dir(&part).map_err(io(&part))?;
        Ok(Self { out, part, published: false })
    }

    /// Gives the folder its final name. A bundle that has it already steps aside first and is removed last.
    fn publish(mut self) -> Result<()> {
        let sync = |folder: &Path| File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder));
        sync(&self.part)?;
        let old = suffixed(&self.out, ".replaced.part");
        remove_leftover(&old)?;
        let replaces = self.out.exists();
        if replaces {
            fs::rename(&self.out, &old).map_err(io(&self.out))?;
        }
        if let Err(e) = fs::rename(&self.part, &self.out) {
            if replaces {
                fs::rename(&old, &self.out).map_err(io(&old))?;
            }
            return Err(io(&self.out)(e));
        }
        self.published = true;
        sync(parent(&self.out))?;
        if replaces {
            fs::remove_dir_all(&old).map_err(io(&old))?;
        }
        Ok(())
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: the reason for stopping is already on its way to the caller.
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}

/// Removes what a killed run left: only a folder of our suffix with nothing but bundle files in it.
fn remove_leftover(part: &Path) -> Result<()> {
    let entries = match fs::read_dir(part) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io(part))?,
    };
    for entry in entries {
        let name = entry.map_err(io(part))?.file_name();
        let name = name.to_string_lossy();
        let ours = [WEIGHTS_FILE, TOKENIZER_FILE, CONFIG_FILE].contains(&name.trim_end_matches(".part"));
        if !ours {
            let reason = format!(
                "it is in the way and holds `{}`, which is no bundle's file; remove it",
                name.escape_debug()
            );
            return Err(ConvertError::Refused { path: part.into(), reason });
        }
    }
    fs::remove_dir_all(part).map_err(io(part))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
