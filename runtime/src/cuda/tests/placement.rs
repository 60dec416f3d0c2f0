//! Where weights lie changes no bit of what a model says; what a card cannot do is refused, and what was measured is kept.

use std::path::Path;

use super::emulator;
use super::models::nano;
use crate::cuda::{CudaOptions, Device, ReadSizes};
use crate::engine::card::placement::{Placed, VERDICTS_FILE};
use crate::engine::{DeviceChoice, DeviceOptions, EngineOptions, Placement};
use crate::family::Model;
use crate::kernels::tests::compare::assert_same;
use crate::pages::Pages;
use crate::sample::argmax;
use crate::session::{ActionChunk, Session, SessionOptions, step};
use crate::weights::Weights;

/// Few enough for an emulated card.
const SIZES: ReadSizes = ReadSizes { bytes: 1 << 14, k: 256, n: 32, tokens: 16 };
/// Attributes of a board that registers read-only memory, and of one that reads pages as they are.
const REGISTERS: &[(&str, &str)] = &[("EMULATOR_REGISTER", "2"), ("EMULATOR_PAGEABLE", "0")];
const READS_PAGES: &[(&str, &str)] = &[("EMULATOR_REGISTER", "0"), ("EMULATOR_PAGEABLE", "1")];

fn set(settings: &[(&str, &str)]) {
    for (name, value) in settings {
        // SAFETY: each test runs in a process of its own, and has no other threads here.
        unsafe { std::env::set_var(name, value) };
    }
}

/// The shipped model on an emulated card that is told to be so.
fn open(settings: &[(&str, &str)], weights: Placement) -> crate::Result<std::sync::Arc<Model>> {
    set(settings);
    let kernels = Some(emulator::plug_in().join("kernels"));
    let device = DeviceOptions { choice: DeviceChoice::Cuda, kernels, weights, ..DeviceOptions::default() };
    Model::open(nano(), &EngineOptions { threads: 1, device, ..EngineOptions::default() })
}

/// The logits of a prompt, an action and some steps: prompts, products of one row and a graph.
fn said(model: &std::sync::Arc<Model>) -> Vec<f32> {
    let mut s = Session::new(model, &SessionOptions { max_text_tokens: 32, max_sequences: 1 }).unwrap();
    let mut said = Vec::new();
    s.score_begin("robot", &[300, 301, 302], &mut |logits| said.extend_from_slice(logits)).unwrap();
    s.push_state(&[0.1; 4]).unwrap();
    let mut chunk = ActionChunk::default();
    s.score_act(&mut chunk, &mut |_, logits| said.extend_from_slice(logits)).unwrap();
    s.open(&[310, 311]).unwrap();
    for _ in 0..3 {
        let mut choose = |_, logits: &[f32]| {
            said.extend_from_slice(logits);
            argmax(logits).unwrap()
        };
        step(&mut [&mut s], &mut choose).unwrap();
    }
    said
}

/// Where the weights come to lie, and why.
fn place(settings: &[(&str, &str)], asked: Placement, cache: Option<&Path>) -> (&'static str, String) {
    set(settings);
    let kernels = emulator::plug_in().join("kernels");
    let device = Device::open(&CudaOptions { ordinal: 0, kernels }).unwrap();
    let weights = Weights::open(&nano(), Pages::Small).unwrap();
    let placed = Placed::with(&device, &weights, asked, cache, &SIZES).unwrap();
    (placed.name(), placed.reason().to_owned())
}

#[test]
fn mapped_and_copied_weights_give_the_same_bits() {
    let copied = open(REGISTERS, Placement::Device).unwrap();
    assert_eq!((copied.device().weights, &*copied.device().weights_reason), ("device", "asked for"));
    let want = said(&copied);
    assert!(want.len() > 1000, "{}", want.len());
    drop(copied);
    for settings in [REGISTERS, READS_PAGES] {
        let mapped = open(settings, Placement::Mapped).unwrap();
        assert_eq!(mapped.device().weights, "mapped");
        assert_same(&said(&mapped), &want, &format!("{settings:?}"));
    }
}

#[test]
fn mapped_weights_need_no_memory_of_the_card() {
    // The weights have 3.5 MB; a session fits beside them mapped, not copied.
    let small = ("EMULATOR_MEMORY_MB", "3");
    let error = open(&[REGISTERS[0], small], Placement::Device).unwrap_err().to_string();
    assert!(error.starts_with("the weights needs "), "{error}");
    open(&[REGISTERS[0], small], Placement::Mapped).unwrap();
    // Whatever the timing says.
    let (name, reason) = place(&[REGISTERS[0], small], Placement::Auto, None);
    assert_eq!(name, "mapped", "{reason}");
}

