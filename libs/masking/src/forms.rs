//! The forms in which a value may appear in output.

use crate::{MIN_LEN, is_maskable};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use std::collections::BTreeSet;

/// Values from this length on are also looked for as base64 of base64.
const TWICE_FROM: usize = 12;

pub(crate) fn needles<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut all = BTreeSet::new();
    for value in values {
        if !is_maskable(value) {
            continue;
        }
        let mut plain: BTreeSet<Vec<u8>> = BTreeSet::new();
        plain.insert(value.to_vec());
        let end = value.iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |i| i + 1);
        plain.insert(value[..end].to_vec());
        for line in value.split(|b| *b == b'\n') {
            plain.insert(line.trim_ascii().to_vec());
        }
        for form in plain {
            if is_maskable(&form) {
                encoded(&form, &mut all);
                all.insert(form);
            }
        }
    }
    all.into_iter().filter(|needle| needle.len() >= MIN_LEN).collect()
}

fn encoded(value: &[u8], all: &mut BTreeSet<Vec<u8>>) {
    all.insert(value.iter().flat_map(|b| hex(*b, false)).collect());
    all.insert(value.iter().flat_map(|b| hex(*b, true)).collect());
    for once in base64_forms(value) {
        if value.len() >= TWICE_FROM {
            for twice in base64_forms(&once) {
                both_alphabets(twice, all);
            }
        }
        both_alphabets(once, all);
    }
    for plus in [false, true] {
        for upper in [false, true] {
            let once = percent(value, upper, plus);
            all.insert(percent(&once, upper, plus));
            all.insert(once);
        }
    }
    let Ok(text) = std::str::from_utf8(value) else { return };
    all.insert(text.replace('\'', r"'\''").into_bytes());
    all.insert(text.replace('\'', r#"'"'"'"#).into_bytes());
    all.insert(escape(text, |c| {
        (c.is_ascii() && !c.is_ascii_alphanumeric() && !"_-./:=@%+,\n".contains(c)).then(|| format!("\\{c}"))
    }));
    all.insert(escape(text, |c| "\"\\$`".contains(c).then(|| format!("\\{c}"))));
    for slash in [false, true] {
        for ascii in [false, true] {
            all.insert(json(text, slash, ascii));
        }
    }
    // Most values have no character for which these differ, and every agent does this for every value.
    let escapes: &[fn(char) -> String] = match text.chars().any(is_wide) {
        true => &[as_it_is, hex_escape, octal_escape, braced_escape],
        false => &[as_it_is],
    };
    let entities: &[fn(char) -> String] = match text.is_ascii() {
        true => &[as_it_is],
        false => &[as_it_is, decimal_entity, hex_entity],
    };
    for quotes in ["", "'", "\"", "'\""] {
        for wide in escapes {
            all.insert(literal(text, quotes, *wide));
        }
    }
    for numeric in [decimal_entity, hex_entity] {
        all.insert(escape(text, |c| ("&<>\"'".contains(c) || !c.is_ascii()).then(|| numeric(c))));
    }
    for apostrophe in ["&#39;", "&#x27;", "&apos;"] {
        for quote in ["&quot;", "&#34;"] {
            for beyond in entities {
                all.insert(escape(text, |c| match c {
                    '&' => Some("&amp;".into()),
                    '<' => Some("&lt;".into()),
                    '>' => Some("&gt;".into()),
                    '"' => Some(quote.into()),
                    '\'' => Some(apostrophe.into()),
                    c => (!c.is_ascii()).then(|| beyond(c)),
                }));
            }
        }
    }
    all.insert(text.encode_utf16().flat_map(u16::to_le_bytes).collect());
    all.insert(text.encode_utf16().flat_map(u16::to_be_bytes).collect());
}

fn escape(text: &str, map: impl Fn(char) -> Option<String>) -> Vec<u8> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match map(c) {
            Some(s) => out.push_str(&s),
            None => out.push(c),
        }
    }
    out.into_bytes()
}

/// As languages and shells write a text down so that it can be read back.
fn literal(text: &str, quotes: &str, wide: fn(char) -> String) -> Vec<u8> {
    escape(text, |c| match c {
        '\n' => Some("\\n".into()),
        '\t' => Some("\\t".into()),
        '\r' => Some("\\r".into()),
        '\\' => Some("\\\\".into()),
        c if quotes.contains(c) => Some(format!("\\{c}")),
        c => is_wide(c).then(|| wide(c)),
    })
}

/// What has no short escape and is no printable ASCII.
fn is_wide(c: char) -> bool {
    !c.is_ascii() || (c.is_ascii_control() && !"\n\t\r".contains(c))
}

/// Python's texts, Go's, and `$'…'`.
fn as_it_is(c: char) -> String {
    c.to_string()
}

/// Python's bytes, and C.
fn hex_escape(c: char) -> String {
    c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// What `printf %q` makes where characters are bytes.
fn octal_escape(c: char) -> String {
    c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("\\{byte:03o}")).collect()
}

/// Rust and JavaScript.
fn braced_escape(c: char) -> String {
    format!("\\u{{{:x}}}", u32::from(c))
}

fn decimal_entity(c: char) -> String {
    format!("&#{};", u32::from(c))
}

fn hex_entity(c: char) -> String {
    format!("&#x{:x};", u32::from(c))
}

fn json(text: &str, slash: bool, ascii: bool) -> Vec<u8> {
    escape(text, |c| match c {
        '"' => Some("\\\"".into()),
        '\\' => Some("\\\\".into()),
        '\n' => Some("\\n".into()),
        '\r' => Some("\\r".into()),
        '\t' => Some("\\t".into()),
        '/' if slash => Some("\\/".into()),
        c if (c as u32) < 0x20 => Some(format!("\\u{:04x}", c as u32)),
        c if ascii && !c.is_ascii() => {
            let mut units = [0u16; 2];
            Some(c.encode_utf16(&mut units).iter().map(|u| format!("\\u{u:04x}")).collect())
        }
        _ => None,
    })
}

/// The two digits of a byte. Every agent does this for every byte of every value: without a text for each.
fn hex(byte: u8, upper: bool) -> [u8; 2] {
    let digits = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]
}

fn percent(value: &[u8], upper: bool, plus: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for byte in value {
        match byte {
            b' ' if plus => out.push(b'+'),
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(b) => out.push(*b),
            b => {
                out.push(b'%');
                out.extend(hex(*b, upper));
            }
        }
    }
    out
}

/// Base64 of the value at each of the three alignments, without the characters that depend on its neighbours.
fn base64_forms(value: &[u8]) -> Vec<Vec<u8>> {
    (0..3)
        .map(|shift: usize| {
            let mut padded = vec![0u8; shift];
            padded.extend_from_slice(value);
            let text = STANDARD_NO_PAD.encode(&padded).into_bytes();
            let from = (shift * 8).div_ceil(6);
            let to = padded.len() * 8 / 6;
            text[from..to].to_vec()
        })
        .collect()
}

fn both_alphabets(form: Vec<u8>, all: &mut BTreeSet<Vec<u8>>) {
    let url: Vec<u8> = form
        .iter()
        .map(|b| match b {
            b'+' => b'-',
            b'/' => b'_',
            b => *b,
        })
        .collect();
    all.insert(url);
    all.insert(form);
}
