//! A board as a set of facts: the file as it is written, and the checked board that comes out of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fact::{Checker, RawFact};
use crate::machine::{Cpu, Memory};
use crate::{Error, Fact, Result, Root, Source};

/// What is known about a board. It only comes out of a checked file, so that its facts fit together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Board {
    /// What people call it.
    pub name: String,
    /// The family of chips: `nano`, `tx2`, `xavier`, `orin`, `thor`; `host` for a machine we do not know.
    pub generation: String,
    /// The modules that one device tree fits, e.g. `orin-nano`.
    pub product_line: String,
    /// The module with its memory, e.g. `Orin Nano 8GB`.
    pub variant: String,
    /// The chip, as the device tree calls it.
    pub soc: Option<String>,
    /// Part numbers of the module, as they occur in the device tree; substrings, since suffixes vary.
    pub modules: Vec<String>,
    /// Names in the boot control file.
    pub boot_specs: Vec<String>,
    /// What the model text of the device tree contains.
    pub model_names: Vec<String>,
    /// The graphics processor, if the board has one that we know.
    pub gpu: Option<Gpu>,
    /// Memory, as sold; what the kernel manages is a little less.
    pub memory_mib: Fact<u64>,
    /// Bandwidth of the memory, in decimal GB/s.
    pub memory_gb_per_s: Option<Fact<f64>>,
    /// The same in the super modes.
    pub memory_super_gb_per_s: Option<Fact<f64>>,
    /// The kind of processor core.
    pub cpu_core: Option<Fact<String>>,
    /// How many there are.
    pub cpu_cores: Fact<u32>,
    /// The highest clock of the processor.
    pub cpu_max_mhz: Option<Fact<u32>>,
    /// The same in the super modes.
    pub cpu_max_super_mhz: Option<Fact<u32>>,
    /// The processor's features that kernels ask for, by the names of `/proc/cpuinfo`.
    pub cpu_features: Option<Fact<Vec<String>>>,
    /// Deep-learning accelerators beside the GPU.
    pub dla_count: Option<Fact<u32>>,
    /// Hardware video encoders.
    pub video_encoders: Option<Fact<u32>>,
    /// The power rail that carries everything; without one the rails are added up.
    pub total_power_rail: Option<Fact<String>>,
    /// The power modes by name.
    pub power_modes: Option<Fact<Vec<String>>>,
    /// The power mode the board starts in.
    pub default_power_mode: Option<Fact<String>>,
    /// The power modes that only the super table has.
    pub super_power_modes: Option<Fact<Vec<String>>>,
    /// Where the facts are from.
    pub sources: BTreeMap<String, Source>,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// What it can run; the driver's own answer wins.
    pub compute_capability: Fact<ComputeCapability>,
    /// Streaming multiprocessors.
    pub sm_count: Fact<u32>,
    /// CUDA cores.
    pub cuda_cores: Fact<u32>,
    /// Tensor cores.
    pub tensor_cores: Fact<u32>,
    /// Highest clock.
    pub max_mhz: Fact<u32>,
    /// Highest clock in the super modes.
    pub max_super_mhz: Option<Fact<u32>>,
    /// Dense INT8 operations (not sparse, no accelerators), in 10¹² a second at the highest clock.
    pub int8_dense_tops: Option<Fact<f64>>,
    /// The same in the super modes.
    pub int8_dense_super_tops: Option<Fact<f64>>,
}

/// A CUDA compute capability such as 8.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ComputeCapability {
    /// Before the point.
    pub major: u32,
    /// After the point.
    pub minor: u32,
}

impl std::fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The file, key for key.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawBoard {
    name: String,
    generation: String,
    product_line: String,
    variant: String,
    soc: Option<String>,
    #[serde(default)]
    modules: Vec<String>,
    #[serde(default)]
    boot_specs: Vec<String>,
    #[serde(default)]
    model_names: Vec<String>,
    compute_capability: Option<RawFact<String>>,
    sm_count: Option<RawFact<u32>>,
    cuda_cores: Option<RawFact<u32>>,
    tensor_cores: Option<RawFact<u32>>,
    gpu_max_mhz: Option<RawFact<u32>>,
    gpu_max_super_mhz: Option<RawFact<u32>>,
    int8_dense_tops: Option<RawFact<f64>>,
    int8_dense_super_tops: Option<RawFact<f64>>,
    memory_mib: Option<RawFact<u64>>,
    memory_gb_per_s: Option<RawFact<f64>>,
    memory_super_gb_per_s: Option<RawFact<f64>>,
    cpu_core: Option<RawFact<String>>,
    cpu_cores: Option<RawFact<u32>>,
    cpu_max_mhz: Option<RawFact<u32>>,
    cpu_max_super_mhz: Option<RawFact<u32>>,
    cpu_features: Option<RawFact<Vec<String>>>,
    dla_count: Option<RawFact<u32>>,
    video_encoders: Option<RawFact<u32>>,
    total_power_rail: Option<RawFact<String>>,
    power_modes: Option<RawFact<Vec<String>>>,
    default_power_mode: Option<RawFact<String>>,
    super_power_modes: Option<RawFact<Vec<String>>>,
    sources: BTreeMap<String, Source>,
}

