//! The live page: one static HTML file and a stream of server-sent events, for a few clients at a time.
//!
//! Plain threads and sockets with deadlines: a demo needs no web framework, and a client that is slow, silent or gone
//! costs one thread for a few seconds and never a frame.

use std::io::{Cursor, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageBuffer, Rgb, imageops};
use serde_json::{Value, json};

use crate::shown::{Latest, Shown};
use crate::stats::STAGES;

/// Clients at a time; the next one is told to come back.
const MAX_CLIENTS: usize = 16;
/// The longest request, in bytes.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// How long a request may take to arrive, and how long a client may refuse to read.
const PATIENCE: Duration = Duration::from_secs(5);
/// At most twenty events a second: more is not seen, and encoding a picture takes milliseconds.
const EVENT_PERIOD: Duration = Duration::from_millis(50);
/// Wider pictures are reduced for the page, in pixels.
const MAX_WIDTH_PX: u32 = 640;

const PAGE: &str = include_str!("page.html");

/// Opens the page's socket.
///
/// # Errors
/// If the address is taken or not this machine's.
pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("--page {address} cannot be opened: choose another port"))?;
    if !address.ip().is_loopback() {
        crate::say("the page is open to the network: whoever reaches this address sees the camera");
    }
    Ok(listener)
}

/// What the page's clients share.
struct Page {
    latest: Arc<Latest>,
    /// The newest event, encoded once for all clients.
    event: Mutex<(u64, Arc<str>)>,
    clients: AtomicUsize,
    local_only: bool,
}

/// Serves the page on a thread of its own until the program ends; returns its address.
///
/// # Errors
/// If the system has no thread left.
pub(crate) fn serve(listener: TcpListener, latest: Arc<Latest>) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let page = Arc::new(Page {
        latest,
        event: Mutex::new((0, Arc::from(""))),
        clients: AtomicUsize::new(0),
        local_only: address.ip().is_loopback(),
    });
    thread::Builder::new().name("page".into()).spawn(move || {
        for stream in listener.incoming() {
            // A client that left before it was accepted, or no file descriptors: the next one may fare better.
            let Ok(stream) = stream else {
                thread::sleep(Duration::from_millis(50));
                continue;
            };
            page.clone().admit(stream);
        }
    })?;
    Ok(address)
}

impl Page {
    /// Gives a client a thread, if one is free.
    fn admit(self: Arc<Self>, mut stream: TcpStream) {
        let timeouts =
            stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        if timeouts.is_err() {
            return;
        }
        if self.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            let _ =
                answer(&mut stream, "503 Service Unavailable", "text/plain", "too many viewers: close one");
            self.clients.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let page = Arc::clone(&self);
        let spawned = thread::Builder::new().name("page-client".into()).spawn(move || {
            // A client that goes away in the middle is no error of ours.
            let _ = page.serve_client(stream);
            page.clients.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn serve_client(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let Some(head) = read_head(&mut stream)? else { return Ok(()) };
        let mut lines = head.lines();
        let path = lines.next().and_then(|line| line.strip_prefix("GET ")?.split(' ').next()).unwrap_or("");
        let host = lines
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("host:").map(|h| h.trim().to_owned()));
        // Another site's page must not reach the camera under its own name (DNS rebinding).
        if self.local_only && !host.as_deref().is_none_or(is_local_name) {
            return answer(
                &mut stream,
                "403 Forbidden",
                "text/plain",
                "use localhost or 127.0.0.1 in the address",
            );
        }
        match path {
            "/" => answer(&mut stream, "200 OK", "text/html; charset=utf-8", PAGE),
            "/events" => self.stream_events(&mut stream),
            _ => answer(&mut stream, "404 Not Found", "text/plain", "this page lives at /"),
        }
    }

    /// One event after another until the client leaves.
    fn stream_events(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nconnection: close\r\n\r\n",
        )?;
        let (mut shown, mut number) = (Shown::default(), 0);
        loop {
            let start = Instant::now();
            if self.latest.wait_after(number, PATIENCE, &mut shown) {
                number = shown.number;
                let event = self.event(&shown);
                stream.write_all(event.as_bytes())?;
            } else {
                // Only writing tells whether anybody is still there.
                stream.write_all(b": no frame\n\n")?;
            }
            thread::sleep(EVENT_PERIOD.saturating_sub(start.elapsed()));
        }
    }

    /// The event of `shown`, or of a newer frame if another client was quicker.
    fn event(&self, shown: &Shown) -> Arc<str> {
        let mut newest = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0 < shown.number {
            *newest = (shown.number, format!("data: {}\n\n", event(shown)).into());
        }
        Arc::clone(&newest.1)
    }
}

/// Reads a request's head; nothing if the client closed at once. Its body, if any, is of no interest.
fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read(&mut part)?;
        if n == 0 || head.len() + n > MAX_REQUEST_BYTES || Instant::now() > deadline {
            return Ok(None);
        }
        head.extend_from_slice(&part[..n]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn answer(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let csp = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\ncontent-security-policy: {csp}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].contains(&name)
}

/// What the page shows of one frame.
fn event(shown: &Shown) -> Value {
    let stages: Vec<Value> = STAGES
        .iter()
        .zip(&shown.summary.stages)
        .map(|(stage, p)| json!({"name": stage, "p50": p.p50, "p95": p.p95}))
        .collect();
    json!({
        "seq": shown.seq, "question": shown.question, "text": shown.text, "age_ms": shown.age_ms,
        "dropped": shown.dropped, "frames_per_s": shown.summary.frames_per_s, "stages": stages,
        "action_names": shown.action_names, "action": shown.action, "action_units": shown.action_units,
        "trouble": shown.trouble,
        "picture": jpeg(shown).map(|bytes| format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes))),
    })
}

