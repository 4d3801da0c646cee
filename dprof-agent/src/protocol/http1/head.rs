//! Start lines and headers: line by line, whatever the cuts. Only the few headers that matter are looked at, and
//! nothing of a line outlives its reading: Authorization and Cookie are never kept.

use memchr::memchr;

use super::trace_context::Ids;

/// Bytes of a line that are looked at; the rest of a longer one is skipped. Servers take 4 to 16 KiB.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024;

/// Longest head, bytes: what is longer is garbage. Servers refuse it from 8 KiB (nginx) to 256 KiB on.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// Longest request id that is kept, bytes: a UUID has 36, two of them and a name fit.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Gathers lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// Bytes of the line and of the head so far.
    line_len: usize,
    head_len: usize,
}

/// What bytes did to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineStep {
    /// All were taken, no end yet.
    More,
    /// The line ended after this many.
    Ended(usize),
    /// The head is too long.
    TooLong,
}

impl Lines {
    /// A new head begins.
    pub(super) fn begin(&mut self) {
        self.next();
        self.head_len = 0;
    }

    /// The next line begins.
    pub(super) fn next(&mut self) {
        self.line.clear();
        self.line_len = 0;
    }

    /// More bytes of the line.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> LineStep {
        let end = memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        self.line_len += part.len();
        self.head_len += part.len();
        match end {
            // A limit counts bytes before the end, so that cuts do not matter.
            _ if self.head_len > HEAD_BYTES_MAX => LineStep::TooLong,
            Some(end) => LineStep::Ended(end + 1),
            None => LineStep::More,
        }
    }

    /// The line without its end, and whether that is all of it.
    pub(super) fn line(&self) -> (&[u8], bool) {
        let whole = self.line_len == self.line.len();
        (self.line.strip_suffix(b"\r").filter(|_| whole).unwrap_or(&self.line), whole)
    }
}

/// A request line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
}

/// Longest method: the longest registered is `UPDATEREDIRECTREF`.
const METHOD_BYTES_MAX: usize = 20;

/// Reads a request line; of one that is not `whole` the version is not seen.
pub(super) fn request_line(line: &[u8], whole: bool) -> Option<RequestLine<'_>> {
    let method_len = line.iter().position(|byte| *byte == b' ')?;
    let (method, rest) = (&line[..method_len], &line[method_len + 1..]);
    let target = if whole {
        let target_len = rest.iter().rposition(|byte| *byte == b' ')?;
        version(&rest[target_len + 1..])?;
        &rest[..target_len]
    } else {
        rest
    };
    let is_method = (1..=METHOD_BYTES_MAX).contains(&method.len())
        && method.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'));
    let is_target = !target.is_empty()
        && target.iter().all(|byte| !byte.is_ascii_whitespace() && !byte.is_ascii_control());
    (is_method && is_target).then_some(RequestLine { method, target })
}

/// Reads a status line.
pub(super) fn status_line(line: &[u8]) -> Option<u16> {
    let (version_part, rest) = line.split_at_checked(8)?;
    version(version_part)?;
    let (b' ', rest) = rest.split_first()? else { return None };
    let (digits, reason) = rest.split_at_checked(3)?;
    let status: u16 = str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()?;
    let ends = reason.is_empty() || reason.starts_with(b" ");
    (ends && (100..1000).contains(&status)).then_some(status)
}

fn version(text: &[u8]) -> Option<()> {
    matches!(text, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9']).then_some(())
}

/// Headers that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Host,
    Traceparent,
    B3,
    B3Trace,
    B3Span,
    RequestId,
    ContentType,
}

