//! The tree's own rules, as far as a program can hold them: tracked files in, what breaks a rule out.
//!
//! What a reader would get wrong: a rule is here only if the code can be seen to break it. What needs judgement
//! (names, comments, size of functions) is for the reader of a change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A source file is split by meaning before it is longer than this, tests not counted.
const LINES_MAX: usize = 500;

/// Files that are longer than that and wait to be split, with the lines that they may have: they only get shorter.
const LONGER: [(&str, usize); 5] = [
    ("dprof-agent/src/args.rs", 540),
    ("dprof-agent/src/link/table.rs", 560),
    ("dprof-agent/src/stream/socket.rs", 510),
    ("dprof-store/src/cassandra/pack.rs", 530),
    ("dprof-store/src/cassandra/reader.rs", 530),
];

/// A recording of our own test traffic is at most this large, bytes.
const DATA_BYTES_MAX: u64 = 256 * 1024;

/// Crates that one place alone may import, so that what stands on them can be found and exchanged.
const CONFINED: [(&str, &[&str]); 5] = [
    ("aya", &["dprof-agent/src/source/"]),
    ("aya_log", &["dprof-agent/src/source/"]),
    ("aya_ebpf", &["dprof-ebpf/src/"]),
    ("rusqlite", &["dprof-store/src/sqlite/"]),
    ("scylla", &["dprof-store/src/cassandra/", "xtask/src/cassandra"]),
];

/// Hosts that the text of a tracked file may name: what a reader can look up, and names reserved for examples.
const HOSTS: [&str; 12] = [
    "rustup.rs",
    "doc.rust-lang.org",
    "docs.rs",
    "opensource.org",
    "opentelemetry.io",
    "rfc-editor.org",
    "w3.org",
    "kernel.org",
    "apache.org",
    "redis.io",
    "example.com",
    "localhost",
];

/// What breaks a rule, a line each: place and remedy.
pub(crate) fn look(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let data_readme = fs::read_to_string(root.join("tests/data/README.md")).unwrap_or_default();
    for file in tracked(root)? {
        let name = file.to_string_lossy().into_owned();
        // Its tests are samples of what breaks a rule.
        if name == "xtask/src/tidy.rs" {
            continue;
        }
        let path = root.join(&file);
        // Deleted, and not yet committed.
        let Ok(bytes) = fs::read(&path) else { continue };
        if let Some(recording) = name.strip_prefix("tests/data/") {
            if bytes.len() as u64 > DATA_BYTES_MAX {
                found.push(format!("{name}: {} bytes, more than {DATA_BYTES_MAX}", bytes.len()));
            }
            if recording != "README.md" && !data_readme.contains(recording) {
                found.push(format!("{name}: tests/data/README.md does not say how it was made"));
            }
        }
        // Generated, and what a licence says is not ours to change.
        if name.ends_with("Cargo.lock") || name.starts_with("LICENSE") {
            continue;
        }
        if let Ok(text) = String::from_utf8(bytes) {
            found.extend(of_text(&name, &text).into_iter().map(|line| format!("{name}:{line}")));
        }
    }
    Ok(found)
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("start git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

/// What breaks a rule in one text: `LINE: what`.
fn of_text(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is = |extension: &str| Path::new(name).extension().is_some_and(|found| found == extension);
    let is_rust = is("rs");
    if is_rust {
        if !text.starts_with("//!") {
            found.push("1: a module opens with //! and what it turns into what".to_owned());
        }
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        let allowed =
            LONGER.into_iter().find(|(long, _)| *long == name).map_or(LINES_MAX, |(_, lines)| lines);
        if lines > allowed && !is_test(name) {
            found.push(format!("{lines}: more than {allowed} lines before the tests: split by meaning"));
        }
    }
    for (number, line) in text.lines().enumerate().map(|(idx, line)| (idx + 1, line)) {
        if line.ends_with([' ', '\t']) && !is("md") {
            found.push(format!("{number}: white space at the end"));
        }
        if let Some(host) = foreign_host(line) {
            found.push(format!("{number}: names the host {host}"));
        }
        // A path of the machine on which this was written says nothing to a reader, and breaks elsewhere.
        if let Some(path) = ["/root/", "/home/", "/Users/"].into_iter().find(|path| line.contains(path)) {
            found.push(format!("{number}: names {path}: say ~ or take it from a variable"));
        }
        if is_rust && let Some(krate) = confined(name, line) {
            found.push(format!("{number}: {krate} may not be imported here"));
        }
    }
    found
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/")
        || name.ends_with("/conformance.rs")
        || name.contains("/tests/")
        || name.contains("/tests.rs")
}

/// The crate that `line` imports and `name` may not.
fn confined(name: &str, line: &str) -> Option<&'static str> {
    let code = line.trim_start();
    if code.starts_with("//") {
        return None;
    }
    CONFINED
        .into_iter()
        .find(|(krate, places)| {
            !places.iter().any(|place| name.starts_with(place))
                && code.match_indices(krate).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    code[at + krate.len()..].starts_with("::")
                        && !before.is_some_and(|c| c.is_alphanumeric() || "_:\"`".contains(c))
                })
        })
        .map(|(krate, _)| krate)
}

