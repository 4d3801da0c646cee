//! The PROXY protocol, versions 1 and 2: a header before the first byte of a connection, in which a proxy says whose
//! connection it passes on. (HAProxy, `proxy-protocol.txt`.)
//!
//! What a reader would get wrong: the header is no message. It is read, the addresses are told, and detection starts
//! anew behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Detected, Direction, Head, Parsed, Parser, Protocol, Verdict};

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, bytes, by its definition.
const V1_BYTES_MAX: usize = 107;
/// Version 2: signature, command, family, length.
const V2_FIXED_BYTES: usize = 16;
/// The longest addresses that are read: two of IPv6 with ports.
const V2_ADDRESSES_BYTES_MAX: usize = 36;

/// The protocol.
#[derive(Debug)]
pub(super) struct Proxy;

/// A header: how long it is, and client and server as the proxy saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    len: usize,
    origin: Option<(SocketAddr, SocketAddr)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Header(Header),
    /// Version 2 whose fixed part is whole.
    NeedRest,
    NeedMore,
    No,
}

fn read(bytes: &[u8]) -> Read {
    if bytes.starts_with(V1) {
        return read_v1(bytes);
    }
    if bytes.starts_with(V2) {
        return read_v2(bytes);
    }
    if V1.starts_with(bytes) || V2.starts_with(bytes) { Read::NeedMore } else { Read::No }
}

fn read_v1(bytes: &[u8]) -> Read {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        let is_text = window.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r'));
        return if is_text && window.len() < V1_BYTES_MAX { Read::NeedMore } else { Read::No };
    };
    let Ok(line) = str::from_utf8(&window[V1.len()..end]) else { return Read::No };
    let mut words = line.split(' ');
    let family = words.next().unwrap_or_default();
    let origin = if family == "UNKNOWN" { None } else { addresses_v1(family, words) };
    if origin.is_none() && family != "UNKNOWN" {
        return Read::No;
    }
    Read::Header(Header { len: end + 2, origin })
}

fn addresses_v1<'a>(
    family: &str,
    mut words: impl Iterator<Item = &'a str>,
) -> Option<(SocketAddr, SocketAddr)> {
    let (client, server): (IpAddr, IpAddr) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let ports: (u16, u16) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let fits = match family {
        "TCP4" => client.is_ipv4() && server.is_ipv4(),
        "TCP6" => client.is_ipv6() && server.is_ipv6(),
        _ => false,
    };
    (fits && words.next().is_none()).then(|| ((client, ports.0).into(), (server, ports.1).into()))
}

fn read_v2(bytes: &[u8]) -> Read {
    let Some(&[command, family, high, low]) = bytes.get(V2.len()..V2_FIXED_BYTES) else {
        return match bytes.get(V2.len()) {
            Some(0x20 | 0x21) | None => Read::NeedMore,
            Some(_) => Read::No,
        };
    };
    if !matches!(command, 0x20 | 0x21) {
        return Read::No;
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    let rest = &bytes[V2_FIXED_BYTES..];
    if rest.len() < len.min(V2_ADDRESSES_BYTES_MAX) {
        return Read::NeedRest;
    }
    // 0x20 is the proxy's own connection (a health check): the addresses mean nothing.
    let origin =
        if command == 0x21 { addresses_v2(family, &rest[..len.min(V2_ADDRESSES_BYTES_MAX)]) } else { None };
    Read::Header(Header { len: V2_FIXED_BYTES + len, origin })
}

fn addresses_v2(family: u8, bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    match family {
        0x11 => {
            let ip = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
            Some(((ip(0)?, port(8)?).into(), (ip(4)?, port(10)?).into()))
        }
        0x21 => {
            let ip = |at: usize| Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?));
            Some(((ip(0)?, port(32)?).into(), (ip(16)?, port(34)?).into()))
        }
        _ => None,
    }
}

impl Protocol for Proxy {
    fn name(&self) -> &'static str {
        "proxy"
    }

    fn ports(&self) -> &'static [u16] {
        &[]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        let no = Detected { verdict: Verdict::No, request_direction: None };
        // Nothing comes before it, so the other direction is silent and the connection was seen from its start.
        if head.joined {
            return no;
        }
        let read = head.bytes.map(|bytes| if bytes.is_empty() { Read::NeedMore } else { read(bytes) });
        if read.iter().any(|read| matches!(read, Read::No)) {
            return no;
        }
        for (direction, read) in [Direction::Out, Direction::In].into_iter().zip(read) {
            if matches!(read, Read::Header(_) | Read::NeedRest) {
                return Detected { verdict: Verdict::Yes, request_direction: Some(direction) };
            }
        }
        Detected { verdict: Verdict::NeedMore, request_direction: None }
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], _joined: bool) -> Box<dyn Parser> {
        Box::new(ProxyParser { request_direction, pos: start, held: Vec::new(), skip: 0, over: false })
    }
}

