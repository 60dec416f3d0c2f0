//! An allocator that counts, so that the bench can show that the frame loop does not allocate.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The system's allocator, counting on every thread while it is told to.
#[derive(Debug)]
pub(crate) struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Counts allocations and reallocations of all threads until it is dropped.
#[derive(Debug)]
pub(crate) struct Count(u64);

impl Count {
    /// Starts to count.
    pub(crate) fn start() -> Self {
        ON.store(true, Ordering::SeqCst);
        Self(ALLOCATIONS.load(Ordering::SeqCst))
    }

    /// Stops, and says how many there were.
    pub(crate) fn stop(self) -> u64 {
        ON.store(false, Ordering::SeqCst);
        ALLOCATIONS.load(Ordering::SeqCst) - self.0
    }
}

fn note() {
    if ON.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `System` unchanged; counting touches no memory but two atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` or `realloc` here, hence from `System`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note();
        // SAFETY: `memory` came from here with this layout, and the caller keeps the rest of the contract.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}
