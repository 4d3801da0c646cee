//! The 24 bytes before each packet's body, and what each opcode is.

use super::super::command::VALUE_BYTES_MAX;

/// First byte of a request.
pub(in super::super) const REQUEST: u8 = 0x80;
/// First byte of a response.
pub(in super::super) const RESPONSE: u8 = 0x81;

pub(in super::super) const HEADER_BYTES: usize = 24;
/// Longest extras and longest key, bytes.
const EXTRAS_BYTES_MAX: u8 = 32;
const KEY_BYTES_MAX: u16 = 250;

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Always,
    /// A miss says nothing.
    QuietMiss,
    /// Success says nothing.
    QuietSuccess,
    /// Packets until an empty one.
    Many,
}

/// Opcode, operation as the text protocol names it, how it is answered.
pub(super) const OPCODES: [(u8, &str, Reply); 37] = [
    (0x00, "get", Reply::Always),
    (0x01, "set", Reply::Always),
    (0x02, "add", Reply::Always),
    (0x03, "replace", Reply::Always),
    (0x04, "delete", Reply::Always),
    (0x05, "incr", Reply::Always),
    (0x06, "decr", Reply::Always),
    (0x07, "quit", Reply::Always),
    (0x08, "flush_all", Reply::Always),
    (0x09, "get", Reply::QuietMiss),
    (0x0a, "noop", Reply::Always),
    (0x0b, "version", Reply::Always),
    (0x0c, "get", Reply::Always),
    (0x0d, "get", Reply::QuietMiss),
    (0x0e, "append", Reply::Always),
    (0x0f, "prepend", Reply::Always),
    (0x10, "stats", Reply::Many),
    (0x11, "set", Reply::QuietSuccess),
    (0x12, "add", Reply::QuietSuccess),
    (0x13, "replace", Reply::QuietSuccess),
    (0x14, "delete", Reply::QuietSuccess),
    (0x15, "incr", Reply::QuietSuccess),
    (0x16, "decr", Reply::QuietSuccess),
    (0x17, "quit", Reply::QuietSuccess),
    (0x18, "flush_all", Reply::QuietSuccess),
    (0x19, "append", Reply::QuietSuccess),
    (0x1a, "prepend", Reply::QuietSuccess),
    (0x1b, "verbosity", Reply::Always),
    (0x1c, "touch", Reply::Always),
    (0x1d, "gat", Reply::Always),
    (0x1e, "gat", Reply::QuietMiss),
    (0x20, "sasl_list_mechs", Reply::Always),
    (0x21, "sasl_auth", Reply::Always),
    (0x22, "sasl_step", Reply::Always),
    (0x23, "gat", Reply::Always),
    (0x24, "gat", Reply::QuietMiss),
    (0x25, "hello", Reply::Always),
];

/// Opcodes whose key and value are secrets.
pub(super) const fn is_secret(opcode: u8) -> bool {
    matches!(opcode, 0x20..=0x22)
}

/// `quit` that says nothing, whatever happens.
pub(super) const QUIT_QUIETLY: u8 = 0x17;

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Header {
    pub(super) is_response: bool,
    pub(super) opcode: u8,
    pub(super) operation: &'static str,
    pub(super) reply: Reply,
    pub(super) key: u16,
    pub(super) extras: u8,
    pub(super) status: u16,
    pub(in super::super) body: u32,
    pub(super) opaque: u32,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Stop {
    NeedMore,
    No,
}

impl Header {
    /// Reads the header that `bytes` start with.
    pub(in super::super) fn read(bytes: &[u8]) -> Result<Self, Stop> {
        let byte = |at: usize| bytes.get(at).copied().ok_or(Stop::NeedMore);
        let short = |at: usize| Ok(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
        let long =
            |at: usize| Ok(u32::from_be_bytes([byte(at)?, byte(at + 1)?, byte(at + 2)?, byte(at + 3)?]));
        let is_response = match byte(0)? {
            REQUEST => false,
            RESPONSE => true,
            _ => return Err(Stop::No),
        };
        let opcode = byte(1)?;
        let &(_, operation, reply) = OPCODES.iter().find(|(known, ..)| *known == opcode).ok_or(Stop::No)?;
        let key = short(2)?;
        let extras = byte(4)?;
        // The data type is always 0.
        if key > KEY_BYTES_MAX || extras > EXTRAS_BYTES_MAX || byte(5)? != 0 {
            return Err(Stop::No);
        }
        let status = short(6)?;
        let body = long(8)?;
        if u64::from(body) > VALUE_BYTES_MAX || body < u32::from(key) + u32::from(extras) {
            return Err(Stop::No);
        }
        let opaque = long(12)?;
        byte(HEADER_BYTES - 1)?;
        Ok(Self { is_response, opcode, operation, reply, key, extras, status, body, opaque })
    }

    /// Whether byte `at` of the body is written to a recording: extras and key, no number that is a value, no secret.
    pub(in super::super) fn keeps(&self, at: u64) -> bool {
        let extras = u64::from(self.extras);
        if at < extras {
            !matches!(self.operation, "incr" | "decr")
        } else {
            at < extras + u64::from(self.key) && !is_secret(self.opcode)
        }
    }

    pub(super) const fn is_quiet(&self) -> bool {
        matches!(self.reply, Reply::QuietMiss | Reply::QuietSuccess)
    }
}
