//! What the store says against what the agent can do: taken as a whole, or refused as a whole. Pure.
//!
//! What a reader would get wrong: the command line checked the values already, but whoever writes past it did not. A
//! refusal changes nothing: what was in force stays, in every part.

use std::collections::BTreeMap;

use dprof_common::settings::{Scope, Scoped, Values, check_all};
use dprof_store::control::{ConfigState, ConfigStatus, Document};

use crate::settings::{Settings, at_restart};
use crate::source::window;

/// How the agent stands with what it is told.
#[derive(Clone, Debug)]
pub struct Obedience {
    host: String,
    /// In force where nothing is configured.
    base: Settings,
    /// Every key as this run was started with, the configuration of that time included.
    started_with: Values,
    in_force: Vec<Document>,
    state: ConfigState,
}

/// What the newest documents come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What the stages are to obey.
    pub settings: Settings,
    /// By scope, for keys that take effect at a start.
    pub scoped: Scoped,
    documents: Vec<Document>,
    unknown: Vec<String>,
}

fn versions(documents: &[Document]) -> BTreeMap<String, u64> {
    documents.iter().map(|document| (document.scope.to_string(), document.version)).collect()
}

impl Obedience {
    /// Nothing is configured yet. `started_with`: what file and options say of every key.
    pub fn new(host: &str, base: Settings, started_with: Values) -> Self {
        let state = ConfigState { started_with: started_with.clone(), ..ConfigState::default() };
        Self { host: host.to_owned(), base, started_with, in_force: Vec::new(), state }
    }

    /// How it stands.
    pub const fn state(&self) -> &ConfigState {
        &self.state
    }

    /// The documents in force.
    pub fn in_force(&self) -> &[Document] {
        &self.in_force
    }

    /// Whether a scope's values can concern this host.
    pub fn concerns(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Cluster | Scope::Service(_) => true,
            Scope::Host(host) => *host == self.host,
        }
    }

    /// Looks at the newest documents. `None`: there is nothing to do, since they are in force already, or refused.
    pub fn judge(&mut self, heads: &[Document], is_synchronised: bool) -> Option<Wanted> {
        let heads: Vec<Document> =
            heads.iter().filter(|document| self.concerns(&document.scope)).cloned().collect();
        self.state.versions = versions(&heads);
        if heads == self.in_force && self.state.status != ConfigStatus::Starting {
            self.settle(ConfigStatus::InForce, String::new());
            return None;
        }
        match self.want(heads, is_synchronised) {
            Ok(wanted) => Some(wanted),
            Err(reason) => {
                self.refuse(reason);
                None
            }
        }
    }

    fn want(&self, documents: Vec<Document>, is_synchronised: bool) -> Result<Wanted, String> {
        let (mut scoped, mut unknown) = (Scoped::new(), Vec::new());
        for document in &documents {
            let values = document.values()?;
            let named = check_all(&document.scope, &values)
                .map_err(|reason| format!("{} {}: {reason}", document.scope, document.version))?;
            unknown.extend(named.into_iter().map(|key| format!("{key} ({})", document.scope)));
            scoped.insert(document.scope.clone(), values);
        }
        let settings = self.base.configured(&scoped, &self.host);
        if let Some(reason) = window::refusal(&settings.duty_cycle, is_synchronised) {
            return Err(format!("capture.duty_cycle: {reason}"));
        }
        Ok(Wanted { settings, scoped, documents, unknown })
    }

    /// Every stage obeys.
    pub fn obeyed(&mut self, wanted: Wanted) {
        let Wanted { settings: _, scoped, documents, unknown } = wanted;
        for key in unknown.iter().filter(|key| !self.state.unknown.contains(key)) {
            log::warn!("configuration: nobody knows the key {key}; it is left alone");
        }
        self.state.unknown = unknown;
        self.state.at_restart = at_restart(&self.started_with, &scoped, &self.host);
        for key in &self.state.at_restart {
            log::warn!("configuration: {key} takes effect when this agent is started again");
        }
        self.state.versions = versions(&documents);
        self.state.in_force = self.state.versions.clone();
        self.in_force = documents;
        self.settle(ConfigStatus::InForce, String::new());
        log::info!("configuration in force: {}", self.described());
    }

    /// The same at a start: the options have been changed by what is configured, and are now `started_with`.
    pub fn started(&mut self, wanted: Wanted, started_with: Values) {
        self.started_with = started_with;
        self.obeyed(wanted);
    }

    /// The newest documents are not obeyed.
    pub fn refuse(&mut self, reason: String) {
        self.settle(ConfigStatus::Refused, reason);
    }

    /// The store cannot be asked.
    pub fn store_is_away(&mut self, reason: String) {
        let status = if self.in_force.is_empty() { ConfigStatus::Starting } else { ConfigStatus::LastGood };
        self.settle(status, reason);
    }

    /// Scopes and versions in force, for people.
    fn described(&self) -> String {
        let scopes: Vec<String> =
            self.state.in_force.iter().map(|(scope, version)| format!("{scope} {version}")).collect();
        if scopes.is_empty() { "nothing".to_owned() } else { scopes.join(", ") }
    }

    fn settle(&mut self, status: ConfigStatus, reason: String) {
        if (self.state.status, &self.state.reason) != (status, &reason) {
            let in_force = self.described();
            match status {
                // Said when it is obeyed.
                ConfigStatus::InForce => {}
                ConfigStatus::Refused => {
                    log::warn!("configuration refused: {reason}; still in force: {in_force}");
                }
                ConfigStatus::LastGood | ConfigStatus::Starting => {
                    log::warn!("configuration cannot be asked for: {reason}; in force: {in_force}");
                }
            }
        }
        (self.state.status, self.state.reason) = (status, reason);
    }
}

