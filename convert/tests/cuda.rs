//! Models of every family on the emulated card: what other implementations stored, in float32 and in INT8.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::Regex;
use saccade::config::{JanusConfig, ModelConfig, WeightDtype};
use saccade::cuda;
use saccade::engine::{DeviceChoice, DeviceOptions, EngineOptions};
use saccade::family::Model;
use saccade::sample::{Sampler, SamplerOptions, argmax};
use saccade::session::{self, Session, SessionOptions, step};
use saccade::tokenize::{CodedImages, DrawPrompt, Features, Message, Picture, PictureReader};
use saccade_convert::bundle::{Recipe, convert};
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::golden::{Subject, golden};
use saccade_convert::progress::Progress;

#[path = "../../runtime/tests/emulator/mod.rs"]
mod emulator;

/// Steps of an answer of SmolLM2: all of it.
const STEPS: usize = 8;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Whether a model gives on the card what is stored, to the bit what it gives on the CPU.
#[track_caller]
fn compare(model: &str, stored: &str, dtype: WeightDtype) {
    let kernels = Some(emulator::plug_in().join("kernels"));
    let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
        let device = DeviceOptions { choice, kernels: kernels.clone(), ..DeviceOptions::default() };
        let engine = EngineOptions { device, ..EngineOptions::default() };
        golden(&Subject { path: &fixture(model), graph: None, engine }, &fixture(stored), dtype).unwrap()
    });
    assert_eq!(card.to_text(), cpu.to_text(), "{model} in {dtype:?}");
    assert!(!card.tensors.is_empty(), "{model}");
    // What INT8 costs is no matter of the card.
    assert!(card.pass || dtype == WeightDtype::Int8, "{model}:\n{}", card.to_text());
}

#[test]
fn llama_in_float32_and_int8() {
    compare("llama/tiny.gguf", "llama/golden.safetensors", WeightDtype::F32);
    compare("llama/tiny", "llama/golden.safetensors", WeightDtype::Int8);
}

/// A question that takes two passes, of which the first chooses nothing.
#[test]
fn a_long_question_is_answered_by_draws_as_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let [hub, bundle] = ["hub", "bundle"].map(|name| dir.path().join(name));
    std::fs::create_dir(&hub).unwrap();
    for file in std::fs::read_dir(fixture("llama/tiny")).unwrap() {
        let from = file.unwrap().path();
        std::fs::copy(&from, hub.join(from.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(hub.join("config.json")).unwrap();
    let longer = config.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 1024");
    std::fs::write(hub.join("config.json"), longer).unwrap();
    let mut checkpoint = Checkpoint::open(&hub).unwrap();
    convert(&mut checkpoint, &bundle, WeightDtype::Int8, false, &mut Progress::silent()).unwrap();
    let kernels = Some(emulator::plug_in().join("kernels"));
    let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
        let device = DeviceOptions { choice, kernels: kernels.clone(), ..DeviceOptions::default() };
        let model = Model::open(&bundle, &EngineOptions { device, ..EngineOptions::default() }).unwrap();
        let options = SessionOptions { max_text_tokens: 450, max_sequences: 1 };
        let mut session = Session::new(&model, &options).unwrap();
        let question: Vec<u32> = (0..400).map(|i| 3 + i * 7 % 200).collect();
        let options = SamplerOptions { temperature: 1.5, seed: 4, ..SamplerOptions::default() };
        let (mut sampler, mut answers) = (Sampler::new(options), Vec::new());
        for _ in 0..3 {
            let mut answer = Vec::new();
            session.answer(&question, 5, &mut sampler, &mut answer, &mut |_| true).unwrap();
            answers.push(answer);
        }
        answers
    });
    assert_eq!(card, cpu);
    assert!(emulator::launches("pick") > 0);
}

#[test]
fn the_kin_of_llama_in_float32() {
    for kin in ["llama", "mistral", "qwen2", "qwen3"] {
        compare(&format!("kin/{kin}"), &format!("kin/{kin}.golden.safetensors"), WeightDtype::F32);
    }
}

/// Whether these kernels have run.
#[track_caller]
fn ran(kernels: &[&str]) {
    kernels.iter().for_each(|kernel| assert!(emulator::launches(kernel) > 0, "{kernel}"));
}

#[test]
fn janus_reads_and_draws() {
    compare("hf/janus", "hf/janus/golden.safetensors", WeightDtype::F32);
    // The eye, and the net that draws.
    ran(&["convolve_f32", "convolve_turned", "softmax_rows", "layer_norm", "gelu_map", "add_table"]);
    ran(&["group_norm", "enlarge_map"]);
}

