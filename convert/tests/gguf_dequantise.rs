//! Blocks of weights against gguf-py's reading of them, bit for bit.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use saccade_convert::gguf::{GgmlType, dequantise, supported};

/// A block's bytes, and its values.
type Golden = (Vec<u8>, Vec<f32>);

/// By name of the type; written by `fixtures/ggml_blocks.py`.
fn golden() -> BTreeMap<String, Vec<Golden>> {
    let file: serde_json::Value = serde_json::from_str(include_str!("fixtures/ggml_blocks.json")).unwrap();
    let types: BTreeMap<String, Vec<[String; 2]>> = serde_json::from_value(file["types"].clone()).unwrap();
    let read = |[block, values]: [String; 2]| {
        let values = bytes(&values).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        (bytes(&block), values)
    };
    types.into_iter().map(|(name, blocks)| (name, blocks.into_iter().map(read).collect())).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Every type with its golden blocks.
fn each() -> impl Iterator<Item = (GgmlType, Vec<Golden>)> {
    let mut golden = golden();
    supported().iter().map(move |&dtype| (dtype, golden.remove(&format!("{dtype:?}")).unwrap()))
}

/// The same numbers of the same bits; what is not a number equals nothing.
fn same(found: &[f32], golden: &[f32]) -> Result<(), String> {
    if found.len() != golden.len() {
        return Err(format!("{} values instead of {}", found.len(), golden.len()));
    }
    let differs = |(a, b): (&f32, &f32)| a.is_nan() || b.is_nan() || a.to_bits() != b.to_bits();
    match found.iter().zip(golden).position(differs) {
        Some(at) => Err(format!("value {at} is {} instead of {}", found[at], golden[at])),
        None => Ok(()),
    }
}

#[test]
fn every_type_reads_as_the_reference_does() {
    for (dtype, blocks) in each() {
        for (i, (block, values)) in blocks.iter().enumerate() {
            same(&dequantise(dtype, block).unwrap(), values).unwrap_or_else(|e| panic!("{dtype:?} {i}: {e}"));
        }
    }
}

#[test]
fn blocks_come_one_after_the_other() {
    for (dtype, blocks) in each() {
        let (bytes, values): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
        same(&dequantise(dtype, &bytes.concat()).unwrap(), &values.concat())
            .unwrap_or_else(|e| panic!("{dtype:?}: {e}"));
        assert_eq!(dequantise(dtype, &[]), Some(Vec::new()));
    }
}

#[test]
fn the_golden_blocks_are_of_every_type_and_of_its_size() {
    assert_eq!(golden().len(), supported().len());
    for (dtype, blocks) in each() {
        let (elements, bytes) = dtype.block();
        assert!(!blocks.is_empty());
        for (block, values) in blocks {
            assert_eq!(block.len() as u64 * elements, values.len() as u64 * bytes, "{dtype:?}");
        }
    }
}

#[test]
fn the_comparison_finds_what_is_wrong() {
    assert!(same(&[1.0], &[1.0]).is_ok());
    assert!(same(&[f32::NAN], &[1.0]).is_err());
    assert!(same(&[f32::NAN], &[f32::NAN]).is_err());
    assert!(same(&[0.0], &[-0.0]).is_err());
    assert!(same(&[5.0], &[0.0]).is_err());
    assert!(same(&[1.0], &[1.0_f32.next_up()]).is_err());
    assert!(same(&[1.0], &[1.0, 2.0]).is_err());
}

#[test]
fn a_shifted_block_reads_otherwise() {
    for (dtype, blocks) in each() {
        for (mut block, values) in blocks {
            block.rotate_left(1);
            assert!(same(&dequantise(dtype, &block).unwrap(), &values).is_err(), "{dtype:?}");
        }
    }
}

#[test]
fn every_bit_makes_a_difference() {
    for (dtype, blocks) in each() {
        let differs = |bit: usize, (block, values): &Golden| {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            same(&dequantise(dtype, &flipped).unwrap(), values).is_err()
        };
        // In some block: where a scale is zero or huge, a bit may be lost.
        for bit in 0..8 * blocks[0].0.len() {
            assert!(blocks.iter().any(|golden| differs(bit, golden)), "{dtype:?}: bit {bit}");
        }
    }
}

#[test]
fn other_types_are_not_supported() {
    for dtype in (0..64).filter_map(GgmlType::from_id).filter(|dtype| !supported().contains(dtype)) {
        let (_, bytes) = dtype.block();
        assert_eq!(dequantise(dtype, &vec![0; usize::try_from(bytes).unwrap()]), None, "{dtype:?}");
    }
}

#[test]
#[should_panic(expected = "33 bytes are no whole blocks of 34")]
fn half_a_block_is_a_mistake_of_the_caller() {
    let _ = dequantise(GgmlType::Q8_0, &[0; 33]);
}
