//! Bounded loads and what each came to: requests, seconds, latencies.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use dprof_tests::clock;
use dprof_tests::subject::{self, Subject, find};

/// A server under a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// `redis-benchmark -t get -P pipeline -c connections`.
    Redis { pipeline: usize, connections: usize },
    /// Gets from memcached.
    Memcached { connections: usize },
    /// `wrk` against nginx.
    Http { connections: usize },
}

/// What one run of a load came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Came {
    pub(super) requests: f64,
    pub(super) per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
}

impl Load {
    pub(super) fn name(self) -> String {
        match self {
            Self::Redis { pipeline, connections } => format!("redis -P {pipeline} -c {connections}"),
            Self::Memcached { connections } => format!("memcached -c {connections}"),
            Self::Http { connections } => format!("nginx, wrk -c {connections}"),
        }
    }

    /// Starts the server.
    pub(super) fn subject(self, folder: &Path) -> Result<Subject> {
        match self {
            Self::Redis { .. } => subject::redis(folder),
            Self::Memcached { .. } => subject::memcached(folder),
            Self::Http { .. } => {
                let nginx = subject::nginx(folder)?;
                fs::write(folder.join("html/index.html"), [b'x'; PAGE_BYTES]).context("write a page")?;
                Ok(nginx)
            }
        }
    }

    /// Asks some `requests` times.
    pub(super) fn run(self, folder: &Path, subject: &Subject, requests: usize) -> Result<Came> {
        match self {
            Self::Redis { pipeline, connections } => {
                redis_benchmark(subject.port, requests * pipeline.min(8), pipeline, connections)
            }
            Self::Memcached { connections } => memcached(subject.address(), requests, connections),
            Self::Http { connections } => wrk(folder, subject.port, requests, connections),
        }
    }
}

/// Page that nginx serves, bytes.
const PAGE_BYTES: usize = 612;

fn said(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn redis_benchmark(port: u16, requests: usize, pipeline: usize, connections: usize) -> Result<Came> {
    let mut command = Command::new(find("redis-benchmark"));
    command.args(["-p", &port.to_string(), "-t", "get", "-r", "10000", "-n", &requests.to_string()]);
    let text = said(command.args(["-P", &pipeline.to_string(), "-c", &connections.to_string()]))?;
    let per_s = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("throughput summary: ")?.split(' ').next()?.parse().ok())
        .context("redis-benchmark says no throughput")?;
    // `99.902% <= 1.007 milliseconds (cumulative count 49952)`
    let percentiles: Vec<(f64, f64)> = text
        .lines()
        .filter_map(|line| {
            let (percent, rest) = line.trim().split_once("% <= ")?;
            Some((percent.parse().ok()?, rest.split(' ').next()?.parse::<f64>().ok()? * 1e3))
        })
        .collect();
    let at = |percent: f64| {
        percentiles.iter().find(|(reached, _)| *reached >= percent).map_or(f64::NAN, |(_, us)| *us)
    };
    Ok(Came { requests: requests as f64, per_s, p50_us: at(50.0), p99_us: at(99.0), p999_us: at(99.9) })
}

/// Has wrk print the percentiles that it does not by itself.
const WRK_SCRIPT: &str = "done = function(summary, latency, requests)\n\
    io.write(string.format('came %d %d %f %f %f\\n', summary.requests, summary.duration,\n\
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))\nend\n";

/// wrk is bounded by time: the requests are what a machine of this kind does in it.
fn wrk(folder: &Path, port: u16, requests: usize, connections: usize) -> Result<Came> {
    const REQUESTS_PER_S: usize = 20_000;
    let script = folder.join("wrk.lua");
    fs::write(&script, WRK_SCRIPT).context("write wrk's script")?;
    let seconds = (requests / REQUESTS_PER_S).clamp(1, 30);
    let mut command = Command::new(find("wrk"));
    command.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s"), "-s"]);
    let text = said(command.arg(&script).arg(format!("http://127.0.0.1:{port}/")))?;
    let numbers: Vec<f64> = text
        .lines()
        .find_map(|line| line.strip_prefix("came "))
        .context("wrk says nothing")?
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [requests, took_us, p50_us, p99_us, p999_us] = numbers[..] else { bail!("wrk said {text}") };
    Ok(Came { requests, per_s: requests / took_us * 1e6, p50_us, p99_us, p999_us })
}

/// A thread per connection that gets one key again and again.
fn memcached(address: SocketAddr, requests: usize, connections: usize) -> Result<Came> {
    let each = requests.div_ceil(connections);
    set_key(address)?;
    let started = clock::now();
    let threads: Vec<_> = (0..connections).map(|_| thread::spawn(move || get_key(address, each))).collect();
    let mut all_us = Vec::with_capacity(each * connections);
    for thread in threads {
        all_us.extend(thread.join().map_err(|_| anyhow!("the load panicked"))??);
    }
    let took_s = started.elapsed().as_secs_f64();
    all_us.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| all_us[((all_us.len() - 1) as f64 * part) as usize];
    let requests = all_us.len() as f64;
    Ok(Came { requests, per_s: requests / took_s, p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999) })
}

const VALUE: &str = "a value of thirty-two characters";

fn set_key(address: SocketAddr) -> Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(address).context("connect to memcached")?);
    write!(stream.get_mut(), "set key 0 0 {}\r\n{VALUE}\r\n", VALUE.len())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if line != "STORED\r\n" {
        bail!("memcached says {line:?}");
    }
    Ok(())
}

fn get_key(address: SocketAddr, times: usize) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).context("connect to memcached")?;
    stream.set_nodelay(true)?;
    let mut answer = vec![0; format!("VALUE key 0 {}\r\n{VALUE}\r\nEND\r\n", VALUE.len()).len()];
    let mut took_us = Vec::with_capacity(times);
    for _ in 0..times {
        let started = clock::now();
        stream.write_all(b"get key\r\n")?;
        stream.read_exact(&mut answer)?;
        took_us.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(took_us)
}
