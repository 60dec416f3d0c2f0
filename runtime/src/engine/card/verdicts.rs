//! What was measured to place weights, kept between starts: a JSON file in the user's cache. Whatever is wrong with that file costs a
//! line in the log and another measurement.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cuda::{Device, ReadRates};

/// Of the file's layout.
const VERSION: u32 = 1;
/// Bundles that are remembered; older ones are forgotten.
const MOST: usize = 64;
/// Bytes of a file that is read at all.
const MAX_BYTES: u64 = 1 << 20;

/// The rates of one bundle's weights on one card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    card: String,
    driver: i32,
    bundle: String,
    pub(crate) mapped: ReadRates,
    pub(crate) copied: ReadRates,
    /// When: `2026-11-26`.
    pub(crate) day: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    verdicts: Vec<Verdict>,
}

/// The file, asked for one bundle on one card.
pub(super) struct Verdicts<'a> {
    path: Option<&'a Path>,
    card: String,
    driver: i32,
    bundle: &'a str,
}

impl<'a> Verdicts<'a> {
    pub(super) fn of(path: Option<&'a Path>, device: &Device, bundle: &'a str) -> Self {
        Self { path, card: device.name().to_owned(), driver: device.driver(), bundle }
    }

    /// What was measured before, with this driver.
    pub(super) fn find(&self) -> Option<Verdict> {
        let found = self.stored()?.verdicts.into_iter().find(|verdict| self.is_of(verdict))?;
        if found.driver == self.driver {
            return Some(found);
        }
        log::info!(
            "weights were placed with driver {}, which is {} now: measuring again",
            found.driver,
            self.driver
        );
        None
    }

    /// Keeps new rates, if there is a place for them.
    pub(super) fn keep(&self, mapped: ReadRates, copied: ReadRates) -> Verdict {
        let (card, bundle) = (self.card.clone(), self.bundle.to_owned());
        let verdict = Verdict { card, driver: self.driver, bundle, mapped, copied, day: today() };
        let Some(path) = self.path else {
            log::warn!(
                "neither HOME nor XDG_CACHE_HOME is set: where weights are better read from is measured at every start"
            );
            return verdict;
        };
        let mut verdicts = self.stored().unwrap_or_default().verdicts;
        verdicts.retain(|verdict| !self.is_of(verdict));
        verdicts.push(verdict.clone());
        verdicts.drain(..verdicts.len().saturating_sub(MOST));
        if let Err(error) = write(path, &Stored { version: VERSION, verdicts }) {
            log::warn!(
                "{} cannot be written ({error}): it is measured again at the next start",
                path.display()
            );
        }
        verdict
    }

    fn is_of(&self, verdict: &Verdict) -> bool {
        verdict.card == self.card && verdict.bundle == self.bundle
    }

    /// What the file has, if it is there and whole.
    fn stored(&self) -> Option<Stored> {
        let path = self.path?;
        match read(path) {
            Ok(stored) => stored,
            Err(reason) => {
                log::warn!("{} is not used ({reason}): measuring again", path.display());
                None
            }
        }
    }
}

fn read(path: &Path) -> Result<Option<Stored>, String> {
    let file = match crate::format::open_file(path) {
        Ok((file, _)) => file,
        Err(crate::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error.sentence()),
    };
    let bytes = crate::weights::read_at_most(file, MAX_BYTES).map_err(|error| error.to_string())?;
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if stored.version != VERSION {
        return Err(format!("it is of version {}, this program writes {VERSION}", stored.version));
    }
    let rates = stored.verdicts.iter().flat_map(|verdict| [verdict.mapped, verdict.copied]);
    let mut figures = rates.flat_map(|rates| [rates.decode_gbps, rates.prompt_tops]);
    if figures.any(|figure| !(figure > 0.0 && figure.is_finite())) {
        return Err("a rate in it is none".to_owned());
    }
    Ok(Some(stored))
}

/// Under another name first: who reads at the same time finds the old file or the new one.
fn write(path: &Path, stored: &Stored) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, serde_json::to_vec_pretty(stored)?)?;
    std::fs::rename(&part, path)
}

/// The date in UTC.
fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(now / 86_400)
}

/// The date so many days after 1970-01-01, counted in years that begin in March, so that a leap day is a year's last.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let (month, day) = ((march + 2) % 12 + 1, day - (153 * march + 2) / 5 + 1);
    let year = year + 400 * era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, text) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_783, "2026-11-26"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(days), text, "{days}");
        }
    }
}
