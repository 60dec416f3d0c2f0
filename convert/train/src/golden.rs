//! Golden tensors: a tiny random model with inputs and logits, by which the runtime proves that it computes what is trained.
//!
//! Two files. `tiny.safetensors` is a checkpoint as `export` writes it. `tiny-io.safetensors` holds, for one robot sequence
//! of six steps (so that every window evicts):
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `instruction` | I32 `[n]` | text ids of segment 0 |
//! | `codes` | I32 `[6, 64]` | image codes of each step |
//! | `states` | F32 `[6, 4]` | state of each step (bin centres) |
//! | `executed` | F32 `[5, 16]` | actions executed after steps 0 to 4 (bin centres), step-major |
//! | `question`, `answer` | I32 `[n]` | text ids, asked at steps 1 and 5 after the state |
//! | `text_logits` | F32 `[2, answer + 1, n_text]` | before each answer token and `<eos>` |
//! | `slot_logits` | F32 `[6, 32, n_bins]` | the action slots of each step |
//! | `image_logits` | F32 `[2, 64, codebook_size]` | before each code of steps 0 and 5 |
//! | `frame` | U8 `[64, 64, 3]` | a picture |
//! | `frame_codes` | I32 `[64]` | its codes |
//! | `frame_margin` | F32 `[1]` | smallest gap of squared distance between best and second code |
//! | `decoded` | F16 `[64, 64, 3]` | the picture of `frame_codes`, −1..1 |

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::batch::Batch;
use crate::data::FRAME_BYTES;
use crate::error::{Error, Result};
use crate::export::{self, Named, Ranges};
use crate::layout::{ACTION_DIM, Dims, EXECUTED_STEPS, Modality, N_CODES, N_SLOTS, STATE_DIM, Task};
use crate::lm::{self, Precision};
use crate::ops::Fused;
use crate::pack::{Binning, Head, Sequence};
use crate::params::{Params, bytes, host, write_whole};
use crate::train_vq::planar;
use crate::{text, vq};

/// Steps of the golden sequence.
const STEPS: usize = 6;

/// Every parameter random and rounded to half precision: defaults (ones, zeros) would hide mistakes.
fn randomised<B: AutodiffBackend>(params: &mut Params<B>, rng: &mut ChaCha8Rng) -> Result<()> {
    for (name, _, values) in params.export() {
        let amount = if name.ends_with("norm.weight") || name.ends_with("bias") { 0.3 } else { 0.02 };
        let round = |v: f32| half::f16::from_f32(v).to_f32();
        let values = values.iter().map(|v| round(v * 1.2 + rng.random_range(-amount..amount))).collect();
        params.set(&name, values)?;
    }
    Ok(())
}

/// Tensors of one file while it is put together.
#[derive(Default)]
struct Io {
    tensors: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Io {
    fn ints(&mut self, name: &'static str, shape: &[usize], values: impl Iterator<Item = u32>) {
        let raw = values.flat_map(|v| i32::try_from(v).unwrap_or(i32::MAX).to_le_bytes()).collect();
        self.tensors.push((name, Dtype::I32, shape.to_vec(), raw));
    }

    fn floats(&mut self, name: &'static str, shape: &[usize], values: &[f32]) {
        self.tensors.push((name, Dtype::F32, shape.to_vec(), bytes(values)));
    }

    fn write(&self, path: &Path) -> Result<()> {
        let views = self
            .tensors
            .iter()
            .map(|(n, d, s, b)| Ok(((*n).to_owned(), TensorView::new(*d, s.clone(), b)?)))
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| Error::content(path, e.to_string()))?;
        let by = [("made_by".to_owned(), "saccade-train golden".to_owned())];
        let raw = safetensors::serialize(views, Some(HashMap::from(by)));
        write_whole(path, &raw.map_err(|e| Error::content(path, e.to_string()))?)
    }
}

