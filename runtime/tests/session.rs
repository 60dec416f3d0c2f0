//! Sessions against the plain definition in double precision, and against themselves.

// Test code: a failed `unwrap` is a failed test, and every number here is small.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod oracle;

use std::sync::Arc;

use oracle::bundle::{model, write_bundle};
use oracle::{Input, Oracle, Segment, Tensors, random_tensors, tiny};
use saccade::config::{Modality, UnimodalConfig, WEIGHTS_FILE, WeightDtype};
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::pages::Pages;
use saccade::sample::Sampler;
use saccade::session::{ActionChunk, Session, SessionOptions};
use saccade::tokenize::{ImageTokenizer, Picture, Tokenizer};

/// Fails on NaN, on a difference above `tolerance` of the largest expected value, and on unequal lengths.
fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let diff = (f64::from(*f) - e).abs();
        assert!(diff <= tolerance * largest, "{what} [{i}]: found {f}, expected {e} (largest {largest})");
    }
}

/// KL divergence of softmax(found) from softmax(expected), in nats.
fn kl(found: &[f32], expected: &[f64]) -> f64 {
    let log_softmax = |x: &[f64]| -> Vec<f64> {
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = x.iter().map(|v| (v - max).exp()).sum::<f64>().ln() + max;
        x.iter().map(|v| v - total).collect()
    };
    let found = log_softmax(&found.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    let expected = log_softmax(expected);
    expected.iter().zip(&found).map(|(e, f)| e.exp() * (e - f)).sum()
}

const STEPS: usize = 5;
const QUESTION: [u32; 3] = [20, 31, 12];
const ANSWER: [u32; 4] = [50, 51, 50, 33];
const INSTRUCTION: [u32; 2] = [70, 40];

fn codes(step: usize) -> Vec<u16> {
    (0..4).map(|i| u16::try_from((step * 17 + i * 5) % 64).unwrap()).collect()
}

/// A robot sequence of five steps with windows of two: what the session does, and the logits it saw.
struct Run {
    image: Vec<Vec<f32>>,
    answer: Vec<Vec<f32>>,
    slots: Vec<Vec<f32>>,
}

fn run(model: &Arc<Model>) -> Run {
    let mut session =
        Session::new(model, &SessionOptions { max_text_tokens: 40, ..SessionOptions::default() }).unwrap();
    let mut run = Run { image: vec![], answer: vec![], slots: vec![] };
    session.begin("robot", &INSTRUCTION).unwrap();
    let mut chunk = ActionChunk::default();
    for step in 0..STEPS {
        session.score_image(&codes(step), &mut |_, l| run.image.push(l.to_vec())).unwrap();
        session.push_state(&value(step)).unwrap();
        session.score_answer(&QUESTION, &ANSWER, &mut |_, l| run.answer.push(l.to_vec())).unwrap();
        session.score_act(&mut chunk, &mut |_, l| run.slots.push(l.to_vec())).unwrap();
        session.push_action(&[value(step), value(step + 1)].concat()).unwrap();
    }
    run
}

#[allow(clippy::cast_precision_loss)]
fn value(step: usize) -> [f32; 2] {
    [(step as f32 * 0.37).sin(), (step as f32 * 0.91).cos()]
}

/// The same sequence, written out as segments with explicit visibility, through the oracle.
fn expected(c: &UnimodalConfig, t: &Tensors) -> [Vec<Vec<f64>>; 3] {
    let bin = |v: f32| ((v + 1.0) / 2.0 * 256.0).floor().clamp(0.0, 255.0) as u32 + c.tokens.bins[0];
    let mut all = vec![Segment {
        modality: Modality::Text,
        inputs: (0..4).map(Input::Prefix).chain(INSTRUCTION.map(Input::Token)).collect(),
        live: vec![],
        slots: false,
    }];
    // Trunk segments by modality, in order; what is live is the first segment and the last two of each.
    let mut trunk: Vec<(usize, Modality)> = vec![];
    let (mut images, mut answers, mut slots) = (vec![], vec![], vec![]);
    let live = |trunk: &[(usize, Modality)], pushed: Option<Modality>| -> Vec<usize> {
        let mut keep = vec![0];
        for (i, &(at, m)) in trunk.iter().enumerate() {
            let newer = trunk[i + 1..].iter().filter(|(_, other)| *other == m).count()
                + usize::from(pushed == Some(m));
            if newer < 2 {
                keep.push(at);
            }
        }
        keep
    };
    for step in 0..STEPS {
        let image: Vec<Input> = std::iter::once(Input::Token(c.special.img))
            .chain(codes(step).into_iter().enumerate().map(|(i, code)| Input::Code(code, i)))
            .chain([Input::Token(c.special.img_end)])
            .collect();
        let state = [Input::Token(c.special.state)]
            .into_iter()
            .chain(value(step).map(|v| Input::Token(bin(v))))
            .collect();
        let acted = [Input::Token(c.special.act)]
            .into_iter()
            .chain([value(step), value(step + 1)].concat().into_iter().map(|v| Input::Token(bin(v))))
            .collect();
        let ask = std::iter::once(c.special.ask)
            .chain(QUESTION)
            .chain([c.special.ans])
            .chain(ANSWER)
            .map(Input::Token)
            .collect();
        for (modality, inputs, stays, is_slots) in [
            (Modality::Image, image, true, false),
            (Modality::State, state, true, false),
            (Modality::Text, ask, false, false),
            (Modality::Action, (0..6).map(Input::Slot).collect(), false, true),
            (Modality::Action, acted, true, false),
        ] {
            let at = all.len();
            let live = live(&trunk, stays.then_some(modality));
            all.push(Segment { modality, inputs, live, slots: is_slots });
            if stays {
                trunk.push((at, modality));
            }
            match modality {
                Modality::Image => images.push(at),
                Modality::Text => answers.push(at),
                Modality::Action if is_slots => slots.push(at),
                _ => {}
            }
        }
    }
    let oracle = Oracle { c, t };
    let hidden = oracle.forward(&all);
    let collect = |segments: &[usize], rows: std::ops::Range<usize>, range| -> Vec<Vec<f64>> {
        segments
            .iter()
            .flat_map(|&s| {
                hidden[s][rows.clone()].iter().map(|h| oracle.logits(h, range)).collect::<Vec<_>>()
            })
            .collect()
    };
    let asked = 1 + QUESTION.len();
    [
        collect(&images, 0..4, c.tokens.image),
        collect(&answers, asked..asked + 1 + ANSWER.len(), c.tokens.text),
        collect(&slots, 0..6, c.tokens.bins),
    ]
}

#[test]
fn a_long_run_with_evictions_equals_the_definition() {
    let c = tiny();
    let t = random_tensors(&c, 1);
    let [image, answer, slots] = expected(&c, &t);
    let found = run(&model(&c, &t, WeightDtype::F32));
    for (what, found, expected) in
        [("image", &found.image, &image), ("answer", &found.answer, &answer), ("slots", &found.slots, &slots)]
    {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert_close(f, e, 1e-4, &format!("{what} row {i}"));
        }
    }
}

