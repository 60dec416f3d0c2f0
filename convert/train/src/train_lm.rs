//! The loop of stages two and three: mixed sequences, windows in the mask, checkpoints that resume exactly.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::batch::Batch;
use crate::corpus::{PictureSet, RobotSet, Shape};
use crate::error::{Error, Result};
use crate::layout::{Dims, ids};
use crate::lm::{self, Precision};
use crate::log_file::RunLog;
use crate::ops::Fused;
use crate::pack::{Head, Sequence};
use crate::params::{Optimiser, Params, host};

/// Everything that sequences are drawn from.
pub struct Corpus {
    /// Episodes, if there are any.
    pub robot: Option<RobotSet>,
    /// Pictures with questions, by name.
    pub pictures: Vec<(String, PictureSet)>,
    /// What validation is measured on.
    pub validation: Validation,
}

/// Plain sequences that training never draws.
#[derive(Default)]
pub struct Validation {
    /// By name.
    pub sets: Vec<(String, Vec<Sequence>)>,
}

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct LmRun {
    /// Where checkpoint and log go.
    pub out: PathBuf,
    /// The checkpoint's file name.
    pub checkpoint: &'static str,
    /// `pretrain` or `tune`.
    pub stage: &'static str,
    /// Optimiser steps.
    pub steps: usize,
    /// Steps over which the learning rate falls; more than `steps` in a run that is meant to be resumed.
    pub schedule: usize,
    /// Tokens of one packed batch.
    pub tokens: usize,
    /// Packed batches a step, each of one data set.
    pub accumulate: usize,
    /// Learning rate at its peak.
    pub lr: f64,
    /// What it falls to, as a share of the peak.
    pub lr_floor: f64,
    /// Steps of warm-up.
    pub warm_up: usize,
    /// Temperature of the mixture: a set of n questions is drawn with p ∝ n^(1/τ).
    pub tau: f64,
    /// Weight of the loss on image codes.
    pub image_weight: f64,
    /// Precision of the forward pass.
    pub precision: Precision,
    /// Seed of everything random.
    pub seed: u64,
    /// Seconds between checkpoints.
    pub save_every_s: f64,
    /// Steps between validations.
    pub validate_every: usize,
}

/// The most questions that hang at one picture.
const MOST_QUESTIONS: usize = 12;

impl Corpus {
    /// Names of the sets with the probability of each.
    fn mixture(&self, tau: f64) -> Vec<(String, f64)> {
        let mut sets: Vec<(String, f64)> =
            self.robot.iter().map(|r| ("robot".to_owned(), (r.questions() as f64).powf(1.0 / tau))).collect();
        sets.extend(self.pictures.iter().map(|(n, p)| (n.clone(), (p.questions() as f64).powf(1.0 / tau))));
        let total: f64 = sets.iter().map(|s| s.1).sum();
        sets.iter_mut().for_each(|s| s.1 /= total);
        sets
    }

