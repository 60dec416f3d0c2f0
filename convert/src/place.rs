//! Where a bundle goes: made beside its place as `OUT.part`, renamed into it when it is whole.
//!
//! A bundle that is replaced steps aside as `OUT.replaced.part` and is removed last. A run that is killed between the two
//! renames leaves `OUT` missing and the old bundle there; the next run puts it back. A run that is killed before, or whose disk is full,
//! leaves `OUT.part` with its journal; the next one goes on from there.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use saccade::config::{CONFIG_FILE, GRAPH_FILE, TOKENIZER_FILE, WEIGHTS_FILE};

use crate::error::{ConvertError, Result, io};
use crate::journal::{JOURNAL_FILE, Journal};

/// A place that a bundle can be written to.
#[derive(Debug)]
pub struct Place {
    out: PathBuf,
    part: PathBuf,
    /// Where a replaced bundle steps aside.
    aside: PathBuf,
    /// Whether there is a bundle to be replaced.
    pub replaces: bool,
}

impl Place {
    /// Looks whether a bundle may be written as `out`; changes nothing.
    ///
    /// # Errors
    /// [`ConvertError`] when its folder is missing, when something is there that may not be replaced (anything without
    /// `force`, all but bundles with it), or when something foreign bears the name of a part.
    pub fn look(out: &Path, force: bool) -> Result<Self> {
        // Without a trailing slash, so that a suffix can be appended.
        let out: PathBuf = out.components().collect();
        if out.file_name().is_none() {
            return Err(ConvertError::NotReplaced { path: out });
        }
        let parent = parent(&out);
        if !parent.is_dir() {
            let reason = "this folder does not exist; create it first or choose another place for the bundle";
            return Err(ConvertError::Refused { path: parent.into(), reason: reason.into() });
        }
        let (part, aside) = (Self::part_of(&out), suffixed(&out, ".replaced.part"));
        let replaces = match fs::symlink_metadata(&out) {
            Err(e) if e.kind() == ErrorKind::NotFound => is_bundle(&aside),
            Err(e) => return Err(io(&out)(e)),
            Ok(_) if !force => true,
            Ok(found) if found.is_dir() && is_bundle(&out) => true,
            Ok(_) => return Err(ConvertError::NotReplaced { path: out }),
        };
        if replaces && !force {
            return Err(ConvertError::Exists { path: out });
        }
        for leftover in [&part, &aside] {
            check_leftover(leftover)?;
        }
        Ok(Self { out, part, aside, replaces })
    }

    /// The folder in which the bundle `out` is made.
    pub(crate) fn part_of(out: &Path) -> PathBuf {
        suffixed(&out.components().collect::<PathBuf>(), ".part")
    }

    /// A file beside the place, named after it.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        suffixed(&self.out, suffix)
    }

    /// Puts back the bundle that a killed run has left aside; then looks, and starts a part, or goes on with one of the same `fingerprint`.
    pub(crate) fn start(out: &Path, force: bool, fingerprint: &str) -> Result<(PartFolder, Journal)> {
        let bare: PathBuf = out.components().collect();
        let aside = suffixed(&bare, ".replaced.part");
        if is_bundle(&aside)
            && matches!(fs::symlink_metadata(&bare), Err(e) if e.kind() == ErrorKind::NotFound)
        {
            fs::rename(&aside, &bare).map_err(io(&aside))?;
            log::warn!("{}: put back, an earlier run was stopped while replacing it", bare.display());
        }
        let place = Self::look(out, force)?;
        match fs::create_dir(&place.part) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io(&place.part)(e)),
            _ => {}
        }
        let journal = Journal::open(&place.part, fingerprint)?;
        Ok((PartFolder { place, stays: false }, journal))
    }
}

/// `OUT.part` in the making: removed when dropped, unless it was published as `OUT` or left for the next run.
pub(crate) struct PartFolder {
    place: Place,
    stays: bool,
}

impl PartFolder {
    /// Where the files go for now.
    pub(crate) fn path(&self) -> &Path {
        &self.place.part
    }

    /// Leaves what is there for the next run.
    pub(crate) fn leave(mut self) {
        self.stays = true;
    }

    /// Gives the folder its final name. A bundle that has it already steps aside first and is removed last.
    pub(crate) fn publish(mut self) -> Result<()> {
        let Place { out, part, aside, replaces } = &self.place;
        let sync = |folder: &Path| File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder));
        sync(part)?;
        remove_leftover(aside)?;
        if *replaces {
            fs::rename(out, aside).map_err(io(out))?;
        }
        if let Err(e) = fs::rename(part, out) {
            if *replaces {
                fs::rename(aside, out).map_err(io(aside))?;
            }
            return Err(io(out)(e));
        }
        self.stays = true;
        sync(parent(out))?;
        if *replaces {
            fs::remove_dir_all(aside).map_err(io(aside))?;
        }
        Ok(())
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        if !self.stays {
            // Best effort: the reason for stopping is already on its way to the caller.
            let _ = fs::remove_dir_all(&self.place.part);
        }
    }
}

fn is_bundle(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file()
}

/// Whether `part` is missing, or what a killed run left: a folder with nothing but bundle files in it.
fn check_leftover(part: &Path) -> Result<()> {
    let entries = match fs::read_dir(part) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io(part))?,
    };
    for entry in entries {
        let name = entry.map_err(io(part))?.file_name();
        let name = name.to_string_lossy();
        let written = [WEIGHTS_FILE, TOKENIZER_FILE, GRAPH_FILE, CONFIG_FILE];
        let ours = written.contains(&name.trim_end_matches(".part")) || name == JOURNAL_FILE;
        if !ours {
            let reason = format!(
                "it is in the way and holds `{}`, which is no bundle's file; remove it",
                name.escape_debug()
            );
            return Err(ConvertError::Refused { path: part.into(), reason });
        }
    }
    Ok(())
}

fn remove_leftover(part: &Path) -> Result<()> {
    check_leftover(part)?;
    match fs::remove_dir_all(part) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io(part)(e)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