#[test]
fn int8_stays_near_the_definition() {
    let c = tiny();
    let t = random_tensors(&c, 2);
    let [image, answer, slots] = expected(&c, &t);
    let found = run(&model(&c, &t, WeightDtype::Int8));
    // Random weights have no margins: this bounds gross faults, the quality of real weights is `compare`'s business.
    for (what, found, expected) in
        [("image", &found.image, &image), ("answer", &found.answer, &answer), ("slots", &found.slots, &slots)]
    {
        assert_eq!(found.len(), expected.len(), "{what}");
        let mean = found.iter().zip(expected).map(|(f, e)| kl(f, e)).sum::<f64>()
            / f64::from(u32::try_from(found.len()).unwrap());
        assert!(mean < 0.01, "{what}: mean KL {mean}");
    }
}

/// Prefill of a whole answer gives, at every place, the logits of decoding it token by token: bit for bit, since
/// integers are exact and floats are summed in one order whatever the number of rows.
#[test]
fn prefill_equals_decode() {
    let c = tiny();
    let t = random_tensors(&c, 3);
    for dtype in [WeightDtype::Int8, WeightDtype::F16, WeightDtype::F32] {
        let model = model(&c, &t, dtype);
        let mut session =
            Session::new(&model, &SessionOptions { max_text_tokens: 80, ..SessionOptions::default() })
                .unwrap();
        session.begin("vqa", &[]).unwrap();
        session.push_image(&codes(3)).unwrap();
        let answer: Vec<u32> = (0..70).map(|i| 10 + (i * 7) % 80).collect();
        let mut whole = vec![];
        session.score_answer(&QUESTION, &answer, &mut |_, l| whole.push(l.to_vec())).unwrap();
        assert_eq!(whole.len(), answer.len() + 1);
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 70] {
            let mut last = vec![];
            session.score_answer(&QUESTION, &answer[..len], &mut |_, l| last = l.to_vec()).unwrap();
            assert_eq!(last, whole[len], "{dtype:?} after {len} tokens");
        }
        let mut greedy = vec![];
        session.answer(&QUESTION, 20, &mut Sampler::greedy(), &mut greedy, &mut |_| true).unwrap();
        let mut scored = vec![];
        session
            .score_answer(&QUESTION, &greedy, &mut |_, l| {
                scored.push(saccade::sample::argmax(l).unwrap() as u32)
            })
            .unwrap();
        assert_eq!(&scored[..greedy.len()], &greedy[..], "{dtype:?}");
    }
}

