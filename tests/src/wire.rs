//! Bytes of a stream → where the first message in them ends: as much of Redis', memcached's and HTTP's grammar as
//! the programs of our own need, no more.
//!
//! What a reader would get wrong: this is not dprof's parser, and must not become it. What these programs did is
//! the truth that dprof is judged by, so they share no code with it.

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// What a program of ours speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// RESP 2: arrays of bulk strings.
    Redis,
    /// memcached's text protocol.
    Memcached,
    /// HTTP/1.1 with `Content-Length`.
    Http,
}

/// A whole request at the start of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes that it takes.
    pub length: usize,
    /// First key, or path.
    pub key: Vec<u8>,
    /// Whether it only reads.
    pub is_read: bool,
}

/// Bytes of HTTP's head at most, so that a peer that is no HTTP program ends with an error.
const HEAD_BYTES_MAX: usize = 64 * 1024;

impl Protocol {
    /// The request that `bytes` start with; `None` while it is not whole.
    pub fn request(self, bytes: &[u8]) -> Result<Option<Request>> {
        match self {
            Self::Redis => redis_request(bytes),
            Self::Memcached => memcached_request(bytes),
            Self::Http => http_request(bytes),
        }
    }

    /// Length of the reply that `bytes` start with; `None` while it is not whole.
    pub fn reply(self, bytes: &[u8]) -> Result<Option<usize>> {
        match self {
            Self::Redis => redis_length(bytes),
            Self::Memcached => memcached_reply(bytes),
            Self::Http => Ok(http_length(bytes)?.map(|(_, length)| length)),
        }
    }
}

/// The line at `at` without its end, and where the next begins.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let length = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&rest[..length], at + length + 2))
}

fn number(text: &[u8]) -> Result<i64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("not a number: {:?}", String::from_utf8_lossy(text)))
}

/// Length of one RESP value with all that is in it.
fn redis_length(bytes: &[u8]) -> Result<Option<usize>> {
    let (mut at, mut values) = (0, 1_i64);
    while values > 0 {
        let Some((head, next)) = line(bytes, at) else { return Ok(None) };
        at = next;
        values -= 1;
        match head.split_first() {
            Some((b'+' | b'-' | b':', _)) => {}
            Some((b'$', length)) => {
                if let Ok(length) = usize::try_from(number(length)?) {
                    at += length + 2;
                }
            }
            Some((b'*', count)) => values += number(count)?.max(0),
            _ => bail!("not RESP: {:?}", String::from_utf8_lossy(head)),
        }
    }
    Ok((at <= bytes.len()).then_some(at))
}

fn redis_request(bytes: &[u8]) -> Result<Option<Request>> {
    let Some(length) = redis_length(bytes)? else { return Ok(None) };
    let mut words = Vec::new();
    let (_, mut at) = line(bytes, 0).context("a request is an array")?;
    while at < length {
        let (head, next) = line(bytes, at).context("a word has a length")?;
        let Some((b'$', count)) = head.split_first() else { bail!("a request is an array of strings") };
        let count = usize::try_from(number(count)?).context("a word has a length")?;
        words.push(&bytes[next..next + count]);
        at = next + count + 2;
    }
    let name = words.first().context("an empty request")?.to_ascii_uppercase();
    let key = words.get(1).map_or_else(Vec::new, |key| key.to_vec());
    Ok(Some(Request { length, key, is_read: matches!(&name[..], b"GET" | b"MGET" | b"EXISTS" | b"PING") }))
}

