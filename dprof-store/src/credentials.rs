//! How to log in to a store: user, password and TLS, from a file or from the environment.
//!
//! What a reader would get wrong: nothing of it is ever in a store's URL or in an argument, which `ps`, logs and
//! recordings show; so [`Credentials`] prints no secret, and a URL that holds one is refused without being repeated.
//!
//! ```toml
//! user = "dprof"
//! password = "…"
//! [tls]
//! ca = "/etc/dprof/ca.pem"
//! certificate = "/etc/dprof/agent.pem"
//! key = "/etc/dprof/agent.key"
//! verify_host = true
//! ```

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::StoreError;
use crate::sqlite::effective_uid;

/// Names the file when no option does.
pub(crate) const FILE_VARIABLE: &str = "DPROF_STORE_CREDENTIALS";
/// Variables that say what the file does not.
const USER_VARIABLE: &str = "DPROF_STORE_USER";
const PASSWORD_VARIABLE: &str = "DPROF_STORE_PASSWORD";
const CA_VARIABLE: &str = "DPROF_STORE_TLS_CA";
const CERTIFICATE_VARIABLE: &str = "DPROF_STORE_TLS_CERTIFICATE";
const KEY_VARIABLE: &str = "DPROF_STORE_TLS_KEY";
/// A larger file holds no credentials.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// The group may read, others nothing.
const FORBIDDEN_MODE: u32 = 0o027;

/// Credentials, checked; empty = none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User and password; [`None`]: the store asks for neither.
    pub(crate) login: Option<(String, String)>,
    /// TLS; [`None`]: in the clear.
    pub(crate) tls: Option<Tls>,
}

/// The TLS set-up, read once: later the process may have given up the right to read it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Certificates of those who may sign the store's.
    pub(crate) ca: Pem,
    /// This client's certificate chain and private key.
    pub(crate) client: Option<(Pem, Pem)>,
    /// Whether a node's certificate must name the node's address.
    pub(crate) verify_host: bool,
}

/// A file in PEM form and where it was.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pem {
    pub(crate) path: PathBuf,
    pub(crate) text: Vec<u8>,
}

impl Pem {
    fn read(path: PathBuf) -> Result<Self, StoreError> {
        match fs::read(&path) {
            Ok(text) => Ok(Self { path, text }),
            Err(error) => Err(StoreError::Credentials(format!("cannot read {}: {error}", path.display()))),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.login.as_ref().map(|(user, _)| user);
        let ca = self.tls.as_ref().map(|tls| &tls.ca.path);
        f.debug_struct("Credentials").field("user", &user).field("ca", &ca).finish_non_exhaustive()
    }
}

/// The file as TOML has it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    user: Option<String>,
    password: Option<String>,
    tls: Option<FileTls>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTls {
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    verify_host: Option<bool>,
}

impl Credentials {
    /// Reads `path`, else the file that the environment names, and the environment for what the file does not say.
    pub fn read(path: Option<&Path>) -> Result<Self, StoreError> {
        let named = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = match path.or(named.as_deref()) {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::of(file, &variable)
    }

    fn of(file: File, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let login = match (
            file.user.or_else(|| variable(USER_VARIABLE)),
            file.password.or_else(|| variable(PASSWORD_VARIABLE)),
        ) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(_), None) => return Err(incomplete("a user needs a password", PASSWORD_VARIABLE)),
            (None, Some(_)) => return Err(incomplete("a password needs a user", USER_VARIABLE)),
        };
        let tls = file.tls.unwrap_or_default();
        let path = |given: Option<PathBuf>, name| given.or_else(|| variable(name).map(PathBuf::from));
        let ca = path(tls.ca, CA_VARIABLE);
        let client = match (path(tls.certificate, CERTIFICATE_VARIABLE), path(tls.key, KEY_VARIABLE)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(incomplete("a certificate needs its key", KEY_VARIABLE)),
            (None, Some(_)) => return Err(incomplete("a key needs its certificate", CERTIFICATE_VARIABLE)),
        };
        let tls = match (ca, client) {
            (Some(ca), client) => Some(Tls {
                ca: Pem::read(ca)?,
                client: match client {
                    None => None,
                    Some((certificate, key)) => {
                        check_mode(&key)?;
                        Some((Pem::read(certificate)?, Pem::read(key)?))
                    }
                },
                verify_host: tls.verify_host.unwrap_or(true),
            }),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(incomplete("TLS needs the authority that signs the store's", CA_VARIABLE));
            }
        };
        if let Some(tls) = &tls {
            // Now, while somebody looks.
            crate::cassandra::check_tls(tls)?;
        }
        Ok(Self { login, tls })
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.login.is_none() && self.tls.is_none()
    }

    /// Whether the password crosses the network as it is.
    pub const fn is_in_the_clear(&self) -> bool {
        self.login.is_some() && self.tls.is_none()
    }

    /// User and password, for those who log in and for those who keep them out of what they write.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

fn incomplete(what: &str, variable: &str) -> StoreError {
    StoreError::Credentials(format!("{what}: name it in the file too, or set {variable}"))
}

