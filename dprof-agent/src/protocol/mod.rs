//! Protocols: bytes of a stream in, messages out. One file per protocol behind one pair of traits; adding one
//! touches that file and [`ALL`].
//!
//! What a reader would get wrong: a parser never sees time, calls or sockets. It sees two byte streams with
//! positions and holes, and names byte ranges. When a byte was sent or read is the stream's knowledge.

use std::borrow::Cow;
use std::net::SocketAddr;

pub use self::keys::KeyRanges;

use self::capture::Capture;

mod answers;
pub mod capture;
pub mod detect;
mod dnode;
#[cfg(test)]
mod feeding;
mod hash;
mod http1;
mod keys;
mod memcached;
mod proxy;
pub mod redact;
mod resp;
#[cfg(test)]
mod testing;
mod text;
pub(crate) mod tls;

/// OpenTelemetry attributes: names and values.
pub type Attributes = Vec<(Cow<'static, str>, String)>;

/// Direction of bytes as the socket's owner sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sent by this end.
    Out,
    /// Received by this end.
    In,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Out => Self::In,
            Self::In => Self::Out,
        }
    }

    /// 0 for `Out`, 1 for `In`: an index.
    pub const fn idx(self) -> usize {
        match self {
            Self::Out => 0,
            Self::In => 1,
        }
    }
}

/// What a message is to pairing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Expects an answer.
    Request,
    /// Expects none (memcached `noreply`, RESP under `CLIENT REPLY OFF`).
    OneWay,
    /// Answers a request.
    Response,
    /// Comes unasked (RESP3 push, pub/sub message, HTTP 1xx): counted, not paired.
    Push,
    /// Answers a request without a byte of its own: the response whose range this is shows that there was nothing
    /// to say (a quiet command of memcached).
    Silence,
}

/// How a response finds its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correlation {
    /// Responses come in the order of requests.
    Fifo,
    /// By a number in the message, unique among those open on the connection.
    Id(u64),
}

/// Attribute of a request that waits by its own wish (`BLPOP`, `XREAD BLOCK`, `WAIT`): `true`, or `unknown` if a hole
/// hid it. Its latency says when something came, not how fast the server is.
pub const BLOCKING_ATTRIBUTE: &str = "dprof.blocking";

/// Attribute of a request that its receiver is to hand on to others as well.
pub const FORWARD_ATTRIBUTE: &str = "dprof.dnode.forward";

/// What of a request may travel alone: a proxy that splits `MGET a b` into `MGET a` and `MGET b`, or into `GET a`
/// and `GET b`, sends its parts on. A part is a key with what belongs to it (`MSET`: the value), so the parts of
/// what the proxy sends are among the parts of what it got, whatever the commands are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parts {
    /// None, or not known (a hole, too many).
    #[default]
    None,
    /// The only one: everything but the command's name. Costs no allocation.
    One(u64),
    /// Several, in the order of the request.
    Many(Box<[u64]>),
}

impl Parts {
    /// Their hashes.
    pub fn as_slice(&self) -> &[u64] {
        match self {
            Self::None => &[],
            Self::One(hash) => std::slice::from_ref(hash),
            Self::Many(hashes) => hashes,
        }
    }
}

/// One message, named by its byte range.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Direction of its bytes.
    pub direction: Direction,
    /// What it is.
    pub kind: MessageKind,
    /// Stream position of the first byte.
    pub start: u64,
    /// Position after the last byte.
    pub end: u64,
    /// How it is paired.
    pub correlation: Correlation,
    /// Request: operation of low cardinality (`GET`, `GET /cart`). Empty in a response.
    pub operation: Cow<'static, str>,
    /// Request: statement as it may be stored: keys kept, values `?`. Response: empty.
    pub text: String,
    /// Request: keys that it names, as ranges of [`Message::text`].
    pub keys: KeyRanges,
    /// Bytes of the value that a request writes or a response brings, at most `u32::MAX`; `None`: it has none.
    pub value_bytes: Option<u32>,
    /// Response: whether it reports a failure.
    pub is_error: bool,
    /// Response: the protocol's status word (`404`, `WRONGTYPE`). Empty if none.
    pub status_code: Cow<'static, str>,
    /// Further OpenTelemetry attributes.
    pub attributes: Attributes,
    /// Id carried in the message by the application's own tracing: 128-bit trace id and 64-bit parent span id.
    pub explicit_id: Option<(u128, u64)>,
    /// Hash of an id that proxies pass on unchanged (`X-Request-ID`).
    pub request_id: Option<u64>,
    /// Hash of the whole content, so that a message that is passed on has the same one on both sides of a proxy:
    /// of a request its operation and every argument, of a response everything. `None` if bytes were not seen or
    /// hold a secret.
    pub content_hash: Option<u64>,
    /// Request: hashes of its parts, for proxies that split.
    pub parts: Parts,
    /// Request: a hole hid whether and how often it is answered. In FIFO order nothing after it is certain until the
    /// connection was idle. [`MessageKind::OneWay`]: it may have been answered, by what is then taken for a push.
    pub answers_unknown: bool,
    /// A hole hid what names the message (its operation). Holes in bodies that are skipped by arithmetic do not
    /// count: range and operation are exact, only [`Message::content_hash`] is then `None`.
    pub incomplete: bool,
}

impl Message {
    /// A message of this range with nothing else known.
    pub fn new(direction: Direction, kind: MessageKind, start: u64, end: u64) -> Self {
        Self {
            direction,
            kind,
            start,
            end,
            correlation: Correlation::Fifo,
            operation: Cow::Borrowed(""),
            text: String::new(),
            keys: KeyRanges::NONE,
            value_bytes: None,
            is_error: false,
            status_code: Cow::Borrowed(""),
            attributes: Vec::new(),
            explicit_id: None,
            request_id: None,
            content_hash: None,
            parts: Parts::None,
            answers_unknown: false,
            incomplete: false,
        }
    }
}