fn janus(model: &Model) -> &JanusConfig {
    let ModelConfig::Janus(c) = model.config() else { panic!("{}", model.config().family()) };
    c
}

/// What a model draws, and the logits of those codes behind a text with a picture in it.
fn drawn(bundle: &Path, choice: DeviceChoice) -> (Vec<u16>, Vec<u32>) {
    let kernels = Some(emulator::plug_in().join("kernels"));
    let device = DeviceOptions { choice, kernels, ..DeviceOptions::default() };
    let model = Model::open(bundle, &EngineOptions { device, ..EngineOptions::default() }).unwrap();
    let c = janus(&model);
    let mut prompt = DrawPrompt::of_tokens(&model, &[5, 40, 7, 300, c.vision.begin], None).unwrap();
    prompt.sampling.seed = 3;
    let mut sessions = [0, 1]
        .map(|_| Session::new(&model, &SessionOptions { max_text_tokens: 100, max_sequences: 2 }).unwrap());
    let [guided, free] = &mut sessions;
    let mut codes = Vec::new();
    session::draw(guided, free, &prompt, &mut codes, &mut |_| true).unwrap();
    let rgb: Vec<u8> = (0..=250).cycle().take(40 * 30 * 3).collect();
    Features::new(&model).unwrap().show(&[Picture::rgb(&rgb, 40, 30)], guided).unwrap();
    let mut seen = vec![9];
    seen.extend(vec![c.vision.placeholder; c.vision.patches()]);
    seen.extend(&prompt.guided);
    let mut logits = Vec::new();
    let mut on_logits = |_: usize, row: &[f32]| logits.extend(row.iter().map(|x| x.to_bits()));
    guided.score_drawing(&seen, &codes, prompt.grid[1], &mut on_logits).unwrap();
    assert_eq!(logits.len(), codes.len() * c.drawing.vq.codebook_size);
    (codes, logits)
}

#[test]
fn janus_draws_with_the_bits_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let kept = ["^drawing", r"^drawing\.(aligner\.0|head\.1)$"].map(|kept| Regex::new(kept).unwrap());
    let recipes = [WeightDtype::F32, WeightDtype::F16, WeightDtype::Int8].map(Recipe::from);
    let kept = kept.map(|kept| Recipe { keep_float: vec![kept], ..WeightDtype::Int8.into() });
    let mut codes = 0;
    for (i, recipe) in recipes.into_iter().chain(kept).enumerate() {
        let (what, bundle) = (format!("{recipe:?}"), dir.path().join(i.to_string()));
        let mut checkpoint = Checkpoint::open(&fixture("hf/janus")).unwrap();
        convert(&mut checkpoint, &bundle, recipe, false, &mut Progress::silent()).unwrap();
        let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| drawn(&bundle, choice));
        assert!(cpu.0.iter().any(|code| *code != cpu.0[0]), "{what}");
        assert_eq!(card, cpu, "{what}");
        // Every code but the first, whose sequences are asked one after the other, is chosen there.
        codes += card.0.len() - 1;
        assert_eq!(["guide_logits", "pick"].map(|kernel| emulator::launches(kernel) as usize), [codes; 2]);
    }
}

/// A model that reads features, on that engine, with an eye and two sessions.
struct Reader {
    model: Arc<Model>,
    eye: Features,
    sessions: [Session; 2],
}

impl Reader {
    fn new(bundle: &Path, choice: DeviceChoice) -> Self {
        let kernels = Some(emulator::plug_in().join("kernels"));
        let device = DeviceOptions { choice, kernels, ..DeviceOptions::default() };
        let model = Model::open(bundle, &EngineOptions { device, ..EngineOptions::default() }).unwrap();
        let options = SessionOptions { max_text_tokens: 120, max_sequences: 1 };
        let sessions = [0, 1].map(|_| Session::new(&model, &options).unwrap());
        Self { eye: Features::new(&model).unwrap(), sessions, model }
    }

    /// A question about so many pictures, one placeholder each.
    fn question(&self, pictures: usize) -> Vec<u32> {
        let c = janus(&self.model);
        let mut ids = vec![9, 30];
        (0..pictures).for_each(|at| ids.extend([c.vision.placeholder, 40 + u32::try_from(at).unwrap()]));
        ids
    }

    /// The same with places for their features.
    fn places(&self, pictures: usize) -> Vec<u32> {
        let c = janus(&self.model);
        let mut ids = Vec::new();
        for id in self.question(pictures) {
            if id == c.vision.placeholder {
                ids.push(c.vision.begin);
                ids.extend(vec![id; c.vision.patches()]);
                ids.push(c.vision.end);
            } else {
                ids.push(id);
            }
        }
        ids
    }

