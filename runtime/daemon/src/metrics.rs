//! What Prometheus reads at `/metrics`.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use saccade::engine::DeviceReport;

/// Labels of a finished request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: u32,
}

/// What the model runs on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    device: &'static str,
    name: String,
    reason: String,
    weights: &'static str,
    weights_reason: String,
}

/// Every figure of the service. Counting is a relaxed atomic addition; only reading formats anything.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<StatusLabels, Counter>,
    device: Family<DeviceLabels, Gauge>,
    pub(crate) prompt_tokens: Counter,
    pub(crate) prompt_tokens_cached: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) pictures: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) connections: Gauge<i64, AtomicI64>,
    pub(crate) connections_evicted: Counter,
    pub(crate) queue_len: Gauge<i64, AtomicI64>,
    pub(crate) time_to_first_token_s: Histogram,
    pub(crate) request_s: Histogram,
    memory: Gauge<i64, AtomicI64>,
    uptime_s: Gauge<f64, AtomicU64>,
    started: std::time::Instant,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // 1 ms to about 65 s: one picture on a board takes tens of milliseconds, a full queue seconds.
        let buckets = || exponential_buckets(0.001, 2.0, 17);
        let mut this = Self {
            registry: Registry::with_prefix("saccade"),
            requests: Family::default(),
            device: Family::default(),
            prompt_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            generated_tokens: Counter::default(),
            pictures: Counter::default(),
            cancelled: Counter::default(),
            connections: Gauge::default(),
            connections_evicted: Counter::default(),
            queue_len: Gauge::default(),
            time_to_first_token_s: Histogram::new(buckets()),
            request_s: Histogram::new(buckets()),
            memory: Gauge::default(),
            uptime_s: Gauge::default(),
            started: std::time::Instant::now(),
        };
        let r = &mut this.registry;
        r.register("requests", "Requests for answers and pictures, by HTTP status", this.requests.clone());
        r.register(
            "device",
            "What the model runs on, where it finds the weights, and why: always 1",
            this.device.clone(),
        );
        r.register("prompt_tokens", "Tokens read", this.prompt_tokens.clone());
        r.register(
            "prompt_tokens_cached",
            "Tokens read whose keys and values an earlier request had left",
            this.prompt_tokens_cached.clone(),
        );
        r.register("generated_tokens", "Tokens written", this.generated_tokens.clone());
        r.register("pictures", "Pictures tokenized", this.pictures.clone());
        r.register("requests_cancelled", "Requests whose client left first", this.cancelled.clone());
        r.register("connections", "Open connections", this.connections.clone());
        r.register(
            "connections_evicted",
            "Connections closed because they had sent no request when a newer one needed the place",
            this.connections_evicted.clone(),
        );
        r.register("queue_length", "Requests waiting for the engine", this.queue_len.clone());
        r.register_with_unit(
            "time_to_first_token",
            "From admission to the first text",
            Unit::Seconds,
            this.time_to_first_token_s.clone(),
        );
        r.register_with_unit("request", "From admission to the end", Unit::Seconds, this.request_s.clone());
        r.register_with_unit(
            "memory_anonymous",
            "Anonymous memory of the process, swapped pages included",
            Unit::Bytes,
            this.memory.clone(),
        );
        r.register_with_unit("uptime", "Since the start", Unit::Seconds, this.uptime_s.clone());
        this
    }

    /// Says what the model runs on.
    pub(crate) fn tell_device(&self, device: &DeviceReport) {
        let DeviceReport { name: device, what: name, reason, weights, weights_reason } = device.clone();
        self.device.get_or_create(&DeviceLabels { device, name, reason, weights, weights_reason }).set(1);
    }

    /// Counts a request for an answer or a picture that ended with `status`.
    pub(crate) fn count_request(&self, status: u16) {
        self.requests.get_or_create(&StatusLabels { status: status.into() }).inc();
    }

    /// The text exposition.
    pub(crate) fn to_text(&self) -> String {
        self.memory.set(anonymous_bytes().unwrap_or(0));
        self.uptime_s.set(self.started.elapsed().as_secs_f64());
        let mut text = String::new();
        // Writing to a String cannot fail; an empty page would show in any scrape.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// RssAnon + VmSwap: what a leak shows in, which RSS alone hides as soon as the board swaps.
pub(crate) fn anonymous_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |key: &str| -> Option<i64> {
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some((kib("RssAnon:")? + kib("VmSwap:").unwrap_or(0)) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_in_the_text() {
        let metrics = Metrics::new();
        metrics.count_request(200);
        metrics.count_request(200);
        metrics.count_request(429);
        metrics.tell_device(&DeviceReport::cpu("scalar", "asked for"));
        metrics.generated_tokens.inc_by(17);
        metrics.time_to_first_token_s.observe(0.05);
        let text = metrics.to_text();
        for line in [
            "saccade_requests_total{status=\"200\"} 2",
            "saccade_requests_total{status=\"429\"} 1",
            "saccade_device{device=\"cpu\",name=\"scalar\",reason=\"asked for\",weights=\"mapped\",weights_reason=\"",
            "saccade_generated_tokens_total 17",
            "saccade_time_to_first_token_seconds_count 1",
            "saccade_memory_anonymous_bytes ",
            "# EOF",
        ] {
            assert!(text.contains(line), "no `{line}` in\n{text}");
        }
    }
}
