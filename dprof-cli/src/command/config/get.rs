//! `config get`: the value in force, where, and what says so.
//!
//! What a reader would get wrong: what an agent's own file and options say holds only where nothing is configured, and
//! is known only of agents that report.

use std::collections::BTreeMap;

use dprof_common::settings::{KEYS, Key, Scope, Scoped, effective};
use dprof_store::control::{AgentState, Control};
use serde::Serialize;

use super::{known, named};
use crate::args::{Format, FormatArgs};
use crate::context::{Context, Failure};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};

/// Show the values in force, everywhere or for one host or service, and where each comes from
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these keys
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    /// For this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// For spans of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    output: FormatArgs,
}

/// A value in force. Field names are the JSON schema.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ValueRow {
    key: String,
    /// `everywhere`, or the scope: hosts and services that have a value of their own.
    r#where: String,
    value: String,
    /// The scope that says so, `agent` (its file or options), or `default`.
    source: String,
    /// Version of that scope.
    version: Option<u64>,
}

#[derive(Serialize)]
struct Values {
    values: Vec<ValueRow>,
    /// Scopes whose newest version cannot be read, with the reason: agents refuse it.
    unreadable: Vec<String>,
    /// Keys that are set and that this version does not know.
    unknown: Vec<String>,
}

/// What the store says, read whole.
struct Configured {
    scoped: Scoped,
    versions: BTreeMap<Scope, u64>,
    unreadable: Vec<String>,
    agents: Vec<AgentState>,
}

impl Configured {
    async fn read(control: &dyn Control, now_unix_ns: u64) -> Result<Self, Failure> {
        let scopes = control.scopes().await?;
        let mut read = Self {
            scoped: Scoped::new(),
            versions: BTreeMap::new(),
            unreadable: Vec::new(),
            agents: control.agents(now_unix_ns).await?,
        };
        for document in control.heads(&scopes).await? {
            read.versions.insert(document.scope.clone(), document.version);
            match document.values() {
                Ok(values) => drop(read.scoped.insert(document.scope, values)),
                Err(reason) => read.unreadable.push(reason),
            }
        }
        Ok(read)
    }

    /// The value at one place.
    fn row(&self, key: &Key, r#where: String, host: Option<&str>, service: Option<&str>) -> ValueRow {
        let (value, source, version) = match effective(&self.scoped, key.name, host, service) {
            Some((scope, text)) => (text, scope.to_string(), self.versions.get(scope).copied()),
            None => match host.and_then(|host| self.started_with(key, host)) {
                Some(text) => (text, "agent".to_owned(), None),
                None => (key.default, "default".to_owned(), None),
            },
        };
        ValueRow { key: key.name.to_owned(), r#where, value: value.to_owned(), source, version }
    }

    /// What the agent of a host was started with, if that is not the default.
    fn started_with(&self, key: &Key, host: &str) -> Option<&str> {
        let agent = self.agents.iter().find(|agent| agent.host == host)?;
        agent.config.started_with.get(key.name).map(String::as_str).filter(|text| *text != key.default)
    }

    /// Everywhere, and at every place that has a value of its own.
    fn rows(&self, key: &Key) -> Vec<ValueRow> {
        let mut rows = vec![self.row(key, "everywhere".to_owned(), None, None)];
        for scope in
            self.scoped.iter().filter(|(_, values)| values.contains_key(key.name)).map(|(scope, _)| scope)
        {
            match scope {
                Scope::Cluster => {}
                Scope::Service(service) => rows.push(self.row(key, scope.to_string(), None, Some(service))),
                Scope::Host(host) => rows.push(self.row(key, scope.to_string(), Some(host), None)),
            }
        }
        let mut hosts: Vec<&str> = self.agents.iter().map(|agent| agent.host.as_str()).collect();
        hosts.dedup();
        rows.extend(
            hosts
                .into_iter()
                .map(|host| self.row(key, Scope::Host(host.to_owned()).to_string(), Some(host), None))
                .filter(|row| row.source == "agent"),
        );
        rows
    }

    fn unknown(&self) -> Vec<String> {
        let names = self.scoped.iter().flat_map(|(scope, values)| {
            values
                .keys()
                .filter(|name| KEYS.iter().all(|key| key.name != *name))
                .map(move |name| format!("{name} ({scope})"))
        });
        names.collect()
    }
}

/// Runs it.
pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let Args { keys, host, service, output } = args;
    let keys: Vec<&Key> = match keys.as_slice() {
        [] => KEYS.iter().collect(),
        names => names.iter().map(|name| known(name)).collect::<Result<_, _>>()?,
    };
    let read = Configured::read(&*context.control(false).await?, context.now_unix_ns).await?;
    let place: Vec<String> = [("service", &service), ("host", &host)]
        .into_iter()
        .filter_map(|(kind, name)| Some(format!("{kind}:{}", name.as_ref()?)))
        .collect();
    let values: Vec<ValueRow> = if place.is_empty() {
        keys.iter().flat_map(|key| read.rows(key)).collect()
    } else {
        let row = |key: &&Key| read.row(key, place.join(" "), host.as_deref(), service.as_deref());
        keys.iter().map(row).collect()
    };
    let unknown = read.unknown();
    if output.format == Format::Json {
        let values = Values { values, unreadable: read.unreadable, unknown };
        return json::document("config", &values, context.out);
    }
    context.warn(&read.unreadable.iter().map(|why| format!("{why}: agents refuse it")).collect::<Vec<_>>());
    context.warn(&unknown.iter().map(|key| format!("nobody knows the key {key}")).collect::<Vec<_>>());
    let mut table = Table::new([
        Column::whole("KEY", 0),
        Column::text("WHERE", 0),
        Column::text("VALUE", 0),
        Column::text("FROM", 1),
    ]);
    for row in values {
        let source = match (row.source.parse::<Scope>(), row.version) {
            (Ok(scope), Some(version)) => Cell::from(named(&scope, version)),
            _ if row.source == "agent" => Cell::from("file or options of the agent"),
            _ => Cell::toned(&row.source, Tone::Dim),
        };
        table.row([row.key.into(), row.r#where.into(), row.value.into(), source]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}