    /// One batch of about `tokens` tokens from a random set; its name and sequences.
    fn draw(
        &self,
        dims: &Dims,
        mix: &[(String, f64)],
        tokens: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<(String, Vec<Sequence>)> {
        let mut at = rng.random::<f64>();
        let name = mix.iter().find(|(_, p)| {
            at -= p;
            at < 0.0
        });
        let name = name.or(mix.last()).map(|s| s.0.clone()).unwrap_or_default();
        let shape = Shape::draw(rng);
        let mut out = Vec::new();
        let mut sum = 0;
        while sum < tokens {
            let s = match (&self.robot, self.pictures.iter().find(|(n, _)| *n == name)) {
                (_, Some((_, set))) => set.draw(dims, MOST_QUESTIONS, rng),
                (Some(set), None) => set.draw(dims, &shape, rng)?,
                (None, None) => {
                    return Err(Error::Setting("there is nothing to train on; run `encode` first".into()));
                }
            };
            sum += s.len();
            out.push(s);
        }
        Ok((name, out))
    }
}

/// A model in training.
pub struct Trainee<B: AutodiffBackend> {
    /// Its parameters.
    pub params: Params<B>,
    /// Its sizes.
    pub dims: Dims,
}

/// What one step measured, averaged over its batches.
#[derive(Debug, Clone, Default)]
pub struct StepLoss {
    /// Mean of the weighted loss.
    pub total: f64,
    /// Sum, share of right predictions and count of the batches that had each head.
    heads: [(f64, f64, f64); 3],
}

impl StepLoss {
    fn json(&self) -> Value {
        let mut out = json!({"loss": self.total});
        for (name, (loss, right, n)) in ["text", "action", "image"].iter().zip(self.heads) {
            if n > 0.0 {
                out[format!("{name}_loss")] = json!(loss / n);
                out[format!("{name}_accuracy")] = json!(right / n);
            }
        }
        out
    }
}

impl<B: AutodiffBackend + Fused> Trainee<B>
where
    B::InnerBackend: Fused,
{
    /// The weighted loss of one batch, its backward pass added to `sum`.
    fn accumulate(
        &self,
        run: &LmRun,
        sequences: &[Sequence],
        leaves: &crate::params::Leaves<B>,
        seen: &mut StepLoss,
    ) -> Tensor<B, 1> {
        let batch = Batch::<B>::new(sequences, &self.dims, self.params.device());
        let x = lm::forward(leaves, &self.dims, &batch, run.precision);
        let weights = [1.0, 1.0, run.image_weight];
        let mut total = Tensor::<B, 1>::zeros([1], self.params.device());
        for (head, weight) in weights.into_iter().enumerate() {
            let Some(l) = lm::head_loss(leaves, &self.dims, &batch, &x, head, run.precision) else {
                continue;
            };
            let slot = &mut seen.heads[head];
            slot.0 += f64::from(host(&l.loss.clone().inner())[0]);
            slot.1 += f64::from(host(&l.accuracy.inner())[0]);
            slot.2 += 1.0;
            total = total + l.loss.mul_scalar(weight);
        }
        let total = total.div_scalar(run.accumulate as f64);
        seen.total += f64::from(host(&total.clone().inner())[0]);
        total
    }

    /// Share of answers (text), chunk bins and image codes that the model gets right, teacher-forced, by set.
    pub fn validate(&self, validation: &Validation, precision: Precision, tokens: usize) -> Value {
        let leaves = self.params.frozen();
        let mut out = json!({});
        for (name, sequences) in &validation.sets {
            let mut answers = (0usize, 0usize);
            let mut right = [(0.0f64, 0usize); 3];
            let mut rest = sequences.as_slice();
            while !rest.is_empty() {
                let mut sum = 0;
                let many = rest.iter().take_while(|s| {
                    sum += s.len();
                    sum < tokens
                });
                let (part, after) = rest.split_at(many.count().max(1));
                rest = after;
                let batch = Batch::<B::InnerBackend>::new(part, &self.dims, self.params.device());
                let x = lm::forward(&leaves, &self.dims, &batch, precision);
                for (head, right) in right.iter_mut().enumerate() {
                    let Some(logits) = lm::logits(&leaves, &self.dims, &batch, &x, head, precision) else {
                        continue;
                    };
                    let best = logits.argmax(1).into_data();
                    let start = [0, self.dims.bins().start, self.dims.image_codes().start][head];
                    let wanted = part.iter().flat_map(|s| &s.targets).filter(|t| t.head as usize == head);
                    let mut whole = true;
                    for (best, t) in best.iter::<i64>().zip(wanted) {
                        let hit = usize::try_from(best).ok() == Some(t.id as usize - start);
                        right.0 += f64::from(u8::from(hit));
                        right.1 += 1;
                        whole &= hit;
                        if t.head == Head::Text && t.id == ids::EOS {
                            answers.0 += usize::from(whole);
                            answers.1 += 1;
                            whole = true;
                        }
                    }
                }
            }
            let share = |(sum, n): (f64, usize)| if n > 0 { json!(sum / n as f64) } else { Value::Null };
            out[name] = json!({
                "answers": answers.1,
                "answer_exact": share((answers.0 as f64, answers.1)),
                "text_token": share(right[0]),
                "action_bin": share(right[1]),
                "image_code": share(right[2]),
            });
        }
        out
    }
}

/// Where a run stands, stored in its checkpoint.
///
/// Tokens are counted with every repetition.
#[derive(serde::Serialize, serde::Deserialize)]
struct Progress {
    step: usize,
    tokens: usize,
    tokens_by_set: BTreeMap<String, usize>,
    rng: ChaCha8Rng,
}

/// Runs the loop, resuming where its checkpoint ends; `trainee` holds the first values. Returns what the provenance tells.
///
/// # Errors
/// If there is nothing to train on or the output folder cannot be written.
pub fn train<B: AutodiffBackend + Fused>(
    run: &LmRun,
    trainee: &mut Trainee<B>,
    corpus: &Corpus,
) -> Result<Value>
where
    B::InnerBackend: Fused,
{
    let mut log = RunLog::open(&run.out, run.stage, run.steps)?;
    let path = run.out.join(run.checkpoint);
    let mut at = Progress {
        step: 0,
        tokens: 0,
        tokens_by_set: BTreeMap::new(),
        rng: ChaCha8Rng::seed_from_u64(run.seed),
    };
    if path.is_file() {
        let meta = trainee.params.load(&path)?;
        let stored = meta.get("progress").and_then(|p| serde_json::from_str(p).ok());
        at = stored
            .ok_or_else(|| Error::content(&path, "has no progress; remove it to start this stage again"))?;
        log::info!("resuming {} at step {}", path.display(), at.step);
    }
    let mix = corpus.mixture(run.tau);
    log.line(json!({"parameters": trainee.params.count(), "mixture": mix, "steps": run.steps, "tokens_a_batch": run.tokens}))?;
    let opt = Optimiser::default();
    let (mut saved_s, mut line_s, mut line_tokens) = (log.seconds(), log.seconds(), at.tokens);
    while at.step < run.steps {
        let leaves = trainee.params.leaves();
        let mut seen = StepLoss::default();
        let mut names = Vec::new();
        let mut total: Option<Tensor<B, 1>> = None;
        for _ in 0..run.accumulate {
            let (name, sequences) = corpus.draw(&trainee.dims, &mix, run.tokens, &mut at.rng)?;
            let tokens = sequences.iter().map(Sequence::len).sum::<usize>();
            at.tokens += tokens;
            *at.tokens_by_set.entry(name.clone()).or_default() += tokens;
            names.push(name);
            let loss = trainee.accumulate(run, &sequences, &leaves, &mut seen);
            total = Some(match total {
                Some(sum) => sum + loss,
                None => loss,
            });
        }
        let Some(total) = total else { return Err(Error::Setting("a step needs at least one batch".into())) };
        let mut grads = total.backward();
        at.step += 1;
        let lr = run.lr * crate::schedule(at.step, run.schedule, run.warm_up, run.lr_floor);
        let norm = trainee.params.update(&leaves, &mut grads, lr, at.step, &opt);
        log.at(at.step, format!("loss {:.3}", seen.total));
        let last = at.step == run.steps;
        let mut line = seen.json();
        line["step"] = json!(at.step);
        line["sets"] = json!(names);
        line["norm"] = json!(norm);
        line["lr"] = json!(lr);
        if at.step.is_multiple_of(20) || last {
            let now = log.seconds();
            line["tokens"] = json!(at.tokens);
            line["tokens_per_s"] =
                json!(((at.tokens - line_tokens) as f64 / (now - line_s).max(1e-9)).round());
            (line_s, line_tokens) = (now, at.tokens);
        }
        if at.step.is_multiple_of(run.validate_every) || last {
            let validation = trainee.validate(&corpus.validation, run.precision, 2 * run.tokens);
            log::info!("step {} validation {validation}", at.step);
            line["validation"] = validation;
        }
        log.line(line)?;
        if log.seconds() - saved_s > run.save_every_s || last {
            saved_s = log.seconds();
            save(trainee, &path, &at)?;
        }
    }
    Ok(json!({
        "steps": at.step, "tokens": at.tokens, "tokens_by_set": at.tokens_by_set, "tokens_a_batch": run.tokens,
        "batches_a_step": run.accumulate, "lr": run.lr, "tau": run.tau, "seed": run.seed,
    }))
}

fn save<B: AutodiffBackend>(trainee: &Trainee<B>, path: &Path, at: &Progress) -> Result<()> {
    trainee.params.save(path, HashMap::from([("progress".to_owned(), json!(at).to_string())]))
}
