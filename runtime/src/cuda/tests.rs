//! Every kernel on the emulated card against the scalar definition, bit for bit, on awkward sizes.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

use std::cell::Cell;
use std::sync::Arc;

use super::launch::{At, Layer, Layers};
use super::memory::Memory;
use super::{CudaOptions, Device};
use crate::kernels::tests::compare::assert_same;
use crate::kernels::tests::{Random, Weights, pad_rows};
use crate::kernels::{Epilogue, Kernels, RowsI8};
use crate::quant::{pad_k, quantise_row, silu};
use crate::threads::Columns;

#[path = "../../tests/emulator/mod.rs"]
mod emulator;

mod attention;
mod faults;
mod graphs;
mod models;
mod pick;
mod pictures;
mod placement;
mod vision;

const SCALAR: Kernels = Kernels::SCALAR;

/// An emulated card, and what lies in its memory.
pub(super) struct Card {
    pub(super) device: Arc<Device>,
    kept: Vec<Memory>,
}

/// Opens a card with matrix instructions (Orin), or one without (Xavier).
fn card(major: &str, minor: &str) -> Card {
    let dir = emulator::plug_in();
    for (name, value) in [("EMULATOR_MAJOR", major), ("EMULATOR_MINOR", minor)] {
        // SAFETY: each test runs in a process of its own, and has no other threads here.
        unsafe { std::env::set_var(name, value) };
    }
    let options = CudaOptions { ordinal: 0, kernels: dir.join("kernels") };
    Card { device: Device::open(&options).unwrap(), kept: Vec::new() }
}

pub(super) fn orin() -> Card {
    card("8", "7")
}

impl Card {
    /// Puts values into the card's memory.
    fn put<T: bytemuck::Pod>(&mut self, values: &[T]) -> At {
        let memory = self.device.allocate("a test", size_of_val(values).max(1)).unwrap();
        memory.write(0, values).unwrap();
        self.kept.push(memory);
        self.kept.last().unwrap().at()
    }

    /// Gets values back from where `put` put them.
    fn get<T: bytemuck::Pod>(&self, at: At, len: usize) -> Vec<T> {
        let memory = self.kept.iter().find(|memory| memory.at() == at).unwrap();
        let mut values = vec![T::zeroed(); len];
        memory.read(0, &mut values).unwrap();
        values
    }

    /// Forgets everything.
    fn clear(&mut self) {
        self.kept.clear();
    }
}

/// Runs `check` on both kinds of card, one after the other: the emulator is one of them at a time.
fn each_card(check: impl Fn(&mut Card)) {
    check(&mut orin());
    check(&mut card("7", "2"));
}

