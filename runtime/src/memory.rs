//! Whether there is enough memory, asked before anything large is allocated: a failed allocation would end the process.

use std::hint::black_box;

use crate::{Error, Result};

/// Refuses `needed` bytes if this process cannot have them; `what` needs them.
pub(crate) fn check(what: &'static str, needed: u128) -> Result<()> {
    let available = available_bytes();
    // The system may grant less than is there (`ulimit -v`, strict overcommit): only an allocation tells.
    let granted = |bytes: usize| black_box(Vec::<u8>::new().try_reserve_exact(black_box(bytes))).is_ok();
    if available.is_none_or(|available| needed <= available) && usize::try_from(needed).is_ok_and(granted) {
        return Ok(());
    }
    Err(refused(what, needed))
}

/// What to say when there is not enough of it.
pub(crate) fn refused(what: &'static str, needed: u128) -> Error {
    let available_mib =
        available_bytes().map_or_else(|| "an unknown number of".into(), |bytes| (bytes >> 20).to_string());
    Error::Memory { what, needed_mib: (needed >> 20) + 1, available_mib }
}

/// What the kernel thinks can still be had without swapping; `None` where it does not say.
fn available_bytes() -> Option<u128> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u128 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_granted_and_what_is_not_is_refused() {
        check("a test", 1 << 20).unwrap();
        for needed in [1 << 50, 1 << 63, u128::MAX] {
            let sentence = check("a test", needed).unwrap_err().to_string();
            assert!(sentence.starts_with("a test needs"), "{sentence}");
            assert!(sentence.contains(&((needed >> 20) + 1).to_string()), "{sentence}");
        }
    }
}
