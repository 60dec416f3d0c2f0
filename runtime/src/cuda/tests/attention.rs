//! Heads, arena and attention on the card against the CPU engine, over sequences of several segments.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

use std::path::Path;

use super::{Card, each_card};
use crate::config::{DecoderConfig, Modality, nano};
use crate::cuda::launch::{
    AttentionShape, HeadNorms, HeadShape, RowAt, SegmentAt, SequenceAt, StepAt, UnitAt,
};
use crate::engine::attention::{Attention, AttentionScratch};
use crate::engine::{Engine, EngineOptions, Net, Own, Sequence, Visible, layer_norm};
use crate::kernels::KV_BLOCK;
use crate::kernels::attention::{KvPanels, PanelScales};
use crate::kernels::tests::Random;
use crate::kernels::tests::compare::assert_same;
use crate::kv::{ArenaShape, Chain, KvArena, KvDtype, KvView};
use crate::pages::Pages;
use crate::rope::Rope;
use crate::weights::Weights;

/// One sequence's live segments, as lengths, and the rows of the step at the end of its own one.
struct Plan {
    context: &'static [(usize, Modality)],
    /// Tokens of the own segment before the step's rows, and the rows.
    own: (usize, usize),
    rule: Own,
}

const PLANS: [&[Plan]; 6] = [
    &[Plan { context: &[], own: (0, 1), rule: Own::Causal }],
    &[Plan { context: &[(20, Modality::Text), (66, Modality::Image)], own: (5, 1), rule: Own::Causal }],
    &[Plan { context: &[(3, Modality::Text)], own: (15, 21), rule: Own::Causal }],
    &[Plan { context: &[(17, Modality::Text), (16, Modality::State)], own: (0, 9), rule: Own::Itself }],
    &[
        Plan { context: &[(20, Modality::Text)], own: (70, 1), rule: Own::Causal },
        Plan { context: &[(1, Modality::Text), (33, Modality::Image)], own: (2, 1), rule: Own::Causal },
    ],
    // More blocks than a warp asks for at once.
    &[Plan { context: &[(20, Modality::Text), (66, Modality::Image)], own: (69, 2), rule: Own::Causal }],
];

