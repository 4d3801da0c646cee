//! What the control side of every store must do, as tests that any store can be put through.

use std::collections::BTreeSet;

use dprof_common::settings::{Scope, Values};

use super::{AGENT_LIFE_S, AgentState, Author, Change, Control, Document, HostMinute, change, head};
use crate::conformance::EPOCH_NS;

fn author(name: &str) -> Author {
    Author { name: name.to_owned(), comment: format!("by {name}"), at_unix_ms: EPOCH_NS / 1_000_000 }
}

fn document(scope: &Scope, version: u64, body: &str) -> Document {
    let Author { name, comment, at_unix_ms } = author("ann");
    Document { scope: scope.clone(), version, body: body.to_owned(), author: name, comment, at_unix_ms }
}

/// Versions follow each other, in each scope apart, and stay as they were written.
pub async fn check_versions(control: &dyn Control) {
    let scopes =
        [Scope::Cluster, Scope::Service("cart: \"two\"".to_owned()), Scope::Host("web-1".to_owned())];
    assert_eq!(control.scopes().await.expect("asks"), []);
    assert_eq!(control.heads(&scopes).await.expect("asks"), []);
    assert_eq!(head(control, &scopes[0]).await.expect("asks").version, 0);
    for scope in &scopes {
        for version in 1..=3 {
            let next = document(scope, version, &format!("{{\"a\": \"{version}\"}}"));
            assert!(control.append(&next).await.expect("writes"), "{scope} {version}");
            for taken in [version, version + 2, 0] {
                let other = document(scope, taken, "{}");
                assert!(!control.append(&other).await.expect("asks"), "{scope} {taken} after {version}");
            }
        }
    }
    assert_eq!(control.scopes().await.expect("asks"), scopes);
    let heads = control.heads(&[scopes[2].clone(), Scope::Host("web-2".to_owned())]).await.expect("asks");
    assert_eq!(heads, [document(&scopes[2], 3, "{\"a\": \"3\"}")]);
    let history = control.history(&scopes[1], 2).await.expect("asks");
    assert_eq!(history.iter().map(|document| document.version).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(
        control.version(&scopes[0], 1).await.expect("asks"),
        Some(document(&scopes[0], 1, "{\"a\": \"1\"}"))
    );
    assert_eq!(control.version(&scopes[0], 4).await.expect("asks"), None);
}

/// One of many writers: sets a key of its own.
pub async fn write_one(control: &dyn Control, name: &str) {
    let by = author(name);
    let written = change(control, &Scope::Cluster, &by, |head| {
        let mut values = head.values()?;
        values.insert(name.to_owned(), "1".to_owned());
        Ok(values)
    });
    match written.await.expect("is written") {
        Change::Written(document) => assert_eq!(document.author, name),
        Change::Already(document) => panic!("{name} was there before it was written: {document:?}"),
    }
}

/// After [`write_one`] by each of `names`, at once: nobody's key is lost, and every version adds one to the last.
pub async fn check_written_by(control: &dyn Control, names: &BTreeSet<String>) {
    let history = control.history(&Scope::Cluster, usize::MAX).await.expect("asks");
    let versions: Vec<u64> = history.iter().rev().map(|document| document.version).collect();
    assert_eq!(versions, (1..=names.len() as u64).collect::<Vec<_>>());
    let mut expected = Values::new();
    for document in history.iter().rev() {
        expected.insert(document.author.clone(), "1".to_owned());
        assert_eq!(document.values().as_ref(), Ok(&expected), "version {}", document.version);
    }
    assert_eq!(expected.keys().cloned().collect::<BTreeSet<_>>(), *names);
}

/// An agent's row is its last one; old ones are forgotten.
pub async fn check_agents(control: &dyn Control) {
    let agent = |host: &str, run: u32, seen_s: u64| AgentState {
        host: host.to_owned(),
        run_id: format!("{run:032x}"),
        started_unix_ns: EPOCH_NS + u64::from(run),
        seen_unix_ns: EPOCH_NS + seen_s * 1_000_000_000,
        lost: [("ring_full".to_owned(), seen_s)].into(),
        ..AgentState::default()
    };
    assert_eq!(control.agents(EPOCH_NS).await.expect("asks"), []);
    for row in [agent("b", 1, 1), agent("a", 2, 1), agent("b", 1, 9), agent("b", 3, 5)] {
        control.report(&row).await.expect("writes");
    }
    let now_ns = EPOCH_NS + 10_000_000_000;
    assert_eq!(
        control.agents(now_ns).await.expect("asks"),
        [agent("a", 2, 1), agent("b", 3, 5), agent("b", 1, 9)]
    );
    let later_ns = EPOCH_NS + (AGENT_LIFE_S + 6) * 1_000_000_000;
    assert_eq!(control.agents(later_ns).await.expect("asks"), [agent("b", 1, 9)]);
}

/// Minutes of a host are found by time, each once, over the edges of days.
pub async fn check_host_minutes(control: &dyn Control) {
    // The first minutes of a day, and the last of the one before.
    let day_s = EPOCH_NS / 1_000_000_000 / 86_400 * 86_400;
    let minute = |host: &str, minute_unix_s: u64, cpu_share: f64| HostMinute {
        host: host.to_owned(),
        minute_unix_s,
        cpu_share,
        ..HostMinute::default()
    };
    assert_eq!(control.host_minutes("a", 0, u64::MAX / 2).await.expect("asks"), []);
    for row in [
        minute("a", day_s - 60, 0.25),
        minute("a", day_s, 0.5),
        minute("a", day_s, 0.75),
        minute("b", day_s, 1.0),
        minute("a", day_s + 60, 0.0),
    ] {
        control.report_host(&row).await.expect("writes");
    }
    let found = control.host_minutes("a", day_s - 60, day_s + 60).await.expect("asks");
    assert_eq!(found, [minute("a", day_s - 60, 0.25), minute("a", day_s, 0.75)]);
    assert_eq!(control.host_minutes("b", day_s, day_s + 1).await.expect("asks"), [minute("b", day_s, 1.0)]);
    assert_eq!(control.host_minutes("c", 0, u64::MAX / 2).await.expect("asks"), []);
}
