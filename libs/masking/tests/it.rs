//! The masker against a plain search, over every way to cut a stream.

use gantry_masking::{Masker, REPLACEMENT, Secrets};
use proptest::prelude::*;

fn whole(values: &[&str], text: &[u8]) -> Vec<u8> {
    Secrets::new(values).mask(text)
}

fn pieces(values: &[String], text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut masker = Masker::new(values);
    let mut out = Vec::new();
    let mut rest = text;
    for cut in cuts {
        let (head, tail) = rest.split_at((*cut).min(rest.len()));
        masker.push(head, &mut out);
        rest = tail;
    }
    masker.push(rest, &mut out);
    masker.flush(&mut out);
    out
}

#[test]
fn a_token_is_hidden_whole_and_its_signature_in_every_form() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";
    let secrets = Secrets::new(&["hunter22"]).with_tokens(&[token]);
    let text = format!("t={token} pw=hunter22\n");
    assert_eq!(secrets.mask(text.as_bytes()), b"t=**REDACTED** pw=**REDACTED**\n");
    let shown = String::from_utf8(secrets.mask(STANDARD.encode(token).as_bytes())).unwrap();
    assert!(shown.contains("**REDACTED**"), "{shown}");
    let signature = STANDARD.encode("c2lnbmF0dXJlLW9mLXRoZS10b2tlbg");
    assert!(!shown.contains(&signature[4..20]), "{shown}");
}

#[test]
fn plain_values_are_masked_and_short_ones_are_not() {
    assert_eq!(whole(&["hunter22", "abc", "true"], b"pw=hunter22 abc true\n"), b"pw=**REDACTED** abc true\n");
    assert_eq!(whole(&["abcd", "cdef"], b"xabcdefx abcdabcd"), b"x**REDACTED**x **REDACTED****REDACTED**");
}

#[test]
fn every_line_of_a_value_is_masked_alone() {
    assert_eq!(whole(&["first line\n  second line\n"], b"a second line b"), b"a **REDACTED** b");
}

#[test]
fn encoded_forms_are_masked() {
    let masked = |text: &str| {
        let out = String::from_utf8(whole(&["s3cr3t/v@l ue'x"], text.as_bytes())).unwrap();
        assert!(out.contains("**REDACTED**"), "{text} gave {out}");
        out
    };
    masked("7333637233742f76406c20756527 78".replace(' ', "").as_str());
    masked("s3cr3t%2Fv%40l%20ue%27x");
    masked("s3cr3t%2fv%40l+ue%27x");
    masked("s3cr3t/v@l ue&#39;x");
    masked("s3cr3t\\/v@l ue'x");
    masked("'s3cr3t/v@l ue'\\''x'");
    use base64::{Engine, engine::general_purpose::STANDARD};
    for prefix in ["", "u", "us", "user:"] {
        let once = STANDARD.encode(format!("{prefix}s3cr3t/v@l ue'x"));
        masked(&once);
        masked(&STANDARD.encode(&once));
    }
}

#[test]
fn colours_and_wraps_inside_a_value_do_not_split_it() {
    assert_eq!(whole(&["topsecret"], b"a top\x1b[1;31msecret b"), b"a **REDACTED** b");
    assert_eq!(whole(&["topsecret"], b"a top\xe2\x80\x8bsec\rret b"), b"a **REDACTED** b");
    let line = format!("{}tops\necret tail", "x".repeat(72));
    assert_eq!(
        whole(&["topsecret"], line.as_bytes()),
        format!("{}**REDACTED** tail", "x".repeat(72)).as_bytes()
    );
    assert_eq!(whole(&["topsecret"], b"tops\necret"), b"tops\necret");
}

#[test]
fn an_invisible_byte_after_the_first_of_a_value_hides_nothing() {
    for invisible in ["\r", "\0", "\x1b[1m", "\u{200b}", "\u{feff}"] {
        let text = format!("so s{invisible}ecret too");
        assert_eq!(whole(&["secret"], text.as_bytes()), b"so **REDACTED** too", "{invisible:?}");
    }
}