struct Shape {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

const SHAPES: [Shape; 6] = [
    Shape { n_heads: 6, n_kv_heads: 2, head_dim: 32 },
    Shape { n_heads: 3, n_kv_heads: 1, head_dim: 20 },
    Shape { n_heads: 4, n_kv_heads: 4, head_dim: 64 },
    Shape { n_heads: 18, n_kv_heads: 1, head_dim: 48 },
    Shape { n_heads: 2, n_kv_heads: 1, head_dim: 160 },
    // The longest that there is.
    Shape { n_heads: 1, n_kv_heads: 1, head_dim: 1024 },
];

/// Norms of the heads.
#[derive(Clone, Copy, PartialEq)]
enum Norms {
    None,
    Rms,
    Layer,
}

#[test]
fn int8_attention_has_the_bits_of_the_cpu() {
    each_card(|card| {
        for (i, shape) in SHAPES.iter().enumerate() {
            for (j, plans) in PLANS.iter().enumerate() {
                let norms = [Norms::None, Norms::Rms, Norms::Layer][(i + j) % 3];
                compare(card, shape, plans, KvDtype::I8, norms);
                card.clear();
            }
        }
    });
}

#[test]
fn float_attention_has_the_bits_of_the_cpu() {
    super::each_block(attend_floats);
}

fn attend_floats() {
    let mut card = super::orin();
    for shape in &SHAPES[..3] {
        for plans in PLANS {
            compare(&mut card, shape, plans, KvDtype::F32, Norms::Rms);
            card.clear();
        }
    }
}

/// A step of one layer on both.
fn compare(card: &mut Card, shape: &Shape, plans: &[Plan], dtype: KvDtype, norms: Norms) {
    let Shape { n_heads, n_kv_heads, head_dim } = *shape;
    let mut c = nano().decoder();
    (c.n_heads, c.n_kv_heads, c.head_dim) = (n_heads, n_kv_heads, head_dim);
    let e =
        Engine::new(&EngineOptions { threads: 1, kernels: Some("scalar"), ..Default::default() }).unwrap();
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/nano");
    let weights = Weights::open(&bundle, Pages::Small).unwrap();
    let mut random = Random(21);
    let (layer, n_layers, n_blocks) = (1, 2, 16);
    let (heads, kvs) = (n_heads * head_dim, n_kv_heads * head_dim);
    let rows: usize = plans.iter().map(|plan| plan.own.1).sum();
    let mut rope = Rope::new(&c, None, 512);
    rope.reach(256);
    let net = Net { engine: &e, weights: &weights, config: &c, rope: &rope };

    // Arenas with something in them: the context, and the beginning of the own segment.
    let mut arenas = Vec::new();
    for plan in plans {
        let shape = ArenaShape { n_layers, n_kv_heads, head_dim, n_blocks, dtype };
        let mut kv = KvArena::new(shape);
        let mut scattered = Chain::EMPTY;
        kv.extend(&mut scattered, 2 * KV_BLOCK);
        let mut segments: Vec<Chain> = Vec::new();
        for &len in plan.context.iter().map(|(len, _)| len).chain([&plan.own.0]) {
            let mut chain = Chain::EMPTY;
            kv.extend(&mut chain, len);
            let (k, v) = (random.f32s(len * kvs), random.f32s(len * kvs));
            let blocks: Vec<_> = kv.blocks(&chain).collect();
            kv.write(&e, layer, (&blocks, 0), &k, &v);
            segments.push(chain);
            kv.release(&mut scattered);
        }
        kv.extend(segments.last_mut().unwrap(), plan.own.1);
        arenas.push((kv, segments));
    }
    let (q, k, v) = (random.f32s(rows * heads), random.f32s(rows * kvs), random.f32s(rows * kvs));
    let bias = random.f32s(n_heads * 16);
    let [q_weight, k_weight, q_bias, k_bias] =
        [heads, kvs, heads, kvs].map(|n| random.f32s(if norms == Norms::Layer { n } else { head_dim }));

    // The card gets everything as it is now.
    let mut step = Step::new(&arenas, plans);
    let rotations: (Vec<f32>, Vec<f32>) = (0..256u32)
        .flat_map(|pos| (0..head_dim / 2).map(move |pair| (pos, pair)))
        .map(|(pos, pair)| {
            let frequency = 10_000f64.powf(-2.0 * pair as f64 / head_dim as f64);
            let angle = f64::from(pos) * frequency;
            (angle.cos() as f32, angle.sin() as f32)
        })
        .unzip();
    let mut memories = Vec::new();
    for (sequence, (kv, _)) in step.sequences.iter_mut().zip(&arenas) {
        match kv.view() {
            KvView::I8(panels) => {
                sequence.tiles = card.put(panels.tiles);
                sequence.scales = card.put(scales_as_bytes(panels.scales));
            }
            KvView::F32 { keys, values } => {
                sequence.keys = card.put(keys);
                sequence.values = card.put(values);
            }
        }
        memories.push(*sequence);
    }
    let at = step.put(card, (&rotations.0, &rotations.1));
    let (q_at, k_at, v_at) = (card.put(&q), card.put(&k), card.put(&v));
    let norms_at = match norms {
        Norms::None => HeadNorms::default(),
        Norms::Rms => {
            HeadNorms { q: card.put(&q_weight), k: card.put(&k_weight), eps: 1e-5, ..HeadNorms::default() }
        }
        Norms::Layer => HeadNorms {
            q: card.put(&q_weight),
            k: card.put(&k_weight),
            q_bias: card.put(&q_bias),
            k_bias: card.put(&k_bias),
            eps: 1e-5,
        },
    };
    let head_shape = HeadShape {
        rows: rows as i32,
        n_heads: n_heads as i32,
        n_kv_heads: n_kv_heads as i32,
        head_dim: head_dim as i32,
        layer: layer as i32,
    };
    card.device.store_heads(head_shape, norms_at, at, q_at, k_at, v_at).unwrap();

    // The CPU does the same.
    let (mut q, mut k) = (q, k);
    match norms {
        Norms::None => {}
        Norms::Rms => {
            e.rms_norm_inplace(&mut q, &q_weight, 1e-5);
            e.rms_norm_inplace(&mut k, &k_weight, 1e-5);
        }
        Norms::Layer => {
            for (x, weight, bias) in [(&mut q, &q_weight, &q_bias), (&mut k, &k_weight, &k_bias)] {
                for x in x.chunks_mut(weight.len()) {
                    for ((x, weight), bias) in
                        x.chunks_mut(head_dim).zip(weight.chunks(head_dim)).zip(bias.chunks(head_dim))
                    {
                        layer_norm(x, weight, bias, 1e-5);
                    }
                }
            }
        }
    }
    assert_same(&card.get(q_at, q.len()), &q, "normed queries");
    let mut first = 0;
    for (plan, (kv, segments)) in plans.iter().zip(&mut arenas) {
        let (offset, n) = plan.own;
        for (i, k) in k[first * kvs..(first + n) * kvs].chunks_mut(kvs).enumerate() {
            rope.rotate(&e, k, offset + i);
        }
        let blocks: Vec<_> = kv.blocks(segments.last().unwrap()).collect();
        let rows = first * kvs..(first + n) * kvs;
        kv.write(&e, layer, (&blocks, offset), &k[rows.clone()], &v[rows]);
        first += n;
    }
    let what = format!(
        "sm {} heads {n_heads}/{n_kv_heads} of {head_dim}, rows {rows}, {} sequences, {dtype:?}",
        card.device.sm(),
        plans.len()
    );
    for (sequence, (kv, _)) in memories.iter().zip(&arenas) {
        match kv.view() {
            KvView::I8(panels) => {
                assert_eq!(card.get::<i8>(sequence.tiles, panels.tiles.len()), panels.tiles, "{what}: tiles");
                let want = scales_as_bytes(panels.scales);
                assert_eq!(card.get::<u32>(sequence.scales, want.len()), want, "{what}: scales");
            }
            KvView::F32 { keys, values } => {
                assert_same(&card.get(sequence.keys, keys.len()), keys, &what);
                assert_same(&card.get(sequence.values, values.len()), values, &what);
            }
        }
    }

    let want = on_the_cpu(net, &c, layer, &bias, &mut arenas, plans, &q);
    let shape = AttentionShape {
        n_heads: n_heads as i32,
        n_kv_heads: n_kv_heads as i32,
        head_dim: head_dim as i32,
        layer: layer as i32,
        modalities: 4,
        max_keys: step.max_keys() as i32,
        factor: 0.0,
    };
    let root = 1.0 / (head_dim as f32).sqrt();
    let (bias_at, out) = (card.put(&bias), card.put(&vec![0f32; rows * heads]));
    if dtype == KvDtype::F32 {
        let shape = AttentionShape { factor: root, ..shape };
        let scratch = card.put(&vec![0u8; shape.scratch_f32(rows)]);
        card.device.attention_f32(shape, rows, at, bias_at, q_at, out, scratch).unwrap();
        assert_same(&card.get(out, want.len()), &want, &what);
    } else {
        let shape = AttentionShape { factor: root * std::f32::consts::LOG2_E, ..shape };
        let units = step.units(shape.unit_rows());
        let units_at = card.put(&units);
        let units_at = (units_at, units.len());
        card.device.attention_i8_rows(shape, units_at, at, bias_at, q_at, out).unwrap();
        assert_same(&card.get(out, want.len()), &want, &format!("{what}, a warp a unit"));
        let out = card.put(&vec![0f32; rows * heads]);
        card.device.attention_i8(shape, units_at, at, bias_at, q_at, out).unwrap();
        assert_same(&card.get(out, want.len()), &want, &format!("{what}, a block a unit"));
        for splits in [1, 2, 3, shape.splits(units.len(), 30), 9] {
            let scratch = card.put(&vec![0xcbu8; shape.scratch_split(units.len(), splits)]);
            let out = card.put(&vec![0f32; rows * heads]);
            let room = (scratch, splits);
            card.device.attention_i8_split(shape, units_at, at, bias_at, q_at, out, room).unwrap();
            assert_same(&card.get(out, want.len()), &want, &format!("{what}, {splits} splits"));
        }
    }
}

fn scales_as_bytes(scales: &[PanelScales]) -> &[u32] {
    let words = size_of_val(scales) / 4;
    // SAFETY: a panel's scales are 48 words of four bytes without padding.
    unsafe { std::slice::from_raw_parts(scales.as_ptr().cast(), words) }
}

/// What the CPU engine gives for the same.
fn on_the_cpu(
    net: Net<'_>,
    c: &DecoderConfig,
    layer: usize,
    bias: &[f32],
    arenas: &mut [(KvArena, Vec<Chain>)],
    plans: &[Plan],
    q: &[f32],
) -> Vec<f32> {
    let visible: Vec<Vec<Visible>> = arenas
        .iter()
        .zip(plans)
        .map(|((_, segments), plan)| {
            let modalities = plan.context.iter().map(|&(_, modality)| modality).chain([Modality::Text]);
            let mut base = 0;
            let of = |(&chain, modality): (&Chain, Modality)| {
                let visible = Visible { chain, base, modality };
                base += chain.len;
                visible
            };
            segments.iter().zip(modalities).map(of).collect()
        })
        .collect();
    let sequences: Vec<Sequence<'_>> = arenas
        .iter_mut()
        .zip(plans)
        .zip(&visible)
        .map(|(((kv, _), plan), visible)| {
            let (own, context) = visible.split_last().unwrap();
            let (offset, rows) = plan.own;
            Sequence { kv, rows, offset, own: *own, own_rule: plan.rule, context }
        })
        .collect();
    let mut scratch = AttentionScratch::new(c, 16, plans.len(), 1);
    let mut out = vec![0.0; q.len()];
    Attention { net, layer, bias: Some(bias) }.forward(&sequences, q, &mut out, &mut scratch);
    out
}

/// The lists of a step.
struct Step {
    rows: Vec<RowAt>,
    sequences: Vec<SequenceAt>,
    segments: Vec<SegmentAt>,
    blocks: Vec<u32>,
}

impl Step {
    fn new(arenas: &[(KvArena, Vec<Chain>)], plans: &[Plan]) -> Self {
        let mut this =
            Self { rows: Vec::new(), sequences: Vec::new(), segments: Vec::new(), blocks: Vec::new() };
        for (i, ((kv, segments), plan)) in arenas.iter().zip(plans).enumerate() {
            let mut base = 0;
            let (first_segment, first_block) = (this.segments.len() as i32, this.blocks.len() as i32);
            let modalities = plan.context.iter().map(|&(_, modality)| modality).chain([Modality::Text]);
            for (chain, modality) in segments.iter().zip(modalities) {
                this.segments.push(SegmentAt {
                    base: base as i32,
                    modality: modality.index() as i32,
                    len: chain.len as i32,
                    first_block: this.blocks.len() as i32,
                });
                this.blocks.extend(kv.blocks(chain));
                base += chain.len;
            }
            let own = segments.last().unwrap().len;
            for offset in plan.own.0..own {
                let position = (base - own + offset) as i32;
                let block = kv.blocks(segments.last().unwrap()).nth(offset / KV_BLOCK).unwrap() as i32;
                this.rows.push(RowAt { sequence: i as i32, offset: offset as i32, position, block });
            }
            this.sequences.push(SequenceAt {
                n_blocks: 16,
                first_segment,
                segments: segments.len() as i32,
                causal: i32::from(plan.rule == Own::Causal),
                first_block,
                ..SequenceAt::default()
            });
        }
        this
    }

