//! How fast each kernel set multiplies: `cargo bench -p saccade --bench kernels`.
//!
//! Correctness first: every timed product is compared with the scalar set's. One thread, best of many short runs, warm
//! caches (nano's layers fit in them); GOPS counts a multiplication and an addition as two. Nothing depends on the numbers.
#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::time::{Duration, Instant};

use half::f16;
use saccade::kernels::attention::{KvPanels, PanelScales, Queries, WEIGHT_MAX};
use saccade::kernels::{Epilogue, FloatRows, KV_BLOCK, Kernels, RowsI8};
use saccade::quant::{TilesI8, pack_n16k4, pad_k, row_sums, unpack_n16k4};
use saccade::threads::Columns;

/// `[m, n, k]`: nano's feed-forward layer for one token and for a frame, an image convolution, a larger model's layers.
const SHAPES: [[usize; 3]; 6] =
    [[1, 512, 192], [66, 512, 192], [66, 192, 512], [64, 96, 1024], [1, 2816, 1024], [128, 2816, 1024]];

fn main() {
    println!(
        "{:28} {}",
        "GOPS",
        Kernels::available().iter().map(|set| format!("{:>14}", set.name)).collect::<String>()
    );
    for shape in SHAPES {
        matmul_i8(shape);
    }
    for shape in &SHAPES[..4] {
        matmul_f16(*shape);
    }
    elementwise();
    for head_dim in [32, 64, 128] {
        attention(head_dim);
    }
}

/// The shortest of many runs.
fn best(mut run: impl FnMut()) -> Duration {
    let (mut best, start) = (Duration::MAX, Instant::now());
    while start.elapsed() < Duration::from_millis(300) {
        let once = Instant::now();
        run();
        best = best.min(once.elapsed());
    }
    best
}

/// Prints one row: the rate of each set, its results compared with the first set's.
fn row(label: &str, macs: usize, len: usize, run: impl Fn(&Kernels, &mut [f32])) {
    print!("{label:28} ");
    let mut want = vec![0.0; len];
    run(&Kernels::SCALAR, &mut want);
    for set in Kernels::available() {
        let mut out = vec![0.0; len];
        run(set, &mut out);
        assert!(out == want, "{} differs on {label}", set.name);
        let seconds = best(|| run(set, &mut out)).as_secs_f64();
        print!("{:14.1}", 2.0 * macs as f64 / seconds / 1e9);
    }
    println!();
}

/// Integers within ±127 without a pattern that matters.
fn values(len: usize) -> Vec<i8> {
    (-127..=127).cycle().step_by(31).take(len).collect()
}