/// Writes both files into `dir`.
///
/// # Errors
/// If they cannot be written.
pub fn write<B: AutodiffBackend + Fused>(dir: &Path, seed: u64, device: &B::Device) -> Result<()>
where
    B::InnerBackend: Fused,
{
    std::fs::create_dir_all(dir).map_err(Error::file(dir))?;
    let dims = Dims::tiny();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut net, mut image) = (Params::<B>::new(device), Params::<B>::new(device));
    vq::declare(&mut image, &dims.image, &mut rng);
    randomised(&mut image, &mut rng)?;
    let mut io = Io::default();
    let codebook = golden_frame(&image, &dims, &mut io, &mut rng, device);
    lm::declare(&mut net, &dims, &codebook, &mut rng);
    randomised(&mut net, &mut rng)?;
    let ranges = Ranges {
        state: Binning { low: vec![-0.5, 0.25, 0.0, -1.0], high: vec![0.5, 1.0, 0.5, 1.0] },
        action: Binning { low: vec![-1.0; ACTION_DIM], high: vec![1.0; ACTION_DIM] },
        rate_hz: 10.0,
    };
    golden_sequence(&net, &dims, &ranges, &mut io, &mut rng)?;
    io.write(&dir.join("tiny-io.safetensors"))?;

    let mut tensors: Vec<Named> = net.export();
    tensors.extend(image.export());
    tensors.push((
        "image.codebook.weight".into(),
        vec![dims.image.codebook_size, dims.image.code_dim],
        codebook,
    ));
    let model = export::model_json("tiny", &dims, &ranges)?;
    let tokenizer = text::train(&[String::new()], dims.n_text)?;
    let provenance = json!({"made_by": "saccade-train golden", "seed": seed});
    export::write(&dir.join("tiny.safetensors"), &tensors, &model, &tokenizer, &provenance)
}

/// A smooth random picture through encoder, code book and decoder; returns the code book.
fn golden_frame<B: AutodiffBackend + Fused>(
    image: &Params<B>,
    dims: &Dims,
    io: &mut Io,
    rng: &mut ChaCha8Rng,
    device: &B::Device,
) -> Vec<f32>
where
    B::InnerBackend: Fused,
{
    let phase: Vec<f32> = (0..9).map(|_| rng.random_range(0.05..0.6)).collect();
    let frame: Vec<u8> = (0..FRAME_BYTES)
        .map(|i| {
            let (x, y, c) = ((i / 3 % 64) as f32, (i / 192) as f32, i % 3);
            let v = (x * phase[c]).sin() + (y * phase[3 + c]).cos() + ((x + y) * phase[6 + c]).sin();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "3 sines of 40 around 128 stay in 0..255"
            )]
            let pixel = (128.0 + 40.0 * v) as u8;
            pixel
        })
        .collect();
    let mut pixels = Vec::new();
    planar(&frame, (0, 0), 1.0, 0.0, &mut pixels);
    let frozen = image.frozen();
    let x = Tensor::<B::InnerBackend, 4>::from_data(TensorData::new(pixels, [1, 3, 64, 64]), device);
    let z = vq::rows(vq::encode(&frozen, &dims.image, x));
    let z_host = host(&z);
    let dim = dims.image.code_dim;
    // Codes near the picture's own vectors, so that the search has something to tell apart.
    let mut codebook = Vec::new();
    for i in 0..dims.image.codebook_size {
        let row = &z_host[(i * 2 % N_CODES) * dim..][..dim];
        codebook
            .extend(row.iter().map(|v| half::f16::from_f32(v + rng.random_range(-0.02..0.02f32)).to_f32()));
    }
    let book = Tensor::<B::InnerBackend, 2>::from_data(
        TensorData::new(codebook.clone(), [dims.image.codebook_size, dim]),
        device,
    );
    let codes = vq::nearest(z, book.clone());
    let margin = z_host
        .chunks_exact(dim)
        .map(|z| {
            let distance = |e: &[f32]| z.iter().zip(e).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            let mut all: Vec<f32> = codebook.chunks_exact(dim).map(distance).collect();
            all.sort_by(f32::total_cmp);
            all[1] - all[0]
        })
        .fold(f32::INFINITY, f32::min);
    let rows: Vec<f32> =
        codes.iter().flat_map(|&c| codebook[usize::from(c) * dim..][..dim].to_vec()).collect();
    let rows = Tensor::<B::InnerBackend, 2>::from_data(TensorData::new(rows, [N_CODES, dim]), device);
    let decoded = vq::decode(&frozen, &dims.image, vq::grid(rows, 1)).clamp(-1.0, 1.0);
    let decoded = host(&decoded.permute([0, 2, 3, 1]));
    io.tensors.push(("frame", Dtype::U8, vec![64, 64, 3], frame));
    io.ints("frame_codes", &[N_CODES], codes.iter().map(|&c| u32::from(c)));
    io.floats("frame_margin", &[1], &[margin]);
    let half = decoded.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    io.tensors.push(("decoded", Dtype::F16, vec![64, 64, 3], half));
    codebook
}