    /// The most keys of a sequence, in whole pairs of blocks.
    fn max_keys(&self) -> usize {
        let of = |s: &SequenceAt| {
            let segments = &self.segments[s.first_segment as usize..][..s.segments as usize];
            segments.iter().map(|segment| (segment.len as usize).div_ceil(KV_BLOCK)).sum::<usize>()
        };
        (self.sequences.iter().map(of).max().unwrap() * KV_BLOCK).next_multiple_of(2 * KV_BLOCK)
    }

    fn units(&self, most: usize) -> Vec<UnitAt> {
        let mut units: Vec<UnitAt> = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            match units.last_mut() {
                Some(unit)
                    if (unit.rows as usize) < most
                        && self.rows[unit.first as usize].sequence == row.sequence =>
                {
                    unit.rows += 1;
                }
                _ => units.push(UnitAt { first: i as i32, rows: 1, sequence: row.sequence, blocks: 0 }),
            }
        }
        for unit in &mut units {
            let s = self.sequences[unit.sequence as usize];
            let context = &self.segments[s.first_segment as usize..][..s.segments as usize - 1];
            let last = self.rows[(unit.first + unit.rows - 1) as usize];
            let blocks = |tokens: i32| (tokens as usize).div_ceil(KV_BLOCK) as i32;
            unit.blocks =
                context.iter().map(|segment| blocks(segment.len)).sum::<i32>() + blocks(last.offset + 1);
        }
        units
    }

