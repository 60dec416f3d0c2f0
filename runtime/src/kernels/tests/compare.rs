//! How results are compared, and that the comparison fails when it must.

/// Asserts that two results have the same bits; any NaN equals any NaN, because which payload survives an operation is
/// the machine's choice.
#[track_caller]
pub(crate) fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        assert!(same, "{what}: [{i}] is {g:e}, not {w:e}");
    }
}

/// Asserts `|got − want| ≤ tolerance · max(|want|, floor)`.
///
/// `floor` is the size of the numbers that went into the result: beside it a smaller difference is rounding.
#[track_caller]
pub(super) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, floor: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(g) - w).abs();
        assert!(off <= tolerance * w.abs().max(floor), "{what}: [{i}] is {g:e}, not {w:e}");
    }
}

/// Whether an assertion fails.
fn fails(assertion: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(assertion).is_err()
}

#[test]
fn same_bits_fails_on_nan_on_the_next_float_and_beside_zero() {
    let one_up = f32::from_bits(1.0f32.to_bits() + 1);
    assert_same(&[1.0, f32::NAN, 0.0], &[1.0, f32::NAN, 0.0], "equal");
    for (got, want) in [
        (f32::NAN, 1.0),
        (1.0, f32::NAN),
        (one_up, 1.0),
        (f32::from_bits(1), 0.0),
        (5.0, 0.0),
        (-0.0, 0.0),
        (f32::INFINITY, f32::MAX),
    ] {
        assert!(fails(|| assert_same(&[got], &[want], "")), "{got:e} passed for {want:e}");
    }
    assert!(fails(|| assert_same(&[1.0], &[1.0, 2.0], "")), "a short result passed");
}

#[test]
fn closeness_fails_on_nan_on_what_is_off_and_beside_zero() {
    assert_close(&[1.0, 0.0], &[1.0 + 1e-7, 0.0], 1e-6, 0.0, "close");
    for (got, want) in
        [(f32::NAN, 1.0), (1.0, f64::NAN), (1.00001, 1.0), (1e-30, 0.0), (5.0, 0.0), (f32::INFINITY, 1.0)]
    {
        assert!(fails(|| assert_close(&[got], &[want], 1e-6, 0.0, "")), "{got:e} passed for {want:e}");
    }
}
