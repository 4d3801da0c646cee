//! Programs to observe, unmodified, as Debian installs them: Redis, memcached, nutcracker (an event-loop proxy),
//! HAProxy, nginx.

use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::program::Program;

/// How long a program may take until it answers: generous, the machine may be busy compiling.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A program that listens on a port of its own.
#[derive(Debug)]
pub struct Subject {
    /// The process.
    pub program: Program,
    /// Where it listens, loopback.
    pub port: u16,
}

impl Subject {
    /// Address on IPv4 loopback.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

/// Where a program is installed; system programs are often not on a user's `PATH`.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The same; the bare name if it is not installed, so that starting it says what is missing.
pub fn find(name: &str) -> PathBuf {
    installed(name).unwrap_or_else(|| PathBuf::from(name))
}

/// A port that nothing listens on, IPv4 and IPv6. Another program may take it before it is used: a start that
/// fails says so.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"));
    Ok(listener.and_then(|listener| listener.local_addr()).context("find a free port")?.port())
}

/// redis-server on IPv4 and IPv6 loopback, nothing kept on disk, `DEBUG` allowed (for `DEBUG SLEEP`).
pub fn redis(folder: &Path) -> Result<Subject> {
    let port = free_port()?;
    redis_with(folder, &mut Command::new(find("redis-server")), port)
}

/// The same through `command`, which must end in the program (for example in a network namespace).
pub fn redis_with(folder: &Path, command: &mut Command, port: u16) -> Result<Subject> {
    redis_on(folder, command, &["127.0.0.1", "-::1"], port)
}

/// The same on these addresses.
pub fn redis_on(folder: &Path, command: &mut Command, addresses: &[&str], port: u16) -> Result<Subject> {
    let name = format!("redis-{port}");
    command.args(["--port", &port.to_string(), "--bind"]).args(addresses);
    command.args(["--save", "", "--appendonly", "no"]);
    command
        .args(["--enable-debug-command", "yes", "--daemonize", "no", "--protected-mode", "no", "--dir"])
        .arg(folder);
    let mut program = Program::start(&name, folder, command)?;
    program.wait_until(READY_WITHIN, "is ready to accept connections", |program| {
        program.stdout().contains("Ready to accept connections").then_some(())
    })?;
    Ok(Subject { program, port })
}

/// How HAProxy moves bytes from one connection to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relay {
    /// Through a buffer of its own.
    Copy,
    /// By `splice`: no buffer ever holds them.
    Splice,
}

/// HAProxy that relays TCP to `server`, byte by byte, and prints a line for each connection at its end:
/// client's address, own, own towards the server, server's.
pub fn haproxy(folder: &Path, server: &Subject, relay: Relay) -> Result<Subject> {
    let port = free_port()?;
    let splice =
        if relay == Relay::Splice { "  option splice-request\n  option splice-response\n" } else { "" };
    let text = format!(
        "global\n  log stdout format raw local0\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode tcp\n  timeout connect 60s\n  timeout client 60s\n  timeout server 60s\n{splice}\
         listen relay\n  bind 127.0.0.1:{port}\n  log global\n\
         \x20 log-format \"%ci:%cp %fi:%fp %bi:%bp %si:%sp\"\n  server one 127.0.0.1:{}\n",
        server.port
    );
    let config = folder.join("haproxy.cfg");
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(find("haproxy"));
    command.arg("-db").arg("-f").arg(&config);
    let mut program = Program::start("haproxy", folder, &mut command)?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    program.wait_until(READY_WITHIN, "accepts connections", |_| TcpStream::connect(address).ok())?;
    Ok(Subject { program, port })
}

/// HAProxy that passes HTTP requests on to `server`, one by one over connections that it shares between clients, and
/// the address that tells its counters.
pub fn haproxy_http(folder: &Path, server: &Subject) -> Result<(Subject, SocketAddr)> {
    let (port, counters) = (free_port()?, free_port()?);
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
         frontend front\n  bind 127.0.0.1:{port}\n  default_backend back\n\
         backend back\n  http-reuse always\n  server one 127.0.0.1:{}\n\
         frontend counters\n  bind 127.0.0.1:{counters}\n  stats enable\n  stats uri /counters\n",
        server.port
    );
    let config = folder.join(format!("haproxy-{port}.cfg"));
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(find("haproxy"));
    command.args(["-db", "-f"]).arg(&config);
    let mut program = Program::start(&format!("haproxy-{port}"), folder, &mut command)?;
    let counters = (Ipv4Addr::LOCALHOST, counters).into();
    program.wait_until(READY_WITHIN, "answers", |_| get(counters, "/counters;csv").ok())?;
    Ok((Subject { program, port }, counters))
}

/// What nutcracker's servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Redis.
    Redis,
    /// memcached.
    Memcached,
}

/// nutcracker (twemproxy) in front of Redis servers.
pub fn nutcracker(folder: &Path, servers: &[&Subject]) -> Result<Subject> {
    nutcracker_before(folder, servers, Behind::Redis)
}

/// nutcracker in front of servers of one kind.
pub fn nutcracker_before(folder: &Path, servers: &[&Subject], behind: Behind) -> Result<Subject> {
    let servers: Vec<SocketAddr> = servers.iter().map(|server| server.address()).collect();
    let listen = (Ipv4Addr::LOCALHOST, free_port()?).into();
    nutcracker_on(folder, &mut Command::new(find("nutcracker")), listen, &servers, behind)
}

