//! Orbs: published once, frozen, and used by pipelines.

use crate::*;
use contracts::{orbs::*, pipelines::CompileConfig};

const GREET: &str = "
version: 2.1
description: Says hello
commands:
  hello:
    parameters: {whom: {type: string, default: world}}
    steps:
      - run: echo hello << parameters.whom >>
jobs:
  greet:
    machine: true
    steps: [hello]
";

const USES: &str = "
version: 2.1
orbs: {say: acme/greet@1}
workflows:
  main:
    jobs: [say/greet]
";

impl Suite {
    async fn registry(&self) -> Orb {
        let namespace = CreateOrbNamespace { org_id: self.project.org_id, name: "acme".into() };
        self.bus.ask(&user(), &namespace).await.unwrap();
        self.orb("greet", false).await
    }

    async fn orb(&self, name: &str, is_private: bool) -> Orb {
        let namespace = NamespaceKey::Name("acme".into());
        self.bus.ask(&user(), &CreateOrb { namespace, name: name.into(), is_private }).await.unwrap()
    }

    async fn publish(&self, orb: &Orb, version: &str, source: &str) -> Result<OrbVersion, RequestError> {
        let ask = PublishOrb { orb: OrbKey::Id(orb.id), version: version.into(), source: source.into() };
        self.bus.ask(&user(), &ask).await
    }

    async fn version(&self, reference: &str, orgs: Vec<OrgId>) -> Result<OrbSourceView, RequestError> {
        self.bus.ask(&user(), &GetOrbVersion { reference: reference.into(), orgs }).await
    }

    async fn compiled(&self, source: &str, orgs: Vec<OrgId>) -> (String, Vec<String>) {
        let ask = CompileConfig { source: source.into(), parameters: Map::new(), values: Map::new(), orgs };
        let reply = self.bus.ask(&user(), &ask).await.unwrap();
        (inline(reply.output), reply.errors)
    }
}

#[tokio::test]
async fn a_published_orb_is_used_and_never_changes() {
    let suite = suite().await;
    let orb = suite.registry().await;
    assert_eq!((orb.name.as_str(), orb.versions.len()), ("acme/greet", 0));
    suite.publish(&orb, "1.0.0", GREET).await.unwrap();
    let newer = GREET.replace("echo hello", "echo hello again");
    let second = suite.publish(&orb, "1.2.0", &newer).await.unwrap();

    let (code, message) = refused(suite.publish(&orb, "1.2.0", GREET).await.unwrap_err());
    assert_eq!(code, "exists", "{message}");
    assert_eq!(suite.publish(&orb, "1.2.0", &newer).await.unwrap(), second, "the same again is no change");
    for (reference, version) in
        [("acme/greet@1", "1.2.0"), ("acme/greet@1.0", "1.0.0"), ("acme/greet", "1.2.0")]
    {
        assert_eq!(suite.version(reference, vec![]).await.unwrap().version.version, version, "{reference}");
    }

    let view = suite.pipeline(suite.deliver(&suite.push(Some(USES)), false).await).await;
    assert_eq!((&*view.state, &view.errors), ("created", &vec![]));
    let config = suite.bus.ask(&user(), &GetPipelineConfig { id: view.id }).await.unwrap();
    assert!(inline(config.compiled).contains("echo hello again world"));

    let unknown = USES.replace("greet@1", "greet@7");
    let view = suite.pipeline(suite.deliver(&suite.push(Some(&unknown)), false).await).await;
    let message = &view.errors[0].message;
    assert!(message.contains("Cannot find acme/greet@7 in the orb registry"), "{message}");
}

#[tokio::test]
async fn imports_of_an_orb_are_frozen_when_it_is_published() {
    let suite = suite().await;
    let greet = suite.registry().await;
    suite.publish(&greet, "1.0.0", GREET).await.unwrap();
    let outer = suite.orb("outer", false).await;
    let source = "
version: 2.1
orbs: {inner: acme/greet@1}
jobs:
  twice:
    machine: true
    steps: [inner/hello]
";
    suite.publish(&outer, "1.0.0", source).await.unwrap();
    suite.publish(&greet, "1.1.0", &GREET.replace("echo hello", "echo changed")).await.unwrap();
    let uses = "version: 2.1\norbs: {o: acme/outer@1}\nworkflows: {main: {jobs: [o/twice]}}\n";
    let (output, errors) = suite.compiled(uses, vec![]).await;
    assert_eq!(errors, Vec::<String>::new());
    assert!(output.contains("echo hello world"), "{output}");

    let missing = source.replace("acme/greet@1", "acme/nothing@1");
    let (code, message) = refused(suite.publish(&outer, "1.1.0", &missing).await.unwrap_err());
    assert!(code == "invalid" && message.contains("acme/nothing@1"), "{code}: {message}");
}

