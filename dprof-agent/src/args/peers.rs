//! Options that say which other agents are told and heard.

use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use crate::words::PORT_DEFAULT;

/// Whom to tell and hear; the secret is read at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// Agents to tell.
    pub peers: Vec<SocketAddr>,
    /// File with the secret that all of them know.
    pub secret: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct PeerArgs {
    /// Hear other agents on this address about traces that they keep [default port: 4717; with a store and without --peer:
    /// all addresses]
    #[arg(long, value_name = "ADDRESS", requires = "peer_secret", conflicts_with = "replay")]
    listen: Option<String>,
    /// Tell this agent about traces that are kept here; may be given many times [default port: 4717]
    #[arg(long = "peer", value_name = "ADDRESS", requires = "peer_secret", conflicts_with = "replay")]
    peers: Vec<String>,
    /// File with what all agents know, readable by its owner only; with a store it names the agents to tell
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    peer_secret: Option<PathBuf>,
}

impl PeerArgs {
    /// Whom to tell and hear; `None`: nobody.
    pub(super) fn options(&self, has_store: bool) -> Result<Option<Peers>, String> {
        let Some(secret) = self.peer_secret.clone() else { return Ok(None) };
        let mut listen = self.listen.as_deref().map(|text| address("--listen", text)).transpose()?;
        let peers: Vec<_> =
            self.peers.iter().map(|text| address("--peer", text)).collect::<Result<_, _>>()?;
        if listen.is_none() && peers.is_empty() {
            if !has_store {
                return Err("--peer-secret: give --listen, --peer or --store with it".to_owned());
            }
            listen = Some((Ipv6Addr::UNSPECIFIED, PORT_DEFAULT).into());
        }
        Ok(Some(Peers { listen, peers, secret }))
    }
}

/// `host:port`, or a host alone.
fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().or_else(|_| (text, PORT_DEFAULT).to_socket_addrs());
    found.as_mut().ok().and_then(Iterator::next).ok_or_else(|| {
        format!("{name}: '{text}' is no address: give 10.0.0.7, 10.0.0.7:4717 or a host's name")
    })
}
