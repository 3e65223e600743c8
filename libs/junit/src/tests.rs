use super::*;

fn one(xml: &str) -> Case {
    let cases = parse(xml.as_bytes(), 100).unwrap();
    assert_eq!(cases.len(), 1, "{cases:?}");
    cases.into_iter().next().unwrap()
}

#[test]
fn reports_of_many_runners_are_read() {
    // pytest, with its own form of times of day.
    let pytest = r#"<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" errors="0" failures="1" tests="3"
      timestamp="2026-11-21T10:00:00.123456+00:00" hostname="h"><properties><property name="a" value="b"/></properties>
      <testcase classname="tests.test_a" name="test_ok[x &lt; y]" time="0.5" />
      <testcase classname="tests.test_a" name="test_bad" time="1,234.5"><failure message="assert 1 == 2">def test():
&gt;   assert 1 == 2</failure><system-out><![CDATA[printed <b>]]></system-out></testcase>
      <testcase classname="tests.test_a" name="test_skip"><skipped message="no"/></testcase>
      <system-out>of the suite</system-out></testsuite></testsuites>"#;
    let cases = parse(pytest.as_bytes(), 100).unwrap();
    assert_eq!(
        cases.iter().map(|c| c.result).collect::<Vec<_>>(),
        [Outcome::Success, Outcome::Failure, Outcome::Skipped]
    );
    assert_eq!((cases[0].name.as_str(), cases[0].run_time), ("test_ok[x < y]", 0.5));
    assert_eq!(cases[1].run_time, 1234.5);
    assert_eq!(cases[1].message, "assert 1 == 2\ndef test():\n>   assert 1 == 2\nprinted <b>");
    assert_eq!((cases[2].message.as_str(), cases[2].run_time), ("no", 0.0));

    // A bare suite with a file; nested suites hand theirs down, and a test's own is better.
    let nested = r#"<testsuite file="./spec/outer.rb"><testsuite name="inner"><testcase name="a" file="./own.rb"/></testsuite>
      <testsuite filepath="inner.rb"><testcase name="b" time="-1"/></testsuite><testcase name="c" time="NaN"/></testsuite>"#;
    let files: Vec<_> =
        parse(nested.as_bytes(), 100).unwrap().into_iter().map(|c| (c.file, c.run_time)).collect();
    assert_eq!(files, [("own.rb".into(), 0.0), ("inner.rb".into(), 0.0), ("spec/outer.rb".into(), 0.0)]);

    // Control characters, an error after a failure, and a test that says nothing.
    let odd = one(
        r#"<testsuite><testcase name="x&#27;y"><failure>one&#x1;</failure><error>two</error></testcase></testsuite>"#,
    );
    assert_eq!((odd.name.as_str(), odd.result), ("x\u{1b}y", Outcome::Failure));
    assert_eq!(odd.message, "one\u{1}two");
    assert_eq!(parse(b"<testsuites/>", 100).unwrap(), []);
}

#[test]
fn other_files_are_named_for_what_they_are() {
    assert_eq!(parse(b"<coverage/>", 1).unwrap_err().to_string(), "invalid top level element: coverage");
    assert!(matches!(parse(b"<testsuite><testcase>", 1), Err(Error::Malformed { .. })));
    assert!(matches!(parse(b"", 1), Err(Error::Malformed { .. })));
    assert!(matches!(parse(b"{\"json\": 1}", 1), Err(Error::Malformed { .. })));
    assert!(matches!(parse(b"<testsuite></other>", 1), Err(Error::Malformed { .. })));
}

#[test]
fn what_could_grow_is_limited() {
    let bomb = r#"<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><testsuite><testcase name="&c;"/></testsuite>"#;
    assert_eq!(parse(bomb.as_bytes(), 1), Err(Error::Refused("a DTD is not allowed".into())));
    let entity = "<testsuite><testcase><failure>&c;</failure></testcase></testsuite>";
    assert!(matches!(parse(entity.as_bytes(), 1), Err(Error::Refused(_))));
    let depth = |n: usize| format!("<testsuite>{}{}</testsuite>", "<a>".repeat(n - 1), "</a>".repeat(n - 1));
    assert!(parse(depth(64).as_bytes(), 1).is_ok());
    assert!(matches!(parse(depth(65).as_bytes(), 1), Err(Error::Refused(_))));
    let many = |n: usize| format!("<testsuite>{}</testsuite>", "<testcase/>".repeat(n));
    assert_eq!(parse(many(3).as_bytes(), 3).unwrap().len(), 3);
    assert!(matches!(parse(many(4).as_bytes(), 3), Err(Error::Refused(_))));
    let named = |n: usize| format!("<testsuite><testcase name=\"{}\"/></testsuite>", "x".repeat(n));
    assert_eq!(one(&named(64 << 10)).name.len(), 64 << 10);
    assert!(matches!(parse(named((64 << 10) + 1).as_bytes(), 1), Err(Error::Refused(_))));
    let told = one(&format!(
        "<testsuite><testcase><failure>{}</failure></testcase></testsuite>",
        "ü".repeat(600 << 10)
    ));
    assert!(told.message.ends_with(CUT) && told.message.len() <= MAX_TEXT + CUT.len());
}
