//! Whom this agent tells: those that it was given, and those that the store's table of agents names.
//!
//! What a reader would get wrong: a word goes to whoever watches an address, and that may be several: a container's
//! address comes again on another host. Telling one too many costs 40 bytes, telling one too few a part of a trace.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use dprof_common::model::RunId;
use rustc_hash::FxHashSet;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::frame::Secret;
use super::peer::{self, Waiting, Whom};
use super::{PEERS_MAX, QUEUE_MAX, Shared, WordCounters, count};
use crate::keep::{Reach, Word};

/// An agent that the table names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// Its host.
    pub host: String,
    /// Its run.
    pub run: RunId,
    /// Where it listens, the likeliest first.
    pub listens: Vec<SocketAddr>,
    /// Addresses of the sockets that it watches.
    pub watches: Vec<IpAddr>,
}

#[derive(Debug)]
struct Told {
    run: Option<RunId>,
    listens: Vec<SocketAddr>,
    /// By an option: it stays, whatever the table says.
    is_given: bool,
    watches: FxHashSet<IpAddr>,
    words: mpsc::Sender<Waiting>,
    is_there: Arc<AtomicBool>,
}

/// Everybody who is told.
#[derive(Debug)]
pub(super) struct Directory {
    told: RwLock<Vec<Told>>,
    own: RunId,
    secret: Secret,
    counters: Arc<Shared>,
    runtime: Handle,
}

impl Directory {
    /// One with these, who are told from now on.
    pub(super) fn new(
        given: &[SocketAddr],
        own: RunId,
        secret: Secret,
        counters: Arc<Shared>,
        runtime: Handle,
    ) -> Self {
        let mut directory = Self { told: RwLock::default(), own, secret, counters, runtime };
        let told = given.iter().map(|address| {
            let whom = Whom { name: format!("at {address}"), listens: vec![*address], run: None, own };
            directory.tell(whom, true, FxHashSet::from_iter([address.ip()]))
        });
        directory.told = RwLock::new(told.collect());
        directory
    }

    fn tell(&self, whom: Whom, is_given: bool, watches: FxHashSet<IpAddr>) -> Told {
        let (words, waiting) = mpsc::channel(QUEUE_MAX);
        let (run, listens) = (whom.run, whom.listens.clone());
        let is_there = Arc::new(AtomicBool::new(false));
        let presence = Arc::clone(&is_there);
        let counters = Arc::clone(&self.counters);
        self.runtime.spawn(peer::tell(whom, self.secret.clone(), waiting, presence, counters));
        Told { run, listens, is_given, watches, words, is_there }
    }

    /// Tells whoever watches `to`, or everybody if nobody is known to.
    pub(super) fn say(&self, to: IpAddr, word: Word) {
        let told = self.told.read().unwrap_or_else(PoisonError::into_inner);
        let is_known = told.iter().any(|peer| peer.watches.contains(&to));
        for peer in told.iter().filter(|peer| !is_known || peer.watches.contains(&to)) {
            if peer.words.try_send(Waiting::new(word)).is_err() {
                count(&self.counters.unsent, 1);
            }
        }
    }

    /// These are all that the table names: new ones are told from now on, and those that are gone no more. One that
    /// was given is known by the address that it was given with.
    pub(super) fn meet(&self, met: &[Met]) {
        let mut told = self.told.write().unwrap_or_else(PoisonError::into_inner);
        told.retain(|peer| peer.is_given || met.iter().any(|met| peer.is(met)));
        for met in met.iter().filter(|met| met.run != self.own && !met.listens.is_empty()) {
            let watches = met.watches.iter().copied();
            if let Some(known) = told.iter_mut().find(|peer| peer.is(met)) {
                if known.is_given {
                    known.watches.extend(watches);
                } else {
                    known.watches = watches.collect();
                }
            } else if told.len() < PEERS_MAX {
                let listens = met.listens.clone();
                let whom =
                    Whom { name: format!("of {}", met.host), listens, run: Some(met.run), own: self.own };
                log::info!("the agent {} is told about traces that are kept", whom.name);
                told.push(self.tell(whom, false, watches.collect()));
            }
        }
    }

    /// How many are told.
    pub(super) fn len(&self) -> usize {
        self.told.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Told {
    fn is(&self, met: &Met) -> bool {
        if self.is_given {
            self.listens.iter().any(|address| met.listens.contains(address))
        } else {
            self.run == Some(met.run) && self.listens == met.listens
        }
    }
}

/// The way to say who there is, and to ask where this agent listens.
#[derive(Clone, Debug)]
pub struct Meeting {
    pub(super) directory: Arc<Directory>,
    pub(super) hears: Vec<SocketAddr>,
}

impl Reach for Meeting {
    fn reaches(&self, address: IpAddr) -> bool {
        let told = self.directory.told.read().unwrap_or_else(PoisonError::into_inner);
        let mut watching = told.iter().filter(|peer| peer.watches.contains(&address)).peekable();
        watching.peek().is_some() && watching.all(|peer| peer.is_there.load(Ordering::Relaxed))
    }
}

impl Meeting {
    /// These are all other agents of the fleet.
    pub fn meet(&self, met: &[Met]) {
        self.directory.meet(met);
    }

    /// What was said and heard so far.
    pub fn counters(&self) -> WordCounters {
        self.directory.counters.read()
    }

    /// How many agents are told.
    pub fn tells(&self) -> usize {
        self.directory.len()
    }

    /// Where others reach this agent, the likeliest first.
    pub fn hears(&self) -> &[SocketAddr] {
        &self.hears
    }
}
