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
    for parts in [1, 2].into_iter().filter(|&parts| scale.len().is_multiple_of(parts)) {
        let (m, x) = (scale.len() / parts, RowsI8 { q: &padded, scale, parts });
        let mut want = vec![1.0; m * rows.len()];
        let mut got = vec![f32::NAN; m * rows.len()];
        scalar::matmul_i8(x, w.tiles(), rows.clone(), bias, &mut want);
        (set.matmul_i8)(x, w.tiles(), rows.clone(), bias, &mut got);
        let (n, k) = (w.n, w.k);
        assert_same(&got, &want, &format!("{} m {m} parts {parts} n {n} k {k} rows {rows:?}", set.name));
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
                (set.matmul_f32)(&x, w, range.clone(), bias, &mut got);
                scalar::matmul_f32(&x, w, range.clone(), bias, &mut want);
                assert_same(&got, &want, &what);
                let w = FloatRows { rows: &halves[..], n, k };
                (set.matmul_f16)(&x, w, range.clone(), bias, &mut got);
                scalar::matmul_f16(&x, w, range.clone(), bias, &mut want);
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
            (set.matmul_f16)(&x, w, 0..w.n, None, &mut got);
            scalar::matmul_f16(&x, w, 0..w.n, None, &mut want);
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
            for keys in 0..=KV_BLOCK {
                let what = format!("{} head_dim {head_dim} keys {keys}", set.name);
                let (q, k, scale) = (random.i8s(head_dim), random.i8s(keys * head_dim), random.f32s(keys));
                let (mut got, mut want) = (vec![f32::NAN; keys], vec![0.0; keys]);
                (set.scores_i8)(&q, 0.37, &k, &scale, &mut got);
                scalar::scores_i8(&q, 0.37, &k, &scale, &mut want);
                assert_same(&got, &want, &what);
                let (qf, kf, p) = (random.f32s(head_dim), random.f32s(keys * head_dim), random.f32s(keys));
                (set.scores_f32)(&qf, &kf, &mut got);
                scalar::scores_f32(&qf, &kf, &mut want);
                assert_same(&got, &want, &what);
                let mut got = random.f32s(head_dim);
                let mut want = got.clone();
                (set.weighted_sum_i8)(&p, &k, &scale, &mut got);
                scalar::weighted_sum_i8(&p, &k, &scale, &mut want);
                assert_same(&got, &want, &what);
                (set.weighted_sum_f32)(&p, &kf, &mut got);
                scalar::weighted_sum_f32(&p, &kf, &mut want);
                assert_same(&got, &want, &what);
            }
        }
        for x in [127, -127, -128] {
            let (mut got, mut want) = ([f32::NAN; 16], [0.0; 16]);
            (set.scores_i8)(&[x; 128], 1.0, &[-127; 16 * 128], &[1.0; 16], &mut got);
            scalar::scores_i8(&[x; 128], 1.0, &[-127; 16 * 128], &[1.0; 16], &mut want);
            assert_same(&got, &want, set.name);
        }
    });
}
