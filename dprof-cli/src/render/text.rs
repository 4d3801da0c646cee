//! Text that is safe and fits: names and statements come from other people's traffic.

use std::borrow::Cow;
use std::fmt::Write;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that `text` takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// `text` with control characters and direction overrides escaped: a key named by an attacker must not move the
/// cursor or hide a line.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => cleaned.push_str("\\n"),
            '\r' => cleaned.push_str("\\r"),
            '\t' => cleaned.push_str("\\t"),
            c if harmful(c) => {
                // Writing to a String does not fail.
                let _ = write!(cleaned, "\\u{{{:x}}}", u32::from(c));
            }
            c => cleaned.push(c),
        }
    }
    Cow::Owned(cleaned)
}

/// `text` in at most `columns`, its end replaced by `…` where it is cut.
pub(crate) fn fit(text: &str, columns: usize, unicode: bool) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let mark = if unicode { "…" } else { "." };
    let room = columns.saturating_sub(1);
    let mut cut = String::new();
    let mut used = 0;
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns > room {
            break;
        }
        used += columns;
        cut.push(c);
    }
    if columns > 0 {
        cut.push_str(mark);
    }
    Cow::Owned(cut)
}

/// `text` broken at spaces into lines of at most `columns`, those after the first with `indent` spaces before them. A
/// word that does not fit a line has one to itself, and is whole.
pub(crate) fn wrap(text: &str, columns: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let is_first_word = line.trim_start().is_empty();
        if !is_first_word && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !is_first_word {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// Appends `text` and spaces up to `columns`.
pub(crate) fn pad(line: &mut String, text: &str, columns: usize) {
    line.push_str(text);
    spaces(line, columns.saturating_sub(width(text)));
}

/// Appends `n` spaces.
pub(crate) fn spaces(line: &mut String, n: usize) {
    line.extend(std::iter::repeat_n(' ', n));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_in_names_are_shown_not_obeyed() {
        assert_eq!(clean("get a"), "get a");
        assert_eq!(clean("get \u{1b}[2Ja\n\u{202e}x\u{9b}"), "get \\u{1b}[2Ja\\n\\u{202e}x\\u{9b}");
    }

    #[test]
    fn text_is_cut_by_columns_not_by_bytes() {
        assert_eq!(fit("abc", 3, true), "abc");
        assert_eq!(fit("abcd", 3, true), "ab…");
        assert_eq!(fit("abcd", 3, false), "ab.");
        assert_eq!(fit("日本語", 5, true), "日本…");
        assert_eq!(fit("日本語", 4, true), "日…");
        assert_eq!(fit("abc", 0, true), "");
    }

    #[test]
    fn lines_are_broken_between_words_by_columns() {
        let check =
            |text: &str, columns, expected: &[&str]| assert_eq!(wrap(text, columns, 2), expected, "{text}");
        check("", 5, &[""]);
        check("ab cd", 5, &["ab cd"]);
        check("ab cde", 5, &["ab", "  cde"]);
        check("ab cd ef gh", 5, &["ab cd", "  ef", "  gh"]);
        check("日本 語", 6, &["日本", "  語"]);
        check("a longword b", 5, &["a", "  longword", "  b"]);
    }
}