/// Never repeats what is in the file.
fn read_file(path: &Path) -> Result<File, StoreError> {
    let shown = path.display();
    check_mode(path)?;
    let cannot_read =
        |error: std::io::Error| StoreError::Credentials(format!("cannot read {shown}: {error}"));
    if fs::metadata(path).map_err(cannot_read)?.len() > FILE_BYTES_MAX {
        return Err(StoreError::Credentials(format!("{shown} is too long to hold credentials")));
    }
    let text = fs::read_to_string(path).map_err(cannot_read)?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        StoreError::Credentials(format!(
            "{shown}, line {line}: not understood; it holds user, password and, under [tls], ca, certificate, key \
             and verify_host"
        ))
    })
}

/// A secret that others can read, or that others gave us, is none.
fn check_mode(path: &Path) -> Result<(), StoreError> {
    let shown = path.display();
    let meta = fs::metadata(path)
        .map_err(|error| StoreError::Credentials(format!("cannot read {shown}: {error}")))?;
    if !meta.is_file() {
        return Err(StoreError::Credentials(format!("{shown} is not a file")));
    }
    if meta.mode() & FORBIDDEN_MODE != 0 {
        return Err(StoreError::Credentials(format!(
            "{shown} has mode {:04o}, others could read or change it: chmod 0600 (or 0640) {shown}",
            meta.mode() & 0o7777
        )));
    }
    if ![0, effective_uid()].contains(&meta.uid()) {
        return Err(StoreError::Credentials(format!(
            "{shown} belongs to user {}: chown it to root or to the user who runs this",
            meta.uid()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const MARKER: &str = "marker-5f2c";

    fn parsed(text: &str) -> File {
        toml::from_str(text).expect("valid")
    }

    fn written(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).expect("is ours");
        file
    }

    #[track_caller]
    fn check_refused(text: &str, mode: u32, expected: &str) {
        let file = written(text, mode);
        let error = read_file(file.path())
            .and_then(|file| Credentials::of(file, &|_| None))
            .expect_err("refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(MARKER) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let text = format!("user = \"u\"\npassword = \"{MARKER}\"");
        for mode in [0o644, 0o660, 0o604, 0o666] {
            check_refused(&text, mode, "others could read or change it: chmod 0600");
        }
        for mode in [0o600, 0o400, 0o640, 0o440] {
            let file = written(&text, mode);
            let read = read_file(file.path()).and_then(|file| Credentials::of(file, &|_| None));
            assert_eq!(read.expect("allowed").login(), Some(("u", MARKER)));
        }
    }

    #[test]
    fn errors_name_the_line_and_never_what_is_in_it() {
        check_refused(&format!("password = {MARKER}"), 0o600, "line 1: not understood");
        check_refused(&format!("user = \"u\"\npasswort = \"{MARKER}\""), 0o600, "line 2: not understood");
        check_refused(&format!("user = \"u\"\npassword = [\"{MARKER}\"]"), 0o600, "line 2");
        check_refused(&format!("password = \"{MARKER}\""), 0o600, "a password needs a user");
        check_refused("user = \"u\"", 0o600, "set DPROF_STORE_PASSWORD");
        check_refused("[tls]\ncertificate = \"c\"", 0o600, "a certificate needs its key");
        check_refused("[tls]\nkey = \"k\"", 0o600, "a key needs its certificate");
        check_refused("[tls]\ncertificate = \"c\"\nkey = \"k\"", 0o600, "set DPROF_STORE_TLS_CA");
    }

    #[test]
    fn nothing_of_it_is_printed_by_accident() {
        let file = parsed(&format!("user = \"u\"\npassword = \"{MARKER}\""));
        let credentials = Credentials::of(file, &|_| None).expect("valid");
        let shown = format!("{credentials:?} {credentials:#?}");
        assert!(shown.contains("\"u\"") && !shown.contains(MARKER), "{shown}");
        assert!(credentials.is_in_the_clear());
    }

    #[test]
    fn the_environment_says_what_the_file_does_not() {
        let variable = |name: &str| match name {
            USER_VARIABLE => Some("other".to_owned()),
            PASSWORD_VARIABLE => Some(MARKER.to_owned()),
            _ => None,
        };
        let credentials = Credentials::of(parsed("user = \"u\""), &variable).expect("complete");
        assert_eq!(credentials.login, Some(("u".to_owned(), MARKER.to_owned())));
        assert!(Credentials::of(File::default(), &|_| None).expect("none").is_empty());
    }

    #[test]
    fn a_private_key_is_checked_like_a_password() {
        let (ca, key) = (written("no certificate", 0o644), written(MARKER, 0o644));
        let tls = |key: &tempfile::NamedTempFile| {
            let (ca, key) = (ca.path().display(), key.path().display());
            format!("[tls]\nca = \"{ca}\"\ncertificate = \"{ca}\"\nkey = \"{key}\"")
        };
        check_refused(&tls(&key), 0o600, "has mode 0644");
        // Well kept, but no key.
        check_refused(&tls(&written(MARKER, 0o600)), 0o600, "no certificate in PEM form");
        check_refused("[tls]\nca = \"/no/such/ca\"", 0o600, "cannot read /no/such/ca");
    }
}
