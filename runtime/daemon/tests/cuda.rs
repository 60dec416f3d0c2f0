//! `saccaded` on the emulated card: what it does when the card is lost, or has no memory for one more session.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use saccade::cuda;
use serde_json::{Value, json};

#[allow(dead_code)] // The service opens the card itself.
#[path = "../../tests/emulator/mod.rs"]
mod emulator;
mod service;

use service::{Service, published};

/// `EX_TEMPFAIL`, as `saccaded --help` says.
const CARD_LOST: i32 = 75;

/// A service on a card that fails as it is told to.
fn start(dir: &Path, fail: &str) -> Result<Service, (ExitStatus, String)> {
    let emulator = emulator::build();
    let kernels = emulator.join("kernels");
    let args = ["--require-gpu", "--context", "64", "--kernels", kernels.to_str().unwrap()];
    Service::start(dir, &args, &[("LD_LIBRARY_PATH", emulator.to_str().unwrap()), ("EMULATOR_FAIL", fail)])
}

fn talk(service: &Service) -> (u16, Value) {
    let (status, text) =
        service.chat(&json!({"max_tokens": 3, "messages": [{"role": "user", "content": "a b c"}]}));
    (status, serde_json::from_str(&text).unwrap())
}

#[test]
fn a_lost_card_is_told_and_ends_the_service_with_its_code() {
    let bundle = published("llama/tiny");
    // Steps after the first of a request are launches of a graph.
    let mut service = start(&bundle.path().join("tiny"), "cuGraphLaunch:719:0").unwrap();
    let health: Value = serde_json::from_str(&service.get("/health").1).unwrap();
    assert_eq!((&health["device"], &health["weights"]), (&json!("cuda"), &json!("device")), "{health}");

    let (status, answer) = talk(&service);
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("card_lost")), "{answer}");
    let (status, text) = service.get("/health");
    assert!(status == 503 && text.contains("the card was lost"), "{status} {text}");
    let start = Instant::now();
    let ended = loop {
        if let Some(ended) = service.child.try_wait().unwrap() {
            break ended;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the service goes on without its card");
        std::thread::sleep(Duration::from_millis(20));
    };
    let log = service.log();
    assert_eq!(ended.code(), Some(CARD_LOST), "{log}");
    assert!(log.contains("the card was lost in cuGraphLaunch"), "{log}");
}

#[test]
fn a_card_that_is_lost_at_the_start_has_the_same_code() {
    let bundle = published("llama/tiny");
    let Err((ended, log)) = start(&bundle.path().join("tiny"), "cuStreamSynchronize:700:0") else {
        panic!("the service started on a lost card");
    };
    assert_eq!(ended.code(), Some(CARD_LOST), "{log}");
}

#[test]
fn no_memory_for_one_more_session_is_that_requests_affair() {
    let bundle = published("hf/janus");
    let dir = bundle.path().join("tiny");
    // The allocations of a start are counted by trying: the first that the service can do without is that of a drawing.
    let service = (1..20).find_map(|after| match start(&dir, &format!("cuMemAlloc_v2:2:{after}")) {
        Ok(service) => Some(service),
        Err((ended, log)) => {
            assert!(log.contains("bytes of the card's memory") && ended.code() == Some(1), "{after}: {log}");
            None
        }
    });
    let service = service.expect("the service starts with memory enough");
    let (status, text) = service.post("/v1/images/generations", &json!({"prompt": "a house"}));
    assert_eq!(status, 503, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["error"]["code"], "out_of_memory", "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("bytes of the card's memory"), "{answer}");
    assert_eq!(service.get("/health").0, 200);
    assert_eq!(talk(&service).0, 200, "the service goes on");
}
