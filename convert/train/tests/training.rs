//! The three stages, small (on the pure-Rust backend, or on libtorch where only that is built): losses fall, a resumed run is the uninterrupted one, INT8 is imitated.
#![cfg(any(feature = "flex", feature = "tch"))]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use burn::backend::Autodiff;
#[cfg(feature = "flex")]
use burn::backend::Flex as Plain;
#[cfg(not(feature = "flex"))]
type Plain = burn::backend::LibTorch<f32>;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use saccade_train::corpus::{Codes, PictureSet, RobotSet};
use saccade_train::data::Frames;
use saccade_train::data::episodes::{Episode, Step};
use saccade_train::data::pictures::Question;
use saccade_train::layout::Dims;
use saccade_train::lm::{self, Precision};
use saccade_train::params::Params;
use saccade_train::text;
use saccade_train::train_lm::{self, Corpus, LmRun, Trainee, Validation};
use saccade_train::train_vq::{self, VqRun};

type Backend = Autodiff<Plain>;

/// Pictures of one colour each, asked about it, and episodes in which the arm does what the state says.
fn corpus(dir: &Path) -> Corpus {
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, text::train(&[String::new()], Dims::tiny().n_text).unwrap()).unwrap();
    let tokenizer = text::open(&path).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let n = 24;
    let codes = |rng: &mut ChaCha8Rng| Codes {
        codes: (0..n)
            .flat_map(|i| (0..64).map(move |_| i % 4))
            .map(|c| c + 4 * rng.random_range(0..2u16))
            .collect(),
        n: n.into(),
    };
    let questions: Vec<Question> = (0..usize::from(n))
        .map(|picture| Question {
            question: "q?".into(),
            answer: ["a", "b", "c", "d"][picture % 4].into(),
            picture,
        })
        .collect();
    let pictures = PictureSet::new(codes(&mut rng), &questions, &tokenizer).unwrap();
    let step = |i: usize| Step {
        state: vec![i as f32 * 0.1; 4],
        action: vec![0.5, -0.5, 0.0, (i % 2) as f32],
        executed: vec![0.5, -0.5, 0.0, (i % 2) as f32],
        caption: "x".into(),
        qa: vec![("y?".into(), "z".into())],
    };
    let steps = (0..usize::from(n)).map(step).collect();
    let episode = Episode { frames: 0..n.into(), instruction: "go".into() };
    let robot = RobotSet::new(codes(&mut rng), steps, vec![episode], &tokenizer).unwrap();
    Corpus {
        robot: Some(robot),
        pictures: vec![("pictures".into(), pictures)],
        validation: Validation::default(),
    }
}

fn trainee() -> Trainee<Backend> {
    let device = Default::default();
    let mut params = Params::new(&device);
    let book = vec![0.1; 32 * 8];
    lm::declare(&mut params, &Dims::tiny(), &book, &mut ChaCha8Rng::seed_from_u64(9));
    Trainee { params, dims: Dims::tiny() }
}

fn run(out: &Path, steps: usize, stop_schedule_at: usize) -> LmRun {
    LmRun {
        out: out.to_owned(),
        checkpoint: "lm.safetensors",
        stage: "pretrain",
        steps,
        schedule: stop_schedule_at,
        tokens: 300,
        accumulate: 1,
        lr: 5e-3,
        lr_floor: 0.1,
        warm_up: 3,
        tau: 2.0,
        image_weight: 0.1,
        precision: Precision::F32,
        seed: 3,
        save_every_s: 1e9,
        validate_every: 1000,
    }
}

/// The losses of the log, in order.
fn losses(out: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    let lines = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    lines.filter_map(|l| l["loss"].as_f64()).collect()
}

#[test]
fn twenty_steps_lower_the_loss() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let mut trainee = trainee();
    let plain = trainee.params.export();
    train_lm::train(&run(dir.path(), 20, 20), &mut trainee, &corpus).unwrap();
    let losses = losses(dir.path());
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert_eq!(losses.len(), 20);
    assert!(mean(&losses[15..]) < 0.75 * mean(&losses[..5]), "{losses:?}");
    assert_ne!(plain, trainee.params.export());
}