thread_local! {
    /// Threads of a block that are tried, of kernels that take any number of warps.
    pub(super) static BLOCK: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `check` with blocks as they are, and of other sizes where kernels take any number of warps.
fn each_block(check: impl Fn()) {
    for threads in [None, Some(32), Some(96), Some(1024)] {
        BLOCK.set(threads);
        check();
    }
    BLOCK.set(None);
}

#[test]
fn rows_are_quantised_as_on_the_cpu() {
    each_block(quantise_rows);
}

fn quantise_rows() {
    let mut random = Random(3);
    let mut card = orin();
    for (k, parts) in [(1, 1), (20, 2), (32, 1), (33, 2), (192, 2), (1030, 1), (2048, 2), (14_336, 2)] {
        let mut x = random.f32s(5 * k);
        x[..k].fill(0.0);
        x[k] = f32::NAN;
        x[2 * k] = 3e38;
        x[3 * k..4 * k].iter_mut().for_each(|x| *x *= 1e-38);
        let norm = random.f32s(k);
        for with_norm in [false, true] {
            let (at, norm_at) = (card.put(&x), if with_norm { card.put(&norm) } else { 0 });
            let (q, scale) = (card.put(&vec![7i8; 5 * parts * pad_k(k)]), card.put(&vec![7f32; 5 * parts]));
            card.device.quantise_rows(at, (norm_at, 1e-5), [5, k, parts], q, scale).unwrap();
            let (mut want_q, mut want_scale) = (vec![0; 5 * parts * pad_k(k)], vec![0.0; 5 * parts]);
            for (i, row) in x.chunks(k).enumerate() {
                let mut row = row.to_vec();
                if with_norm {
                    (SCALAR.rms_norm_f32)(&mut row, &norm, 1e-5);
                }
                for part in 0..parts {
                    let q = &mut want_q[(i * parts + part) * pad_k(k)..][..pad_k(k)];
                    let step = quantise_row(&row, q);
                    want_scale[i * parts + part] = step;
                    row.iter_mut().zip(&*q).for_each(|(x, &q)| *x -= f32::from(q) * step);
                }
            }
            let what = format!("k {k} parts {parts} norm {with_norm}");
            assert_same(&card.get(scale, want_scale.len()), &want_scale, &what);
            assert_eq!(card.get::<i8>(q, want_q.len()), want_q, "{what}");
            card.clear();
        }
    }
}

/// Layers, one or several, as the CPU computes them one by one.
struct Case {
    weights: Vec<Weights>,
    biases: Vec<Option<Vec<f32>>>,
    wanted: Vec<(usize, usize)>,
    parts: usize,
    residual: bool,
    gated: bool,
}

impl Case {
    fn random(random: &mut Random, k: usize, count: usize, gated: bool) -> Self {
        let n = 1 + random.below(200);
        let weights: Vec<_> = (0..count)
            .map(|_| {
                let n = if gated { n } else { 1 + random.below(200) };
                Weights::new(random.i8s(n * k), random.f32s(n), k)
            })
            .collect();
        let biases = weights.iter().map(|w| (random.below(2) == 0).then(|| random.f32s(w.n))).collect();
        let wanted = weights.iter().map(|w| {
            let (a, b) = (random.below(w.n), random.below(w.n));
            if gated || a == b { (0, w.n) } else { (a.min(b), a.max(b)) }
        });
        let wanted = wanted.collect();
        let residual = !gated && random.below(2) == 0;
        Self { weights, biases, wanted, parts: 1 + random.below(2), residual, gated }
    }

    /// What the scalar kernels make of it, layer by layer.
    fn want(&self, q: &[i8], scale: &[f32], before: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let k = self.weights[0].k;
        let q = pad_rows(q, k);
        let m = scale.len() / self.parts;
        let mut outs: Vec<Vec<f32>> = before.to_vec();
        for (((w, bias), &(first, end)), out) in
            self.weights.iter().zip(&self.biases).zip(&self.wanted).zip(&mut outs)
        {
            let epilogue = Epilogue { bias: bias.as_deref(), residual: self.residual };
            let x = RowsI8 { q: &q, scale, parts: self.parts };
            (SCALAR.matmul_i8)(x, w.tiles(), first..end, epilogue, Columns::of(out, m, end - first));
        }
        if self.gated {
            let up = outs.pop().unwrap();
            outs[0].iter_mut().zip(up).for_each(|(gate, up)| *gate = silu(*gate) * up);
        }
        outs
    }

    /// Puts the layers on the card; `before` is what stands in the outputs.
    fn layers(&self, card: &mut Card, before: &[Vec<f32>]) -> Layers {
        let mut layers = Layers {
            count: self.weights.len() as i32,
            k: self.weights[0].k as i32,
            parts: self.parts as i32,
            residual: i32::from(self.residual),
            gated: i32::from(self.gated),
            ..Layers::default()
        };
        for (i, w) in self.weights.iter().enumerate() {
            let (first, end) = self.wanted[i];
            layers.layer[i] = Layer {
                tiles: card.put(&w.tiles),
                scale: card.put(&w.scale),
                bias: self.biases[i].as_ref().map_or(0, |bias| card.put(bias)),
                out: card.put(&before[i]),
                first: first as i32,
                end: end as i32,
            };
        }
        layers
    }

    fn compare(&self, card: &Card, layers: &Layers, want: &[Vec<f32>], what: &str) {
        for (layer, want) in layers.layer.iter().zip(want) {
            assert_same(&card.get(layer.out, want.len()), want, what);
        }
    }
}

#[test]
fn int8_layers_of_every_row_count() {
    each_card(|card| {
        let mut random = Random(5);
        let counts = (1..=20).chain([31, 32, 33, 64, 65, 130, 260]);
        for tokens in counts {
            let k = [1, 32, 40, 96, 130, 200][random.below(6)];
            let (count, gated) = if random.below(3) == 0 { (2, true) } else { (1 + random.below(3), false) };
            let case = Case::random(&mut random, k, count, gated);
            let rows = tokens * case.parts;
            let (q, scale) = (random.i8s(rows * k), random.f32s(rows));
            let before: Vec<_> =
                case.wanted.iter().map(|(first, end)| random.f32s(tokens * (end - first))).collect();
            let layers = case.layers(card, &before);
            let (q_at, scale_at) = (card.put(&pad_rows(&q, k)), card.put(&scale));
            card.device.linear_i8(&layers, q_at, scale_at, rows).unwrap();
            let want = case.want(&q, &scale, &before);
            let what = format!(
                "sm {} rows {rows} parts {} k {k} layers {count} gated {gated}",
                card.device.sm(),
                case.parts
            );
            case.compare(card, &layers, &want, &what);
            card.clear();
        }
    });
}

#[test]
fn a_token_of_floats_through_int8_layers() {
    let mut card = orin();
    let mut random = Random(7);
    for k in [1, 31, 64, 192, 512, 1100] {
        for gated in [false, true] {
            let case = Case::random(&mut random, k, 2, gated);
            let (x, norm) = (random.f32s(k), random.f32s(k));
            let before: Vec<_> = case.wanted.iter().map(|(first, end)| random.f32s(end - first)).collect();
            for with_norm in [false, true] {
                let mut row = x.clone();
                if with_norm {
                    (SCALAR.rms_norm_f32)(&mut row, &norm, 1e-6);
                }
                let (mut q, mut scale) = (vec![0; case.parts * k], vec![0.0; case.parts]);
                for (q, scale) in q.chunks_mut(k).zip(&mut scale) {
                    *scale = quantise_row(&row, q);
                    row.iter_mut().zip(&*q).for_each(|(x, &q)| *x -= f32::from(q) * *scale);
                }
                let layers = case.layers(&mut card, &before);
                let (x, norm) = (card.put(&x), if with_norm { card.put(&norm) } else { 0 });
                card.device.linear_i8_of_floats(&layers, x, norm, 1e-6).unwrap();
                let what = format!("k {k} gated {gated} norm {with_norm}");
                case.compare(&card, &layers, &case.want(&q, &scale, &before), &what);
                card.clear();
            }
        }
    }
}

#[test]
fn float_layers_have_the_order_of_the_cpu() {
    use crate::kernels::FloatRows;
    use half::f16;
    let mut card = orin();
    let mut random = Random(9);
    for (m, n, k) in [(1, 1, 1), (3, 17, 15), (2, 40, 33), (5, 16, 200)] {
        let (x, w, bias) = (random.f32s(m * k), random.f32s(n * k), random.f32s(n));
        let halves: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let (first, end) = (random.below(n), n);
        for half in [false, true] {
            for residual in [false, true] {
                let mut want = random.f32s(m * (end - first));
                let x_at = card.put(&x);
                let w_at = if half { card.put(&halves) } else { card.put(&w) };
                let (bias_at, out) = (card.put(&bias), card.put(&want));
                let shape = ([m, k], [first, end]);
                card.device
                    .linear_float(x_at, (w_at, half), bias_at, out, shape.0, shape.1, residual)
                    .unwrap();
                let epilogue = Epilogue { bias: Some(&bias), residual };
                let columns = Columns::of(&mut want, m, end - first);
                if half {
                    (SCALAR.matmul_f16)(&x, FloatRows { rows: &halves, n, k }, first..end, epilogue, columns);
                } else {
                    (SCALAR.matmul_f32)(&x, FloatRows { rows: &w, n, k }, first..end, epilogue, columns);
                }
                assert_same(&card.get(out, want.len()), &want, &format!("{m} × {n} × {k} half {half}"));
                card.clear();
            }
        }
    }
}

#[test]
fn small_operations_on_floats() {
    each_block(operate_on_floats);
}

fn operate_on_floats() {
    let mut card = orin();
    let mut random = Random(11);
    for k in [1, 20, 300] {
        let (x, y, norm) = (random.f32s(3 * k), random.f32s(3 * k), random.f32s(k));
        let mut normed = x.clone();
        (SCALAR.rms_norm_f32)(&mut normed, &norm, 1e-5);
        let (x_at, y_at, norm_at) = (card.put(&x), card.put(&y), card.put(&norm));
        card.device.rms_norm_rows(x_at, (norm_at, 1e-5), [3, k], y_at, true).unwrap();
        let want: Vec<_> = y.iter().zip(&normed).map(|(y, n)| y + n).collect();
        assert_same(&card.get(y_at, 3 * k), &want, "added norm");
        card.device.silu_multiply(x_at, y_at, 3 * k).unwrap();
        let mut gate = x.clone();
        (SCALAR.silu_mul_f32)(&mut gate, &want);
        assert_same(&card.get(x_at, 3 * k), &gate, "gate");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0] {
            let mut values = x.clone();
            values[3 * k - 1] = bad;
            let (values, flag) = (card.put(&values), card.put(&[0u32]));
            card.device.check_finite(values, 3 * k, flag).unwrap();
            assert_eq!(card.get::<u32>(flag, 1), [u32::from(!bad.is_finite())], "{bad}");
        }
        card.clear();
    }
}