/// What a parser tells the stream, in stream order per direction.
#[expect(clippy::large_enum_variant, reason = "nearly all are messages, and they are moved once")]
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// A whole message.
    Message(Message),
    /// Bytes from here on belong to no message until the next [`Parsed::Message`] of this direction: the parser
    /// lost the boundary (hole, garbage) and seeks the next one by itself. Said once per loss. Requests open in
    /// this direction's order can no longer be paired with certainty.
    Lost {
        /// Direction that lost its boundary.
        direction: Direction,
        /// Where.
        at: u64,
    },
    /// The connection speaks another protocol from here on (HTTP upgrade, StartTLS): detect again.
    Switch {
        /// First position of the new protocol, per direction index.
        at: [u64; 2],
    },
    /// No messages from here on, for as long as the connection lives (a replication stream): nothing needs to be
    /// fed any more, and nothing that is fed gives anything.
    Opaque {
        /// First position without messages, per direction index.
        at: [u64; 2],
    },
    /// Nothing can be read from here on (TLS): under the protocol's name, the connection is cut by changes of
    /// direction.
    Encrypted {
        /// First position of what cannot be read, per direction index.
        at: [u64; 2],
        /// Direction of requests.
        request_direction: Direction,
        /// What is known of the connection, for each of its requests.
        attributes: Attributes,
    },
    /// A proxy passes on somebody's connection and says whose (PROXY protocol).
    Origin {
        /// Who connected to the proxy.
        client: SocketAddr,
        /// Where to.
        server: SocketAddr,
    },
    /// This is not the protocol that detection took it for; detect again without it.
    Mistaken,
}

/// A parser of one connection: both directions, fed in the order of capture. Positions only grow. A parser
/// bounds its own memory and never panics, whatever the bytes.
pub trait Parser: Send {
    /// The next bytes of `direction`; the first is at `pos`. `pos` continues where the last `feed` or `gap` of
    /// this direction ended.
    fn feed(&mut self, direction: Direction, pos: u64, bytes: &[u8], out: &mut Vec<Parsed>);

    /// `len` bytes from `pos` on were not seen. Inside a body whose length is known this costs nothing: the
    /// parser skips by arithmetic. Otherwise it says [`Parsed::Lost`] and finds the next safe boundary.
    fn gap(&mut self, direction: Direction, pos: u64, len: u64, out: &mut Vec<Parsed>);

    /// The direction ended (close): a message that ends with the connection is complete now.
    fn end(&mut self, direction: Direction, pos: u64, out: &mut Vec<Parsed>);

    /// Position of the first byte of `direction` that may still belong to an unfinished message: the stream
    /// keeps times from here on. The position after the last byte fed when nothing is unfinished.
    fn unfinished_from(&self, direction: Direction) -> u64;

    /// What may be kept of keys and values from now on; without a word, the default of [`Capture`].
    fn set_capture(&mut self, _capture: Capture) {}

    /// How many bytes of a call in `direction` are worth capturing from now on.
    fn payload_limit(&self, direction: Direction) -> u32;
}

/// How sure detection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Cannot be this protocol.
    No,
    /// Not enough bytes to say.
    NeedMore,
    /// Could be: ports may break a tie.
    Maybe,
    /// Certainly, and this direction carries requests (`Out` or `In`).
    Yes,
}

/// The first bytes of both directions of a connection, or after a loss of synchronisation.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// First contiguous bytes of each direction (index: [`Direction::idx`]); empty if none yet.
    pub bytes: [&'a [u8]; 2],
    /// Ports, local and peer: a tie-breaker only.
    pub ports: [u16; 2],
    /// Direction of the request, if the connection's role is known: `Out` for a client.
    pub request_direction: Option<Direction>,
    /// Whether the first bytes may lie in the middle of a message: the connection is older than what was seen
    /// of it, or bytes before these are missing.
    pub joined: bool,
}

impl Head<'_> {
    /// Whether these are bytes of a Dynomite peer that was joined in the middle: what its payloads hold reads like other
    /// protocols, and is none of theirs.
    fn is_within_dnode(&self) -> bool {
        self.joined && self.bytes.into_iter().any(dnode::has_header)
    }
}

/// What detection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detected {
    /// How sure.
    pub verdict: Verdict,
    /// Which direction carries requests, as the content shows it.
    pub request_direction: Option<Direction>,
}

/// A protocol: detects itself and makes parsers.
pub trait Protocol: Send + Sync {
    /// Name as stored: `redis`, `http`.
    fn name(&self) -> &'static str;

    /// Ports that it usually listens on: they break a tie, nothing else.
    fn ports(&self) -> &'static [u16];

    /// Judges the first bytes. Must not depend on how they were cut into calls: a verdict other than
    /// [`Verdict::NeedMore`] stays the same when more bytes follow.
    fn detect(&self, head: &Head<'_>) -> Detected;

    /// A parser whose first bytes are at these positions (per direction index). They are message boundaries,
    /// unless the connection was `joined` in the middle ([`Head::joined`]): then the parser first seeks one in
    /// either direction, without saying [`Parsed::Lost`].
    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser>;
}

/// The protocols, in the order in which detection asks them. Their grammars exclude each other, so the order
/// matters for speed only; but for a connection that was joined, where DNODE comes before what its payloads speak.
pub static ALL: &[&dyn Protocol] =
    &[&dnode::Dnode, &resp::Resp, &http1::Http1, &memcached::Memcached, &tls::Tls, &proxy::Proxy];
