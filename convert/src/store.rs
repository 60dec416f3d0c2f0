//! How a tensor of a checkpoint is stored in a bundle.

use half::f16;
use ndarray::{ArrayView4, ArrayView5};
use saccade::config::{ModelConfig, WeightDtype};
use saccade::family::TensorSpec;
use saccade::format::{Dtype, TensorPlan};
use saccade::quant::{pack_n16k4, quantise_weight_rows, row_sums};

/// The tensors of a bundle's weights file, in order.
#[must_use]
pub fn plan(specs: &[TensorSpec], dtype: WeightDtype) -> Vec<TensorPlan> {
    specs.iter().flat_map(|spec| spec.stored(dtype)).collect()
}

/// The bytes of each tensor that `spec` becomes, in the order of [`TensorSpec::stored`].
///
/// Shapes: `values` is `spec.shape`, row-major.
///
/// # Errors
/// A sentence when a value does not fit F16.
///
/// # Panics
/// If `values` is not as long as the shape says.
pub fn encode(
    spec: &TensorSpec,
    values: Vec<f32>,
    dtype: WeightDtype,
) -> Result<Vec<(TensorPlan, Vec<u8>)>, String> {
    assert_eq!(values.len(), spec.parameters(), "{}", spec.name);
    let values = match spec.shape[..] {
        [out, input, kh, kw] => rows_of_convolution(values, [out, input, kh, kw]),
        [out, input, kt, kh, kw] => rows_over_time(values, [out, input, kt, kh, kw]),
        _ => values,
    };
    let stored = spec.stored(dtype);
    let bytes = if spec.is_tiled(dtype) {
        let [n, k] = spec.matrix();
        let (rows, scale) = quantise_weight_rows(&values, n, k);
        vec![
            pack_n16k4(&rows, n, k).into_iter().map(i8::cast_unsigned).collect(),
            scale.into_iter().flat_map(f32::to_le_bytes).collect(),
            row_sums(&rows, n, k).into_iter().flat_map(i32::to_le_bytes).collect(),
        ]
    } else if stored[0].dtype == Dtype::F16 {
        vec![to_f16(&values)?]
    } else {
        vec![values.into_iter().flat_map(f32::to_le_bytes).collect()]
    };
    Ok(stored.into_iter().zip(bytes).collect())
}

/// A convolution as a matrix: `[out, in, kh, kw]` becomes `[out, (kh, kw, in)]`, the order in which patches are gathered.
fn rows_of_convolution(values: Vec<f32>, shape: [usize; 4]) -> Vec<f32> {
    let kernel = ArrayView4::from_shape(shape, &values).expect("`encode` asserts the length");
    kernel.permuted_axes([0, 2, 3, 1]).iter().copied().collect()
}

/// The same of a convolution over time: `[out, in, kt, kh, kw]` becomes `[out, (kt, kh, kw, in)]`.
fn rows_over_time(values: Vec<f32>, shape: [usize; 5]) -> Vec<f32> {
    let kernel = ArrayView5::from_shape(shape, &values).expect("`encode` asserts the length");
    kernel.permuted_axes([0, 2, 3, 4, 1]).iter().copied().collect()
}