/// The picture, no wider than the page shows it; nothing before the first frame.
fn jpeg(shown: &Shown) -> Option<Vec<u8>> {
    if shown.rgb.is_empty() {
        return None;
    }
    let picture = ImageBuffer::<Rgb<u8>, &[u8]>::from_raw(shown.width, shown.height, &shown.rgb)?;
    let mut out = Cursor::new(Vec::new());
    let encoder = JpegEncoder::new_with_quality(&mut out, 80);
    let encoded = if shown.width > MAX_WIDTH_PX {
        let height = (shown.height * MAX_WIDTH_PX / shown.width).max(1);
        imageops::thumbnail(&picture, MAX_WIDTH_PX, height).write_with_encoder(encoder)
    } else {
        picture.write_with_encoder(encoder)
    };
    // Without a picture the words are still right.
    encoded.is_ok().then(|| out.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(address: SocketAddr, request: &str, until: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let (mut text, mut part) = (String::new(), [0; 4096]);
        while !text.contains(until) {
            match stream.read(&mut part).unwrap() {
                0 => break,
                n => text.push_str(&String::from_utf8_lossy(&part[..n])),
            }
        }
        text
    }

    fn page() -> (SocketAddr, Arc<Latest>) {
        let latest = Arc::new(Latest::default());
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        (serve(listener, Arc::clone(&latest)).unwrap(), latest)
    }

    #[test]
    fn serves_the_page_and_nothing_else() {
        let (address, _) = page();
        let answer = get(address, "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", "</html>");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("EventSource"), "{answer}");
        assert!(
            !PAGE.contains("http://") && !PAGE.contains("https://"),
            "the page loads nothing from elsewhere"
        );
        assert!(get(address, "GET /../etc/passwd HTTP/1.1\r\n\r\n", "lives").contains("404"));
        assert!(get(address, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "use").contains("403"));
        assert_eq!(get(address, &"x".repeat(MAX_REQUEST_BYTES + 1), "\0"), "");
    }

    #[test]
    fn streams_the_newest_frame_with_its_picture() {
        let (address, latest) = page();
        latest.update(|shown| {
            (shown.width, shown.height, shown.rgb) = (800, 2, vec![90; 800 * 2 * 3]);
            shown.text = "a \u{7}door\n".into();
        });
        let answer = get(address, "GET /events HTTP/1.1\r\nhost: localhost:1\r\n\r\n", "}\n\n");
        let data = answer.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event");
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["text"], "a \u{7}door\n");
        let picture = event["picture"].as_str().unwrap().strip_prefix("data:image/jpeg;base64,").unwrap();
        let picture = image::load_from_memory(&STANDARD.decode(picture).unwrap()).unwrap();
        assert_eq!((picture.width(), picture.height()), (640, 1));
    }

    #[test]
    fn the_clients_are_counted_and_their_places_come_back() {
        let (address, _) = page();
        let held: Vec<TcpStream> = (0..MAX_CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        let ask = || get(address, "GET / HTTP/1.1\r\n\r\n", "\r\n\r\n");
        let start = Instant::now();
        while !ask().contains("503") {
            assert!(start.elapsed() < Duration::from_secs(4), "the places were never taken");
        }
        drop(held);
        while !ask().contains("200 OK") {
            assert!(start.elapsed() < Duration::from_secs(20), "the places never came back");
            thread::sleep(Duration::from_millis(10));
        }
    }
}
