//! The scalar set against values worked out by hand or in f64.

use super::compare::{assert_close, assert_same};
use super::*;

#[test]
fn int8_product_by_hand() {
    // Row 0: 1·1 + 2·(−1) + 3·2 = 5; row 1: 127·(1 + 2 + 3) = 762; token 1 is −1 times token 0.
    let w = Weights::new(vec![1, -1, 2, 127, 127, 127], vec![0.5, 2.0], 3);
    let q = pad_rows(&[1, 2, 3, -1, -2, -3], 3);
    let (mut out, x) = ([f32::NAN; 4], RowsI8 { q: &q, scale: &[1.0, 0.25], parts: 1 });
    scalar::matmul_i8(x, w.tiles(), 0..2, Epilogue::default(), Columns::of(&mut out, 2, 2));
    assert_same(&out, &[2.5, 1524.0, -0.625, -381.0], "no bias");
    let mut out = [10.0, 20.0];
    let epilogue = Epilogue { bias: Some(&[9.0, 1.0]), residual: false };
    scalar::matmul_i8(x, w.tiles(), 1..2, epilogue, Columns::of(&mut out, 2, 1));
    assert_same(&out, &[1525.0, -380.0], "row 1 with its bias");
    let epilogue = Epilogue { residual: true, ..epilogue };
    scalar::matmul_i8(x, w.tiles(), 1..2, epilogue, Columns::of(&mut out, 2, 1));
    assert_same(&out, &[3050.0, -760.0], "added to what stood there");
    let (mut out, x) = ([f32::NAN], RowsI8 { parts: 2, ..x });
    scalar::matmul_i8(x, w.tiles(), 0..1, Epilogue::default(), Columns::of(&mut out, 1, 1));
    assert_same(&out, &[2.5 - 0.625], "two parts of one token");
}

#[test]
fn longest_product_of_extremes_fits_the_accumulator() {
    let w = Weights::new(vec![-127; MAX_K], vec![1.0], MAX_K);
    let q = pad_rows(&vec![127; MAX_K], MAX_K);
    for set in Kernels::available() {
        let mut out = [f32::NAN];
        let q = operand(set, &q);
        let x = RowsI8 { q: &q, scale: &[1.0], parts: 1 };
        (set.matmul_i8)(x, w.tiles(), 0..1, Epilogue::default(), Columns::of(&mut out, 1, 1));
        assert_eq!(out[0], -(127.0 * 127.0 * MAX_K as f64) as f32, "{}", set.name);
    }
}

#[test]
#[should_panic(expected = "overflow an i32")]
fn longer_products_are_refused() {
    TilesI8 { tiles: &[], scale: &[], sum: &[], n: 0, k: MAX_K + 1 }.assert_shapes();
}

#[test]
fn int8_product_against_the_formula() {
    let mut random = Random(1);
    for (m, n, k) in [(1, 1, 1), (2, 17, 5), (3, 33, 100), (5, 48, 64)] {
        let w = Weights::new(random.i8s(n * k), random.f32s(n), k);
        let (q, scale, bias) = (random.i8s(m * k), random.f32s(m), random.f32s(n));
        let mut out = vec![f32::NAN; m * n];
        let padded = pad_rows(&q, k);
        let x = RowsI8 { q: &padded, scale: &scale, parts: 1 };
        let epilogue = Epilogue { bias: Some(&bias), residual: false };
        scalar::matmul_i8(x, w.tiles(), 0..n, epilogue, Columns::of(&mut out, m, n));
        for i in 0..m {
            for j in 0..n {
                let acc: i32 = (0..k).map(|l| i32::from(q[i * k + l]) * i32::from(w.rows[j * k + l])).sum();
                let want = acc as f32 * (scale[i] * w.scale[j]) + bias[j];
                assert_same(&out[i * n + j..][..1], &[want], "formula");
            }
        }
    }
}

