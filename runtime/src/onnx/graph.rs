//! One graph: opened, compared with what its bundle says, run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::ep::{self, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::contained::contained;
use super::{MAX_GRAPH_BYTES, OnnxError, OnnxOptions, Provider, library};
use crate::Error;
use crate::config::{BundleConfig, FrontEnd, ModelConfig, Part};
use crate::engine::EngineOptions;
use crate::format::open_file;
use crate::pages::{Map, Pages};
use crate::tokenize::Fit;
use crate::weights::open_listed;

/// The picture, `[1, 3, height, width] f32`.
const INPUT: &str = "pixel_values";

/// A graph that is open.
pub(crate) struct Graph {
    /// A run changes it.
    session: Mutex<Session>,
    shapes: Shapes,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("shapes", &self.shapes).finish_non_exhaustive()
    }
}

/// What goes into a graph and comes out.
#[derive(Debug)]
struct Shapes {
    replaces: Part,
    output: &'static str,
    /// Height and width, where all pictures have the same.
    picture: Option<(usize, usize)>,
    /// Pixels of a place, a side.
    patch: usize,
    /// Values of a place.
    width: usize,
}

impl Shapes {
    /// Those of the part that a graph stands for; the configuration was checked to have it.
    fn of(model: &ModelConfig, replaces: Part) -> Option<Self> {
        match (model, replaces) {
            (ModelConfig::Janus(c), Part::Vision) => Some(Self {
                replaces,
                output: "image_features",
                picture: Some((c.vision.image_size, c.vision.image_size)),
                patch: c.vision.patch_size,
                width: c.language.decoder.d_model,
            }),
            (ModelConfig::Chameleon(c), Part::VqEncoder) => Some(Self {
                replaces,
                output: "latents",
                picture: match c.image.pixels.fit {
                    Fit::CentreCrop { width, height } => Some((height, width)),
                    Fit::Whole | Fit::Square { .. } => None,
                },
                patch: c.image.vq.patch(),
                width: c.image.vq.code_dim,
            }),
            _ => None,
        }
    }

    /// `[1, 3, height, width]`.
    fn input(&self) -> Vec<Option<usize>> {
        let (height, width) = self.picture.unzip();
        vec![Some(1), Some(3), height, width]
    }

    /// What comes out for pictures of `size`.
    fn output(&self, size: Option<(usize, usize)>) -> Vec<Option<usize>> {
        let (rows, columns) = size.map(|(height, width)| (height / self.patch, width / self.patch)).unzip();
        match self.replaces {
            Part::Vision => {
                let patches = rows.zip(columns).map(|(rows, columns)| rows * columns);
                vec![Some(1), patches, Some(self.width)]
            }
            Part::VqEncoder => vec![Some(1), Some(self.width), rows, columns],
        }
    }
}

impl Graph {
    /// Opens the graph of the bundle in `dir`, to run on `threads` threads.
    pub(crate) fn open(
        dir: &Path,
        config: &BundleConfig,
        FrontEnd { graph, replaces }: &FrontEnd,
        options: &EngineOptions,
        threads: usize,
    ) -> crate::Result<Self> {
        let path = dir.join(graph);
        let entry = &config.files[graph];
        let bytes = mapped(&path, &open_listed(&path, entry)?, entry.bytes)?;
        if blake3::Hash::from_hex(&entry.blake3).ok() != Some(blake3::hash(&bytes)) {
            let reason =
                "its BLAKE3 is not the one in saccade.json; it was damaged or changed, copy the bundle again";
            return Err(refused(&path, reason));
        }
        let found = Self::of(&path, &bytes, (&config.model, *replaces), &options.onnx, threads)?;
        let provider = options.onnx.provider;
        let reason = if provider.is_some() { "asked for" } else { "nothing else was asked for" };
        log::info!(
            "graph={graph} provider={} ({reason}) threads={threads}",
            provider.unwrap_or_default().name()
        );
        Ok(found)
    }

    /// The graph in `bytes`, which came from `path`.
    fn of(
        path: &Path,
        bytes: &[u8],
        (model, replaces): (&ModelConfig, Part),
        options: &OnnxOptions,
        threads: usize,
    ) -> crate::Result<Self> {
        contained(bytes).map_err(|reason| refused(path, reason))?;
        let shapes =
            Shapes::of(model, replaces).ok_or_else(|| refused(path, "the model has no such part"))?;
        let environment = library::environment(options.library.as_deref())?;
        let session = session(&environment, bytes, path, options.provider.unwrap_or_default(), threads)?;
        one("input", session.inputs(), INPUT, &shapes.input()).map_err(|reason| refused(path, reason))?;
        one("output", session.outputs(), shapes.output, &shapes.output(shapes.picture))
            .map_err(|reason| refused(path, reason))?;
        Ok(Self { session: Mutex::new(session), shapes })
    }