#[test]
fn resumed_run_is_the_uninterrupted_one() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let corpus = corpus(whole.path());
    let mut one = trainee();
    train_lm::train(&run(whole.path(), 6, 6), &mut one, &corpus).unwrap();
    train_lm::train(&run(parts.path(), 3, 6), &mut trainee(), &corpus).unwrap();
    let mut two = trainee();
    train_lm::train(&run(parts.path(), 6, 6), &mut two, &corpus).unwrap();
    let (a, b) = (losses(whole.path()), losses(parts.path()));
    assert_eq!(a.len(), 6);
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs()), "{a:?} {b:?}");
    assert_eq!(one.params.export(), two.params.export());
}

#[test]
fn checkpoint_of_another_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lm.safetensors");
    trainee().params.save(&path, Default::default()).unwrap();
    let mut other = Params::<Backend>::new(&Default::default());
    let dims = Dims { d_ff: 24, ..Dims::tiny() };
    lm::declare(&mut other, &dims, &[], &mut ChaCha8Rng::seed_from_u64(1));
    let error = other.load(&path).unwrap_err().to_string();
    assert!(error.contains("layers.0.ffn.down.weight") && error.contains("wants"), "{error}");
}

/// Frames of one colour each.
fn colours() -> Frames {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let colours: Vec<u8> = (0..6 * 3).map(|_| rng.random()).collect();
    Frames { bytes: colours.chunks_exact(3).flat_map(|c| c.repeat(64 * 64)).collect() }
}

/// Mean PSNR of saying the mean colour of all frames for each of them, in dB.
fn psnr_of_the_mean_colour(frames: &Frames) -> f64 {
    let values: Vec<f64> = frames.bytes.iter().map(|&v| f64::from(v) / 127.5 - 1.0).collect();
    let mean: Vec<f64> =
        (0..3).map(|c| values.iter().skip(c).step_by(3).sum::<f64>() * 3.0 / values.len() as f64).collect();
    let one = values.len() / frames.len();
    let psnr = values.chunks_exact(one).map(|frame| {
        let square: f64 = frame.iter().zip(mean.iter().cycle()).map(|(v, m)| (v - m).powi(2)).sum();
        10.0 * (4.0 * one as f64 / square).log10()
    });
    psnr.sum::<f64>() / frames.len() as f64
}

#[test]
fn the_tokenizer_learns_more_than_the_mean_colour() {
    let frames = colours();
    let trained = |steps| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().to_owned();
        let run = VqRun { out, steps, batch: 4, lr: 5e-3, seed: 4, save_every_s: 1e9 };
        let device = Default::default();
        train_vq::train::<Backend>(&run, &Dims::tiny(), &[("colours", &frames, 1.0)], &device).unwrap();
        // What was written is what was trained.
        let tokenizer = train_vq::Tokenizer::<Backend>::open(dir.path(), &Dims::tiny(), &device).unwrap();
        assert_eq!(tokenizer.book.vectors.len(), 32 * 8);
        train_vq::report(&tokenizer, "colours", &frames)["psnr_db"].as_f64().unwrap()
    };
    let (mean, first, last) = (psnr_of_the_mean_colour(&frames), trained(1), trained(80));
    assert!(last > mean + 3.0, "{last} dB; the mean colour has {mean}, one step {first}");
    assert!(last > first + 3.0, "{last} dB; one step has {first}");
}

#[test]
fn fake_quantisation_rounds_as_the_runtime_does() {
    use burn::tensor::{Tensor, TensorData};
    let values: Vec<f32> = (0..96).map(|i: u8| (f32::from(i) * 0.37).sin() * 3.0).chain([0.0; 32]).collect();
    let x = Tensor::<Plain, 2>::from_data(TensorData::new(values.clone(), [4, 32]), &Default::default());
    let found = saccade_train::params::host(&saccade_train::qat::rows(x));
    for (row, found) in values.chunks_exact(32).zip(found.chunks_exact(32)) {
        let mut q = vec![0i8; 32];
        let scale = saccade::quant::quantise_row(row, &mut q);
        for (q, f) in q.iter().zip(found) {
            assert!((f32::from(*q) * scale - f).abs() <= 1e-6 * f.abs().max(1e-3), "{q} · {scale} and {f}");
        }
    }
}
