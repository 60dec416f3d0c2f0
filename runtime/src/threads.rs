//! A small fixed thread pool for splitting one kernel call between cores.
//!
//! A call hands out numbered parts; workers and the caller take them one by one until none is left, so a
//! worker that the system has put to sleep delays nothing: the caller does its part. Idle workers spin for [`SPIN`], then park.
//! Nothing is allocated and no lock is taken after [`Pool::new`].
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::EngineError;

/// How long an idle worker looks for work before it sleeps: cameras and servers share the cores.
pub const SPIN: Duration = Duration::from_micros(50);

/// What a call runs: a part's number in, the part's work done.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// A fixed set of worker threads. One call runs at a time; a call that comes while another runs does its work alone.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// A call is using the workers.
    busy: AtomicBool,
    /// The job of the running call. Written only by the owner of `busy` while `unclaimed` is 0.
    job: UnsafeCell<*const Job<'static>>,
    /// Parts that nobody has taken yet.
    unclaimed: AtomicUsize,
    /// Parts that are not finished yet.
    unfinished: AtomicUsize,
    /// A part of the running call has panicked.
    panicked: AtomicBool,
    /// Workers that sleep or are about to.
    parked: AtomicUsize,
    /// Workers whose thread is set up: starting one allocates.
    started: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the owner of `busy` before it publishes parts through `unclaimed` (SeqCst),
// and read only by a thread that has taken one of those parts; the rest is atomic.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed under the rule above, from any thread.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("parked", &self.parked).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool in which `threads` threads share the work: the caller and `threads − 1` workers.
    ///
    /// # Errors
    /// If a thread does not start.
    pub fn new(threads: usize) -> Result<Self, EngineError> {
        let nothing: *const Job<'static> = &|_| ();
        let shared = Arc::new(Shared {
            busy: AtomicBool::new(false),
            job: UnsafeCell::new(nothing),
            unclaimed: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker =
                std::thread::Builder::new().name(format!("saccade-{index}")).spawn(move || shared.work());
            // An early return drops the pool, which stops the workers that did start.
            pool.workers.push(worker.map_err(|source| EngineError::Threads { index, threads, source })?);
        }
        while pool.shared.started.load(Ordering::SeqCst) < pool.workers.len() {
            std::thread::yield_now();
        }
        Ok(pool)
    }

    /// Threads that share the work, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0)`, `f(1)`, … `f(parts − 1)`, each once, on this thread and the workers; returns when all are done.
    ///
    /// # Panics
    /// If a part panics, after all others are done.
    pub fn run(&self, parts: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if parts < 2 || self.workers.is_empty() || shared.busy.swap(true, Ordering::SeqCst) {
            (0..parts).for_each(f);
            return;
        }
        // SAFETY: only the lifetime changes. The pointer is followed by threads that hold an unfinished part,
        // and this function does not return or unwind before `unfinished` is 0.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(f) };
        // SAFETY: `busy` is ours and no part is unclaimed, so nobody reads `job`.
        unsafe { *shared.job.get() = job };
        shared.unfinished.store(parts, Ordering::SeqCst);
        shared.unclaimed.store(parts, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            for worker in &self.workers {
                worker.thread().unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| while shared.run_part() {}));
        if outcome.is_err() {
            // The part that panicked counts as finished; the others must be done before `f` goes away.
            while let Ok(true) | Err(_) = catch_unwind(AssertUnwindSafe(|| shared.run_part())) {}
        }
        let mut waited = Spin::new();
        while shared.unfinished.load(Ordering::SeqCst) > 0 {
            if !waited.spin() {
                std::thread::yield_now();
            }
        }
        let panicked = shared.panicked.swap(false, Ordering::SeqCst);
        shared.busy.store(false, Ordering::SeqCst);
        match outcome {
            Err(payload) => resume_unwind(payload),
            Ok(()) => assert!(!panicked, "a worker panicked; its message is above"),
        }
    }

    /// Cuts `data` into pieces of `chunk_len` (the last may be shorter) and runs `f(i, piece i)` for all of them, in parallel.
    ///
    /// # Panics
    /// If `chunk_len` is 0, or a piece's work panics.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        f: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        assert!(chunk_len > 0, "pieces of nothing");
        struct Base<T>(*mut T);
        // SAFETY: the pieces made from the pointer below do not overlap, and `T` may move between threads.
        unsafe impl<T: Send> Sync for Base<T> {}
        impl<T> Base<T> {
            fn get(&self) -> *mut T {
                self.0
            }
        }
        let (base, len) = (Base(data.as_mut_ptr()), data.len());
        self.run(len.div_ceil(chunk_len), &|i| {
            let start = i * chunk_len;
            // SAFETY: `run` calls each `i` below the number of pieces once, so `start < len`.
            let piece = unsafe { base.get().add(start) };
            // SAFETY: `[start, start + chunk_len) ∩ [0, len)` lies in `data`, which is borrowed for the call and is disjoint from
            // every other piece.
            let piece = unsafe { std::slice::from_raw_parts_mut(piece, chunk_len.min(len - start)) };
            f(i, piece);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what its parts throw, so there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Takes one part and runs it; `false` when there was none.
    fn run_part(&self) -> bool {
        let take = |n: usize| n.checked_sub(1);
        let Ok(unclaimed) = self.unclaimed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) else {
            return false;
        };
        // SAFETY: the part just taken belongs to the running call, which wrote `job` before it published the part.
        let job = unsafe { *self.job.get() };
        // Counts the part as finished even when it panics.
        let _finished = Finished(self);
        // SAFETY: the call waits for this part before it lets go of what `job` points to.
        let job = unsafe { &*job };
        job(unclaimed - 1);
        true
    }

    /// The life of a worker.
    fn work(&self) {
        self.started.fetch_add(1, Ordering::SeqCst);
        let mut idle = Spin::new();
        while !self.stop.load(Ordering::SeqCst) {
            match catch_unwind(AssertUnwindSafe(|| self.run_part())) {
                Ok(false) if idle.spin() => {}
                Ok(false) => {
                    self.park();
                    idle = Spin::new();
                }
                Ok(true) => idle = Spin::new(),
                Err(_) => {}
            }
        }
    }

    /// Sleeps until a call wakes this worker, unless there is work already.
    ///
    /// Either the caller's look at `parked` comes after the increment here and it wakes us, or our look at `unclaimed` comes after
    /// its store and we see the work.
    fn park(&self) {
        self.parked.fetch_add(1, Ordering::SeqCst);
        if self.unclaimed.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Finished<'a>(&'a Shared);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::SeqCst);
        }
        self.0.unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Spins for [`SPIN`], looking at the clock only now and then.
struct Spin {
    turns: u32,
    since: Option<Instant>,
}

impl Spin {
    fn new() -> Self {
        Self { turns: 0, since: None }
    }

    /// One turn; `false` once the time is over.
    fn spin(&mut self) -> bool {
        std::hint::spin_loop();
        self.turns = self.turns.wrapping_add(1);
        !self.turns.is_multiple_of(32) || self.since.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

#[cfg(test)]
mod tests;
