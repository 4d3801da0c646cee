//! Where a body ends: by length, by chunks, or with the connection (RFC 9112, section 6.3). Holes inside data are
//! counted off; a hole over a chunk's size line loses the boundary.

use crate::protocol::hash::ContentHasher;

/// Longest chunk extension, and longest trailer section, bytes.
const CHUNK_LINE_BYTES_MAX: u32 = 16 * 1024;

/// Hex digits of a chunk's size: 2^60 bytes.
const CHUNK_DIGITS_MAX: u8 = 15;

/// A body under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// This many bytes are left.
    Length(u64),
    /// All until the connection ends.
    Close,
    /// In the line with a chunk's size.
    Size {
        /// Size so far.
        size: u64,
        /// Digits of it.
        digits: u8,
        /// Bytes after the size.
        extension: u32,
        /// Whether the last byte was a carriage return.
        cr: bool,
    },
    /// In a chunk: this many bytes are left. `crlf`: lines of this body end so.
    Data {
        /// Data bytes left.
        left: u64,
        /// Whether the size line ended in CR LF.
        crlf: bool,
    },
    /// After a chunk, before its line end.
    DataEnd {
        /// Whether the carriage return was there.
        cr: bool,
    },
    /// After the last chunk.
    Trailer {
        /// Bytes of this line.
        line: u32,
        /// Bytes of all.
        total: u32,
    },
}

/// What bytes did to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on; all bytes were taken.
    More,
    /// It ended after this many bytes.
    Done(usize),
    /// The byte at this place cannot be.
    Bad(usize),
}

impl Body {
    /// A chunked body, or the next chunk of one.
    pub(super) const fn chunked() -> Self {
        Self::Size { size: 0, digits: 0, extension: 0, cr: false }
    }

    /// The next bytes; content goes to `hasher`.
    pub(super) fn feed(&mut self, bytes: &[u8], hasher: &mut ContentHasher) -> Progress {
        let mut i = 0;
        loop {
            match self {
                Self::Length(0) => return Progress::Done(i),
                Self::Length(left) | Self::Data { left, .. } if *left > 0 => {
                    let part = &bytes[i..];
                    let part = &part[..part.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
                    hasher.update(part);
                    *left -= part.len() as u64;
                    i += part.len();
                    if *left > 0 {
                        return Progress::More;
                    }
                }
                Self::Data { .. } => *self = Self::DataEnd { cr: false },
                Self::Close => {
                    hasher.update(&bytes[i..]);
                    return Progress::More;
                }
                _ => {
                    let Some(&byte) = bytes.get(i) else { return Progress::More };
                    match self.line_byte(byte) {
                        Progress::Done(_) => return Progress::Done(i + 1),
                        Progress::Bad(_) => return Progress::Bad(i),
                        Progress::More => i += 1,
                    }
                }
            }
        }
    }

    /// A byte outside of data.
    fn line_byte(&mut self, byte: u8) -> Progress {
        match self {
            Self::Size { size, digits, extension, cr } => match (byte, (byte as char).to_digit(16)) {
                (_, Some(digit)) if *extension == 0 => {
                    *size = *size << 4 | u64::from(digit);
                    *digits += 1;
                    if *digits > CHUNK_DIGITS_MAX {
                        return Progress::Bad(0);
                    }
                }
                _ if *digits == 0 => return Progress::Bad(0),
                (b'\n', _) => {
                    *self = match *size {
                        0 => Self::Trailer { line: 0, total: 0 },
                        left => Self::Data { left, crlf: *cr },
                    }
                }
                (byte, _) if *extension > 0 || matches!(byte, b'\r' | b';' | b' ' | b'\t') => {
                    *extension += 1;
                    *cr = byte == b'\r';
                    if *extension > CHUNK_LINE_BYTES_MAX {
                        return Progress::Bad(0);
                    }
                }
                _ => return Progress::Bad(0),
            },
            Self::DataEnd { cr } => match (byte, *cr) {
                (b'\r', false) => *cr = true,
                (b'\n', _) => *self = Self::chunked(),
                _ => return Progress::Bad(0),
            },
            Self::Trailer { line, total } => match byte {
                b'\n' if *line == 0 => return Progress::Done(0),
                b'\n' => *line = 0,
                b'\r' => {}
                _ => {
                    *line += 1;
                    *total += 1;
                    if *total > CHUNK_LINE_BYTES_MAX {
                        return Progress::Bad(0);
                    }
                }
            },
            Self::Length(_) | Self::Close | Self::Data { .. } => {}
        }
        Progress::More
    }

    /// `len` bytes were not seen. How many of them were counted off: all, or as many as belong to the body
    /// (`Done`), or the boundary is lost (`Bad`).
    pub(super) fn gap(&mut self, len: u64) -> Gap {
        match self {
            Self::Close => Gap::More,
            Self::Length(left) if *left > len => {
                *left -= len;
                Gap::More
            }
            Self::Length(left) => Gap::Done(*left),
            Self::Data { left, .. } if *left >= len => {
                *left -= len;
                Gap::More
            }
            // The line end after the data, and not a byte more.
            Self::Data { left, crlf: true } if *left + 2 == len => {
                *self = Self::chunked();
                Gap::More
            }
            _ => Gap::Lost,
        }
    }
}

/// What a hole did to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// The body goes on behind it.
    More,
    /// The body ended this many bytes into it.
    Done(u64),
    /// It hid a boundary.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mut body: Body, bytes: &str, expected: Progress) {
        let whole = body.feed(bytes.as_bytes(), &mut ContentHasher::new());
        assert_eq!(whole, expected, "{bytes:?}");
    }

    #[test]
    fn chunks_end_with_an_empty_one_and_a_blank_line() {
        let chunked = Body::chunked();
        check(chunked, "5\r\nhello\r\n0\r\n\r\nrest", Progress::Done(15));
        check(chunked, "A;x=\"y\"\r\n0123456789\r\n00\r\n\r\n", Progress::Done(27));
        check(chunked, "5 \r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", Progress::Done(28));
        check(chunked, "5\nhello\n0\n\n", Progress::Done(11));
        check(chunked, "5\r\nhello\r\n", Progress::More);
        check(chunked, "", Progress::More);
        check(chunked, "\r\n", Progress::Bad(0));
        check(chunked, "5x", Progress::Bad(1));
        check(chunked, "5\r\nhellos\r\n", Progress::Bad(8));
        check(chunked, "1234567890123456\r\n", Progress::Bad(15));
        check(Body::Length(3), "abcd", Progress::Done(3));
        check(Body::Length(0), "", Progress::Done(0));
        check(Body::Close, "abcd", Progress::More);
    }

    #[test]
    fn holes_in_data_are_counted_off() {
        let check = |mut body: Body, len, gap, after| {
            assert_eq!((body.gap(len), body), (gap, after));
        };
        check(Body::Length(5), 3, Gap::More, Body::Length(2));
        check(Body::Length(5), 9, Gap::Done(5), Body::Length(5));
        check(Body::Close, 9, Gap::More, Body::Close);
        let data = |left, crlf| Body::Data { left, crlf };
        check(data(5, true), 5, Gap::More, data(0, true));
        check(data(5, true), 6, Gap::Lost, data(5, true));
        check(data(5, true), 7, Gap::More, Body::chunked());
        check(data(5, false), 7, Gap::Lost, data(5, false));
        check(Body::chunked(), 1, Gap::Lost, Body::chunked());
    }
}
