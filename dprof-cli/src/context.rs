//! What every command is given, and how it may fail.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use dprof_store::{Reader, StoreError, StoreUrl};

use crate::render::Screen;

/// Why a command failed. The message is one line: cause and remedy.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Error(String),
    /// Exit code 2: the command was not understood.
    Usage(String),
    /// Exit code 3: the trace, service or operation asked for is not there.
    NotFound(String),
    /// Output could not be written. Exit code 1; a closed pipe is no failure.
    Output(io::Error),
}

impl Failure {
    /// 0 is success, also when a window is empty; 1 an error; 2 wrong usage; 3 a trace, service or operation
    /// that was asked for by name is unknown.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Error(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(message) | Self::Usage(message) | Self::NotFound(message) => {
                // One line, whatever the cause's own words were.
                for (idx, line) in message.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate()
                {
                    write!(f, "{}{line}", if idx == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
            Self::Output(error) => write!(f, "cannot write the output: {error}"),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Other(cause) => Self::Error(format!("{cause:#}")),
            StoreError::BadUrl(_) => Self::Usage(error.to_string()),
            other => Self::Error(other.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}

/// The store to ask.
pub(crate) enum Store {
    /// To be opened.
    Url(StoreUrl),
    /// Opened already.
    #[cfg(test)]
    Ready(Arc<dyn Reader>),
}

/// What every command is given.
pub(crate) struct Context<'a> {
    /// The store to ask.
    pub(crate) store: Store,
    /// What the output may look like.
    pub(crate) screen: Screen,
    /// When the command started.
    pub(crate) now_unix_ns: u64,
    /// Data.
    pub(crate) out: &'a mut dyn Write,
    /// Everything else.
    pub(crate) words: &'a mut dyn Write,
}

impl Context<'_> {
    /// Opens the store.
    pub(crate) async fn reader(&self) -> Result<Arc<dyn Reader>, Failure> {
        match &self.store {
            Store::Url(url) => Ok(Arc::from(dprof_store::open_reader(url).await?)),
            #[cfg(test)]
            Store::Ready(reader) => Ok(Arc::clone(reader)),
        }
    }

    /// Says a line to the person, not to the program that reads stdout. A closed stderr is ignored.
    pub(crate) fn say(&mut self, line: &str) {
        let _ = writeln!(self.words, "{line}");
    }

    /// Says why an answer may lack rows.
    pub(crate) fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            self.say(&format!("warning: {warning}"));
        }
    }
}
