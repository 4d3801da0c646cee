//! Text that may be stored: bounded, printable, whatever the bytes were.

use std::fmt::Write as _;

use super::KeyRanges;
use super::capture::KeyCapture;
use super::hash::ContentHasher;

/// Longest statement that is kept, bytes. Enough to recognise a query; a span row stays small.
pub(super) const TEXT_BYTES_MAX: usize = 256;

/// Bytes of a value that are kept where values are: enough to recognise it, too few to rebuild a document.
pub(super) const VALUE_BYTES_MAX: usize = 64;

/// `#` and 16 hex digits.
const KEY_HASH_BYTES: usize = 17;

/// Stands for what was cut.
pub(super) const CUT: char = '…';

/// A statement under construction: words with one space between, bounded.
#[derive(Debug, Default)]
pub(super) struct Statement {
    text: String,
    keys: KeyRanges,
    full: bool,
}

impl Statement {
    /// Starts anew.
    #[inline]
    pub(super) fn begin(&mut self, word: &str) {
        self.text.clear();
        self.keys = KeyRanges::NONE;
        self.full = false;
        self.text.push_str(word);
    }

    /// Another word, made of printable ASCII.
    #[inline]
    pub(super) fn word(&mut self, word: &str) {
        if self.space(word.len()) {
            self.text.push_str(word);
        }
    }

    /// A key: its bytes as far as they are known, and whether that is all.
    #[inline]
    pub(super) fn key(&mut self, bytes: &[u8], whole: bool) {
        if self.space(bytes.len()) {
            let start = self.text.len();
            self.push(bytes, whole);
            self.keys.push(start, self.text.len());
        }
    }

    #[inline]
    fn push(&mut self, bytes: &[u8], whole: bool) {
        push_printable(&mut self.text, bytes);
        if !whole {
            self.text.push(CUT);
        }
    }

    /// A key that may not be shown: what is known of its bytes, and how long it is.
    pub(super) fn hashed_key(&mut self, bytes: &[u8], len: u64) {
        if self.space(KEY_HASH_BYTES) {
            let mut hasher = ContentHasher::new();
            hasher.update(bytes);
            hasher.number(len);
            let start = self.text.len();
            // Writing to a string cannot fail.
            let _ = write!(self.text, "#{:016x}", hasher.finish());
            self.keys.push(start, self.text.len());
        }
    }

    /// A whole key, as far as it may be shown.
    pub(super) fn captured_key(&mut self, bytes: &[u8], keys: KeyCapture) {
        match keys {
            KeyCapture::Plain => self.key(bytes, true),
            KeyCapture::Hash => self.hashed_key(bytes, bytes.len() as u64),
        }
    }

    /// A value that may be shown: its first bytes, and whether that is all.
    pub(super) fn value(&mut self, bytes: &[u8], whole: bool) {
        let kept = &bytes[..bytes.len().min(VALUE_BYTES_MAX)];
        if self.space(kept.len()) {
            self.push(kept, whole && kept.len() == bytes.len());
        }
    }

    #[inline]
    fn space(&mut self, more: usize) -> bool {
        if self.full {
            return false;
        }
        self.text.push(' ');
        if self.text.len() + more > TEXT_BYTES_MAX {
            self.text.push(CUT);
            self.full = true;
        }
        !self.full
    }

    /// The statement so far.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the keys are in it.
    pub(super) const fn keys(&self) -> KeyRanges {
        self.keys
    }

    /// The statement and its keys.
    pub(super) fn into_parts(self) -> (String, KeyRanges) {
        (self.text, self.keys)
    }
}

/// Appends bytes as text: printable UTF-8 as it is, `\n` as `\n`, everything else as `\xNN`.
pub(super) fn push_printable(text: &mut String, bytes: &[u8]) {
    if bytes.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\') {
        text.push_str(str::from_utf8(bytes).unwrap_or_default());
        return;
    }
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char == '\\' || char.is_control() {
                text.extend(char.escape_default());
            } else {
                text.push(char);
            }
        }
        for byte in chunk.invalid() {
            text.extend(std::ascii::escape_default(*byte).map(char::from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bounded_and_printable() {
        let mut statement = Statement::default();
        statement.begin("SET");
        statement.key(b"caf\xc3\xa9 \xff\0\n\\", true);
        statement.word("?");
        assert_eq!(statement.as_str(), "SET café \\xff\\u{0}\\n\\\\ ?");
        (0..1000).for_each(|_| statement.word("?"));
        assert!(statement.as_str().ends_with(" ? …"), "{}", statement.as_str());
        assert!(statement.as_str().len() <= TEXT_BYTES_MAX + 4);
    }
}