#[test]
fn what_a_card_cannot_map_is_refused() {
    for (registers, why) in
        [("0", "reads no memory of the host"), ("1", "registering any other would copy it")]
    {
        let error = open(&[("EMULATOR_REGISTER", registers)], Placement::Mapped).unwrap_err().to_string();
        assert!(
            error.starts_with("`emulated card` cannot read the weights where they are mapped: "),
            "{error}"
        );
        assert!(error.contains(why) && error.contains("`--weights device`"), "{error}");
        let (name, reason) = place(&[("EMULATOR_REGISTER", registers)], Placement::Auto, None);
        assert!(name == "device" && reason.contains(why), "{name}: {reason}");
    }
}

#[test]
fn attributes_that_say_more_than_the_driver_does() {
    attributes_say_more_than("801");
}

#[test]
fn a_driver_that_does_not_know_why_it_cannot_map() {
    attributes_say_more_than("999");
}

#[test]
fn a_driver_that_has_no_memory_to_map() {
    attributes_say_more_than("2");
}

/// Where registering memory of the host fails with this code.
#[track_caller]
fn attributes_say_more_than(code: &str) {
    set(&[("EMULATOR_FAIL", &format!("cuMemHostRegister_v2:{code}:0"))]);
    let error = open(REGISTERS, Placement::Mapped).unwrap_err().to_string();
    assert!(
        error.starts_with("`emulated card` cannot read the weights where they are mapped: cuMemHostRegister"),
        "{error}"
    );
    let (name, reason) = place(REGISTERS, Placement::Auto, None);
    assert!(name == "device" && reason.contains("cuMemHostRegister"), "{name}: {reason}");
}

#[test]
fn a_card_with_memory_of_its_own_gets_a_copy() {
    let (name, reason) = place(&[REGISTERS[0], ("EMULATOR_INTEGRATED", "0")], Placement::Auto, None);
    assert!(name == "device" && reason.contains("memory of its own"), "{name}: {reason}");
}

#[test]
fn a_timing_is_kept_and_a_damaged_or_old_one_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("deep").join(VERDICTS_FILE);
    let place = |driver| place(&[REGISTERS[0], ("EMULATOR_DRIVER", driver)], Placement::Auto, Some(&cache));
    let text = || std::fs::read_to_string(&cache).unwrap();
    let (_, reason) = place("13000");
    assert!(reason.contains("GB/s mapped and") && reason.contains("measured on 20"), "{reason}");

    // A hit: what the file says is what counts, whatever the card would do now.
    let stored: serde_json::Value = serde_json::from_str(&text()).unwrap();
    let with = |mapped: f64, copied: f64| {
        let mut stored = stored.clone();
        stored["verdicts"][0]["mapped"] = serde_json::json!({"decode_gbps": mapped, "prompt_tops": 1.0});
        stored["verdicts"][0]["copied"] = serde_json::json!({"decode_gbps": copied, "prompt_tops": 1.0});
        stored
    };
    for (mapped, copied, wanted) in [(61.0, 58.0, "mapped"), (50.0, 58.0, "device"), (56.0, 58.0, "mapped")] {
        std::fs::write(&cache, with(mapped, copied).to_string()).unwrap();
        let (name, reason) = place("13000");
        assert_eq!(name, wanted, "{reason}");
        assert!(reason.contains(&format!("{mapped:.1} GB/s mapped and {copied:.1} copied")), "{reason}");
    }

    // Another driver, another version, half a file, rates that are none: measured again, and written.
    let mut other_version = with(61.0, 58.0);
    other_version["version"] = 2.into();
    let whole = with(61.0, 58.0).to_string();
    let damaged = [
        other_version.to_string(),
        whole[..whole.len() / 2].into(),
        with(0.0, 58.0).to_string(),
        "[]".into(),
    ];
    for (driver, before) in damaged.into_iter().map(|text| ("13000", text)).chain([("12060", whole.clone())])
    {
        std::fs::write(&cache, &before).unwrap();
        let (_, reason) = place(driver);
        assert!(!reason.contains("61.0 GB/s"), "{before}: {reason}");
        let after: serde_json::Value = serde_json::from_str(&text()).unwrap();
        assert_eq!(after["verdicts"].as_array().unwrap().len(), 1, "{after}");
        assert_eq!(after["verdicts"][0]["driver"].to_string(), driver);
    }

    // Nowhere to write, which is no reason not to start.
    let file = dir.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let unwritable = file.join(VERDICTS_FILE);
    let (_, reason) = super::placement::place(REGISTERS, Placement::Auto, Some(&unwritable));
    assert!(reason.contains("measured on"), "{reason}");
    assert!(!unwritable.exists());
}
