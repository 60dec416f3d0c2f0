//! The routes: what each path answers.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::admit::{self, Admitted, Served};
use crate::answer::{self, Heading};
use crate::app::{App, MAX_BODY_BYTES};
use crate::draw;
use crate::error::ApiError;

/// Every path of the service.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health).fallback(async || ApiError::wrong_method("GET")))
        .route("/v1/models", get(models).fallback(async || ApiError::wrong_method("GET")))
        .route("/metrics", get(metrics).fallback(async || ApiError::wrong_method("GET")))
        .route("/v1/chat/completions", post(chat).fallback(async || ApiError::wrong_method("POST")))
        .route("/v1/images/generations", post(images).fallback(async || ApiError::wrong_method("POST")))
        .fallback(async || ApiError::unknown_route())
        .layer(from_fn(local_names_only))
        .with_state(app)
}

/// Refuses a page of another site that reaches this port under its own name (DNS rebinding).
async fn local_names_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_none_or(is_local_name) {
        next.run(request).await
    } else {
        ApiError::foreign_host().into_response()
    }
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    Ok(Json(json!({
        "status": "ok",
        "model": served.name,
        "device": served.device.name,
        "device_name": served.device.what,
        "device_reason": served.device.reason,
        "weights": served.device.weights,
        "weights_reason": served.device.weights_reason,
        "kernels": served.kernels,
        "threads": served.threads,
        "version": env!("CARGO_PKG_VERSION"),
    })))
}

async fn models(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    let data: Vec<Value> = served
        .ids()
        .into_iter()
        .map(|id| {
            json!({
                "id": id, "object": "model", "created": served.created, "owned_by": "saccade",
                "meta": {
                    "max_pictures": served.max_pictures, "max_tokens": served.max_new_tokens, "draws": served.draws,
                },
            })
        })
        .collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

async fn metrics(State(app): State<Arc<App>>) -> ([(HeaderName, &'static str); 1], String) {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], app.metrics.to_text())
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    let response = complete(&app, request).await.unwrap_or_else(IntoResponse::into_response);
    app.metrics.count_request(response.status().as_u16());
    response
}

async fn images(State(app): State<Arc<App>>, request: Request) -> Response {
    let response = picture(&app, request).await.unwrap_or_else(IntoResponse::into_response);
    app.metrics.count_request(response.status().as_u16());
    response
}

/// Reads, admits and queues one request for a picture, and answers it.
async fn picture(app: &Arc<App>, request: Request) -> Result<Response, ApiError> {
    let (admitted, memory) = receive(app, request, draw::admit).await?;
    draw::answer(app.enqueue(admitted, memory)?).await
}

/// Reads, admits and queues one request, and answers it.
async fn complete(app: &Arc<App>, request: Request) -> Result<Response, ApiError> {
    let (admitted, memory) = receive(app, request, admit::admit).await?;
    let heading = Heading::new(app.completion_id(), &admitted);
    let stream = admitted.stream;
    let events = app.enqueue(admitted, memory)?;
    if stream { answer::stream(heading, events).await } else { answer::whole(&heading, events).await }
}

/// Reads and admits one request; what it holds of the memory for bodies comes with it.
async fn receive(
    app: &Arc<App>,
    request: Request,
    admit: fn(&[u8], &Served) -> Result<Admitted, ApiError>,
) -> Result<(Admitted, OwnedSemaphorePermit), ApiError> {
    let served = app.served()?;
    let (head, body) = request.into_parts();
    if !is_json(&head.headers) {
        return Err(ApiError::not_json());
    }
    if content_length(&head.headers).is_some_and(|declared| declared > MAX_BODY_BYTES) {
        return Err(ApiError::too_large(MAX_BODY_BYTES));
    }
    let reading = tokio::time::timeout(app.body_timeout, read_body(app, body));
    let (bytes, memory) = reading.await.map_err(|_| ApiError::slow_body(app.body_timeout.as_secs()))??;
    Ok((admit(&bytes, served)?, memory))
}

/// Browsers may send a form across sites without asking, but not this content type: so it keeps other sites out.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body. Its memory is set aside as it arrives, not as it is announced: who sends nothing holds nothing.
async fn read_body(app: &App, mut body: Body) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
    let mut bytes = Vec::new();
    let mut memory = app.reserve(0, None)?;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| ApiError::unreadable("the body broke off: send the request again"))?;
        if let Some(part) = frame.data_ref() {
            memory = app.reserve(bytes.len() + part.len(), Some(memory))?;
            bytes.extend_from_slice(part);
        }
    }
    Ok((bytes, memory))
}
