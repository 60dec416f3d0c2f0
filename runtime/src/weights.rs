//! A bundle's weights: one mapped file, every tensor checked against the configuration before anything can use it.
//!
//! What [`Weights::open`] returns is complete: each tensor that the configuration implies is there with the expected
//! name, element type and shape, inside the file and aligned, and there is nothing else. It does not prove that the
//! bytes are the ones that were converted; `saccade-convert verify` and the daemon's scrub compare hashes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;

use crate::config::{
    BundleConfig, CONFIG_FILE, ConfigError, FileEntry, MAX_CONFIG_BYTES, WEIGHTS_FILE, WeightDtype,
};
use crate::engine::Linear;
use crate::family::{TensorSpec, keep_float, tensors};
use crate::format::{Dtype, Header, Rules, TensorInfo, TensorPlan, open_file, read_header};
use crate::pages::{Map, Pages};
use crate::quant::TilesI8;
use crate::{Error, Result};

/// A mapped `weights.safetensors` and the `saccade.json` beside it.
pub(crate) struct Weights {
    dir: PathBuf,
    config: BundleConfig,
    header: Header,
    map: Map,
}

impl Weights {
    /// Reads `saccade.json`, maps the weights and checks every tensor.
    pub(crate) fn open(dir: &Path, pages: Pages) -> Result<Self> {
        let config = read_config(dir)?;
        let path = dir.join(WEIGHTS_FILE);
        let file = open_listed(&path, &config.files[WEIGHTS_FILE])?;
        let map = Map::of_file(&file, pages).map_err(|source| Error::Io { path: path.clone(), source })?;
        let found = map.len() as u64;
        let header =
            read_header(&map, found, Rules::Bundle).map_err(|rule| Error::Format(rule.in_file(&path)))?;
        let specs = specs(&config).map_err(|reason| Error::Tensor { path: path.clone(), reason })?;
        check_tensors(&specs, config.dtype, &header)
            .map_err(|reason| Error::Tensor { path: path.clone(), reason })?;
        check_linears(&specs, &config).map_err(|reason| Error::Tensor { path, reason })?;
        Ok(Self { dir: dir.to_path_buf(), config, header, map })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn config(&self) -> &BundleConfig {
        &self.config
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    /// Finds the linear layer or float matrix `stem`.weight.
    pub(crate) fn linear(&self, stem: &str) -> Result<LinearRef> {
        let weight = self.info(&format!("{stem}.weight"))?;
        let kind = match weight.dtype {
            Dtype::I8 => {
                let (scale, sum) =
                    (self.range(&format!("{stem}.scale"))?, self.range(&format!("{stem}.sum"))?);
                let parts = if self.config.quantisation.two_part_activations.contains(stem) { 2 } else { 1 };
                LinearKind::I8 { scale, sum, parts }
            }
            Dtype::F16 => LinearKind::F16,
            _ => LinearKind::F32,
        };
        let [n, k] = match kind {
            LinearKind::I8 { .. } => {
                self.config.linears.get(stem).copied().ok_or_else(|| self.absent(stem))?
            }
            _ => [weight.shape[0], weight.shape[1]],
        };
        Ok(LinearRef { kind, n, k, weight: bytes_of(weight) })
    }

    /// Finds a float matrix.
    pub(crate) fn table(&self, name: &str) -> Result<TableRef> {
        let info = self.info(name)?;
        Ok(TableRef { half: info.dtype == Dtype::F16, cols: info.shape[1], bytes: bytes_of(info) })
    }

    /// Finds an F32 vector (or any F32 tensor, flat).
    pub(crate) fn vector(&self, name: &str) -> Result<VectorRef> {
        Ok(VectorRef { bytes: self.range(name)? })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.find(name).ok_or_else(|| self.absent(name))
    }

    fn range(&self, name: &str) -> Result<Range<usize>> {
        self.info(name).map(bytes_of)
    }

    fn absent(&self, name: &str) -> Error {
        self.refused(format!("tensor `{name}` is missing"))
    }

    /// Something about a tensor that makes the bundle unusable.
    pub(crate) fn refused(&self, reason: String) -> Error {
        Error::Tensor { path: self.dir.join(WEIGHTS_FILE), reason }
    }
}

/// The bytes of a tensor in the mapping. The header was checked against the file's size, which fits memory.
#[allow(clippy::cast_possible_truncation)]
fn bytes_of(info: &TensorInfo) -> Range<usize> {
    info.offset as usize..(info.offset + info.bytes) as usize
}

/// A linear layer's place in the file.
#[derive(Clone, Debug, Hash)]
pub(crate) struct LinearRef {
    kind: LinearKind,
    /// Outputs.
    pub(crate) n: usize,
    /// Inputs.
    pub(crate) k: usize,
    weight: Range<usize>,
}

#[derive(Clone, Debug, Hash)]
enum LinearKind {
    I8 { scale: Range<usize>, sum: Range<usize>, parts: usize },
    F16,
    F32,
}

impl LinearRef {
    /// The layer's weights, ready for the engine.
    pub(crate) fn get<'a>(&self, w: &'a Weights) -> Linear<'a> {
        let weight = &w.map[self.weight.clone()];
        match &self.kind {
            LinearKind::I8 { scale, sum, parts } => Linear::I8 {
                tiles: TilesI8 {
                    tiles: bytemuck::cast_slice(weight),
                    scale: bytemuck::cast_slice(&w.map[scale.clone()]),
                    sum: bytemuck::cast_slice(&w.map[sum.clone()]),
                    n: self.n,
                    k: self.k,
                },
                parts: *parts,
            },
            LinearKind::F16 => Linear::F16 { rows: bytemuck::cast_slice(weight), n: self.n, k: self.k },
            LinearKind::F32 => Linear::F32 { rows: bytemuck::cast_slice(weight), n: self.n, k: self.k },
        }
    }

