//! Plain scalars of YAML 1.1 as the reference compiler reads them, and durations.

use crate::yaml::{Float, Value};

/// The value of a plain (unquoted) scalar.
pub(crate) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(Float::new(f64::NAN, text)),
        _ => {}
    }
    let first = text.as_bytes().first().copied().unwrap_or(b' ');
    if first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.') {
        if let Some(number) = integer(text) {
            return Value::Int(number);
        }
        if let Some(number) = float(text) {
            return Value::Float(Float::new(number, text));
        }
    }
    Value::Str(text.into())
}

fn sign(text: &str) -> (i64, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (-1, &text[1..]),
        Some(b'+') => (1, &text[1..]),
        _ => (1, text),
    }
}

fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = sign(text);
    if !digits.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    if digits.contains(':') {
        return sexagesimal(digits).and_then(|n| n.checked_mul(sign));
    }
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    let (radix, body) = if let Some(hex) = plain.strip_prefix("0x") {
        (16, hex)
    } else if let Some(binary) = plain.strip_prefix("0b") {
        (2, binary)
    } else if plain.len() > 1 && plain.starts_with('0') {
        (8, &plain[1..])
    } else {
        (10, plain.as_str())
    };
    if body.is_empty() || !body.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(body, radix).ok()?.checked_mul(sign)
}

/// `190:20:30`: base 60, the first part not starting with 0, the others 0..59.
fn sexagesimal(digits: &str) -> Option<i64> {
    let mut total: i64 = 0;
    for (index, part) in digits.split(':').enumerate() {
        let short = index == 0 || part.len() <= 2;
        if part.is_empty() || !short || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        if index == 0 && part.starts_with('0') {
            return None;
        }
        let value: i64 = part.parse().ok()?;
        if index > 0 && value > 59 {
            return None;
        }
        total = total.checked_mul(60)?.checked_add(value)?;
    }
    Some(total)
}

fn float(text: &str) -> Option<f64> {
    let (sign, body) = sign(text);
    if matches!(body, ".inf" | ".Inf" | ".INF") {
        return Some(f64::INFINITY.copysign(sign as f64));
    }
    let body: String = body.chars().filter(|c| *c != '_').collect();
    let has_digit = body.bytes().any(|b| b.is_ascii_digit());
    let shape = body.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    // An integer too large for 64 bits stays text; a float needs its dot or exponent.
    if !has_digit || !shape || !body.contains(['.', 'e', 'E']) || body.starts_with(['e', 'E', '+', '-']) {
        return None;
    }
    body.parse::<f64>().ok().map(|n| n * sign as f64)
}

/// Whole seconds (rounded up) of a duration: `10m`, `1h30m`, `1.5h`, `90s`, `500ms`.
pub(crate) fn duration_secs(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    if rest.is_empty() || rest.len() > 64 {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * scale;
        rest = &rest[unit..];
    }
    // A year is longer than any job; more is a slip of the pen.
    (total > 0.0 && total <= 31_536_000.0).then(|| total.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_yaml_1_1() {
        let cases: &[(&str, &str)] = &[
            ("yes", "Bool(true)"),
            ("OFF", "Bool(false)"),
            ("y", "Str(\"y\")"),
            ("n", "Str(\"n\")"),
            ("~", "Null"),
            ("", "Null"),
            ("123", "Int(123)"),
            ("-5", "Int(-5)"),
            ("+5", "Int(5)"),
            ("1_000", "Int(1000)"),
            ("0x1F", "Int(31)"),
            ("0b10", "Int(2)"),
            ("017", "Int(15)"),
            ("08", "Str(\"08\")"),
            ("190:20:30", "Int(685230)"),
            ("1.5", "Float(1.5)"),
            (".5", "Float(0.5)"),
            ("1e3", "Float(1000.0)"),
            ("1.10", "Float(1.1)"),
            ("-.inf", "Float(-inf)"),
            ("1.2.3", "Str(\"1.2.3\")"),
            ("2019-01-01", "Str(\"2019-01-01\")"),
            ("99999999999999999999", "Str(\"99999999999999999999\")"),
            ("-", "Str(\"-\")"),
            ("=", "Str(\"=\")"),
        ];
        for (text, expected) in cases {
            assert_eq!(format!("{:?}", plain(text)), *expected, "{text:?}");
        }
    }

    #[test]
    fn durations() {
        let cases: &[(&str, Option<u64>)] = &[
            ("10m", Some(600)),
            ("1h30m", Some(5400)),
            ("1.5h", Some(5400)),
            ("90s", Some(90)),
            ("500ms", Some(1)),
            ("10", None),
            ("0s", None),
            ("m", None),
            ("", None),
            ("5 m", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration_secs(text), *expected, "{text:?}");
        }
    }
}