fn header(name: &[u8]) -> Option<Header> {
    // By length first: most headers do not matter, and that is the cheapest way to see it.
    let (known, header): (&[u8], Header) = match name.len() {
        2 => (b"b3", Header::B3),
        4 => (b"host", Header::Host),
        7 => (b"upgrade", Header::Upgrade),
        10 => (b"connection", Header::Connection),
        11 if name[0].eq_ignore_ascii_case(&b't') => (b"traceparent", Header::Traceparent),
        11 => (b"x-b3-spanid", Header::B3Span),
        12 if name[0] == b'c' || name[0] == b'C' => (b"content-type", Header::ContentType),
        12 if name[2] == b'b' || name[2] == b'B' => (b"x-b3-traceid", Header::B3Trace),
        12 => (b"x-request-id", Header::RequestId),
        14 => (b"content-length", Header::ContentLength),
        17 => (b"transfer-encoding", Header::TransferEncoding),
        _ => return None,
    };
    known.eq_ignore_ascii_case(name).then_some(header)
}

/// What the headers say.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Under way: a header that matters, which the next line may continue (obs-fold), and whether all is known.
    pending: Option<(Header, bool)>,
    value: Vec<u8>,
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    /// A coding other than chunked is the last: the body ends with the connection.
    pub(super) other_coding: bool,
    /// The body's end cannot be known: lengths that differ or are none.
    pub(super) bad_framing: bool,
    connection_upgrade: bool,
    has_upgrade: bool,
    /// Others may read the body's length otherwise: two ways of telling it, or an odd way. What one takes for a body
    /// another takes for a request (smuggling), so what follows is not certain.
    pub(super) ambiguous: bool,
    n_codings: u32,
    /// `text/event-stream`: the response is there once its head is, and what follows are events.
    pub(super) is_event_stream: bool,
    /// The first `X-Request-ID`, printable; empty if none.
    pub(super) request_id: Vec<u8>,
    /// The first `Host`; empty if none.
    pub(super) host: Vec<u8>,
    pub(super) ids: Ids,
}

impl Head {
    /// Starts anew.
    pub(super) fn begin(&mut self) {
        let mut value = std::mem::take(&mut self.value);
        let (mut host, mut request_id) =
            (std::mem::take(&mut self.host), std::mem::take(&mut self.request_id));
        value.clear();
        host.clear();
        request_id.clear();
        *self = Self { value, request_id, host, ..Self::default() };
    }

    /// A line of the head; true if it was the last, the blank one.
    pub(super) fn line(&mut self, line: &[u8], whole: bool) -> bool {
        if let [b' ' | b'\t', rest @ ..] = line {
            if let Some((_, known)) = &mut self.pending {
                *known &= whole && self.value.len() + rest.len() < LINE_BYTES_MAX;
                if *known {
                    self.value.push(b' ');
                    self.value.extend_from_slice(rest);
                }
            }
            return false;
        }
        self.finish_header();
        if line.is_empty() {
            return true;
        }
        let name_len = memchr(b':', line);
        if let Some((name, rest)) = name_len.map(|len| line.split_at(len)) {
            // RFC 9112, section 5.1: blanks before the colon are read differently by different servers.
            if name.ends_with(b" ") || name.ends_with(b"\t") {
                self.ambiguous |= matches!(
                    header(name.trim_ascii_end()),
                    Some(Header::ContentLength | Header::TransferEncoding)
                );
            }
            self.pending = header(name).map(|header| (header, whole));
            if self.pending.is_some() {
                self.value.clear();
                self.value.extend_from_slice(&rest[1..]);
            }
        }
        false
    }

