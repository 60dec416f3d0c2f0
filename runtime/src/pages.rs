//! Memory maps in huge pages: a bundle's weights, and the memory that [`crate::limits`] reads.
//!
//! A mapping of a file consists of huge pages where three things come together: it starts at a multiple of 2 MiB, the system
//! may use huge pages for it (`madvise`, which `/sys/kernel/mm/transparent_hugepage/enabled` = `never` forbids), and the page cache
//! holds the file in pieces of exactly 2 MiB. A file that has just been written lies in the cache in the pieces that `write` was
//! called with; nothing joins them later (`MADV_COLLAPSE` answers `EINVAL` for ext4, `MADV_POPULATE_READ` maps what is there). Pieces
//! of 2 MiB come from reading the file through a mapping that asked for huge pages, which is what [`warm`] does.
//!
//! Measured on Linux 6.18 with ext4 (Zen 4, 315 MB, new process, file in the cache): the first pass takes 37 ms over pieces of 4 KiB
//! (4800 faults), 28 ms of 64 KiB (4800), 21 ms of 1 MiB (315), 20 ms of 2 MiB (150); later ones take 18 to 22 ms over any, since what
//! differs is the faults. A copied file is the usual bad case: `cp` leaves no piece of 2 MiB. Where the file system knows no large
//! pieces (ext4 before 6.16), [`warm`] finds out from the first 2 MiB and stops.
//! The address is left to the kernel: since 5.18 it maps large files of such file systems at a multiple of 2 MiB by itself.
#![allow(unsafe_code)]

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::format::{HUGE_PAGE, open_file};
use crate::{Error, Result};

/// The smallest page of any system.
const SMALL: usize = 4096;

/// By which pages a file is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Huge ones wherever the page cache holds them.
    #[default]
    Huge,
    /// Small ones only, to measure what the others are worth.
    Small,
}

/// Mapped bytes, for as long as anyone holds them: a card may read them, too.
#[derive(Clone, Debug)]
pub(crate) struct Map(Arc<Mmap>);

impl Map {
    /// Maps a whole file, read-only.
    pub(crate) fn of_file(file: &File, pages: Pages) -> io::Result<Self> {
        // SAFETY: the mapping is only sound while nobody truncates or rewrites the file. Bundles are written once, under
        // another name, and renamed into place, never changed after; a truncation from outside ends the process (SIGBUS).
        let map = unsafe { Mmap::map(file) }?;
        advise(&map, pages);
        Ok(Self(Arc::new(map)))
    }

    /// `len` bytes of memory, in huge pages where the system has them, each of them 1.
    pub(crate) fn of_ones(len: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(len)?.make_read_only()?;
        advise(&map, Pages::Huge);
        let mut map = map.make_mut()?;
        map.fill(1);
        Ok(Self(Arc::new(map.make_read_only()?)))
    }

    /// Bytes that are mapped by huge pages now; `None` where the system does not say. A page is mapped when it is first read.
    pub(crate) fn huge_bytes(&self) -> Option<u64> {
        let ours = self.as_ptr_range();
        let ours = ours.start.addr()..ours.end.addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let (mut inside, mut kib) = (false, 0);
        for line in smaps.lines() {
            let (key, value) = line.split_once(char::is_whitespace)?;
            if let Some((start, _)) = key.split_once('-') {
                inside = usize::from_str_radix(start, 16).is_ok_and(|start| ours.contains(&start));
            } else if inside && key == "FilePmdMapped:" {
                kib += value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
            }
        }
        Some(kib << 10)
    }