#[test]
fn float_products_against_f64() {
    let mut random = Random(2);
    for (m, n, k) in [(1, 1, 1), (1, 5, 15), (3, 4, 16), (2, 9, 67), (5, 7, 192)] {
        let (x, w, bias) = (random.f32s(m * k), random.f32s(n * k), random.f32s(n));
        let half: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let exact = |w: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let dot =
                |i: usize, j: usize| (0..k).map(|l| f64::from(x[i * k + l]) * w(j * k + l)).sum::<f64>();
            (0..m * n).map(|o| dot(o / n, o % n) + f64::from(bias[o % n])).collect()
        };
        let mut out = vec![f32::NAN; m * n];
        let epilogue = Epilogue { bias: Some(&bias), residual: false };
        let w_f32 = FloatRows { rows: &w[..], n, k };
        scalar::matmul_f32(&x, w_f32, 0..n, epilogue, Columns::of(&mut out, m, n));
        assert_close(&out, &exact(&|i| f64::from(w[i])), 1e-6, k as f64, "f32");
        let w_f16 = FloatRows { rows: &half[..], n, k };
        scalar::matmul_f16(&x, w_f16, 0..n, epilogue, Columns::of(&mut out, m, n));
        assert_close(&out, &exact(&|i| half[i].to_f64()), 1e-6, k as f64, "f16");
        let twice: Vec<f64> = exact(&|i| half[i].to_f64()).into_iter().map(|y| 2.0 * y).collect();
        let epilogue = Epilogue { residual: true, ..epilogue };
        scalar::matmul_f16(&x, w_f16, 0..n, epilogue, Columns::of(&mut out, m, n));
        assert_close(&out, &twice, 1e-6, 2.0 * k as f64, "f16 added to itself");
    }
}

#[test]
fn norms_softmax_and_activations_against_f64() {
    let mut random = Random(3);
    for len in [1, 2, 15, 16, 17, 33, 192] {
        let (x, w) = (random.f32s(len), random.f32s(len));
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mut out = x.clone();
        scalar::rms_norm_f32(&mut out, &w, 1e-5);
        let inverse =
            1.0 / (wide.iter().map(|x| x * x).sum::<f64>() / len as f64 + f64::from(1e-5f32)).sqrt();
        let want: Vec<f64> = wide.iter().zip(&w).map(|(x, &w)| x * inverse * f64::from(w)).collect();
        assert_close(&out, &want, 1e-6, 0.0, "rms norm");

        let mut out = x.clone();
        scalar::softmax_f32(&mut out);
        let total: f64 = wide.iter().map(|x| x.exp()).sum();
        let want: Vec<f64> = wide.iter().map(|x| x.exp() / total).collect();
        assert_close(&out, &want, 1e-6, 0.0, "softmax");

        let mut out = x.clone();
        scalar::silu_mul_f32(&mut out, &w);
        let want: Vec<f64> =
            wide.iter().zip(&w).map(|(x, &w)| x / (1.0 + (-x).exp()) * f64::from(w)).collect();
        assert_close(&out, &want, 1e-6, 0.0, "silu mul");
    }
}

#[test]
fn softmax_of_special_rows() {
    let mut x = [1000.0, 1000.0, f32::NEG_INFINITY];
    scalar::softmax_f32(&mut x);
    assert_same(&x, &[0.5, 0.5, 0.0], "large and absent");
    let mut x = [0.0, f32::NAN, 1.0];
    scalar::softmax_f32(&mut x);
    assert!(x.iter().all(|x| x.is_nan()), "a NaN reaches every weight");
    scalar::softmax_f32(&mut []);
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    // A quarter turn sends (1, 2) to (−2, 1); no turn leaves (3, 4).
    let mut x = [1.0, 3.0, 2.0, 4.0, 1.0, 0.0, 0.0, 0.0];
    scalar::rope_f32(&mut x, &[0.0, 1.0], &[1.0, 0.0]);
    assert_same(&x, &[-2.0, 3.0, 1.0, 4.0, 0.0, 0.0, 1.0, 0.0], "two heads");
}

