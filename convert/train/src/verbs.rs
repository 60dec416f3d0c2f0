//! The verbs that train: each reads what the one before it left in the run's folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use saccade_train::corpus::{Codes, PictureSet, RobotSet};
use saccade_train::data::Frames;
use saccade_train::data::episodes::{self, Episode, Episodes, Step};
use saccade_train::data::pictures::{self, Pictures};
use saccade_train::export::Ranges;
use saccade_train::layout::Dims;
use saccade_train::ledger::Ledger;
use saccade_train::lm::{self, Precision};
use saccade_train::params::{Params, write_whole};
use saccade_train::text;
use saccade_train::train_lm::{self, Corpus, LmRun, Trainee, Validation};
use saccade_train::train_vq::{self, Tokenizer, VqRun, planar};
use serde_json::json;

use crate::args::{BpeArgs, EncodeArgs, ExportArgs, Folders, GoldenArgs, LmArgs, TokenizerArgs};

#[cfg(feature = "tch")]
type Backend = burn::backend::Autodiff<burn::backend::LibTorch<f32>>;
#[cfg(all(feature = "flex", not(feature = "tch")))]
type Backend = burn::backend::Autodiff<burn::backend::Flex>;
#[cfg(all(feature = "cuda", not(feature = "flex"), not(feature = "tch")))]
type Backend = burn::backend::Autodiff<burn::backend::Cuda>;

/// The device to train on.
#[cfg(not(all(feature = "cuda", not(feature = "flex"), not(feature = "tch"))))]
fn device() -> anyhow::Result<burn::tensor::Device<Backend>> {
    Ok(Default::default())
}

/// The card to train on. The backend panics where there is none, so the driver's device file is looked for first.
#[cfg(all(feature = "cuda", not(feature = "flex"), not(feature = "tch")))]
fn device() -> anyhow::Result<burn::tensor::Device<Backend>> {
    if !["/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu"].iter().any(|p| Path::new(p).exists()) {
        bail!("this machine has no NVIDIA driver; build with `--features tch` to train on the processor");
    }
    Ok(Default::default())
}

/// Photos of each class that are trained on.
const PHOTOS_PER_CLASS: usize = 500;
/// Augmented variants of each picture, the plain one among them.
const PICTURE_VARIANTS: usize = 8;
/// Variants of each simulator frame.
const FRAME_VARIANTS: usize = 2;

/// Actions a second in Meta-World: five physics steps of 2.5 ms each.
const RATE_HZ: f32 = 80.0;

/// The folder of episodes that is trained on.
fn robot_folder(folders: &Folders) -> PathBuf {
    if let Some(path) = &folders.episodes {
        return path.clone();
    }
    let full = folders.data.join("metaworld-mt10");
    if full.join("meta/info.json").is_file() { full } else { folders.data.join("metaworld-mt10-small") }
}

fn read_robot(folder: &Path) -> anyhow::Result<Option<Episodes>> {
    if !folder.join("meta/info.json").is_file() {
        log::warn!("no episodes in {}: going on without them", folder.display());
        return Ok(None);
    }
    Ok(Some(episodes::read(folder)?))
}

fn read_photos(folders: &Folders) -> anyhow::Result<Pictures> {
    let root = folders.data.join("cifar10");
    if !root.is_dir() {
        log::warn!("no photos in {}: going on without them", root.display());
        return Ok(Pictures::default());
    }
    Ok(pictures::photos(&root, PHOTOS_PER_CLASS)?)
}

pub(crate) fn tokenizer(args: TokenizerArgs) -> anyhow::Result<()> {
    let folders = &args.folders;
    let vqa = pictures::easy_vqa(&folders.data.join("easy-vqa"), "train")?;
    let photos = read_photos(folders)?;
    let robot = read_robot(&robot_folder(folders))?;
    let mut sets: Vec<(&str, &Frames, f64)> = vec![("easy-vqa", &vqa.frames, 0.25)];
    if !photos.frames.is_empty() {
        sets.push(("photos", &photos.frames, 0.15));
    }
    if let Some(robot) = &robot {
        sets.push(("robot", &robot.frames, 0.6));
    }
    let run = VqRun {
        out: folders.out.clone(),
        steps: args.steps,
        batch: args.batch,
        lr: args.lr,
        seed: folders.seed,
        save_every_s: 60.0,
    };
    train_vq::train::<Backend>(&run, &Dims::nano(), &sets, &device()?)?;
    let set = |(name, frames, share): &(&str, &Frames, f64)| {
        ((*name).to_owned(), json!({"frames": frames.len(), "share": share}))
    };
    let made = json!({"steps": run.steps, "frames_a_batch": run.batch, "lr": run.lr, "seed": run.seed,
        "sets": sets.iter().map(set).collect::<serde_json::Value>()});
    Ledger::open(&folders.out)?.note("tokenizer", &[], made)?;
    Ok(())
}

