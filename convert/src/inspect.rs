//! What a bundle holds: metadata, every tensor, totals per module.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use saccade::config::{BundleConfig, CONFIG_FILE, FrontEnd, MAX_CONFIG_BYTES, WEIGHTS_FILE};
use saccade::family::tensors;
use saccade::format::{Rules, TensorInfo, read_file_header};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Result, io};

/// Everything that `inspect` shows.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The model family, as `saccade.json` spells it.
    pub family: Value,
    /// The model's name.
    pub name: String,
    /// How linear layers are stored.
    pub dtype: Value,
    /// Parameters of the model, as it was trained.
    pub parameters: u64,
    /// Length of the weights file.
    ///
    /// Units: bytes.
    pub bytes: u64,
    /// The ONNX graph that reads pictures, and what it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub front_end: Option<FrontEnd>,
    /// Every tensor in file order.
    pub tensors: Vec<TensorLine>,
    /// Where the weights come from.
    pub provenance: Map<String, Value>,
}

/// One tensor of a bundle.
#[derive(Debug, Clone, Serialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: &'static str,
    /// Where it starts in the file.
    ///
    /// Units: bytes.
    pub offset: u64,
    /// Its length.
    ///
    /// Units: bytes.
    pub bytes: u64,
    /// Smallest and largest scale of its rows, for INT8 tiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<[f32; 2]>,
}

/// Reads `saccade.json` of a bundle folder.
///
/// # Errors
/// [`saccade::Error`] when the folder is no bundle or the description breaks a rule.
pub fn read_config(dir: &Path) -> Result<BundleConfig> {
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(saccade::Error::NoBundle { path: dir.into() }.into());
    }
    let found = path.metadata().map_err(io(&path))?.len();
    if found > MAX_CONFIG_BYTES as u64 {
        return Err(saccade::Error::FileSize { path, expected: MAX_CONFIG_BYTES as u64, found }.into());
    }
    let bytes = std::fs::read(&path).map_err(io(&path))?;
    Ok(BundleConfig::from_json(&bytes).map_err(|source| saccade::Error::Config { path, source })?)
}

/// Reads what a bundle says of itself; the weights are not read but for their scales.
///
/// # Errors
/// [`crate::ConvertError`] when the folder is no bundle or its files break a rule.
pub fn inspect(dir: &Path) -> Result<Inspection> {
    let config = read_config(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    let header = read_file_header(&path, Rules::Bundle)?;
    let file = File::open(&path).map_err(io(&path))?;
    let mut lines = Vec::with_capacity(header.tensors.len());
    for tensor in &header.tensors {
        let stem = tensor.name.strip_suffix(".weight").filter(|stem| config.linears.contains_key(*stem));
        let scales = stem.and_then(|stem| header.find(&format!("{stem}.scale")));
        let scale = scales.map(|scales| range(&file, scales).map_err(io(&path))).transpose()?;
        let TensorInfo { name, dtype, shape, offset, bytes } = tensor.clone();
        lines.push(TensorLine { name, shape, dtype: dtype.name(), offset, bytes, scale });
    }
    let spelled = |value: serde_json::Result<Value>| value.unwrap_or(Value::Null);
    Ok(Inspection {
        family: config.model.family().into(),
        name: config.model.name().to_owned(),
        dtype: spelled(serde_json::to_value(config.dtype)),
        parameters: tensors(&config.model).iter().map(|spec| spec.parameters() as u64).sum(),
        bytes: header.file_bytes,
        front_end: config.front_end,
        tensors: lines,
        provenance: config.provenance,
    })
}

/// Smallest and largest of an F32 tensor.
fn range(file: &File, tensor: &TensorInfo) -> std::io::Result<[f32; 2]> {
    let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, tensor.offset)?;
    let values = bytes.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v));
    Ok(values.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]))
}

impl Inspection {
    /// The same for people: metadata, a table, totals per module.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { family, name, dtype, parameters, bytes, front_end, tensors, provenance } = self;
        let spelled = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let mut text = format!(
            "family      {}\nname        {name}\ndtype       {}\nparameters  {parameters}\nbytes       {bytes} ({:.2} times smaller than F32)\n",
            spelled(family),
            spelled(dtype),
            4.0 * ratio(*parameters, *bytes),
        );
        if let Some(FrontEnd { graph, .. }) = front_end {
            let _ = writeln!(text, "pictures    read by the ONNX graph {graph}");
        }
        for (key, value) in provenance {
            let _ = writeln!(text, "{key:<11} {value}");
        }

        let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0).max("tensor".len());
        let _ = writeln!(
            text,
            "\n{:width$}  {:5} {:>20} {:>10} {:>10}  scales",
            "tensor", "dtype", "shape", "offset", "bytes"
        );
        for TensorLine { name, shape, dtype, offset, bytes, scale } in tensors {
            let scale = scale.map_or_else(String::new, |[low, high]| format!("  {low:.3e} … {high:.3e}"));
            let shape = format!("{shape:?}");
            let _ = writeln!(text, "{name:width$}  {dtype:5} {shape:>20} {offset:>10} {bytes:>10}{scale}");
        }

        let mut modules = BTreeMap::<String, (usize, u64)>::new();
        for tensor in tensors {
            let module = modules.entry(module(&tensor.name)).or_default();
            *module = (module.0 + 1, module.1 + tensor.bytes);
        }
        let _ = writeln!(text, "\n{:width$}  {:>7} {:>10}  share", "module", "tensors", "bytes");
        for (module, (count, sum)) in modules {
            let _ =
                writeln!(text, "{module:width$}  {count:>7} {sum:>10}  {:.1} %", 100.0 * ratio(sum, *bytes));
        }
        text
    }
}

/// The module of a tensor: `layers.0`, `image.encoder`, `embed`.
fn module(name: &str) -> String {
    match name.splitn(3, '.').collect::<Vec<_>>()[..] {
        [module, part, _] => format!("{module}.{part}"),
        [module, ..] => module.to_owned(),
        [] => String::new(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
pub(crate) fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}
