//! The line before each DNODE message: `   $2014$ ID TYPE FLAGS VERSION SAMEDC *KEYLEN KEY *PAYLOADLEN\r\n`.
//!
//! What a reader would get wrong: the line does not end at the first line end. KEY is a raw RSA block when a
//! connection is encrypted, so only its length says where it ends. Field order and types are those of Dynomite's
//! `dyn_dnode_msg.c`, v0.5 to v0.6; v0.5 lacks SAMEDC.

/// First bytes of every message.
pub(in crate::protocol) const MAGIC: &[u8] = b"   $2014$ ";

/// Longest key block, bytes: RSA of 8192 bits. Dynomite's own is 1024 bits.
const KEY_BYTES_MAX: u64 = 1024;

/// Longest header, bytes: magic, numbers of at most 20 digits, a key block.
pub(in crate::protocol) const HEADER_BYTES_MAX: usize = 128 + KEY_BYTES_MAX as usize;

/// Longest payload, bytes: Dynomite's field is 32 bits wide.
const PAYLOAD_BYTES_MAX: u64 = u32::MAX as u64;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::protocol) enum Kind {
    /// A client's request for this node.
    Request,
    /// A client's request that this node passes on within its datacenter.
    Forward,
    /// The answer to either.
    Reply,
    /// Everything else, by the name of its type.
    Other(&'static str),
}

impl Kind {
    const fn of(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Other("DEBUG"),
            2 => Self::Other("PARSE ERROR"),
            3 => Self::Request,
            4 => Self::Forward,
            5 => Self::Reply,
            6 => Self::Other("CRYPTO HANDSHAKE"),
            7 => Self::Other("GOSSIP SYN"),
            8 => Self::Other("GOSSIP SYN REPLY"),
            9 => Self::Other("GOSSIP ACK"),
            10 => Self::Other("GOSSIP DIGEST SYN"),
            11 => Self::Other("GOSSIP DIGEST ACK"),
            12 => Self::Other("GOSSIP DIGEST ACK2"),
            13 => Self::Other("GOSSIP SHUTDOWN"),
            _ => return None,
        })
    }
}

/// A header as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::protocol) struct Header {
    /// Counter of the process that sent the request.
    pub(in crate::protocol) id: u64,
    pub(in crate::protocol) kind: Kind,
    /// The payload cannot be read: encrypted (bit 0) or compressed (bit 1).
    pub(in crate::protocol) is_opaque: bool,
    /// Both nodes are in one datacenter.
    pub(in crate::protocol) same_dc: bool,
    /// Bytes that follow.
    pub(in crate::protocol) payload: u64,
    /// Bytes of the header itself.
    pub(in crate::protocol) len: usize,
}

/// What bytes are as a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::protocol) enum Read {
    Header(Header),
    /// The beginning of one, perhaps.
    NeedMore,
    No,
}

/// Reads the header that `bytes` start with.
pub(in crate::protocol) fn read(bytes: &[u8]) -> Read {
    let mut fields = Fields { bytes, at: 0 };
    match header(&mut fields) {
        Ok(header) => Read::Header(header),
        Err(Stop::NeedMore) if bytes.len() < HEADER_BYTES_MAX => Read::NeedMore,
        Err(_) => Read::No,
    }
}

/// Finds the first header in `bytes`, which may begin anywhere.
pub(in crate::protocol) fn find(bytes: &[u8]) -> Read {
    let starts = (0..bytes.len()).filter(|&at| bytes[at] == MAGIC[0]);
    let mut reads = starts.map(|at| read(&bytes[at..])).filter(|read| *read != Read::No);
    reads.next().unwrap_or(Read::No)
}

/// Why a header could not be read.
enum Stop {
    NeedMore,
    No,
}

