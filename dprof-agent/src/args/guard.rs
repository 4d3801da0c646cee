//! Options that say who may look at the agent, and what it may itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use dprof_store::StoreUrl;

use super::option;
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct GuardArgs {
    /// User, password and TLS of a Cassandra store, in a file with mode 0600 [default: $DPROF_STORE_CREDENTIALS]
    #[arg(long, value_name = "FILE")]
    store_credentials: Option<PathBuf>,
    /// Answer /metrics (Prometheus), /healthz and /readyz at this loopback address, such as 127.0.0.1:9464
    /// [default: no]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// Let --metrics answer at an address that other hosts can reach
    #[arg(long)]
    metrics_remote: bool,
    /// Give up no capability and no system call after attaching, to see whether that is why something fails
    #[arg(long)]
    keep_privileges: bool,
}

/// Who may look, and what the agent may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Where metrics and health are answered; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Nothing is given up after attaching.
    pub keep_privileges: bool,
}

impl GuardArgs {
    /// The store with what it takes to log in.
    pub(super) fn log_in(&self, store: StoreUrl, config: &Config) -> Result<StoreUrl, String> {
        let (name, file) = match (&self.store_credentials, &config.store_credentials) {
            (Some(file), _) => ("--store-credentials", Some(file)),
            // One written for another store than this one.
            (None, Some(_)) if matches!(store, StoreUrl::Sqlite(_)) => ("store_credentials", None),
            (None, file) => ("store_credentials", file.as_ref()),
        };
        option(name, store.logged_in(file.map(PathBuf::as_path)))
    }

    /// The rest.
    pub(super) fn guard(&self, config: &Config) -> Result<Guard, String> {
        let remote = self.metrics_remote || config.metrics_remote;
        let metrics = match (&self.metrics, &config.metrics) {
            (Some(text), _) => Some(metrics_address("--metrics", text, remote)?),
            (None, Some(text)) => Some(metrics_address("metrics", text, remote)?),
            (None, None) => None,
        };
        Ok(Guard { metrics, keep_privileges: self.keep_privileges })
    }
}

fn metrics_address(name: &str, text: &str, remote: bool) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("{name}: '{text}' is no address with a port: give 127.0.0.1:9464 or [::1]:9464")
    })?;
    if address.ip().is_loopback() || remote {
        return Ok(address);
    }
    Err(format!(
        "{name}: {address} can be reached from other hosts, and nobody is asked who he is: give a loopback address, or \
         say --metrics-remote too"
    ))
}

#[cfg(test)]
mod tests {
    use super::metrics_address;

    #[test]
    fn only_loopback_unless_it_is_said_twice() {
        for text in ["127.0.0.1:9464", "127.9.9.9:1", "[::1]:9464"] {
            assert!(metrics_address("--metrics", text, false).is_ok(), "{text}");
        }
        for text in ["0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464"] {
            let error = metrics_address("--metrics", text, false).expect_err(text);
            assert!(error.contains("--metrics-remote"), "{error}");
            assert!(metrics_address("--metrics", text, true).is_ok(), "{text}");
        }
        for text in ["9464", "localhost:9464", "127.0.0.1", ""] {
            assert!(
                metrics_address("metrics", text, true).expect_err(text).contains("is no address with a port")
            );
        }
    }
}
