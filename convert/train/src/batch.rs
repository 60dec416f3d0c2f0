//! Sequences of similar length as the tensors of one forward pass.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::layout::{Dims, N_MODALITIES};
use crate::pack::{NO_RASTER, Sequence};

/// What a masked key gets added to its logit: far below any logit, and finite in bfloat16.
const MASKED: f32 = -30_000.0;

/// The tensors of one forward pass over `b` sequences padded to `n` tokens and `m` keys.
///
/// Keys are the tokens themselves, then one copy of segment 0 for each shift (see [`Sequence::unmask`]).
pub struct Batch<B: Backend> {
    /// Sequences.
    pub b: usize,
    /// Tokens a sequence, padding included.
    pub n: usize,
    /// Tokens of segment 0, padded.
    pub s0: usize,
    /// Copies of segment 0 among the keys.
    pub ghosts: usize,
    /// Rows of the input table, `[b·n] int`.
    pub rows: Tensor<B, 1, Int>,
    /// Rows of the raster table (64 is the zero row), `[b·n] int`.
    pub raster: Tensor<B, 1, Int>,
    /// Modality of each token, one-hot, `[b·n, 4]`.
    pub modality: Tensor<B, 2>,
    /// Modality of each key, one-hot, `[b, 1, m, 4]`.
    pub key_modality: Tensor<B, 4>,
    /// Rotation of the queries by their position, `[b, 1, n, head_dim]` each (cosines, signed sines).
    pub query_rope: Rope<B>,
    /// Rotation of the tokens by the offset inside their segment.
    pub offset_rope: Rope<B>,
    /// Rotation of the keys by the base of their segment, `[b, 1, m, head_dim]`.
    pub base_rope: Rope<B>,
    /// 0 or far below, `[b, 1, n, m]`.
    pub mask: Tensor<B, 4>,
    /// Loss positions of each head: token indices into `b·n`, and ids inside the head's range.
    pub targets: [Option<Targets<B>>; 3],
    /// Tokens without padding.
    pub tokens: usize,
}

/// Cosines and sines of half the head's width, `[b, 1, n, head_dim/2]` each.
pub struct Rope<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 4>,
    /// Sines.
    pub sin: Tensor<B, 4>,
}

/// Loss positions of one head.
pub struct Targets<B: Backend> {
    /// Token indices into `b·n`.
    pub at: Tensor<B, 1, Int>,
    /// What each predicts, counted from the start of the head's range.
    pub id: Tensor<B, 1, Int>,
    /// How many there are.
    pub count: usize,
}

fn rope<B: Backend>(positions: &[u32], b: usize, dims: &Dims, device: &B::Device) -> Rope<B> {
    let half = dims.head_dim / 2;
    let n = positions.len() / b;
    let mut cos = Vec::with_capacity(positions.len() * half);
    let mut sin = Vec::with_capacity(positions.len() * half);
    let freq: Vec<f64> =
        (0..half).map(|i| dims.rope_theta.powf(-2.0 * i as f64 / dims.head_dim as f64)).collect();
    for &p in positions {
        for f in &freq {
            let angle = f64::from(p) * f;
            #[expect(clippy::cast_possible_truncation, reason = "cosines and sines in float32")]
            {
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
    }
    let tensor = |v: Vec<f32>| Tensor::from_data(TensorData::new(v, [b, 1, n, half]), device);
    Rope { cos: tensor(cos), sin: tensor(sin) }
}

fn ints<B: Backend>(values: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

impl<B: Backend> Batch<B> {
    /// Packs `sequences`; there must be at least one.
    pub fn new(sequences: &[Sequence], dims: &Dims, device: &B::Device) -> Batch<B> {
        let b = sequences.len();
        let n = sequences.iter().map(Sequence::len).max().unwrap_or(0);
        let s0 = sequences.iter().map(Sequence::s0_len).max().unwrap_or(0);
        let shifts: Vec<Vec<usize>> = sequences.iter().map(Sequence::shifts).collect();
        let ghosts = shifts.iter().map(Vec::len).max().unwrap_or(0);
        let m = n + ghosts * s0;
        let mut rows = vec![0i64; b * n];
        let mut raster = vec![i64::from(NO_RASTER); b * n];
        let mut modality = vec![0.0f32; b * n * N_MODALITIES];
        let mut key_modality = vec![0.0f32; b * m * N_MODALITIES];
        let (mut pos, mut offset, mut base) = (vec![0u32; b * n], vec![0u32; b * n], vec![0u32; b * m]);
        let mut mask = vec![MASKED; b * n * m];
        let mut found: [(Vec<i64>, Vec<i64>); 3] = Default::default();
        let starts = [0, dims.bins().start, dims.image_codes().start];
        for (i, (s, shifts)) in sequences.iter().zip(&shifts).enumerate() {
            for t in 0..s.len() {
                rows[i * n + t] = i64::from(s.rows[t]);
                raster[i * n + t] = i64::from(s.raster[t]);
                modality[(i * n + t) * N_MODALITIES + usize::from(s.modality[t])] = 1.0;
                key_modality[(i * m + t) * N_MODALITIES + usize::from(s.modality[t])] = 1.0;
                pos[i * n + t] = s.pos[t];
                offset[i * n + t] = s.offset[t];
                base[i * m + t] = s.pos[t] - s.offset[t];
            }
            for (g, &shift) in shifts.iter().enumerate() {
                for t in 0..s.s0_len() {
                    let key = i * m + n + g * s0 + t;
                    base[key] = u32::try_from(shift).unwrap_or(u32::MAX);
                    key_modality[key * N_MODALITIES] = 1.0;
                }
            }
            s.unmask(&mut mask[i * n * m..][..n * m], m, n, s0, shifts);
            for t in s.len()..n {
                mask[(i * n + t) * m + t] = 0.0;
            }
            for t in &s.targets {
                let head = t.head as usize;
                found[head].0.push(i64::try_from(i * n + t.at).unwrap_or(0));
                found[head].1.push(i64::try_from(t.id as usize - starts[head]).unwrap_or(0));
            }
        }
        let targets = found.map(|(at, id)| {
            let count = at.len();
            (count > 0).then(|| Targets { at: ints(at, device), id: ints(id, device), count })
        });
        let floats =
            |v: Vec<f32>, shape: [usize; 4]| Tensor::<B, 4>::from_data(TensorData::new(v, shape), device);
        Batch {
            b,
            n,
            s0,
            ghosts,
            rows: ints(rows, device),
            raster: ints(raster, device),
            modality: floats(modality, [1, 1, b * n, N_MODALITIES]).reshape([b * n, N_MODALITIES]),
            key_modality: floats(key_modality, [b, 1, m, N_MODALITIES]),
            query_rope: rope(&pos, b, dims, device),
            offset_rope: rope(&offset, b, dims, device),
            base_rope: rope(&base, b, dims, device),
            mask: floats(mask, [b, 1, n, m]),
            targets,
            tokens: sequences.iter().map(Sequence::len).sum(),
        }
    }

    /// Keys a sequence.
    pub fn keys(&self) -> usize {
        self.n + self.ghosts * self.s0
    }
}
