//! `saccaded` driven from outside: a random bundle, real sockets, real signals.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

mod service;

use service::{Service, random_bundle};

const SACCADED: &str = env!("CARGO_BIN_EXE_saccaded");

/// A service of a random bundle.
fn nano() -> Service {
    let bundle = random_bundle();
    Service::start(&bundle.path().join("nano"), &[], &[]).unwrap()
}

/// What live-vlm-webui sends: one user message, text first, one JPEG as a data URI.
fn webui(jpeg: &[u8]) -> Value {
    let url = format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(jpeg));
    json!({"model": "nano", "max_tokens": 16, "messages": [{"role": "user", "content": [
        {"type": "text", "text": "Describe what you see in this image in one sentence."},
        {"type": "image_url", "image_url": {"url": url}},
    ]}]})
}

fn jpeg(shade: u8) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(320, 240, |x, y| {
        image::Rgb([shade, u8::try_from(x % 256).unwrap(), u8::try_from(y % 256).unwrap()])
    });
    picture.write_to(&mut out, image::ImageFormat::Jpeg).unwrap();
    out.into_inner()
}

/// The text of a stream, and its data lines.
fn streamed(body: &str) -> (String, Vec<Value>) {
    let data: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"), "{body}");
    let chunks: Vec<Value> =
        data[..data.len() - 1].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    (text, chunks)
}

#[test]
fn answers_pictures_whole_and_streamed_alike() {
    let service = nano();
    let health: Value = serde_json::from_str(&service.get("/health").1).unwrap();
    assert_eq!(
        (&health["status"], &health["model"], &health["threads"]),
        (&json!("ok"), &json!("nano"), &json!(1))
    );
    assert!(health["kernels"].as_str().is_some_and(|name| !name.is_empty()));

    let mut ask = webui(&jpeg(10));
    let whole = service.completion(&ask);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(whole["object"], "chat.completion");
    let usage = &whole["usage"];
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 66, "the picture alone has 66 tokens: {usage}");
    assert!((1..=17).contains(&usage["completion_tokens"].as_u64().unwrap()), "{usage}");
    for stage in ["queue_ms", "preprocess_ms", "vision_ms", "prefill_ms", "decode_ms", "tokens_per_s"] {
        assert!(
            whole["timings"][stage].as_f64().is_some_and(|ms| ms >= 0.0),
            "{stage}: {}",
            whole["timings"]
        );
    }

    ask["stream"] = json!(true);
    ask["stream_options"] = json!({"include_usage": true});
    let (status, body) = service.chat(&ask);
    assert_eq!(status, 200);
    let (again, chunks) = streamed(&body);
    assert_eq!(again, text, "a stream says the same");
    assert_eq!(&chunks.last().unwrap()["usage"], usage);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));

    // Another picture and no picture give other token counts, and neither leaves anything behind.
    let other =
        service.completion(&json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}));
    assert!(other["usage"]["prompt_tokens"].as_u64().unwrap() < 66);
    ask["stream"] = json!(false);
    assert_eq!(service.completion(&ask)["choices"][0]["message"]["content"], json!(text));
}

