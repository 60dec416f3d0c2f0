//! Every set that this machine can run, against the scalar one, bit for bit.

use super::compare::assert_same;
use super::*;

/// Runs `check` for every set but the scalar one.
fn each_set(check: impl Fn(&'static Kernels)) {
    Kernels::available().iter().filter(|set| set.name != "scalar").for_each(check);
}

/// Runs one INT8 product in a set and in scalar.
///
/// An even number of rows is tried as tokens of two parts too.
fn compare_i8(set: &Kernels, w: &Weights, q: &[i8], scale: &[f32], rows: Range<usize>, bias: Option<&[f32]>) {
    let padded = pad_rows(q, w.k);
    let operand = operand(set, &padded);
    for parts in [1, 2].into_iter().filter(|&parts| scale.len().is_multiple_of(parts)) {
        let (m, x) = (scale.len() / parts, RowsI8 { q: &padded, scale, parts });
        for residual in [false, true] {
            // With a residual both begin with the same numbers, without they must not look at them.
            let mut want = vec![1.0; m * rows.len()];
            let mut got = vec![if residual { 1.0 } else { f32::NAN }; m * rows.len()];
            let epilogue = Epilogue { bias, residual };
            scalar::matmul_i8(x, w.tiles(), rows.clone(), epilogue, Columns::of(&mut want, m, rows.len()));
            let x = RowsI8 { q: &operand, ..x };
            (set.matmul_i8)(x, w.tiles(), rows.clone(), epilogue, Columns::of(&mut got, m, rows.len()));
            let what = format!("{} m {m} parts {parts} n {} k {} rows {rows:?}", set.name, w.n, w.k);
            assert_same(&got, &want, &what);
        }
    }
}

#[test]
fn names_are_distinct_and_scalar_comes_first() {
    let mut names: Vec<_> = Kernels::available().iter().map(|set| set.name).collect();
    assert_eq!(names[0], "scalar");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Kernels::available().len());
}

#[test]
fn int8_products_of_every_token_count() {
    each_set(|set| {
        let mut random = Random(10);
        for m in 1..=40 {
            let (n, k) = (1 + random.below(150), 1 + random.below(200));
            let w = Weights::new(random.i8s(n * k), random.f32s(n), k);
            let (q, scale, bias) = (random.i8s(m * k), random.f32s(m), random.f32s(n));
            compare_i8(set, &w, &q, &scale, 0..n, None);
            compare_i8(set, &w, &q, &scale, 0..n, Some(&bias));
            let (a, b) = (random.below(n + 1), random.below(n + 1));
            compare_i8(set, &w, &q, &scale, a.min(b)..a.max(b), Some(&bias));
        }
    });
}

/// 10,000 shapes; 500 on Arm, where the tests mostly run under emulation.
#[test]
fn int8_products_of_random_shapes() {
    let shapes = if cfg!(target_arch = "aarch64") { 500 } else { 10_000 };
    each_set(|set| {
        let mut random = Random(17);
        for _ in 0..shapes {
            let (m, n, k) = (1 + random.below(40), 1 + random.below(96), 1 + random.below(320));
            let w = Weights::new(random.i8s(n * k), random.f32s(n), k);
            let (q, scale, bias) = (random.i8s(m * k), random.f32s(m), random.f32s(n));
            compare_i8(set, &w, &q, &scale, 0..n, (k % 2 == 0).then_some(&bias[..]));
        }
    });
}

/// More rows than meet a stretch of weights together, more inputs than a stretch has, groups in threes and what is left of them.
#[test]
fn int8_products_beyond_every_block() {
    each_set(|set| {
        let mut random = Random(19);
        for m in [8, 9, 97, 104, 193, 194] {
            for n in [16, 48, 64, 81] {
                let k = [512, 513, 1030, 1537][random.below(4)];
                let w = Weights::new(random.i8s(n * k), random.f32s(n), k);
                let (q, scale, bias) = (random.i8s(m * k), random.f32s(m), random.f32s(n));
                compare_i8(set, &w, &q, &scale, 0..n, Some(&bias));
            }
        }
    });
}