    /// Whether it is of INT8 tiles.
    pub(crate) fn is_int8(&self) -> bool {
        matches!(self.kind, LinearKind::I8 { .. })
    }

    /// Where its parts begin in the file: of tiles, what scales and INT8 rows a token belong to them.
    #[cfg(feature = "cuda")]
    pub(crate) fn place(&self) -> (usize, LinearPlace) {
        let place = match &self.kind {
            LinearKind::I8 { scale, parts, .. } => LinearPlace::Tiles { scale: scale.start, parts: *parts },
            LinearKind::F16 => LinearPlace::Rows { half: true },
            LinearKind::F32 => LinearPlace::Rows { half: false },
        };
        (self.weight.start, place)
    }

    /// Row `row` as floats: an embedding look-up. `out [k]`.
    pub(crate) fn read_row(&self, w: &Weights, row: usize, out: &mut [f32]) {
        self.get(w).row(row, out);
    }
}

/// What lies at the place of a linear layer.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinearPlace {
    Tiles { scale: usize, parts: usize },
    Rows { half: bool },
}

/// The place in the file of a float matrix whose rows are added to others.
#[derive(Clone, Debug, Hash)]
pub(crate) struct TableRef {
    half: bool,
    cols: usize,
    bytes: Range<usize>,
}

impl TableRef {
    /// Where it begins in the file, and whether it is of half floats.
    #[cfg(feature = "cuda")]
    pub(crate) fn place(&self) -> (usize, bool) {
        (self.bytes.start, self.half)
    }

    /// Adds row `row` to `x [cols]`.
    pub(crate) fn add_row(&self, w: &Weights, row: usize, x: &mut [f32]) {
        let bytes = &w.map[self.bytes.clone()];
        let at = row * self.cols;
        if self.half {
            let row = &bytemuck::cast_slice::<u8, f16>(bytes)[at..at + self.cols];
            x.iter_mut().zip(row).for_each(|(x, v)| *x += v.to_f32());
        } else {
            let row: &[f32] = &bytemuck::cast_slice(bytes)[at..at + self.cols];
            x.iter_mut().zip(row).for_each(|(x, v)| *x += v);
        }
    }
}

/// An F32 tensor's place in the file.
#[derive(Clone, Debug, Hash)]
pub(crate) struct VectorRef {
    bytes: Range<usize>,
}