/// The same rows as each set wants them.
struct Operands(Vec<(&'static str, Vec<i8>)>);

impl Operands {
    fn new(q: &[i8]) -> Self {
        let operand = |set: &Kernels| {
            let mut q = q.to_vec();
            set.make_operand(&mut q);
            (set.name, q)
        };
        Self(Kernels::available().iter().map(operand).collect())
    }

    fn of(&self, set: &Kernels) -> &[i8] {
        &self.0.iter().find(|(name, _)| *name == set.name).expect("every set is there").1
    }
}

fn matmul_i8([m, n, k]: [usize; 3]) {
    let (rows, q) = (values(n * k), values(m * pad_k(k)));
    let (tiles, sum) = (pack_n16k4(&rows, n, k), row_sums(&rows, n, k));
    let (w_scale, x_scale) = (vec![0.01; n], vec![0.02; m]);
    let operands = Operands::new(&q);
    let w = TilesI8 { tiles: &tiles, scale: &w_scale, sum: &sum, n, k };
    row(&format!("matmul_i8 {m} × {n} × {k}"), m * n * k, m * n, |set, out| {
        let x = RowsI8 { q: operands.of(set), scale: &x_scale, parts: 1 };
        (set.matmul_i8)(x, w, 0..n, Epilogue::default(), Columns::of(out, m, n));
    });
}

fn matmul_f16([m, n, k]: [usize; 3]) {
    let rows: Vec<f16> = values(n * k).into_iter().map(f16::from).collect();
    let x: Vec<f32> = values(m * k).into_iter().map(f32::from).collect();
    row(&format!("matmul_f16 {m} × {n} × {k}"), m * n * k, m * n, |set, out| {
        let w = FloatRows { rows: &rows[..], n, k };
        (set.matmul_f16)(&x, w, 0..n, Epilogue::default(), Columns::of(out, m, n));
    });
}

/// What runs over every value of a frame, in billions of values per second (each counted as half a multiplication).
fn elementwise() {
    const LEN: usize = 66 * 192;
    let x: Vec<f32> = values(LEN).into_iter().map(|x| f32::from(x) * 0.03).collect();
    let w = vec![0.5; 192];
    row("rms_norm 66 × 192", LEN / 2, LEN, |set, out| {
        out.copy_from_slice(&x);
        (set.rms_norm_f32)(out, &w, 1e-5);
    });
    row("softmax 66 × 192", LEN / 2, LEN, |set, out| {
        out.copy_from_slice(&x);
        out.chunks_mut(192).for_each(set.softmax_f32);
    });
    row("silu_mul 66 × 192", LEN / 2, LEN, |set, out| {
        out.copy_from_slice(&x);
        (set.silu_mul_f32)(out, &x);
    });
    row("rope 66 × 192", LEN / 2, LEN, |set, out| {
        out.copy_from_slice(&x);
        (set.rope_f32)(out, &w[..16], &w[..16]);
    });
    row("quantise 66 × 192", LEN / 2, LEN, |set, out| {
        let mut q = [0; LEN];
        for (x, q) in x.chunks(192).zip(q.chunks_mut(192)) {
            out[0] += (set.quantise_row)(x, q);
        }
        out[0] = f32::from(q[7]);
    });
}

/// Sixteen queries over 576 keys: scores, softmax, weighted sum.
fn attention(head_dim: usize) {
    const QUERIES: usize = 16;
    const PANELS: usize = 36;
    const KEYS: usize = PANELS * KV_BLOCK;
    let panel_len: usize = KvPanels::panel_len(head_dim).iter().sum();
    let (q, tiles) = (Operands::new(&values(QUERIES * pad_k(head_dim))), values(PANELS * panel_len));
    let scales = |panel: &[i8]| {
        let keys = unpack_n16k4(&panel[..KvPanels::panel_len(head_dim)[0]], KV_BLOCK, pad_k(head_dim));
        let key_sum =
            row_sums(&keys, KV_BLOCK, pad_k(head_dim)).try_into().expect("a block has as many keys");
        PanelScales { key: [0.01; KV_BLOCK], key_sum, value: [0.01; KV_BLOCK] }
    };
    let (scales, scale) = (tiles.chunks(panel_len).map(scales).collect::<Vec<_>>(), vec![0.01; KEYS]);
    let which: Vec<u32> = (0..).take(PANELS).collect();
    let kv = KvPanels { tiles: &tiles, scales: &scales, which: &which, head_dim };
    let macs = 2 * QUERIES * KEYS * head_dim;
    let scores = std::cell::RefCell::new((vec![0.0; QUERIES * KEYS], vec![0; QUERIES * 2 * KEYS]));
    row(&format!("attention 16 over 576 × {head_dim}"), macs, QUERIES * head_dim, |set, out| {
        let (s, p) = &mut *scores.borrow_mut();
        let queries = Queries { q: q.of(set), scale: &[0.002; QUERIES], bias: &[0.0; QUERIES] };
        (set.scores_i8)(queries, kv, s, KEYS);
        for (s, p) in s.chunks(KEYS).zip(p.chunks_mut(2 * KEYS)) {
            (set.softmax_u14)(s, &scale, WEIGHT_MAX / 0.01, p);
        }
        (set.weighted_sum_i8)(p, &[1e-4; QUERIES], kv, out);
    });
}
