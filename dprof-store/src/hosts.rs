//! Contact points of a ring, with what it takes to log in there.

use std::sync::Arc;

use crate::credentials::Credentials;

/// Contact points: names or addresses, with a port or without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    names: Vec<String>,
    credentials: Arc<Credentials>,
}

impl Hosts {
    /// The contact points.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How to log in.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Logs in with these from now on.
    pub fn log_in_with(&mut self, credentials: Credentials) {
        self.credentials = Arc::new(credentials);
    }
}

impl From<Vec<String>> for Hosts {
    /// Contact points that ask for nothing.
    fn from(names: Vec<String>) -> Self {
        Self { names, credentials: Arc::default() }
    }
}
