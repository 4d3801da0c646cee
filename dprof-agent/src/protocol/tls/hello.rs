//! TLS hellos: the few things that both ends say before they encrypt. Layout of RFC 8446, section 4.1, and RFC 5246;
//! server name RFC 6066, ALPN RFC 7301.
//!
//! What a reader would get wrong: a hello may be spread over several records, and post-quantum key shares make that
//! common. In TLS 1.3 the protocol that ALPN settles on is encrypted; only what the client offered can be read.

/// Bytes of a hello that are gathered: with post-quantum shares and tickets some 2 KiB, rarely more.
pub(super) const HELLO_BYTES_MAX: usize = 8 * 1024;

/// Names of at most this many bytes are kept.
const NAME_BYTES_MAX: usize = 255;

pub(super) const RECORD_BYTES: usize = 5;
pub(super) const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
/// Largest record: 2^14 and what encryption may add (RFC 5246, 6.2.3).
const RECORD_LEN_MAX: u16 = (1 << 14) + 2048;

/// A record's header: its type and its length.
pub(super) fn record(bytes: &[u8]) -> Option<(u8, u16)> {
    let &[kind, 3, minor, high, low, ..] = bytes else { return None };
    let len = u16::from_be_bytes([high, low]);
    ((20..=24).contains(&kind) && minor <= 4 && (1..=RECORD_LEN_MAX).contains(&len)).then_some((kind, len))
}

/// Whether `bytes` start like a record, as far as they go.
pub(super) fn may_be_record(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [kind] => (20..=24).contains(kind),
        [kind, major] => (20..=24).contains(kind) && *major == 3,
        [kind, major, minor, ..] if bytes.len() < RECORD_BYTES => {
            (20..=24).contains(kind) && *major == 3 && *minor <= 4
        }
        _ => record(bytes).is_some(),
    }
}

/// The message that a handshake record starts with: 1 is a client's hello, 2 a server's.
pub(super) fn handshake_kind(bytes: &[u8]) -> Option<u8> {
    let (kind, _) = record(bytes)?;
    bytes.get(RECORD_BYTES).copied().filter(|_| kind == HANDSHAKE)
}

/// What a client's hello says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClientHello {
    pub(super) server_name: Option<String>,
    /// Protocols offered, in the client's order.
    pub(super) alpn: Vec<String>,
}

/// What a server answers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ServerHello {
    /// `1.2`, `1.3`.
    pub(super) version: &'static str,
    /// Chosen protocol, before 1.3.
    pub(super) alpn: Option<String>,
    /// Number of a fatal alert, instead of a hello.
    pub(super) alert: Option<u8>,
}

/// The first handshake message in these records, without the record headers; `None` while it is not whole.
fn first_message(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let (kind, len) = record(bytes)?;
        if kind != HANDSHAKE {
            return None;
        }
        let part = &bytes[RECORD_BYTES..bytes.len().min(RECORD_BYTES + usize::from(len))];
        message.extend_from_slice(part);
        if let [_, a, b, c, ..] = message[..] {
            let len = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if message.len() >= len {
                message.truncate(len);
                return Some(message);
            }
        }
        if part.len() < usize::from(len) {
            return None;
        }
        bytes = &bytes[RECORD_BYTES + usize::from(len)..];
    }
}

/// Reads a client's hello; `None` while it is not whole, or is none.
pub(super) fn client(bytes: &[u8]) -> Option<ClientHello> {
    let message = first_message(bytes)?;
    let mut reader = Reader(message.strip_prefix(&[1])?.get(3..)?);
    // Version, random, session, ciphers, compression.
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    let mut hello = ClientHello::default();
    let Some(mut extensions) = reader.vector16().map(Reader) else { return Some(hello) };
    while let (Some(kind), Some(body)) = (extensions.short(), extensions.vector16()) {
        match kind {
            0 => hello.server_name = server_name(body),
            16 => hello.alpn = protocols(body),
            _ => {}
        }
    }
    Some(hello)
}

/// Reads a server's hello or alert.
pub(super) fn server(bytes: &[u8]) -> Option<ServerHello> {
    if record(bytes)?.0 == ALERT {
        let alert = bytes.get(RECORD_BYTES + 1).copied()?;
        return Some(ServerHello { alert: Some(alert), ..ServerHello::default() });
    }
    let message = first_message(bytes)?;
    let mut reader = Reader(message.strip_prefix(&[2])?.get(3..)?);
    let mut hello = ServerHello { version: version(reader.short()?), ..ServerHello::default() };
    reader.take(32)?;
    reader.vector8()?;
    reader.take(3)?;
    let Some(mut extensions) = reader.vector16().map(Reader) else { return Some(hello) };
    while let (Some(kind), Some(body)) = (extensions.short(), extensions.vector16()) {
        match kind {
            43 if body.len() == 2 => hello.version = version(u16::from_be_bytes([body[0], body[1]])),
            16 => hello.alpn = protocols(body).into_iter().next(),
            _ => {}
        }
    }
    Some(hello)
}

const fn version(number: u16) -> &'static str {
    match number {
        0x0304 => "1.3",
        0x0303 => "1.2",
        0x0302 => "1.1",
        0x0301 => "1.0",
        _ => "",
    }
}

fn server_name(body: &[u8]) -> Option<String> {
    let mut list = Reader(Reader(body).vector16()?);
    let kind = list.take(1)?;
    let name = list.vector16()?;
    (kind == [0]).then(|| printable(name)).flatten()
}

fn protocols(body: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut list = Reader(Reader(body).vector16().unwrap_or_default());
    while let Some(name) = list.vector8()
        && found.len() < 8
    {
        found.extend(printable(name));
    }
    found
}

fn printable(name: &[u8]) -> Option<String> {
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic);
    str::from_utf8(name).ok().filter(|_| fits).map(str::to_owned)
}

/// Vectors as TLS writes them: a length, then so many bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn short(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.short()?;
        self.take(usize::from(len))
    }
}
