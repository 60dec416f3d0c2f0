//! Whole models on the emulated card against the CPU engine: the same bits.
#![allow(clippy::cast_precision_loss, reason = "token ids")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::emulator;
use crate::engine::{DeviceChoice, DeviceOptions, EngineOptions};
use crate::family::Model;
use crate::kernels::tests::compare::assert_same;
use crate::sample::{Sampler, SamplerOptions, argmax};
use crate::session::{ActionChunk, Session, SessionOptions, step, step_sampled};
use crate::tokenize::{ImageTokenizer, Picture, PixelFormat, Tokenizer};

pub(super) fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/nano")
}

/// The same bundle on the CPU and on a card.
pub(super) fn both(dir: &Path) -> [Arc<Model>; 2] {
    let kernels = Some(emulator::plug_in().join("kernels"));
    let cpu = EngineOptions { threads: 1, ..EngineOptions::default() };
    let device = DeviceOptions { choice: DeviceChoice::Cuda, kernels, ..DeviceOptions::default() };
    let card = EngineOptions { device, ..cpu.clone() };
    let both = [cpu, card].map(|options| Model::open(dir, &options).unwrap());
    assert_eq!(both.each_ref().map(|model| model.device().name), ["cpu", "cuda"]);
    both
}

/// What a session says of everything that it can be asked, bit by bit.
fn transcript(model: &Arc<Model>) -> Vec<f32> {
    let options = SessionOptions { max_text_tokens: 64, max_sequences: 3 };
    let mut s = Session::new(model, &options).unwrap();
    let mut said = Vec::new();
    let words: Vec<u32> = (300..320).collect();
    s.score_begin("robot", &words, &mut |logits| said.extend_from_slice(logits)).unwrap();
    let codes = |seed: u16| -> Vec<u16> { (0..64).map(|i| (i * 37 + seed * 101) % 1024).collect() };
    let mut chunk = ActionChunk::default();
    // More frames than the window holds, so that blocks come back.
    for frame in 0..5 {
        s.push_image(&codes(frame)).unwrap();
        s.push_state(&[0.1 * f32::from(frame); 4]).unwrap();
        s.score_act(&mut chunk, &mut |_, logits| said.extend_from_slice(logits)).unwrap();
        said.extend_from_slice(&chunk.values);
        let scored = chunk.clone();
        let picks = emulator::launches("pick");
        s.act(&mut chunk).unwrap();
        assert_eq!(emulator::launches("pick") > picks, model.device().is_card(), "bins are picked there");
        assert_eq!((&chunk.bins, &chunk.values), (&scored.bins, &scored.values), "frame {frame}");
        s.push_action(&chunk.values[..4]).unwrap();
    }
    s.score_image(&codes(5), &mut |_, logits| said.extend_from_slice(logits)).unwrap();
    s.score_answer(&words[..3], &words[3..9], &mut |_, logits| said.extend_from_slice(logits)).unwrap();

    // Three sessions answer together; the steps after the first are one graph.
    let mut others: Vec<_> = (0..2).map(|_| Session::new(model, &options).unwrap()).collect();
    for (i, other) in others.iter_mut().enumerate() {
        other.begin("vqa", &words[..2 + i]).unwrap();
        other.push_image(&codes(9)).unwrap();
    }
    let [a, b] = &mut others[..] else { unreachable!() };
    for (s, question) in [(&mut s, 4), (&mut *a, 1), (&mut *b, 7)] {
        s.open(&words[..question]).unwrap();
    }
    for _ in 0..5 {
        step(&mut [&mut s, a, b], &mut |_, logits| {
            said.extend_from_slice(logits);
            argmax(logits).unwrap()
        })
        .unwrap();
    }
    // Drawn tokens, and those of whole answers.
    let options = SamplerOptions { temperature: 1.3, top_k: 50, top_p: 0.9, seed: 3 };
    let mut samplers =
        [Sampler::new(options), Sampler::greedy(), Sampler::new(SamplerOptions { top_k: 0, ..options })];
    for _ in 0..4 {
        step_sampled(&mut [&mut s, a, b], &mut samplers).unwrap();
    }
    for session in [&mut *a, &mut *b] {
        session.close();
        let mut answer = Vec::new();
        session.answer(&words[..5], 6, &mut samplers[2], &mut answer, &mut |_| true).unwrap();
        said.extend(answer.iter().map(|&token| token as f32));
    }
    for _ in 0..3 {
        step(&mut [&mut s], &mut |_, logits| {
            said.extend_from_slice(logits);
            argmax(logits).unwrap()
        })
        .unwrap();
    }
    said
}