#[test]
fn int8_products_around_every_width() {
    each_set(|set| {
        let mut random = Random(11);
        for n in [1, 15, 16, 17, 47, 48, 49, 96, 97, 127, 128, 129, 192] {
            for k in [1, 3, 4, 31, 32, 33, 64, 192] {
                for m in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17] {
                    let w = Weights::new(random.i8s(n * k), random.f32s(n), k);
                    let (q, scale) = (random.i8s(m * k), random.f32s(m));
                    compare_i8(set, &w, &q, &scale, 0..n, None);
                }
            }
        }
    });
}

#[test]
fn int8_products_of_extreme_values() {
    each_set(|set| {
        for (x, y) in [
            (127, 127),
            (127, -127),
            (-127, 127),
            (-127, -127),
            (0, 127),
            (127, 0),
            (-128, -128),
            (-128, 127),
        ] {
            let (m, n, k) = (9, 50, 517);
            let w = Weights::new(vec![y; n * k], vec![1.0; n], k);
            compare_i8(set, &w, &vec![x; m * k], &vec![1.0; m], 0..n, None);
        }
    });
}

#[test]
fn int8_products_pass_on_zeros_and_poison() {
    each_set(|set| {
        let mut random = Random(12);
        let w = Weights::new(random.i8s(40 * 64), random.f32s(40), 64);
        let scale = [0.0, f32::NAN, f32::INFINITY, f32::from_bits(1), -0.0];
        compare_i8(set, &w, &[0; 5 * 64], &scale, 0..40, None);
        compare_i8(set, &w, &random.i8s(5 * 64), &scale, 3..37, Some(&random.f32s(40)));
    });
}

#[test]
fn rows_quantise_alike() {
    each_set(|set| {
        let mut random = Random(13);
        for len in (0..70).chain([192, 511, 512, 1000]) {
            let mut x = random.f32s(len);
            for poison in [None, Some(f32::NAN), Some(f32::INFINITY), Some(f32::MAX), Some(f32::from_bits(1))]
            {
                if let (Some(poison), true) = (poison, len > 0) {
                    x[random.below(len)] = poison;
                }
                let (mut got, mut want) = (vec![9; len + 3], vec![8; len + 3]);
                let got_scale = (set.quantise_row)(&x, &mut got);
                let want_scale = scalar::quantise_row(&x, &mut want);
                assert_same(&[got_scale], &[want_scale], set.name);
                assert_eq!(got, want, "{} len {len} {poison:?}", set.name);
            }
        }
        let ties: Vec<f32> = (-254..=254).map(|i| i as f32 / 2.0).collect();
        let (mut got, mut want) = (vec![0; ties.len()], vec![0; ties.len()]);
        (set.quantise_row)(&ties, &mut got);
        scalar::quantise_row(&ties, &mut want);
        assert_eq!(got, want, "{} on ties", set.name);
    });
}

#[test]
fn float_products_have_the_same_bits() {
    each_set(|set| {
        let mut random = Random(14);
        for m in (1..=13).chain([32, 40]) {
            let (n, k) = (1 + random.below(40), 1 + random.below(100));
            let (x, bias) = (random.f32s(m * k), random.f32s(n));
            let rows = random.f32s(n * k);
            let halves: Vec<f16> = rows.iter().map(|&w| f16::from_f32(w * 1e-4)).collect();
            let (a, b) = (random.below(n + 1), random.below(n + 1));
            for (range, bias) in [(0..n, None), (a.min(b)..a.max(b), Some(&bias[..]))] {
                let what = format!("{} m {m} n {n} k {k} {range:?}", set.name);
                let (mut got, mut want) = (vec![f32::NAN; m * range.len()], vec![0.0; m * range.len()]);
                let w = FloatRows { rows: &rows[..], n, k };
                let epilogue = Epilogue { bias, residual: false };
                (set.matmul_f32)(&x, w, range.clone(), epilogue, Columns::of(&mut got, m, range.len()));
                scalar::matmul_f32(&x, w, range.clone(), epilogue, Columns::of(&mut want, m, range.len()));
                assert_same(&got, &want, &what);
                let w = FloatRows { rows: &halves[..], n, k };
                let epilogue = Epilogue { bias, residual: true };
                (set.matmul_f16)(&x, w, range.clone(), epilogue, Columns::of(&mut got, m, range.len()));
                scalar::matmul_f16(&x, w, range.clone(), epilogue, Columns::of(&mut want, m, range.len()));
                assert_same(&got, &want, &what);
            }
        }
    });
}

