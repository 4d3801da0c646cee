//! What is kept of a request's target: a path template of low cardinality, the path, the names in the query.

use memchr::memchr;

use crate::protocol::capture::{Capture, KeyCapture};
use crate::protocol::text::{CUT, TEXT_BYTES_MAX, VALUE_BYTES_MAX, push_printable};

/// Segments of a template; deeper paths end in `…`.
const SEGMENTS_MAX: usize = 8;

/// Longest segment kept in a template, bytes; longer ones are taken for ids.
const SEGMENT_BYTES_MAX: usize = 32;

/// Hex digits from which a segment is taken for an id: a short commit or hash.
const HEX_ID_DIGITS: usize = 8;

/// Longest host name (RFC 1035).
const HOST_BYTES_MAX: usize = 255;

/// A target taken apart: `origin`, `absolute`, `authority` and `asterisk` form (RFC 9112, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// `host:port` of the absolute and of the authority form, without user and password.
    pub(super) authority: Option<&'a [u8]>,
    /// Path, or `*`; empty in the authority form.
    pub(super) path: &'a [u8],
    /// What follows the first `?`.
    pub(super) query: Option<&'a [u8]>,
    /// What may be kept of it: with hashed keys no path but its template, since ids are keys.
    capture: Capture,
}

impl<'a> Target<'a> {
    /// Takes a target apart; `connect`: the method is CONNECT.
    pub(super) fn new(target: &'a [u8], connect: bool, capture: Capture) -> Self {
        let without_user =
            |authority: &'a [u8]| authority.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
        if connect {
            return Self { authority: Some(without_user(target)), path: b"", query: None, capture };
        }
        let end = memchr(b'#', target).unwrap_or(target.len());
        let (target, query) = match memchr(b'?', &target[..end]) {
            Some(at) => (&target[..at], Some(&target[at + 1..end])),
            None => (&target[..end], None),
        };
        let scheme = if target.starts_with(b"/") {
            None
        } else {
            target.windows(3).position(|window| window == b"://")
        };
        match scheme {
            None => Self { authority: None, path: target, query, capture },
            Some(at) => {
                let rest = &target[at + 3..];
                let path_at = rest.iter().position(|byte| *byte == b'/');
                let (authority, path) = path_at.map_or((rest, &b"/"[..]), |at| rest.split_at(at));
                Self { authority: Some(without_user(authority)), path, query, capture }
            }
        }
    }

    /// Method and path with ids replaced: `GET /cart/{id}`.
    pub(super) fn operation(&self, method: &str) -> String {
        // An id may be shorter than what stands for it; most are not.
        let mut operation = String::with_capacity(method.len() + 1 + self.path.len().min(TEXT_BYTES_MAX) + 3);
        operation.push_str(method);
        operation.push(' ');
        self.push_template(&mut operation);
        operation
    }

    /// The path with ids replaced: `/cart/{id}`.
    fn push_template(&self, template: &mut String) {
        let Some(path) = self.path.strip_prefix(b"/") else {
            // `*`, or what CONNECT asks for; anything else is no target, and is not named.
            match str::from_utf8(self.path) {
                Ok(target) if target.len() <= HOST_BYTES_MAX => template.push_str(target),
                _ => template.push_str("{target}"),
            }
            return;
        };
        for (idx, segment) in path.split(|byte| *byte == b'/').enumerate() {
            template.push('/');
            if idx == SEGMENTS_MAX {
                template.push(CUT);
                break;
            }
            // Parameters of a segment (`;jsessionid=`) are values.
            let segment = segment.split(|byte| *byte == b';').next().unwrap_or_default();
            match str::from_utf8(segment) {
                Ok(segment) if !is_id(segment.as_bytes()) => template.push_str(segment),
                _ => template.push_str("{id}"),
            }
        }
    }

    /// The path as it was, bounded.
    pub(super) fn path_text(&self) -> String {
        let mut text = String::with_capacity(self.path.len().min(TEXT_BYTES_MAX));
        self.push_path(&mut text);
        text
    }

    fn push_path(&self, text: &mut String) {
        match self.capture.keys {
            KeyCapture::Plain => push_path(text, self.path),
            KeyCapture::Hash => self.push_template(text),
        }
    }

