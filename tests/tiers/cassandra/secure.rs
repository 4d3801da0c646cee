//! A node that asks for a password and for certificates: who gets in, and whether anything ever repeats the password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_agent::source::recording::RecordingReader;
use dprof_store::StoreUrl;
use dprof_store::cassandra::cql;
use dprof_tests::agent::binary;
use dprof_tests::cassandra::{Keys, Ring};
use dprof_tests::program::Program;
use dprof_tests::{poll, subject};

use crate::harness::resp::Resp;

/// Turns these tests on: the contact point of the node that `cargo xtask cassandra up --secure` started.
const VARIABLE: &str = "DPROF_TEST_CASSANDRA_SECURE";
/// The password of the agents' user: no text has it by chance.
const MARKER: &str = "marker-9d41c07be2";
const USER: &str = "dprof_agent";
const WITHIN: Duration = Duration::from_mins(1);

struct Secure {
    url: String,
    keys: Keys,
    /// Of a user with the marker for a password, who may read and write the keyspace.
    credentials: PathBuf,
}

/// `None` while these tests are off. The first call makes keyspace and user.
fn secure() -> Result<Option<Secure>> {
    static MADE: OnceLock<Result<(), String>> = OnceLock::new();
    let Ok(host) = std::env::var(VARIABLE) else { return Ok(None) };
    let ring = Ring::find()?.context("the node that the variable names is up")?;
    ensure!(ring.options.secure, "the ring asks for nothing: cargo xtask cassandra up --secure");
    let keys = ring.keys();
    let url = format!("cassandra://{host}/dprof_secure");
    let credentials = keys.write_credentials("agent.toml", USER, MARKER)?;
    MADE.get_or_init(|| make(&url, &keys).map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Some(Secure { url, keys, credentials }))
}

fn make(url: &str, keys: &Keys) -> Result<()> {
    let init = cli(url, Some(&keys.credentials()), &["store", "init"])?;
    ensure!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let url = url.parse::<StoreUrl>()?.logged_in(Some(&keys.credentials()))?;
    let StoreUrl::Cassandra { hosts, keyspace } = &url else { unreachable!("it is Cassandra's") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for statement in [
        format!("CREATE ROLE IF NOT EXISTS {USER} WITH PASSWORD = '{MARKER}' AND LOGIN = true"),
        format!("GRANT SELECT ON KEYSPACE {keyspace} TO {USER}"),
        format!("GRANT MODIFY ON KEYSPACE {keyspace} TO {USER}"),
    ] {
        runtime.block_on(cql(hosts, &statement)).with_context(|| format!("make the user {USER}"))?;
    }
    Ok(())
}

/// The command line, with credentials or without.
fn cli(url: &str, credentials: Option<&Path>, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("dprof-cli"));
    command.args(["--store", url]).args(arguments).env_remove("DPROF_STORE_CREDENTIALS");
    if let Some(file) = credentials {
        command.arg("--store-credentials").arg(file);
    }
    command.output().context("start dprof-cli")
}

fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

