//! Tokens that the emulated card picks, against the sampler of the CPU.

use super::orin;
use crate::cuda::launch::{Draws, Parts};
use crate::kernels::tests::Random;
use crate::kernels::tests::compare::assert_same;
use crate::sample::{Sampler, SamplerOptions, argmax};

/// The rows of both parts, one after the other.
fn joined(parts: &[Vec<f32>; 2], width: [usize; 2], row: usize) -> Vec<f32> {
    let part = |i: usize| &parts[i][row * width[i]..][..width[i]];
    [part(0), part(1)].concat()
}

#[test]
fn tokens_are_those_of_the_cpu() {
    let (mut random, mut card) = (Random(5), orin());
    for (width, rows) in [([1, 0], 1), ([2, 3], 2), ([513, 0], 3), ([700, 1412], 2), ([0, 5000], 1)] {
        let mut parts = width.map(|n| random.f32s(rows * n).iter().map(|x| 6.0 * x).collect::<Vec<_>>());
        for part in &mut parts {
            // Ties, and both zeros.
            for i in (0..part.len()).skip(1).step_by(3) {
                part[i] = part[i - 1];
            }
            part.iter_mut().skip(4).step_by(7).for_each(|x| *x = -0.0);
        }
        let mut samplers = Vec::new();
        for (temperature, top_k, top_p) in
            [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.3, 7, 1.0), (2.0, 0, 0.8), (30.0, 600, 0.5), (1e-38, 0, 0.0)]
        {
            for seed in 0..3 {
                samplers.push(Sampler::new(SamplerOptions { temperature, top_k, top_p, seed }));
            }
        }
        for together in samplers.chunks_mut(rows) {
            let [first, second] = [0, 1].map(|i| card.put(&parts[i]));
            let [flag, picked] = [card.put(&[0u32]), card.put(&vec![7u32; rows])];
            let logits = Parts { at: [first, second], width: width.map(|n| n as i32), gap: 100 };
            let mut draws = Draws::default();
            for (draw, sampler) in draws.0.iter_mut().zip(&*together) {
                *draw = sampler.clone().draw();
            }
            card.device.pick(&logits, &draws, together.len(), flag, picked).unwrap();
            let found = card.get::<u32>(picked, rows);
            for (row, sampler) in together.iter_mut().enumerate() {
                let want = sampler.pick(&joined(&parts, width, row)).unwrap();
                let want = if want < width[0] { want } else { want + 100 };
                assert_eq!(found[row] as usize, want, "{width:?} row {row} {sampler:?}");
            }
            assert_eq!(card.get::<u32>(flag, 1), [0]);
            card.clear();
        }
    }
}

#[test]
fn guided_logits_are_those_of_the_cpu() {
    super::each_block(guide);
}

fn guide() {
    let (mut random, mut card) = (Random(8), orin());
    for (n, width) in [(1, 1), (255, 300), (256, 256), (257, 1000)] {
        let mut rows = random.f32s(2 * width);
        rows[0] = f32::MAX;
        // From the last on, so that an index is not its place.
        let ids: Vec<i32> = (0..n).map(|i| (width - 1 - i) as i32).collect();
        let [logits, out] = [card.put(&rows), card.put(&vec![f32::NAN; n + 1])];
        let places = card.put(&ids);
        for guidance in [0.0, 1.0, 5.0, 3.0e38] {
            card.device.guide_logits((logits, width), (places, n), guidance, out).unwrap();
            let want = ids.iter().map(|&id| {
                let [free, guided] = [rows[id as usize], rows[width + id as usize]];
                free + guidance * (guided - free)
            });
            let found = card.get::<f32>(out, n + 1);
            assert_same(&found[..n], &want.collect::<Vec<_>>(), &format!("{n} of {width}, {guidance}"));
            assert!(found[n].is_nan());
        }
        card.clear();
    }
}

#[test]
fn a_logit_that_is_no_number_is_told() {
    let mut card = orin();
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = vec![1.0; 600];
        row[599] = wrong;
        let (at, flag, picked) = (card.put(&row), card.put(&[0u32]), card.put(&[0u32]));
        let logits = Parts::alone(at, 600);
        for options in [SamplerOptions::default(), SamplerOptions { temperature: 1.0, ..Default::default() }]
        {
            let mut draws = Draws::default();
            draws.0[0] = Sampler::new(options).draw();
            card.device.pick(&logits, &draws, 1, flag, picked).unwrap();
            assert_eq!(card.get::<u32>(flag, 1), [1], "{wrong}");
            assert!(card.get::<u32>(picked, 1)[0] < 600);
        }
        assert!(argmax(&row).is_none() || wrong.is_infinite());
        card.clear();
    }
}