/// Codes of all frames in `variants` variants; `jitter` draws shift, mirror, gain and lift of the augmented ones.
fn encode_set(
    tokenizer: &Tokenizer<Backend>,
    frames: &Frames,
    variants: usize,
    most_px: i32,
    mirror: bool,
    seed: u64,
) -> Codes {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut codes = Vec::with_capacity(variants * frames.len() * 64);
    let all: Vec<usize> = (0..frames.len()).collect();
    for variant in 0..variants {
        for part in all.chunks(128) {
            let mut x = Vec::new();
            for &i in part {
                if variant == 0 {
                    planar(frames.frame(i), (0, 0), 1.0, 0.0, &mut x);
                    continue;
                }
                let shift = (rng.random_range(-most_px..=most_px), rng.random_range(-most_px..=most_px));
                let (gain, lift) = (rng.random_range(0.92..1.08), rng.random_range(-0.05..0.05));
                let frame = frames.frame(i);
                let flipped = if mirror && rng.random_bool(0.5) { mirrored(frame) } else { frame.to_vec() };
                planar(&flipped, shift, gain, lift, &mut x);
            }
            codes.extend(tokenizer.encode(x, part.len()));
        }
    }
    Codes { codes, n: frames.len() }
}

/// A frame with left and right exchanged.
fn mirrored(frame: &[u8]) -> Vec<u8> {
    let row = saccade_train::data::SIDE_PX * 3;
    frame.chunks_exact(row).flat_map(|r| r.chunks_exact(3).rev().flatten().copied()).collect()
}

/// What `encode` leaves beside the codes of a set of episodes.
#[derive(serde::Serialize, serde::Deserialize)]
struct EncodedSteps {
    steps: Vec<Step>,
    episodes: Vec<Episode>,
}

pub(crate) fn encode(args: EncodeArgs) -> anyhow::Result<()> {
    let folders = &args.folders;
    let mut ledger = Ledger::open(&folders.out)?;
    ledger.check("tokenizer")?;
    let tokenizer = Tokenizer::<Backend>::open(&folders.out, &Dims::nano(), &device()?)?;
    let vqa = folders.data.join("easy-vqa");
    let vqa_train =
        encode_set(&tokenizer, &pictures::easy_vqa(&vqa, "train")?.frames, PICTURE_VARIANTS, 6, true, 1);
    let photos = encode_set(&tokenizer, &read_photos(folders)?.frames, 2, 4, true, 2);
    let mut sets = vec![("easy-vqa", &vqa_train)];
    if photos.n > 0 {
        sets.push(("photos", &photos));
    }
    Codes::save(&folders.out.join(PICTURE_CODES), &sets)?;
    let mut made = json!({"easy-vqa": {"pictures": vqa_train.n}, "photos": {"pictures": photos.n}});
    if let Some(set) = read_robot(&robot_folder(folders))? {
        let codes = encode_set(&tokenizer, &set.frames, FRAME_VARIANTS, 1, false, 3);
        log::info!("{} frames of {} episodes", set.steps.len(), set.episodes.len());
        Codes::save(&folders.out.join(ROBOT_CODES), &[("robot", &codes)])?;
        made["robot"] = json!({"frames": set.steps.len(), "episodes": set.episodes.len()});
        let encoded = EncodedSteps { steps: set.steps, episodes: set.episodes };
        write_whole(&folders.out.join(STEPS), &serde_json::to_vec(&encoded)?)?;
    }
    ledger.note("encode", &[train_vq::CHECKPOINT], made)?;
    Ok(())
}

/// Codes of pictures and of episodes, steps and episodes, and the text tokenizer in the run's folder.
const PICTURE_CODES: &str = "codes-pictures.safetensors";
const ROBOT_CODES: &str = "codes-robot.safetensors";
const STEPS: &str = "steps-robot.json";
const TEXT: &str = "tokenizer.json";
/// What the transformer is trained on.
const CORPUS: [&str; 4] = [PICTURE_CODES, ROBOT_CODES, STEPS, TEXT];

fn encoded_steps(out: &Path) -> anyhow::Result<EncodedSteps> {
    let path = out.join(STEPS);
    let raw = std::fs::read(&path).with_context(|| format!("{}: run `encode` first", path.display()))?;
    serde_json::from_slice(&raw).with_context(|| path.display().to_string())
}

