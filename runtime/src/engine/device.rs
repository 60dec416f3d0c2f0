//! Where the networks run: what was asked for, what was chosen, and why. Nothing falls back without a word.

use std::path::PathBuf;

/// What to run the decoder and the image networks on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// A card, or nothing.
    Cuda,
    /// A card where one can be had, the CPU otherwise.
    Auto,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("there is no device `{name}`; choose one of: auto, cpu, cuda")),
        }
    }
}

/// How to choose a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// What is asked for.
    pub choice: DeviceChoice,
    /// The card's number.
    pub ordinal: usize,
    /// The folder of compiled kernels; `None` looks for `cuda` and `../cubin` beside the running program.
    pub kernels: Option<PathBuf>,
}

/// What a model's decoder and image networks run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// `cpu` or `cuda`.
    pub name: &'static str,
    /// Which one: the kernel set, or the card's name.
    pub what: String,
    /// Why this one.
    pub reason: String,
}

/// A card that was asked for in a build that knows none.
#[cfg(not(feature = "cuda"))]
pub(super) const NOT_BUILT: &str = "this build has no CUDA engine; build it with `--features cuda`";

/// Where compiled kernels are looked for.
#[cfg(feature = "cuda")]
pub(crate) fn kernels_dir(options: &DeviceOptions) -> PathBuf {
    if let Some(dir) = &options.kernels {
        return dir.clone();
    }
    let program = std::env::current_exe().unwrap_or_default();
    let beside = |name: &str| program.parent().unwrap_or(&program).join(name);
    // `cuda` in a package, `target/cubin` in a checkout.
    [beside("cuda"), beside("../cubin")]
        .into_iter()
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| beside("cuda"))
}
