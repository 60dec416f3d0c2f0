//! Training and runtime compute the same model: the golden tensors of `saccade-train golden`, through the runtime's session.
//!
//! The sequence has six steps, so that every window evicts; the checkpoint goes through the converter as an F32 bundle.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use saccade::config::WeightDtype;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::session::{ActionChunk, Session, SessionOptions};
use saccade::tokenize::{ImageTokenizer, Picture, Tokenizer as _};
use saccade_convert::bundle;
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::progress::Progress;
use safetensors::SafeTensors;

/// The largest difference from a golden logit that is accepted, as a share of the largest golden logit: F32 sums in another
/// order. (DESIGN 7: F32 logits within 1e-4 of the largest.)
const TOLERANCE: f32 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

struct Io {
    raw: Vec<u8>,
}

impl Io {
    fn open() -> Io {
        Io { raw: std::fs::read(golden("tiny-io.safetensors")).unwrap() }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.raw).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ints(&self, name: &str) -> Vec<u32> {
        self.bytes(name).chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn model(dir: &Path) -> Arc<Model> {
    let mut checkpoint = Checkpoint::open(&golden("tiny.safetensors")).unwrap();
    let out = dir.join("tiny");
    bundle::convert(&mut checkpoint, &out, WeightDtype::F32, false, &mut Progress::silent()).unwrap();
    Model::open(&out, &EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap()
}

/// The largest difference between logits and their golden ones; NaN is larger than anything.
fn difference(found: &[f32], golden: &[f32]) -> f32 {
    assert_eq!(found.len(), golden.len());
    found
        .iter()
        .zip(golden)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn largest(golden: &[f32]) -> f32 {
    golden.iter().fold(0.0, |m, v| v.abs().max(m))
}

#[test]
fn comparator_rejects_nan_and_small_errors() {
    assert!(difference(&[1.0, f32::NAN, 0.0], &[1.0, 1.0, 0.0]).is_nan());
    assert!(difference(&[1.0, 0.001], &[1.0, 0.0]) > TOLERANCE);
}

#[test]
fn six_steps_with_eviction_give_the_trainers_logits() {
    let io = Io::open();
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    let (codes, states, executed) = (io.ints("codes"), io.floats("states"), io.floats("executed"));
    let codes: Vec<u16> = codes.iter().map(|&c| u16::try_from(c).unwrap()).collect();
    let (question, answer) = (io.ints("question"), io.ints("answer"));
    let (mut text, mut slots, mut image) = (Vec::new(), Vec::new(), Vec::new());
    session.begin("robot", &io.ints("instruction")).unwrap();
    for step in 0..6 {
        let codes = &codes[step * 64..][..64];
        if step == 0 || step == 5 {
            session.score_image(codes, &mut |_, logits| image.extend_from_slice(logits)).unwrap();
        } else {
            session.push_image(codes).unwrap();
        }
        session.push_state(&states[step * 4..][..4]).unwrap();
        if step == 1 || step == 5 {
            session
                .score_answer(&question, &answer, &mut |_, logits| text.extend_from_slice(logits))
                .unwrap();
        }
        let mut chunk = ActionChunk::default();
        session.score_act(&mut chunk, &mut |_, logits| slots.extend_from_slice(logits)).unwrap();
        if step < 5 {
            session.push_action(&executed[step * 16..][..16]).unwrap();
        }
    }
    for (name, found) in [("text_logits", text), ("slot_logits", slots), ("image_logits", image)] {
        let golden = io.floats(name);
        let (difference, largest) = (difference(&found, &golden), largest(&golden));
        assert!(difference <= TOLERANCE * largest, "{name}: {difference} of {largest}");
    }
}

#[test]
fn picture_gives_the_trainers_codes_and_comes_back() {
    let io = Io::open();
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let mut images = ImageTokenizer::new(&model).unwrap();
    // The nearest and the second code of every place are further apart than sums in another order can move them.
    assert!(io.floats("frame_margin")[0] > 1e-5, "{:?}", io.floats("frame_margin"));
    let mut codes = Vec::new();
    let frame = io.bytes("frame");
    images.encode(Picture::rgb(&frame, 64, 64), &mut codes).unwrap();
    let golden: Vec<u16> = io.ints("frame_codes").iter().map(|&c| u16::try_from(c).unwrap()).collect();
    assert_eq!(codes, golden);
    let mut pixels = Vec::new();
    images.decode(&codes, &mut pixels).unwrap();
    let golden: Vec<f32> = io
        .bytes("decoded")
        .chunks_exact(2)
        .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32() * 127.5 + 127.5)
        .collect();
    let found: Vec<f32> = pixels.iter().map(|&p| f32::from(p)).collect();
    // Half a step of the eight-bit pixel, and half precision of the golden one.
    assert!(difference(&found, &golden) <= 0.6, "{}", difference(&found, &golden));
}