#[test]
fn a_seed_repeats_an_answer_and_a_stop_string_ends_it() {
    let service = nano();
    let ask = |seed: u64| {
        let body = json!({"messages": [{"role": "user", "content": "hello"}], "temperature": 1.5, "seed": seed, "max_tokens": 12});
        service.completion(&body)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let first = ask(1);
    assert_eq!(ask(1), first);
    assert!((2..12).any(|seed| ask(seed) != first), "other seeds give other answers");
    let greedy = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12});
    let text = service.completion(&greedy)["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(2).take(2).collect();
    assert!(!stop.is_empty(), "{text:?} is too short to be stopped");
    let mut stopped = greedy.clone();
    stopped["stop"] = json!([stop]);
    let answer = service.completion(&stopped);
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(content, text.split(&stop).next().unwrap());
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_bad_request_fails_alone() {
    let service = nano();
    let broken = &jpeg(10)[..900];
    let (status, body) = service.chat(&webui(broken));
    assert_eq!(status, 400);
    assert!(body.contains("ends before its end marker"), "{body}");
    let long = "word ".repeat(2000);
    let (status, body) = service.chat(&json!({"messages": [{"role": "user", "content": long}]}));
    assert_eq!(status, 400);
    assert!(body.contains("shorten it"), "{body}");
    assert_eq!(service.chat(&webui(&jpeg(1))).0, 200);
}

#[test]
fn many_clients_leave_nothing_behind() {
    let service = nano();
    let ask = webui(&jpeg(77));
    let round = || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let (status, body) = service.chat(&ask);
                        assert!(status == 200 || status == 429, "{body}");
                    }
                });
            }
        });
        service.metric("saccade_memory_anonymous_bytes")
    };
    // Arenas of the allocator and threads of the runtime come into being in the first rounds.
    round();
    round();
    let before = round();
    let after = round();
    assert!(after - before < 2_097_152.0, "{before} bytes before, {after} after 40 more requests");
    assert!(service.metric("saccade_generated_tokens_total") > 0.0);
    assert_eq!(service.metric("saccade_queue_length"), 0.0);
}

#[test]
fn sigterm_ends_it_with_success() {
    let mut service = nano();
    let pid = service.child.id().to_string();
    assert!(Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().unwrap().success());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = service.child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}

fn saccaded(args: &[&str], model: Option<&Path>) -> Output {
    let mut command = Command::new(SACCADED);
    command.args(args);
    if let Some(model) = model {
        command.arg("--model").arg(model);
    }
    command.output().unwrap()
}

/// One sentence on stderr, nothing on stdout, and an exit code that is not 0.
fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("saccaded: ") && !text.contains("panicked"), "{text}");
    last
}

#[test]
fn a_wrong_start_is_one_sentence() {
    let empty = tempfile::tempdir().unwrap();
    let said = refusal(&saccaded(&["serve", "--listen", "127.0.0.1:0"], Some(empty.path())));
    assert!(said.contains("no saccade.json"), "{said}");
    let said = refusal(&saccaded(&["serve", "--listen", "0.0.0.0:0"], Some(empty.path())));
    assert!(said.contains("loopback"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refusal(&saccaded(&["serve", "--listen", &address], Some(empty.path())));
    assert!(said.contains("choose another one"), "{said}");
    let said = refusal(&saccaded(&["bench", "--json", "nothing://here"], Some(empty.path())));
    assert!(!said.is_empty());
    assert!(!saccaded(&["bench", "--frames", "0"], None).status.success());
}

#[test]
fn the_bench_counts_no_allocations() {
    let bundle = random_bundle();
    let model = bundle.path().join("nano");
    let args = ["bench", "--json", "--frames", "20", "test://pattern?width=160&height=120"];
    let output = saccaded(&args, Some(&model));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["allocs_per_frame"], json!(0.0), "{found}");
    for key in ["frame_to_answer_ms", "frame_to_action_ms"] {
        let at = |p: &str| found[key][p].as_f64().unwrap();
        assert!(0.0 < at("p50") && at("p50") <= at("p95") && at("p95") <= at("p99"), "{found}");
    }
    assert!(found["frame_to_action_ms"]["p50"].as_f64() < found["frame_to_answer_ms"]["p50"].as_f64());
    assert!(found["frames_per_s"].as_f64().unwrap() > 0.0);
    let table = saccaded(&["bench", "--frames", "2", "test://pattern"], Some(&model));
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("frame to answer") && table.contains("allocations per frame"), "{table}");
}

#[test]
fn the_doctor_speaks_json_and_words() {
    let json: Value = serde_json::from_slice(&saccaded(&["doctor", "--json"], None).stdout).unwrap();
    assert!(json["variant"].is_string() && json["mem_total_gb"].as_f64().unwrap() > 0.0);
    assert!(String::from_utf8_lossy(&saccaded(&["doctor"], None).stdout).contains("board"));
}