fn to_f16(values: &[f32]) -> Result<Vec<u8>, String> {
    match values.iter().position(|&v| !f16::from_f32(v).is_finite()) {
        Some(at) => {
            Err(format!("value {at} is {}, which F16 cannot hold; convert with --dtype f32", values[at]))
        }
        None => Ok(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
    }
}

/// Whether a layer of `model`, named without `.weight`, gets its activations in two INT8 parts: in models that others trained every
/// layer does, since every layer's inputs have outliers. On 1,535 tokens of English SmolLM2-135M's mean divergence from llama.cpp on
/// the same Q4_1 file is 0.042 with all layers in one part, 0.023 with those of [`own_two_part`] in two, 0.008 with all, and 0.003 in F32.
/// Decoding waits for weights either way; a long prompt takes up to twice the time.
#[must_use]
pub fn two_part(model: &ModelConfig, stem: &str) -> bool {
    !matches!(model, ModelConfig::Unimodal(_)) || own_two_part(stem)
}

/// The same of Saccade's own family: the head, whose outputs decide what is said, and the layer after the gate, whose inputs have
/// outliers (the largest is 7.6 times the root mean square). Together they make three quarters of the difference that rounding
/// activations makes to nano's choices.
#[must_use]
pub fn own_two_part(stem: &str) -> bool {
    stem == "embed" || stem.ends_with(".ffn.down")
}

/// The tensors that stay float in an INT8 bundle, as patterns: `image.encoder.*`.
#[must_use]
pub fn float_patterns(specs: &[TensorSpec], dtype: WeightDtype) -> Vec<String> {
    let mut patterns: Vec<String> = Vec::new();
    for spec in specs.iter().filter(|spec| spec.stored(dtype)[0].dtype == Dtype::F16) {
        let pattern = match spec.name.splitn(3, '.').collect::<Vec<_>>()[..] {
            [module, part, _] => format!("{module}.{part}.*"),
            _ => spec.name.clone(),
        };
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;
    use saccade::family::Role;
    use saccade::quant::unpack_n16k4;

    fn spec(shape: &[usize], role: Role) -> TensorSpec {
        TensorSpec { name: "x.weight".into(), shape: shape.into(), role }
    }

    fn f32s(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v)).collect()
    }

    #[test]
    fn a_linear_layer_becomes_tiles_scales_and_sums() {
        let (n, k) = (3, 5);
        let values: Vec<f32> = (0..15u8).map(|i| f32::from(i) - 7.0).collect();
        let stored = encode(&spec(&[n, k], Role::Linear), values.clone(), WeightDtype::Int8).unwrap();
        let names: Vec<_> = stored.iter().map(|(t, _)| t.name.as_str()).collect();
        assert_eq!(names, ["x.weight", "x.scale", "x.sum"]);
        assert_eq!(stored[0].0.shape, [1, 8, 16, 4]);

        let tiles: Vec<i8> = stored[0].1.iter().map(|&b| b.cast_signed()).collect();
        let (rows, scale) = (unpack_n16k4(&tiles, n, k), f32s(&stored[1].1));
        // Row 0 is -7..=-3, so its scale is 7/127; half a step is the largest rounding error.
        assert!((scale[0] - 7.0 / 127.0).abs() < 1e-7);
        for (i, value) in values.iter().enumerate() {
            let back = f32::from(rows[i]) * scale[i / k];
            assert!((back - value).abs() <= 0.51 * scale[i / k], "value {i}: {back} for {value}");
        }
        let sums: Vec<i32> = stored[2].1.as_chunks().0.iter().map(|&v| i32::from_le_bytes(v)).collect();
        let expected: Vec<i32> = rows.chunks(k).map(|row| row.iter().map(|&q| i32::from(q)).sum()).collect();
        assert_eq!(sums, expected);
    }

    #[test]
    fn a_convolution_is_turned_to_kh_kw_in() {
        // Two inputs, a kernel of 2 × 3: value = 100·in + 10·row + column.
        let values = [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112].map(|v: u8| f32::from(v)).to_vec();
        let stored = encode(&spec(&[1, 2, 2, 3], Role::Linear), values, WeightDtype::F32).unwrap();
        assert_eq!(stored[0].0.shape, [1, 12]);
        let expected = [0, 100, 1, 101, 2, 102, 10, 110, 11, 111, 12, 112].map(|v: u8| f32::from(v));
        assert_eq!(f32s(&stored[0].1), expected);
    }

    #[test]
    fn a_convolution_over_time_is_turned_to_kt_kh_kw_in() {
        // Two inputs, a kernel of 2 × 1 × 3: value = 100·in + 10·frame + column.
        let values = [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112].map(|v: u8| f32::from(v)).to_vec();
        let stored = encode(&spec(&[1, 2, 2, 1, 3], Role::Float), values, WeightDtype::F32).unwrap();
        assert_eq!(stored[0].0.shape, [1, 12]);
        let expected = [0, 100, 1, 101, 2, 102, 10, 110, 11, 111, 12, 112].map(|v: u8| f32::from(v));
        assert_eq!(f32s(&stored[0].1), expected);
    }

    #[test]
    fn values_beyond_f16_are_refused() {
        let encode = |dtype| encode(&spec(&[2], Role::Float), vec![1.0, 70_000.0], dtype);
        let sentence = encode(WeightDtype::F16).unwrap_err();
        assert!(sentence.contains("value 1") && sentence.contains("--dtype f32"), "{sentence}");
        assert!(encode(WeightDtype::F32).is_ok());
    }

    #[test]
    fn norms_stay_exact_in_every_bundle() {
        for dtype in [WeightDtype::Int8, WeightDtype::F16, WeightDtype::F32] {
            let stored = encode(&spec(&[2], Role::Exact), vec![0.1, 1e-30], dtype).unwrap();
            assert_eq!(f32s(&stored[0].1), [0.1, 1e-30]);
        }
    }
}