#[test]
fn the_shipped_model_has_the_bits_of_the_cpu() {
    let [cpu, card] = both(&nano());
    let want = transcript(&cpu);
    assert!(want.len() > 100_000, "{}", want.len());
    assert_same(&transcript(&card), &want, "nano");
}

#[test]
fn the_image_tokenizer_has_the_bits_of_the_cpu() {
    let rgb: Vec<u8> = (0..80 * 64 * 3).map(|i| (i * 89 + i / 7 * 31) as u8).collect();
    let ways = both(&nano()).map(|model| {
        let mut images = ImageTokenizer::new(&model).unwrap();
        let (mut codes, mut raw_codes, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        images.encode(Picture::rgb(&rgb, 80, 64), &mut codes).unwrap();
        // A larger frame as a camera delivers it, for which the buffers grow.
        let raw =
            Picture { bytes: &rgb[..97 * 96], format: PixelFormat::Nv12, width: 95, height: 64, stride: 97 };
        images.encode(raw, &mut raw_codes).unwrap();
        images.decode(&codes, &mut shown).unwrap();
        (codes, shown, raw_codes)
    });
    assert_eq!(ways[0], ways[1]);
    assert!(ways[0].0.iter().any(|code| *code != ways[0].0[0]), "{:?}", ways[0].0);
    for kernel in ["area_to_map", "convolve_f16", "quantise_patches", "enlarge_map"] {
        assert!(emulator::launches(kernel) > 0, "{kernel}");
    }
}

#[test]
fn an_image_tokenizer_that_does_not_fit_is_refused() {
    let weights = std::fs::metadata(nano().join("weights.safetensors")).unwrap().len();
    // Room for the weights, and for less than the largest map three times.
    let memory = (weights >> 20) + 1;
    // SAFETY: each test runs in a process of its own, and has no other threads here.
    unsafe { std::env::set_var("EMULATOR_MEMORY_MB", memory.to_string()) };
    let [_, card] = both(&nano());
    let error = ImageTokenizer::new(&card).unwrap_err().to_string();
    assert!(error.starts_with("the image tokenizer of this model needs "), "{error}");
    assert!(error.contains("bytes of the card's memory"), "{error}");
}

/// Tells the emulated card to be so, before it is opened.
fn set(settings: &[(&str, &str)]) {
    for (name, value) in settings {
        // SAFETY: each test runs in a process of its own, and has no other threads here.
        unsafe { std::env::set_var(name, value) };
    }
}

/// What a session takes of the card's memory.
fn taken(card: &Arc<Model>, max_text_tokens: usize, max_sequences: usize) -> usize {
    let free = || card.card_device().unwrap().free().unwrap();
    let before = free();
    let _session = Session::new(card, &SessionOptions { max_text_tokens, max_sequences }).unwrap();
    before - free()
}

#[test]
fn a_session_takes_what_its_longest_segment_needs() {
    set(&[("EMULATOR_INTEGRATED", "0"), ("EMULATOR_MEMORY_MB", "4096")]);
    let [_, card] = both(&nano());
    // Pictures of 66 tokens are the longest; the arena has 0.5 MB.
    let small = taken(&card, 16, 1);
    assert!((1 << 20..6 << 20).contains(&small), "{small}");
    // 2,048 rows, and scores of those units alone whose keys are split.
    let long = taken(&card, 4096, 1);
    assert!((30 << 20..60 << 20).contains(&long), "{long}");
    assert!(taken(&card, 4096, 4) < long + (20 << 20));
}

#[test]
fn what_a_session_is_said_to_need_is_what_it_takes() {
    set(&[("EMULATOR_INTEGRATED", "0"), ("EMULATOR_MEMORY_MB", "128")]);
    let [_, card] = both(&nano());
    let device = card.card_device().unwrap();
    for (max_text_tokens, max_sequences) in [(16, 1), (300, 16), (2000, 2)] {
        let taken = taken(&card, max_text_tokens, max_sequences);
        let with = |free: usize| {
            let _others = device.allocate("a test", device.free().unwrap() - free).unwrap();
            Session::new(&card, &SessionOptions { max_text_tokens, max_sequences }).map(drop)
        };
        with(taken / 5 * 6).unwrap();
        let error = with(taken - 1).unwrap_err().to_string();
        assert!(error.starts_with("a session on this model needs "), "{error}");
    }
}

#[test]
fn a_session_without_room_is_refused_before_anything_is_allocated() {
    set(&[
        ("EMULATOR_INTEGRATED", "0"),
        ("EMULATOR_MEMORY_MB", "64"),
        ("EMULATOR_FAIL", "cuMemAlloc_v2:1:1"),
    ]);
    let [_, card] = both(&nano());
    for max_text_tokens in [1 << 16, usize::MAX] {
        let options = SessionOptions { max_text_tokens, max_sequences: 1 };
        let error = Session::new(&card, &options).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
        assert!(error.to_string().starts_with("a session on this model needs "), "{error}");
        assert!(error.to_string().contains("of the card's memory"), "{error}");
    }
}

#[test]
fn rows_that_no_block_holds_are_refused() {
    // 512 values a row, and 1 KB beside what kernels declare.
    set(&[("EMULATOR_BLOCK_KB", "2"), ("EMULATOR_FAIL", "cuMemAlloc_v2:1:1")]);
    let [_, card] = both(&nano());
    let error = Session::new(&card, &SessionOptions::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "the layers of this model have rows of 2048 bytes, and a block of this card holds 1024; run this model on the cpu"
    );
}

/// Passes of an instruction, and how often the host waited meanwhile until the card had nothing left to do.
fn passes(integrated: &str, memory_mb: &str) -> [u32; 2] {
    set(&[("EMULATOR_INTEGRATED", integrated), ("EMULATOR_MEMORY_MB", memory_mb)]);
    let [_, card] = both(&nano());
    let mut session = Session::new(&card, &SessionOptions::default()).unwrap();
    let before = ["embed", "idle"].map(emulator::launches);
    // Behind four rows of prefix.
    session.begin("text", &[300; 256]).unwrap();
    let after = ["embed", "idle"].map(emulator::launches);
    [0, 1].map(|i| after[i] - before[i])
}

#[test]
fn a_card_with_memory_of_its_own_takes_a_long_text_in_one_pass() {
    assert_eq!(passes("0", "4096"), [1, 1]);
}

#[test]
fn a_small_board_takes_it_in_passes_that_follow_each_other() {
    // A sixty-fourth of it, for rows of 12 KB, of which there are 260.
    assert_eq!(passes("1", "128"), [3, 1]);
}

#[test]
fn what_cannot_be_had_is_refused_or_said() {
    let kernels = Some(PathBuf::from("nowhere"));
    let open = |choice| {
        let device = DeviceOptions { choice, kernels: kernels.clone(), ..DeviceOptions::default() };
        Model::open(nano(), &EngineOptions { threads: 1, device, ..EngineOptions::default() })
    };
    emulator::plug_in();
    let error = open(DeviceChoice::Cuda).unwrap_err().to_string();
    assert!(error.starts_with("no compiled kernel `nowhere/sm_87/"), "{error}");
    let model = open(DeviceChoice::Auto).unwrap();
    assert_eq!((model.device().name, &model.device().reason), ("cpu", &error));
}