/// Six steps with everything in them, and the logits of every head.
fn golden_sequence<B: AutodiffBackend + Fused>(
    net: &Params<B>,
    dims: &Dims,
    ranges: &Ranges,
    io: &mut Io,
    rng: &mut ChaCha8Rng,
) -> Result<()>
where
    B::InnerBackend: Fused,
{
    let mut text = |n: usize| (0..n).map(|_| rng.random_range(64..320u32)).collect::<Vec<_>>();
    let (instruction, question, answer) = (text(5), text(4), text(3));
    let codes: Vec<u16> = (0..STEPS * N_CODES).map(|_| rng.random_range(0..32)).collect();
    let mut bins = |n: usize| (0..n).map(|_| rng.random_range(0..dims.n_bins)).collect::<Vec<_>>();
    let (states, executed) = (bins(STEPS * STATE_DIM), bins((STEPS - 1) * EXECUTED_STEPS * ACTION_DIM));
    let global = |b: &[usize]| {
        b.iter().map(|&b| u32::try_from(dims.bins().start + b).unwrap_or(0)).collect::<Vec<u32>>()
    };
    let mut s = Sequence::open(dims, Task::Robot, &instruction);
    let any = vec![u32::try_from(dims.bins().start).unwrap_or(0); N_SLOTS];
    for step in 0..STEPS {
        s.image(dims, &codes[step * N_CODES..][..N_CODES]);
        s.bins(Modality::State, &global(&states[step * STATE_DIM..][..STATE_DIM]));
        if step == 1 || step == STEPS - 1 {
            s.ask(&question, &answer);
        }
        s.slots(&any)?;
        if step + 1 < STEPS {
            let n = EXECUTED_STEPS * ACTION_DIM;
            s.bins(Modality::Action, &global(&executed[step * n..][..n]));
        }
    }
    let leaves = net.frozen();
    let batch = Batch::<B::InnerBackend>::new(std::slice::from_ref(&s), dims, net.device());
    let x = lm::forward(&leaves, dims, &batch, Precision::F32);
    let read = |head: Head| {
        lm::logits(&leaves, dims, &batch, &x, head as usize, Precision::F32)
            .map(|t| host(&t))
            .unwrap_or_default()
    };
    let centres = |b: &[usize], range: &Binning| -> Vec<f32> {
        b.iter().enumerate().map(|(i, &b)| range.centre(i % range.low.len(), b, dims.n_bins)).collect()
    };
    io.ints("instruction", &[instruction.len()], instruction.iter().copied());
    io.ints("question", &[question.len()], question.iter().copied());
    io.ints("answer", &[answer.len()], answer.iter().copied());
    io.ints("codes", &[STEPS, N_CODES], codes.iter().map(|&c| u32::from(c)));
    io.floats("states", &[STEPS, STATE_DIM], &centres(&states, &ranges.state));
    io.floats("executed", &[STEPS - 1, EXECUTED_STEPS * ACTION_DIM], &centres(&executed, &ranges.action));
    io.floats("text_logits", &[2, answer.len() + 1, dims.n_text], &read(Head::Text));
    io.floats("slot_logits", &[STEPS, N_SLOTS, dims.n_bins], &read(Head::Bins));
    let image = read(Head::Image);
    let a_step = N_CODES * dims.image.codebook_size;
    let ends: Vec<f32> = image[..a_step].iter().chain(&image[image.len() - a_step..]).copied().collect();
    io.floats("image_logits", &[2, N_CODES, dims.image.codebook_size], &ends);
    Ok(())
}
