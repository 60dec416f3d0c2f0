//! What the loop saw, written and shown; the loop never waits for any of it.
//!
//! A few [`Seen`] go round: the loop fills one, hands it over and gets a used one back. When all are on their way the
//! loop goes on without publishing, unless every frame was asked for.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Context as _;
use saccade::config::ActionConfig;
use saccade::family::Model;
use saccade::source::CaptureState;
use serde_json::{Map, Value, json};

use crate::run::Seen;
use crate::shown::Latest;
use crate::stats::{Stats, ms};

/// Records that go round between the loop and the publisher.
const RECORDS: usize = 4;

/// The loop's end of the publisher.
#[derive(Debug)]
pub(crate) struct Outlet {
    to: SyncSender<Seen>,
    back: Receiver<Seen>,
    every_frame: bool,
    latest: Arc<Latest>,
}

impl Outlet {
    /// No frame came for a while: says why on the screen.
    pub(crate) fn waiting(&self, state: CaptureState) {
        self.latest.waiting(state);
    }

    /// A record to begin with.
    pub(crate) fn first(&mut self) -> Seen {
        self.back.recv().unwrap_or_default()
    }

    /// Hands `seen` over and puts a used record in its place; false if the publisher was too slow for it.
    pub(crate) fn publish(&mut self, seen: &mut Seen) -> bool {
        let used = if self.every_frame { self.back.recv().ok() } else { self.back.try_recv().ok() };
        let Some(used) = used else { return false };
        let full = std::mem::replace(seen, used);
        match self.to.try_send(full) {
            Ok(()) => true,
            // There are as many places as records, so this happens only when the publisher has died.
            Err(TrySendError::Full(full) | TrySendError::Disconnected(full)) => {
                *seen = full;
                false
            }
        }
    }
}

/// Where JSON lines and pictures go.
pub(crate) struct Sinks {
    lines: Vec<Box<dyn Write + Send>>,
    pictures: Option<PathBuf>,
}

impl Sinks {
    /// Creates the files.
    ///
    /// # Errors
    /// If one cannot be created.
    pub(crate) fn open(headless: bool, jsonl: Option<&Path>, save: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| -> anyhow::Result<Box<dyn Write + Send>> {
            let file = File::create(path)
                .with_context(|| format!("{} cannot be written: choose another place", path.display()))?;
            Ok(Box::new(BufWriter::new(file)))
        };
        let mut lines: Vec<Box<dyn Write + Send>> = Vec::new();
        match jsonl {
            Some(path) => lines.push(create(path)?),
            // A line at a time: whoever reads the pipe sees each frame as it comes.
            None if headless => lines.push(Box::new(io::stdout())),
            None => {}
        }
        if let Some(dir) = save {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("{} cannot be made: choose another folder", dir.display()))?;
            lines.push(create(&dir.join("frames.jsonl"))?);
        }
        Ok(Self { lines, pictures: save.map(Path::to_owned) })
    }
}

/// The thread that writes and shows.
pub(crate) struct Publisher {
    latest: Arc<Latest>,
    outlet: Mutex<Option<(SyncSender<Seen>, Receiver<Seen>)>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Publisher {
    /// Starts the thread, which sets `stop` if it can write no more.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start(
        model: &Arc<Model>,
        question: &str,
        sinks: Sinks,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let config = model.unimodal()?;
        let (to, records) = sync_channel(RECORDS);
        let (give_back, back) = sync_channel(RECORDS);
        for _ in 0..RECORDS {
            // There is room for as many: this cannot fail.
            let _ = give_back.try_send(Seen::new(config));
        }
        let latest = Arc::new(Latest::default());
        latest.update(|shown| {
            question.clone_into(&mut shown.question);
            shown.action_names.clone_from(&config.action.names);
        });
        let writer = Writer {
            model: Arc::clone(model),
            action: config.action.clone(),
            sinks,
            latest: Arc::clone(&latest),
            stats: Stats::default(),
        };
        let thread = thread::Builder::new()
            .name("publish".into())
            .spawn(move || {
                let written = writer.run(&records, &give_back);
                stop.store(true, Ordering::Relaxed);
                // Whoever reads our lines may have had enough, as `head` does: no reason to complain.
                written.or_else(|error| if is_broken_pipe(&error) { Ok(()) } else { Err(error) })
            })
            .context("the publisher thread cannot be started")?;
        Ok(Self { latest, outlet: Mutex::new(Some((to, back))), thread })
    }