    fn put(&self, card: &mut Card, (cosines, sines): (&[f32], &[f32])) -> StepAt {
        StepAt {
            rows: card.put(&self.rows),
            sequences: card.put(&self.sequences),
            segments: card.put(&self.segments),
            blocks: card.put(&self.blocks),
            cosines: card.put(cosines),
            sines: card.put(sines),
        }
    }
}

#[test]
fn keys_are_split_to_fill_the_card() {
    let shape = |n_heads, n_kv_heads, max_keys| AttentionShape {
        n_heads,
        n_kv_heads,
        head_dim: 64,
        max_keys,
        ..AttentionShape::default()
    };
    // Four key heads on 8 and on 132 multiprocessors, of 36 panels; a range has four panels at least.
    assert_eq!([8, 132].map(|sms| shape(16, 4, 576).splits(1, sms)), [4, 9]);
    // Enough blocks without; but no more than 64 panels fit a range.
    assert_eq!([576, 8192].map(|keys| shape(32, 32, keys).splits(8, 8)), [1, 8]);
}

#[test]
fn units_are_as_many_as_rows_of_some_sequences_can_make() {
    for (n_heads, n_kv_heads) in [(2, 2), (6, 2), (16, 4), (16, 1), (40, 2)] {
        let shape = AttentionShape { n_heads, n_kv_heads, ..AttentionShape::default() };
        let of = |rows: usize| rows.div_ceil(shape.unit_rows());
        for rows in 1..100 {
            assert_eq!(shape.most_units(rows, 1), of(rows), "{rows} rows of {n_heads}/{n_kv_heads}");
            let two = (1..rows).map(|first| of(first) + of(rows - first)).max();
            assert!(two.is_none_or(|units| units <= shape.most_units(rows, 2)), "{rows} of two");
            let three = (1..rows).map(|first| of(first) + shape.most_units(rows - first, 2)).max();
            assert!(three.is_none_or(|units| units <= shape.most_units(rows, 3)), "{rows} of three");
        }
    }
}

/// The arena's layout that the kernels assume.
#[test]
fn panels_are_as_the_kernels_have_them() {
    assert_eq!(size_of::<PanelScales>(), 192);
    assert_eq!(KvPanels::panel_len(20), [16 * 32, 16 * 32]);
}