/// A service of a tiny published model.
fn published(checkpoint: &str) -> Service {
    let bundle = service::published(checkpoint);
    Service::start(&bundle.path().join("tiny"), &[], &[]).unwrap()
}

#[test]
fn a_language_model_takes_a_conversation() {
    let service = published("llama/tiny.gguf");
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk =
        [turn("system", "be brief"), turn("user", "hi"), turn("assistant", "yes?"), turn("user", "the ring")];
    let body = json!({"messages": talk, "max_tokens": 12});
    let first = service.completion(&body);
    assert_eq!(first["model"], "tiny");
    // The template puts two special tokens, a role and two line ends around each message, and opens the answer.
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 40 && first["usage"]["completion_tokens"].as_u64().unwrap() >= 1, "{first}");
    assert_eq!(service.completion(&body)["choices"], first["choices"], "greedy, so the same again");
    let shorter = service.completion(&json!({"messages": talk[..2], "max_tokens": 12}));
    assert!(shorter["usage"]["prompt_tokens"].as_u64().unwrap() < prompt, "{shorter}");

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let (status, lines) = service.chat(&streamed);
    assert_eq!((status, lines.contains("data: [DONE]")), (200, true), "{lines}");

    let picture = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]);
    let long = "the ring ".repeat(400);
    for (messages, words) in [
        (json!([]), "the last message must be the user's"),
        (json!([turn("user", "hi"), turn("assistant", "yes")]), "the last message must be the user's"),
        (json!([turn("tool", "4")]), "this model calls no tools"),
        (json!([{"role": "user", "content": picture}]), "this model takes no pictures"),
        (json!([turn("user", &long)]), "there is room for 256"),
    ] {
        let (status, text) = service.chat(&json!({"messages": messages}));
        assert_eq!((status, text.contains(words)), (400, true), "{text}");
    }
}

#[test]
fn a_conversation_that_comes_back_is_read_on_from_where_it_was() {
    let service = published("llama/tiny.gguf");
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let ask = |talk: &[Value]| service.completion(&json!({"messages": talk, "max_tokens": 8}));
    let count = |answer: &Value, what: &str| answer["usage"].pointer(what).unwrap().as_u64().unwrap();
    let (prompt, cached) = ("/prompt_tokens", "/prompt_tokens_details/cached_tokens");
    let mut talk = vec![turn("system", "be brief"), turn("user", "the ring")];
    let first = ask(&talk);
    assert_eq!(count(&first, cached), 0);
    talk.push(first["choices"][0]["message"].clone());
    talk.push(turn("user", "and the door"));
    let second = ask(&talk);
    // All of the first prompt, at least: the model's tokens need not be those that its text has.
    assert!(count(&second, cached) >= count(&first, prompt), "{second}");
    assert!(count(&second, cached) < count(&second, prompt), "{second}");
    assert_eq!(
        count(&second, "/total_tokens"),
        count(&second, prompt) + count(&second, "/completion_tokens")
    );

    // Another conversation shares its beginning alone, and a fresh service says the same as the one that has read before.
    let other = [turn("system", "be brief"), turn("user", "a red ring")];
    let third = ask(&other);
    assert!((1..count(&first, prompt)).contains(&count(&third, cached)), "{third}");
    let fresh = published("llama/tiny.gguf");
    for (messages, said) in [(&talk[..], &second), (&other[..], &third)] {
        let again = fresh.completion(&json!({"messages": messages, "max_tokens": 8}));
        assert_eq!(again["choices"], said["choices"]);
    }
    let total = count(&second, cached) + count(&third, cached);
    assert_eq!(
        service.metric("saccade_prompt_tokens_cached_total"),
        f64::from(u32::try_from(total).unwrap())
    );

    let body = json!({"messages": other, "max_tokens": 8, "stream": true, "stream_options": {"include_usage": true}});
    let (_, chunks) = streamed(&service.chat(&body).1);
    let usage = json!({"usage": chunks.last().unwrap()["usage"]});
    assert_eq!(count(&usage, cached), count(&third, prompt) - 1, "the last token goes in again: {usage}");
}