fn memcached_request(bytes: &[u8]) -> Result<Option<Request>> {
    let Some((head, next)) = line(bytes, 0) else { return Ok(None) };
    let words: Vec<&[u8]> = head.split(|byte| *byte == b' ').collect();
    let name = words[0];
    let key = words.get(1).map_or_else(Vec::new, |key| key.to_vec());
    let has_value = matches!(name, b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas");
    let length = if has_value {
        let size = number(words.get(4).context("a value has a size")?)?;
        next + usize::try_from(size).context("a value has a size")? + 2
    } else {
        next
    };
    Ok((length <= bytes.len()).then_some(Request { length, key, is_read: matches!(name, b"get" | b"gets") }))
}

fn memcached_reply(bytes: &[u8]) -> Result<Option<usize>> {
    let mut at = 0;
    loop {
        let Some((head, next)) = line(bytes, at) else { return Ok(None) };
        at = next;
        if !head.starts_with(b"VALUE ") {
            return Ok(Some(at));
        }
        let size = head.split(|byte| *byte == b' ').nth(3).context("a value has a size")?;
        at += usize::try_from(number(size)?).context("a value has a size")? + 2;
    }
}

/// First line of an HTTP message, and its whole length.
fn http_length(bytes: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let Some((first, mut at)) = line(bytes, 0) else { return Ok(None) };
    let mut body = 0;
    loop {
        let Some((header, next)) = line(bytes, at) else {
            if bytes.len() > HEAD_BYTES_MAX {
                bail!("not HTTP: no end of the head");
            }
            return Ok(None);
        };
        at = next;
        if header.is_empty() {
            break;
        }
        let Some(colon) = header.iter().position(|byte| *byte == b':') else { bail!("not an HTTP header") };
        if header[..colon].eq_ignore_ascii_case(b"content-length") {
            body =
                usize::try_from(number(header[colon + 1..].trim_ascii())?).context("a body has a length")?;
        }
    }
    Ok((at + body <= bytes.len()).then_some((first, at + body)))
}

fn http_request(bytes: &[u8]) -> Result<Option<Request>> {
    let Some((first, length)) = http_length(bytes)? else { return Ok(None) };
    let mut words = first.split(|byte| *byte == b' ');
    let is_read = words.next() == Some(b"GET");
    let key = words.next().context("a request has a path")?.to_vec();
    Ok(Some(Request { length, key, is_read }))
}

/// A command as Redis clients send it.
pub fn redis_command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every prefix is incomplete, the whole is taken, and what follows is left.
    #[track_caller]
    fn check_request(protocol: Protocol, text: &str, key: &str, is_read: bool) {
        for cut in 0..text.len() {
            assert_eq!(protocol.request(&text.as_bytes()[..cut]).expect("valid"), None, "{cut} bytes");
        }
        let more = format!("{text}{text}");
        let expected = Request { length: text.len(), key: key.into(), is_read };
        assert_eq!(protocol.request(more.as_bytes()).expect("valid"), Some(expected));
    }

    #[track_caller]
    fn check_reply(protocol: Protocol, text: &str) {
        for cut in 0..text.len() {
            assert_eq!(protocol.reply(&text.as_bytes()[..cut]).expect("valid"), None, "{cut} bytes");
        }
        assert_eq!(protocol.reply(format!("{text}{text}").as_bytes()).expect("valid"), Some(text.len()));
    }

    #[test]
    fn requests_end_where_their_grammar_says() {
        check_request(Protocol::Redis, "*3\r\n$3\r\nset\r\n$1\r\na\r\n$2\r\n\r\n\r\n", "a", false);
        check_request(Protocol::Redis, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "a", true);
        check_request(Protocol::Memcached, "set a 0 0 4\r\n\r\nxx\r\n", "a", false);
        check_request(Protocol::Memcached, "get a\r\n", "a", true);
        check_request(Protocol::Http, "POST /p HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", "/p", false);
        check_request(Protocol::Http, "GET /p HTTP/1.1\r\nHost: h\r\n\r\n", "/p", true);
    }

    #[test]
    fn replies_end_where_their_grammar_says() {
        for text in
            ["+OK\r\n", "-ERR no\r\n", ":12\r\n", "$-1\r\n", "*2\r\n$1\r\na\r\n*1\r\n:1\r\n", "*0\r\n"]
        {
            check_reply(Protocol::Redis, text);
        }
        check_reply(Protocol::Memcached, "VALUE a 0 4\r\nEND\r\r\nEND\r\n");
        check_reply(Protocol::Memcached, "STORED\r\n");
        check_reply(Protocol::Http, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        assert!(Protocol::Redis.request(b"hello\r\n").is_err());
        assert!(Protocol::Redis.reply(b"$x\r\n").is_err());
        assert!(Protocol::Http.reply(b"HTTP/1.1 200\r\nnocolon\r\n").is_err());
    }
}
