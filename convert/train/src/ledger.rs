//! `run.json`: what each stage of a run was made from and how, so that no stage goes on from what an older run left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::params::write_whole;

/// The file's name in the run's folder.
pub const LEDGER: &str = "run.json";

/// One stage, as it was run last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stage {
    /// BLAKE3 of each file of the run's folder that it read, by name.
    inputs: BTreeMap<String, String>,
    /// Settings and results, as the provenance tells them.
    made: Value,
}

/// The stages of a run.
#[derive(Debug)]
pub struct Ledger {
    out: PathBuf,
    stages: BTreeMap<String, Stage>,
}

impl Ledger {
    /// Reads the ledger of the run in `out`; a new run has an empty one.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn open(out: &Path) -> Result<Self> {
        let path = out.join(LEDGER);
        let stages = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            raw => serde_json::from_slice(&raw.map_err(Error::file(&path))?).map_err(|e| {
                Error::content(&path, format!("is no ledger of a run ({e}); remove the folder"))
            })?,
        };
        Ok(Self { out: out.to_owned(), stages })
    }

    /// Refuses to go on when `stage` was never run, or one of the files that it read has changed since.
    ///
    /// # Errors
    /// A sentence that names the stage, the file, and what to do.
    pub fn check(&self, stage: &str) -> Result<()> {
        let path = self.out.join(LEDGER);
        let Some(entry) = self.stages.get(stage) else {
            return Err(Error::content(&path, format!("`{stage}` was not run in this folder; run it first")));
        };
        for (name, hash) in &entry.inputs {
            if digest(&self.out.join(name))?.as_ref() != Some(hash) {
                let what = format!(
                    "`{stage}` was run on another {name} than the one that lies here now; run `{stage}` again \
                     (for a stage that trains: remove its checkpoint first)"
                );
                return Err(Error::content(&path, what));
            }
        }
        Ok(())
    }

    /// Notes that `stage` was run on `inputs` (those that exist) and what came of it.
    ///
    /// # Errors
    /// If a file cannot be read or the ledger not be written.
    pub fn note(&mut self, stage: &str, inputs: &[&str], made: Value) -> Result<()> {
        let mut hashes = BTreeMap::new();
        for name in inputs {
            if let Some(hash) = digest(&self.out.join(name))? {
                hashes.insert((*name).to_owned(), hash);
            }
        }
        self.stages.insert(stage.to_owned(), Stage { inputs: hashes, made });
        let path = self.out.join(LEDGER);
        let json =
            serde_json::to_vec_pretty(&self.stages).map_err(|e| Error::content(&path, e.to_string()))?;
        write_whole(&path, &json)
    }

    /// What every stage made, by name: the provenance of the exported checkpoint.
    #[must_use]
    pub fn provenance(&self) -> Value {
        self.stages.iter().map(|(name, stage)| (name.clone(), stage.made.clone())).collect()
    }
}

/// BLAKE3 of a file in hex; `None` when there is no such file.
fn digest(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        raw => Ok(Some(blake3::hash(&raw.map_err(Error::file(path))?).to_hex().to_string())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stage_whose_input_has_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("codes");
        std::fs::write(&input, "one").unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.check("encode").unwrap_err().to_string().contains("`encode` was not run"));
        ledger.note("encode", &["codes", "absent"], json!({"steps": 3})).unwrap();

        let again = Ledger::open(dir.path()).unwrap();
        again.check("encode").unwrap();
        assert_eq!(again.provenance(), json!({"encode": {"steps": 3}}));
        std::fs::write(&input, "two").unwrap();
        let sentence = again.check("encode").unwrap_err().to_string();
        assert!(sentence.contains("another codes") && sentence.contains("run `encode` again"), "{sentence}");
        std::fs::remove_file(&input).unwrap();
        assert!(again.check("encode").is_err(), "a file that is gone has changed too");
    }
}
