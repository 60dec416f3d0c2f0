//! Where a card finds the weights: in the pages of the mapped file, or in memory of its own.
//!
//! On a board the card and the CPU share one memory, so a copy is a second one of the whole model; but the mapped pages are cached by the
//! card on some boards only. So attributes say what is possible, and where both are, a second's timing says which is faster.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::super::device::{DeviceOptions, Placement};
use super::CHUNK;
use super::verdicts::{Verdict, Verdicts};
use crate::config::WEIGHTS_FILE;
use crate::cuda::{CudaError, Device, HostPages, Memory, Pinned, ReadRates, ReadSizes};
use crate::weights::Weights;
use crate::{Error, Result};

/// The file of the cache folder in which timings are kept.
pub(crate) const VERDICTS_FILE: &str = "placement.json";

/// Weights that a card reads.
#[derive(Debug)]
pub(crate) struct Placed {
    held: Held,
    reason: String,
}

#[derive(Debug)]
enum Held {
    Copied(Memory),
    Mapped(HostPages),
}

impl Placed {
    /// Places a bundle's weights as asked, or says why that cannot be.
    pub(super) fn new(device: &Arc<Device>, weights: &Weights, options: &DeviceOptions) -> Result<Self> {
        let cache = options.cache_dir().map(|dir| dir.join(VERDICTS_FILE));
        Self::with(device, weights, options.weights, cache.as_deref(), &ReadSizes::BOARD)
    }

    /// The same with another file of timings, and other sizes to time.
    pub(crate) fn with(
        device: &Arc<Device>,
        weights: &Weights,
        asked: Placement,
        cache: Option<&Path>,
        sizes: &ReadSizes,
    ) -> Result<Self> {
        let (chosen, reason) = match asked {
            Placement::Auto => choose(device, weights, cache, sizes)?,
            asked => (asked, "asked for".to_owned()),
        };
        let mapped = || HostPages::new(device, weights.map()).map(Held::Mapped);
        if chosen == Placement::Mapped {
            return Ok(Self { held: mapped()?, reason });
        }
        match copy(device, weights) {
            Ok(memory) => Ok(Self { held: Held::Copied(memory), reason }),
            // A board's free memory is not known before it is asked for: the page cache gives way.
            Err(Error::Cuda(error @ CudaError::OutOfMemory { .. }))
                if asked == Placement::Auto && device.host_reads().refusal().is_none() =>
            {
                Ok(Self { held: mapped()?, reason: format!("a copy does not fit: {error}") })
            }
            Err(error) => Err(error),
        }
    }

    /// Where the card finds the file's first byte.
    pub(super) fn at(&self) -> u64 {
        match &self.held {
            Held::Copied(memory) => memory.at(),
            Held::Mapped(pages) => pages.at(),
        }
    }

    /// `mapped` or `device`.
    pub(crate) fn name(&self) -> &'static str {
        match self.held {
            Held::Copied(_) => Placement::Device.name(),
            Held::Mapped(_) => Placement::Mapped.name(),
        }
    }

    /// Why there.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }
}

/// Copies the weights to memory of the card.
///
/// Where that is memory of the host, too, pages are let go as soon as they are copied: a board would hold the model twice otherwise. What
/// the CPU reads of them later comes back from the disk.
fn copy(device: &Arc<Device>, weights: &Weights) -> Result<Memory> {
    let map = weights.map();
    let memory = device.allocate("the weights", map.len())?;
    let path = weights.dir().join(WEIGHTS_FILE);
    let file = if device.integrated() {
        Some(File::open(&path).map_err(|source| Error::Io { path, source })?)
    } else {
        None
    };
    write(device, &memory, map, &mut |range| {
        if let Some(file) = &file {
            map.forget(file, range);
        }
    })?;
    log::info!(
        "weights on the card: {} bytes, page cache {}",
        map.len(),
        if file.is_some() { "dropped" } else { "kept" }
    );
    Ok(memory)
}

