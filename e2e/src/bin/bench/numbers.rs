//! Percentiles and rounded figures.

use serde_json::{Value, json};
use std::time::Duration;

/// The time below which so many percent lie.
pub fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The time in the middle.
pub fn median(times: &mut [Duration]) -> Duration {
    percentile(times, 50)
}

/// How times spread, in milliseconds.
pub fn spread(times: &mut [Duration]) -> Value {
    json!({
        "n": times.len(), "p50_ms": ms(percentile(times, 50)), "p95_ms": ms(percentile(times, 95)),
        "p99_ms": ms(percentile(times, 99)), "max_ms": ms(percentile(times, 100)),
    })
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0)
}

/// How many times as long.
pub fn ratio(time: Duration, limit: Duration) -> f64 {
    round(time.as_secs_f64() / limit.as_secs_f64())
}

/// Two places.
pub fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