fn header(fields: &mut Fields<'_>) -> Result<Header, Stop> {
    fields.word(MAGIC)?;
    let id = fields.number(u64::MAX, b' ')?;
    let kind = Kind::of(fields.number(13, b' ')?).ok_or(Stop::No)?;
    let flags = fields.number(3, b' ')?;
    if fields.number(1, b' ')? != 1 {
        return Err(Stop::No);
    }
    let same_dc = if fields.peek()? == b'*' { true } else { fields.number(1, b' ')? == 1 };
    fields.word(b"*")?;
    let key = fields.number(KEY_BYTES_MAX, b' ')?;
    fields.skip(key as usize)?;
    fields.word(b" *")?;
    let payload = fields.number(PAYLOAD_BYTES_MAX, b'\r')?;
    fields.word(b"\n")?;
    Ok(Header { id, kind, is_opaque: flags != 0, same_dc, payload, len: fields.at })
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn peek(&self) -> Result<u8, Stop> {
        self.bytes.get(self.at).copied().ok_or(Stop::NeedMore)
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Stop> {
        let there = &self.bytes[self.at..(self.at + word.len()).min(self.bytes.len())];
        if !word.starts_with(there) {
            return Err(Stop::No);
        }
        self.at += there.len();
        if there.len() < word.len() { Err(Stop::NeedMore) } else { Ok(()) }
    }

    /// A decimal number of at most `max`, without leading zeros, and the byte after it.
    fn number(&mut self, max: u64, then: u8) -> Result<u64, Stop> {
        let from = self.at;
        let mut value: u64 = 0;
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'0'..=b'9' if self.at - from == 1 || value > 0 => {
                    let digit = u64::from(byte - b'0');
                    value =
                        value.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or(Stop::No)?;
                    if value > max {
                        return Err(Stop::No);
                    }
                }
                byte if byte == then && self.at - from > 1 => return Ok(value),
                _ => return Err(Stop::No),
            }
        }
    }

    fn skip(&mut self, len: usize) -> Result<(), Stop> {
        if self.bytes.len() - self.at < len {
            return Err(Stop::NeedMore);
        }
        self.at += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected`: id, kind, opaque, same datacenter, payload.
    #[track_caller]
    fn check(line: &[u8], expected: Option<(u64, Kind, bool, bool, u64)>) {
        let reads: Vec<Read> = (0..=line.len()).map(|len| read(&line[..len])).collect();
        let last = match *reads.last().expect("at least one") {
            Read::Header(h) => {
                assert_eq!(h.len, line.len());
                Some((h.id, h.kind, h.is_opaque, h.same_dc, h.payload))
            }
            Read::No => None,
            Read::NeedMore => panic!("undecided: {}", String::from_utf8_lossy(line)),
        };
        assert_eq!(last, expected, "{}", String::from_utf8_lossy(line));
        // Decided once, whatever follows.
        let first = reads.iter().position(|read| *read != Read::NeedMore).expect("decided");
        assert!(reads[first..].iter().all(|read| *read == reads[first]));
    }

    #[test]
    fn headers_as_dynomite_writes_them() {
        use Kind::{Forward, Other, Reply, Request};
        check(b"   $2014$ 67 3 0 1 1 *1 d *93\r\n", Some((67, Request, false, true, 93)));
        check(b"   $2014$ 240041 5 0 1 1 *1 d *5\r\n", Some((240_041, Reply, false, true, 5)));
        check(b"   $2014$ 1 4 0 1 0 *1 d *0\r\n", Some((1, Forward, false, false, 0)));
        check(b"   $2014$ 0 7 0 1 1 *1 d *9\r\n", Some((0, Other("GOSSIP SYN"), false, true, 9)));
        check(b"   $2014$ 1 3 0 1 *1 d *9\r\n", Some((1, Request, false, true, 9)));
        // A key block may hold anything, line ends too.
        check(b"   $2014$ 1 3 1 1 1 *8 a\r\n * \r\n *32\r\n", Some((1, Request, true, true, 32)));
    }

    #[test]
    fn what_dynomite_does_not_write_is_no_header() {
        for line in [
            "  $2014$ 1",
            "   $2015$",
            "   $2014$  ",
            "   $2014$ 01",
            "   $2014$ 1 99",
            "   $2014$ 1 14 ",
            "   $2014$ 1 0 ",
            "   $2014$ 1 3 4",
            "   $2014$ 1 3 0 2",
            "   $2014$ 1 3 0 1 2",
            "   $2014$ 1 3 0 1 1 1",
            "   $2014$ 1 3 0 1 1 *2000",
            "   $2014$ 1 3 0 1 1 *1 dd",
            "   $2014$ 1 3 0 1 1 *1 d *4294967296",
            "   $2014$ 1 3 0 1 1 *1 d *-",
            "   $2014$ 1 3 0 1 1 *1 d *5\n",
            "   $2014$ 18446744073709551616",
            "*1\r\n",
        ] {
            check(line.as_bytes(), None);
        }
    }
}