    fn finish_header(&mut self) {
        let Some((header, known)) = self.pending.take() else { return };
        let value = self.value.trim_ascii();
        if !known {
            self.bad_framing |= matches!(header, Header::ContentLength | Header::TransferEncoding);
            return;
        }
        match header {
            Header::ContentLength => {
                for value in value.split(|byte| *byte == b',') {
                    let digits = value.trim_ascii();
                    let length = str::from_utf8(digits)
                        .ok()
                        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                        .and_then(|digits| digits.parse().ok())
                        // Beyond, positions would not fit.
                        .filter(|length| *length < 1 << 60);
                    self.bad_framing |=
                        length.is_none() || self.content_length.is_some_and(|known| Some(known) != length);
                    self.content_length = length;
                }
            }
            Header::TransferEncoding => {
                // The last one counts; what chunks must be it.
                for coding in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.ambiguous |= self.n_codings > 0 && self.chunked;
                    self.n_codings += 1;
                    self.chunked = coding.eq_ignore_ascii_case(b"chunked");
                    self.other_coding = !self.chunked && !coding.eq_ignore_ascii_case(b"identity");
                }
            }
            Header::Connection => {
                self.connection_upgrade |= value
                    .split(|byte| *byte == b',')
                    .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
            }
            Header::Upgrade => self.has_upgrade |= !value.is_empty(),
            Header::Host => {
                if self.host.is_empty() && str::from_utf8(value).is_ok() {
                    self.host.extend_from_slice(value);
                }
            }
            Header::RequestId => {
                let fits = (1..=REQUEST_ID_BYTES_MAX).contains(&value.len())
                    && value.iter().all(|byte| matches!(byte, b'!'..=b'~'));
                if self.request_id.is_empty() && fits {
                    self.request_id.extend_from_slice(value);
                }
            }
            Header::ContentType => {
                let kind = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                self.is_event_stream = kind.eq_ignore_ascii_case(b"text/event-stream");
            }
            Header::Traceparent => self.ids.traceparent(value),
            Header::B3 => self.ids.b3(value),
            Header::B3Trace => self.ids.b3_trace(value),
            Header::B3Span => self.ids.b3_span(value),
        }
    }

    /// Whether the body's length may be read in another way, given whether the message is of HTTP/1.0, which has no
    /// codings.
    pub(super) const fn is_ambiguous(&self, is_old: bool) -> bool {
        self.ambiguous || (self.n_codings > 0 && (self.content_length.is_some() || is_old))
    }

    /// Whether another protocol is asked for.
    pub(super) const fn upgrade(&self) -> bool {
        self.connection_upgrade && self.has_upgrade
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_lines_are_strict() {
        let check = |line: &str, expected: Option<(&str, &str)>| {
            let found = request_line(line.as_bytes(), true).map(|found| (found.method, found.target));
            assert_eq!(
                found,
                expected.map(|(method, target)| (method.as_bytes(), target.as_bytes())),
                "{line:?}"
            );
        };
        check("GET / HTTP/1.1", Some(("GET", "/")));
        check("M-SEARCH * HTTP/1.0", Some(("M-SEARCH", "*")));
        for other in [
            "",
            "GET",
            "GET /",
            "GET  HTTP/1.1",
            "get / HTTP/1.1",
            "GET / HTTP/2.0",
            "GET / HTTP/1.1 ",
            "GET /a b HTTP/1.1",
            "PRI * HTTP/2.0",
        ] {
            check(other, None);
        }
        let check = |line: &str, expected| assert_eq!(status_line(line.as_bytes()), expected, "{line:?}");
        check("HTTP/1.1 200 OK", Some(200));
        check("HTTP/1.0 404", Some(404));
        check("HTTP/1.1 200 ", Some(200));
        for other in
            ["HTTP/1.1 20", "HTTP/2.0 200 OK", "HTTP/1.1 2000", "HTTP/1.1 099 x", "HTTP/1.1  200", "HTTP/1.1"]
        {
            check(other, None);
        }
    }

    #[test]
    fn memory_is_bounded_and_a_head_has_an_end() {
        let mut lines = Lines::default();
        let mut head = Head::default();
        let mut too_long = 0;
        for filler in ["Host: a\r\n", "Content-Length: 1\r\n", " more\r\n", "x"] {
            lines.begin();
            head.begin();
            for _ in 0..100_000 {
                match lines.feed(filler.as_bytes()) {
                    LineStep::More => {}
                    LineStep::Ended(_) => {
                        let (line, whole) = lines.line();
                        head.line(line, whole);
                        lines.next();
                    }
                    LineStep::TooLong => {
                        too_long += 1;
                        break;
                    }
                }
            }
            assert!(lines.line.capacity() + head.value.capacity() <= 4 * LINE_BYTES_MAX);
        }
        assert_eq!(too_long, 3);
    }
}