    /// What a session says behind such a question, in bits.
    fn said(&mut self, session: usize, pictures: usize) -> Vec<u32> {
        let ids = self.places(pictures);
        let mut bits = Vec::new();
        let mut on_logits = |_: usize, row: &[f32]| bits.extend(row.iter().map(|x| x.to_bits()));
        self.sessions[session].score_answer(&ids, &[50, 60], &mut on_logits).unwrap();
        bits
    }
}

/// Pictures of one size, each another one.
fn pictures(first: usize, n: usize) -> Vec<Vec<u8>> {
    let byte = |at: usize, i: usize| u8::try_from((i * (89 + 2 * at) + i / 7 * 31) % 256).unwrap();
    (first..first + n).map(|at| (0..40 * 30 * 3).map(|i| byte(at, i)).collect()).collect()
}

#[test]
fn janus_sees_with_the_bits_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    for (i, dtype) in [WeightDtype::F32, WeightDtype::Int8].into_iter().enumerate() {
        let bundle = dir.path().join(i.to_string());
        let mut checkpoint = Checkpoint::open(&fixture("hf/janus")).unwrap();
        convert(&mut checkpoint, &bundle, dtype, false, &mut Progress::silent()).unwrap();
        let graphs = emulator::launches("cuGraphLaunch");
        let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
            let mut reader = Reader::new(&bundle, choice);
            let mut found = Vec::new();
            // Arrays grow in the second and third question, and are larger than needed in the others.
            for (round, (session, n)) in
                [(0, 1), (1, 2), (0, 3), (1, 1), (0, 2), (1, 2)].into_iter().enumerate()
            {
                let rgb = pictures(3 * round, n);
                let pictures: Vec<_> = rgb.iter().map(|rgb| Picture::rgb(rgb, 40, 30)).collect();
                reader.eye.show(&pictures, &mut reader.sessions[session]).unwrap();
                let said = reader.said(session, n);
                assert_eq!(said, reader.said(session, n), "they stay for the next question");
                // The same by way of the host, and by the text's own reader.
                let values: Vec<f32> =
                    pictures.iter().flat_map(|&one| reader.eye.of(one).unwrap().to_vec()).collect();
                reader.sessions[session].show(&values).unwrap();
                assert_eq!(said, reader.said(session, n), "{choice:?} {dtype:?} round {round}");
                let mut of_text = PictureReader::new(&reader.model).unwrap().unwrap();
                let text = of_text.read(&reader.question(n), &pictures, &mut reader.sessions[session]);
                assert_eq!(text.unwrap(), reader.places(n));
                assert_eq!(said, reader.said(session, n), "{choice:?} {dtype:?} round {round}");
                assert!(!found.contains(&said), "round {round}");
                found.push(said);
            }
            // A text without pictures does not need them.
            reader.eye.show(&[], &mut reader.sessions[0]).unwrap();
            found.push(reader.said(0, 0));
            found
        });
        assert_eq!(card, cpu, "{dtype:?}");
        // Networks were replayed that keep what they find, and such that give it.
        assert!(emulator::launches("cuGraphLaunch") - graphs > 20, "{dtype:?}");
    }
    ran(&["check_finite"]);
}

/// Puts a number that is none into the first place of an F32 tensor of a bundle.
fn poison(bundle: &Path, tensor: &str) {
    let path = bundle.join("weights.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(list[tensor]["dtype"], "F32");
    let at = 8 + header + usize::try_from(list[tensor]["data_offsets"][0].as_u64().unwrap()).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn features_that_are_no_numbers_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let mut checkpoint = Checkpoint::open(&fixture("hf/janus")).unwrap();
    convert(&mut checkpoint, &bundle, WeightDtype::Int8, false, &mut Progress::silent()).unwrap();
    poison(&bundle, "vision.norm.bias");
    let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
        let mut reader = Reader::new(&bundle, choice);
        let c = janus(&reader.model);
        let good = vec![0.25; c.vision.patches() * c.language.decoder.d_model];
        let mut found = Vec::new();
        reader.sessions[0].show(&good).unwrap();
        let before = reader.said(0, 1);
        // Kernel by kernel, captured, and replayed; more than a question can have, and while one is answered.
        for (n, open) in [(1, false), (2, false), (1, false), (3, false), (30, false), (1, true)] {
            let rgb = pictures(0, n);
            let pictures: Vec<_> = rgb.iter().map(|rgb| Picture::rgb(rgb, 40, 30)).collect();
            if open {
                reader.sessions[0].open(&[9, 30]).unwrap();
            }
            let refused = reader.eye.show(&pictures, &mut reader.sessions[0]).unwrap_err();
            reader.sessions[0].close();
            found.push(refused.sentence());
            assert_eq!(reader.said(0, 1), before, "{choice:?} {n}");
        }
        (before, found)
    });
    assert_eq!(card, cpu);
    for (sentence, part) in card.1.iter().zip([
        "output is not a number",
        "output is not a number",
        "output is not a number",
        "output is not a number",
        "there is room for 120",
        "an answer is open",
    ]) {
        assert!(sentence.contains(part), "{sentence}");
    }
}

