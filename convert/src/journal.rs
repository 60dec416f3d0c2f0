//! What a conversion has written so far, so that it goes on after it was stopped: a file beside the weights in the making.
//!
//! One JSON object a line. The first says what is being converted and how; each later one ends a tensor of the checkpoint and has the
//! hash of everything before it. What was torn by a kill or a failing disk is found by these hashes, so nothing here waits for the disk.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use saccade::config::{CONFIG_FILE, GRAPH_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use saccade::format::Mark;
use serde::{Deserialize, Serialize};

use crate::error::{ConvertError, Result, io};
use crate::rounding::Rounding;

/// Its name in the folder of a bundle in the making.
pub(crate) const JOURNAL_FILE: &str = "conversion.journal";
/// Longest journal that is read: an entry has about 300 bytes, a checkpoint at most some ten thousand tensors.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Start {
    /// Hash of everything that the bytes depend on.
    fingerprint: String,
}

/// The end of a tensor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    tensors: usize,
    bytes: u64,
    blake3: String,
    /// What rounding made of it.
    pub(crate) rounding: Option<Rounding>,
}

impl Entry {
    /// Where the weights file stood.
    pub(crate) fn mark(&self) -> Option<Mark> {
        let blake3 = blake3::Hash::from_hex(&self.blake3).ok()?;
        Some(Mark { tensors: self.tensors, bytes: self.bytes, blake3 })
    }
}

/// The journal of one conversion, which no other can have open.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// What this run and earlier ones have written.
    pub(crate) entries: Vec<Entry>,
    /// Where the first line ends, and each of them.
    ends: Vec<u64>,
}

impl Journal {
    /// Opens the journal in `part`, or starts one; what another conversion has left there is removed.
    ///
    /// # Errors
    /// [`ConvertError::Refused`] while another process has it open, [`ConvertError::Io`] when the system refuses.
    pub(crate) fn open(part: &Path, fingerprint: &str) -> Result<Self> {
        let path = part.join(JOURNAL_FILE);
        let mut options = File::options();
        let file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another conversion is writing there; wait for it, or choose another place for the bundle";
                return Err(ConvertError::Refused { path: part.into(), reason: reason.into() });
            }
            // Some network file systems know no locks.
            Err(TryLockError::Error(error)) => log::warn!("{}: not locked: {error}", path.display()),
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(io(&path))?;
        let mut journal = Self { path, file, entries: Vec::new(), ends: Vec::new() };
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let start = serde_json::from_slice::<Start>(first).ok();
        // Both are written again, whatever is resumed.
        for name in [TOKENIZER_FILE, GRAPH_FILE, CONFIG_FILE] {
            remove(&part.join(name))?;
        }
        let (weights, weights_part) = (part.join(WEIGHTS_FILE), part.join(format!("{WEIGHTS_FILE}.part")));
        if start.is_some_and(|start| start.fingerprint == fingerprint && first.ends_with(b"\n")) {
            let mut end = first.len();
            journal.ends.push(end as u64);
            for line in lines.filter(|line| line.ends_with(b"\n")) {
                let Ok(entry) = serde_json::from_slice(line) else { break };
                end += line.len();
                journal.entries.push(entry);
                journal.ends.push(end as u64);
            }
            // An earlier run came as far as this; its hashes are checked all the same.
            if weights.exists() {
                fs::rename(&weights, &weights_part).map_err(io(&weights))?;
            }
            return Ok(journal);
        }
        if !bytes.is_empty() {
            log::warn!(
                "{}: what a run with other options, or from another checkpoint, has left there is removed; converting from the \
                 beginning",
                part.display()
            );
        }
        remove(&weights)?;
        remove(&weights_part)?;
        journal.cut(0)?;
        journal.add_line(&Start { fingerprint: fingerprint.into() })?;
        let end = journal.file.stream_position().map_err(io(&journal.path))?;
        journal.ends.push(end);
        Ok(journal)
    }

    /// Forgets the entries of what is not among the first `tensors` of the weights file.
    pub(crate) fn keep(&mut self, tensors: usize) -> Result<()> {
        let n = self.entries.iter().take_while(|entry| entry.tensors <= tensors).count();
        if n < self.entries.len() {
            log::warn!(
                "{}: {} tensors are not as they were written; converting those again",
                self.path.display(),
                self.entries.len() - n
            );
        }
        self.entries.truncate(n);
        self.ends.truncate(n + 1);
        self.cut(self.ends[n])
    }

    /// Adds the end of a tensor.
    pub(crate) fn add(&mut self, mark: Mark, rounding: Option<Rounding>) -> Result<()> {
        let Mark { tensors, bytes, blake3 } = mark;
        let entry = Entry { tensors, bytes, blake3: blake3.to_hex().to_string(), rounding };
        self.add_line(&entry)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Removes the journal: the bundle is whole.
    pub(crate) fn close(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(io(&self.path))
    }

    fn cut(&mut self, end: u64) -> Result<()> {
        let moved = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
        moved.map(drop).map_err(io(&self.path))
    }

    fn add_line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::json!(line).to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(io(&self.path))
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}