    /// Lets go of the pages of `bytes` here and in the page cache; who reads them again has them read from `file` again, which is the one
    /// that is mapped.
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    pub(crate) fn forget(&self, file: &File, bytes: std::ops::Range<usize>) {
        let len = bytes.len();
        // SAFETY: the pages are a file's, and nobody can have written to them.
        let unmapped =
            unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, len) };
        if let Err(error) = unmapped {
            log::debug!("mapped pages stay: {error}");
        }
        drop_range(file, bytes.start as u64, len as u64);
    }

    /// Other systems have no such call.
    #[cfg(all(feature = "cuda", not(target_os = "linux")))]
    pub(crate) fn forget(&self, _: &File, _: std::ops::Range<usize>) {}

    /// Reads a byte of every page among the first `len`, so that all are in the cache and mapped.
    fn touch(&self, len: usize) {
        let pages = self[..len].iter().step_by(SMALL);
        black_box(pages.fold(0, |all, byte| all ^ byte));
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Tells the system which pages to use.
#[cfg(target_os = "linux")]
fn advise(map: &Mmap, pages: Pages) {
    let advice = match pages {
        Pages::Huge => memmap2::Advice::HugePage,
        Pages::Small => memmap2::Advice::NoHugePage,
    };
    match map.advise(advice) {
        Ok(()) => log::debug!("map_bytes={} pages={pages:?}", map.len()),
        Err(error) => {
            log::debug!("map_bytes={} pages=Small: the system knows no others ({error})", map.len())
        }
    }
}

/// Other systems choose for themselves.
#[cfg(not(target_os = "linux"))]
fn advise(map: &Mmap, _: Pages) {
    log::debug!("map_bytes={} pages=unknown: this system cannot be told", map.len());
}

/// Reads a file that has just been written into the page cache once more, in huge pages, so that mapping it is cheap from then on;
/// returns how many of its bytes can be mapped by them.
///
/// What the cache holds of the file is dropped first, so this costs one read of the file from its disk. Where the system turns
/// out to have no huge pages for it, all but the first 2 MiB is left alone, and the result is 0. A file that
/// another process has mapped stays cached as it is.
///
/// # Errors
/// [`Error::Io`] or [`Error::NotAFile`] when the file cannot be read.
pub fn warm(path: &Path) -> Result<u64> {
    let (file, file_bytes) = open_file(path)?;
    let io = |source| Error::Io { path: path.into(), source };
    // Only what is on the disk can be dropped.
    file.sync_data().map_err(io)?;
    let read_back = |bytes: u64| -> Result<u64> {
        drop_cached(&file, bytes);
        let map = Map::of_file(&file, Pages::Huge).map_err(io)?;
        // No longer than the file, which fits memory: it is mapped.
        map.touch(usize::try_from(bytes).map_or(map.len(), |bytes| bytes.min(map.len())));
        Ok(map.huge_bytes().unwrap_or(0))
    };
    let huge_bytes = match file_bytes {
        HUGE_PAGE.. if read_back(HUGE_PAGE)? > 0 => read_back(file_bytes)?,
        _ => 0,
    };
    log::debug!("warmed={} huge_bytes={huge_bytes} of={file_bytes}", path.display());
    Ok(huge_bytes)
}

/// Takes the first `bytes` of a file (0: all) out of the page cache, as far as nobody has them mapped.
#[cfg(target_os = "linux")]
pub fn drop_cached(file: &File, bytes: u64) {
    drop_range(file, 0, bytes);
}

/// The same from `start` on.
#[cfg(target_os = "linux")]
fn drop_range(file: &File, start: u64, bytes: u64) {
    use rustix::fs::{Advice, fadvise};
    if let Err(error) = fadvise(file, start, std::num::NonZero::new(bytes), Advice::DontNeed) {
        log::debug!("the page cache keeps what it has: {error}");
    }
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
pub fn drop_cached(_: &File, _: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: usize = 2 << 20;

    /// A new file of `len` bytes that count up.
    fn file(len: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes(len)).unwrap();
        file
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..=250).cycle().take(len).collect()
    }

    #[test]
    fn a_mapping_holds_the_file() {
        for len in [0, 1, SMALL, HUGE - 1, HUGE, 2 * HUGE + 3] {
            let file = file(len);
            for pages in [Pages::Huge, Pages::Small] {
                let map = Map::of_file(file.as_file(), pages).unwrap();
                assert!(*map == bytes(len), "{len} {pages:?}");
            }
        }
        assert!(*Map::of_ones(HUGE + 5).unwrap() == vec![1; HUGE + 5]);
    }

    #[test]
    fn small_pages_are_small() {
        let file = file(4 * HUGE);
        let map = Map::of_file(file.as_file(), Pages::Small).unwrap();
        map.touch(map.len());
        assert!(map.huge_bytes().is_none_or(|bytes| bytes == 0));
    }

    #[cfg(all(feature = "cuda", target_os = "linux"))]
    #[test]
    fn pages_that_are_let_go_are_read_again() {
        let len = 5 * SMALL + 7;
        let file = file(len);
        file.as_file().sync_data().unwrap();
        let map = Map::of_file(file.as_file(), Pages::Small).unwrap();
        for range in [0..len, 0..0, SMALL..3 * SMALL, 4 * SMALL..len] {
            map.touch(len);
            map.forget(file.as_file(), range.clone());
            assert!(*map == bytes(len), "{range:?}");
        }
    }

    /// How much becomes huge is the system's business; that the bytes stay is ours.
    #[test]
    fn warming_changes_no_byte_and_claims_no_more_than_there_is() {
        for len in [0, 5, HUGE - 1, HUGE, 5 * HUGE + 77] {
            let file = file(len);
            let huge_bytes = warm(file.path()).unwrap();
            assert!(
                huge_bytes <= len as u64 && huge_bytes.is_multiple_of(HUGE_PAGE),
                "{huge_bytes} of {len}"
            );
            assert!(std::fs::read(file.path()).unwrap() == bytes(len));
        }
        assert!(matches!(warm(Path::new("/nowhere/at/all")), Err(Error::Io { .. })));
        assert!(matches!(warm(Path::new("/")), Err(Error::NotAFile { .. })));
    }
}