#[derive(Debug)]
struct ProxyParser {
    request_direction: Direction,
    pos: [u64; 2],
    held: Vec<u8>,
    /// Bytes of the header that are left.
    skip: u64,
    over: bool,
}

impl ProxyParser {
    fn switch(&mut self, out: &mut Vec<Parsed>) {
        self.over = true;
        out.push(Parsed::Switch { at: self.pos });
    }
}

impl Parser for ProxyParser {
    fn feed(&mut self, direction: Direction, _pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        if self.over || bytes.is_empty() {
            return;
        }
        if direction != self.request_direction {
            // A server that answers before it has the header: detection goes on here.
            self.switch(out);
            return;
        }
        if self.skip == 0 {
            let before = self.held.len();
            self.held.extend_from_slice(&bytes[..bytes.len().min(V1_BYTES_MAX)]);
            match read(&self.held) {
                Read::Header(header) => {
                    out.extend(header.origin.map(|(client, server)| Parsed::Origin { client, server }));
                    self.skip = (header.len - before) as u64;
                }
                Read::NeedMore | Read::NeedRest => {
                    self.pos[direction.idx()] += bytes.len() as u64;
                    return;
                }
                Read::No => {
                    self.over = true;
                    out.push(Parsed::Mistaken);
                    return;
                }
            }
        }
        let taken = self.skip.min(bytes.len() as u64);
        self.skip -= taken;
        self.pos[direction.idx()] += taken;
        if self.skip == 0 {
            self.switch(out);
        }
    }

    fn gap(&mut self, direction: Direction, _pos: u64, len: u64, out: &mut Vec<Parsed>) {
        if self.over || len == 0 {
            return;
        }
        self.pos[direction.idx()] += len;
        if direction == self.request_direction && self.skip > len {
            self.skip -= len;
        } else {
            self.switch(out);
        }
    }

    fn end(&mut self, _direction: Direction, _pos: u64, _out: &mut Vec<Parsed>) {}

    fn unfinished_from(&self, direction: Direction) -> u64 {
        self.pos[direction.idx()]
    }

    fn payload_limit(&self, _direction: Direction) -> u32 {
        1024
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        testing::check(&Proxy, false, input, expected);
    }

    #[test]
    fn both_versions_tell_the_addresses_and_end() {
        check(
            ">| PROXY TCP4 192.0.2.1 198.51.100.2 5000 80|GET / HTTP/1.1|",
            "origin 192.0.2.1:5000 198.51.100.2:80\nswitch 43 0",
        );
        check(">| PROXY TCP6 ::1 ::2 5000 80|x", "origin [::1]:5000 [::2]:80\nswitch 28 0");
        check(">| PROXY UNKNOWN whatever|x", "switch 24 0");
        let v2 = "\\r\\n\\r\\n\\x00\\r\\nQUIT\\n";
        check(
            &format!(
                ">\" {v2}\\x21\\x11\\x00\\x0c\\xc0\\x00\\x02\\x01\\x7f\\x00\\x00\\x01\\x13\\x88\\x00\\x50more"
            ),
            "origin 192.0.2.1:5000 127.0.0.1:80\nswitch 28 0",
        );
        // Further values follow the addresses; a health check has none.
        check(
            &format!(
                ">\" {v2}\\x21\\x11\\x00\\x0e\\xc0\\x00\\x02\\x01\\x7f\\x00\\x00\\x01\\x13\\x88\\x00\\x50abmore"
            ),
            "origin 192.0.2.1:5000 127.0.0.1:80\nswitch 30 0",
        );
        check(&format!(">\" {v2}\\x20\\x00\\x00\\x00more"), "switch 16 0");
    }

    #[test]
    fn what_is_no_header_is_mistaken() {
        for other in ["PROXY TCP4 ::1 ::2 1 2|", "PROXY TCP4 1.2.3.4 5.6.7.8 1|", "PROXY UDP|", "PROXIES"] {
            check(&format!(">| {other}"), "mistaken");
        }
        check(">\" \\r\\n\\r\\n\\x00\\r\\nQUIT\\n\\x33", "mistaken");
    }
}
