//! Arguments that several commands share, and errors of usage in one line.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Args, Parser, ValueEnum};
use dprof_common::model::{Side, Status};
use dprof_store::{StoreError, StoreUrl};

use crate::analyse::attribution::Attribution;
use crate::command::Command;
use crate::units::{When, parse_duration, parse_when};

/// In help, arguments of all commands come after the command's own.
const SHARED_ORDER: usize = 900;

/// Asks dprof's store which requests are slow, where the time went, and on which node.
///
/// Data goes to stdout, everything else to stderr.
/// Exit codes: 0 success (also when the window is empty), 1 error, 2 wrong usage, 3 the trace, service or
/// operation asked for is unknown, 4 a condition given to check does not hold.
#[derive(Debug, Parser)]
#[command(name = "dprof-cli", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Where spans are kept: sqlite:DIR or cassandra://host1,host2/keyspace
    #[arg(long, global = true, display_order = SHARED_ORDER, env = "DPROF_STORE", hide_env_values = true, default_value = dprof_store::DEFAULT_STORE, value_name = "URL", value_parser = StoreParser)]
    pub(crate) store: StoreUrl,
    /// User, password and TLS of a Cassandra store, in a file with mode 0600 [default: $DPROF_STORE_CREDENTIALS]
    #[arg(long, global = true, display_order = SHARED_ORDER, value_name = "FILE")]
    pub(crate) store_credentials: Option<PathBuf>,
    /// Colours: auto (on a terminal, without NO_COLOR), always or never
    #[arg(
        long,
        global = true, display_order = SHARED_ORDER,
        value_enum,
        default_value_t = ColorChoice::Auto,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    pub(crate) color: ColorChoice,
    /// Say on stderr what is read from the store, how many rows, and how long that takes
    #[arg(long, global = true, display_order = SHARED_ORDER)]
    pub(crate) explain: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Reads a store's URL. clap repeats a value that it cannot read; one that holds a password must not be.
#[derive(Clone)]
pub(crate) struct StoreParser;

impl TypedValueParser for StoreParser {
    type Value = StoreUrl;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<StoreUrl, clap::Error> {
        let text = value.to_string_lossy();
        text.parse().map_err(|error: StoreError| {
            let name = argument.map_or_else(|| "--store".to_owned(), ToString::to_string);
            let message = match error {
                StoreError::SecretInUrl => format!("{name}: {error}\n"),
                error => format!("invalid value '{text}' for '{name}': {error}\n"),
            };
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, without `NO_COLOR`.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to print rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// `--format`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FormatArgs {
    /// Output: table for people, json for programs
    #[arg(long, display_order = SHARED_ORDER, value_enum, default_value_t = Format::Table, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) format: Format,
}

/// `--attribute`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct AttributeArgs {
    /// Charge a call that serves several requests to the one that triggered it, or to each submitter of a part
    #[arg(long, value_enum, default_value_t = Attribution::Trigger, value_name = "trigger|submitter", hide_possible_values = true)]
    pub(crate) attribute: Attribution,
}

/// `--since`, `--until`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct WindowArgs {
    /// Start of the window: 10m, now-10m, 2026-11-03T14:05:00Z, 2026-11-03 (UTC), @1700000000, all [default: 1h]
    #[arg(long, value_parser = parse_when, value_name = "TIME")]
    pub(crate) since: Option<When>,
    /// End of the window, in the same forms [default: open]
    #[arg(long, value_parser = parse_when, value_name = "TIME")]
    pub(crate) until: Option<When>,
}

/// `--service`, `--operation`, `--kind`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NameArgs {
    /// Only this service
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "NAME")]
    pub(crate) operation: Option<String>,
    /// Only RPCs of this kind: server or client
    #[arg(long, value_parser = parse_side, value_name = "KIND")]
    pub(crate) kind: Option<Side>,
}

/// Filters on single spans.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SpanArgs {
    #[command(flatten)]
    pub(crate) names: NameArgs,
    /// Only with this status at either end: ok, error, no_reply, reset, timeout, unknown, one_way
    #[arg(long, value_parser = parse_status, value_name = "STATUS")]
    pub(crate) status: Option<Status>,
    /// Only at least this long: 250us, 1.5ms, 2s
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) min_duration: Option<u64>,
}

fn parse_side(text: &str) -> Result<Side, String> {
    [Side::Client, Side::Server]
        .into_iter()
        .find(|side| side.name() == text)
        .ok_or_else(|| "use client or server".to_owned())
}

fn parse_status(text: &str) -> Result<Status, String> {
    Status::ALL.into_iter().find(|status| status.name() == text).ok_or_else(|| {
        let names: Vec<_> = Status::ALL.into_iter().map(Status::name).collect();
        format!("use {}", names.join(", "))
    })
}

/// An id or the start of one: 1 to 32 hexadecimal digits, given back in lower case.
pub(crate) fn parse_id(text: &str) -> Result<String, String> {
    if (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("expected 1 to 32 hexadecimal digits, as slowest-spans prints them".to_owned())
    }
}

/// Prints help, or what is wrong with the arguments in one line.
pub(crate) fn explain(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help goes to stdout in full; a closed pipe is the reader's choice.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let _ = writeln!(std::io::stderr(), "dprof-cli: {}", one_line(&error.render().to_string()));
    ExitCode::from(2)
}

/// Cause and tip of clap's message, without the usage that follows them.
fn one_line(rendered: &str) -> String {
    let mut line = String::new();
    for part in rendered.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        let part = part.strip_prefix("error: ").or(part.strip_prefix("tip: ")).unwrap_or(part);
        if !part.is_empty() {
            let separator = if line.is_empty() {
                ""
            } else if line.ends_with(':') {
                " "
            } else {
                "; "
            };
            line.push_str(separator);
            line.push_str(part);
        }
    }
    line.push_str(" (see --help)");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_usage_error(args: &[&str], expected: &str) {
        let error = Cli::try_parse_from([&["dprof-cli"], args].concat()).unwrap_err();
        assert_eq!(one_line(&error.render().to_string()), expected);
    }

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_are_explained_in_one_line() {
        check_usage_error(
            &["slowest-spans", "--formt", "json"],
            "unexpected argument '--formt' found; a similar argument exists: '--format' (see --help)",
        );
        check_usage_error(
            &["slowest-spans", "--since", "yesterday"],
            "invalid value 'yesterday' for '--since <TIME>': 'yesterday' is not a time: use 10m, now, all, \
             2026-11-03, 2026-11-03T14:05:00Z or @1700000000 (see --help)",
        );
        check_usage_error(
            &["slowest-spans", "--kind", "peer"],
            "invalid value 'peer' for '--kind <KIND>': use client or server (see --help)",
        );
        check_usage_error(
            &["trace", "xyz"],
            "invalid value 'xyz' for '<ID>': expected 1 to 32 hexadecimal digits, as slowest-spans prints them (see --help)",
        );
        check_usage_error(
            &["slow"],
            "unrecognized subcommand 'slow'; some similar subcommands exist: 'slowest-traces', 'slowest-spans' (see --help)",
        );
        check_usage_error(
            &["--store", "mysql:", "services"],
            "invalid value 'mysql:' for '--store <URL>': 'mysql:' is not a store: use sqlite:DIR or \
             cassandra://host1,host2/keyspace (see --help)",
        );
        check_usage_error(
            &["--store", "cassandra://joe:secret@host/dprof", "services"],
            "--store <URL>: a store's URL holds no user and no password, which ps and logs would show: use \
             --store-credentials FILE, or DPROF_STORE_USER and DPROF_STORE_PASSWORD (see --help)",
        );
    }
}
