//! What is kept of a request's target: a path template of low cardinality, the path, the names in the query.

use crate::protocol::text::{CUT, TEXT_BYTES_MAX, push_printable};

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
}

impl<'a> Target<'a> {
    /// Takes a target apart; `connect`: the method is CONNECT.
    pub(super) fn new(target: &'a [u8], connect: bool) -> Self {
        let without_user =
            |authority: &'a [u8]| authority.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
        if connect {
            return Self { authority: Some(without_user(target)), path: b"", query: None };
        }
        let end = target.iter().position(|byte| *byte == b'#').unwrap_or(target.len());
        let (target, query) = match target[..end].iter().position(|byte| *byte == b'?') {
            Some(at) => (&target[..at], Some(&target[at + 1..end])),
            None => (&target[..end], None),
        };
        let scheme = target.windows(3).position(|window| window == b"://");
        match scheme.filter(|_| !target.starts_with(b"/")) {
            None => Self { authority: None, path: target, query },
            Some(at) => {
                let rest = &target[at + 3..];
                let path_at = rest.iter().position(|byte| *byte == b'/');
                let (authority, path) = path_at.map_or((rest, &b"/"[..]), |at| rest.split_at(at));
                Self { authority: Some(without_user(authority)), path, query }
            }
        }
    }

    /// The path with ids replaced: `/cart/{id}`.
    pub(super) fn template(&self) -> String {
        let Some(path) = self.path.strip_prefix(b"/") else {
            return String::from_utf8_lossy(self.path).into_owned();
        };
        let mut template = String::with_capacity(self.path.len().min(TEXT_BYTES_MAX));
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
        template
    }

    /// The path as it was, bounded.
    pub(super) fn path_text(&self) -> String {
        let mut text = String::new();
        push_path(&mut text, self.path);
        text
    }

    /// Path and names of the query, values replaced: `/cart/17?user=?`.
    pub(super) fn push_text(&self, text: &mut String) {
        push_path(text, self.authority.filter(|_| self.path.is_empty()).unwrap_or(self.path));
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
            }
            if text.len() >= TEXT_BYTES_MAX {
                text.push(CUT);
                break;
            }
            text.push('?');
        }
    }
}

/// A path; parameters of segments (`;jsessionid=F00`) become `;?`.
fn push_path(text: &mut String, path: &[u8]) {
    for (idx, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if idx > 0 {
            text.push('/');
        }
        let plain_len = segment.iter().position(|byte| *byte == b';');
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

/// Whether a segment is an id: a number, a UUID, a hash, too long, or nothing that a route is written with.
fn is_id(segment: &[u8]) -> bool {
    let count = |is: fn(&u8) -> bool| segment.iter().filter(|byte| is(byte)).count();
    let len = segment.len();
    let digits = count(u8::is_ascii_digit);
    let hex = count(u8::is_ascii_hexdigit);
    let dashes = count(|byte| *byte == b'-');
    let number = len > 0 && digits == len;
    let hash = hex == len && len >= HEX_ID_DIGITS && digits > 0;
    let uuid = len == 36 && hex == 32 && dashes == 4;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-~:@!$*+{}".contains(byte);
    number || hash || uuid || len > SEGMENT_BYTES_MAX || !segment.iter().all(plain)
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
        let parts = Target::new(target.as_bytes(), false);
        let mut shown = String::new();
        parts.push_text(&mut shown);
        assert_eq!((&*parts.template(), &*shown), (template, text), "{target:?}");
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
        check("http://user:secret@host:8080/cart/17?q=1", "/cart/{id}", "/cart/17?q=?");
        check("http://host", "/", "/");
        check("/r?u=http://h/", "/r", "/r?u=?");
        let long = "a".repeat(300);
        check(&format!("/{long}"), "/{id}", &format!("/{}…", "a".repeat(255)));
        check(&format!("/?{long}=1"), "/", "/?…");
        check(&format!("/?a={long}"), "/", "/?a=?");
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
        assert_eq!(Target::new(b"user:pw@host:443", true).authority, Some(&b"host:443"[..]));
    }
}
