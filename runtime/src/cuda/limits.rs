//! What a card can do at most, and what the two products that a model consists of reach of it: measured on the card, beside every
//! figure that is compared with them.
//!
//! A share is honest where its limit is: the card works for half a second before anything is timed, since after a pause its clocks are a
//! fraction of what they can be, and a low limit flatters; what is read and multiplied are bytes without a pattern, since zeros draw less
//! power and clock higher than any model does; and of several runs the best counts, since it is a limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::Device;
use super::error::CudaError;
use super::launch::{Layer, Layers};
use super::memory::{Memory, Pinned};
use crate::quant::{TILE_N, pad_k, pad_n};

/// Runs of each measurement; the best counts.
const RUNS: usize = 5;
/// Launches of a run: at least, and at most.
const LAUNCHES: [usize; 2] = [10, 1000];
/// How long a run should be, beside which the wait for its end is nothing.
const RUN: Duration = Duration::from_millis(3);
/// No run begins after so long.
const PATIENCE: Duration = Duration::from_millis(250);
/// Bytes that noise is made of; more of it is this again and again.
const NOISE: usize = 1 << 20;

/// What is measured with.
struct Sizes {
    /// Bytes that bandwidth is measured with.
    bytes: usize,
    /// Inputs of the layer that streams them.
    stream_k: usize,
    /// Outputs and inputs of the layer whose products are timed.
    layer: [usize; 2],
    /// Tokens of the prompts.
    tokens: [usize; 2],
    rounds: usize,
    /// How long a card works before it is measured, at least.
    warm_up: Duration,
}

/// More bytes than any cache of a card; the layer is one of the largest shape that engines are compared at.
const SIZES: Sizes = Sizes {
    bytes: 256 << 20,
    stream_k: 4096,
    layer: [5632, 2048],
    tokens: [576, 2048],
    rounds: 2000,
    warm_up: Duration::from_millis(500),
};

/// What a check of the programs that measure is run with, in seconds on an emulated card: its figures mean nothing.
const QUICK: Sizes = Sizes {
    bytes: 1 << 16,
    stream_k: 256,
    layer: [32, 64],
    tokens: [4, 8],
    rounds: 1,
    warm_up: Duration::ZERO,
};

/// How much is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// What figures need.
    Whole,
    /// What runs every line once: a check of the program, not of the card.
    Quick,
}

impl Effort {
    fn sizes(self) -> &'static Sizes {
        match self {
            Self::Whole => &SIZES,
            Self::Quick => &QUICK,
        }
    }
}

/// Figures of a card.
#[derive(Clone, Copy, Debug)]
pub struct CardLimits {
    /// Bytes read and written by a copy inside the card's memory.
    ///
    /// Units: GB/s.
    pub copy_gbps: f64,
    /// Bytes of weights that a linear layer of one token streams.
    ///
    /// Units: GB/s.
    pub gemv_gbps: f64,
    /// The same of eight tokens together.
    ///
    /// Units: GB/s.
    pub gemv8_gbps: f64,
    /// INT8 operations of the instruction alone, everything in registers.
    ///
    /// Units: 10¹² a second.
    pub peak_tops: f64,
    /// INT8 operations of a linear layer of 576 and of 2,048 tokens.
    ///
    /// Units: 10¹² a second.
    pub gemm_tops: [f64; 2],
}