    /// What view and page read.
    pub(crate) fn shown(&self) -> Arc<Latest> {
        Arc::clone(&self.latest)
    }

    /// The loop's end; with `every_frame` it waits rather than leave one out.
    ///
    /// # Panics
    /// If it is asked for twice.
    pub(crate) fn outlet(&self, every_frame: bool) -> Outlet {
        let ends = self.outlet.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (to, back) = ends.expect("there is one loop");
        Outlet { to, back, every_frame, latest: self.shown() }
    }

    /// Waits until everything is written; the loop must have ended.
    ///
    /// # Errors
    /// The first thing that could not be written.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        drop(self.outlet);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the publisher has died: this is a bug, please report it"))?
    }
}

struct Writer {
    model: Arc<Model>,
    action: ActionConfig,
    sinks: Sinks,
    latest: Arc<Latest>,
    stats: Stats,
}

impl Writer {
    fn run(mut self, records: &Receiver<Seen>, give_back: &SyncSender<Seen>) -> anyhow::Result<()> {
        for mut seen in records {
            seen.frame.fill_rgb();
            let text = self.model.text()?.decode(&seen.answer)?;
            self.stats.add(&seen, Instant::now());
            self.write(&seen, &text)?;
            self.show(&seen, text);
            // The loop may have ended while this was being written.
            let _ = give_back.try_send(seen);
        }
        for lines in &mut self.sinks.lines {
            lines.flush().context("the JSON lines cannot be written: is the disk full?")?;
        }
        Ok(())
    }

    fn write(&mut self, seen: &Seen, text: &str) -> anyhow::Result<()> {
        if self.sinks.lines.is_empty() {
            return Ok(());
        }
        let dims = self.action.names.len();
        let line = format!("{}\n", line(seen, text, dims));
        for lines in &mut self.sinks.lines {
            lines
                .write_all(line.as_bytes())
                .context("the JSON lines cannot be written: is the disk full?")?;
        }
        if let Some(dir) = &self.sinks.pictures {
            let frame = &seen.frame;
            let path = dir.join(format!("{:06}.jpg", frame.seq));
            image::save_buffer(&path, &frame.rgb, frame.width, frame.height, image::ExtendedColorType::Rgb8)
                .with_context(|| format!("{} cannot be written: is the disk full?", path.display()))?;
        }
        Ok(())
    }

    fn show(&mut self, seen: &Seen, text: String) {
        let summary = self.stats.summary();
        let action = &self.action;
        self.latest.update(|shown| {
            shown.rgb.clone_from(&seen.frame.rgb);
            (shown.width, shown.height, shown.seq) = (seen.frame.width, seen.frame.height, seen.frame.seq);
            shown.text = text;
            shown.action.clone_from(&seen.action.values);
            let ranges = action.low.iter().zip(&action.high).cycle();
            let units = seen.action.values.iter().zip(ranges);
            shown.action_units.clear();
            shown
                .action_units
                .extend(units.map(|(value, (low, high))| ((value - low) / (high - low)).clamp(0.0, 1.0)));
            shown.age_ms = ms(seen.age);
            shown.dropped = seen.dropped;
            shown.summary = summary;
            shown.trouble = "";
        });
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// One frame as a JSON object.
fn line(seen: &Seen, text: &str, dims: usize) -> Value {
    let t = &seen.timings;
    let timings: Map<String, Value> =
        [("decode", t.decode), ("tokenize", t.tokenize), ("prefill", t.prefill), ("generate", t.generate)]
            .into_iter()
            .map(|(stage, time)| (stage.to_owned(), rounded(ms(time))))
            .collect();
    let steps: Vec<Value> = seen
        .action
        .values
        .chunks_exact(dims.max(1))
        .map(|step| step.iter().map(|&value| rounded(value.into())).collect())
        .collect();
    json!({
        "seq": seen.frame.seq,
        "capture_ns": seen.frame.capture_ns,
        "age_ms": rounded(ms(seen.age)),
        "text": text,
        "action": steps,
        "codes": seen.codes,
        "timings_ms": timings,
        "dropped": seen.dropped,
    })
}

/// Three decimals: microseconds, and finer than a bin of an action.
fn rounded(value: f64) -> Value {
    json!((value * 1e3).round() / 1e3)
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
