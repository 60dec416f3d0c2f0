//! A running `saccaded`, for the tests that drive it from outside; each of their files uses a part of this.
#![allow(dead_code, unreachable_pub)]

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use saccade::config::WeightDtype;
use saccade_convert::bundle::convert;
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::progress::Progress;
use saccade_convert::random::write_bundle;
use serde_json::Value;
use tempfile::TempDir;

/// A nano bundle with random weights: it talks nonsense, always the same.
pub fn random_bundle() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_bundle(&dir.path().join("nano"), &saccade::config::nano(), WeightDtype::Int8, 7).unwrap();
    dir
}

/// A tiny published model of random weights, as `tiny` in a folder: it talks nonsense, always the same.
pub fn published(checkpoint: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../convert/tests/fixtures");
    let mut checkpoint = Checkpoint::open(&fixtures.join(checkpoint)).unwrap();
    convert(&mut checkpoint, &dir.path().join("tiny"), WeightDtype::Int8, false, &mut Progress::silent())
        .unwrap();
    dir
}

/// A request for what lies at `path`.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

/// A running service, killed when the test ends.
pub struct Service {
    pub child: Child,
    pub address: SocketAddr,
    log: Option<JoinHandle<String>>,
}

impl Service {
    /// A service of the bundle in `dir`, with further arguments and environment.
    ///
    /// # Errors
    /// How the program ended, and its log, if it did before it was ready.
    pub fn start(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Self, (ExitStatus, String)> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_saccaded"))
            .args(["serve", "--listen", "127.0.0.1:0", "--threads", "1", "--model"])
            .arg(dir)
            .args(args)
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        let address = loop {
            let start = text.len();
            assert!(log.read_line(&mut text).unwrap() > 0, "the service ended before it listened: {text}");
            if let Some((_, address)) = text[start..].split_once("listening address=http://") {
                break address.trim().parse().unwrap();
            }
        };
        // A full pipe would stop the service in the middle of a log line.
        let log = Some(std::thread::spawn(move || {
            log.read_to_string(&mut text).unwrap();
            text
        }));
        let mut service = Self { child, address, log };
        let start = Instant::now();
        while service.try_exchange(&get("/health")).map_or(true, |(status, _)| status != 200) {
            if let Some(status) = service.child.try_wait().unwrap() {
                return Err((status, service.log()));
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the model never became ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }

    /// What a service that has ended had to say.
    pub fn log(&mut self) -> String {
        self.log.take().unwrap().join().unwrap()
    }

    /// Status and body of one request to a service that may end before it has answered.
    fn try_exchange(&self, request: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
    }

    /// Status and body of one request.
    pub fn exchange(&self, request: &str) -> (u16, String) {
        self.try_exchange(request).unwrap()
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        self.exchange(&get(path))
    }

    pub fn chat(&self, body: &Value) -> (u16, String) {
        self.post("/v1/chat/completions", body)
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let body = body.to_string();
        let length = body.len();
        self.exchange(&format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer EMPTY\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    pub fn completion(&self, body: &Value) -> Value {
        let (status, text) = self.chat(body);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