pub(crate) fn bpe(args: BpeArgs) -> anyhow::Result<()> {
    let folders = &args.folders;
    let mut lines = vec![saccade_train::corpus::CAPTION_QUESTION.to_owned()];
    for q in pictures::easy_vqa(&folders.data.join("easy-vqa"), "train")?.questions {
        lines.extend([q.question, q.answer]);
    }
    lines.push("what is this?".to_owned());
    lines.extend("airplane automobile bird cat deer dog frog horse ship truck".split(' ').map(str::to_owned));
    if let Ok(robot) = encoded_steps(&folders.out) {
        lines.extend(robot.episodes.into_iter().map(|e| e.instruction));
        for step in robot.steps.into_iter().step_by(3) {
            lines.push(step.caption);
            lines.extend(step.qa.into_iter().flat_map(|(q, a)| [q, a]));
        }
    }
    let json = text::train(&lines, Dims::nano().n_text)?;
    write_whole(&folders.out.join(TEXT), json.as_bytes())?;
    let made = json!({"lines": lines.len()});
    Ledger::open(&folders.out)?.note("bpe", &[STEPS], made)?;
    Ok(())
}

/// Reads everything that `encode` and `bpe` left.
fn corpus(folders: &Folders, dims: &Dims) -> anyhow::Result<Corpus> {
    let tokenizer = text::open(&folders.out.join(TEXT))?;
    let mut codes = Codes::load(&folders.out.join(PICTURE_CODES))?;
    let vqa = folders.data.join("easy-vqa");
    let mut take =
        |name: &str| codes.remove(name).with_context(|| format!("no codes of {name}; run `encode` again"));
    let mut validation = Validation::default();
    let shapes =
        PictureSet::new(take("easy-vqa")?, &pictures::easy_vqa_questions(&vqa, "train")?, &tokenizer)?;
    validation.sets.push(("easy-vqa".to_owned(), shapes.validation(dims)));
    let mut pictures = vec![("easy-vqa".to_owned(), shapes)];
    if let Ok(photos) = take("photos") {
        let root = folders.data.join("cifar10");
        let set = PictureSet::new(photos, &pictures::photo_questions(&root, PHOTOS_PER_CLASS)?, &tokenizer)?;
        pictures.push(("photos".to_owned(), set));
    }
    let path = folders.out.join(ROBOT_CODES);
    let mut robot = None;
    if path.is_file() {
        let codes = Codes::load(&path)?.remove("robot").context("no codes of robot; run `encode` again")?;
        let EncodedSteps { steps, episodes } = encoded_steps(&folders.out)?;
        robot = Some(RobotSet::new(codes, steps, episodes, &tokenizer)?);
    }
    if let Some(robot) = &robot {
        let ranges = Ranges { state: robot.state.clone(), action: robot.action.clone(), rate_hz: RATE_HZ };
        write_whole(&folders.out.join("ranges.json"), &serde_json::to_vec(&ranges)?)?;
        validation.sets.push(("robot".to_owned(), robot.validation(dims, true)?));
        validation.sets.push(("robot-bare".to_owned(), robot.validation(dims, false)?));
    }
    Ok(Corpus { robot, pictures, validation })
}

/// A model with its first values.
fn fresh(folders: &Folders, dims: &Dims) -> anyhow::Result<Trainee<Backend>> {
    let device = device()?;
    let tokenizer = Tokenizer::<Backend>::open(&folders.out, dims, &device)?;
    let mut params = Params::new(&device);
    let mut rng = ChaCha8Rng::seed_from_u64(folders.seed + 100);
    lm::declare(&mut params, dims, &tokenizer.book.vectors, &mut rng);
    Ok(Trainee { params, dims: dims.clone() })
}

/// The stages in their order.
const STAGES: [&str; 5] = ["tokenizer", "encode", "bpe", "pretrain", "tune"];
/// The checkpoint of stage two in the run's folder.
const PRETRAINED: &str = "lm.safetensors";
/// The checkpoint of stage three.
const TUNED: &str = "lm-tuned.safetensors";

fn lm_run(args: &LmArgs) -> LmRun {
    LmRun {
        out: args.folders.out.clone(),
        checkpoint: PRETRAINED,
        stage: "pretrain",
        steps: args.steps,
        schedule: args.steps,
        tokens: args.tokens,
        accumulate: args.accumulate,
        lr: args.lr.unwrap_or(2e-3),
        lr_floor: 0.1,
        warm_up: 100.min(args.steps / 10 + 1),
        tau: args.tau,
        image_weight: 0.1,
        precision: Precision::Mixed,
        seed: args.folders.seed,
        save_every_s: 180.0,
        validate_every: args.validate_every,
    }
}

