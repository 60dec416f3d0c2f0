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

/// Where a card finds the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Where its attributes and a timing of a second say.
    #[default]
    Auto,
    /// In the pages of the mapped file, or nowhere.
    Mapped,
    /// In memory of its own, into which they are copied once.
    Device,
}

impl Placement {
    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mapped => "mapped",
            Self::Device => "device",
        }
    }
}

impl std::str::FromStr for Placement {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Auto, Self::Mapped, Self::Device]
            .into_iter()
            .find(|placement| placement.name() == name)
            .ok_or_else(|| {
                format!("weights cannot be placed as `{name}`; choose one of: auto, device, mapped")
            })
    }
}

/// How to choose a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// What is asked for.
    pub choice: DeviceChoice,
    /// The card's number.
    pub ordinal: usize,
    /// The folder of compiled kernels; `None` looks for `cuda` and `../cubin` beside the running program. `nvrtc` or `nvrtc:LIBRARY` has
    /// them compiled when the card is opened.
    pub kernels: Option<PathBuf>,
    /// Where a card finds the weights; the CPU reads the mapped file.
    pub weights: Placement,
    /// The folder that keeps what was measured to place them; `None` takes `saccade` in the user's cache.
    pub cache: Option<PathBuf>,
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
    /// Where it finds the weights: `mapped` or `device`.
    pub weights: &'static str,
    /// Why there.
    pub weights_reason: String,
}

impl DeviceReport {
    /// Whether it is a card.
    #[must_use]
    pub fn is_card(&self) -> bool {
        self.name == "cuda"
    }

    /// Of the CPU, which reads the mapped file itself.
    #[must_use]
    pub fn cpu(kernels: &str, reason: &str) -> Self {
        Self {
            name: "cpu",
            what: kernels.into(),
            reason: reason.into(),
            weights: Placement::Mapped.name(),
            weights_reason: "the CPU reads the file's own pages".into(),
        }
    }
}

/// A card that was asked for in a build that knows none.
#[cfg(not(feature = "cuda"))]
pub(super) const NOT_BUILT: &str = "this build has no CUDA engine; build it with `--features cuda`";

#[cfg(feature = "cuda")]
impl DeviceOptions {
    /// Where compiled kernels are looked for.
    #[must_use]
    pub fn kernels_dir(&self) -> PathBuf {
        if let Some(dir) = &self.kernels {
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

    /// Where what was measured is kept, if the user has a place for such things.
    pub(crate) fn cache_dir(&self) -> Option<PathBuf> {
        let of = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let users = || of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")));
        self.cache.clone().or_else(|| Some(users()?.join("saccade")))
    }
}
