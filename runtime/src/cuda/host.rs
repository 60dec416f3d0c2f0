//! Memory of the host that a card reads where it lies.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::Device;
use super::error::{CudaError, words};
use crate::pages::Map;

/// How a card reads a mapped file, by its own attributes.
///
/// A card that registers only memory that may be written to could be given a private mapping. Pinning that makes a copy of every page
/// which nothing can reclaim, beside the file in the page cache, so it is no way of having the weights once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostReads {
    /// At the host's own addresses.
    Pages,
    /// At addresses that it is given when the file is registered.
    Registered,
    /// Not at all: it registers memory that may be written to (`true`), or none.
    No(bool),
}

impl HostReads {
    /// By the attributes: pages of any kind, registered memory, registered memory that is read-only.
    pub(super) fn of(pageable: bool, registers: bool, read_only: bool) -> Self {
        match (pageable, read_only) {
            (true, _) => Self::Pages,
            (false, true) => Self::Registered,
            (false, false) => Self::No(registers),
        }
    }

    /// Why it does not.
    pub(crate) fn refusal(self) -> Option<&'static str> {
        match self {
            Self::No(false) => Some("the card reads no memory of the host"),
            Self::No(true) => {
                Some("the card registers no read-only memory, and registering any other would copy it")
            }
            Self::Pages | Self::Registered => None,
        }
    }
}

/// A mapped file at addresses that a card reads.
#[derive(Debug)]
pub(crate) struct HostPages {
    device: Arc<Device>,
    /// Stays mapped as long as the card may read it.
    map: Map,
    at: sys::CUdeviceptr,
    registered: bool,
}

impl HostPages {
    /// Makes a mapped file readable to a card.
    pub(crate) fn new(device: &Arc<Device>, map: &Map) -> Result<Self, CudaError> {
        let reads = device.host_reads();
        let cannot = |reason: &str| CudaError::CannotMap {
            device: device.name().to_owned(),
            reason: reason.to_owned(),
        };
        if let Some(reason) = reads.refusal() {
            return Err(cannot(reason));
        }
        let registered = reads == HostReads::Registered;
        let host: *mut c_void = map.as_ptr().cast_mut().cast();
        let mut at = host.addr() as sys::CUdeviceptr;
        if registered {
            device.enter()?;
            let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP | sys::CU_MEMHOSTREGISTER_READ_ONLY;
            // Every driver that `Device::open` accepts has the three calls of this file.
            // SAFETY: the range is mapped and stays so, since this holds the map; the card only reads it, as the flag says.
            unsafe { sys::cuMemHostRegister_v2(host, map.len(), flags) }
                .result()
                // Whatever it says: a driver that cannot pin a file says so in many ways. A card that is lost shows that at the next call.
                .map_err(|error| cannot(&format!("cuMemHostRegister says {}", words(error))))?;
        }
        let mut this = Self { device: Arc::clone(device), map: map.clone(), at, registered };
        if registered {
            // SAFETY: registered above; writes one address.
            unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut at, host, 0) }
                .result()
                .map_err(CudaError::of("cuMemHostGetDevicePointer"))?;
            this.at = at;
        }
        Ok(this)
    }

    /// Where the card finds the file's first byte.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }
}

impl Drop for HostPages {
    fn drop(&mut self) {
        // Not before the last kernel that reads it is over. A lost card reads nothing any more.
        let _ = self.device.wait();
        if self.registered {
            // SAFETY: registered by `new`, and given back once.
            let _ = unsafe { sys::cuMemHostUnregister(self.map.as_ptr().cast_mut().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_say_how_a_card_reads_a_mapped_file() {
        for (attributes, reads, refused) in [
            ([false, false, false], HostReads::No(false), true), // TX2
            ([false, true, false], HostReads::No(true), true),   // Orin, if it pins for writing
            ([false, true, true], HostReads::Registered, false),
            ([true, true, false], HostReads::Pages, false), // Thor
            ([true, true, true], HostReads::Pages, false),
        ] {
            let found = HostReads::of(attributes[0], attributes[1], attributes[2]);
            assert_eq!((found, found.refusal().is_some()), (reads, refused), "{attributes:?}");
        }
    }
}