fn recording() -> String {
    format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn an_agent_and_the_command_line_log_in_by_file_and_by_environment() -> Result<()> {
    let Some(secure) = secure()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut agent = Command::new(binary("dprof-agent"));
    agent
        .args(["--store", &secure.url, "--replay", &recording(), "--spool"])
        .arg(folder.path().join("spool"));
    agent.arg("--store-credentials").arg(&secure.credentials);
    let ended = Program::start("dprof-agent", folder.path(), &mut agent)?.wait(WITHIN)?.success()?;
    ensure!(ended.stderr.contains("lost: none"), "{}", ended.stderr);
    let by_file = cli(&secure.url, Some(&secure.credentials), &["services", "--since", "all"])?;
    ensure!(by_file.status.success() && said(&by_file).contains("redis-server"), "{}", said(&by_file));
    let keys = secure.credentials.parent().context("a folder")?;
    let by_environment = Command::new(binary("dprof-cli"))
        .args(["--store", &secure.url, "services", "--since", "all"])
        .env("DPROF_STORE_USER", USER)
        .env("DPROF_STORE_PASSWORD", MARKER)
        .env("DPROF_STORE_TLS_CA", secure.keys.authority())
        .env("DPROF_STORE_TLS_CERTIFICATE", keys.join("client.pem"))
        .env("DPROF_STORE_TLS_KEY", keys.join("client.key"))
        .output()?;
    assert_eq!(said(&by_file), said(&by_environment));
    Ok(())
}

#[test]
fn who_lacks_something_is_told_what_and_no_answer_repeats_a_password() -> Result<()> {
    let Some(secure) = secure()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let whole = fs::read_to_string(&secure.credentials)?;
    let (login, tls) = whole.split_once("[tls]").context("both parts")?;
    let without_client: String = tls
        .lines()
        .filter(|line| !line.starts_with("certificate") && !line.starts_with("key"))
        .collect::<Vec<_>>()
        .join("\n");
    let strange = folder.path().join("strange");
    fs::create_dir(&strange)?;
    subject::certificate(&strange, "somebody")?;
    let other_authority = tls.replace(
        &secure.keys.authority().display().to_string(),
        &strange.join("tls.crt").display().to_string(),
    );
    for (text, expected) in [
        (whole.replace(MARKER, "marker-9d41c07be2-wrong"), "incorrect"),
        (format!("[tls]{tls}"), "give --store-credentials FILE"),
        (login.to_owned(), "127.0.0.1"),
        (format!("{login}[tls]{without_client}"), "127.0.0.1"),
        (format!("{login}[tls]{other_authority}"), "certificate"),
    ] {
        let file = folder.path().join("credentials");
        fs::write(&file, &text)?;
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let output = cli(&secure.url, Some(&file), &["services"])?;
        let said = said(&output);
        assert!(!output.status.success() && said.contains(expected), "{expected}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains("marker"), "{said}");
    }
    let none = cli(&secure.url, None, &["services"])?;
    assert!(!none.status.success() && said(&none).lines().count() == 1, "{}", said(&none));
    Ok(())
}

/// The words of every process, as `ps` shows them.
fn command_lines() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|words| String::from_utf8_lossy(&words).into_owned())
        .collect()
}

#[test]
fn no_process_list_log_spool_or_recording_holds_the_password() -> Result<()> {
    let Some(secure) = secure()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let redis = subject::redis(folder.path())?;
    // Everything is watched, the node's end of the agent's own connection too, and payload is written as it is.
    let recorded = folder.path().join("recording");
    let mut command = Command::new(binary("dprof-agent"));
    command.args(["-vv", "--store", &secure.url, "--record-payload", "--record"]).arg(&recorded);
    command.arg("--store-credentials").arg(&secure.credentials);
    command.arg("--spool").arg(folder.path().join("spool")).arg("--socket").arg(folder.path().join("socket"));
    let mut agent = Program::start("dprof-agent", folder.path(), &mut command)?;
    agent.wait_until(WITHIN, "is ready", |program| program.stderr().contains("ready").then_some(()))?;
    Resp::connect(redis.address())?.call(&["SET", "canary-key", "canary-value"])?;
    let stored = ["slowest-spans", "--since", "all", "--limit", "100000", "--format", "json"];
    poll::until(WITHIN, "the span is stored", || {
        let output = cli(&secure.url, Some(&secure.credentials), &stored).ok()?;
        String::from_utf8_lossy(&output.stdout).contains("canary-key").then_some(())
    })?;
    let lines = command_lines();
    ensure!(lines.iter().any(|line| line.contains("--store-credentials")), "the agent is among them");
    ensure!(!lines.iter().any(|line| line.contains(MARKER)), "ps shows it");
    let ended = agent.stop(libc::SIGTERM)?.success()?;
    assert!(!ended.stderr.contains(MARKER) && !ended.stdout.contains(MARKER), "{}", ended.stderr);
    let mut reader = RecordingReader::open(&recorded)?;
    let mut bytes = Vec::new();
    while let Some(block) = reader.next_block()? {
        bytes.extend_from_slice(&block.0);
    }
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("canary-value"), "payload is in it");
    assert!(!holds(MARKER), "and the password is not");
    Ok(())
}
