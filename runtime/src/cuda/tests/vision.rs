//! The kernels of image networks on the emulated card against the CPU, bit for bit.

use half::f16;

use super::{SCALAR, assert_same, orin};
use crate::cuda::launch::vision::{GroupNormAt, GroupNormShape, Patches, Product, WeightRows};
use crate::engine::card::patches_at;
use crate::engine::layer_norm;
use crate::engine::maps::{GROUP_EPS, GROUPS, Grid, GroupSums, STRIP, Search, Shape, l2_normalise};
use crate::kernels::tests::Random;
use crate::kernels::{Epilogue, FloatRows};
use crate::quant::{gelu, pad_k, quantise_row, silu};
use crate::threads::Columns;

/// Every patch, by the definition.
fn patches_of(x: &[f32], input: Shape, grid: &Grid, out: Shape) -> Vec<f32> {
    let mut patches = Vec::new();
    let inside = |at: usize, tap: usize, of: usize, n: usize| {
        (at * grid.stride[of] + tap).checked_sub(grid.before[of]).filter(|&at| at < n)
    };
    let [kt, side] = grid.kernel;
    for (t, row, column) in
        (0..out.places()).map(|i| (i / out.width / out.height, i / out.width % out.height, i % out.width))
    {
        for (dt, dy, dx) in (0..kt * side * side).map(|i| (i / side / side, i / side % side, i % side)) {
            let at = (
                inside(t, dt, 0, input.time),
                inside(row, dy, 1, input.height),
                inside(column, dx, 1, input.width),
            );
            match at {
                (Some(t), Some(y), Some(x_at)) => {
                    let place = (t * input.height + y) * input.width + x_at;
                    patches.extend_from_slice(&x[place * input.channels..][..input.channels]);
                }
                _ => patches.extend(vec![0.0; input.channels]),
            }
        }
    }
    patches
}

/// Convolutions of every kind: input, grid, outputs.
fn convolutions() -> Vec<(Shape, Grid, usize)> {
    let of = |time, height, width, channels| Shape { time, height, width, channels };
    let grid = |kernel, stride, before, after| Grid { kernel, stride, before, after };
    vec![
        (of(1, 1, 1, 1), Grid::POINT, 1),
        (of(1, 1, 1, 3), grid([1, 3], [1, 1], [0, 1], [0, 1]), 5),
        (of(1, 5, 7, 17), grid([1, 3], [1, 1], [0, 1], [0, 1]), 33),
        (of(1, 6, 9, 3), grid([1, 3], [1, 2], [0, 0], [0, 1]), 40),
        (of(1, 8, 8, 3), grid([1, 4], [1, 2], [0, 1], [0, 1]), 31),
        (of(4, 3, 2, 5), grid([4, 3], [2, 1], [2, 1], [0, 1]), 4),
        (of(3, 2, 3, 4), grid([3, 1], [1, 1], [2, 0], [0, 0]), 66),
        (of(1, 1, 70, 50), Grid::POINT, 64),
    ]
}

#[test]
fn convolutions_have_the_order_of_the_cpu() {
    let mut card = orin();
    let mut random = Random(21);
    for (input, grid, n) in convolutions() {
        let out = grid.shape(input, n);
        let mut x = random.f32s(input.len());
        if input.len() > 100 {
            (x[3], x[50], x[99]) = (3e38, f32::NAN, -0.0);
        }
        let p = patches_at(&grid, input, out);
        let k = p.k as usize;
        let (w, bias) = (random.f32s(n * k), random.f32s(n));
        let halves: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let turned: Vec<f32> = (0..n * k).map(|i| w[i % n * k + i / n]).collect();
        let patches = patches_of(&x, input, &grid, out);
        let c =
            Product { patches: p, n: n as i32, w_n: p.k, w_k: 1, out_row: n as i32, ..Product::default() };
        let (x, bias_at) = (card.put(&x), card.put(&bias));
        let what = format!("{input:?} {grid:?} {n}");
        let mut want = vec![0.0; out.len()];
        let m = out.places();
        let epilogue = Epilogue { bias: Some(&bias), residual: false };

        let (w_at, y) = (card.put(&w), card.put(&vec![7f32; out.len()]));
        card.device.convolve(&c, 1, x, (w_at, WeightRows::F32), bias_at, y).unwrap();
        let rows = FloatRows { rows: &w, n, k };
        (SCALAR.matmul_f32)(&patches, rows, 0..n, epilogue, Columns::of(&mut want, m, n));
        assert_same(&card.get(y, want.len()), &want, &what);

        let w_at = card.put(&turned);
        let by_inputs = Product { w_n: 1, w_k: n as i32, ..c };
        card.device.convolve(&by_inputs, 1, x, (w_at, WeightRows::Turned), 0, y).unwrap();
        (SCALAR.matmul_f32)(&patches, rows, 0..n, Epilogue::default(), Columns::of(&mut want, m, n));
        assert_same(&card.get(y, want.len()), &want, &what);

        let w_at = card.put(&halves);
        card.device.convolve(&c, 1, x, (w_at, WeightRows::F16), bias_at, y).unwrap();
        let rows = FloatRows { rows: &halves, n, k };
        (SCALAR.matmul_f16)(&patches, rows, 0..n, epilogue, Columns::of(&mut want, m, n));
        assert_same(&card.get(y, want.len()), &want, &what);
        card.clear();
    }
}

