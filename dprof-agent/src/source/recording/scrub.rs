//! Takes the agent's own password out of what it records: its connection to the store is watched at the store's end
//! when both are on one host.
//!
//! What a reader would get wrong: this is no redaction of the application's secrets (that is
//! [`redact`](crate::source::redact)); it holds for unmasked recordings too.

use dprof_store::Credentials;
use memchr::memmem;

/// What stands in for each byte.
const FILLER: u8 = b'?';

/// Finds one login.
#[derive(Debug)]
pub struct Scrub {
    login: memmem::Finder<'static>,
    /// Where the password begins in it.
    password_at: usize,
    record: Vec<u8>,
}

impl Scrub {
    /// `None` when there is no password.
    pub fn of(credentials: &Credentials) -> Option<Self> {
        let (user, password) = credentials.login()?;
        // As it crosses the network: SASL PLAIN (RFC 4616) with an empty authorisation identity.
        let before = [&b"\0"[..], user.as_bytes(), b"\0"].concat();
        let login = [&before, password.as_bytes()].concat();
        let login = memmem::Finder::new(&login).into_owned();
        Some(Self { login, password_at: before.len(), record: Vec::new() })
    }

    /// The record without the password.
    pub(super) fn clean<'a>(&'a mut self, record: &'a [u8]) -> &'a [u8] {
        if self.login.find(record).is_none() {
            return record;
        }
        let login_bytes = self.login.needle().len();
        self.record.clear();
        self.record.extend_from_slice(record);
        for at in self.login.find_iter(record) {
            self.record[at + self.password_at..at + login_bytes].fill(FILLER);
        }
        &self.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrub(password: &str) -> Scrub {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("credentials");
        let text = format!("user = \"joe\"\npassword = \"{password}\"");
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        options
            .open(&file)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .expect("written");
        Scrub::of(&Credentials::read(Some(&file)).expect("credentials")).expect("a password")
    }

    #[test]
    fn a_login_loses_its_password_and_nothing_else_changes() {
        let mut scrub = scrub("hush");
        for (record, expected) in [
            (&b"\x04\0\0\x0e\0joe\0hush"[..], &b"\x04\0\0\x0e\0joe\0????"[..]),
            (b"\0joe\0hush\0joe\0hush.", b"\0joe\0????\0joe\0????."),
            (b"hush, joe", b"hush, joe"),
            (b"\0joe\0hus", b"\0joe\0hus"),
            (b"", b""),
        ] {
            assert_eq!(scrub.clean(record), expected);
        }
        assert!(Scrub::of(&Credentials::default()).is_none());
    }
}
