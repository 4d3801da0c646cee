//! What a figure belongs to: machine, kernel, commit, and how busy the machine was.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::paths;

/// The machine now.
pub(super) fn describe() -> Value {
    json!({
        "cpu": cpu(),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": line("/proc/sys/kernel/osrelease"),
        "load_average": line("/proc/loadavg"),
        "commit": commit(),
    })
}

/// The same in one line, for above a table.
pub(super) fn line_of() -> String {
    let machine = describe();
    let text = |key: &str| machine[key].as_str().unwrap_or("?").to_owned();
    format!(
        "{} × {}, Linux {}, load {}, commit {}",
        machine["cpus"],
        text("cpu"),
        text("kernel"),
        text("load_average").split(' ').next().unwrap_or("?"),
        text("commit")
    )
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}

fn cpu() -> String {
    let text = line("/proc/cpuinfo");
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "?".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Short id; `+` when the working copy differs.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(paths::root()).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short", "HEAD"]) {
        Some(commit) => {
            let is_changed = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
            format!("{commit}{}", if is_changed { "+" } else { "" })
        }
        None => "?".to_owned(),
    }
}