#[test]
fn published_models_are_shown_pictures() {
    // Tokens of a picture with what stands around it.
    for (family, tokens) in [("hf/chameleon", 64 + 2), ("hf/janus", 16 + 2)] {
        let service = published(family);
        let url =
            format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(jpeg(90)));
        let picture = json!({"type": "image_url", "image_url": {"url": url}});
        let ask = |shown: &[&Value]| {
            let mut content = vec![json!({"type": "text", "text": "what colour is the ball?"})];
            content.extend(shown.iter().map(|&picture| picture.clone()));
            service.completion(&json!({"messages": [{"role": "user", "content": content}], "max_tokens": 8}))
        };
        let count = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
        let (none, one, two) = (ask(&[]), ask(&[&picture]), ask(&[&picture, &picture]));
        assert_eq!(count(&one) - count(&none), tokens, "{family}: {one}");
        assert_eq!(count(&two) - count(&one), tokens, "{family}: {two}");
        assert_ne!(one["choices"], none["choices"], "{family}: the picture is seen");
        assert!(one["timings"]["vision_ms"].as_f64().unwrap() > 0.0, "{one}");
    }
}

/// The picture of an answer, decoded.
fn picture(answer: &str) -> image::RgbImage {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let text = answer["data"][0]["b64_json"].as_str().unwrap();
    let png = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    image::load_from_memory_with_format(&png, image::ImageFormat::Png).unwrap().into_rgb8()
}

#[test]
fn models_that_draw_send_pictures() {
    // Pixels and codes of a picture.
    for (family, size, pixels, codes) in
        [("hf/janus", "auto", (16, 16), 16), ("hf/emu3", "48x40", (48, 40), 30)]
    {
        let service = published(family);
        let ask = |seed: u64| {
            let body = json!({"prompt": "a small house", "n": 1, "size": size, "seed": seed, "response_format": "b64_json"});
            let (status, text) = service.post("/v1/images/generations", &body);
            assert_eq!(status, 200, "{family}: {text}");
            text
        };
        let first = ask(1);
        assert_eq!(picture(&first).dimensions(), pixels, "{family}");
        let answer: Value = serde_json::from_str(&first).unwrap();
        assert_eq!(answer["usage"]["output_tokens"], codes, "{family}: {answer}");
        assert!(
            answer["created"].as_u64().unwrap() > 0 && answer["timings"]["decode_ms"].as_f64().unwrap() > 0.0
        );
        assert_eq!(picture(&ask(1)), picture(&first), "{family}: a seed repeats");
        assert!((2..9).any(|seed| picture(&ask(seed)) != picture(&first)), "{family}: others draw otherwise");
        // It still talks.
        let talk = json!({"messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 4});
        assert_eq!(service.chat(&talk).0, 200, "{family}");
        let (status, text) = service.post("/v1/images/generations", &json!({"prompt": "a", "size": "40x41"}));
        assert_eq!((status, text.contains("cannot be drawn")), (400, true), "{family}: {text}");
        assert_eq!(service.get("/v1/images/generations").0, 405);
    }
}

#[test]
fn models_that_do_not_draw_say_so() {
    for checkpoint in ["llama/tiny.gguf", "hf/chameleon"] {
        let service = published(checkpoint);
        let (status, text) = service.post("/v1/images/generations", &json!({"prompt": "a small house"}));
        assert_eq!((status, text.contains("does not draw")), (400, true), "{checkpoint}: {text}");
        assert_eq!(
            service.chat(&json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})).0,
            200
        );
    }
}
