//! Zipkin's own server on the node that is measured, with spans of the same shape: what the established way costs.
//!
//! What a reader would get wrong: it answers 202 before it stores. Spans are sent at a pace that it can take, and
//! counted in its table.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_tests::cassandra::Ring;
use dprof_tests::zipkin::{Server, VERSION, jar};
use dprof_tests::{clock, poll};

use crate::cassandra;
use crate::step::{Steps, say};

const PORT: u16 = 9411;
const READY_WITHIN: Duration = Duration::from_mins(3);
/// RPCs of one request, each a client's and a server's span.
const RPCS_PER_POST: u64 = 50;
/// RPCs a second: unpaced it takes four times as many and stores a seventh.
const RPCS_PER_S: u64 = 500;
/// Its queue is empty when the count stands still for this long.
const QUIET: Duration = Duration::from_secs(5);

/// Measures it on `ring`, which must allow SASI indexes.
pub(crate) fn measure(steps: &Steps, ring: &Ring, rpcs: u64) -> Result<()> {
    fetch(steps)?;
    let folder = tempfile::tempdir().context("create a folder")?;
    let hosts = ring.hosts();
    let settings = [
        ("STORAGE_TYPE", "cassandra3"),
        ("CASSANDRA_CONTACT_POINTS", hosts.as_str()),
        ("CASSANDRA_LOCAL_DC", "datacenter1"),
        ("STORAGE_THROTTLE_ENABLED", "true"),
    ];
    let server = Server::start(folder.path(), PORT, &settings, || steps.interrupt().check().is_err())?;
    steps.interrupt().check()?;
    let cpu = |pid: u32| cpu_s(pid).unwrap_or(0.0);
    let node = ring.pid(1).context("the node runs")? as u32;
    let before = (cpu(server.program.pid()), cpu(node));
    let started = clock::now();
    for post in 0..rpcs / RPCS_PER_POST {
        let due = Duration::from_millis(post * RPCS_PER_POST * 1000 / RPCS_PER_S);
        thread::sleep(due.saturating_sub(started.elapsed()));
        server.post(&spans(post * RPCS_PER_POST))?;
        steps.interrupt().check()?;
    }
    let sent = started.elapsed();
    let stored = stored(ring)?;
    let after = (cpu(server.program.pid()), cpu(node));
    ring.nodetool(1, &["flush", "zipkin2"])?;
    ring.nodetool(1, &["compact", "zipkin2"])?;
    let bytes = super::store::folder_bytes(&ring.node_folder(1).join("data/zipkin2"));
    let n = stored as f64 / 2.0;
    say(&format!(
        "\nZipkin {VERSION}: {:.0} RPCs stored of {rpcs} (paced, sent in {:.0} s): {:.0} bytes/RPC after compaction, CPU \
         {:.0} us/RPC of its own, {:.0} us/RPC of the node",
        n,
        sent.as_secs_f64(),
        bytes as f64 / n,
        (after.0 - before.0) * 1e6 / n,
        (after.1 - before.1) * 1e6 / n,
    ));
    drop(server);
    Ok(())
}

/// Fetches the server, once.
pub(crate) fn fetch(steps: &Steps) -> Result<()> {
    let jar = jar()?;
    let folder = jar.parent().context("a jar is in a folder")?;
    if !jar.is_file() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let mut mvn = Command::new("mvn");
        mvn.current_dir(folder).args(["-B", "-q", "dependency:copy", "-DoutputDirectory=."]);
        mvn.arg(format!("-Dartifact=io.zipkin:zipkin-server:{VERSION}:jar:exec"));
        steps.run(&format!("Zipkin {VERSION} from Maven Central"), &mut mvn)?;
    }
    Ok(())
}

/// Spans in its table, once their number stands still.
fn stored(ring: &Ring) -> Result<u64> {
    let mut last = (0, clock::now());
    poll::until(READY_WITHIN, "zipkin has stored what it has", || {
        thread::sleep(Duration::from_secs(1));
        let n = match cassandra::cql_rows(ring, "SELECT count(*) FROM zipkin2.span") {
            Ok(rows) => rows.get(1).and_then(|row| row.trim().parse::<u64>().ok()).unwrap_or(0),
            Err(error) => return Some(Err(error)),
        };
        if n != last.0 {
            last = (n, clock::now());
        }
        (n > 0 && last.1.elapsed() > QUIET).then_some(Ok(n))
    })?
}

/// CPU time of a process, seconds: fields 14 and 15 of `/proc/PID/stat`, in ticks of 10 ms.
fn cpu_s(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

/// Two RPCs per trace, as the store's measurement has them: a request and a call from it, both halves of each.
fn spans(from: u64) -> String {
    let now_us = clock::unix_us();
    let mut spans = Vec::new();
    for n in from..from + RPCS_PER_POST {
        let (trace, is_call) = (n / 2, n % 2 == 1);
        // Spread over the id space, as a hash would.
        let id = |n: u64| format!("{:016x}", (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let parent = if is_call { format!(",\"parentId\":\"{}\"", id(trace * 2)) } else { String::new() };
        let services =
            ["web", "cart", "cache", "session", "orders", "stock", "mail", "search", "users", "pay"];
        for (kind, shared, service) in [
            ("CLIENT", "", services[n as usize % 10]),
            ("SERVER", ",\"shared\":true", services[(n as usize + 3) % 10]),
        ] {
            spans.push(format!(
                "{{\"traceId\":\"{}\",\"id\":\"{}\"{parent},\"kind\":\"{kind}\"{shared},\"name\":\"{}\",\"timestamp\":{},\
                 \"duration\":{},\"localEndpoint\":{{\"serviceName\":\"{service}\",\"ipv4\":\"10.0.0.1\",\"port\":6379}},\
                 \"tags\":{{\"db.query\":\"GET key:{:06} ?\"}}}}",
                id(trace * 2),
                id(n),
                ["get", "set", "del", "incr", "mget"][n as usize % 5],
                now_us + n % 1000,
                200 + n % 300,
                n % 1_000_000,
            ));
        }
    }
    format!("[{}]", spans.join(","))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_spans_are_json() {
        let text = super::spans(0);
        assert!(text.starts_with("[{") && text.ends_with("}]"));
        assert_eq!(text.matches("\"kind\"").count(), 2 * super::RPCS_PER_POST as usize);
    }
}
