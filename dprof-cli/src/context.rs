//! What every command is given, and how it may fail.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use dprof_store::control::{Control, open_control};
use dprof_store::{Reader, StoreError, StoreUrl};

use crate::explain::{Explained, Log};
use crate::progress::Progress;
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
    /// Exit code 4: a condition given to `check` does not hold.
    Violated(String),
    /// Output could not be written. Exit code 1; a closed pipe is no failure.
    Output(io::Error),
}

impl Failure {
    /// 0 is success, also when a window is empty; 1 an error; 2 wrong usage; 3 a trace, service or operation
    /// that was asked for by name is unknown; 4 a condition given to `check` that does not hold.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Error(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Violated(_) => 4,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(message)
            | Self::Usage(message)
            | Self::NotFound(message)
            | Self::Violated(message) => {
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
            StoreError::BadUrl(_) | StoreError::SecretInUrl => Self::Usage(error.to_string()),
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
    /// Where to note what is read, if that was asked for.
    pub(crate) explain: Option<Arc<Log>>,
    /// Whether a long read may draw a bar on stderr.
    pub(crate) progress: bool,
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
        let reader: Arc<dyn Reader> = match &self.store {
            Store::Url(url) => Arc::from(dprof_store::open_reader(url).await?),
            #[cfg(test)]
            Store::Ready(reader) => Arc::clone(reader),
        };
        Ok(match &self.explain {
            Some(log) => Arc::new(Explained::new(reader, Arc::clone(log))),
            None => reader,
        })
    }

    /// Opens the store's control side; `create`: an embedded store that was never configured can be, from now on.
    pub(crate) async fn control(&self, create: bool) -> Result<Box<dyn Control>, Failure> {
        match &self.store {
            Store::Url(url) => Ok(open_control(url, create).await?),
            #[cfg(test)]
            Store::Ready(_) => Err(Failure::Usage("this store has no URL".to_owned())),
        }
    }

    /// A command line to type next, on the store that was asked: the default one needs no naming.
    pub(crate) fn command(&self, arguments: &str) -> String {
        match &self.store {
            Store::Url(url) => command_on(url, arguments),
            #[cfg(test)]
            Store::Ready(_) => format!("dprof-cli {arguments}"),
        }
    }

    /// Shows how far a read is, if it is long and someone may look.
    pub(crate) fn progress(&self, label: &'static str) -> Progress {
        Progress::new(self.progress, label)
    }

    /// Says what was read, if that was asked for.
    pub(crate) fn say_what_was_read(&mut self) {
        if let Some(log) = self.explain.take() {
            for line in log.lines() {
                self.say(&line);
            }
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

/// A command line that asks `store`.
pub(crate) fn command_on(store: &StoreUrl, arguments: &str) -> String {
    let store = store.to_string();
    if store == dprof_store::DEFAULT_STORE {
        format!("dprof-cli {arguments}")
    } else {
        format!("dprof-cli --store {} {arguments}", quoted(&store))
    }
}

/// A word as a shell takes it: in quotes where it has to be.
fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:._-,@%+=".contains(c);
    if word.chars().all(is_plain) {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', "'\\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_for_a_shell_where_they_have_to_be() {
        assert_eq!(quoted("sqlite:/var/lib/dprof"), "sqlite:/var/lib/dprof");
        assert_eq!(quoted("sqlite:/tmp/my store"), "'sqlite:/tmp/my store'");
        assert_eq!(quoted("sqlite:/tmp/it's"), "'sqlite:/tmp/it'\\''s'");
    }
}
