//! Brings easy-VQA 1.0 into the cache when it is missing, with the script that makes every other data set too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::pictures::easy_vqa_list;
use crate::error::{Error, Result};

/// Downloads the wheel with pip, unpacks it and counts what came out.
const SCRIPT: &str = include_str!("../../scripts/easy_vqa.py");

/// The folder of easy-VQA 1.0 in `cache`. What is not there is fetched with the interpreter `python`.
///
/// # Errors
/// If the interpreter, pip or the network is missing; nothing half-made stays in the folder then.
pub fn easy_vqa(cache: &Path, python: &str) -> Result<PathBuf> {
    let folder = cache.join("easy-vqa");
    if ["train", "test"].iter().all(|part| easy_vqa_list(&folder, part).is_file()) {
        return Ok(folder);
    }
    log::info!("{}: fetching easy-VQA 1.0 (3 MB) with pip", folder.display());
    let output = Command::new(python)
        .args(["-c", SCRIPT, "--out"])
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            let hint =
                "install it (apt-get install python3 python3-pip), or unpack the wheel of easy-vqa 1.0 there";
            Error::content(
                &folder,
                format!("easy-VQA is missing and `{python}`, which fetches it, does not start ({e}); {hint}"),
            )
        })?;
    if output.status.success() {
        return Ok(folder);
    }
    // The script ends with its sentence.
    let said = String::from_utf8_lossy(&output.stderr);
    let sentence = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
    Err(Error::content(&folder, format!("easy-VQA could not be fetched: {sentence}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in for the interpreter: a shell script that finds the folder in `$4`.
    fn interpreter(dir: &Path, script: &str) -> String {
        let path = dir.join("python");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_set_that_is_there_is_not_fetched() {
        let cache = tempfile::tempdir().unwrap();
        // As the script leaves it, and as an unpacked wheel has it.
        for root in ["easy-vqa", "easy-vqa/easy_vqa/data"] {
            for part in ["train", "test"] {
                let folder = cache.path().join(root).join(part);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("questions.json"), "[]").unwrap();
            }
            assert_eq!(easy_vqa(cache.path(), "/no/python").unwrap(), cache.path().join("easy-vqa"));
            fs::remove_dir_all(cache.path().join("easy-vqa")).unwrap();
        }
    }

    #[test]
    fn a_missing_set_is_fetched_by_the_script_into_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let python = interpreter(
            cache.path(),
            r#"mkdir -p "$4" && printf %s "$2" > "$4/script" && echo "$1 $3" > "$4/options""#,
        );
        let folder = easy_vqa(cache.path(), &python).unwrap();
        assert_eq!(fs::read_to_string(folder.join("script")).unwrap(), SCRIPT);
        assert_eq!(fs::read_to_string(folder.join("options")).unwrap(), "-c --out\n");
    }

    #[test]
    fn a_missing_interpreter_and_a_failing_script_are_sentences() {
        let cache = tempfile::tempdir().unwrap();
        let sentence = easy_vqa(cache.path(), "/no/python3").unwrap_err().to_string();
        for word in ["easy-vqa", "`/no/python3`", "apt-get install python3"] {
            assert!(sentence.contains(word), "{sentence} lacks {word}");
        }
        let python =
            interpreter(cache.path(), "echo noise >&2; echo 'pip could not, do this' >&2; echo >&2; exit 1");
        let sentence = easy_vqa(cache.path(), &python).unwrap_err().to_string();
        assert!(sentence.ends_with("could not be fetched: pip could not, do this"), "{sentence}");
    }
}
