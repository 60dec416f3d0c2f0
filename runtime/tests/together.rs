//! Sessions that decode together say what each says alone.

// Test code: a failed `unwrap` is a failed test, and every number here is small.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod oracle;

use std::sync::Arc;

use oracle::bundle::model;
use oracle::{random_tensors, tiny};
use saccade::config::WeightDtype;
use saccade::family::Model;
use saccade::sample::argmax;
use saccade::session::{Session, SessionOptions, step};

const STEPS: usize = 12;

fn session(model: &Arc<Model>, max_sequences: usize) -> Session {
    Session::new(model, &SessionOptions { max_text_tokens: 40, max_sequences }).unwrap()
}

/// A session with a history and a question of its own: another length for each `i`, one of them empty.
fn with_a_past(model: &Arc<Model>, i: usize, max_sequences: usize) -> Session {
    let mut session = session(model, max_sequences);
    let ids = |n: usize| (0..n).map(|at| 10 + ((at * 7 + i * 3) % 80) as u32).collect::<Vec<_>>();
    session.begin(["robot", "vqa"][i % 2], &ids(9 * i)).unwrap();
    for frame in 0..i % 3 {
        let codes: Vec<u16> = (0..4).map(|at| ((frame * 17 + at * 5 + i) % 64) as u16).collect();
        session.push_image(&codes).unwrap();
    }
    session.open(&ids(2 * i)).unwrap();
    session
}

/// The logits of every step of every session.
fn logits(sessions: &mut [Session], groups: &[&[usize]]) -> Vec<Vec<f32>> {
    let mut seen = vec![vec![]; sessions.len()];
    for _ in 0..STEPS {
        for group in groups {
            let mut together: Vec<&mut Session> = Vec::new();
            let mut rest = &mut sessions[..];
            let mut from = 0;
            for &i in *group {
                let (one, tail) = rest[i - from..].split_first_mut().unwrap();
                together.push(one);
                (rest, from) = (tail, i + 1);
            }
            step(&mut together, &mut |i, logits| {
                seen[group[i]].extend_from_slice(logits);
                argmax(logits).unwrap()
            })
            .unwrap();
        }
    }
    seen
}

#[test]
fn together_is_what_each_says_alone() {
    let c = tiny();
    let t = random_tensors(&c, 11);
    for dtype in [WeightDtype::Int8, WeightDtype::F32] {
        let (model, vocabulary) = (model(&c, &t, dtype), c.tokens.text[1] as usize);
        let sessions = || (0..5).map(|i| with_a_past(&model, i, 5)).collect::<Vec<_>>();
        let alone = logits(&mut sessions(), &[&[0], &[1], &[2], &[3], &[4]]);
        assert!(alone.iter().all(|l| l.len() == STEPS * vocabulary && l.iter().all(|x| x.is_finite())));
        for groups in [&[&[0, 1, 2, 3, 4][..]][..], &[&[0, 4], &[1, 2, 3]], &[&[2, 3], &[0, 1, 4]]] {
            assert!(logits(&mut sessions(), groups) == alone, "{dtype:?} in {groups:?}");
        }
        // One that joins later than the others, and one that has left.
        let mut late = sessions();
        let (first, others) = late.split_first_mut().unwrap();
        let mut seen = vec![];
        let pick = |logits: &[f32]| argmax(logits).unwrap();
        step(&mut [&mut *first], &mut |_, l| pick(l)).unwrap();
        step(&mut [&mut *first, &mut others[2]], &mut |_, l| pick(l)).unwrap();
        others[2].close();
        step(&mut [first], &mut |_, l| {
            seen.extend_from_slice(l);
            pick(l)
        })
        .unwrap();
        assert!(seen == alone[0][2 * vocabulary..3 * vocabulary], "{dtype:?}");
    }
}

#[test]
fn a_step_that_cannot_be_is_one_sentence() {
    let c = tiny();
    let t = random_tensors(&c, 12);
    let (one, two) = (model(&c, &t, WeightDtype::Int8), model(&c, &t, WeightDtype::Int8));
    let mut pick = |_: usize, logits: &[f32]| argmax(logits).unwrap();
    let says = |result: saccade::Result<()>, part: &str| {
        let sentence = result.unwrap_err().to_string();
        assert!(sentence.contains(part) && !sentence.contains('\n'), "{sentence}");
    };
    step(&mut [], &mut pick).unwrap();
    let (mut a, mut b) = (with_a_past(&one, 1, 2), with_a_past(&one, 2, 1));
    says(step(&mut [&mut b, &mut a], &mut pick), "max_sequences");
    says(step(&mut [&mut a, &mut with_a_past(&two, 1, 2)], &mut pick), "one model");
    let mut large = Session::new(&one, &SessionOptions { max_text_tokens: 400, max_sequences: 2 }).unwrap();
    large.begin("robot", &[]).unwrap();
    says(step(&mut [&mut a, &mut large], &mut pick), "no answer open");
    large.open(&[]).unwrap();
    says(step(&mut [&mut a, &mut large], &mut pick), "more tokens than the first");
    step(&mut [&mut large, &mut a], &mut pick).unwrap();

    says(a.push_image(&[0; 4]), "answer is open");
    says(a.open(&[]), "answer is open");
    a.close();
    a.push_image(&[0; 4]).unwrap();
    a.open(&[12; 40]).unwrap();
    let error = loop {
        match step(&mut [&mut a], &mut pick) {
            Ok(()) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("40 text") || error.contains("room for 40"), "{error}");

    // A choice that is not there ends every answer of the step, and both sessions go on as new ones would.
    let (mut a, mut b) = (with_a_past(&one, 3, 2), with_a_past(&one, 4, 2));
    step(&mut [&mut a, &mut b], &mut pick).unwrap();
    let mut wrong = |i: usize, _: &[f32]| if i == 1 { usize::MAX } else { 0 };
    says(step(&mut [&mut a, &mut b], &mut wrong), "was chosen");
    says(step(&mut [&mut a, &mut b], &mut pick), "no answer open");
    let first = |session: &mut Session| {
        let mut seen = vec![];
        session.open(&[14]).unwrap();
        step(&mut [session], &mut |_, logits| {
            seen.extend_from_slice(logits);
            0
        })
        .unwrap();
        seen
    };
    for (session, i) in [(&mut a, 3), (&mut b, 4)] {
        let mut new = with_a_past(&one, i, 2);
        new.close();
        assert!(first(session) == first(&mut new));
    }
}

#[test]
fn the_logits_after_a_prompt_are_those_of_its_last_token() {
    let c = tiny();
    let t = random_tensors(&c, 13);
    for dtype in [WeightDtype::Int8, WeightDtype::F32] {
        let model = model(&c, &t, dtype);
        let mut session = session(&model, 1);
        let logits = |session: &mut Session, ids: &[u32]| {
            let mut seen = vec![];
            session.score_begin("robot", ids, &mut |logits| seen.push(logits.to_vec())).unwrap();
            assert_eq!(seen.len(), 1, "once");
            seen.remove(0)
        };
        let [short, long] = [&[12, 30, 41][..], &[12, 30, 41, 77]].map(|ids| logits(&mut session, ids));
        assert_eq!(short.len(), c.tokens.text[1] as usize);
        assert!(short != long);
        assert!(logits(&mut session, &[12, 30, 41]) == short, "{dtype:?}: nothing of the longer one is left");
        assert!(logits(&mut session, &[]).iter().all(|x| x.is_finite()));
    }
}