#[test]
fn every_half_multiplies_alike() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    each_set(|set| {
        // One weight a row, then sixteen: the tail's conversion and the full register's.
        for k in [1, 16] {
            let (x, w) = (vec![1.0; k], FloatRows { rows: &halves[..], n: halves.len() / k, k });
            let (mut got, mut want) = (vec![0.0; w.n], vec![1.0; w.n]);
            let none = Epilogue::default();
            (set.matmul_f16)(&x, w, 0..w.n, none, Columns::of(&mut got, 1, w.n));
            scalar::matmul_f16(&x, w, 0..w.n, none, Columns::of(&mut want, 1, w.n));
            assert_same(&got, &want, set.name);
        }
    });
}

#[test]
fn elementwise_kernels_have_the_same_bits() {
    each_set(|set| {
        let mut random = Random(15);
        for len in (1..70).chain([192, 333]) {
            let what = format!("{} len {len}", set.name);
            let mut x = random.f32s(len);
            let y = random.f32s(len);
            for special in
                [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -100.0, 100.0, f32::from_bits(1)]
            {
                x[random.below(len)] *= special;
                let (mut got, mut want) = (x.clone(), x.clone());
                (set.rms_norm_f32)(&mut got, &y, 1e-5);
                scalar::rms_norm_f32(&mut want, &y, 1e-5);
                assert_same(&got, &want, &what);
                let (mut got, mut want) = (x.clone(), x.clone());
                (set.softmax_f32)(&mut got);
                scalar::softmax_f32(&mut want);
                assert_same(&got, &want, &what);
                let (mut got, mut want) = (x.clone(), x.clone());
                (set.silu_f32)(&mut got);
                scalar::silu_f32(&mut want);
                assert_same(&got, &want, &what);
                (set.silu_mul_f32)(&mut got, &y);
                scalar::silu_mul_f32(&mut want, &y);
                assert_same(&got, &want, &what);
            }
            let (cos, sin) = (random.f32s(len), random.f32s(len));
            let mut got = random.f32s(len * 6);
            let mut want = got.clone();
            (set.rope_f32)(&mut got, &cos, &sin);
            scalar::rope_f32(&mut want, &cos, &sin);
            assert_same(&got, &want, &what);
        }
    });
}

#[test]
fn attention_kernels_have_the_same_bits() {
    each_set(|set| {
        let mut random = Random(16);
        for head_dim in [1, 15, 16, 17, 31, 32, 33, 48, 64, 80, 96, 128, 256] {
            let mut panels = Panels::new(6, head_dim);
            for token in 0..6 * KV_BLOCK {
                let (k, v) = (random.i8s(head_dim), random.i8s(head_dim));
                panels.set(token / KV_BLOCK, token % KV_BLOCK, &k, random.f32s(1)[0], &v);
            }
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17] {
                let which: Vec<u32> = (0..random.below(6)).map(|_| random.below(6) as u32).collect();
                let (keys, what) = (
                    which.len() * KV_BLOCK,
                    format!("{} m {m} head_dim {head_dim} panels {which:?}", set.name),
                );
                let (q, scale, bias) =
                    (pad_rows(&random.i8s(m * head_dim), head_dim), random.f32s(m), random.f32s(m));
                let queries = |q| Queries { q, scale: &scale, bias: &bias };
                let (mut got, mut want) = (vec![7.0; m * (keys + 3)], vec![7.0; m * (keys + 3)]);
                let operand = operand(set, &q);
                (set.scores_i8)(queries(&operand), panels.which(&which), &mut got, keys + 3);
                scalar::scores_i8(queries(&q), panels.which(&which), &mut want, keys + 3);
                assert_same(&got, &want, &what);

                let p: Vec<i8> = (0..2 * m * keys).map(|_| random.below(128) as i8).collect();
                let (mut got, mut want) = (vec![f32::NAN; m * head_dim], vec![0.0; m * head_dim]);
                (set.weighted_sum_i8)(&p, &scale, panels.which(&which), &mut got);
                scalar::weighted_sum_i8(&p, &scale, panels.which(&which), &mut want);
                assert_same(&got, &want, &what);
            }
            for keys in 0..=KV_BLOCK {
                let what = format!("{} head_dim {head_dim} keys {keys}", set.name);
                let (q, k, p) = (random.f32s(head_dim), random.f32s(keys * head_dim), random.f32s(keys));
                let (mut got, mut want) = (vec![f32::NAN; keys], vec![0.0; keys]);
                (set.scores_f32)(&q, &k, &mut got);
                scalar::scores_f32(&q, &k, &mut want);
                assert_same(&got, &want, &what);
                let mut got = random.f32s(head_dim);
                let mut want = got.clone();
                (set.weighted_sum_f32)(&p, &k, &mut got);
                scalar::weighted_sum_f32(&p, &k, &mut want);
                assert_same(&got, &want, &what);
            }
        }
    });
}