#[test]
fn branches_leave_nothing_behind() {
    let c = tiny();
    let t = random_tensors(&c, 4);
    let model = model(&c, &t, WeightDtype::Int8);
    let mut session =
        Session::new(&model, &SessionOptions { max_text_tokens: 40, ..SessionOptions::default() }).unwrap();
    session.begin("robot", &[]).unwrap();
    session.push_image(&codes(0)).unwrap();
    let (live, mut out, mut chunk) = (session.live_tokens(), vec![], ActionChunk::default());
    let ask = |session: &mut Session, out: &mut Vec<u32>| {
        session.answer(&QUESTION, 12, &mut Sampler::greedy(), out, &mut |_| true).unwrap()
    };
    ask(&mut session, &mut out);
    let first = out.clone();
    for _ in 0..50 {
        session.act(&mut chunk).unwrap();
        ask(&mut session, &mut out);
        assert_eq!(out, first);
    }
    assert_eq!(session.live_tokens(), live);
    assert_eq!(chunk.values.len(), c.chunk_len());
}

/// A thousand frames: memory stays bounded and the same input gives the same output however old the session is.
#[test]
fn nothing_drifts() {
    let c = tiny();
    let t = random_tensors(&c, 5);
    let model = model(&c, &t, WeightDtype::Int8);
    let mut session =
        Session::new(&model, &SessionOptions { max_text_tokens: 8, ..SessionOptions::default() }).unwrap();
    session.begin("robot", &INSTRUCTION).unwrap();
    let mut seen = vec![];
    let mut chunk = ActionChunk::default();
    for step in 0..1000 {
        session.push_image(&codes(step % 4)).unwrap();
        session.push_state(&value(step % 4)).unwrap();
        session.act(&mut chunk).unwrap();
        seen.push(chunk.bins.clone());
    }
    // The receptive field is (layers × window) steps; beyond that a period of four repeats exactly.
    for step in 100..996 {
        assert_eq!(seen[step], seen[step + 4], "step {step}");
    }
}