impl Board {
    /// Reads a board file from disk; facts that are to be measured are measured below `root`.
    ///
    /// # Errors
    /// [`Error::Read`], and those of [`Self::parse`].
    pub fn load(path: &Path, root: &Root) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::parse(path, &text, root)
    }

    /// Checks the text of a board file; `path` is for messages. Facts that are to be measured are measured below `root`.
    ///
    /// # Errors
    /// [`Error::Parse`] for a typo, [`Error::Fact`] for a fact that breaks a rule.
    pub fn parse(path: &Path, text: &str, root: &Root) -> Result<Self> {
        let mut raw: RawBoard = toml::from_str(text)
            .map_err(|e| Error::Parse { path: path.to_path_buf(), source: Box::new(e) })?;
        let sources = std::mem::take(&mut raw.sources);
        let mut check = Checker::new(path, &sources);
        let gpu = gpu(&mut raw, &mut check)?;
        let cpu = Cpu::read(root);
        let memory = Some(Memory::read(root).total_mib).filter(|&mib| mib > 0);
        let memory = check.measurable("memory-mib", raw.memory_mib, memory)?;
        let cores = Some(cpu.cores).filter(|&cores| cores > 0);
        let cores = check.measurable("cpu-cores", raw.cpu_cores, cores)?;
        let features = check.measurable("cpu-features", raw.cpu_features, Some(cpu.features))?;
        let power_modes = check.optional("power-modes", raw.power_modes)?;
        let default_power_mode = check.optional("default-power-mode", raw.default_power_mode)?;
        if let Some(default) = &default_power_mode
            && !power_modes.as_ref().is_some_and(|modes| modes.value.contains(&default.value))
        {
            let rule = format!("is `{}`, which `power-modes` does not list", default.value);
            return Err(check.broken("default-power-mode", rule));
        }
        let board = Self {
            gpu,
            memory_mib: check.required("memory-mib", memory)?,
            memory_gb_per_s: check.optional("memory-gb-per-s", raw.memory_gb_per_s)?,
            memory_super_gb_per_s: check.optional("memory-super-gb-per-s", raw.memory_super_gb_per_s)?,
            cpu_core: check.measurable("cpu-core", raw.cpu_core, cpu.core)?,
            cpu_cores: check.required("cpu-cores", cores)?,
            cpu_max_mhz: check.measurable("cpu-max-mhz", raw.cpu_max_mhz, cpu.max_mhz)?,
            cpu_max_super_mhz: check.optional("cpu-max-super-mhz", raw.cpu_max_super_mhz)?,
            cpu_features: features,
            dla_count: check.optional("dla-count", raw.dla_count)?,
            video_encoders: check.optional("video-encoders", raw.video_encoders)?,
            total_power_rail: check.optional("total-power-rail", raw.total_power_rail)?,
            power_modes,
            default_power_mode,
            super_power_modes: check.optional("super-power-modes", raw.super_power_modes)?,
            name: raw.name,
            generation: raw.generation,
            product_line: raw.product_line,
            variant: raw.variant,
            soc: raw.soc,
            modules: raw.modules,
            boot_specs: raw.boot_specs,
            model_names: raw.model_names,
            sources: BTreeMap::new(),
        };
        check.finish()?;
        Ok(Self { sources, ..board })
    }
}

/// The GPU's facts come together or not at all.
fn gpu(raw: &mut RawBoard, check: &mut Checker<'_>) -> Result<Option<Gpu>> {
    let Some(capability) = check.optional("compute-capability", raw.compute_capability.take())? else {
        let rest = [
            ("sm-count", raw.sm_count.is_some()),
            ("cuda-cores", raw.cuda_cores.is_some()),
            ("tensor-cores", raw.tensor_cores.is_some()),
            ("gpu-max-mhz", raw.gpu_max_mhz.is_some()),
            ("gpu-max-super-mhz", raw.gpu_max_super_mhz.is_some()),
            ("int8-dense-tops", raw.int8_dense_tops.is_some()),
            ("int8-dense-super-tops", raw.int8_dense_super_tops.is_some()),
        ];
        return match rest.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(check.broken(key, "needs `compute-capability` beside it")),
            None => Ok(None),
        };
    };
    let number = parse_capability(&capability.value).ok_or_else(|| {
        check.broken("compute-capability", format!("is `{}`, not MAJOR.MINOR such as 8.7", capability.value))
    })?;
    let sm_count = check.optional("sm-count", raw.sm_count.take())?;
    let cuda_cores = check.optional("cuda-cores", raw.cuda_cores.take())?;
    let tensor_cores = check.optional("tensor-cores", raw.tensor_cores.take())?;
    let max_mhz = check.optional("gpu-max-mhz", raw.gpu_max_mhz.take())?;
    Ok(Some(Gpu {
        compute_capability: Fact { value: number, source: capability.source },
        sm_count: check.required("sm-count", sm_count)?,
        cuda_cores: check.required("cuda-cores", cuda_cores)?,
        tensor_cores: check.required("tensor-cores", tensor_cores)?,
        max_mhz: check.required("gpu-max-mhz", max_mhz)?,
        max_super_mhz: check.optional("gpu-max-super-mhz", raw.gpu_max_super_mhz.take())?,
        int8_dense_tops: check.optional("int8-dense-tops", raw.int8_dense_tops.take())?,
        int8_dense_super_tops: check.optional("int8-dense-super-tops", raw.int8_dense_super_tops.take())?,
    }))
}

fn parse_capability(text: &str) -> Option<ComputeCapability> {
    let (major, minor) = text.split_once('.')?;
    Some(ComputeCapability { major: major.parse().ok()?, minor: minor.parse().ok()? })
}
