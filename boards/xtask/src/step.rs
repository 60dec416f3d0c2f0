//! One command of a verb: shown before it runs, and a sentence when it fails.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;

/// A command to run, always from the repository's root.
pub(crate) struct Step {
    command: Command,
    shown: String,
}

impl Step {
    /// A step that runs `program`, which is looked up on `PATH`.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let shown = program.as_ref().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.current_dir(root());
        Self { command, shown }
    }

    /// A step that runs the cargo that runs us, with these words.
    pub(crate) fn cargo(words: &str) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut step = Self::new(cargo).args(words.split_whitespace());
        step.shown = format!("cargo {words}");
        step
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.shown.push(' ');
            self.shown.push_str(&arg.as_ref().to_string_lossy());
            self.command.arg(arg);
        }
        self
    }

    /// Sets an environment variable for this step alone.
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Shows the command on stderr (stdout belongs to the command) and runs it.
    pub(crate) fn run(mut self) -> Outcome {
        eprintln!("$ {}", self.shown);
        let status = self.command.status().map_err(|e| self.cannot_start(&e))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(code) => {
                Err(format!("`{}` ended with code {code}; its own lines above say why", self.shown))
            }
            None => Err(format!("`{}` was killed by a signal", self.shown)),
        }
    }

    /// What the command prints, or `None` where it is missing or fails. Shows nothing.
    pub(crate) fn output(mut self) -> Option<String> {
        let output = self.command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whether the command can be started and ends well. Shows nothing.
    pub(crate) fn succeeds(self) -> bool {
        self.output().is_some()
    }

    fn cannot_start(&self, error: &std::io::Error) -> String {
        let program = self.command.get_program().to_string_lossy();
        if error.kind() == std::io::ErrorKind::NotFound {
            return format!("`{program}` is not installed; install it and run this again");
        }
        format!("`{program}` could not be started: {error}")
    }
}

/// The repository's root: two folders above this crate.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where what takes long to install is kept between runs.
pub(crate) fn cache() -> Result<PathBuf, String> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".cache"),
        _ => return Err("neither HOME nor XDG_CACHE_HOME is set; set one and run this again".to_owned()),
    };
    Ok(base.join("saccade"))
}
