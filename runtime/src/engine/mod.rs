//! The operations of a decoder, and the way this machine does them.
//!
//! An [`Engine`] is a kernel set and a thread pool. Its operations take slices, allocate nothing, and give the same bits
//! whatever the number of threads: work is split between outputs, never inside a sum.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::kernels::{self, Kernels};
use crate::onnx::OnnxOptions;
pub use crate::threads::Idle;
use crate::threads::Pool;

pub(crate) mod attention;
#[cfg(feature = "cuda")]
pub(crate) mod card;
pub(crate) mod cpu;
mod device;
mod linear;
pub(crate) mod maps;
mod pass;

/// Passes over fewer values stay on one thread.
pub(crate) const PARALLEL_VALUES: usize = 4 << 10;
/// Most rows that a thread takes at a time.
const ROW_BLOCK: usize = 8;

pub(crate) use cpu::{CpuPass, CpuScratch, Net};
pub(crate) use pass::{Layer, Most, Own, Pass, PassRows, QkNorms, Rows, Sequence, Visible};

pub use device::{DeviceChoice, DeviceOptions, DeviceReport, Placement};
pub use linear::{ActivationKinds, Activations, Biased, Linear};

/// An engine that cannot be had on this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A kernel set was asked for by a name that this machine cannot serve.
    #[error("this machine has no kernel set `{name}`; choose one of: {available}")]
    UnknownKernels {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// A card was asked for in a build that knows none.
    #[cfg(not(feature = "cuda"))]
    #[error("{}", device::NOT_BUILT)]
    NoCuda,
    /// A worker thread could not be started.
    #[error("worker thread {index} of {threads} does not start; ask for fewer threads")]
    Threads {
        /// Which one.
        index: usize,
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How to build an [`Engine`].
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Threads that share the work, the caller's included; 0 means one for each core.
    pub threads: usize,
    /// Forces a kernel set by name, e.g. `"scalar"`; `None` takes the fastest.
    pub kernels: Option<&'static str>,
    /// How idle workers wait.
    pub idle: Idle,
    /// How an imported graph is run, in bundles that have one.
    pub onnx: OnnxOptions,
    /// Where the decoder and the image networks run.
    pub device: DeviceOptions,
}

/// The CPU engine: one kernel set, one thread pool. Shared by every session.
#[derive(Debug)]
pub struct Engine {
    kernels: &'static Kernels,
    pool: Pool,
    /// See [`Engine::linear_time`].
    linear_nanos: AtomicU64,
}

impl Engine {
    /// Chooses the kernel set, starts the threads, and logs both.
    ///
    /// # Errors
    /// If a kernel set is forced that this machine lacks, or a thread does not start.
    pub fn new(options: &EngineOptions) -> crate::Result<Self> {
        let kernels = choose(options.kernels)?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        let pool = Pool::new(threads, options.idle)?;
        let reason = if options.kernels.is_some() { "asked for" } else { "fastest of this cpu" };
        log::info!("engine=cpu kernels={} ({reason}) threads={threads}", kernels.name);
        Ok(Self { kernels, pool, linear_nanos: AtomicU64::new(0) })
    }

    /// The kernel set in use.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// The threads that share the work.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Threads that share the work, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Time spent in matrix products since the engine was made, their gates included: what a bench compares with the whole.
    pub fn linear_time(&self) -> Duration {
        Duration::from_nanos(self.linear_nanos.load(Ordering::Relaxed))
    }

    fn count_linear(&self, time: Duration) {
        self.linear_nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many rows a thread takes at a time of `rows` with so many values.
    fn row_block(&self, rows: usize, values: usize) -> usize {
        let block =
            if values < PARALLEL_VALUES { rows } else { (rows / (2 * self.threads())).min(ROW_BLOCK) };
        block.max(1)
    }

    /// A scratch of nothing for each thread, which takes no memory.
    fn nothings(&self) -> Vec<()> {
        vec![(); self.threads()]
    }

    /// `x = x / √(mean x² + eps) · w` for each row of `w.len()`. Heads are rows too: `x [heads, head_dim]`, `w [head_dim]`.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    pub fn rms_norm_inplace(&self, x: &mut [f32], w: &[f32], eps: f32) {
        (self.kernels.rms_norm_f32)(x, w, eps);
    }

    /// Runs `f(i, row i of a, row i of b)` for every row of two matrices of as many rows, in parallel when there are many.
    ///
    /// # Panics
    /// If a matrix is not whole rows, or `f` panics.
    #[expect(clippy::type_complexity, reason = "what a row's work is given")]
    pub(crate) fn for_each_row(
        &self,
        (a, a_len): (&mut [f32], usize),
        (b, b_len): (&mut [f32], usize),
        f: &(dyn Fn(usize, &mut [f32], &mut [f32]) + Sync),
    ) {
        assert_eq!(a.len() / a_len, b.len() / b_len, "as many rows");
        let block = self.row_block(a.len() / a_len, a.len() + b.len());
        self.for_each_pair((a, block * a_len), (b, block * b_len), &|i, a, b| {
            for (r, (a, b)) in a.chunks_exact_mut(a_len).zip(b.chunks_exact_mut(b_len)).enumerate() {
                f(i * block + r, a, b);
            }
        });
    }

    /// Cuts `a` and `b` into as many pieces of the given lengths and runs `f(i, piece i of a, piece i of b)`, in parallel.
    ///
    /// # Panics
    /// If the pieces of `a` have no length, or `f` panics.
    #[expect(clippy::type_complexity, reason = "what a piece's work is given")]
    pub(crate) fn for_each_pair<A: Send, B: Send>(
        &self,
        a: (&mut [A], usize),
        b: (&mut [B], usize),
        f: &(dyn Fn(usize, &mut [A], &mut [B]) + Sync),
    ) {
        self.pool.for_each_piece(a, b, &mut self.nothings(), &|i, a, b, ()| f(i, a, b));
    }

    /// `x = silu(x)`.
    pub fn silu_inplace(&self, x: &mut [f32]) {
        (self.kernels.silu_f32)(x);
    }

    /// `x += y`.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }

    /// Softmax of one row, in place. A NaN anywhere makes every result NaN.
    pub fn softmax_inplace(&self, x: &mut [f32]) {
        (self.kernels.softmax_f32)(x);
    }

    /// Rotates every head of `x [heads, head_dim]` by the angles of one position, pairs `(i, i + head_dim/2)`.
    ///
    /// Shapes: `cos, sin [head_dim/2] f32`.
    ///
    /// # Panics
    /// If `x` is not whole heads.
    pub fn rope_inplace(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        (self.kernels.rope_f32)(x, cos, sin);
    }
}

/// `(x − mean) / √(variance + eps) · weight + bias` of one row; all three are as long.
///
/// Source: Ba et al. 2016 (arXiv:1607.06450).
#[allow(clippy::cast_precision_loss, reason = "a width far below 2²⁴")]
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
    let inverse = 1.0 / (variance + eps).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * inverse * weight + bias;
    }
}

fn choose(name: Option<&str>) -> Result<&'static Kernels, EngineError> {
    let Some(name) = name else { return Ok(kernels::kernels()) };
    Kernels::available().iter().find(|set| set.name == name).ok_or_else(|| EngineError::UnknownKernels {
        name: name.to_owned(),
        available: Kernels::available().iter().map(|set| set.name).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests;