#[test]
fn rows_of_tables_and_what_is_added_to_them() {
    each_block(embed);
}

fn embed() {
    use super::launch::{InputAt, TableAt, Tables};
    use half::f16;
    let mut card = orin();
    let mut random = Random(15);
    let d = 40;
    let tiles = Weights::new(random.i8s(20 * d), random.f32s(20), d);
    let halves: Vec<f16> = random.f32s(3 * d).into_iter().map(f16::from_f32).collect();
    let floats = random.f32s(5 * d);
    let table = |rows, scale, kind| TableAt { rows, scale, kind };
    let tables = Tables {
        table: [
            table(card.put(&tiles.tiles), card.put(&tiles.scale), 0),
            table(card.put(&floats), 0, 2),
            TableAt::default(),
            TableAt::default(),
            TableAt::default(),
        ],
        grid: table(card.put(&halves), 0, 1),
        modality: table(card.put(&floats), 0, 2),
        d: d as i32,
    };
    let inputs = [(0, 19, -1, -1), (0, 3, 2, 4), (1, 4, -1, 0), (4, 9, -1, -1)]
        .map(|(table, row, place, modality)| InputAt { table, row, place, modality });
    let (inputs_at, x) = (card.put(&inputs), card.put(&vec![7f32; 4 * d]));
    card.device.embed(&tables, inputs_at, 4, x).unwrap();
    let mut want = vec![7.0; 4 * d];
    for (input, want) in inputs.iter().zip(want.chunks_mut(d)) {
        match input.table {
            0 => tiles.tiles().dequantise_row(input.row as usize, want),
            4 => {}
            _ => want.copy_from_slice(&floats[input.row as usize * d..][..d]),
        }
        for (i, want) in want.iter_mut().enumerate() {
            if input.place >= 0 {
                *want += halves[input.place as usize * d + i].to_f32();
            }
            if input.modality >= 0 {
                *want += floats[input.modality as usize * d + i];
            }
        }
    }
    assert_same(&card.get(x, 4 * d), &want, "input vectors");
}