#[test]
fn heads_are_a_batch() {
    let (mut card, mut random) = (orin(), Random(22));
    let (heads, width, rows, n) = (3, 20, 5, 37);
    let d = heads * width;
    let (q, k) = (random.f32s(rows * d), random.f32s(n * d));
    let row = Shape { time: 1, height: 1, width: rows, channels: width };
    let patches = Patches { row: d as i32, ..patches_at(&Grid::POINT, row, row) };
    let c = Product {
        patches,
        n: n as i32,
        w_n: d as i32,
        w_k: 1,
        out_row: n as i32,
        x_batch: width as i32,
        w_batch: width as i32,
        out_batch: (rows * n) as i32,
    };
    let (q_at, k_at, out) = (card.put(&q), card.put(&k), card.put(&vec![7f32; heads * rows * n]));
    card.device.convolve(&c, heads, q_at, (k_at, WeightRows::F32), 0, out).unwrap();
    let of_head = |x: &[f32], head: usize| -> Vec<f32> {
        x.chunks(d).flat_map(|row| row[head * width..][..width].to_vec()).collect()
    };
    let mut want = vec![0.0; heads * rows * n];
    for (head, want) in want.chunks_mut(rows * n).enumerate() {
        let keys = of_head(&k, head);
        let w = FloatRows { rows: &keys[..], n, k: width };
        let columns = Columns::of(want, rows, n);
        (SCALAR.matmul_f32)(&of_head(&q, head), w, 0..n, Epilogue::default(), columns);
    }
    assert_same(&card.get(out, want.len()), &want, "scores");
    card.device.softmax_rows(out, 0.25, [heads * rows, n]).unwrap();
    for row in want.chunks_mut(n) {
        row.iter_mut().for_each(|x| *x *= 0.25);
        (SCALAR.softmax_f32)(row);
    }
    assert_same(&card.get(out, want.len()), &want, "weights");
}

#[test]
fn patches_are_quantised_as_on_the_cpu() {
    super::each_block(quantise_patches);
}

fn quantise_patches() {
    let (mut card, mut random) = (orin(), Random(23));
    // One is longer than what a block holds unasked.
    let long = (Shape { time: 1, height: 1, width: 2, channels: 13_000 }, Grid::POINT, 1);
    for (input, grid, n) in convolutions().into_iter().chain([long]) {
        let out = grid.shape(input, n);
        let x = random.f32s(input.len());
        let p = patches_at(&grid, input, out);
        let patches = patches_of(&x, input, &grid, out);
        let (k, first) = (p.k as usize, out.places() / 2);
        let count = out.places() - first;
        for parts in [1, 2] {
            let (mut want, mut scales) = (vec![0; count * parts * pad_k(k)], vec![0.0; count * parts]);
            for (i, row) in patches.chunks(k).skip(first).enumerate() {
                let mut row = row.to_vec();
                for part in i * parts..(i + 1) * parts {
                    let q = &mut want[part * pad_k(k)..][..pad_k(k)];
                    scales[part] = quantise_row(&row, q);
                    row.iter_mut().zip(&*q).for_each(|(x, &q)| *x -= f32::from(q) * scales[part]);
                }
            }
            let (x, q, scale) =
                (card.put(&x), card.put(&vec![7i8; want.len()]), card.put(&vec![7f32; scales.len()]));
            card.device.quantise_patches(&p, x, (first, count), parts, q, scale).unwrap();
            assert_same(&card.get(scale, scales.len()), &scales, &format!("{input:?} {grid:?}"));
            assert_eq!(card.get::<i8>(q, want.len()), want, "{input:?} {grid:?}");
            card.clear();
        }
    }
}

#[test]
fn group_norms_modulated_and_swished() {
    super::each_block(norm_groups);
}

