//! Answers to questions that begin as the last one did: the same, bit for bit, as if everything were computed anew.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use saccade::config::WeightDtype;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::kernels::Kernels;
use saccade::sample::{Sampler, argmax};
use saccade::session::{Session, SessionOptions, step};
use saccade_convert::bundle::convert;
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::progress::Progress;
use tempfile::TempDir;

fn bundle(checkpoint: &str, dtype: WeightDtype) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(checkpoint);
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    convert(&mut checkpoint, &dir.path().join("bundle"), dtype, false, &mut Progress::silent()).unwrap();
    dir
}

fn open(bundle: &TempDir, kernels: Option<&'static str>, threads: usize) -> Arc<Model> {
    let options = EngineOptions { threads, kernels, ..EngineOptions::default() };
    Model::open(bundle.path().join("bundle"), &options).unwrap()
}

fn session(model: &Arc<Model>) -> Session {
    Session::new(model, &SessionOptions { max_text_tokens: 120, ..SessionOptions::default() }).unwrap()
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| u32::try_from(3 + (i * 7 + i * i * seed) % 200).unwrap()).collect()
}

/// The greedy continuation and all logits on the way.
fn answer(session: &mut Session, question: &[u32], new: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let (mut said, mut seen) = (Vec::new(), Vec::new());
    session.open(question).unwrap();
    for _ in 0..new {
        step(&mut [&mut *session], &mut |_, logits| {
            seen.push(logits.to_vec());
            let best = argmax(logits).unwrap();
            said.push(u32::try_from(best).unwrap());
            best
        })
        .unwrap();
    }
    session.close();
    (said, seen)
}

/// Questions one after the other, and how many tokens of each are there already.
fn conversation(said: &[u32]) -> Vec<(Vec<u32>, usize)> {
    let first = ids(37, 1);
    // With the answer (its last token never went in) and a new turn.
    let second = [&first[..], said, &ids(21, 2)].concat();
    let mut edited = second.clone();
    edited[19] = 5;
    vec![
        (second.clone(), first.len() + said.len() - 1),
        // Said again: the last token goes in once more.
        (second[..50].to_vec(), 49),
        (edited.clone(), 19),
        (edited[..16].to_vec(), 15),
        (ids(90, 3).into_iter().rev().collect(), 0),
        (first[..1].to_vec(), 0),
    ]
}

#[test]
fn reused_and_fresh_are_the_same_bits() {
    for dtype in [WeightDtype::Int8, WeightDtype::F16, WeightDtype::F32] {
        let bundle = bundle("llama/tiny.gguf", dtype);
        for set in Kernels::available() {
            for threads in [1, 3] {
                let what = format!("{dtype:?} {} {threads}", set.name);
                let model = open(&bundle, Some(set.name), threads);
                let mut reusing = session(&model);
                reusing.reuse_prompts();
                let (said, _) = answer(&mut reusing, &ids(37, 1), 9);
                assert_eq!(reusing.reused_tokens(), 0);
                for (i, (question, reused)) in conversation(&said).into_iter().enumerate() {
                    let again = answer(&mut reusing, &question, 9);
                    assert_eq!(reusing.reused_tokens(), reused, "{what} question {i}");
                    assert!(again == answer(&mut session(&model), &question, 9), "{what} question {i}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_kept_unless_it_was_asked_for_or_after_a_reset() {
    let model = open(&bundle("llama/tiny.gguf", WeightDtype::Int8), None, 1);
    let mut plain = session(&model);
    answer(&mut plain, &ids(37, 1), 3);
    answer(&mut plain, &ids(37, 1), 3);
    assert_eq!(plain.reused_tokens(), 0);
    plain.reuse_prompts();
    answer(&mut plain, &ids(37, 1), 3);
    plain.reset();
    answer(&mut plain, &ids(37, 1), 3);
    assert_eq!(plain.reused_tokens(), 0);
    // What is kept gives way where the whole memory is needed, and scores are those of a fresh session.
    let (first, rest) = (ids(1, 1), ids(119, 2));
    let mut scores = [vec![], vec![]];
    for (session, scores) in [&mut plain, &mut session(&model)].into_iter().zip(&mut scores) {
        session.score_answer(&first, &rest, &mut |_, logits| scores.extend_from_slice(logits)).unwrap();
    }
    assert!(scores[0] == scores[1]);
    answer(&mut plain, &ids(120, 1), 1);
    assert_eq!(plain.reused_tokens(), 0, "a score leaves nothing");
    answer(&mut plain, &ids(120, 1), 1);
    assert_eq!(plain.reused_tokens(), 119);
}

#[test]
fn features_of_another_picture_are_never_reused() {
    let model = open(&bundle("hf/janus", WeightDtype::F32), None, 1);
    let (d, n) = (model.config().decoder().d_model, 16);
    let placeholder =
        Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/janus"))
            .map(|c| match c.model {
                saccade::config::ModelConfig::Janus(c) => c.vision.placeholder,
                other => panic!("{other:?}"),
            })
            .unwrap();
    let question = [vec![30, 31, 32, 33], vec![placeholder; n], vec![34, 35]].concat();
    let shown = |value: f32| vec![value; n * d];
    let ask = |session: &mut Session, value: f32| {
        session.show(&shown(value)).unwrap();
        answer(session, &question, 4)
    };
    let mut reusing = session(&model);
    reusing.reuse_prompts();
    let one = ask(&mut reusing, 0.5);
    let other = ask(&mut reusing, -0.25);
    assert_eq!(reusing.reused_tokens(), 4, "what stands before the picture");
    assert!(one.1 != other.1);
    assert!(other == ask(&mut session(&model), -0.25));
}

#[test]
fn an_answer_through_the_front_door_keeps_what_went_in() {
    let model = open(&bundle("llama/tiny.gguf", WeightDtype::Int8), None, 1);
    let mut session = session(&model);
    session.reuse_prompts();
    let (mut out, question) = (Vec::new(), ids(40, 4));
    session.answer(&question, 6, &mut Sampler::greedy(), &mut out, &mut |_| true).unwrap();
    let next = [&question[..], &out, &[3, 4]].concat();
    let said = out.len();
    session.answer(&next, 6, &mut Sampler::greedy(), &mut out, &mut |_| true).unwrap();
    assert!(
        session.reused_tokens() >= question.len() + said - 1,
        "{} of {}",
        session.reused_tokens(),
        next.len()
    );
}
