//! Graphs: launches and copies that are captured once and put into the stream as one.

use std::cell::Cell;
use std::sync::{Arc, PoisonError};

use cudarc::driver::{result, sys};

use super::driver::Device;
use super::error::CudaError;

thread_local! {
    /// Where this thread's launches and copies go.
    static WAY: Cell<Way> = const { Cell::new(Way::Stream) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Stream,
    /// Into the graph that is captured.
    Graph,
    /// Nowhere: a graph has them already.
    Nowhere,
}

impl Way {
    /// Runs `work` with everything going there; even if it panics, not what follows.
    fn of<T>(self, work: impl FnOnce() -> T) -> T {
        struct Back(Way);
        impl Drop for Back {
            fn drop(&mut self) {
                WAY.set(self.0);
            }
        }
        let _back = Back(WAY.replace(self));
        work()
    }
}

/// Launches that were captured, to be put into the stream as one.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, which any thread may use whose context is current.
unsafe impl Send for Graph {}
// SAFETY: as above; launches of one graph are ordered by the stream.
unsafe impl Sync for Graph {}

impl Graph {
    /// Puts the launches into the stream.
    pub(crate) fn launch(&self) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both live.
        unsafe { result::graph::launch(self.executable, self.device.stream) }
            .map_err(CudaError::of("cuGraphLaunch"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Not before the last launch is over.
        let _ = self.device.wait();
        // SAFETY: made by `capture`, and destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.executable) };
    }
}

/// A capture under way. Dropped, it ends, and what was captured goes: behind work that failed or panicked.
struct Capture<'a>(&'a Device);

impl Capture<'_> {
    fn end(self) -> Result<sys::CUgraph, CudaError> {
        let device = self.0;
        std::mem::forget(self);
        // SAFETY: the stream lives until the device's `Drop`, and a capture is under way.
        unsafe { result::stream::end_capture(device.captured) }.map_err(CudaError::of("cuStreamEndCapture"))
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Ok(graph) = Capture(self.0).end() {
            // SAFETY: captured just now, and destroyed once. One that cannot be destroyed is lost with the context.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }
}

impl Device {
    /// The stream that launches and copies of this thread go into, if they go anywhere.
    pub(super) fn way(&self) -> Option<sys::CUstream> {
        match WAY.get() {
            Way::Stream => Some(self.stream),
            Way::Graph => Some(self.captured),
            Way::Nowhere => None,
        }
    }

    /// Runs `work`, whose launches and copies go into a graph instead of the stream. Other threads' go into the stream meanwhile.
    pub(crate) fn capture<E: From<CudaError>>(
        self: &Arc<Self>,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        // Nothing is behind the lock that a panic could leave half done.
        let _one_at_a_time = self.capturing.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives until `Drop`.
        unsafe { result::stream::begin_capture(self.captured, mode) }
            .map_err(CudaError::of("cuStreamBeginCapture"))?;
        let capture = Capture(self);
        Way::Graph.of(work)?;
        let graph = capture.end()?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was captured above and is destroyed below; `Graph` destroys the executable one.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0) }.result();
        // SAFETY: as above. A graph that cannot be destroyed is lost with the context.
        let _ = unsafe { result::graph::destroy(graph) };
        made.map_err(CudaError::of("cuGraphInstantiate"))?;
        Ok(Graph { device: Arc::clone(self), executable })
    }

    /// Runs `work` without its launches and copies, which are those of `graph`, and then puts these into the stream as one.
    pub(crate) fn replay<E: From<CudaError>>(
        &self,
        graph: &Graph,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        Way::Nowhere.of(work)?;
        Ok(graph.launch()?)
    }
}