pub(crate) fn pretrain(args: LmArgs) -> anyhow::Result<()> {
    let dims = Dims::nano();
    let inputs = [&[train_vq::CHECKPOINT], CORPUS.as_slice()].concat();
    let mut ledger = before_training(&args.folders, "pretrain", PRETRAINED, &["tokenizer", "encode", "bpe"])?;
    ledger.note("pretrain", &inputs, json!("not finished"))?;
    let corpus = corpus(&args.folders, &dims)?;
    let mut trainee = fresh(&args.folders, &dims)?;
    let made = train_lm::train(&lm_run(&args), &mut trainee, &corpus)?;
    ledger.note("pretrain", &inputs, made)?;
    Ok(())
}

/// The ledger, if the stages before this one, and this one itself where it is resumed, were run on what lies here.
fn before_training(
    folders: &Folders,
    stage: &str,
    checkpoint: &str,
    before: &[&str],
) -> anyhow::Result<Ledger> {
    let ledger = Ledger::open(&folders.out)?;
    before.iter().try_for_each(|stage| ledger.check(stage))?;
    if folders.out.join(checkpoint).is_file() {
        ledger.check(stage)?;
    }
    Ok(ledger)
}

pub(crate) fn tune(args: LmArgs) -> anyhow::Result<()> {
    let dims = Dims::nano();
    let inputs = [&[PRETRAINED], CORPUS.as_slice()].concat();
    let mut ledger =
        before_training(&args.folders, "tune", TUNED, &["tokenizer", "encode", "bpe", "pretrain"])?;
    ledger.note("tune", &inputs, json!("not finished"))?;
    let corpus = corpus(&args.folders, &dims)?;
    let mut trainee = fresh(&args.folders, &dims)?;
    let from = args.folders.out.join(PRETRAINED);
    if !from.is_file() {
        bail!("{}: there is no pretrained model; run `pretrain` first", from.display());
    }
    trainee.params.load(&from)?;
    trainee.params.reset_moments();
    let run = LmRun {
        checkpoint: TUNED,
        stage: "tune",
        lr: args.lr.unwrap_or(1.5e-4),
        precision: Precision::FakeInt8,
        seed: args.folders.seed + 1,
        ..lm_run(&args)
    };
    let made = train_lm::train(&run, &mut trainee, &corpus)?;
    ledger.note("tune", &inputs, made)?;
    Ok(())
}

pub(crate) fn export(args: ExportArgs) -> anyhow::Result<()> {
    let dims = Dims::nano();
    let out = &args.folders.out;
    let ledger = Ledger::open(out)?;
    let (path, stages) = [(TUNED, STAGES.as_slice()), (PRETRAINED, &STAGES[..4])]
        .map(|(name, stages)| (out.join(name), stages))
        .into_iter()
        .find(|(path, _)| path.is_file())
        .with_context(|| format!("{}: there is no trained model; run `pretrain` first", out.display()))?;
    stages.iter().try_for_each(|stage| ledger.check(stage))?;
    let mut trainee = fresh(&args.folders, &dims)?;
    trainee.params.load(&path)?;
    let tokenizer = Tokenizer::<Backend>::open(out, &dims, &device()?)?;
    let mut tensors = trainee.params.export();
    tensors.extend(tokenizer.params.export());
    let shape = vec![dims.image.codebook_size, dims.image.code_dim];
    tensors.push(("image.codebook.weight".into(), shape, tokenizer.book.vectors.clone()));
    let path = out.join("ranges.json");
    let raw = std::fs::read(&path).with_context(|| format!("{}: run `pretrain` first", path.display()))?;
    let model = saccade_train::export::model_json("nano", &dims, &serde_json::from_slice(&raw)?)?;
    let text = std::fs::read_to_string(out.join(TEXT))?;
    let provenance = json!({
        "made_by": concat!("saccade-train ", env!("CARGO_PKG_VERSION")), "stages": ledger.provenance(),
        "data": {
            "robot": "Meta-World MT10 3.1.1, scripted experts", "easy-vqa": "easy-vqa 1.0, training part",
            "photos": "CIFAR-10, training part",
        },
    });
    if let Some(dir) = args.to.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    saccade_train::export::write(&args.to, &tensors, &model, &text, &provenance)?;
    log::info!("{}: {} parameters", args.to.display(), tensors.iter().map(|t| t.2.len()).sum::<usize>());
    Ok(())
}

pub(crate) fn golden(args: GoldenArgs) -> anyhow::Result<()> {
    Ok(saccade_train::golden::write::<Backend>(&args.to, args.seed, &device()?)?)
}