#[test]
fn attention_of_extreme_values_has_the_same_bits() {
    each_set(|set| {
        let mut panels = Panels::new(1, 128);
        for (x, y) in [(127, 127), (127, -127), (-127, -127), (-128, -127)] {
            (0..16).for_each(|token| panels.set(0, token, &[y; 128], 1.0, &[y; 128]));
            let queries = |q| Queries { q, scale: &[1.0], bias: &[0.0] };
            let (mut got, mut want) = ([f32::NAN; 16], [0.0; 16]);
            let operand = operand(set, &[x; 128]);
            (set.scores_i8)(queries(&operand), panels.which(&[0]), &mut got, 16);
            scalar::scores_i8(queries(&[x; 128]), panels.which(&[0]), &mut want, 16);
            assert_same(&got, &want, set.name);
            let (mut got, mut want) = ([f32::NAN; 128], [0.0; 128]);
            (set.weighted_sum_i8)(&[127; 32], &[1.0], panels.which(&[0]), &mut got);
            scalar::weighted_sum_i8(&[127; 32], &[1.0], panels.which(&[0]), &mut want);
            assert_same(&got, &want, set.name);
        }
    });
}

#[test]
fn attention_weights_have_the_same_bits() {
    each_set(|set| {
        let mut random = Random(18);
        for panels in 0..20 {
            let keys = panels * KV_BLOCK;
            let v: Vec<f32> = random.f32s(keys).into_iter().map(f32::abs).collect();
            for special in [1.0, 1e30, f32::NEG_INFINITY, 0.0] {
                let mut s = random.f32s(keys);
                if keys > 0 {
                    s[random.below(keys)] = special;
                }
                let c = WEIGHT_MAX / 2.0;
                let (mut got, mut want) = (vec![-1; 2 * keys], vec![-2; 2 * keys]);
                let sum = (set.softmax_u14)(&s, &v, c, &mut got);
                assert_same(&[sum], &[scalar::softmax_u14(&s, &v, c, &mut want)], set.name);
                assert_eq!(got, want, "{} {keys} keys", set.name);
            }
            if keys > 0 {
                let mut s = random.f32s(keys);
                s[random.below(keys)] = f32::NAN;
                let sum = (set.softmax_u14)(&s, &v, 1.0, &mut vec![0; 2 * keys]);
                assert!(sum.is_nan(), "{}: a NaN reaches the sum", set.name);
            }
        }
    });
}

#[test]
fn checksums_of_every_length_are_those_of_a_plain_loop() {
    let bytes: Vec<u8> = Random(77).i8s(1100).into_iter().map(|byte| byte as u8).collect();
    for bytes in (0..=bytes.len()).map(|len| &bytes[..len]) {
        let mut want = [0; 8];
        bytes.iter().enumerate().for_each(|(i, byte)| want[i % 8] ^= byte);
        for set in Kernels::available() {
            assert_eq!((set.checksum)(bytes), u64::from_le_bytes(want), "{} of {}", set.name, bytes.len());
        }
    }
}
