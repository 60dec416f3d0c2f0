use half::f16;

use super::*;

#[test]
fn quantises_by_hand_computed_values() {
    let mut q = [9; 8];
    let scale = quantise_row(&[127.0, -127.0, 0.5, 1.5, -2.5, 126.6], &mut q);
    assert_eq!(q, [127, -127, 0, 2, -2, 127, 0, 0], "ties go to even, the tail is zero");
    assert_eq!(scale, 1.0);
    let scale = quantise_row(&[0.25, -1.0, 0.0], &mut q[..3]);
    assert_eq!(q[..3], [32, -127, 0]);
    assert_eq!(scale, 1.0 / 127.0);
}

#[test]
fn quantises_by_the_stated_rule() {
    let x: Vec<f32> = (0..4096).map(|i| ((i as f32) * 0.731).sin() * 3.3).collect();
    let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let mut q = vec![0; x.len()];
    let scale = quantise_row(&x, &mut q);
    assert_eq!(scale, amax / 127.0);
    for (&x, &q) in x.iter().zip(&q) {
        assert_eq!(f32::from(q), (x * (127.0 / amax)).round_ties_even());
    }
}

#[test]
fn quantises_extreme_rows_without_surprises() {
    let mut q = [9; 4];
    assert_eq!(quantise_row(&[], &mut q), 0.0);
    assert_eq!(q, [0; 4]);
    q = [9; 4];
    assert_eq!(quantise_row(&[0.0, -0.0, 0.0, 0.0], &mut q), 0.0);
    assert_eq!(q, [0; 4]);
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        q = [9; 4];
        assert!(quantise_row(&[1.0, poison, 2.0], &mut q).is_nan());
        assert_eq!(q, [0; 4]);
    }
    let tiny = f32::from_bits(1);
    quantise_row(&[tiny, 0.0, -tiny], &mut q);
    assert_eq!(q[1], 0, "a zero beside the smallest number stays zero");
    assert!((0..=127).contains(&q[0]) && q[2] == -q[0]);
    assert_eq!(quantise_row(&[f32::MAX, -f32::MAX], &mut q), f32::MAX / 127.0);
    assert_eq!(q, [127, -127, 0, 0]);
}

#[test]
fn tiles_lie_as_the_format_says() {
    let rows: Vec<i8> = (0..17 * 5).collect();
    let tiles = pack_n16k4(&rows, 17, 5);
    assert_eq!(tiles.len(), 32 * 32);
    assert_eq!(tiles[..4], [0, 1, 2, 3], "row 0, inputs 0..4");
    assert_eq!(tiles[4..8], [5, 6, 7, 8], "row 1, inputs 0..4");
    assert_eq!(tiles[64..68], [4, 0, 0, 0], "row 0, inputs 4..8, padded");
    assert_eq!(tiles[512..516], [80, 81, 82, 83], "row 16 opens the second group of rows");
    assert_eq!(unpack_n16k4(&tiles, 17, 5), rows);
    assert_eq!(row_sums(&rows, 17, 5)[..2], [10, 35]);
}

#[test]
fn embedding_rows_come_back_from_tiles() {
    let w: Vec<f32> = (0..19 * 37).map(|i| ((i * 7919) % 255) as f32 - 127.0).collect();
    let (rows, scale) = quantise_weight_rows(&w, 19, 37);
    let (tiles, sum) = (pack_n16k4(&rows, 19, 37), row_sums(&rows, 19, 37));
    let w = TilesI8 { tiles: &tiles, scale: &scale, sum: &sum, n: 19, k: 37 };
    let mut out = [f32::NAN; 37];
    for n in 0..19 {
        w.dequantise_row(n, &mut out);
        for k in 0..37 {
            assert_eq!(out[k], f32::from(rows[n * 37 + k]) * scale[n]);
        }
    }
}

