//! `[capture]`: when data is captured, and what of it is kept.

use serde::Deserialize;

use super::{FilePart, optional};
use crate::args::check_duration_in;
use crate::protocol::capture::Capture as Kept;
use crate::source::window::parse_ratio;
use dprof_common::settings::{Protocols, WINDOW_NS, parse_protocols};
use dprof_common::units::parse_duration;

/// Keys of the section.
pub(super) const KEYS: &[&str] = &["duty_cycle", "window", "alone", "values", "keys", "protocols"];

/// What the section says; overridden by the options of the same meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Capture {
    /// `capture.duty_cycle`
    pub ratio: Option<f64>,
    /// `capture.window`
    pub window_ns: Option<u64>,
    /// `capture.alone`
    pub alone: bool,
    /// `capture.values` and `capture.keys`
    pub kept: Kept,
    /// `capture.protocols`
    pub protocols: Protocols,
}

/// The section as TOML has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FileCapture {
    duty_cycle: Option<FilePart>,
    window: Option<String>,
    alone: bool,
    values: bool,
    keys: Option<String>,
    protocols: Option<FileNames>,
}

/// Names: a list, or text with commas between.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FileNames {
    List(Vec<String>),
    Text(String),
}

pub(super) fn check_capture(file: &FileCapture) -> Result<Capture, String> {
    let ratio = file.duty_cycle.as_ref().map(FilePart::to_text);
    let keys = optional("capture.keys", file.keys.as_deref(), str::parse)?.unwrap_or_default();
    let protocols = file.protocols.as_ref().map(|names| match names {
        FileNames::List(names) => names.join(","),
        FileNames::Text(text) => text.clone(),
    });
    Ok(Capture {
        protocols: optional("capture.protocols", protocols.as_deref(), parse_protocols)?.unwrap_or_default(),
        ratio: optional("capture.duty_cycle", ratio.as_deref(), parse_ratio)?,
        window_ns: optional("capture.window", file.window.as_deref(), parse_duration)?
            .map(|ns| check_duration_in("capture.window", ns, WINDOW_NS))
            .transpose()?,
        alone: file.alone,
        kept: Kept { values: file.values, keys },
    })
}
