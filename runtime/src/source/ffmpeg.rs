//! Videos of every other kind, decoded by an ffmpeg child process when there is one.
//!
//! The child writes PPM pictures to a pipe: raw `rgb24` behind a line with the size, so that nothing has to be asked
//! beforehand. It decodes in its own process, may open nothing but the file, and dies with its source.
//!
//! It plays on over damaged places and often ends well after them, so what it complained of counts as much as how it
//! ended: a damaged video gives the frames that can be had, and then an error.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Frame;
use super::decode::{check_size, elapsed_ns};
use super::error::{FrameError, SourceError};
use super::recorded::{Next, Playback, Recorded, Recording};

/// How long opening waits for the first frame.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest head of a PPM picture: `P6`, two sizes, a maximum, and the blanks between them.
const MAX_HEAD_BYTES: usize = 32;
/// How long the child may take to end once it has closed its output.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A video that ffmpeg reads for us.
#[derive(Debug)]
pub(super) struct Ffmpeg {
    program: &'static str,
    path: PathBuf,
    process: Process,
    /// The head that is being read, and then the body of this size, of which so much is there.
    head: Vec<u8>,
    size: Option<(u32, u32)>,
    filled: usize,
    body: Vec<u8>,
    /// Frames of this pass.
    frames: u64,
    /// Time spent on reading the frame that is on its way.
    spent_ns: u64,
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdout: ChildStdout,
    said: Arc<Mutex<Said>>,
    listener: Option<JoinHandle<()>>,
}

/// What the child has said about the video and about its troubles.
#[derive(Debug, Default)]
struct Said {
    rate_hz: Option<f64>,
    /// Its last line.
    last: Option<String>,
    /// The last line that was an error.
    complaint: Option<String>,
}

impl Ffmpeg {
    /// Starts ffmpeg on a file and waits for the first frame's size.
    pub(super) fn open(path: &Path, uri: &str, playback: Playback) -> Result<Recorded<Self>, SourceError> {
        Self::open_with("ffmpeg", path, uri, playback)
    }

    fn open_with(
        program: &'static str,
        path: &Path,
        uri: &str,
        playback: Playback,
    ) -> Result<Recorded<Self>, SourceError> {
        let process = Process::start(program, path)?;
        let mut video = Self {
            program,
            path: path.to_owned(),
            process,
            head: Vec::with_capacity(MAX_HEAD_BYTES),
            size: None,
            filled: 0,
            body: Vec::new(),
            frames: 0,
            spent_ns: 0,
        };
        let deadline = Instant::now() + OPEN_TIMEOUT;
        match video.read_head(deadline)? {
            Step::Done => {}
            Step::Timeout => {
                let said = format!("it gave no frame within {} s", OPEN_TIMEOUT.as_secs());
                return Err(SourceError::Ffmpeg { path: path.to_owned(), said });
            }
            Step::End => return Err(video.process.refusal(path)),
        }
        let size = video.size.unwrap_or_default();
        let rate_hz = video.process.said().rate_hz;
        Ok(Recorded::new(video, uri, "video through ffmpeg".to_owned(), size, rate_hz, playback))
    }

    /// Reads the line with the size, if it has not been read yet.
    fn read_head(&mut self, deadline: Instant) -> Result<Step, SourceError> {
        while self.size.is_none() {
            let mut byte = [0];
            match self.process.read(&mut byte, deadline).map_err(|e| SourceError::io(&self.path, e))? {
                Step::Done => self.head.push(byte[0]),
                other => return Ok(other),
            }
            self.size = parse_head(&self.head);
            if self.size.is_none() && self.head.len() >= MAX_HEAD_BYTES {
                let said = "it wrote something that is no picture; check that `ffmpeg` is ffmpeg".to_owned();
                return Err(SourceError::Ffmpeg { path: self.path.clone(), said });
            }
        }
        let (width, height) = self.size.unwrap_or_default();
        if let Err(reason) = check_size(width, height) {
            return Err(SourceError::Unusable { origin: self.path.display().to_string(), reason });
        }
        Ok(Step::Done)
    }

    /// Reads the rest of a frame; what is there stays there when the time is over.
    fn read_frame(&mut self, deadline: Instant) -> Result<Step, SourceError> {
        match self.read_head(deadline)? {
            Step::Done => {}
            other => return Ok(other),
        }
        let (width, height) = self.size.unwrap_or_default();
        self.body.resize(width as usize * height as usize * 3, 0);
        while self.filled < self.body.len() {
            let rest = &mut self.body[self.filled..];
            match self.process.read_some(rest, deadline).map_err(|e| SourceError::io(&self.path, e))? {
                Some(0) => return Ok(Step::End),
                Some(n) => self.filled += n,
                None => return Ok(Step::Timeout),
            }
        }
        Ok(Step::Done)
    }
}

/// How far a read came.
enum Step {
    Done,
    Timeout,
    End,
}

