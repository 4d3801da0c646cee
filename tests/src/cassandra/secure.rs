//! Keys, keystores and credentials of a ring that asks for a password and for certificates at both ends.
//!
//! What a reader would get wrong: everything here is for tests, made anew with each ring and valid for days; the
//! stores' password stands in the node's configuration.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Options, address};
use crate::program::Program;
use crate::subject::find;

/// Password of the node's stores.
const STORE_PASSWORD: &str = "of-the-stores";
/// Making a key takes a fraction of a second on an idle machine.
const WITHIN: Duration = Duration::from_mins(1);
/// Days that certificates are valid for.
const DAYS: &str = "7";

/// Where a ring's keys lie.
#[derive(Clone, Debug)]
pub struct Keys(PathBuf);

impl Keys {
    /// Those in a folder.
    pub(super) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Makes an authority, the node's certificate and a client's, and credentials of the first user.
    pub(super) fn make(&self) -> Result<()> {
        let folder = &self.0;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority = ["req", "-x509", "-days", DAYS, "-subj", "/CN=dprof-test-authority"];
        self.openssl(&[&authority[..], &key, &["-keyout", "ca.key", "-out", "ca.pem"]].concat())?;
        for (name, extension) in [
            ("node", format!("basicConstraints=CA:FALSE\nsubjectAltName=IP:{}\n", address(1))),
            ("client", "basicConstraints=CA:FALSE\n".to_owned()),
        ] {
            let [private, request, certificate] = ["key", "csr", "pem"].map(|ext| format!("{name}.{ext}"));
            let subject = format!("/CN=dprof-test-{name}");
            let made = ["-keyout", private.as_str(), "-out", &request];
            self.openssl(&[&["req", "-subj", &subject][..], &key, &made].concat())?;
            fs::write(folder.join("extension"), extension)?;
            let sign =
                ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
            let made = ["-days", DAYS, "-extfile", "extension", "-out", &certificate];
            self.openssl(&[&sign[..], &made].concat())?;
        }
        let password = format!("pass:{STORE_PASSWORD}");
        let store = ["pkcs12", "-export", "-in", "node.pem", "-inkey", "node.key", "-name", "node"];
        self.openssl(&[&store[..], &["-passout", &password, "-out", "node.p12"]].concat())?;
        let mut keytool = Command::new(find("keytool"));
        keytool.args([
            "-importcert",
            "-noprompt",
            "-alias",
            "ca",
            "-file",
            "ca.pem",
            "-keystore",
            "trust.p12",
        ]);
        keytool.args(["-storetype", "PKCS12", "-storepass", STORE_PASSWORD]);
        self.run("keytool", keytool)?;
        self.write_credentials("credentials.toml", "cassandra", "cassandra")?;
        Ok(())
    }

    /// Writes a file for `--store-credentials`, mode 0600; its path.
    pub fn write_credentials(&self, name: &str, user: &str, password: &str) -> Result<PathBuf> {
        let folder = self.0.display();
        let text = format!(
            "user = \"{user}\"\npassword = \"{password}\"\n[tls]\nca = \"{folder}/ca.pem\"\n\
             certificate = \"{folder}/client.pem\"\nkey = \"{folder}/client.key\"\n"
        );
        let path = self.0.join(name);
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(path)
    }

    /// Credentials of the first user, who may do anything.
    pub fn credentials(&self) -> PathBuf {
        self.0.join("credentials.toml")
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(find("openssl"));
        command.args(arguments);
        self.run("openssl", command)
    }

    fn run(&self, name: &str, mut command: Command) -> Result<()> {
        command.current_dir(&self.0);
        Program::start(name, &self.0, &mut command)?
            .wait(WITHIN)?
            .success()
            .with_context(|| name.to_owned())?;
        Ok(())
    }

    /// Lines of `cassandra.yaml`.
    fn yaml(&self) -> String {
        let folder = self.0.display();
        format!(
            "authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
client_encryption_options:
  enabled: true
  optional: false
  keystore: {folder}/node.p12
  keystore_password: {STORE_PASSWORD}
  require_client_auth: true
  truststore: {folder}/trust.p12
  truststore_password: {STORE_PASSWORD}
"
        )
    }
}

/// Lines of `cassandra.yaml` that say who may connect, and how.
pub(super) fn yaml(folder: &Path, options: &Options) -> String {
    if options.secure {
        Keys::at(&keys_folder(folder)).yaml()
    } else {
        "authenticator: AllowAllAuthenticator\nauthorizer: AllowAllAuthorizer\n".to_owned()
    }
}

/// Beside the folders of the nodes.
pub(super) fn keys_folder(node_folder: &Path) -> PathBuf {
    node_folder.with_file_name("keys")
}
