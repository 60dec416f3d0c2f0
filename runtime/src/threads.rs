//! A small fixed thread pool for splitting one kernel call between cores.
//!
//! A call hands out numbered parts, the last one first; workers and the caller take them one by one until none is left, so a
//! worker that the system has put to sleep delays nothing: the caller does its part. Idle workers spin for a while ([`Idle`]), then park.
//! Nothing is allocated and no lock is taken after [`Pool::new`].
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::EngineError;

/// How idle workers wait for work.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// How long a worker looks for work before it sleeps.
    pub spin: Duration,
    /// Whether each worker stays on one core, so that it finds its caches warm. The first core is left to the caller.
    pub pinned: bool,
}

impl Default for Idle {
    /// 50 µs, not pinned: cameras and servers share the cores.
    fn default() -> Self {
        Self { spin: Duration::from_micros(50), pinned: false }
    }
}

impl Idle {
    /// For a machine that does nothing else, as a bench wants it: workers spin for 20 ms, each on its core.
    pub const ALONE: Self = Self { spin: Duration::from_millis(20), pinned: true };
}

/// What a call runs: the number of the thread (0 is the caller) and of the part in, the part's work done.
type Job<'a> = dyn Fn(usize, usize) + Sync + 'a;

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
    /// How long a worker looks for work.
    spin: Duration,
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
    pub fn new(threads: usize, idle: Idle) -> Result<Self, EngineError> {
        let nothing: *const Job<'static> = &|_, _| ();
        let shared = Arc::new(Shared {
            busy: AtomicBool::new(false),
            job: UnsafeCell::new(nothing),
            unclaimed: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            spin: idle.spin,
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("saccade-{index}")).spawn(move || {
                if idle.pinned {
                    pin(index);
                }
                shared.work(index);
            });
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

    /// Runs `f(thread, part)` for every part below `parts`, each once, on this thread and the workers; returns when all are done.
    /// `thread` is below [`Self::threads`], and at any time one part at most runs with each.
    ///
    /// # Panics
    /// If a part panics, after all others are done.
    pub fn run(&self, parts: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let shared = &*self.shared;
        if parts < 2 || self.workers.is_empty() || shared.busy.swap(true, Ordering::SeqCst) {
            (0..parts).for_each(|part| f(0, part));
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
        let outcome = catch_unwind(AssertUnwindSafe(|| while shared.run_part(0) {}));
        if outcome.is_err() {
            // The part that panicked counts as finished; the others must be done before `f` goes away.
            while let Ok(true) | Err(_) = catch_unwind(AssertUnwindSafe(|| shared.run_part(0))) {}
        }
        let mut waited = Spin::of(shared.spin);
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

    /// Cuts `a` and `b` into as many pieces of the given lengths (the last ones may be shorter) and runs
    /// `f(i, piece i of a, piece i of b, scratch)` for all of them, in parallel; `scratch` has one element for each thread, and
    /// each piece sees one that no other sees meanwhile.
    ///
    /// # Panics
    /// If the pieces of `a` have no length, `scratch` has fewer elements than there are threads, or a piece's work panics.
    #[expect(clippy::type_complexity, reason = "what a piece's work is given")]
    pub fn for_each_piece<A: Send, B: Send, S: Send>(
        &self,
        (a, a_len): (&mut [A], usize),
        (b, b_len): (&mut [B], usize),
        scratch: &mut [S],
        f: &(dyn Fn(usize, &mut [A], &mut [B], &mut S) + Sync),
    ) {
        assert!(a_len > 0, "pieces of nothing");
        assert!(scratch.len() >= self.threads(), "{} of {} scratches", scratch.len(), self.threads());
        let pieces = a.len().div_ceil(a_len);
        let (a, b, scratch) = (Pieces::of(a, a_len), Pieces::of(b, b_len), Pieces::of(scratch, 1));
        self.run(pieces, &|thread, i| {
            // SAFETY: `run` calls each `i` once.
            let a = unsafe { a.piece(i) };
            // SAFETY: as above.
            let b = unsafe { b.piece(i) };
            // SAFETY: `run` gives `thread`, which is below the number of threads, to one part at a time.
            let scratch = unsafe { scratch.piece(thread) };
            f(i, a, b, &mut scratch[0]);
        });
    }

    /// Cuts the columns of some matrices of as many rows, seen as one beside the other, at multiples of `piece_width`, and runs
    /// `f(n, columns, their part of matrix n, scratch)` for all of them, in parallel. `outs`: each matrix and its width; `scratch` as
    /// in [`Self::for_each_piece`].
    ///
    /// # Panics
    /// If `piece_width` is 0, a matrix is not `rows` rows, `scratch` has fewer elements than there are threads, or a piece's work
    /// panics.
    #[expect(clippy::type_complexity, reason = "what a piece's work is given")]
    pub fn for_each_columns<T: Send, S: Send, const N: usize>(
        &self,
        outs: [(&mut [T], usize); N],
        rows: usize,
        piece_width: usize,
        scratch: &mut [S],
        f: &(dyn Fn(usize, Range<usize>, Columns<T>, &mut S) + Sync),
    ) {
        assert!(piece_width > 0, "pieces of nothing");
        assert!(scratch.len() >= self.threads(), "{} of {} scratches", scratch.len(), self.threads());
        let scratch = Pieces::of(scratch, 1);
        let total: usize = outs.iter().map(|(_, width)| width).sum();
        let outs = outs.map(|(out, width)| {
            let whole = Columns::of(out, rows, width);
            (Pieces { base: whole.base, len: 0, piece_len: 0, of: PhantomData }, width)
        });
        self.run(total.div_ceil(piece_width), &|thread, i| {
            // SAFETY: `run` gives `thread`, which is below the number of threads, to one part at a time.
            let scratch = &mut unsafe { scratch.piece(thread) }[0];
            let mut first = 0;
            for (n, (out, width)) in outs.iter().enumerate() {
                let columns = (i * piece_width).max(first)..((i + 1) * piece_width).min(first + width);
                if columns.start < columns.end {
                    let columns = columns.start - first..columns.end - first;
                    let base = out.base().wrapping_add(columns.start);
                    let part = Columns { base, rows, width: columns.len(), stride: *width, of: PhantomData };
                    f(n, columns, part, scratch);
                }
                first += width;
            }
        });
    }
}

/// Where the pieces of one borrowed slice are.
struct Pieces<'a, T> {
    base: *mut T,
    len: usize,
    piece_len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: who takes a piece vouches that nobody else has it, and `T` may move between threads.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    fn of(data: &'a mut [T], piece_len: usize) -> Self {
        Self { base: data.as_mut_ptr(), len: data.len(), piece_len, of: PhantomData }
    }

    fn base(&self) -> *mut T {
        self.base
    }

    /// Piece `i`, empty beyond the end.
    ///
    /// # Safety
    /// Nobody else may have it.
    #[allow(clippy::mut_from_ref, reason = "as the safety section says")]
    unsafe fn piece(&self, i: usize) -> &mut [T] {
        let start = (i * self.piece_len).min(self.len);
        let len = self.piece_len.min(self.len - start);
        // SAFETY: `start` is at most one past the end.
        let start = unsafe { self.base.add(start) };
        // SAFETY: `len` elements from there on are in the slice, which is borrowed; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

/// Some neighbouring columns of a row-major matrix: what one thread may write of a shared result. Whoever made it vouches that
/// `width` columns from `base` on of each of `rows` rows are borrowed, and by nobody else.
#[derive(Debug)]
pub struct Columns<'a, T> {
    base: *mut T,
    rows: usize,
    width: usize,
    stride: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: it is the only way to its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    /// All of `out`, a matrix of `rows` by `width`.
    ///
    /// # Panics
    /// If `out` is not that long.
    pub fn of(out: &'a mut [T], rows: usize, width: usize) -> Self {
        assert_eq!(out.len(), rows * width, "a matrix of {rows} × {width}");
        Self { base: out.as_mut_ptr(), rows, width, stride: width, of: PhantomData }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn part(&mut self, columns: Range<usize>) -> Columns<'_, T> {
        assert!(
            columns.start <= columns.end && columns.end <= self.width,
            "columns {columns:?} of {}",
            self.width
        );
        let base = self.base.wrapping_add(columns.start);
        Columns { base, rows: self.rows, width: columns.len(), stride: self.stride, of: PhantomData }
    }

    /// The columns of row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: row `i` is in the matrix, and so are `width` columns from `base` on.
        let row = unsafe { self.base.add(i * self.stride) };
        // SAFETY: as above; the elements are this value's alone, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(row, self.width) }
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
    fn run_part(&self, thread: usize) -> bool {
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
        job(thread, unclaimed - 1);
        true
    }

    /// The life of a worker.
    fn work(&self, thread: usize) {
        self.started.fetch_add(1, Ordering::SeqCst);
        let mut idle = Spin::of(self.spin);
        while !self.stop.load(Ordering::SeqCst) {
            match catch_unwind(AssertUnwindSafe(|| self.run_part(thread))) {
                Ok(false) if idle.spin() => {}
                Ok(false) => {
                    self.park();
                    idle = Spin::of(self.spin);
                }
                Ok(true) => idle = Spin::of(self.spin),
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

/// Keeps the calling thread on the core of this index among those that the process may use.
#[cfg(target_os = "linux")]
fn pin(index: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let pinned = sched_getaffinity(None).and_then(|may| {
        let Some(core) = (0..CpuSet::MAX_CPU).filter(|&core| may.is_set(core)).nth(index) else {
            return Ok(());
        };
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one)
    });
    if let Err(error) = pinned {
        log::warn!("worker {index} is not kept on one core: {error}");
    }
}

/// There is no way to ask for it here.
#[cfg(not(target_os = "linux"))]
fn pin(_: usize) {}

/// Spins for a while, looking at the clock only now and then.
struct Spin {
    turns: u32,
    since: Option<Instant>,
    time: Duration,
}

impl Spin {
    fn of(time: Duration) -> Self {
        Self { turns: 0, since: None, time }
    }

    /// One turn; `false` once the time is over.
    fn spin(&mut self) -> bool {
        std::hint::spin_loop();
        self.turns = self.turns.wrapping_add(1);
        !self.turns.is_multiple_of(32) || self.since.get_or_insert_with(Instant::now).elapsed() < self.time
    }
}

#[cfg(test)]
mod tests;