fn norm_groups() {
    let (mut card, mut random) = (orin(), Random(24));
    // More strips than lanes, fewer, one; groups of one channel and of more than 16.
    for (height, width, channels, factor) in [(1, 1, 32, 1), (6, 4, 64, 2), (9, 12, 544, 3), (40, 30, 32, 1)]
    {
        let (places, group) = (height * width, channels / GROUPS);
        let mut x = random.f32s(places * channels);
        x[..group].fill(0.0);
        x[channels - 1] = f32::NAN;
        let (weight, bias) = (random.f32s(channels), random.f32s(channels));
        let codes = places / factor / factor * channels;
        let (scale, shift) = (random.f32s(codes), random.f32s(codes));
        for (modulated, swish) in [(false, false), (true, false), (true, true)] {
            let stats = GroupSums::new(channels).stats(&x, channels);
            let want: Vec<f32> = (x.iter().enumerate())
                .map(|(i, x)| {
                    let (c, at) = (i % channels, i / channels);
                    let (mean, inverse) = stats[c / group];
                    let y = (x - mean) * inverse * weight[c] + bias[c];
                    let place = at / width / factor * (width / factor) + at % width / factor;
                    let code = place * channels + c;
                    let y = if modulated { y * scale[code] + shift[code] } else { y };
                    if swish { silu(y) } else { y }
                })
                .collect();
            let strips = places.div_ceil(STRIP);
            let (x, y, partial) =
                (card.put(&x), card.put(&vec![7f32; x.len()]), card.put(&vec![7f64; strips * channels]));
            let (mean, inverse) = (card.put(&[7f64; GROUPS]), card.put(&[7f32; GROUPS]));
            let n = (places * group) as f64;
            let (sizes, folded) = ([places, channels, group], [strips, channels, group]);
            card.device.strip_sums(x, 0, partial, sizes, STRIP).unwrap();
            card.device.fold_strips(partial, folded, (n, 0.0), mean, 0).unwrap();
            card.device.strip_sums(x, mean, partial, sizes, STRIP).unwrap();
            card.device.fold_strips(partial, folded, (n, GROUP_EPS), mean, inverse).unwrap();
            let shape = GroupNormShape {
                places: places as i32,
                channels: channels as i32,
                group: group as i32,
                width: width as i32,
                code_width: (width / factor) as i32,
                factor: factor as i32,
                swish: i32::from(swish),
            };
            let maps = [&scale, &shift].map(|map| if modulated { card.put(map) } else { 0 });
            let (weight, bias) = (card.put(&weight), card.put(&bias));
            let at = GroupNormAt { mean, inverse, weight, bias, scale: maps[0], shift: maps[1] };
            card.device.group_norm(&shape, x, y, at).unwrap();
            assert_same(&card.get(y, want.len()), &want, &format!("{height} × {width} × {channels}"));
            card.clear();
        }
    }
}

#[test]
fn rows_are_normed_and_weighed() {
    let (mut card, mut random) = (orin(), Random(25));
    for (rows, n) in [(1, 1), (3, 17), (33, 40), (5, 200), (1, 4096)] {
        let mut x = random.f32s(rows * n);
        x[0] = if rows == 5 { f32::NAN } else { 0.0 };
        let (weight, bias) = (random.f32s(n), random.f32s(n));
        let (at, y) = (card.put(&x), card.put(&vec![7f32; rows * n]));
        let norm = (card.put(&weight), card.put(&bias), 1e-6);
        card.device.layer_norm(at, y, norm, [rows, n]).unwrap();
        let mut want = x.clone();
        want.chunks_mut(n).for_each(|row| layer_norm(row, &weight, &bias, 1e-6));
        assert_same(&card.get(y, rows * n), &want, &format!("norm {rows} × {n}"));
        card.device.softmax_rows(at, 3.0, [rows, n]).unwrap();
        for row in x.chunks_mut(n) {
            row.iter_mut().for_each(|x| *x *= 3.0);
            (SCALAR.softmax_f32)(row);
        }
        assert_same(&card.get(at, rows * n), &x, &format!("softmax {rows} × {n}"));
        card.clear();
    }
}

#[test]
fn small_operations_on_maps() {
    super::each_block(operate_on_maps);
}

