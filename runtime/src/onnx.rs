//! Imported ONNX graphs: a bring-your-own front end that reads pictures in place of our kernels, run by ONNX Runtime.
//!
//! A bundle names its graph and what it stands for ([`FrontEnd`](crate::config::FrontEnd)). The graph takes the picture and gives what the
//! part gives:
//!
//! | part | in | out |
//! |---|---|---|
//! | `vision` | `pixel_values` F32 `[1, 3, height, width]` | `image_features` F32 `[1, patches, d_model]` |
//! | `vq_encoder` | the same | `latents` F32 `[1, code_dim, rows, columns]`, whose nearest code book vectors are the codes |
//!
//! Nothing else is imported: everything else of a model runs on our kernels. ONNX Runtime's library is opened at run time; the feature
//! `onnx` compiles what calls it. The library allocates and locks as it likes, so what the rest of this crate promises of steady memory
//! and of files that cannot do harm ends here: a graph is run as it was converted (its hash is compared when it is opened) or not at all.

#[cfg(not(feature = "onnx"))]
mod absent;
// Needs nothing of the library, so every build tests it.
#[cfg(any(feature = "onnx", test))]
#[cfg_attr(not(feature = "onnx"), allow(dead_code, reason = "tested alone"))]
mod contained;
#[cfg(feature = "onnx")]
mod graph;
#[cfg(feature = "onnx")]
mod library;

use std::path::PathBuf;

#[cfg(not(feature = "onnx"))]
pub(crate) use absent::Graph;
#[cfg(not(feature = "onnx"))]
pub use absent::check;
#[cfg(feature = "onnx")]
pub(crate) use graph::Graph;
#[cfg(feature = "onnx")]
pub use graph::check;

/// Largest graph. Protobuf ends there, and what exporters put beside larger ones is refused.
#[cfg(feature = "onnx")]
const MAX_GRAPH_BYTES: u64 = (2 << 30) - 1;

/// What runs a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own kernels.
    #[default]
    Cpu,
    /// Its CUDA provider.
    Cuda,
    /// Its TensorRT provider.
    TensorRt,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::TensorRt];

    /// The name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }
}

impl std::str::FromStr for Provider {
    type Err = OnnxError;

    fn from_str(name: &str) -> Result<Self, OnnxError> {
        let found = Self::ALL.into_iter().find(|provider| provider.name() == name);
        found.ok_or_else(|| OnnxError::UnknownProvider { name: name.into() })
    }
}

/// How to run a graph.
#[derive(Clone, Debug, Default)]
pub struct OnnxOptions {
    /// What runs it; `None` is [`Provider::Cpu`]. A provider that is asked for runs the whole graph, or the model does not open.
    pub provider: Option<Provider>,
    /// ONNX Runtime's library; `None` is what `ORT_DYLIB_PATH` names, or else `libonnxruntime.so` where the system looks for libraries.
    pub library: Option<PathBuf>,
}

/// A graph that cannot be had or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// This build has no ONNX Runtime.
    #[error("{path} is an ONNX graph, which this build cannot run; build it with `--features onnx`")]
    Feature {
        /// The graph.
        path: PathBuf,
    },
    /// A provider that nobody knows.
    #[error("there is no provider `{name}`; choose one of: cpu, cuda, tensorrt")]
    UnknownProvider {
        /// What was asked for.
        name: String,
    },
    /// Options for a graph, and no graph.
    #[error("this bundle has no ONNX graph that a provider could run; leave the options for one out")]
    NoGraph,
    /// The library is missing, too old, or something else.
    #[error(
        "{path} cannot be used as ONNX Runtime: {reason}; install 1.17 or newer and name its libonnxruntime.so in ORT_DYLIB_PATH \
         (the Python package `onnxruntime` holds one)"
    )]
    Library {
        /// What was opened.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A process opens one library.
    #[error("ONNX Runtime was already opened as {opened}; a process cannot open {path} as well")]
    OtherLibrary {
        /// The first.
        opened: PathBuf,
        /// The second.
        path: PathBuf,
    },
    /// A provider that was asked for and cannot run the graph.
    #[error(
        "ONNX Runtime's provider `{provider}` does not run the graph: {reason}; install a build that has it, or ask for `cpu`"
    )]
    Provider {
        /// The provider.
        provider: &'static str,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// A graph that cannot be used.
    #[error("{path}: {reason}")]
    Graph {
        /// The graph.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A run that failed, or a session that could not be made.
    #[error("ONNX Runtime does not run the graph: {reason}; if it is short of memory, take fewer threads")]
    Run {
        /// What it said.
        reason: String,
    },
}