#[test]
fn only_a_possible_beginning_is_held() {
    let mut masker = Masker::new(&["topsecret"]);
    let mut out = Vec::new();
    masker.push(b"progress 10% ", &mut out);
    assert_eq!(masker.held(), 0);
    masker.push(b"tops", &mut out);
    assert_eq!((masker.held(), out.as_slice()), (4, &b"progress 10% "[..]));
    masker.push(b"\n", &mut out);
    assert_eq!(masker.held(), 0);
    assert_eq!(out, b"progress 10% tops\n");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_split_gives_the_same_result(
        values in prop::collection::vec("[ab]{4,7}", 1..4),
        text in prop::collection::vec(prop::sample::select(vec![b'a', b'b', b'a', b'b', b'\n', 0x1b, b'[', b'm', b'\r', 0xe2, 0x80, 0x8b, 0xef, 0xbb, 0xbf]), 0..160),
        cuts in prop::collection::vec(0usize..9, 0..60),
    ) {
        let at_once = pieces(&values, &text, &[]);
        prop_assert_eq!(&pieces(&values, &text, &cuts), &at_once);
        let single: Vec<usize> = vec![1; text.len()];
        prop_assert_eq!(&pieces(&values, &text, &single), &at_once);
    }

    #[test]
    fn every_form_is_hidden_however_it_is_cut(
        value in "[a-zé'\"&<\\\\ /+]{12,20}",
        around in prop::sample::select(vec!["", " ", "::", "xyz"]),
        cuts in prop::collection::vec(0usize..9, 0..30),
    ) {
        use base64::{Engine, engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD}};
        let forms = [
            value.clone(),
            value.bytes().map(|byte| format!("{byte:02x}")).collect(),
            value.bytes().map(|byte| format!("{byte:02X}")).collect(),
            STANDARD.encode(&value),
            URL_SAFE_NO_PAD.encode(&value),
            STANDARD.encode(STANDARD.encode(&value)),
            serde_json::to_string(&value).unwrap(),
            value.escape_default().to_string(),
            value.escape_debug().to_string(),
            value.replace('\'', r"'\''"),
        ];
        let values = [value];
        for form in forms {
            let text = format!("{around}{form}{around}\n");
            let at_once = pieces(&values, text.as_bytes(), &[]);
            prop_assert_eq!(&pieces(&values, text.as_bytes(), &cuts), &at_once);
            let shown = String::from_utf8_lossy(&at_once);
            // The characters at the ends may belong to what is around.
            let middle: String = form.chars().skip(4).take(form.chars().count() - 8).collect();
            prop_assert!(!shown.contains(&middle), "{} stays in {}", form, shown);
        }
    }

    #[test]
    fn it_equals_a_plain_search_and_nothing_survives(
        values in prop::collection::vec("[ab]{4,7}", 1..4),
        text in "[abx ]{0,120}",
    ) {
        let out = pieces(&values, text.as_bytes(), &[]);
        for part in String::from_utf8(out.clone()).unwrap().split("**REDACTED**") {
            for value in &values {
                prop_assert!(!part.contains(value.as_str()));
            }
        }
        // All occurrences, overlapping ones merged.
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for value in &values {
            for at in 0..text.len() {
                if text[at..].starts_with(value.as_str()) {
                    spans.push((at, at + value.len()));
                }
            }
        }
        spans.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (start, end) in spans {
            match merged.last_mut() {
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        let mut expected = Vec::new();
        let mut at = 0;
        for (start, end) in merged {
            expected.extend_from_slice(&text.as_bytes()[at..start]);
            expected.extend_from_slice(REPLACEMENT);
            at = end;
        }
        expected.extend_from_slice(&text.as_bytes()[at..]);
        prop_assert_eq!(out, expected);
    }
}
