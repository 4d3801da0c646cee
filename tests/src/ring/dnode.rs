//! DNODE messages as Dynomite's nodes exchange them: a header in text, then the client's bytes unchanged.

use anyhow::{Context as _, Result, bail};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A request for the receiver's datastore.
    Request = 3,
    /// A request that the receiver also forwards to the other racks of its datacenter.
    RequestForward = 4,
    /// A reply: repeats its request's id.
    Reply = 5,
}

/// The header that `bytes` start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Counter of the sending process.
    pub id: u64,
    /// What it is.
    pub kind: Type,
    /// Whether both nodes are in one datacenter.
    pub same_dc: bool,
    /// Bytes of the header itself, line end included.
    pub length: usize,
    /// Bytes that follow.
    pub payload: usize,
}

/// Bytes of a header at most: more without a line end is no header.
const HEADER_BYTES_MAX: usize = 256;

/// The header's bytes. Encryption is off: the key is the one letter that Dynomite sends then.
pub fn header(id: u64, kind: Type, same_dc: bool, payload: usize) -> Vec<u8> {
    format!("   $2014$ {id} {} 0 1 {} *1 d *{payload}\r\n", kind as u8, u8::from(same_dc)).into_bytes()
}

/// Reads a header; `None` while it is not whole.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        if bytes.len() > HEADER_BYTES_MAX {
            bail!("not DNODE: no end of the header");
        }
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).context("not DNODE")?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let [magic, id, kind, "0", "1", same_dc, "*1", "d", payload] = fields[..] else {
        bail!("not DNODE: {text:?}");
    };
    let kind = match (magic, kind) {
        ("$2014$", "3") => Type::Request,
        ("$2014$", "4") => Type::RequestForward,
        ("$2014$", "5") => Type::Reply,
        _ => bail!("not DNODE: {text:?}"),
    };
    let payload =
        payload.strip_prefix('*').context("payload's length")?.parse().context("payload's length")?;
    Ok(Some(Header {
        id: id.parse().context("id")?,
        kind,
        same_dc: same_dc == "1",
        length: end + 2,
        payload,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_as_real_nodes_write_it() {
        assert_eq!(header(67, Type::Request, true, 93), b"   $2014$ 67 3 0 1 1 *1 d *93\r\n");
        assert_eq!(header(67, Type::Reply, true, 5), b"   $2014$ 67 5 0 1 1 *1 d *5\r\n");
        assert_eq!(header(68, Type::RequestForward, false, 37), b"   $2014$ 68 4 0 1 0 *1 d *37\r\n");
    }

    #[test]
    fn a_header_is_read_back_once_it_is_whole() {
        let bytes = header(240_041, Type::RequestForward, false, 37);
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]).expect("valid"), None, "{cut} bytes");
        }
        let expected = Header {
            id: 240_041,
            kind: Type::RequestForward,
            same_dc: false,
            length: bytes.len(),
            payload: 37,
        };
        assert_eq!(parse(&bytes).expect("valid"), Some(expected));
        assert!(parse(b"*1\r\n").is_err());
        assert!(parse(&[b' '; 300]).is_err());
    }
}