    /// Path and names of the query, values replaced: `/cart/17?user=?`.
    pub(super) fn push_text(&self, text: &mut String) {
        match self.authority.filter(|_| self.path.is_empty()) {
            Some(authority) => push_path(text, authority),
            None => self.push_path(text),
        }
        let parameters = self.query.into_iter().flat_map(|query| query.split(|byte| *byte == b'&'));
        for (idx, parameter) in parameters.enumerate() {
            text.push(if idx == 0 { '?' } else { '&' });
            // A parameter without a name is all value.
            if let Some(name_len) = parameter.iter().position(|byte| *byte == b'=') {
                if text.len() + name_len > TEXT_BYTES_MAX {
                    text.push(CUT);
                    break;
                }
                push_printable(text, &parameter[..=name_len]);
                let (name, value) = (&parameter[..name_len], &parameter[name_len + 1..]);
                if self.capture.values && !is_secret(name) {
                    push_printable(text, &value[..value.len().min(VALUE_BYTES_MAX)]);
                    if value.len() > VALUE_BYTES_MAX {
                        text.push(CUT);
                    }
                    continue;
                }
            }
            if text.len() >= TEXT_BYTES_MAX {
                text.push(CUT);
                break;
            }
            text.push('?');
        }
    }
}

/// Whether a query's parameter of this name may be a secret: it is kept in no mode.
fn is_secret(name: &[u8]) -> bool {
    const PARTS: [&str; 12] =
        ["pass", "pwd", "secret", "token", "key", "auth", "sig", "session", "sid", "code", "cred", "jwt"];
    let name = name.to_ascii_lowercase();
    // What cannot be read may be anything.
    str::from_utf8(&name)
        .map_or(true, |name| name.contains('%') || PARTS.iter().any(|part| name.contains(part)))
}

/// A path; parameters of segments (`;jsessionid=F00`) become `;?`.
fn push_path(text: &mut String, path: &[u8]) {
    for (idx, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if idx > 0 {
            text.push('/');
        }
        let plain_len = memchr(b';', segment);
        let plain = &segment[..plain_len.unwrap_or(segment.len())];
        let room = TEXT_BYTES_MAX.saturating_sub(text.len());
        push_printable(text, &plain[..plain.len().min(room)]);
        if plain.len() > room || text.len() >= TEXT_BYTES_MAX {
            text.push(CUT);
            return;
        }
        if plain_len.is_some() {
            text.push_str(";?");
        }
    }
}

/// Digits from which a segment is taken for an id wherever they are: words have fewer (`oauth2`, `sha256`).
const ID_DIGITS: usize = 4;

/// Length from which letters of both cases with a digit among them are taken for an id: `dQw4w9WgXcQ`.
const TOKEN_BYTES: usize = 10;

/// Whether a segment is an id: mostly digits, a date, a UUID, a hash, a token, too long, or nothing that a route is
/// written with.
fn is_id(segment: &[u8]) -> bool {
    let len = segment.len();
    let (mut digits, mut hex, mut dashes, mut odd) = (0, 0, 0, false);
    let (mut has_upper, mut has_lower) = (false, false);
    for byte in segment {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'a'..=b'f' | b'A'..=b'F' => hex += 1,
            b'-' => dashes += 1,
            b'g'..=b'z' | b'G'..=b'Z' => {}
            other => odd |= !b"._~:!$*+{}".contains(other),
        }
        has_upper |= byte.is_ascii_uppercase();
        has_lower |= byte.is_ascii_lowercase();
    }
    hex += digits;
    let number = len > 0 && digits == len;
    let starts_with_number = digits >= 2 && segment[0].is_ascii_digit();
    let hash = hex == len && len >= HEX_ID_DIGITS && digits > 0;
    let uuid = len == 36 && hex == 32 && dashes == 4;
    let token = len >= TOKEN_BYTES && has_upper && has_lower && digits > 0;
    number
        || starts_with_number
        || digits >= ID_DIGITS
        || hash
        || uuid
        || token
        || len > SEGMENT_BYTES_MAX
        || odd
}