/// The first host in a URL of `line` that is neither an address nor in [`HOSTS`].
fn foreign_host(line: &str) -> Option<&str> {
    let urls = line.match_indices("http").filter_map(|(at, _)| {
        let rest = &line[at..];
        rest.strip_prefix("https://").or_else(|| rest.strip_prefix("http://"))
    });
    urls.map(|rest| {
        rest.split(|c: char| !(c.is_ascii_alphanumeric() || "-.".contains(c))).next().unwrap_or("")
    })
    .map(|host| host.trim_end_matches('.'))
    .find(|host| {
        // One word is a name of a test's own, and numbers are an address.
        host.contains('.')
            && host.contains(|c: char| c.is_ascii_alphabetic())
            && !host.ends_with(".example")
            && !HOSTS
                .iter()
                .any(|known| host.strip_suffix(known).is_some_and(|sub| sub.is_empty() || sub.ends_with('.')))
    })
}

#[cfg(test)]
mod tests {
    use super::{look, of_text};
    use crate::paths;

    #[track_caller]
    fn check(name: &str, text: &str, expected: &[&str]) {
        let found = of_text(name, text);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn the_tree_keeps_its_rules() {
        let found = look(&paths::root()).expect("git lists the tree");
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn a_module_says_what_it_is() {
        check("a/src/b.rs", "use std::fs;\n", &["opens with //!"]);
        check("a/src/b.rs", "//! Bytes to words.\n", &[]);
    }

    #[test]
    fn a_confined_crate_stays_where_it_is() {
        check("dprof-cli/src/load.rs", "//! x\nuse rusqlite::Connection;\n", &["rusqlite"]);
        check("dprof-cli/src/load.rs", "//! x\nlet c = rusqlite::Connection::open();\n", &["rusqlite"]);
        check("dprof-store/src/sqlite/run.rs", "//! x\nuse rusqlite::Connection;\n", &[]);
        check("dprof-cli/src/load.rs", "//! x\n// rusqlite::Connection\nuse my_rusqlite::X;\n", &[]);
    }

    #[test]
    fn a_file_is_split_before_it_is_too_long_but_tests_are_not_counted() {
        let long = format!("//! x\n{}", "let a = 1;\n".repeat(500));
        check("a/src/b.rs", &long, &["501: more than 500"]);
        check("a/src/tests/b.rs", &long, &[]);
        let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "let a = 1;\n".repeat(600));
        check("a/src/b.rs", &tested, &[]);
    }

    #[test]
    fn only_hosts_that_help_a_reader_are_named() {
        check("README.md", "see https://rustup.rs and http://127.0.0.1:80/ and http://web/a\n", &[]);
        check("README.md", "from https://packages.somewhere.net/pool\n", &["packages.somewhere.net"]);
        check("README.md", "https://notrustup.rs.evil.net\n", &["notrustup.rs.evil.net"]);
    }

    #[test]
    fn no_path_of_a_machine_is_named() {
        check("README.md", "run /home/me/x\n", &["/home/"]);
    }
}
