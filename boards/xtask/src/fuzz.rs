//! `cargo xtask fuzz [TARGET] [--seconds N]`: the readers of files on whatever bytes come, with libFuzzer.
//!
//! The targets lie in `runtime/fuzz` and `convert/fuzz`, outside the workspace. They are built with the stable compiler: the coverage that
//! libFuzzer follows is a pass of LLVM's that any compiler has. Inputs start from the test fixtures; what is found on the way is kept in
//! `corpus/` beside the targets, inputs that fail in `artifacts/`; neither is committed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::machine;
use crate::step::{Step, root};

/// Where a target lies, its name, and what its inputs start from.
type Target = (&'static str, &'static str, fn() -> Result<Vec<Vec<u8>>, String>);

const TARGETS: [Target; 7] = [
    ("runtime", "header", || files(&["hf/janus/golden.safetensors", "llama/golden.safetensors"])),
    ("runtime", "saccade_json", descriptions),
    ("runtime", "tokenizer", || files(&TOKENIZERS)),
    ("convert", "gguf", || files(&["llama/tiny.gguf", "kin/mistral.gguf"])),
    ("convert", "gguf_tokenizer", gguf_metadata),
    ("convert", "hub", hub),
    ("convert", "preprocessor", preprocessors),
];

/// Coverage for libFuzzer, and every check that a release leaves out.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Coverflow-checks=on -Cdebug-assertions=on";
/// An input that takes longer, in seconds, or more memory, in MiB, has failed.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1536"];
const SECONDS: &str = "60";

const FIXTURES: &str = "convert/tests/fixtures";
const FAMILIES: [&str; 5] = ["llama/tiny", "hf/chameleon", "hf/janus", "hf/emu3", "kin/mistral"];
const TOKENIZERS: [&str; 4] = [
    "llama/tiny/tokenizer.json",
    "hf/chameleon/tokenizer.json",
    "hf/janus/tokenizer.json",
    "hf/emu3/tokenizer.json",
];
/// The files of `convert/fuzz/fuzz_targets/hub.rs`, in its order; the third is a weights file, of which the header counts.
const HUB: [&str; 8] = [
    "config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
];

pub(crate) fn run(args: &[String]) -> Outcome {
    let (mut seconds, mut wanted) = (SECONDS.to_owned(), None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let number = args.next().filter(|n| n.parse::<u32>().is_ok_and(|n| n > 0));
            number.ok_or("--seconds takes a number above 0")?.clone_into(&mut seconds);
        } else {
            wanted = Some(arg);
        }
    }
    let names: Vec<_> = TARGETS.iter().map(|(_, name, _)| *name).collect();
    if let Some(wanted) = wanted.filter(|wanted| !names.contains(&wanted.as_str())) {
        return Err(format!("there is no target `{wanted}`; these there are: {}", names.join(", ")));
    }
    if !Step::new("c++").args(["--version"]).succeeds() {
        machine::install(&["g++"], "a C++ compiler, for libFuzzer,")?;
    }
    for target in TARGETS.iter().filter(|(_, name, _)| wanted.is_none_or(|wanted| wanted == name)) {
        fuzz(target, &seconds)?;
    }
    Ok(())
}