/// Host and port of `Host` or of an authority, if it is one.
pub(super) fn host_and_port(authority: &[u8]) -> Option<(&str, Option<&str>)> {
    let text = str::from_utf8(authority).ok()?;
    let (host, port) = match text.rsplit_once(':') {
        // `[::1]` has no port.
        Some((_, port)) if port.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host_fits = (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:%".contains(&byte));
    let port = port.filter(|port| port.parse::<u16>().is_ok());
    host_fits.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: &str, template: &str, text: &str) {
        let parts = Target::new(target.as_bytes(), false, Capture::default());
        let (mut shown, mut pattern) = (String::new(), String::new());
        parts.push_text(&mut shown);
        parts.push_template(&mut pattern);
        assert_eq!((&*pattern, &*shown), (template, text), "{target:?}");
    }

    #[test]
    fn ids_leave_the_template_and_values_the_text() {
        check("/", "/", "/");
        check("/cart", "/cart", "/cart");
        check("/cart/17?user=a&b=c", "/cart/{id}", "/cart/17?user=?&b=?");
        check("/cart/17/", "/cart/{id}/", "/cart/17/");
        check("/a?token", "/a", "/a??");
        check("/a?", "/a", "/a??");
        check("/a#b?c", "/a", "/a");
        check(
            "/u/123e4567-e89b-12d3-a456-426614174000/x",
            "/u/{id}/x",
            "/u/123e4567-e89b-12d3-a456-426614174000/x",
        );
        check("/c/deadbee1", "/c/{id}", "/c/deadbee1");
        check("/c/deadbee", "/c/deadbee", "/c/deadbee");
        check("/facade/defaced", "/facade/defaced", "/facade/defaced");
        check("/v1/users2", "/v1/users2", "/v1/users2");
        check("/a;jsessionid=F00/b", "/a/b", "/a;?/b");
        check("/search/caf%C3%A9", "/search/{id}", "/search/caf%C3%A9");
        check("/a/b/c/d/e/f/g/h/i/j", "/a/b/c/d/e/f/g/h/…", "/a/b/c/d/e/f/g/h/i/j");
        check("*", "*", "*");
        let nonsense = "&/a".repeat(100);
        check(&nonsense, "{target}", &format!("{}…", &nonsense[..256]));
        check("http://user:secret@host:8080/cart/17?q=1", "/cart/{id}", "/cart/17?q=?");
        check("http://host", "/", "/");
        check("/r?u=http://h/", "/r", "/r?u=?");
        let long = "a".repeat(300);
        check(&format!("/{long}"), "/{id}", &format!("/{}…", "a".repeat(255)));
        check(&format!("/?{long}=1"), "/", "/?…");
        check(&format!("/?a={long}"), "/", "/?a=?");
    }

    #[test]
    fn what_may_be_kept_decides_the_text() {
        let text = |target: &str, capture| {
            let mut text = String::new();
            Target::new(target.as_bytes(), false, capture).push_text(&mut text);
            text
        };
        let open = Capture { values: true, keys: KeyCapture::Plain };
        assert_eq!(text("/cart/17?user=a&b=&c", open), "/cart/17?user=a&b=&?");
        assert_eq!(
            text("/a?Password=x&api_key=x&access_token=x&p%61ss=x&user=\u{e9}", open),
            "/a?Password=?&api_key=?&access_token=?&p%61ss=?&user=é"
        );
        assert_eq!(text(&format!("/a?b={}", "x".repeat(65)), open), format!("/a?b={}…", "x".repeat(64)));
        let closed = Capture { values: false, keys: KeyCapture::Hash };
        assert_eq!(text("/cart/17/joe@example.com?user=a", closed), "/cart/{id}/{id}?user=?");
    }

    #[test]
    fn words_that_people_write_stay_and_what_machines_write_does_not() {
        let segment = |segment: &str| {
            let mut template = String::new();
            Target::new(format!("/{segment}").as_bytes(), false, Capture::default())
                .push_template(&mut template);
            template != "/{id}"
        };
        for word in
            ["v1", "users2", "oauth2", "sha256", "api-docs", "index.html", "foo:cancel", "2fa", "S3", "~joe"]
        {
            assert!(segment(word), "{word}");
        }
        for id in
            ["17", "order20391", "2024-01-02", "17.json", "10.0.0.1", "joe@x.y", "dQw4w9WgXcQ", "+4912345"]
        {
            assert!(!segment(id), "{id}");
        }
    }

    #[test]
    fn authorities_are_taken_apart() {
        let check = |text: &str, expected| assert_eq!(host_and_port(text.as_bytes()), expected, "{text}");
        check("host", Some(("host", None)));
        check("host:80", Some(("host", Some("80"))));
        check("[::1]:80", Some(("::1", Some("80"))));
        check("[::1]", Some(("::1", None)));
        check("host:99999", Some(("host", None)));
        check("a b", None);
        check("", None);
        assert_eq!(
            Target::new(b"user:pw@host:443", true, Capture::default()).authority,
            Some(&b"host:443"[..])
        );
    }
}