fn operate_on_maps() {
    let (mut card, mut random) = (orin(), Random(26));
    let (rows, width, channels) = (3, 5, 37);
    let n = rows * width * channels;
    let mut x = random.f32s(n);
    (x[0], x[1], x[2], x[3], x[4]) = (f32::NAN, 1e30, -1e30, -0.0, f32::NEG_INFINITY);
    let (at, y) = (card.put(&x), card.put(&vec![7f32; 4 * n]));
    let each =
        |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> { x.iter().enumerate().map(|(i, &x)| f(i, x)).collect() };

    card.device.silu_map(at, y, n).unwrap();
    assert_same(&card.get::<f32>(y, 4 * n)[..n], &each(&|_, x| silu(x)), "silu");

    let of_channels: [Vec<f32>; 4] = std::array::from_fn(|_| random.f32s(channels));
    let [weight, bias, mean, mut variance] = of_channels;
    variance.iter_mut().for_each(|v| *v = v.abs());
    let vectors = [&weight, &bias, &mean, &variance].map(|vector| card.put(vector));
    card.device.channel_norm(at, y, vectors, 1e-5, [rows * width, channels]).unwrap();
    let normed = each(&|i, x| {
        let c = i % channels;
        silu((x - mean[c]) * (weight[c] / (variance[c] + 1e-5).sqrt()) + bias[c])
    });
    assert_same(&card.get::<f32>(y, 4 * n)[..n], &normed, "norm of channels");

    card.device.enlarge_map(at, y, [rows, width, channels]).unwrap();
    let large: Vec<f32> = (0..4 * n)
        .map(|i| {
            let (c, place) = (i % channels, i / channels);
            let (row, column) = (place / (2 * width) / 2, place % (2 * width) / 2);
            x[(row * width + column) * channels + c]
        })
        .collect();
    assert_same(&card.get(y, 4 * n), &large, "enlarged");

    let (floats, halves) =
        (random.f32s(n), random.f32s(n).into_iter().map(f16::from_f32).collect::<Vec<_>>());
    let (floats_at, halves_at) = (card.put(&floats), card.put(&halves));
    card.device.add_maps(at, floats_at, n).unwrap();
    card.device.add_table(at, (halves_at, true), n).unwrap();
    card.device.add_table(at, (floats_at, false), n).unwrap();
    card.device.gelu_map(at, n).unwrap();
    let want = each(&|i, x| gelu(x + floats[i] + halves[i].to_f32() + floats[i]));
    assert_same(&card.get(at, n), &want, "gelu of sums");
}

/// The nearest vectors by the definition.
fn nearest_of(x: &[f32], book: &[f32], k: usize) -> Vec<f32> {
    let of_place = |z: &[f32]| {
        let (mut least, mut nearest) = (f32::INFINITY, f32::NAN);
        for (code, e) in book.chunks(k).enumerate() {
            let distance = z.iter().zip(e).fold(0.0, |sum, (z, e)| sum + (z - e) * (z - e));
            if distance < least {
                (least, nearest) = (distance, code as f32);
            }
        }
        nearest
    };
    x.chunks(k).map(of_place).collect()
}

#[test]
fn nearest_vectors_of_a_code_book() {
    let (mut card, mut random) = (orin(), Random(28));
    for (places, n, k) in
        [(1, 1, 1), (3, 5, 4), (32, 64, 32), (33, 65, 31), (40, 130, 70), (64, 1000, 16), (9, 300, 3)]
    {
        let mut book: Vec<f32> = random.f32s(n * k).iter().map(|&e| f16::from_f32(e).to_f32()).collect();
        // Vectors alike: at the same and at another place of the 64 that a block looks at, and of all threads.
        for code in (0..n).skip(1).filter(|code| code % 3 == 2 || code % 64 == 0) {
            let of = random.below(code);
            book.copy_within(of * k..(of + 1) * k, code * k);
        }
        let mut x = random.f32s(places * k);
        for (place, z) in x.chunks_mut(k).enumerate() {
            match place % 8 {
                // What is in the code book itself, and the last of it.
                1 => z.copy_from_slice(&book[random.below(n) * k..][..k]),
                2 => z.copy_from_slice(&book[(n - 1) * k..]),
                // As far from one as from another.
                3 => z.fill(0.0),
                4 if places > 8 => z[k - 1] = f32::NAN,
                5 => z[0] = f32::NEG_INFINITY,
                6 => z.fill(3e38),
                _ => {}
            }
        }
        let halves: Vec<f16> = book.iter().map(|&e| f16::from_f32(e)).collect();
        let (x_at, codes) = (card.put(&x), card.put(&vec![7f32; places]));
        let books = [(card.put(&book), false), (card.put(&halves), true)];
        for unit in [false, true] {
            let what = format!("{places} {n} {k} {unit}");
            if unit {
                x.chunks_mut(k).chain(book.chunks_mut(k)).for_each(l2_normalise);
            }
            let want = nearest_of(&x, &book, k);
            let mut found = vec![7.0; places];
            let read = |code: usize, row: &mut [f32]| row.copy_from_slice(&book[code * k..][..k]);
            Search::new([places, k]).run(n, &read, &x, &mut found);
            assert_same(&found, &want, &what);
            for book in books {
                card.device.nearest(x_at, book, unit, [places, n, k], codes).unwrap();
                assert_same(&card.get(codes, places), &want, &what);
            }
            assert!(places < 8 || want.iter().any(|code| code.is_nan()), "{what}");
        }
        card.clear();
    }
}