/// The kernels of a VQGAN.
const VQGAN: [&str; 5] = ["convolve_turned", "softmax_rows", "strip_sums", "fold_strips", "group_norm"];

#[test]
fn chameleon_in_float32_and_int8() {
    for (dtype, convolve) in [(WeightDtype::F32, "convolve_f32"), (WeightDtype::Int8, "convolve_f16")] {
        compare("hf/chameleon", "hf/chameleon/golden.safetensors", dtype);
        ran(&VQGAN);
        ran(&[convolve]);
    }
}

#[test]
fn a_picture_that_is_no_number_gets_no_codes() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let mut checkpoint = Checkpoint::open(&fixture("hf/chameleon")).unwrap();
    convert(&mut checkpoint, &bundle, WeightDtype::Int8, false, &mut Progress::silent()).unwrap();
    let kernels = Some(emulator::plug_in().join("kernels"));
    let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
        let device = DeviceOptions { choice, kernels: kernels.clone(), ..DeviceOptions::default() };
        let model = Model::open(&bundle, &EngineOptions { device, ..EngineOptions::default() }).unwrap();
        let mut images = CodedImages::new(&model).unwrap();
        let mut ids = Vec::new();
        [0.5, f32::NAN, -0.5].map(|value| {
            let said = images.encode_values(&vec![value; 32 * 32 * 3], (32, 32), &mut ids);
            said.map(|()| ids.clone()).map_err(|error| error.sentence())
        })
    });
    assert_eq!(card, cpu);
    assert!(card[0].is_ok() && card[1].is_err() && card[2].is_ok(), "{card:?}");
    ran(&["nearest_f16"]);
}

#[test]
fn emu3_in_float32() {
    compare("hf/emu3", "hf/emu3/golden.safetensors", WeightDtype::F32);
    ran(&VQGAN);
    ran(&["convolve_f32", "channel_norm", "enlarge_map", "guide_logits", "pick"]);
}

#[test]
fn emu3_in_int8() {
    compare("hf/emu3", "hf/emu3/golden.safetensors", WeightDtype::Int8);
    ran(&VQGAN);
    ran(&["convolve_f16", "channel_norm", "enlarge_map", "guide_logits", "pick"]);
}

/// A published model whole: a question through the chat template, and every step of the answer.
#[test]
#[ignore = "takes minutes and a file of 98 MB: cargo xtask smollm2"]
fn smollm2_in_int8_answers_as_on_the_cpu() {
    let gguf = PathBuf::from(std::env::var_os("SMOLLM2").expect("SMOLLM2 is the path of the GGUF file"));
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let mut checkpoint = Checkpoint::open(&gguf).unwrap();
    convert(&mut checkpoint, &bundle, WeightDtype::Int8, false, &mut Progress::silent()).unwrap();
    let kernels = Some(emulator::plug_in().join("kernels"));
    let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
        let device = DeviceOptions { choice, kernels: kernels.clone(), ..DeviceOptions::default() };
        let model = Model::open(&bundle, &EngineOptions { device, ..EngineOptions::default() }).unwrap();
        let text = model.text().unwrap();
        let ask = "What is the capital of France?";
        let question = text.encode_chat(&[Message::text("user", ask)]).unwrap();
        let options = SessionOptions { max_text_tokens: question.len() + STEPS, max_sequences: 1 };
        let mut session = Session::new(&model, &options).unwrap();
        session.open(&question).unwrap();
        let (mut logits, mut answer) = (Vec::new(), Vec::new());
        for _ in 0..STEPS {
            step(&mut [&mut session], &mut |_, found| {
                let token = argmax(found).unwrap();
                logits.push(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                answer.push(u32::try_from(token).unwrap());
                token
            })
            .unwrap();
        }
        (question.len(), logits, text.decode(&answer).unwrap())
    });
    println!("{} tokens of a question, {STEPS} steps: {}", cpu.0, cpu.2);
    assert!(cpu.2.contains("Paris"), "{}", cpu.2);
    assert_eq!(card.2, cpu.2);
    for (i, (card, cpu)) in card.1.iter().zip(&cpu.1).enumerate() {
        let differ = card.iter().zip(cpu).filter(|(card, cpu)| card != cpu).count();
        assert_eq!((card.len(), differ), (cpu.len(), 0), "logits of step {i}");
    }
}
