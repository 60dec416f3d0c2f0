//! A workshop for tests that drive the program: a temporary folder with a tiny checkpoint in it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use saccade::config::{UnimodalConfig, nano};
use saccade::format::{Rules, TensorPlan, Writer, read_file_header};
use saccade_convert::random::write_checkpoint;
use tempfile::TempDir;

/// A model of the same build as `nano`, small enough to convert in milliseconds.
pub fn tiny() -> UnimodalConfig {
    let mut model = nano();
    model.name = "tiny".into();
    (model.d_model, model.n_layers, model.n_heads, model.n_kv_heads, model.head_dim, model.d_ff) =
        (32, 2, 2, 1, 16, 48);
    (model.tokens.text, model.tokens.bins, model.tokens.image) = ([0, 320], [320, 576], [576, 593]);
    model.vocab_size = 593;
    let image = &mut model.image;
    (image.width, image.height, image.grid, image.code_dim, image.codebook_size) = (16, 16, [2, 2], 5, 17);
    (image.encoder_channels, image.decoder_channels, image.res_hidden, image.n_res) =
        ([8, 8, 12], [12, 8, 8], 4, 1);
    model
}

/// Tensors and metadata of a checkpoint, to be changed.
pub struct Contents {
    pub tensors: Vec<(TensorPlan, Vec<u8>)>,
    pub metadata: BTreeMap<String, String>,
}

impl Contents {
    pub fn tensor(&mut self, name: &str) -> &mut (TensorPlan, Vec<u8>) {
        self.tensors.iter_mut().find(|(plan, _)| plan.name == name).unwrap()
    }
}

pub struct Workshop {
    pub dir: TempDir,
}

impl Workshop {
    /// With `tiny.safetensors`.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(&dir.path().join("tiny.safetensors"), &tiny(), 7).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program in the folder.
    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_saccade-convert"))
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    /// Runs it, asserts success, returns stdout.
    pub fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it and asserts exit code 1, nothing on stdout, one sentence with these words, and an unchanged folder.
    pub fn refuses(&self, args: &[&str], words: &[&str]) -> String {
        let before = self.listing();
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
        let sentences: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(sentences.len(), 1, "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        for word in words {
            assert!(sentences[0].contains(word), "{args:?}: `{}` does not say `{word}`", sentences[0]);
        }
        assert_eq!(self.listing(), before, "{args:?} left something behind or changed something");
        sentences[0].to_owned()
    }

    /// Every file below the folder with its hash.
    pub fn listing(&self) -> BTreeMap<PathBuf, String> {
        fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.insert(path.clone(), "folder".into());
                    walk(&path, found);
                } else {
                    found.insert(path.clone(), blake3::hash(&fs::read(&path).unwrap()).to_string());
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.dir.path(), &mut found);
        found
    }

    /// Writes `name`, a copy of the checkpoint with `change` applied.
    pub fn changed(&self, name: &str, change: impl FnOnce(&mut Contents)) {
        let from = self.path("tiny.safetensors");
        let (header, bytes) = (read_file_header(&from, Rules::Foreign).unwrap(), fs::read(&from).unwrap());
        let tensors = header.tensors.iter().map(|tensor| {
            let plan =
                TensorPlan { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() };
            (plan, tensor.data(&bytes).unwrap().to_vec())
        });
        let mut contents = Contents { tensors: tensors.collect(), metadata: header.metadata.clone() };
        change(&mut contents);
        let plan: Vec<_> = contents.tensors.iter().map(|(plan, _)| plan.clone()).collect();
        let mut writer = Writer::create(&self.path(name), &plan, &contents.metadata, Rules::Foreign).unwrap();
        for (plan, data) in &contents.tensors {
            writer.write(&plan.name, data).unwrap();
        }
        writer.finish().unwrap();
    }

    /// Changes the bytes of a file.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        edit(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }
}