/// The same through `command`, which must end in the program (for example in a network namespace).
pub fn nutcracker_on(
    folder: &Path,
    command: &mut Command,
    listen: SocketAddr,
    servers: &[SocketAddr],
    behind: Behind,
) -> Result<Subject> {
    let port = listen.port();
    let config = folder.join(format!("nutcracker-{port}.yml"));
    let servers: Vec<String> = servers.iter().map(|server| format!("    - {server}:1")).collect();
    let text = format!(
        "dprof:\n  listen: {listen}\n  redis: {}\n  hash: fnv1a_64\n  distribution: ketama\n  \
         timeout: 60000\n  servers:\n{}\n",
        behind == Behind::Redis,
        servers.join("\n")
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    command.arg("-c").arg(&config).args(["-a", "127.0.0.1", "-s", &free_port()?.to_string()]);
    let mut program = Program::start(&format!("nutcracker-{port}"), folder, command)?;
    program.wait_until(READY_WITHIN, "listens", |program| listens(program.pid(), port).then_some(()))?;
    Ok(Subject { program, port })
}

/// memcached on IPv4 loopback.
pub fn memcached(folder: &Path) -> Result<Subject> {
    memcached_with(folder, &mut Command::new(find("memcached")), free_port()?)
}

/// memcached through `command`, which must end in the program (for example in a network namespace); without UDP, with
/// one thread.
pub fn memcached_with(folder: &Path, command: &mut Command, port: u16) -> Result<Subject> {
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-u", "root", "-t", "1"]);
    let mut program = Program::start(&format!("memcached-{port}"), folder, command)?;
    program.wait_until(READY_WITHIN, "listens", |program| listens(program.pid(), port).then_some(()))?;
    Ok(Subject { program, port })
}

/// Whether something listens on an IPv4 port in a process's network namespace, as the kernel lists it.
pub fn listens(pid: u32, port: u16) -> bool {
    /// `TCP_LISTEN`
    const LISTEN: &str = "0A";
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        let is_local = words.nth(1).is_some_and(|address| address.ends_with(&format!(":{port:04X}")));
        is_local && words.nth(1) == Some(LISTEN)
    })
}

/// HAProxy twice in one process, both in TCP mode: the first passes connections on with a PROXY header of this
/// version to the second, which reads it and passes them on to `server`. The first's port, and the second's.
pub fn haproxy_with_headers(folder: &Path, server: &Subject, version: u8) -> Result<(Subject, u16)> {
    let (port, inner) = (free_port()?, free_port()?);
    let send = if version == 1 { "send-proxy" } else { "send-proxy-v2" };
    let config = folder.join(format!("haproxy-{port}.cfg"));
    let text = format!(
        "global\n  maxconn 200\n  nbthread 1\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
         listen outer\n  bind 127.0.0.1:{port}\n  server inner 127.0.0.1:{inner} {send}\n\
         listen inner\n  bind 127.0.0.1:{inner} accept-proxy\n  server subject 127.0.0.1:{}\n",
        server.port
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(find("haproxy"));
    command.args(["-db", "-f"]).arg(&config);
    let mut program = Program::start(&format!("haproxy-{port}"), folder, &mut command)?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    program.wait_until(READY_WITHIN, "accepts connections", |_| TcpStream::connect(address).ok())?;
    Ok((Subject { program, port }, inner))
}

/// A key and a certificate for `name`, made now: `folder/tls.key` and `folder/tls.crt`.
pub fn certificate(folder: &Path, name: &str) -> Result<()> {
    let mut command = Command::new(find("openssl"));
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    command.args(["-subj", &format!("/CN={name}"), "-keyout"]).arg(folder.join("tls.key"));
    command.arg("-out").arg(folder.join("tls.crt"));
    Program::start("openssl", folder, &mut command)?.wait(READY_WITHIN)?.success()?;
    Ok(())
}

/// nginx that serves the files of `folder/html`.
pub fn nginx(folder: &Path) -> Result<Subject> {
    nginx_with(folder, "", "")
}

/// The same, with its counters at `/counters`.
pub fn nginx_counted(folder: &Path) -> Result<Subject> {
    nginx_with(folder, "", "location = /counters { stub_status; }")
}

/// nginx that asks `server` for everything below `/item/`, over a new connection each time.
pub fn nginx_before(folder: &Path, server: SocketAddr) -> Result<Subject> {
    let location = format!("location /item/ {{ proxy_pass http://{server}; proxy_read_timeout 60s; }}");
    nginx_with(folder, "", &location)
}

/// The same by TLS, with the [`certificate`] of `folder`.
pub fn nginx_tls(folder: &Path) -> Result<Subject> {
    let root = folder.display();
    let files = format!(
        "ssl_certificate {root}/tls.crt; ssl_certificate_key {root}/tls.key; ssl_protocols TLSv1.2 TLSv1.3;"
    );
    nginx_with(folder, "ssl", &files)
}

fn nginx_with(folder: &Path, listen: &str, more: &str) -> Result<Subject> {
    let port = free_port()?;
    let html = folder.join("html");
    fs::create_dir_all(&html).with_context(|| format!("create {}", html.display()))?;
    let root = folder.display();
    let text = format!(
        "daemon off; worker_processes 1; error_log stderr; pid {root}/nginx.pid; user root;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen 127.0.0.1:{port} {listen}; root {root}/html; {more} }} }}\n"
    );
    let config = folder.join("nginx.conf");
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(find("nginx"));
    command.arg("-p").arg(folder).arg("-c").arg(&config);
    let mut program = Program::start("nginx", folder, &mut command)?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    // By TLS too an answer comes, if only a complaint.
    program.wait_until(READY_WITHIN, "answers", |_| get(address, "/").ok())?;
    Ok(Subject { program, port })
}

/// One HTTP/1.1 request on a connection of its own; the whole answer.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
