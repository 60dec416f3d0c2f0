//! The HTTP side over real sockets, with a scripted engine behind the queue.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use saccade::engine::DeviceReport;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::admit::Served;
use crate::app::{App, MAX_BODIES_KIB, MAX_BODY_BYTES};
use crate::error::ApiError;
use crate::job::{Done, Event, Finish, Job, QUEUE_LEN, Timings};
use crate::listen::{self, Limits};
use crate::metrics::Metrics;
use crate::routes;

/// A service without an engine: the test plays that part.
struct Service {
    address: SocketAddr,
    app: Arc<App>,
    jobs: Receiver<Job>,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
    runtime: Runtime,
}

fn served() -> Served {
    Served {
        name: "nano".into(),
        talks: false,
        draws: false,
        tasks: vec!["robot".into(), "vqa".into()],
        max_pictures: 4,
        max_new_tokens: 16,
        caption: "what is happening?".into(),
        kernels: "scalar".into(),
        device: DeviceReport::cpu("scalar", "asked for"),
        threads: 1,
        created: 1,
    }
}

fn start(limits: Limits) -> Service {
    start_with(limits, Duration::from_millis(400))
}

fn start_with(limits: Limits, body_timeout: Duration) -> Service {
    let runtime = Runtime::new().unwrap();
    let metrics = Arc::new(Metrics::new());
    let (queue, jobs) = sync_channel(QUEUE_LEN);
    let mut app = App::new(queue, Arc::clone(&metrics));
    app.body_timeout = body_timeout;
    let app = Arc::new(app);
    let (stop, stopped) = watch::channel(false);
    let listener = runtime.block_on(listen::bind("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = listener.local_addr().unwrap();
    let router = routes::router(Arc::clone(&app));
    let server = runtime.spawn(listen::serve(listener, router, metrics, limits, stopped));
    Service { address, app, jobs, stop, server, runtime }
}

fn ready() -> Service {
    let service = start(Limits::default());
    service.app.ready(served());
    service
}

/// Sends bytes and reads until the other side closes.
fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The service may answer and close before it has read everything: then writing fails, reading does not.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

fn chat(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:8484\r\nconnection: close\r\ncontent-type: application/json\r\nauthorization: Bearer EMPTY\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

const ASK: &str = r#"{"model":"nano","messages":[{"role":"user","content":"what?"}]}"#;

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn done() -> Event {
    let timings = Timings { decode_ms: 2.5, ..Timings::default() };
    Event::Done(Done {
        finish: Finish::Stop,
        prompt_tokens: 70,
        cached_tokens: 0,
        completion_tokens: 3,
        timings,
    })
}

/// Answers the next job with these events.
fn play(jobs: &Receiver<Job>, events: Vec<Event>) {
    let job = jobs.recv_timeout(Duration::from_secs(10)).unwrap();
    for event in events {
        job.reply.try_send(event).unwrap();
    }
}

#[test]
fn health_tells_loading_from_ready() {
    let service = start(Limits::default());
    let answer = exchange(service.address, request("/health").as_bytes());
    assert_eq!(status(&answer), 503);
    assert!(answer.contains(r#""code":503"#) && answer.contains("Loading model"), "{answer}");
    assert_eq!(status(&exchange(service.address, chat(ASK).as_bytes())), 503);
    service.app.ready(served());
    let answer = exchange(service.address, request("/health").as_bytes());
    assert_eq!(status(&answer), 200);
    for field in [
        r#""status":"ok""#,
        r#""kernels":"scalar""#,
        r#""device":"cpu""#,
        r#""device_reason":"asked for""#,
        r#""threads":1"#,
        r#""model":"nano""#,
    ] {
        assert!(answer.contains(field), "no {field} in {answer}");
    }
}

#[test]
fn lists_the_model_and_its_tasks() {
    let service = ready();
    let answer = exchange(service.address, request("/v1/models").as_bytes());
    assert!(answer.contains(r#""object":"list""#) && answer.contains(r#""id":"nano:vqa""#), "{answer}");
}

#[test]
fn answers_whole_and_streamed() {
    let service = ready();
    let client = std::thread::spawn(move || exchange(service.address, chat(ASK).as_bytes()));
    play(&service.jobs, vec![Event::Text("a ".into()), Event::Text("door".into()), done()]);
    let answer = client.join().unwrap();
    assert!(
        answer.contains(r#""content":"a door""#) && answer.contains(r#""finish_reason":"stop""#),
        "{answer}"
    );
    assert!(answer.contains(r#""total_tokens":73"#) && answer.contains(r#""decode_ms":2.5"#), "{answer}");

    let ask = ASK.replace("{\"model\"", r#"{"stream":true,"stream_options":{"include_usage":true},"model""#);
    let client = std::thread::spawn(move || exchange(service.address, chat(&ask).as_bytes()));
    play(&service.jobs, vec![Event::Text("a ".into()), Event::Text("door".into()), done()]);
    let answer = client.join().unwrap();
    assert!(answer.contains("text/event-stream"), "{answer}");
    let data: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.len(), 6, "role, two texts, the end, usage, [DONE]: {data:?}");
    assert!(data[0].contains(r#""role":"assistant""#) && data[1].contains(r#""content":"a ""#));
    assert!(data[3].contains(r#""finish_reason":"stop""#) && data[4].contains(r#""choices":[]"#));
    assert!(data[4].contains(r#""total_tokens":73"#) && data[5] == "[DONE]");
}

#[test]
fn a_failing_engine_is_an_error_object_with_its_own_status() {
    let service = ready();
    for stream in ["true", "false"] {
        let ask = ASK.replace("{\"model\"", &format!("{{\"stream\":{stream},\"model\""));
        let client = std::thread::spawn(move || exchange(service.address, chat(&ask).as_bytes()));
        play(&service.jobs, vec![Event::Failed(ApiError::invalid("messages[0]", "a broken picture"))]);
        let answer = client.join().unwrap();
        assert_eq!(status(&answer), 400);
        assert!(
            answer.contains(r#""message":"a broken picture""#) && answer.contains(r#""param":"messages[0]""#)
        );
    }
    // The engine goes away in the middle.
    let ask = ASK.replace("{\"model\"", "{\"stream\":true,\"model\"");
    let client = std::thread::spawn(move || exchange(service.address, chat(&ask).as_bytes()));
    play(&service.jobs, vec![Event::Text("a".into())]);
    let answer = client.join().unwrap();
    assert!(answer.contains("engine_error") && !answer.contains("[DONE]"), "{answer}");
}

#[test]
fn a_full_queue_says_429_and_when_to_come_back() {
    let service = ready();
    let clients: Vec<_> = (0..QUEUE_LEN)
        .map(|_| std::thread::spawn(move || exchange(service.address, chat(ASK).as_bytes())))
        .collect();
    let start = Instant::now();
    let refused = loop {
        let mut refused = TcpStream::connect(service.address).unwrap();
        refused.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        refused.write_all(chat(ASK).as_bytes()).unwrap();
        let mut answer = String::new();
        if refused.read_to_string(&mut answer).is_ok() {
            break answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the queue never filled");
    };
    assert_eq!(status(&refused), 429, "{refused}");
    assert!(refused.contains("retry-after: 1") && refused.contains("queue_full"), "{refused}");
    while let Ok(job) = service.jobs.recv_timeout(Duration::from_millis(300)) {
        // Those whose client has gone have nobody to answer.
        let _ = job.reply.try_send(done());
    }
    let answered = clients.into_iter().map(|c| status(&c.join().unwrap())).filter(|&s| s == 200).count();
    assert!(answered >= 1, "waiting clients are answered when the engine comes to them");
}

#[test]
fn a_client_that_leaves_closes_its_job() {
    let service = ready();
    let mut client = TcpStream::connect(service.address).unwrap();
    client.write_all(chat(ASK).as_bytes()).unwrap();
    let job = service.jobs.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(!job.reply.is_closed());
    drop(client);
    let start = Instant::now();
    while !job.reply.is_closed() {
        assert!(start.elapsed() < Duration::from_secs(5), "the job never learned that its client left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_wrong_door_has_a_sentence() {
    let service = ready();
    let form = chat(ASK).replace("application/json", "text/plain");
    let long = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        MAX_BODY_BYTES + 1
    );
    for (request, expected, word) in [
        (request("/"), 404, "unknown_url"),
        (request("/v1/chat/completions"), 405, "method_not_allowed"),
        (request("/health").replace("GET", "DELETE"), 405, "method_not_allowed"),
        (form, 415, "unsupported_media_type"),
        (long, 413, "request_too_large"),
        (chat("{}"), 400, "invalid_json"),
        (chat(&ASK.replace("nano", "gpt-4")), 404, "model_not_found"),
        (request("/health").replace("localhost", "evil.example:8484"), 403, "foreign_host"),
    ] {
        let answer = exchange(service.address, request.as_bytes());
        assert_eq!(status(&answer), expected, "{answer}");
        assert!(answer.contains(word) && answer.contains(r#"{"error":{"#), "{answer}");
    }
    for local in ["127.0.0.1:8484", "[::1]:8484", "LOCALHOST", "localhost:1"] {
        let request = request("/health").replace("localhost", local);
        assert_eq!(status(&exchange(service.address, request.as_bytes())), 200, "{local}");
    }
}

#[test]
fn a_chunked_body_is_cut_at_the_limit() {
    let service = ready();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    let answer = exchange(service.address, format!("{head}{}", chunk.repeat(12)).as_bytes());
    assert!(status(&answer) == 413 || answer.is_empty(), "{answer}");
    let answer = exchange(service.address, format!("{head}{:x}\r\n{ASK}\r\n", ASK.len()).as_bytes());
    assert_eq!(status(&answer), 408, "the last chunk never comes: {answer}");
}

/// A request that announces the longest body, sends this much of it, and then falls silent.
fn slow_body(address: SocketAddr, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {MAX_BODY_BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // Refused in the middle when there is no room left.
    let _ = stream.write_all(&vec![b' '; sent]);
    stream
}

/// The most memory that this process has had in use.
fn peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn slow_large_bodies_hold_what_they_sent_and_never_more_than_the_limit() {
    let service = start_with(Limits::default(), Duration::from_secs(4));
    service.app.ready(served());
    let lazy: Vec<TcpStream> = (0..40).map(|_| slow_body(service.address, 100 << 10)).collect();
    let address = service.address;
    let client = std::thread::spawn(move || exchange(address, chat(ASK).as_bytes()));
    play(&service.jobs, vec![done()]);
    assert_eq!(status(&client.join().unwrap()), 200, "40 announced bodies leave room for one that is sent");
    drop(lazy);

    let before = peak_kib();
    let greedy: Vec<TcpStream> = (0..100).map(|_| slow_body(service.address, 4 << 20)).collect();
    let held = greedy.into_iter().filter_map(|mut stream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| status(&answer))
    });
    // 16 of them fill 64 MiB and are given up after a while; the others are sent away at once.
    let held = held.filter(|&status| status == 408).count();
    assert!((1..=16).contains(&held), "{held}");
    let grown = peak_kib() - before;
    assert!(grown < 3 * MAX_BODIES_KIB, "{grown} KiB");
    let start = Instant::now();
    while service.app.bodies.available_permits() < MAX_BODIES_KIB {
        assert!(start.elapsed() < Duration::from_secs(10), "memory was not given back");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn half_headers_and_half_bodies_are_closed_in_time() {
    let limits = Limits { header: Duration::from_millis(300), ..Limits::default() };
    let service = start(limits);
    service.app.ready(served());
    let start = Instant::now();
    for half in ["", "GET /health HT", "GET /health HTTP/1.1\r\nhost: localhost\r\nx: "] {
        let answer = exchange(service.address, half.as_bytes());
        assert!(status(&answer) == 408 || answer.is_empty(), "{answer}");
    }
    let half_body = &chat(ASK)[..chat(ASK).len() - 5];
    assert_eq!(status(&exchange(service.address, half_body.as_bytes())), 408);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn attackers_with_half_headers_make_room_for_a_good_client() {
    let limits = Limits { connections: 8, header: Duration::from_secs(60), ..Limits::default() };
    let service = start(limits);
    service.app.ready(served());
    let attackers: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(service.address).unwrap();
            stream.write_all(b"GET /health HTTP/1.1\r\nx: ").unwrap();
            stream
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(status(&exchange(service.address, request("/health").as_bytes())), 200);
    }
    let metrics = exchange(service.address, request("/metrics").as_bytes());
    let evicted = metrics.lines().find(|l| l.starts_with("saccade_connections_evicted_total")).unwrap();
    assert!(evicted.split(' ').nth(1).unwrap().parse::<u32>().unwrap() >= 32, "{evicted}");
    drop(attackers);
}

#[test]
fn stopping_finishes_open_answers_and_leaves() {
    let service = ready();
    let client = std::thread::spawn(move || exchange(service.address, chat(ASK).as_bytes()));
    let job = service.jobs.recv_timeout(Duration::from_secs(10)).unwrap();
    service.app.stop();
    service.stop.send(true).unwrap();
    job.reply.try_send(done()).unwrap();
    assert_eq!(status(&client.join().unwrap()), 200);
    service.runtime.block_on(service.server).unwrap();
    assert!(TcpStream::connect(service.address).is_err(), "the port is free again");
}

#[test]
fn only_loopback_addresses_are_opened() {
    let runtime = Runtime::new().unwrap();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let error = runtime.block_on(listen::bind(address.parse().unwrap())).expect_err(address);
        assert!(error.to_string().contains("loopback"), "{error}");
    }
    let taken = runtime.block_on(listen::bind("127.0.0.1:0".parse().unwrap())).unwrap();
    let error = runtime.block_on(listen::bind(taken.local_addr().unwrap())).expect_err("taken");
    assert!(error.to_string().contains("choose another one"), "{error}");
}
