//! One fact of a board, and where it is from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A value and the name of its source, which [`crate::Board::sources`] explains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact<T> {
    /// The value; its unit is in the name of the field that holds the fact.
    pub value: T,
    /// The key of its source.
    pub source: String,
}

/// Where facts are from, and how sure they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Source {
    /// How sure the facts are.
    pub kind: Kind,
    /// The document, the report or the derivation.
    pub text: String,
}

/// How sure a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Read first-hand in a specification, a configuration file or source code.
    Read,
    /// Somebody's public report or measurement.
    Reported,
    /// By arithmetic from other facts.
    Derived,
    /// Not checked; do not build on it.
    Unconfirmed,
    /// Measured on this machine when the program started; such a fact has no value in the file.
    Measured,
}

/// A fact as the file has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct RawFact<T> {
    value: Option<T>,
    source: String,
}

/// Turns raw facts into checked ones and notes which sources they cite.
pub(crate) struct Checker<'a> {
    path: &'a Path,
    sources: &'a BTreeMap<String, Source>,
    cited: BTreeSet<String>,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(path: &'a Path, sources: &'a BTreeMap<String, Source>) -> Self {
        Self { path, sources, cited: BTreeSet::new() }
    }

    /// An error about `key`: `rule` completes the sentence.
    pub(crate) fn broken(&self, key: &str, rule: impl Into<String>) -> Error {
        Error::Fact { path: self.path.to_path_buf(), key: key.to_owned(), rule: rule.into() }
    }

    /// A fact that a board may lack, and that may be measured.
    pub(crate) fn measurable<T>(
        &mut self,
        key: &str,
        raw: Option<RawFact<T>>,
        measured: Option<T>,
    ) -> Result<Option<Fact<T>>> {
        let Some(raw) = raw else { return Ok(None) };
        let Some(source) = self.sources.get(&raw.source) else {
            return Err(self.broken(key, format!("cites `{}`, which [sources] does not define", raw.source)));
        };
        self.cited.insert(raw.source.clone());
        let value = match (raw.value, source.kind) {
            (Some(_), Kind::Measured) => {
                return Err(self.broken(key, "is measured at run time, so it must not have a value"));
            }
            (None, Kind::Measured) => measured,
            (None, _) => return Err(self.broken(key, "has no value, and its source is not a measured one")),
            (value, _) => value,
        };
        Ok(value.map(|value| Fact { value, source: raw.source }))
    }

    /// A fact that a board may lack.
    pub(crate) fn optional<T>(&mut self, key: &str, raw: Option<RawFact<T>>) -> Result<Option<Fact<T>>> {
        self.measurable(key, raw, None)
    }

    /// A fact that every board has.
    pub(crate) fn required<T>(&self, key: &str, fact: Option<Fact<T>>) -> Result<Fact<T>> {
        fact.ok_or_else(|| self.broken(key, "is missing, and this machine does not tell it either"))
    }

    /// Every defined source must have been cited: a source that nobody cites is a left-over.
    pub(crate) fn finish(self) -> Result<()> {
        match self.sources.keys().find(|name| !self.cited.contains(*name)) {
            Some(name) => Err(self.broken(name, "is defined in [sources] and cited by no fact")),
            None => Ok(()),
        }
    }
}
