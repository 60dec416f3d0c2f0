//! What admission lets in and what it does not.

use base64::Engine as _;
use serde_json::{Value, json};

use super::*;
use crate::turns::MAX_TEXT_BYTES;

fn served() -> Served {
    Served {
        name: "nano".into(),
        talks: false,
        draws: false,
        tasks: vec!["robot".into(), "vqa".into(), "text".into()],
        max_pictures: 4,
        max_new_tokens: 48,
        caption: "what is happening?".into(),
        kernels: "scalar".into(),
        device: saccade::engine::DeviceReport::cpu("scalar", "asked for"),
        threads: 1,
        created: 0,
    }
}

fn ask(extra: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "is the gripper open?"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn verdict(body: &Value) -> Result<Admitted, ApiError> {
    admit(body.to_string().as_bytes(), &served())
}

impl Admitted {
    fn look(&self) -> &Look {
        match &self.prompt.asks {
            Asks::Look(look) => look,
            Asks::Talk(turns, _) => panic!("a conversation of {} turns", turns.len()),
            Asks::Draw(sketch) => panic!("a picture: {sketch:?}"),
        }
    }
}

fn picture() -> Value {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(png.into_inner());
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{text}"), "detail": "low"}})
}

#[test]
fn admits_plain_text_with_unknown_fields() {
    let body =
        ask(&json!({"user": "x", "logit_bias": {"1": [2, {"deep": null}]}, "temperature": 0.7, "seed": -3}));
    let admitted = verdict(&body).unwrap();
    assert_eq!(admitted.look().question, "is the gripper open?");
    assert_eq!((admitted.look().task.as_str(), admitted.model.as_str()), ("text", "nano"));
    assert_eq!((admitted.prompt.max_new, admitted.stream), (48, false));
}

#[test]
fn takes_pictures_and_question_from_all_user_messages() {
    let body = json!({"stream": true, "stream_options": {"include_usage": true}, "messages": [
        {"role": "system", "content": "open the door"},
        {"role": "user", "content": [{"type": "text", "text": "look:"}, picture()]},
        {"role": "user", "content": [picture(), {"type": "text", "text": "what is"}, {"type": "text", "text": "there?"}]},
    ]});
    let admitted = verdict(&body).unwrap();
    assert_eq!(admitted.look().pictures.len(), 2);
    assert_eq!(admitted.look().question, "look: what is there?");
    assert_eq!(
        (admitted.look().instruction.as_str(), admitted.look().task.as_str()),
        ("open the door", "robot")
    );
    assert!(admitted.stream && admitted.include_usage);
}

#[test]
fn refuses_a_conversation_rather_than_forget_it() {
    for role in ["assistant", "tool", "function"] {
        let body = json!({"messages": [
            {"role": "user", "content": "is the door open?"},
            {"role": role, "content": "yes"},
            {"role": "user", "content": "and now?"},
        ]});
        let error = verdict(&body).expect_err(role);
        assert_eq!(error.status, 400);
        assert!(
            error.message.contains("no earlier answers: send system and user messages"),
            "{}",
            error.message
        );
        assert_eq!(error.to_json()["error"]["param"], "messages[1]");
    }
}

#[test]
fn a_picture_without_a_question_is_captioned() {
    let body = json!({"messages": [{"role": "user", "content": [picture()]}]});
    assert_eq!(verdict(&body).unwrap().look().question, "what is happening?");
}

#[test]
fn a_model_id_may_name_a_task_and_an_unknown_one_is_refused() {
    let admitted = verdict(&ask(&json!({"model": "nano:vqa"}))).unwrap();
    assert_eq!((admitted.look().task.as_str(), admitted.model.as_str()), ("vqa", "nano:vqa"));
    for unknown in ["gpt-4", "nano:", "nano:fly", "nanovqa"] {
        let error = verdict(&ask(&json!({"model": unknown}))).expect_err(unknown);
        assert_eq!(error.status, 404);
        assert!(error.message.contains("nano, nano:robot, nano:vqa, nano:text"), "{}", error.message);
    }
}

#[test]
fn every_number_is_bounded() {
    for (field, values) in [
        ("max_tokens", vec![json!(0), json!(-1), json!(1.5), json!(1_u64 << 40), json!(1e300), json!("8")]),
        ("max_completion_tokens", vec![json!(0), json!(-9_223_372_036_854_775_808_i64), json!(u64::MAX)]),
        ("n", vec![json!(0), json!(2), json!(-1), json!(1e18)]),
        ("temperature", vec![json!(-0.1), json!(2.1), json!(1e300), json!([])]),
        ("top_p", vec![json!(-1), json!(1.01)]),
        ("seed", vec![json!(0.5), json!(1e30), json!("x")]),
    ] {
        for value in values {
            let error = verdict(&ask(&json!({field: value.clone()}))).expect_err(field);
            assert_eq!(error.status, 400, "{field} {value}");
        }
    }
    assert_eq!(verdict(&ask(&json!({"max_tokens": 7}))).unwrap().prompt.max_new, 7);
    assert_eq!(
        verdict(&ask(&json!({"max_tokens": 512.0}))).unwrap().prompt.max_new,
        48,
        "the model's limit holds"
    );
    assert_eq!(
        verdict(&ask(&json!({"max_tokens": null, "n": 1, "temperature": 0}))).unwrap().prompt.max_new,
        48
    );
}

#[test]
fn refuses_conversations_without_a_question() {
    for messages in [
        json!([]),
        json!([{"role": "system", "content": "x"}]),
        json!([{"role": "user", "content": "  "}]),
        json!([{"role": "user"}]),
        json!([{"role": "captain", "content": "x"}]),
        json!([{"role": "user", "content": [{"type": "input_audio"}]}]),
        json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        json!([{"role": "user", "content": 3}]),
    ] {
        let error = verdict(&json!({"messages": messages})).expect_err("must be refused");
        assert_eq!(error.status, 400, "{messages}");
    }
}

#[test]
fn lists_stop_at_their_limit() {
    let message = json!({"role": "user", "content": "x"});
    assert!(verdict(&json!({"messages": vec![message.clone(); 128]})).is_ok());
    assert_eq!(verdict(&json!({"messages": vec![message; 129]})).expect_err("129").status, 400);
    let five = vec![picture(); 5];
    let error = verdict(&json!({"messages": [{"role": "user", "content": five}]})).expect_err("5 pictures");
    assert!(error.message.contains("4 pictures"), "{}", error.message);
    assert_eq!(verdict(&ask(&json!({"stop": ["a", "b", "c", "d", "e"]}))).expect_err("5 stops").status, 400);
    assert_eq!(verdict(&ask(&json!({"stop": ""}))).expect_err("empty stop").status, 400);
    assert_eq!(verdict(&ask(&json!({"stop": "."}))).unwrap().prompt.stop, ["."]);
    let long = "a".repeat(MAX_TEXT_BYTES + 1);
    assert_eq!(
        verdict(&json!({"messages": [{"role": "user", "content": long}]})).expect_err("long").status,
        400
    );
}

#[test]
fn bytes_that_are_no_request_are_refused() {
    for body in [&b""[..], b"{", b"[]", b"null", b"{\"messages\":{}}", b"\xff\xfe", b"{\"messages\":[1]}"] {
        assert_eq!(admit(body, &served()).expect_err("must be refused").status, 400);
    }
    let deep = format!("{{\"messages\":{}", "[".repeat(100_000));
    assert_eq!(admit(deep.as_bytes(), &served()).expect_err("deep").status, 400);
    let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
    assert_eq!(admit(deep.as_bytes(), &served()).expect_err("deep unknown field").status, 400);
}

#[test]
fn refuses_a_response_format_that_it_cannot_keep() {
    let error = verdict(&ask(&json!({"response_format": {"type": "json_schema", "json_schema": {}}})));
    assert!(error.expect_err("must be refused").message.contains("plain text"));
    assert!(verdict(&ask(&json!({"response_format": {"type": "text"}}))).is_ok());
}
