//! Which linear layers of an INT8 bundle stay float because the user said so.

use std::collections::BTreeSet;

use regex::Regex;
use saccade::config::WeightDtype;
use saccade::family::{Role, SHARED_INPUTS, TensorSpec};

use crate::error::{ConvertError, Result};
use crate::rounding::kind;

/// The linear layers, without `.weight`, whose names match one of `patterns`.
///
/// # Errors
/// [`ConvertError::KeepFloat`] when a bundle of `dtype` has no INT8 layers, when a pattern matches none, and when it matches one of
/// several that read the same activations.
pub(crate) fn kept(specs: &[TensorSpec], patterns: &[Regex], dtype: WeightDtype) -> Result<BTreeSet<String>> {
    let refuse = |pattern: &Regex, reason: String| {
        Err(ConvertError::KeepFloat { pattern: pattern.as_str().into(), reason })
    };
    let linears: Vec<&str> =
        specs.iter().filter(|spec| spec.role == Role::Linear).map(TensorSpec::stem).collect();
    let mut kept = BTreeSet::new();
    for pattern in patterns {
        if dtype != WeightDtype::Int8 {
            return refuse(
                pattern,
                "only INT8 bundles have other layers beside float ones; leave it out".into(),
            );
        }
        let mut matching = linears.iter().filter(|stem| pattern.is_match(stem)).peekable();
        if matching.peek().is_none() {
            return refuse(
                pattern,
                format!("it matches no linear layer; they have names like {}", examples(&linears)),
            );
        }
        kept.extend(matching.map(|&stem| stem.to_owned()));
    }
    for stem in &kept {
        for group in SHARED_INPUTS {
            let Some((layer, own)) = group.iter().find_map(|own| Some((stem.strip_suffix(own)?, own))) else {
                continue;
            };
            let other = group.iter().map(|name| format!("{layer}{name}")).find(|name| !kept.contains(name));
            if let (Some(other), Some(last)) = (other, patterns.last()) {
                let names = group.join(", ");
                let pattern = patterns.iter().find(|pattern| pattern.is_match(stem)).unwrap_or(last);
                return refuse(
                    pattern,
                    format!(
                        "`{layer}{own}` would be float and `{other}` INT8, but {names} of a layer read the same activations: \
                         match all of them or none"
                    ),
                );
            }
        }
    }
    Ok(kept)
}

/// A name of each kind.
fn examples(linears: &[&str]) -> String {
    let mut kinds = BTreeSet::new();
    let examples = linears.iter().filter(|stem| kinds.insert(kind(stem)));
    examples.map(|stem| format!("`{stem}`")).collect::<Vec<_>>().join(", ")
}
