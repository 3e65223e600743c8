//! Orbs from outside of the file: how often they are asked for, what they resolve to, how far they may go.

use gantry_compiler::{
    Compiled, Diagnostic, Input, OrbError, OrbRef, OrbSource, OrbText, PipelineValues, compile,
};
use model::plan::{JobKind, Step};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Orbs by their references, and the references that were asked for.
#[derive(Default)]
struct Shelf {
    orbs: BTreeMap<String, OrbText>,
    asked: RefCell<Vec<String>>,
}

impl Shelf {
    fn with(mut self, reference: &str, text: &str) -> Self {
        self.orbs.insert(reference.into(), OrbText::new(reference, text, text));
        self
    }
}

impl OrbSource for Shelf {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        self.asked.borrow_mut().push(reference.to_string());
        self.orbs.get(&reference.to_string()).cloned().ok_or(OrbError::NotFound(None))
    }
}

fn run(shelf: &dyn OrbSource, source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
    compile(&Input { values, orbs: shelf, ..Input::new("config.yml", source) })
}

fn commands(compiled: &Compiled) -> Vec<String> {
    let jobs = compiled.plan.workflows.iter().flat_map(|workflow| &workflow.jobs);
    let steps = jobs.flat_map(|job| match &job.kind {
        JobKind::Build { definition } => definition.steps.clone(),
        _ => Vec::new(),
    });
    steps.filter_map(|step| if let Step::Run(run) = step { Some(run.command) } else { None }).collect()
}

const HELLO: &str = "version: 2.1\ncommands: {hello: {steps: [{run: hello}]}}\n";

#[test]
fn each_reference_is_asked_for_once_and_each_text_read_once() {
    let outer = "version: 2.1\norbs: {inner: a/inner@1}\ncommands: {go: {steps: [inner/hello]}}\n";
    let shelf =
        Shelf::default().with("a/outer@1", outer).with("a/inner@1", HELLO).with("a/inner@1.0.0", HELLO);
    let source = "version: 2.1\norbs: {x: a/outer@1, y: a/inner@1, z: a/inner@1.0.0, again: a/inner@1}\njobs: {build: {machine: true, steps: [x/go, y/hello, z/hello, again/hello]}}\n";
    let compiled = run(&shelf, source).expect("good");
    assert_eq!(commands(&compiled), ["hello"; 4]);
    assert_eq!(*shelf.asked.borrow(), ["a/outer@1", "a/inner@1", "a/inner@1.0.0"]);
    let used: Vec<(&str, bool)> = compiled.orbs.iter().map(|o| (o.reference.as_str(), o.direct)).collect();
    assert_eq!(used, [("a/outer@1", true), ("a/inner@1", true), ("a/inner@1.0.0", true)]);
    assert!(compiled.processed.starts_with("# Orb 'a/outer@1' resolved to 'a/outer@1'\n"));
}

#[test]
fn references_of_a_published_orb_are_frozen() {
    let outer = "version: 2.1\norbs: {inner: a/inner@1}\ncommands: {go: {steps: [inner/hello]}}\n";
    let old = HELLO.replace("run: hello", "run: the old one");
    let mut shelf =
        Shelf::default().with("a/outer@1.0.0", outer).with("a/inner@1", HELLO).with("a/inner@1.0.3", &old);
    let pins = BTreeMap::from([("a/inner@1".to_owned(), "a/inner@1.0.3".to_owned())]);
    shelf.orbs.get_mut("a/outer@1.0.0").expect("there").pins = pins;
    let source = "version: 2.1\norbs: {x: a/outer@1.0.0}\njobs: {build: {machine: true, steps: [x/go]}}\n";
    assert_eq!(commands(&run(&shelf, source).expect("good")), ["the old one"]);
}

#[test]
fn a_finding_in_an_orb_shows_its_lines_and_the_way_there() {
    let orb = "version: 2.1\ncommands:\n  install:\n    steps:\n      - instal_it\n  install_it: {steps: [checkout]}\n";
    let shelf = Shelf::default().with("a/kit@1.2.3", orb);
    let source = "version: 2.1\norbs:\n  kit: a/kit@1.2.3\njobs:\n  build:\n    machine: true\n    steps:\n      - kit/install\n";
    let errors = run(&shelf, source).expect_err("bad");
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((error.file.as_str(), error.line, error.column), ("a/kit@1.2.3", 5, 9));
    assert_eq!(error.hint.as_deref(), Some("did you mean `install_it`?"));
    let way: Vec<(&str, &str, usize)> =
        error.related.iter().map(|r| (r.message.as_str(), r.file.as_str(), r.line)).collect();
    assert_eq!(way[0], ("Error calling command: 'kit/install' in the orb `a/kit@1.2.3`", "config.yml", 8));
    assert!(error.render(source, false).contains("5 |       - instal_it"), "{}", error.render(source, false));
}