impl VectorRef {
    /// Where it begins in the file.
    #[cfg(feature = "cuda")]
    pub(crate) fn place(&self) -> usize {
        self.bytes.start
    }

    /// The values.
    pub(crate) fn get<'a>(&self, w: &'a Weights) -> &'a [f32] {
        bytemuck::cast_slice(&w.map[self.bytes.clone()])
    }
}

/// Opens a file that `saccade.json` lists.
pub(crate) fn open_listed(path: &Path, entry: &FileEntry) -> Result<File> {
    let (file, found) = open_file(path).map_err(|error| match error {
        Error::Io { path, source } if source.kind() == ErrorKind::NotFound => Error::Missing { path },
        error => error,
    })?;
    if found != entry.bytes {
        return Err(Error::FileSize { path: path.into(), expected: entry.bytes, found });
    }
    Ok(file)
}

/// What a file holds, its first `limit` bytes.
pub(crate) fn read_at_most(file: File, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_config(dir: &Path) -> Result<BundleConfig> {
    let path = dir.join(CONFIG_FILE);
    let (file, found) = open_file(&path).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            Error::NoBundle { path: dir.into() }
        }
        error => error,
    })?;
    let limit = MAX_CONFIG_BYTES as u64;
    if found > limit {
        return Err(Error::Config { path, source: ConfigError::TooLarge { found, limit } });
    }
    let bytes = read_at_most(file, limit).map_err(|source| Error::Io { path: path.clone(), source })?;
    BundleConfig::from_json(&bytes).map_err(|source| Error::Config { path, source })
}

/// The tensors that the configuration implies, as it says they are stored.
fn specs(config: &BundleConfig) -> std::result::Result<Vec<TensorSpec>, String> {
    let mut specs = tensors(&config.model);
    let kept = &config.quantisation.kept_float;
    if config.dtype != WeightDtype::Int8 && !kept.is_empty() {
        return Err(format!(
            "saccade.json lists `kept_float` layers, but no layer of a {:?} bundle is INT8",
            config.dtype
        ));
    }
    keep_float(&mut specs, kept).map_err(|name| {
        format!("saccade.json keeps `{name}` float, which is no linear layer of this model")
    })?;
    Ok(specs)
}

/// Every tensor that the configuration implies, and no other.
fn check_tensors(
    specs: &[TensorSpec],
    dtype: WeightDtype,
    header: &Header,
) -> std::result::Result<(), String> {
    let expected: BTreeMap<String, TensorPlan> =
        specs.iter().flat_map(|s| s.stored(dtype)).map(|t| (t.name.clone(), t)).collect();
    for (name, want) in &expected {
        let Some(found) = header.find(name) else {
            return Err(format!("tensor `{name}` is missing; convert the checkpoint again"));
        };
        if found.dtype != want.dtype {
            return Err(format!(
                "tensor `{name}`: element type {:?}, expected {:?}",
                found.dtype, want.dtype
            ));
        }
        if found.shape != want.shape {
            return Err(format!(
                "tensor `{name}`: shape {:?} does not match the model's {:?}",
                found.shape, want.shape
            ));
        }
    }
    match header.tensors.iter().find(|t| !expected.contains_key(&t.name)) {
        Some(TensorInfo { name, .. }) => {
            Err(format!("tensor `{name}` does not belong to this model; is the bundle of another family?"))
        }
        None => Ok(()),
    }
}

/// The logical sizes of the tiled layers, which their padded shapes cannot tell.
fn check_linears(specs: &[TensorSpec], config: &BundleConfig) -> std::result::Result<(), String> {
    let expected: BTreeMap<String, [usize; 2]> = specs
        .iter()
        .filter(|s| s.is_tiled(config.dtype))
        .map(|s| (s.stem().to_string(), s.matrix()))
        .collect();
    let mut two_part = config.quantisation.two_part_activations.iter();
    if let Some(name) = two_part.find(|name| !expected.contains_key(*name)) {
        return Err(format!(
            "saccade.json gives activations in two parts to `{name}`, which is no tiled layer"
        ));
    }
    if expected == config.linears {
        return Ok(());
    }
    Err(format!("saccade.json lists other `linears` than the {} of this model", expected.len()))
}