    /// Runs the picture `values [height, width, 3] f32` into `out [places, width] f32`. Allocates, and waits for other runs.
    ///
    /// # Errors
    /// [`OnnxError::Run`], also if what comes out has another shape than the part's.
    pub(crate) fn run(&self, values: &[f32], size: (usize, usize), out: &mut Vec<f32>) -> crate::Result<()> {
        let stopped = |reason: String| OnnxError::Run { reason };
        let (height, width) = size;
        assert_eq!(values.len(), height * width * 3);
        let planes: Vec<f32> =
            (0..3).flat_map(|channel| values.iter().skip(channel).step_by(3)).copied().collect();
        let input = TensorRef::from_array_view(([1, 3, height, width], &planes[..])).map_err(failed)?;
        // A run that panicked has left nothing in the session that the next one reads.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(ort::inputs![INPUT => input]).map_err(failed)?;
        let found = outputs.get(self.shapes.output).ok_or_else(|| stopped("it gives no output".into()))?;
        let (shape, found) = found.try_extract_tensor::<f32>().map_err(failed)?;
        let expected = self.shapes.output(Some(size));
        if !fits(shape, &expected) || shape.contains(&-1) {
            return Err(
                stopped(format!("its output has shape {shape:?}, expected {}", spelled(&expected))).into()
            );
        }
        out.clear();
        match self.shapes.replaces {
            Part::Vision => out.extend_from_slice(found),
            Part::VqEncoder => {
                let places = found.len() / self.shapes.width;
                out.extend((0..places).flat_map(|place| found.iter().skip(place).step_by(places)));
            }
        }
        Ok(())
    }
}

/// Checks a file as the graph of `model`, as if a bundle had it: before a bundle is written.
///
/// # Errors
/// [`OnnxError`], or the file cannot be read.
pub fn check(path: &Path, model: &ModelConfig) -> crate::Result<()> {
    let (file, bytes) = open_file(path)?;
    let bytes = mapped(path, &file, bytes)?;
    let replaces =
        Part::of(model).ok_or_else(|| refused(path, "the model has no part that a graph replaces"))?;
    Graph::of(path, &bytes, (model, replaces), &OnnxOptions::default(), 1).map(drop)
}

fn mapped(path: &Path, file: &File, bytes: u64) -> crate::Result<Map> {
    if bytes == 0 || bytes > MAX_GRAPH_BYTES {
        let reason = format!("it has {bytes} bytes; a graph has 1 to {MAX_GRAPH_BYTES}, all in one file");
        return Err(refused(path, reason));
    }
    Map::of_file(file, Pages::Small).map_err(|source| Error::Io { path: path.into(), source })
}

fn session(
    environment: &ort::environment::Environment,
    bytes: &[u8],
    path: &Path,
    provider: Provider,
    threads: usize,
) -> crate::Result<Session> {
    let builder = Session::builder(environment).map_err(failed)?;
    let builder = builder.with_intra_threads(threads).map_err(failed)?;
    let builder = builder.with_inter_threads(1).map_err(failed)?;
    // Idle threads wait as ours do: they share the cores.
    let mut builder = builder.with_intra_op_spinning(false).map_err(failed)?;
    if provider != Provider::Cpu {
        builder = with_provider(builder, provider)
            .map_err(|reason| OnnxError::Provider { provider: provider.name(), reason })?;
    }
    builder.commit_from_memory(bytes).map_err(|error| match provider {
        Provider::Cpu => {
            let said = error.message();
            refused(path, format!("ONNX Runtime cannot run it: {said}; export the graph again"))
        }
        // What the graph lacks and what the provider lacks cannot be told apart; both are in what it says.
        _ => OnnxError::Provider { provider: provider.name(), reason: error.message().into() }.into(),
    })
}

/// A builder for sessions that run on `provider` as a whole: nodes that it does not run are an error, not work for the CPU.
fn with_provider(builder: SessionBuilder, provider: Provider) -> Result<SessionBuilder, String> {
    let (there, provider) = match provider {
        Provider::Cpu => return Ok(builder),
        Provider::Cuda => (ep::CUDA::is_available(), ep::CUDA::default().build()),
        Provider::TensorRt => (ep::TensorRT::is_available(), ep::TensorRT::default().build()),
    };
    if !there.map_err(|error| error.message().to_owned())? {
        return Err("this build of it lacks that provider".into());
    }
    builder
        .with_execution_providers([provider.error_on_failure()])
        .and_then(SessionBuilder::with_disable_cpu_fallback)
        .map_err(|error| error.message().to_owned())
}

/// Checks that the one input or output has this name, is F32 and of this shape.
fn one(what: &str, found: &[Outlet], name: &str, shape: &[Option<usize>]) -> Result<(), String> {
    let said = match found {
        [outlet] => match outlet.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape: dims, .. }
                if outlet.name() == name && fits(dims, shape) =>
            {
                return Ok(());
            }
            dtype => format!("its {what} is `{}`, {dtype}", outlet.name().escape_debug()),
        },
        _ => format!("it has {} {what}s", found.len()),
    };
    Err(format!("{said}, expected one `{name}`, F32 {}; export the graph again", spelled(shape)))
}

/// Whether dimensions are these; those that a graph leaves open, or we do, fit.
fn fits(dims: &[i64], expected: &[Option<usize>]) -> bool {
    dims.len() == expected.len()
        && dims.iter().zip(expected).all(|(&dim, expected)| {
            dim == -1 || expected.is_none_or(|expected| i64::try_from(expected) == Ok(dim))
        })
}

fn spelled(shape: &[Option<usize>]) -> String {
    let dims: Vec<_> =
        shape.iter().map(|dim| dim.map_or_else(|| "any".to_owned(), |dim| dim.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed<R>(error: ort::Error<R>) -> OnnxError {
    OnnxError::Run { reason: error.message().into() }
}

fn refused(path: &Path, reason: impl Into<String>) -> Error {
    OnnxError::Graph { path: PathBuf::from(path), reason: reason.into() }.into()
}
