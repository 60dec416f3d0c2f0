//! Answers on the wire: one JSON object, or server-sent events as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Json;
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::admit::Admitted;
use crate::app::unix_s;
use crate::error::ApiError;
use crate::job::{Done, Event};

/// What every piece of one answer repeats.
#[derive(Debug)]
pub(crate) struct Heading {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
}

impl Heading {
    pub(crate) fn new(id: String, admitted: &Admitted) -> Self {
        Self { id, created: unix_s(), model: admitted.model.clone(), include_usage: admitted.include_usage }
    }
}

/// Waits for the whole answer.
///
/// # Errors
/// What the engine refused; 500 if it went away.
pub(crate) async fn whole(heading: &Heading, mut events: Receiver<Event>) -> Result<Response, ApiError> {
    let mut text = String::new();
    loop {
        match events.recv().await.ok_or_else(ApiError::engine)? {
            Event::Text(more) => text.push_str(&more),
            Event::Failed(error) => return Err(error),
            Event::Drawn(_) => return Err(ApiError::engine()),
            Event::Done(done) => {
                let message = json!({"role": "assistant", "content": text});
                let choice =
                    json!({"index": 0, "message": message, "logprobs": null, "finish_reason": done.finish});
                return Ok(Json(json!({
                    "id": heading.id, "object": "chat.completion", "created": heading.created,
                    "model": heading.model, "choices": [choice], "usage": usage(&done), "timings": done.timings,
                }))
                .into_response());
            }
        }
    }
}

/// Streams the answer; the status waits for the first event, so that a refusal still has one of its own.
///
/// # Errors
/// What the engine refused before the first text; 500 if it went away.
pub(crate) async fn stream(heading: Heading, mut events: Receiver<Event>) -> Result<Response, ApiError> {
    let first = events.recv().await.ok_or_else(ApiError::engine)?;
    if let Event::Failed(error) = first {
        return Err(error);
    }
    let mut pending = heading.chunk(&json!({"role": "assistant", "content": ""}), &Value::Null);
    let ended = heading.append(&mut pending, first);
    let body = Body::new(EventStream { heading, events, pending, ended });
    Ok(([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], body)
        .into_response())
}

impl Heading {
    /// One `data:` line with a choice.
    fn chunk(&self, delta: &Value, finish: &Value) -> String {
        self.line(
            &json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]),
            &Value::Null,
        )
    }

    fn line(&self, choices: &Value, extra: &Value) -> String {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices,
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            chunk[key] = value.clone();
        }
        format!("data: {chunk}\n\n")
    }

    /// Appends an event's lines; true if nothing can follow.
    fn append(&self, lines: &mut String, event: Event) -> bool {
        match event {
            Event::Text(text) => {
                lines.push_str(&self.chunk(&json!({"content": text}), &Value::Null));
                false
            }
            Event::Failed(error) => {
                lines.push_str(&format!("data: {}\n\n", error.to_json()));
                true
            }
            Event::Drawn(_) => self.append(lines, Event::Failed(ApiError::engine())),
            Event::Done(done) => {
                let choice =
                    json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": done.finish}]);
                lines.push_str(&self.line(&choice, &json!({"timings": done.timings})));
                if self.include_usage {
                    lines.push_str(&self.line(&json!([]), &json!({"usage": usage(&done)})));
                }
                lines.push_str("data: [DONE]\n\n");
                true
            }
        }
    }
}

fn usage(done: &Done) -> Value {
    json!({
        "prompt_tokens": done.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    })
}

/// The body of a streamed answer. Dropping it (the client left) closes the channel, and the engine stops.
struct EventStream {
    heading: Heading,
    events: Receiver<Event>,
    pending: String,
    ended: bool,
}

impl hyper::body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while self.pending.is_empty() && !self.ended {
            let this = &mut *self;
            match this.events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => {
                    let event = event.unwrap_or_else(|| Event::Failed(ApiError::engine()));
                    this.ended = this.heading.append(&mut this.pending, event);
                }
            }
        }
        if self.pending.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(std::mem::take(&mut self.pending))))))
    }
}
