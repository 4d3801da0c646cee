//! Results into text: tables and trees for people, JSON for programs.

pub(crate) mod graph;
pub(crate) mod json;
pub(crate) mod rows;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod waterfall;

use std::io::IsTerminal;

use crate::args::ColorChoice;

/// Narrower than this nothing is legible: lay out for it and let the terminal wrap.
const WIDTH_MIN: usize = 40;

/// What the output may look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Columns; `None` = a file or a pipe: nothing is cut.
    pub(crate) width: Option<usize>,
    /// Lines of the terminal; `None` = a file or a pipe, which is not redrawn.
    pub(crate) height: Option<usize>,
    /// Whether to colour.
    pub(crate) colour: bool,
    /// Whether characters beyond ASCII can be shown.
    pub(crate) unicode: bool,
}

impl Screen {
    /// The screen behind stdout: `COLUMNS`, else the terminal's size; colours on a terminal without `NO_COLOR`.
    pub(crate) fn of_stdout(color: ColorChoice) -> Self {
        let stdout = std::io::stdout();
        let width = std::env::var("COLUMNS")
            .ok()
            .and_then(|columns| columns.parse::<usize>().ok())
            .filter(|columns| *columns > 0)
            .or_else(|| terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0)))
            .filter(|width| *width > 0)
            .map(|width| width.max(WIDTH_MIN));
        let height = terminal_size::terminal_size_of(&stdout).map(|(_, height)| usize::from(height.0));
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => stdout.is_terminal() && !no_color && !dumb,
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Self { width, height, colour, unicode: unicode_locale(locale.as_deref()) }
    }
}

/// Whether a person may be looking at stderr, on a screen that can redraw a line.
pub(crate) fn is_watched() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Only a locale that names another character set forbids Unicode: without any (services, containers) UTF-8 is
/// what terminals speak today.
fn unicode_locale(locale: Option<&str>) -> bool {
    locale.is_none_or(|locale| match locale.split_once('.') {
        Some((_, charset)) => charset.to_ascii_lowercase().replace('-', "").starts_with("utf8"),
        None => !matches!(locale, "C" | "POSIX"),
    })
}

/// Colours by meaning, so that a table and a bar agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Headings.
    Bold,
    /// Of less interest.
    Dim,
    /// Failures.
    Red,
    /// Queues, doubts.
    Yellow,
    /// Service.
    Green,
    /// Network.
    Blue,
    /// Streaming.
    Cyan,
    /// Unknown remote time.
    Magenta,
}

impl Tone {
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Red => Some("31"),
            Self::Green => Some("32"),
            Self::Yellow => Some("33"),
            Self::Blue => Some("34"),
            Self::Magenta => Some("35"),
            Self::Cyan => Some("36"),
        }
    }

    /// `text` in this tone.
    pub(crate) fn paint(self, colour: bool, text: &str) -> String {
        match self.code().filter(|_| colour && !text.is_empty()) {
            Some(code) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unicode_unless_the_locale_says_otherwise() {
        for (locale, unicode) in [
            (None, true),
            (Some("en_GB.UTF-8"), true),
            (Some("C.utf8"), true),
            (Some("C"), false),
            (Some("POSIX"), false),
            (Some("de_DE.ISO-8859-1"), false),
        ] {
            assert_eq!(unicode_locale(locale), unicode, "{locale:?}");
        }
    }

    #[test]
    fn colours_only_when_allowed() {
        assert_eq!(Tone::Red.paint(false, "x"), "x");
        assert_eq!(Tone::Red.paint(true, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(Tone::Plain.paint(true, "x"), "x");
    }
}
