//! Every available set against the scalar definition, and the definition against hand-computed values and f64.

use half::f16;

use super::attention::{KvPanels, PanelScales, Queries, WEIGHT_MAX};
use super::*;
use crate::quant::{MAX_K, pack_n16k4, row_sums, tile_index};

pub(crate) mod compare;
mod definition;
mod sets;

/// A seeded stream of test values.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        // Knuth's MMIX generator; the high half is the good one.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// Within ±127, both ends often.
    pub(crate) fn i8s(&mut self, len: usize) -> Vec<i8> {
        (0..len)
            .map(|_| match self.below(8) {
                0 => 127,
                1 => -127,
                _ => (self.below(255) as i32 - 127) as i8,
            })
            .collect()
    }

    /// Within ±2, with a few zeros.
    pub(crate) fn f32s(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| match self.below(16) {
                0 => 0.0,
                _ => self.next() as f32 / (1u64 << 30) as f32 - 2.0,
            })
            .collect()
    }
}

/// INT8 weights with everything a kernel wants of them.
pub(crate) struct Weights {
    rows: Vec<i8>,
    pub(crate) tiles: Vec<i8>,
    pub(crate) scale: Vec<f32>,
    sum: Vec<i32>,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl Weights {
    pub(crate) fn new(rows: Vec<i8>, scale: Vec<f32>, k: usize) -> Self {
        let n = scale.len();
        Self { tiles: pack_n16k4(&rows, n, k), sum: row_sums(&rows, n, k), rows, scale, n, k }
    }

    pub(crate) fn tiles(&self) -> TilesI8<'_> {
        TilesI8 { tiles: &self.tiles, scale: &self.scale, sum: &self.sum, n: self.n, k: self.k }
    }
}

/// Lays `[m, k]` activations out with padded rows.
pub(crate) fn pad_rows(q: &[i8], k: usize) -> Vec<i8> {
    q.chunks(k).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, pad_k(k) - k))).collect()
}

/// What a set takes for these rows.
fn operand(set: &Kernels, q: &[i8]) -> Vec<i8> {
    let mut q = q.to_vec();
    set.make_operand(&mut q);
    q
}

/// Panels of 16 tokens.
struct Panels {
    tiles: Vec<i8>,
    scales: Vec<PanelScales>,
    head_dim: usize,
}

impl Panels {
    fn new(panels: usize, head_dim: usize) -> Self {
        let len: usize = KvPanels::panel_len(head_dim).iter().sum();
        Self { tiles: vec![0; panels * len], scales: vec![PanelScales::default(); panels], head_dim }
    }

    /// Stores one token's key, with its scale, and value.
    fn set(&mut self, panel: usize, lane: usize, key: &[i8], scale: f32, value: &[i8]) {
        assert_eq!((key.len(), value.len()), (self.head_dim, self.head_dim));
        let k_pad = pad_k(self.head_dim);
        let [keys, values] = KvPanels::panel_len(self.head_dim);
        let (keys, values) = self.tiles[panel * (keys + values)..][..keys + values].split_at_mut(keys);
        for (i, (&k, &v)) in key.iter().zip(value).enumerate() {
            keys[tile_index(lane, i, k_pad)] = k;
            values[tile_index(i, lane, KV_BLOCK)] = v;
        }
        self.scales[panel].key[lane] = scale;
        self.scales[panel].key_sum[lane] = key.iter().map(|&x| i32::from(x)).sum();
    }

    fn which<'a>(&'a self, which: &'a [u32]) -> KvPanels<'a> {
        KvPanels { tiles: &self.tiles, scales: &self.scales, which, head_dim: self.head_dim }
    }
}
