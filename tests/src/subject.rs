//! Programs to observe, unmodified, as Debian installs them: Redis, nutcracker (an event-loop proxy), nginx.

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
    let name = format!("redis-{port}");
    command
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "-::1",
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .args(["--enable-debug-command", "yes", "--daemonize", "no", "--protected-mode", "no", "--dir"])
        .arg(folder);
    let mut program = Program::start(&name, folder, command)?;
    program.wait_until(READY_WITHIN, "is ready to accept connections", |program| {
        program.stdout().contains("Ready to accept connections").then_some(())
    })?;
    Ok(Subject { program, port })
}

/// nutcracker (twemproxy) in front of Redis servers.
pub fn nutcracker(folder: &Path, servers: &[&Subject]) -> Result<Subject> {
    let port = free_port()?;
    let config = folder.join(format!("nutcracker-{port}.yml"));
    let servers: Vec<String> =
        servers.iter().map(|server| format!("    - 127.0.0.1:{}:1", server.port)).collect();
    let text = format!(
        "dprof:\n  listen: 127.0.0.1:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  \
         timeout: 60000\n  servers:\n{}\n",
        servers.join("\n")
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(find("nutcracker"));
    command.arg("-c").arg(&config).args(["-a", "127.0.0.1", "-s", &free_port()?.to_string()]);
    let mut program = Program::start(&format!("nutcracker-{port}"), folder, &mut command)?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    program.wait_until(READY_WITHIN, "accepts connections", |_| TcpStream::connect(address).ok())?;
    Ok(Subject { program, port })
}

/// nginx that serves the files of `folder/html`.
pub fn nginx(folder: &Path) -> Result<Subject> {
    let port = free_port()?;
    let html = folder.join("html");
    fs::create_dir_all(&html).with_context(|| format!("create {}", html.display()))?;
    let root = folder.display();
    let text = format!(
        "daemon off; worker_processes 1; error_log stderr; pid {root}/nginx.pid; user root;\n\
         events {{}}\n\
         http {{ access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; root {root}/html; }} }}\n"
    );
    let config = folder.join("nginx.conf");
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(find("nginx"));
    command.arg("-p").arg(folder).arg("-c").arg(&config);
    let mut program = Program::start("nginx", folder, &mut command)?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
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
