//! Image networks as graphs on the emulated card: whatever was captured, the bits of the CPU.

use std::sync::Arc;

use super::emulator;
use super::models::{both, nano};
use crate::Result;
use crate::cuda::CudaError;
use crate::engine::maps::Slot::{A, B, X};
use crate::engine::maps::{Canvas, Maps, Shape};
use crate::family::Model;
use crate::kernels::tests::Random;
use crate::kernels::tests::compare::assert_same;
use crate::tokenize::{ImageTokenizer, Picture, Tokenizer};

/// Kernels and graphs that were launched since the last time.
fn launched(before: &mut [u32; 2]) -> [u32; 2] {
    let now = ["cuLaunchKernel", "cuGraphLaunch"].map(emulator::launches);
    let since = [now[0] - before[0], now[1] - before[1]];
    *before = now;
    since
}

/// The first convolution of the shipped model over frames, of which there are as many as pictures.
fn clip(model: &Model, frames: &[Vec<f32>], (height, width): (usize, usize), m: &mut dyn Maps) -> Result<()> {
    let (_, net) = model.unimodal_net()?;
    for x in frames {
        m.load(X, Shape::picture((height, width), 3), &|to| to.copy_from_slice(x))?;
        m.convolve(&net.image.down[0], X, A)?;
        m.silu(A, B)?;
        m.add(B, A)?;
        m.give(B)?;
    }
    Ok(())
}

/// The same run of both models' canvases.
struct Ways {
    models: [Arc<Model>; 2],
    canvases: [Canvas; 2],
    random: Random,
}

impl Ways {
    fn new() -> Self {
        let canvases = ["the CPU", "the card"].map(Canvas::new);
        Self { models: both(&nano()), canvases, random: Random(31) }
    }

    /// Runs other pictures of that size; returns what the card launched.
    #[track_caller]
    fn run(&mut self, frames: usize, size: (usize, usize)) -> [u32; 2] {
        let pictures: Vec<_> = (0..frames).map(|_| self.random.f32s(3 * size.0 * size.1)).collect();
        let [cpu, card] = &self.models;
        let [on_cpu, on_card] = &mut self.canvases;
        let want = on_cpu.run(cpu.machine(), &|m| clip(cpu, &pictures, size, m)).unwrap();
        let mut before = [0; 2];
        launched(&mut before);
        let found = on_card.run(card.machine(), &|m| clip(card, &pictures, size, m)).unwrap();
        assert_same(found, want, &format!("{frames} of {size:?}"));
        launched(&mut before)
    }
}

#[test]
fn pictures_that_change_have_the_bits_of_the_cpu() {
    let [mut cpu, mut card] = both(&nano()).map(|model| ImageTokenizer::new(&model).unwrap());
    let mut before = [0; 2];
    launched(&mut before);
    let mut seen = Vec::new();
    for run in 0..3 {
        let rgb: Vec<u8> = (0..80 * 64 * 3).map(|i| (i * (89 + 2 * run) + i / 7 * 31) as u8).collect();
        let picture = Picture::rgb(&rgb, 80, 64);
        let [mut codes, mut want_codes] = [Vec::new(), Vec::new()];
        let [mut shown, mut want] = [Vec::new(), Vec::new()];
        card.encode(picture, &mut codes).unwrap();
        let [kernels, graphs] = launched(&mut before);
        match run {
            0 => assert!(kernels > 10 && graphs == 0, "{kernels} {graphs}"),
            1 => assert!(kernels > 10 && graphs == 1, "{kernels} {graphs}"),
            _ => assert_eq!([kernels, graphs], [0, 1]),
        }
        card.decode(&codes, &mut shown).unwrap();
        assert_eq!(launched(&mut before)[1], u32::from(run > 0));
        cpu.encode(picture, &mut want_codes).unwrap();
        cpu.decode(&codes, &mut want).unwrap();
        assert_eq!((&codes, shown), (&want_codes, want));
        assert!(!seen.contains(&codes), "each picture is another one");
        seen.push(codes);
    }
}

#[test]
fn sizes_take_turns() {
    let mut ways = Ways::new();
    // Buffers grow twice, and graphs go with the smaller ones.
    let sizes = [(8, 8), (12, 20), (5, 30), (21, 20)];
    for turn in 0..5 {
        for size in sizes {
            let launched = ways.run(1, size);
            if turn > 2 {
                assert_eq!(launched, [0, 1], "{size:?}");
            }
        }
    }
    // Two that lie in buffers of the same size, and are not the same.
    for turn in 0..3 {
        assert_eq!([(10, 4), (4, 10)].map(|size| ways.run(1, size)[1]), [u32::from(turn > 0); 2]);
    }
    // More than are remembered: those are launched kernel by kernel.
    for _ in 0..3 {
        for side in 4..14 {
            assert_eq!(ways.run(1, (side, 3))[1], 0);
        }
    }
}

#[test]
fn frames_of_a_clip_lie_behind_each_other() {
    let mut ways = Ways::new();
    for turn in 0..4 {
        // An odd number of bytes does not hurt the frame behind it.
        for frames in [3, 1] {
            assert_eq!(ways.run(frames, (7, 9))[1], u32::from(turn > 0));
        }
    }
}

#[test]
fn a_clip_that_is_larger_than_the_staging_is_not_captured() {
    let [_, card] = both(&nano());
    let mut canvas = Canvas::new("a test");
    let shape = Shape::picture((3000, 1000), 3);
    for _ in 0..3 {
        let found = canvas.run(card.machine(), &|m| {
            for frame in 0_u8..2 {
                m.load(X, shape, &|x| x.fill(f32::from(frame)))?;
                m.give(X)?;
            }
            Ok(())
        });
        let (first, second) = found.unwrap().split_at(shape.len());
        assert!(first.iter().all(|&x| x == 0.0) && second.iter().all(|&x| x == 1.0));
    }
    assert_eq!(emulator::launches("cuGraphLaunch"), 0);
}

#[test]
fn work_that_fails_or_panics_ends_its_capture() {
    let card = super::orin();
    let destroyed = || emulator::launches("cuGraphDestroy");
    let failed = card.device.capture(|| Err(CudaError::NoDriver));
    assert!(matches!(failed, Err(CudaError::NoDriver)));
    assert_eq!(destroyed(), 1);
    let panicking = || card.device.capture::<CudaError>(|| panic!("in the midst of a capture"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).unwrap_err();
    assert_eq!(destroyed(), 2);
    // Nothing is under way any more.
    card.device.capture::<CudaError>(|| Ok(())).unwrap();
    card.device.wait().unwrap();
}

/// Runs where a call of the driver fails: no picture is lost, and a graph is not tried again.
#[track_caller]
fn with_failing(call: &str, graphs: u32) {
    // SAFETY: each test runs in a process of its own, and has no other threads here.
    unsafe { std::env::set_var("EMULATOR_FAIL", call) };
    let mut ways = Ways::new();
    for run in 0..6 {
        let [kernels, _] = ways.run(2, (6, 5));
        assert!(kernels > 0 || run == 2, "run {run}");
    }
    assert_eq!(emulator::launches("cuGraphLaunch"), graphs);
}

#[test]
fn a_capture_that_fails_loses_no_picture() {
    with_failing("cuStreamBeginCapture_v2:1:0", 0);
}

#[test]
fn a_graph_that_cannot_be_made_loses_no_picture() {
    with_failing("cuGraphInstantiateWithFlags:801:0", 0);
}

#[test]
fn a_graph_that_cannot_be_launched_any_more_loses_no_picture() {
    with_failing("cuGraphLaunch:2:2", 2);
}