fn fuzz((package, name, seeds): &Target, seconds: &str) -> Outcome {
    let host = Step::new("rustc").args(["--print", "host-tuple"]).output();
    let host = host.ok_or("`rustc --print host-tuple` does not answer; update Rust with rustup")?;
    // With a target named, build scripts and macros are not instrumented.
    Step::cargo("build --release")
        .args(["--manifest-path", &format!("{package}/fuzz/Cargo.toml"), "--bin", name])
        .args(["--target", &host, "--target-dir", "target/fuzz"])
        .env("RUSTFLAGS", FLAGS)
        .run()?;
    let folder = root().join(package).join("fuzz");
    let (corpus, artifacts) = (folder.join("corpus").join(name), folder.join("artifacts").join(name));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).map_err(|e| format!("{} cannot be made: {e}", dir.display()))?;
    }
    for (at, seed) in seeds()?.iter().enumerate() {
        let path = corpus.join(format!("seed-{at}"));
        fs::write(&path, seed).map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    }
    let binary = Path::new("target/fuzz").join(host).join("release").join(name);
    let ran = Step::new(root().join(&binary))
        .args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={}/", artifacts.display())])
        .args(LIMITS)
        .args(["-print_final_stats=1"])
        .args([&corpus])
        .run();
    ran.map_err(|_| {
        let (artifacts, binary) = (artifacts.display(), binary.display());
        format!("target `{name}` failed on an input that lies in {artifacts}; run it alone with: {binary} THAT_FILE")
    })
}

fn fixture(name: &str) -> PathBuf {
    root().join(FIXTURES).join(name)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))
}

fn files(names: &[&str]) -> Result<Vec<Vec<u8>>, String> {
    names.iter().map(|name| read(&fixture(name))).collect()
}

/// `saccade.json` of every family: the shipped one, and those that the fixtures become.
fn descriptions() -> Result<Vec<Vec<u8>>, String> {
    let mut found = vec![read(&root().join("examples/models/nano/saccade.json"))?];
    for family in FAMILIES {
        let out = root().join("target/fuzz/bundle");
        Step::cargo("run --release --quiet -p saccade-convert -- convert --force")
            .args([fixture(family), out.clone()])
            .run()?;
        found.push(read(&out.join("saccade.json"))?);
    }
    Ok(found)
}

/// The metadata of a GGUF file alone: no tensors are counted, and the file ends where their list began.
fn gguf_metadata() -> Result<Vec<Vec<u8>>, String> {
    const FIRST: &[u8] = b"token_embd.weight";
    let alone = |name| {
        let mut file = read(&fixture(name))?;
        let at = file.windows(FIRST.len()).position(|window| window == FIRST);
        // Its length stands before a name; counts follow magic and version.
        let at = at.and_then(|at| at.checked_sub(8)).ok_or("a fixture does not list its embedding first")?;
        file.truncate(at);
        file[8..16].fill(0);
        Ok(file)
    };
    ["llama/tiny.gguf", "kin/mistral.gguf"].into_iter().map(alone).collect()
}

/// Every file of every folder, with the byte before it that says which it is.
fn hub() -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    for (family, folder) in FAMILIES.iter().enumerate() {
        for (at, name) in HUB.iter().enumerate() {
            let mut path = fixture(folder).join(name);
            let weights = *name == "model.safetensors";
            if weights && !path.exists() {
                path = fixture(folder).join("model-00001-of-00002.safetensors");
            }
            if !path.exists() {
                continue;
            }
            let mut bytes = read(&path)?;
            if let (true, Some(header)) = (weights, bytes.first_chunk()) {
                bytes.truncate(
                    usize::try_from(u64::from_le_bytes(*header)).unwrap_or(usize::MAX).saturating_add(8),
                );
            }
            let which = u8::try_from(at * FAMILIES.len() + family).unwrap_or(0);
            bytes.insert(0, which);
            found.push(bytes);
        }
    }
    Ok(found)
}

/// The image processor of every folder as a file of its own, with the bytes before it that say which folder and picture it is for.
fn preprocessors() -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    for (at, family) in FAMILIES[1..4].iter().enumerate() {
        let text = read(&fixture(family).join("processor_config.json"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        // The object behind the key, to its own end: nothing in it nests deeper than two.
        let (_, object) =
            text.split_once("\"image_processor\":").ok_or("a fixture has no `image_processor`")?;
        let end = object.find("\n  }").ok_or("a fixture's `image_processor` has no end")? + "\n  }".len();
        let which = u8::try_from(at).unwrap_or(0);
        found.push([&[which, 64, 0, 48, 0], &object.as_bytes()[..end]].concat());
    }
    Ok(found)
}
