use half::f16;

use super::*;
use crate::kernels::Epilogue;
use crate::quant::{TilesI8, pack_n16k4, quantise_weight_rows, row_sums};

fn wave(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * step).sin()).collect()
}

/// An owner for INT8 weights.
struct Tiles {
    tiles: Vec<i8>,
    scale: Vec<f32>,
    sum: Vec<i32>,
    n: usize,
    k: usize,
}

impl Tiles {
    fn new(w: &[f32], n: usize, k: usize) -> Self {
        let (rows, scale) = quantise_weight_rows(w, n, k);
        Self { tiles: pack_n16k4(&rows, n, k), scale, sum: row_sums(&rows, n, k), n, k }
    }

    fn linear(&self, parts: usize) -> Linear<'_> {
        let (n, k) = (self.n, self.k);
        Linear::I8 { tiles: TilesI8 { tiles: &self.tiles, scale: &self.scale, sum: &self.sum, n, k }, parts }
    }
}

#[test]
fn unknown_kernels_are_refused_with_the_list_of_known_ones() {
    let error = Engine::new(&EngineOptions { threads: 1, kernels: Some("sse9"), ..EngineOptions::default() })
        .unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("this machine has no kernel set `sse9`; choose one of: scalar"), "{message}");
}

#[test]
fn zero_threads_means_one_for_each_core() {
    let engine = Engine::new(&EngineOptions::default()).unwrap();
    assert_eq!(engine.threads(), std::thread::available_parallelism().unwrap().get());
    assert_eq!(engine.kernels().name, crate::kernels::kernels().name);
}

#[test]
fn every_set_and_thread_count_gives_the_same_bits() {
    // One token and many above the size that threads share, and a few below it.
    for (m, n, k) in [(1, 4200, 517), (33, 300, 260), (3, 100, 77)] {
        let (x, w, bias) = (wave(m * k, 0.73), wave(n * k, 0.37), wave(n, 0.11));
        let half: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let tiles = Tiles::new(&w, n, k);
        let mut scratch = Activations::new(m, k, 2, 3, ActivationKinds::Both);
        let int8 = [1, 2].map(|parts| tiles.linear(parts));
        for w in int8.into_iter().chain([Linear::F16 { rows: &half, n, k }, Linear::F32 { rows: &w, n, k }]) {
            let mut want = Vec::new();
            for set in crate::kernels::Kernels::available() {
                for threads in [1, 2, 3] {
                    let engine = Engine::new(&EngineOptions {
                        threads,
                        kernels: Some(set.name),
                        ..EngineOptions::default()
                    })
                    .unwrap();
                    let (mut all, mut some) = (vec![f32::NAN; m * n], vec![f32::NAN; m * (n - 42)]);
                    engine.linear(&x, w, Some(&bias), &mut all, &mut scratch);
                    engine.product(&scratch, w, 7..n - 35, Epilogue::default(), &mut some);
                    all.append(&mut some);
                    assert!(all.iter().all(|x| x.is_finite()));
                    if want.is_empty() {
                        want = all;
                    } else {
                        assert!(all == want, "{} threads {threads} m {m}", set.name);
                    }
                }
            }
        }
    }
}

