//! A number that is none does not outlive the step that made it.

// Test code: a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod oracle;

use oracle::bundle::model;
use oracle::{random_tensors, tiny};
use saccade::Error;
use saccade::config::WeightDtype;
use saccade::sample::Sampler;
use saccade::session::{ActionChunk, Session, SessionError, SessionOptions};

const DTYPES: [WeightDtype; 3] = [WeightDtype::Int8, WeightDtype::F16, WeightDtype::F32];

/// Only these tokens, this task and this value are poisoned.
const BAD_CODE: u16 = 7;
const BAD_TOKEN: u32 = 33;
const BAD_TASK: &str = "vqa";

/// Sessions on models of every kind, made of the same weights: one to have faults, one to have none.
fn pairs() -> Vec<(String, Session, Session)> {
    let c = tiny();
    let mut pairs = vec![];
    for dtype in DTYPES {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut t = random_tensors(&c, 8);
            for (name, row) in [
                ("embed.weight", c.tokens.image[0] as usize + usize::from(BAD_CODE)),
                ("embed.weight", BAD_TOKEN as usize),
                ("task_prefix.weight", c.task_prefix_len + 2),
            ] {
                t.get_mut(name).unwrap().1[row * c.d_model + 3] = poison;
            }
            let model = model(&c, &t, dtype);
            let session = || {
                Session::new(&model, &SessionOptions { max_text_tokens: 20, ..SessionOptions::default() })
                    .unwrap()
            };
            pairs.push((format!("{dtype:?} {poison}"), session(), session()));
        }
    }
    pairs
}

fn assert_fault(result: saccade::Result<()>, what: &str) {
    assert!(matches!(result, Err(Error::Session(SessionError::NumericFault))), "{what}: {result:?}");
}

/// The logits of a chunk of actions: they depend on everything that is live.
fn act(session: &mut Session) -> Vec<Vec<f32>> {
    let mut logits = vec![];
    session.score_act(&mut ActionChunk::default(), &mut |_, l| logits.push(l.to_vec())).unwrap();
    assert!(logits.iter().flatten().all(|l| l.is_finite()));
    logits
}

fn good(step: u16) -> [u16; 4] {
    [step, step + 10, step + 20, step + 30]
}

const BAD: [u16; 4] = [1, BAD_CODE, 2, 3];

#[test]
fn a_segment_with_a_fault_is_taken_back() {
    for (what, mut faulty, mut fresh) in pairs() {
        for session in [&mut faulty, &mut fresh] {
            session.begin("robot", &[20, 21]).unwrap();
            session.push_image(&good(11)).unwrap();
        }
        // More often than there are blocks, so that every one of them has been poisoned.
        for _ in 0..40 {
            let live = faulty.live_tokens();
            assert_fault(faulty.push_image(&BAD), &what);
            assert_eq!(faulty.live_tokens(), live, "{what}");
            // A state is shorter than a picture: part of the poison would stay beside it.
            for session in [&mut faulty, &mut fresh] {
                session.push_state(&[0.1, -0.2]).unwrap();
            }
            assert!(act(&mut faulty) == act(&mut fresh), "{what}");
        }
        for session in [&mut faulty, &mut fresh] {
            session.push_image(&good(12)).unwrap();
            session.push_action(&[0.3, 0.4]).unwrap();
        }
        assert!(act(&mut faulty) == act(&mut fresh), "{what}");
        // The window was full, so the fault costs the oldest picture; so does the next picture without one.
        assert_fault(faulty.push_image(&BAD), &what);
        for session in [&mut faulty, &mut fresh] {
            session.push_image(&good(13)).unwrap();
        }
        assert!(act(&mut faulty) == act(&mut fresh), "{what}");
    }
}

#[test]
fn a_question_with_a_fault_leaves_nothing_behind() {
    for (what, mut faulty, mut fresh) in pairs() {
        for session in [&mut faulty, &mut fresh] {
            session.begin("robot", &[20, 21]).unwrap();
            session.push_image(&good(11)).unwrap();
        }
        for _ in 0..20 {
            let (greedy, mut out) = (&mut Sampler::greedy(), vec![]);
            let answered = faulty.answer(&[20, BAD_TOKEN], 4, greedy, &mut out, &mut |_| true);
            assert_fault(answered.map(drop), &what);
            // Here the question is sound, but one of the logits is no number.
            assert_fault(faulty.score_answer(&[20], &[21], &mut |_, _| panic!("{what}")), &what);
            assert_fault(faulty.score_image(&good(12), &mut |_, _| panic!("{what}")), &what);
            assert!(out.is_empty(), "{what}");
        }
        // The pictures that were scored took none with them: the window had room.
        for session in [&mut faulty, &mut fresh] {
            session.push_state(&[0.1, -0.2]).unwrap();
        }
        assert!(act(&mut faulty) == act(&mut fresh), "{what}");
    }
}

#[test]
fn a_task_with_a_fault_leaves_an_empty_session() {
    for (what, mut faulty, mut fresh) in pairs() {
        faulty.begin("robot", &[20]).unwrap();
        for _ in 0..20 {
            assert_fault(faulty.begin(BAD_TASK, &[20]), &what);
            assert_fault(faulty.begin("robot", &[20, BAD_TOKEN]), &what);
        }
        assert_eq!(faulty.live_tokens(), 0, "{what}");
        let error = faulty.push_image(&good(1)).unwrap_err();
        assert!(matches!(error, Error::Session(SessionError::NotBegun)), "{what}: {error:?}");
        for session in [&mut faulty, &mut fresh] {
            session.begin("robot", &[20]).unwrap();
            session.push_image(&good(1)).unwrap();
        }
        assert!(act(&mut faulty) == act(&mut fresh), "{what}");
    }
}