#[cfg(test)]
mod tests {
    use dprof_common::settings::Protocols;
    use dprof_store::Retention;

    use super::*;
    use crate::args::EngineLimits;
    use crate::keep::KeepOptions;
    use crate::protocol::capture::Capture;
    use crate::source::window::DutyCycle;

    fn obedience() -> Obedience {
        let base = Settings {
            keep: KeepOptions::default(),
            duty_cycle: DutyCycle { ratio: 1.0, window_ns: 500_000_000, alone: false },
            capture: Capture::default(),
            unknown: false,
            protocols: Protocols::ALL,
            ports: Vec::new(),
            service_rules: Vec::new(),
            max_open_ns: 60_000_000_000,
            limits: EngineLimits::DEFAULT,
            retention: Retention::DEFAULT,
        };
        let started_with = Values::from([("limits.ring_size".to_owned(), "4MiB".to_owned())]);
        Obedience::new("web-1", base, started_with)
    }

    fn document(scope: &str, version: u64, body: &str) -> Document {
        let scope = scope.parse().expect("a scope");
        Document { version, body: body.to_owned(), ..Document::none(scope) }
    }

    /// Judges and, if there is something to obey, obeys; what is in force then.
    #[track_caller]
    fn check(obedience: &mut Obedience, heads: &[Document], status: ConfigStatus, in_force: &[(&str, u64)]) {
        if let Some(wanted) = obedience.judge(heads, false) {
            obedience.obeyed(wanted);
        }
        let state = obedience.state();
        assert_eq!(state.status, status, "{state:?}");
        let expected = in_force.iter().map(|(scope, version)| ((*scope).to_owned(), *version)).collect();
        assert_eq!(state.in_force, expected, "{state:?}");
    }

    #[test]
    fn what_is_written_is_obeyed_once() {
        let mut obedience = obedience();
        check(&mut obedience, &[], ConfigStatus::InForce, &[]);
        let heads = [
            document("cluster", 2, r#"{"trace.keep_ratio": "1/16"}"#),
            document("host:web-1", 1, r#"{"trace.keep_ratio": "1/2"}"#),
            document("host:web-2", 9, r#"{"trace.keep_ratio": "nonsense"}"#),
        ];
        let wanted = obedience.judge(&heads, false).expect("is new");
        assert!((wanted.settings.keep.ratio - 0.5).abs() < 1e-12);
        obedience.obeyed(wanted);
        check(&mut obedience, &heads, ConfigStatus::InForce, &[("cluster", 2), ("host:web-1", 1)]);
        assert_eq!(obedience.judge(&heads, false), None);
    }

    #[test]
    fn one_bad_value_refuses_the_whole_and_changes_nothing() {
        let mut obedience = obedience();
        let good = [document("cluster", 1, r#"{"trace.keep_ratio": "1/16"}"#)];
        check(&mut obedience, &good, ConfigStatus::InForce, &[("cluster", 1)]);
        for (body, expected) in [
            (
                r#"{"trace.keep_ratio": "7", "trace.keep_slow": "false"}"#,
                "cluster 2: trace.keep_ratio: '7' is no",
            ),
            ("[]", "cluster 2: not an object of texts"),
            (r#"{"trace.keep_ratio": 1}"#, "cluster 2: not an object of texts"),
            (r#"{"capture.duty_cycle": "1/2"}"#, "capture.duty_cycle: a duty cycle below 1 needs a clock"),
        ] {
            check(&mut obedience, &[document("cluster", 2, body)], ConfigStatus::Refused, &[("cluster", 1)]);
            assert!(obedience.state().reason.starts_with(expected), "{}", obedience.state().reason);
            assert_eq!(obedience.state().versions["cluster"], 2);
        }
        let again = [document("cluster", 3, r#"{"trace.keep_ratio": "1/16"}"#)];
        check(&mut obedience, &again, ConfigStatus::InForce, &[("cluster", 3)]);
        assert_eq!(obedience.state().reason, "");
    }

    #[test]
    fn a_store_that_is_away_leaves_the_last_good_in_force() {
        let mut obedience = obedience();
        obedience.store_is_away("gone".to_owned());
        assert_eq!(obedience.state().status, ConfigStatus::Starting);
        let heads = [document("cluster", 1, "{}")];
        check(&mut obedience, &heads, ConfigStatus::InForce, &[("cluster", 1)]);
        obedience.store_is_away("gone".to_owned());
        let state = obedience.state();
        assert_eq!((state.status, state.reason.as_str()), (ConfigStatus::LastGood, "gone"));
        check(&mut obedience, &heads, ConfigStatus::InForce, &[("cluster", 1)]);
    }

    #[test]
    fn unknown_keys_and_those_of_a_restart_are_told() {
        let mut obedience = obedience();
        let heads = [document("cluster", 1, r#"{"trace.later": "x", "limits.ring_size": "8MiB"}"#)];
        check(&mut obedience, &heads, ConfigStatus::InForce, &[("cluster", 1)]);
        assert_eq!(obedience.state().unknown, ["trace.later (cluster)"]);
        assert_eq!(obedience.state().at_restart, ["limits.ring_size"]);
        let wanted = obedience.judge(&[document("cluster", 2, "{}")], false).expect("is new");
        obedience.obeyed(wanted);
        assert_eq!((obedience.state().unknown.len(), obedience.state().at_restart.len()), (0, 0));
    }
}