#[test]
fn int8_layer_is_near_the_float_one() {
    let (m, n, k) = (5, 40, 192);
    let (x, w, bias) = (wave(m * k, 0.73), wave(n * k, 0.37), wave(n, 0.11));
    let tiles = Tiles::new(&w, n, k);
    let engine = Engine::new(&EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap();
    let mut scratch = Activations::new(m, k, 2, 3, ActivationKinds::Both);
    let (mut int8, mut float) = (vec![0.0; m * n], vec![0.0; m * n]);
    engine.linear(&x, tiles.linear(1), Some(&bias), &mut int8, &mut scratch);
    engine.linear(&x, Linear::F32 { rows: &w, n, k }, Some(&bias), &mut float, &mut scratch);
    for (a, b) in int8.iter().zip(&float) {
        // Each of the 2k factors is off by at most half a step of 1/127; errors add like √k, with a wide margin.
        let off = (a - b).abs();
        assert!(off <= 3.0 * (k as f32).sqrt() / 127.0, "{a} for {b}");
    }
}

#[test]
fn a_second_part_keeps_what_the_first_one_loses() {
    let (m, n, k) = (5, 40, 192);
    let (x, w) = (wave(m * k, 0.73), wave(n * k, 0.37));
    let tiles = Tiles::new(&w, n, k);
    let engine = Engine::new(&EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap();
    // The weights as they are stored, so that the activations alone make the difference.
    let mut stored = vec![0.0; n * k];
    stored.chunks_mut(k).enumerate().for_each(|(i, row)| tiles.linear(1).row(i, row));
    let product = |w: Linear| {
        let mut out = vec![0.0; m * n];
        engine.linear(&x, w, None, &mut out, &mut Activations::new(m, k, 2, 3, ActivationKinds::Both));
        out
    };
    let float = product(Linear::F32 { rows: &stored, n, k });
    let off = |out: Vec<f32>| out.iter().zip(&float).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (one, two) = (off(product(tiles.linear(1))), off(product(tiles.linear(2))));
    assert!(two <= one / 100.0 && two > 0.0, "{two} with two parts, {one} with one");
}

#[test]
fn rows_of_every_kind_come_back() {
    let (n, k) = (20, 33);
    let w = wave(n * k, 0.37);
    let half: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
    let tiles = Tiles::new(&w, n, k);
    for (linear, off) in [
        (tiles.linear(1), 0.5 / 127.0),
        (Linear::F16 { rows: &half, n, k }, 5e-4),
        (Linear::F32 { rows: &w, n, k }, 0.0),
    ] {
        let mut row = vec![f32::NAN; k];
        for i in 0..n {
            linear.row(i, &mut row);
            for (&got, &want) in row.iter().zip(&w[i * k..]) {
                assert!((got - want).abs() <= off + 1e-7 * off, "{got} for {want}");
            }
        }
    }
}

#[test]
fn poisoned_activations_reach_the_output() {
    let tiles = Tiles::new(&wave(16 * 32, 0.37), 16, 32);
    let engine = Engine::new(&EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap();
    let mut x = wave(2 * 32, 0.73);
    x[40] = f32::NAN;
    let mut out = vec![0.0; 2 * 16];
    engine.linear(
        &x,
        tiles.linear(1),
        None,
        &mut out,
        &mut Activations::new(2, 32, 2, 1, ActivationKinds::Both),
    );
    assert!(out[..16].iter().all(|x| x.is_finite()), "the other token is untouched");
    assert!(out[16..].iter().all(|x| x.is_nan()));
}

#[test]
fn activations_are_loaded_as_they_are_or_normed() {
    let (m, k) = (40, 500);
    let (x, norm) = (wave(m * k, 0.73), wave(k, 0.11));
    let identity: Vec<f32> = (0..k * k).map(|i| if i % (k + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let w = Linear::F32 { rows: &identity, n: k, k };
    let tiles = Tiles::new(&identity, k, k);
    for threads in [1, 3] {
        let engine = Engine::new(&EngineOptions { threads, ..EngineOptions::default() }).unwrap();
        let mut want = [x.clone(), x.clone()];
        engine.rms_norm_inplace(&mut want[1], &norm, 1e-5);
        let mut a = Activations::new(m, k, 2, threads, ActivationKinds::Both);
        // A second part leaves 1/254 of half a step: far below what a wrong row would be off by.
        for (w, off) in [(w, 0.0), (tiles.linear(2), 1e-3)] {
            for (way, want) in want.iter().enumerate() {
                match way {
                    0 => engine.load(&x, w, &mut a),
                    _ => engine.load_normed(&x, &norm, 1e-5, w, &mut a),
                }
                let mut out = vec![1.0; m * k];
                engine.product(&a, w, 0..k, Epilogue { bias: None, residual: true }, &mut out);
                for (&got, &want) in out.iter().zip(want) {
                    assert!(
                        (got - 1.0 - want).abs() <= off + 1e-6 * (1.0 + want.abs()),
                        "{got} for 1 + {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn layers_together_give_what_they_give_alone() {
    for (m, n, k) in [(1, 130, 60), (5, 333, 100), (70, 500, 260)] {
        let (x, w) = (wave(m * k, 0.73), [wave(n * k, 0.37), wave(n * k, 0.29), wave(7 * k, 0.51)]);
        let biases = [wave(n, 0.11), wave(n, 0.23), wave(n, 0.31)];
        let tiles = [Tiles::new(&w[0], n, k), Tiles::new(&w[1], n, k), Tiles::new(&w[2], 7, k)];
        for set in crate::kernels::Kernels::available() {
            for threads in [1, 3] {
                let engine = Engine::new(&EngineOptions {
                    threads,
                    kernels: Some(set.name),
                    ..EngineOptions::default()
                })
                .unwrap();
                let mut a = Activations::new(m, k, 1, threads, ActivationKinds::Both);
                let float = Linear::F32 { rows: &w[0], n, k };
                for [first, second, third] in
                    [tiles.each_ref().map(|t| t.linear(1)), [float, Linear::F32 { rows: &w[1], n, k }, float]]
                {
                    let [first, second, third] =
                        [(first, 0), (second, 1), (third, 2)].map(|(w, i)| (w, Some(&biases[i][..w.n()])));
                    let alone = [first, second, third].map(|(w, bias)| {
                        let mut out = vec![f32::NAN; m * w.n()];
                        engine.linear(
                            &x,
                            w,
                            bias,
                            &mut out,
                            &mut Activations::new(m, k, 1, threads, ActivationKinds::Both),
                        );
                        out
                    });
                    let mut together = alone.each_ref().map(|out| vec![f32::NAN; out.len()]);
                    engine.load(&x, first.0, &mut a);
                    let [a0, a1, a2] = &mut together;
                    engine.products(&a, [(first, &mut a0[..]), (second, &mut a1[..]), (third, &mut a2[..])]);
                    assert!(together == alone, "{} threads {threads} m {m}", set.name);

                    let mut want = alone[0].clone();
                    (engine.kernels().silu_mul_f32)(&mut want, &alone[1]);
                    let mut gated = vec![f32::NAN; m * n];
                    engine.gated(&mut a, first, second, &mut gated);
                    assert!(gated == want, "{} threads {threads} m {m}, gated", set.name);
                }
            }
        }
    }
}

#[test]
fn residuals_add() {
    let engine = Engine::new(&EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap();
    let mut x = [1.0, 2.0];
    engine.add(&mut x, &[0.5, -2.0]);
    assert_eq!(x, [1.5, 0.0]);
}