#[test]
fn attention_kernels_by_hand() {
    // Two panels of 16 keys of three values, of which the second one is asked for; key j of it is (1, 1, 1) · j.
    let mut panels = Panels::new(2, 3);
    for j in 0..16i8 {
        panels.set(1, j as usize, &[j; 3], if j == 1 { 2.0 } else { 1.0 }, &[j, -j, 1]);
    }
    let q = pad_rows(&[1, -2, 3, 127, 0, 0], 3);
    let queries = Queries { q: &q, scale: &[0.5, 1.0], bias: &[0.25, 0.0] };
    let mut out = [f32::NAN; 40];
    scalar::scores_i8(queries, panels.which(&[1]), &mut out, 20);
    assert_same(
        &out[..3],
        &[0.25, 2.0 * 0.5 * 2.0 + 0.25, 2.25],
        "(1 − 2 + 3) · j · 0.5, key 1 twice, and the bias",
    );
    assert_same(&out[20 + 14..20 + 16], &[14.0 * 127.0, 15.0 * 127.0], "the second query, at its stride");
    assert!(out[16..20].iter().all(|x| x.is_nan()), "nothing is written between the rows");

    // Token 2 with 128 · 1 + 2, token 3 with 5, times a half.
    let mut p = [0i8; 32];
    (p[2], p[16 + 2], p[16 + 3]) = (1, 2, 5);
    let mut out = [f32::NAN; 3];
    scalar::weighted_sum_i8(&p, &[0.5], panels.which(&[1]), &mut out);
    assert_same(
        &out,
        &[(130.0 * 2.0 + 15.0) / 2.0, -(130.0 * 2.0 + 15.0) / 2.0, 135.0 / 2.0],
        "weighted values",
    );

    let mut out = [f32::NAN; 2];
    scalar::scores_f32(&[1.0, -2.0, 3.0], &[1.0, 1.0, 1.0, 2.0, 0.0, -1.0], &mut out);
    assert_same(&out, &[2.0, -1.0], "floats");
    let mut out = [1.0, 0.0];
    scalar::weighted_sum_f32(&[0.5, 2.0], &[2.0, 4.0, 1.0, -1.0], &mut out);
    assert_same(&out, &[1.0 + 1.0 + 2.0, 2.0 - 2.0], "added to what stood there");
}

#[test]
fn attention_weights_against_f64() {
    let mut random = Random(4);
    for panels in 1..5 {
        let keys = panels * KV_BLOCK;
        let (mut s, v) = (random.f32s(keys), random.f32s(keys).iter().map(|v| v.abs()).collect::<Vec<_>>());
        s[0] = f32::NEG_INFINITY;
        let amax = v.iter().fold(0.0f32, |a, &v| a.max(v));
        let c = WEIGHT_MAX / amax;
        let max = s.iter().fold(f32::NEG_INFINITY, |a, &s| a.max(s));
        let e: Vec<f64> = s.iter().map(|&s| (f64::from(s) - f64::from(max)).exp2()).collect();
        let mut p = vec![-1; 2 * keys];
        let sum = scalar::softmax_u14(&s, &v, c, &mut p);
        assert_close(&[sum], &[e.iter().sum()], 1e-6, 0.0, "sum");
        for j in 0..keys {
            let t = f64::from(p[j]) * 128.0 + f64::from(p[keys + j]);
            assert!(p[j] >= 0 && p[keys + j] >= 0, "two parts of 7 bits");
            let want = e[j] * f64::from(v[j]) * f64::from(c);
            assert!((t - want).abs() <= 0.51, "weight {j}: {t} for {want}");
        }
        assert_eq!((p[0], p[keys]), (0, 0), "what is not seen has no weight");
    }
    let mut s = [0.0; 16];
    s[3] = f32::NAN;
    assert!(scalar::softmax_u14(&s, &[1.0; 16], 1.0, &mut [0; 32]).is_nan(), "a NaN reaches the sum");
}