#[tokio::test]
async fn dev_versions_change_and_are_promoted() {
    let suite = suite().await;
    let orb = suite.registry().await;
    suite.publish(&orb, "dev:first", GREET).await.unwrap();
    let changed = GREET.replace("echo hello", "echo changed");
    suite.publish(&orb, "dev:first", &changed).await.unwrap();
    let held = suite.version("acme/greet@dev:first", vec![]).await.unwrap();
    assert_eq!(inline(held.source), changed);
    let promote = PromoteOrb { orb: OrbKey::Id(orb.id), from: "dev:first".into(), to: "2.0.0".into() };
    assert_eq!(suite.bus.ask(&user(), &promote).await.unwrap().version, "2.0.0");
    assert_eq!(inline(suite.version("acme/greet@2.0.0", vec![]).await.unwrap().source), changed);
    for (version, part) in [("1.2", "`1.2.3` or `dev:name`"), ("latest", "`1.2.3` or `dev:name`")] {
        let (code, message) = refused(suite.publish(&orb, version, GREET).await.unwrap_err());
        assert!(code == "invalid" && message.contains(part), "{version}: {message}");
    }
    for (source, part) in [
        ("version: 2.1\nworkflows: {}\n", "no `workflows`"),
        ("version: 2.1\ncommands: {x: {stpes: []}}\n", "stpes"),
        ("a: [", "orb.yml"),
    ] {
        let (_, message) = refused(suite.publish(&orb, "3.0.0", source).await.unwrap_err());
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[tokio::test]
async fn private_orbs_are_their_organisations_alone() {
    let suite = suite().await;
    suite.registry().await;
    let secret = suite.orb("secret", true).await;
    suite.publish(&secret, "1.0.0", GREET).await.unwrap();
    let own = vec![suite.project.org_id];
    let uses = USES.replace("acme/greet", "acme/secret");
    assert!(suite.version("acme/secret@1", own.clone()).await.is_ok());
    assert_eq!(suite.compiled(&uses, own.clone()).await.1, Vec::<String>::new());
    assert_eq!(refused(suite.version("acme/secret@1", vec![OrgId::new()]).await.unwrap_err()).0, "not_found");
    assert!(suite.compiled(&uses, vec![]).await.1[0].contains("Cannot find acme/secret@1"));

    let list = |orgs, private| ListOrbs { namespace: None, private, orgs, after: None, first: 1 };
    let page = suite.bus.ask(&user(), &list(own.clone(), None)).await.unwrap();
    assert_eq!((page.total, page.more, &*page.orbs[0].name), (2, true, "acme/greet"));
    let page = suite.bus.ask(&user(), &list(own, Some(true))).await.unwrap();
    assert_eq!((page.total, page.more, &*page.orbs[0].name), (1, false, "acme/secret"));
    assert_eq!(suite.bus.ask(&user(), &list(vec![], None)).await.unwrap().total, 1);

    let taken = CreateOrbNamespace { org_id: OrgId::new(), name: "acme".into() };
    assert_eq!(refused(suite.bus.ask(&user(), &taken).await.unwrap_err()).0, "exists");
}

#[tokio::test]
async fn a_large_configuration_is_compiled_through_the_blob_store() {
    let suite = suite().await;
    let large = GOOD.replace("echo pipeline", &format!("echo {}", "x".repeat(100_000)));
    let source = blobs::text::send(suite.blobs.as_ref(), large).await.unwrap();
    assert!(matches!(source, Text::Blob { .. }));
    let values = serde_json::from_value(json!({"number": 42, "pipeline.id": "abc"})).unwrap();
    let ask = CompileConfig { source, parameters: Map::new(), values, orgs: vec![] };
    let reply = suite.bus.ask(&user(), &ask).await.unwrap();
    let Text::Blob { blob } = reply.output.clone() else { panic!("the answer is small") };
    let output = blobs::text::receive(suite.blobs.as_ref(), reply.output).await.unwrap();
    assert!(output.contains(" 42 of "), "values come with and without `pipeline.`");
    assert!(suite.blobs.head(&Key::new(blob).unwrap()).await.unwrap().is_none(), "read once");
}