/// Copies `bytes` to the beginning of `to`, and waits; `done` hears of what is no longer needed.
fn write(
    device: &Arc<Device>,
    to: &Memory,
    bytes: &[u8],
    done: &mut dyn FnMut(std::ops::Range<usize>),
) -> Result<()> {
    let mut rooms = [Pinned::new(device, CHUNK)?, Pinned::new(device, CHUNK)?];
    for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
        let room = &mut rooms[i % 2];
        room.get()?[..chunk.len()].copy_from_slice(chunk);
        to.write_from(i * CHUNK, room, 0, chunk.len())?;
        done(i * CHUNK..i * CHUNK + chunk.len());
    }
    Ok(device.wait()?)
}

/// Where the weights are better read from, and why.
fn choose(
    device: &Arc<Device>,
    weights: &Weights,
    cache: Option<&Path>,
    sizes: &ReadSizes,
) -> Result<(Placement, String)> {
    if let Some(refusal) = device.host_reads().refusal() {
        return Ok((Placement::Device, refusal.to_owned()));
    }
    if !device.integrated() {
        let reason = "the card has memory of its own, which is nearer to it than the host's";
        return Ok((Placement::Device, reason.to_owned()));
    }
    let verdicts = Verdicts::of(cache, device, &weights.config().self_blake3);
    if let Some(verdict) = verdicts.find() {
        return Ok((verdict.placement(), verdict.reason()));
    }
    match time(device, weights, sizes) {
        Ok(Some([mapped, copied])) => {
            let verdict = verdicts.keep(mapped, copied);
            Ok((verdict.placement(), verdict.reason()))
        }
        Ok(None) => Ok((
            Placement::Device,
            "the weights are too few to time where they are better read from".to_owned(),
        )),
        // What a card cannot do after all, although its attributes say that it can.
        Err(Error::Cuda(error @ CudaError::CannotMap { .. })) => Ok((Placement::Device, error.to_string())),
        Err(error) => Err(error),
    }
}

/// The rates of a slice of the weights, mapped and copied; nothing is kept of either.
fn time(device: &Arc<Device>, weights: &Weights, sizes: &ReadSizes) -> Result<Option<[ReadRates; 2]>> {
    let slice = &weights.map()[..sizes.bytes.min(weights.map().len())];
    let rates = |at| ReadRates::measure(device, at, slice.len(), sizes);
    let pages = HostPages::new(device, weights.map())?;
    // The first figures are of a card whose clocks have yet to rise.
    rates(pages.at())?;
    let Some(mapped) = rates(pages.at())? else { return Ok(None) };
    drop(pages);
    let memory = device.allocate("a slice of the weights, to time it,", slice.len())?;
    write(device, &memory, slice, &mut |_| ())?;
    Ok(rates(memory.at())?.map(|copied| [mapped, copied]))
}

impl Verdict {
    /// From what share of the copy's rates on the mapped pages are taken: they need no second memory, and the model starts sooner.
    const WORTH: f64 = 0.95;

    /// What the rates say.
    pub(crate) fn placement(&self) -> Placement {
        let enough = |mapped: f64, copied: f64| mapped >= Self::WORTH * copied;
        let (mapped, copied) = (&self.mapped, &self.copied);
        if enough(mapped.decode_gbps, copied.decode_gbps) && enough(mapped.prompt_tops, copied.prompt_tops) {
            Placement::Mapped
        } else {
            Placement::Device
        }
    }

    /// The rates in words.
    fn reason(&self) -> String {
        let Self { mapped, copied, day, .. } = self;
        format!(
            "a token streams {:.1} GB/s mapped and {:.1} copied, a prompt reaches {:.2} and {:.2} TOPS; measured on {day}",
            mapped.decode_gbps, copied.decode_gbps, mapped.prompt_tops, copied.prompt_tops
        )
    }
}