impl CardLimits {
    /// Measures; takes about two seconds, and 600 MB of the card's memory.
    ///
    /// # Errors
    /// If the card has not as much memory, or fails.
    pub fn measure(device: &Arc<Device>, effort: Effort) -> Result<Self, CudaError> {
        let sizes = effort.sizes();
        let Sizes { bytes, stream_k, layer: [wide, deep], tokens, rounds, .. } = *sizes;
        let n = bytes / stream_k;
        let (from, to) = (noise(device, bytes, |bits| bits)?, device.allocate("a measurement", bytes)?);
        let scratch = Scratch::new(device, n, sizes)?;
        Self::warm_up(device, effort)?;
        let copy = seconds(device, || from.copy_to(0, &to, 0, bytes))?;

        let stream = scratch.layers(from.at(), n, stream_k);
        let one = seconds(device, || device.linear_i8_of_floats(&stream, scratch.x.at(), 0, 0.0))?;
        let eight = seconds(device, || device.linear_i8(&stream, scratch.q.at(), scratch.scale.at(), 8))?;

        let layer = scratch.layers(from.at(), wide, deep);
        let mut gemm_tops = [0.0; 2];
        for (tops, tokens) in gemm_tops.iter_mut().zip(tokens) {
            let time =
                seconds(device, || device.linear_i8(&layer, scratch.q.at(), scratch.scale.at(), tokens))?;
            *tops = 2.0 * as_f64(tokens * wide * deep) / time / 1e12;
        }
        let blocks = full(device);
        let peak = seconds(device, || device.peak_int8(blocks, rounds, scratch.out.at()))?;
        let operations = 2.0 * as_f64(blocks * 8 * rounds * 8) * as_f64(16 * 8 * 32);
        Ok(Self {
            copy_gbps: 2.0 * as_f64(bytes) / copy / 1e9,
            gemv_gbps: as_f64(bytes) / one / 1e9,
            gemv8_gbps: as_f64(bytes) / eight / 1e9,
            peak_tops: operations / peak / 1e12,
            gemm_tops,
        })
    }

    /// Has the card do INT8 products until its clocks have risen: before whatever is timed after a pause.
    ///
    /// # Errors
    /// If the card fails.
    pub fn warm_up(device: &Arc<Device>, effort: Effort) -> Result<(), CudaError> {
        let sizes = effort.sizes();
        let out = device.allocate("a measurement", size_of::<i32>())?;
        let begun = Instant::now();
        loop {
            for _ in 0..LAUNCHES[0] {
                device.peak_int8(full(device), sizes.rounds, out.at())?;
            }
            device.wait()?;
            if begun.elapsed() >= sizes.warm_up {
                return Ok(());
            }
        }
    }
}

/// Blocks of `peak_int8` that fill every multiprocessor.
fn full(device: &Device) -> usize {
    8 * device.multiprocessors()
}

/// What is read to compare two places of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadSizes {
    /// Bytes of them, at most.
    pub(crate) bytes: usize,
    /// Inputs of the layers.
    pub(crate) k: usize,
    /// Outputs of the one that a prompt goes through, at most.
    pub(crate) n: usize,
    /// Tokens of the prompt.
    pub(crate) tokens: usize,
}

impl ReadSizes {
    /// More than the caches of a board hold, and a prompt whose products read each weight many times.
    pub(crate) const BOARD: Self = Self { bytes: 64 << 20, k: 4096, n: 2048, tokens: 576 };
}

/// How fast layers are whose weights lie in some place.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadRates {
    /// Bytes of weights that a layer of one token streams.
    ///
    /// Units: GB/s.
    pub(crate) decode_gbps: f64,
    /// INT8 operations of a layer of a prompt.
    ///
    /// Units: 10¹² a second.
    pub(crate) prompt_tops: f64,
}

impl ReadRates {
    /// Of the `bytes` at `at`, whatever they are; `None` where they are too few.
    pub(crate) fn measure(
        device: &Arc<Device>,
        at: u64,
        bytes: usize,
        sizes: &ReadSizes,
    ) -> Result<Option<Self>, CudaError> {
        let ReadSizes { k, tokens, .. } = *sizes;
        let whole = |n: usize| n / TILE_N * TILE_N;
        let (n, wide) = (whole(bytes / k), whole(sizes.n.min(bytes / k)));
        if n == 0 {
            return Ok(None);
        }
        let shape = Sizes { bytes, stream_k: k, layer: [wide, k], tokens: [1, tokens], ..QUICK };
        let scratch = Scratch::new(device, n, &shape)?;
        let layer = scratch.layers(at, n, k);
        let one = seconds(device, || device.linear_i8_of_floats(&layer, scratch.x.at(), 0, 0.0))?;
        let layer = scratch.layers(at, wide, k);
        let prompt =
            seconds(device, || device.linear_i8(&layer, scratch.q.at(), scratch.scale.at(), tokens))?;
        Ok(Some(Self {
            decode_gbps: as_f64(n * k) / one / 1e9,
            prompt_tops: 2.0 * as_f64(tokens * wide * k) / prompt / 1e12,
        }))
    }
}