#[test]
fn lanes_add_in_the_written_order() {
    // Any other order loses a one beside 2²⁴ in another place.
    let big = 16_777_216.0;
    let mut lanes = [0.0; LANES];
    (lanes[0], lanes[8], lanes[1], lanes[9]) = (big, 1.0, 1.0, 1.0);
    assert_eq!(sum_lanes(lanes), big + 2.0, "0+8 loses its one, 1+9 keeps both");
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "the rounded result is what the unit is taken of")]
fn exp_stays_within_two_units_in_the_last_place() {
    // Every 1,013th float between −104 and 89, and the neighbourhood of zero with them.
    let mut worst = 0.0f64;
    for bits in
        (0..=89f32.to_bits()).step_by(1013).chain((0..=104f32.to_bits()).step_by(1013).map(|b| b | 1 << 31))
    {
        let x = f32::from_bits(bits);
        let exact = f64::from(x).exp();
        let got = exp_f32(x);
        if exact > f64::from(f32::MAX) {
            assert!(got >= f32::MAX, "exp({x}) = {got}");
            continue;
        }
        let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
        let error = (f64::from(got) - exact).abs() / ulp;
        assert!(error <= 2.0, "exp({x}) = {got}, not {exact}: {error} units");
        worst = worst.max(error);
    }
    assert!(worst > 0.4, "a rounded result is never nearer than half a unit for all: the sweep is broken");
}

#[test]
fn exp_of_special_values() {
    assert_eq!(exp_f32(0.0), 1.0);
    assert_eq!(exp_f32(-0.0), 1.0);
    assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
    assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp_f32(1e30), f32::INFINITY);
    assert_eq!(exp_f32(-1e30), 0.0);
    assert!(exp_f32(f32::NAN).is_nan());
    assert!(exp_f32(-f32::NAN).is_nan());
    assert_eq!(silu(0.0), 0.0);
    assert_eq!(silu(-1e30), 0.0);
    assert_eq!(silu(1e30), 1e30);
}

#[test]
fn every_half_widens_exactly() {
    for bits in 0..=u16::MAX {
        let h = f16::from_bits(bits);
        let (ours, theirs) = (f16_to_f32(h), h.to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#06x}");
    }
}

#[test]
fn powers_of_two_against_f64() {
    for i in -100_000..=126_000 {
        let x = i as f32 / 1000.0;
        let (found, want) = (f64::from(exp2_f32(x)), f64::from(x).exp2());
        assert!(((found - want) / want).abs() < 2.5e-7, "2^{x}: {found} for {want}");
    }
    assert_eq!([exp2_f32(-1e9), exp2_f32(f32::NEG_INFINITY)], [exp2_f32(-100.0); 2]);
    assert_eq!([exp2_f32(127.6), exp2_f32(1e30), exp2_f32(f32::INFINITY)], [f32::INFINITY; 3]);
    for payload in [0x7fc0_0000, 0x7fc0_00ff, 0xffff_ffff, 0x7f80_0001] {
        assert!(exp2_f32(f32::from_bits(payload)).is_nan(), "{payload:x}");
    }
    for i in -16_000..=16_000 {
        let x = i as f32 / 1000.0;
        let (found, want) = (f64::from(silu(x)), f64::from(x) / (1.0 + (-f64::from(x)).exp()));
        assert!((found - want).abs() <= 1.2e-6 * want.abs(), "silu({x}): {found} for {want}");
    }
    assert!(silu(f32::NAN).is_nan() && silu(-200.0).abs() < 1e-30 && silu(200.0) == 200.0);
}

#[test]
fn gelu_at_known_places() {
    // From tables of the normal distribution.
    let wants = [
        (0.0, 0.0),
        (1.0, 0.841_344_7),
        (-1.0, -0.158_655_3),
        (3.0, 2.995_950_3),
        (-10.0, 0.0),
        (10.0, 10.0),
    ];
    for (x, want) in wants {
        let found = gelu(x);
        assert!((found - want).abs() < 5e-7, "{found} for {want}");
    }
    assert!(gelu(f32::NAN).is_nan());
    assert_eq!(gelu(f32::MAX), f32::MAX);
}
