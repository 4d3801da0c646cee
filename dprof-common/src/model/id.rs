//! Ids, and the identity of an RPC that both ends compute alone.

use std::fmt;
use std::str::FromStr;

/// Id of one RPC: the same number at both ends ([`rpc_identity`]). Never 0. Printed as 16 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(pub u64);

/// Id of a trace: the root RPC's span id in the low 64 bits, or an id adopted from the root request's header.
/// Never 0. Printed as 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(pub u128);

/// Number of a message on one host, in the order of capture; unique within a run of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

/// Id of one run of an agent: random, new at each start, so that a restart overwrites nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u128);

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdParseError {
    text: String,
    digits_max: usize,
}

impl fmt::Display for IdParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not an id: expected 1 to {} hexadecimal digits, not all zero",
            self.text, self.digits_max
        )
    }
}

impl std::error::Error for IdParseError {}

fn parse_hex(text: &str, digits_max: usize) -> Result<u128, IdParseError> {
    let error = || IdParseError { text: text.to_owned(), digits_max };
    if text.is_empty() || text.len() > digits_max || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(error());
    }
    match u128::from_str_radix(text, 16) {
        Ok(0) | Err(_) => Err(error()),
        Ok(id) => Ok(id),
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SpanId {
    type Err = IdParseError;
    fn from_str(text: &str) -> Result<Self, IdParseError> {
        parse_hex(text, 16).map(|id| Self(id as u64))
    }
}

impl FromStr for TraceId {
    type Err = IdParseError;
    fn from_str(text: &str) -> Result<Self, IdParseError> {
        parse_hex(text, 32).map(Self)
    }
}

impl FromStr for RunId {
    type Err = IdParseError;
    fn from_str(text: &str) -> Result<Self, IdParseError> {
        parse_hex(text, 32).map(Self)
    }
}

impl SpanId {
    /// The trace that this RPC is the root of, unless its request carried an id of its own.
    pub fn as_root_trace(self) -> TraceId {
        TraceId(u128::from(self.0))
    }
}

/// Identity of an RPC: a 64-bit hash of the initial sequence numbers of the request's sender and receiver and
/// of the 64-bit stream position of the request's first byte. Both ends know all three, so both compute the same
/// id with no word between them; address translation and namespaces do not change it.
///
/// The mix is two rounds of the splitmix64 finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", OOPSLA 2014), a bijection of 64 bits per round. At n RPCs alive the chance of any collision is
/// about n²/2⁶⁵: one million gives 3e-8.
pub fn rpc_identity(sender_isn: u32, receiver_isn: u32, request_start_pos: u64) -> SpanId {
    let connection = (u64::from(sender_isn) << 32) | u64::from(receiver_isn);
    let id = mix(mix(connection ^ 0x6470_726f_6600_0001) ^ request_start_pos);
    SpanId(if id == 0 { 1 } else { id })
}

const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_as_fixed_width_lower_case_hex() {
        assert_eq!(SpanId(0xab).to_string(), "00000000000000ab");
        assert_eq!("00000000000000AB".parse(), Ok(SpanId(0xab)));
        assert_eq!(SpanId(0xab).as_root_trace().to_string(), format!("{:032x}", 0xab));
        for bad in ["", "0", "0000000000000000", "xyz", "-1", "00000000000000ab0"] {
            assert!(bad.parse::<SpanId>().is_err(), "{bad}");
        }
        let message = "nope".parse::<TraceId>().unwrap_err().to_string();
        assert!(message.contains("'nope'") && message.contains("32"), "{message}");
    }

    #[test]
    fn identity_depends_on_each_part_and_on_direction() {
        let id = rpc_identity(1, 2, 3);
        assert_eq!(id, rpc_identity(1, 2, 3));
        assert_ne!(id, rpc_identity(2, 1, 3));
        assert_ne!(id, rpc_identity(1, 2, 4));
        // Past the 32-bit wrap the position still tells.
        assert_ne!(rpc_identity(1, 2, 5), rpc_identity(1, 2, 5 + (1 << 32)));
    }

    #[test]
    fn a_million_neighbouring_positions_do_not_collide() {
        let mut ids: Vec<u64> = (0..1_000_000).map(|pos| rpc_identity(7, 9, pos * 31).0).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 1_000_000);
    }
}