#[test]
fn orbs_go_only_so_far() {
    let chain = |length: usize| {
        let mut shelf = Shelf::default().with(&format!("a/o{length}@1"), HELLO);
        for n in 0..length {
            let next = format!("version: 2.1\norbs: {{n: a/o{}@1}}\ncommands: {{hello: n/hello}}\n", n + 1);
            shelf = shelf.with(&format!("a/o{n}@1"), &next);
        }
        run(&shelf, "version: 2.1\norbs: {o: a/o0@1}\njobs: {build: {machine: true, steps: [o/hello]}}\n")
    };
    assert!(chain(5).is_ok());
    assert_eq!(chain(6).expect_err("deep")[0].code, "orb-limit");

    let itself = "version: 2.1\norbs: {me: a/me@1}\n";
    let two = "version: 2.1\norbs: {me: a/me@2}\n";
    let shelf = Shelf::default().with("a/me@1", two).with("a/me@2", itself);
    let source = "version: 2.1\norbs: {o: a/me@1}\njobs: {build: {machine: true, steps: [checkout]}}\n";
    assert_eq!(run(&shelf, source).expect_err("circle")[0].code, "orb-limit");

    let many = |count: usize| {
        let shelf = (0..count).fold(Shelf::default(), |shelf, n| shelf.with(&format!("a/o{n}@1"), HELLO));
        let orbs: String = (0..count).map(|n| format!("  o{n}: a/o{n}@1\n")).collect();
        run(
            &shelf,
            &format!("version: 2.1\norbs:\n{orbs}jobs: {{build: {{machine: true, steps: [checkout]}}}}\n"),
        )
    };
    assert!(many(50).is_ok());
    assert!(many(51).expect_err("many")[0].message.contains("at most 50 orbs"));

    let large = format!("version: 2.1\ndescription: >-\n  {}\n", "word ".repeat(250_000));
    let shelf = Shelf::default().with("a/large@1", &large);
    let source = "version: 2.1\norbs: {o: a/large@1}\njobs: {build: {machine: true, steps: [checkout]}}\n";
    assert_eq!(run(&shelf, source).expect_err("large")[0].code, "orb-limit");
}

/// A source that refuses everything.
struct Shut(OrbError);

impl OrbSource for Shut {
    fn fetch(&self, _: &OrbRef) -> Result<OrbText, OrbError> {
        Err(self.0.clone())
    }
}

#[test]
fn an_orb_that_cannot_be_had_is_the_only_error() {
    let source = "version: 2.1\norbs: {o: a/o@1, u: 'https://orbs.invalid/o.yml'}\njobs: {build: {executor: o/e, steps: [o/c: {x: 1}]}}\nworkflows: {w: {jobs: [build, o/job: {requires: [build]}, u/job: {matrix: {parameters: {p: [1]}}}]}}\n";
    let cases = [
        (OrbError::NotFound(Some("there is 2.0.0".into())), "orb-not-found"),
        (OrbError::Forbidden("it is private".into()), "orb-unavailable"),
        (OrbError::Unavailable("no answer within 5 s".into()), "orb-unavailable"),
    ];
    for (error, code) in cases {
        let found = run(&Shut(error), source).expect_err("refused");
        let codes: Vec<&str> = found.iter().map(|e| e.code).collect();
        assert_eq!(codes, [code; 2], "{found:?}");
    }
}

#[test]
fn a_job_of_an_orb_takes_the_place_of_a_local_one() {
    let orb = "version: 2.1\njobs: {better: {machine: true, steps: [{run: theirs}]}}\n";
    let shelf = Shelf::default().with("a/o@1", orb);
    let with = |name: &str| {
        let source = format!(
            "version: 2.1\norbs: {{o: a/o@1}}\njobs: {{test: {{machine: true, steps: [{{run: ours}}]}}}}\nworkflows: {{w: {{jobs: [test: {{override-with: {name}}}]}}}}\n"
        );
        let compiled = run(&shelf, &source).expect("good");
        assert_eq!(compiled.plan.workflows[0].jobs[0].name, "test");
        commands(&compiled)
    };
    assert_eq!(with("o/better"), ["theirs"]);
    assert_eq!(with("o/worse"), ["ours"]);
}