#[test]
fn every_misuse_is_one_sentence() {
    let c = tiny();
    let t = random_tensors(&c, 7);
    let model = model(&c, &t, WeightDtype::Int8);
    let mut session =
        Session::new(&model, &SessionOptions { max_text_tokens: 8, ..SessionOptions::default() }).unwrap();
    let mut images = ImageTokenizer::new(&model).unwrap();
    let mut out = vec![];
    let greedy = &mut Sampler::greedy();
    session.begin("robot", &[]).unwrap();
    let cases = [
        (session.begin("fly", &[]), "robot, vqa, text"),
        (session.begin("robot", &[999]), "999"),
        (session.begin("robot", &[9; 9]), "room for 8"),
        (session.push_image(&[0; 3]), "image"),
        (session.push_image(&[0, 0, 64, 0]), "64"),
        (session.push_state(&[0.0]), "state"),
        (session.push_state(&[0.0, f32::NAN]), "not a finite number"),
        (session.push_action(&[0.0; 6]), "action"),
        (session.push_action(&[0.0; 3]), "action"),
        (session.answer(&[400], 4, greedy, &mut out, &mut |_| true).map(drop), "400"),
        (session.score_answer(&[1; 5], &[1; 5], &mut |_, _| {}), "10 tokens"),
        (images.encode(Picture::rgb(&[0; 11], 2, 2), &mut vec![]), "2 × 2"),
        (images.encode(Picture::rgb(&[], 0, 0), &mut vec![]), "0 × 0"),
        (images.encode(Picture::rgb(&[], usize::MAX, 3), &mut vec![]), "pixels"),
        (images.decode(&[1; 5], &mut vec![]), "5 values"),
    ];
    for (i, (result, part)) in cases.into_iter().enumerate() {
        let sentence = result.expect_err(&format!("case {i}")).sentence();
        assert!(sentence.contains(part), "case {i}: {sentence}");
    }
    session.push_image(&codes(1)).unwrap();
}

#[test]
fn every_call_before_begin_is_refused() {
    let c = tiny();
    let t = random_tensors(&c, 7);
    let model = model(&c, &t, WeightDtype::Int8);
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    let (greedy, mut chunk, mut out) = (&mut Sampler::greedy(), ActionChunk::default(), vec![]);
    let mut check = |session: &mut Session| {
        let results = [
            session.push_image(&codes(0)),
            session.score_image(&codes(0), &mut |_, _| {}),
            session.push_state(&value(0)),
            session.push_action(&value(0)),
            session.act(&mut chunk),
            session.score_act(&mut chunk, &mut |_, _| {}),
            session.answer(&QUESTION, 4, greedy, &mut out, &mut |_| true).map(drop),
            session.score_answer(&QUESTION, &ANSWER, &mut |_, _| {}),
        ];
        for (i, result) in results.into_iter().enumerate() {
            let sentence = result.expect_err(&format!("case {i}")).sentence();
            assert!(sentence.contains("call `begin` first"), "case {i}: {sentence}");
        }
        assert_eq!(session.live_tokens(), 0);
    };
    check(&mut session);
    session.begin("robot", &[]).unwrap();
    session.push_image(&codes(0)).unwrap();
    session.reset();
    check(&mut session);
}

#[test]
fn a_session_larger_than_memory_is_refused_before_it_is_made() {
    let c = tiny();
    let t = random_tensors(&c, 7);
    let model = model(&c, &t, WeightDtype::Int8);
    for max_text_tokens in [1 << 40, 1 << 60, usize::MAX - 1, usize::MAX] {
        let error = Session::new(&model, &SessionOptions { max_text_tokens, ..SessionOptions::default() })
            .unwrap_err();
        let sentence = error.sentence();
        assert!(sentence.starts_with("a session on this model needs"), "{sentence}");
        assert!(sentence.contains("MiB are available"), "{sentence}");
    }
}

#[test]
fn weights_are_the_same_through_small_pages() {
    let dir = tempfile::tempdir().unwrap();
    let c = tiny();
    write_bundle(dir.path(), &c, &random_tensors(&c, 1), WeightDtype::Int8);
    let small = Model::open_in(dir.path(), &EngineOptions::default(), Pages::Small).unwrap();
    assert!(small.mapped() == std::fs::read(dir.path().join(WEIGHTS_FILE)).unwrap());
    assert!(small.huge_bytes().is_none_or(|bytes| bytes == 0));
}
