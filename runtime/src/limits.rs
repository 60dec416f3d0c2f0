//! What the machine can do at most: how fast it reads memory, and how fast its INT8 instruction runs. A speed means something as a
//! share of these. They change while a virtual machine has neighbours, so measure them around each run.
//!
//! All threads are started once and released together for every pass; a pass lasts from the first begin to the last end; the
//! result is the median of the passes, after one that does not count. Memory is read by the fastest kernel set, for the sake of its wide
//! loads: by 16 bytes at a time a Zen 4 core got 12 GB/s where 64 at a time got 15.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::kernels::{Epilogue, Kernels, RowsI8, kernels};
use crate::pages::Map;
use crate::quant::TilesI8;
use crate::threads::Columns;
use crate::{Result, memory};

/// Memory that [`Dram`] should hold so that no cache holds it.
///
/// Units: bytes.
pub const DRAM_BYTES: usize = 512 << 20;
/// Rounds of one pass of [`peak_gops`]: some milliseconds.
const PEAK_ROUNDS: u64 = 2_000_000;
/// Rows, outputs and inputs of [`cached_gops`]: 24 KiB of weights.
const CACHED_SHAPE: [usize; 3] = [96, 48, 512];
/// Products of one of its passes: some milliseconds.
const CACHED_ROUNDS: usize = 400;

/// Memory in huge pages to be read.
#[derive(Debug)]
pub struct Dram(Map);

impl Dram {
    /// Fills `bytes` of memory; [`DRAM_BYTES`] is enough.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] when there is less memory.
    pub fn new(bytes: usize) -> Result<Self> {
        let what = "measuring memory";
        memory::check(what, bytes as u128)?;
        Map::of_ones(bytes).map(Self).map_err(|_| memory::refused(what, bytes as u128))
    }

    /// How fast `threads` threads read it, each its own part.
    ///
    /// Units: 10⁹ bytes per second.
    ///
    /// # Panics
    /// If `threads` or `passes` is 0.
    #[must_use]
    pub fn gbps(&self, threads: usize, passes: usize) -> f64 {
        mapped_gbps(&self.0, threads, passes)
    }
}

/// The same of memory that is there: the weights of a bundle, [`crate::family::Model::mapped`]. The pass that does not count finds
/// the pages.
///
/// Units: 10⁹ bytes per second.
///
/// # Panics
/// As [`Dram::gbps`].
pub fn mapped_gbps(bytes: &[u8], threads: usize, passes: usize) -> f64 {
    let parts: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(threads.max(1)).max(1)).collect();
    let read = |thread: usize| {
        let part = parts.get(thread).copied().unwrap_or_default();
        black_box((kernels().checksum)(part));
        part.len() as u64
    };
    median_rate(threads, passes, &read)
}

/// How many INT8 operations `threads` threads do in a second with the instruction that `kernels` multiplies with, when nothing has
/// to come from memory; `None` if there is no such instruction. A multiply-accumulate is two operations.
///
/// Units: 10⁹ operations per second.
///
/// # Panics
/// As [`Dram::gbps`].
pub fn peak_gops(kernels: &Kernels, threads: usize, passes: usize) -> Option<f64> {
    let has_instruction = (kernels.peak_i8)(1) > 0;
    has_instruction.then(|| median_rate(threads, passes, &|_| 2 * (kernels.peak_i8)(PEAK_ROUNDS)))
}