impl Recording for Ffmpeg {
    fn next(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Next, SourceError> {
        let start = Instant::now();
        let step = self.read_frame(start + timeout);
        self.spent_ns += elapsed_ns(start);
        match step? {
            Step::Timeout => Ok(Next::Timeout),
            Step::Done => {
                let (width, height) = self.size.take().unwrap_or_default();
                frame.set_size(width, height);
                std::mem::swap(&mut frame.rgb, &mut self.body);
                // The child decodes ahead; this is the waiting and copying that was left to us.
                frame.decode_ns = std::mem::take(&mut self.spent_ns);
                self.head.clear();
                (self.filled, self.frames) = (0, self.frames + 1);
                Ok(Next::Frame)
            }
            Step::End if self.frames == 0 => Err(self.process.refusal(&self.path)),
            Step::End if self.filled > 0 => {
                self.filled = 0;
                Ok(Next::Bad(FrameError::NoEnd))
            }
            Step::End => Ok(self.process.trouble().map_or(Next::End, |said| {
                let (path, frames) = (self.path.clone(), self.frames);
                Next::Broken(SourceError::FfmpegBroken { path, frames, said })
            })),
        }
    }

    fn rewind(&mut self) -> Result<(), SourceError> {
        self.process = Process::start(self.program, &self.path)?;
        self.head.clear();
        (self.size, self.filled, self.frames) = (None, 0, 0);
        Ok(())
    }
}

/// The size in the head of a PPM picture, once the head is complete.
fn parse_head(head: &[u8]) -> Option<(u32, u32)> {
    let text = std::str::from_utf8(head).ok()?;
    // The head ends with one blank behind its fourth word.
    let text = text.strip_suffix(|c: char| c.is_ascii_whitespace())?;
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    match words[..] {
        ["P6", width, height, "255"] => Some((width.parse().ok()?, height.parse().ok()?)),
        _ => None,
    }
}

impl Process {
    fn start(program: &str, path: &Path) -> Result<Self, SourceError> {
        // `file:` keeps a name that looks like an option or a protocol from being one.
        let mut input = std::ffi::OsString::from("file:");
        input.push(path);
        let mut child = Command::new(program)
            .args(["-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info"])
            .args(["-protocol_whitelist", "file,pipe", "-i"])
            .arg(input)
            .args(["-map", "0:v:0", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for us: the child ends when it is no longer wanted.
            .process_group(0)
            .spawn()
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => SourceError::FfmpegMissing { path: path.to_owned() },
                _ => {
                    SourceError::Ffmpeg { path: path.to_owned(), said: format!("it cannot be started ({e})") }
                }
            })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            let said = "its pipes could not be opened".to_owned();
            return Err(SourceError::Ffmpeg { path: path.to_owned(), said });
        };
        let said = Arc::new(Mutex::new(Said::default()));
        let listener = thread::Builder::new().name("ffmpeg-says".to_owned()).spawn({
            let said = Arc::clone(&said);
            move || listen(stderr, &said)
        });
        let mut process = Self { child, stdout, said, listener: None };
        let unheard = |e: io::Error| SourceError::Ffmpeg {
            path: path.to_owned(),
            said: format!("no thread is left to listen to it ({e})"),
        };
        process.listener = Some(listener.map_err(unheard)?);
        Ok(process)
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is not one frame.
    fn refusal(&mut self, path: &Path) -> SourceError {
        let ended = self.wait();
        let mut heard = self.said();
        let said = heard.complaint.take().or_else(|| heard.last.take()).or(ended);
        let said = said.unwrap_or_else(|| "it gave no frame and no reason".to_owned());
        // ffmpeg begins its own sentence with the file's name.
        let named = format!("file:{}: ", path.display());
        let said = said.strip_prefix(&named).unwrap_or(&said).to_owned();
        SourceError::Ffmpeg { path: path.to_owned(), said }
    }

    /// What went wrong with a child that has closed its output, if anything did.
    fn trouble(&mut self) -> Option<String> {
        let ended = self.wait();
        self.said().complaint.take().or(ended)
    }

    /// Waits until the child is gone and all it said is known; tells how it ended if it did not end well.
    fn wait(&mut self) -> Option<String> {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                status => break status,
            }
        };
        self.end();
        match status {
            Ok(Some(status)) if status.success() => None,
            Ok(Some(status)) => Some(format!("it ended with {status}")),
            _ => Some("it did not end by itself".to_owned()),
        }
    }

    /// Fills all of a short buffer.
    fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<Step> {
        Ok(match self.read_some(buffer, deadline)? {
            Some(0) => Step::End,
            Some(_) => Step::Done,
            None => Step::Timeout,
        })
    }

    /// Reads what is there, waiting until the deadline for the first byte; 0 is the end, `None` is too late.
    fn read_some(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<Option<usize>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let ready = {
                let mut fds = [PollFd::from_borrowed_fd(self.stdout.as_fd(), PollFlags::IN)];
                poll(&mut fds, Some(&timeout))
            };
            match ready {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            match self.stdout.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map(Some),
            }
        }
    }

    fn end(&mut self) {
        // Neither can fail in a way that matters: the child is gone already, or it is gone now.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads what the child says, so that it never waits for us, and keeps what matters.
fn listen(stderr: ChildStderr, said: &Mutex<Said>) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    // A line is cut at 4 KiB: a damaged video can make ffmpeg talk without end.
    while matches!((&mut lines).take(4096).read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        line.clear();
        if text.is_empty() {
            continue;
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.rate_hz = said.rate_hz.or_else(|| parse_rate(&text));
        if let Some(complaint) = parse_complaint(&text) {
            said.complaint = Some(complaint.to_owned());
        }
        said.last = Some(text);
    }
}

/// What follows the level in a line such as `[h264 @ 0x55f0] [error] missing picture in access unit`.
fn parse_complaint(line: &str) -> Option<&str> {
    ["[error] ", "[fatal] ", "[panic] "].iter().find_map(|level| {
        let (context, said) = line.split_once(level)?;
        (context.is_empty() || context.ends_with("] ")).then_some(said)
    })
}

/// Frames a second in a line such as `Stream #0:0: Video: h264, yuv420p, 640x480, 25 fps, 25 tbr`.
fn parse_rate(line: &str) -> Option<f64> {
    let (before, _) = line.split_once("Video: ")?.1.split_once(" fps")?;
    before.rsplit([' ', ',']).next()?.parse().ok().filter(|hz| (0.1..=1000.0).contains(hz))
}

#[cfg(test)]
mod tests;