/// What the layers read and write beside their weights.
struct Scratch {
    x: Memory,
    q: Memory,
    scale: Memory,
    out: Memory,
}

impl Scratch {
    fn new(device: &Arc<Device>, n: usize, sizes: &Sizes) -> Result<Self, CudaError> {
        let Sizes { stream_k: k, layer: [wide, deep], tokens: [_, rows], .. } = *sizes;
        // Within ±1, evenly.
        let float = |bits: u32| (f32::from_bits(0x3f80_0000 | bits >> 9) * 2.0 - 3.0).to_bits();
        Ok(Self {
            x: noise(device, 4 * k, float)?,
            q: noise(device, rows * pad_k(deep.max(k)), |bits| bits)?,
            scale: noise(device, 4 * n.max(rows).max(wide), float)?,
            out: device.allocate("a measurement", 4 * (8 * n).max(rows * wide))?,
        })
    }

    /// A layer whose weights lie at `tiles`.
    fn layers(&self, tiles: u64, n: usize, k: usize) -> Layers {
        debug_assert_eq!(pad_n(n), n);
        let narrow = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let (scale, out) = (self.scale.at(), self.out.at());
        Layers::alone(Layer { tiles, scale, bias: 0, out, first: 0, end: narrow(n) }, narrow(k), 1)
    }
}

/// Memory of so many bytes, whole words of them, each of which `value` makes of random bits.
fn noise(device: &Arc<Device>, bytes: usize, value: impl Fn(u32) -> u32) -> Result<Memory, CudaError> {
    let memory = device.allocate("a measurement", bytes)?;
    let mut done = bytes.min(NOISE);
    let mut block = Pinned::new(device, done)?;
    // Marsaglia's xorshift.
    let mut bits = 1u32;
    for word in block.get()?.chunks_exact_mut(size_of::<u32>()) {
        bits ^= bits << 13;
        bits ^= bits >> 17;
        bits ^= bits << 5;
        word.copy_from_slice(&value(bits).to_ne_bytes());
    }
    memory.write_from(0, &mut block, 0, done)?;
    while done < bytes {
        let more = done.min(bytes - done);
        memory.copy_within(0, done, more)?;
        done += more;
    }
    Ok(memory)
}

/// Seconds of one launch.
fn seconds(device: &Device, work: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let mut best = f64::INFINITY;
    let [mut launches, most] = LAUNCHES;
    let begun = Instant::now();
    for run in 0..RUNS {
        if run > 0 && begun.elapsed() > PATIENCE {
            break;
        }
        device.wait()?;
        let start = Instant::now();
        for _ in 0..launches {
            work()?;
        }
        device.wait()?;
        best = best.min(start.elapsed().as_secs_f64() / as_f64(launches));
        while 2 * launches <= most && best * as_f64(launches) < RUN.as_secs_f64() {
            launches *= 2;
        }
    }
    Ok(best)
}

#[allow(clippy::cast_precision_loss, reason = "sizes far below 2⁵²")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::tests::orin;

    #[test]
    fn every_figure_is_measured() {
        let card = orin();
        let limits = CardLimits::measure(&card.device, Effort::Quick).unwrap();
        let CardLimits { copy_gbps, gemv_gbps, gemv8_gbps, peak_tops, gemm_tops: [some, many] } = limits;
        for figure in [copy_gbps, gemv_gbps, gemv8_gbps, peak_tops, some, many] {
            assert!(figure.is_finite() && figure > 0.0, "{limits:?}");
        }
    }

    #[test]
    fn noise_fills_all_of_its_memory() {
        let card = orin();
        let words = (2 * NOISE + 12) / 4;
        let memory = noise(&card.device, 4 * words, |bits| bits).unwrap();
        let mut got = vec![0u32; words];
        memory.read(0, &mut got).unwrap();
        assert_eq!(got[words - 3..], got[..3], "the third block begins as the first");
        let zeros = got.iter().flat_map(|word| word.to_ne_bytes()).filter(|&byte| byte == 0).count();
        // One byte of 256: 8,192 of them, give or take 90.
        assert!(zeros.abs_diff(4 * words / 256) < 500, "{zeros}");
    }
}