/// The same of a whole matrix product whose weights stay in the first cache: what the kernel reaches when memory costs nothing. Beside
/// [`peak_gops`] it tells the kernel's own loss, and a core that is shared: a neighbour on the same core takes from a loop that loads
/// and little from one in registers.
///
/// Units: 10⁹ operations per second.
///
/// # Panics
/// As [`Dram::gbps`].
pub fn cached_gops(kernels: &Kernels, threads: usize, passes: usize) -> f64 {
    let [m, n, k] = CACHED_SHAPE;
    // The time does not depend on what is multiplied, so the sums of the rows need not be true.
    let (weights, mut x) = (vec![3; n * k], vec![-5; m * k]);
    kernels.make_operand(&mut x);
    let (ones, sum) = (vec![1.0; m.max(n)], vec![0; n]);
    let w = TilesI8 { tiles: &weights, scale: &ones[..n], sum: &sum, n, k };
    let x = RowsI8 { q: &x, scale: &ones[..m], parts: 1 };
    median_rate(threads, passes, &|_| {
        let mut out = vec![0.0; m * n];
        for _ in 0..CACHED_ROUNDS {
            (kernels.matmul_i8)(x, w, 0..n, Epilogue::default(), Columns::of(&mut out, m, n));
        }
        black_box(&out);
        2 * (CACHED_ROUNDS * m * n * k) as u64
    })
}

/// Units of work in a nanosecond: `work(thread)` returns how many it did. The first pass does not count.
fn median_rate(threads: usize, passes: usize, work: &(dyn Fn(usize) -> u64 + Sync)) -> f64 {
    assert!(threads > 0 && passes > 0, "{passes} passes on {threads} threads");
    let gate = &Barrier::new(threads);
    let passes_of = move |thread: usize| {
        let pass = |_| {
            gate.wait();
            let begin = Instant::now();
            let done = work(thread);
            (begin, Instant::now(), done)
        };
        (0..=passes).map(pass).collect::<Vec<_>>()
    };
    let timed: Vec<Vec<(Instant, Instant, u64)>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || passes_of(thread))).collect();
        let mine = passes_of(0);
        let theirs = others.into_iter().map(|other| other.join().expect("work does not panic"));
        [mine].into_iter().chain(theirs).collect()
    });
    let mut rates: Vec<f64> =
        (1..=passes).map(|pass| rate(timed.iter().map(|thread| thread[pass]))).collect();
    rates.sort_by(f64::total_cmp);
    rates[passes / 2]
}

/// All work done between the first begin and the last end, by the nanosecond.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2⁵³")]
fn rate(threads: impl Iterator<Item = (Instant, Instant, u64)>) -> f64 {
    let all = threads.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1), a.2 + b.2));
    // A clock too coarse to see anything is off by a nanosecond at most.
    all.map_or(0.0, |(begin, end, done)| done as f64 / (end - begin).as_nanos().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn every_limit_is_finite_and_positive() {
        for threads in [1, 2, 3] {
            for rate in [Dram::new(1 << 20).unwrap().gbps(threads, 3), mapped_gbps(&[7; 1001], threads, 1)] {
                assert!(rate.is_finite() && rate > 0.0, "{rate}");
            }
        }
        for set in Kernels::available() {
            match peak_gops(set, 1, 1) {
                None => assert_eq!(set.name, "scalar"),
                Some(gops) => assert!(gops.is_finite() && gops > 0.0, "{} {gops}", set.name),
            }
        }
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        assert!(matches!(Dram::new(1 << 50), Err(Error::Memory { .. })));
    }

    /// Which instruction that is, each set's file says.
    #[test]
    fn macs_are_those_of_twelve_instructions_a_round() {
        for set in Kernels::available() {
            let macs = match set.name {
                "avx512-vnni" => 64,
                "neon-i8mm" => 32,
                "avx2" | "neon-dotprod" => 16,
                "neon" => 8,
                "scalar" => 0,
                name => panic!("how many products has one instruction of {name}?"),
            };
            for rounds in [0, 1, 1000] {
                assert_eq!((set.peak_i8)(rounds), rounds * 12 * macs, "{}", set.name);
            }
        }
    }

    #[test]
    fn a_rate_is_all_work_over_the_whole_time() {
        let zero = Instant::now();
        let at = |ns| zero + std::time::Duration::from_nanos(ns);
        assert_eq!(rate([(at(10), at(30), 100), (at(20), at(60), 100)].into_iter()), 4.0);
    }
}
