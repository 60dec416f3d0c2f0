//! Every refusal of the HTTP interface, in the shape that OpenAI clients parse.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const CARD_LOST: &str = "card_lost";

/// A refusal: a status, a kind, a sentence, and the parameter concerned.
///
/// The sentence is ours, never a library's: the text of a decoder may carry more than the client should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    code: &'static str,
    pub(crate) message: String,
    param: Option<String>,
    retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, message: message.into(), param: None, retry_after_s: None }
    }

    /// 400: the request, or the parameter `param` of it, breaks a rule.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_value", message);
        Self { param: Some(param.into()), ..error }
    }

    /// 400: the body as a whole cannot be read.
    pub(crate) fn unreadable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_json", message)
    }

    /// 403: a browser page of another site speaks to us.
    pub(crate) fn foreign_host() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "permission_error",
            "foreign_host",
            "this server answers on localhost, 127.0.0.1 and [::1] only: use one of these names in the URL",
        )
    }

    /// 404: no such model.
    pub(crate) fn unknown_model(asked: &str, known: &[String]) -> Self {
        let asked: String = asked.chars().take(64).collect();
        let message = format!("no model `{asked}` is served here: ask for one of {}", known.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found", message);
        Self { param: Some("model".into()), ..error }
    }

    /// 404: no such route.
    pub(crate) fn unknown_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "unknown_url",
            "no such path: this server has /health, /v1/models, /v1/chat/completions, /v1/images/generations and /metrics",
        )
    }

    /// 405: the route exists, the method does not.
    pub(crate) fn wrong_method(method: &'static str) -> Self {
        let message = format!("this path answers {method} only");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
    }

    /// 408: the body did not arrive in time.
    pub(crate) fn slow_body(limit_s: u64) -> Self {
        let message = format!("the request body did not arrive within {limit_s} seconds: send it again");
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", "body_timeout", message)
    }

    /// 413: the body is larger than this server reads.
    pub(crate) fn too_large(limit_bytes: usize) -> Self {
        let message = format!("the request body is larger than {limit_bytes} bytes: send smaller pictures");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "request_too_large", message)
    }

    /// 415: the body is not JSON.
    pub(crate) fn not_json() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "unsupported_media_type",
            "the request needs the header `content-type: application/json`",
        )
    }

    /// 429: every place in the queue is taken.
    pub(crate) fn busy() -> Self {
        let error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "queue_full",
            "every place in the queue is taken: try again in a second",
        );
        Self { retry_after_s: Some(1), ..error }
    }

    /// 500: the model failed on this request; the service goes on.
    pub(crate) fn engine() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "engine_error",
            "the model could not finish this request: the log of saccaded says why",
        )
    }

    /// 503: there is no memory for this request; the service goes on. The sentence is the runtime's, which knows how much was asked for.
    pub(crate) fn no_memory(sentence: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "out_of_memory", sentence)
    }

    /// 503: the card was lost, and the service ends.
    pub(crate) fn card_lost() -> Self {
        let error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            CARD_LOST,
            "the card was lost and the service ends, to be started again: try again in some seconds",
        );
        Self { retry_after_s: Some(5), ..error }
    }

    /// Whether this says that the card was lost.
    pub(crate) fn is_card_lost(&self) -> bool {
        self.code == CARD_LOST
    }

    /// What the model says of `what`, which is no fault of the request.
    pub(crate) fn of_model(what: &str, error: &saccade::Error) -> Self {
        log::error!("{what} failed: {}", error.sentence());
        if error.is_card_lost() {
            Self::card_lost()
        } else if error.is_out_of_memory() {
            Self::no_memory(error.to_string())
        } else {
            Self::engine()
        }
    }

    /// 503: the model is being loaded.
    pub(crate) fn loading() -> Self {
        let message = "Loading model";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "loading", message);
        Self { retry_after_s: Some(1), ..error }
    }

    /// 503: the service is going away.
    pub(crate) fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            "stopping",
            "the service is stopping: try again when it is back",
        )
    }

    /// The error object, as it stands in a body or in a server-sent event.
    pub(crate) fn to_json(&self) -> Value {
        // llama-server's clients look for the number 503 while a model loads; the others for a string.
        let code = if self.code == "loading" { json!(503) } else { json!(self.code) };
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
