//! What goes over the wire: the listener's greeting with a number used once, then frames of the one who connected.
//!
//! ```text
//! greeting  "dprofw2\n"  nonce[32]  run[16]
//! frame     length u32 (of what follows), seal[32], protobuf
//! ```
//! `run` is the listener's run id, high byte first: an address may lead to another agent than it is thought to, or back to
//! the one who connects. The seal is HMAC-SHA256 (RFC 2104, FIPS 198-1) over nonce, run, number of the frame and
//! protobuf: a frame cannot be forged, and one that was overheard fits no other connection and no other place in this one.

use std::fmt;

use dprof_common::model::{KeepReason, RunId, SpanId, TraceId};
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message as _;
use sha2::Sha256;

use crate::keep::Word;

/// First bytes of a listener.
pub(super) const MAGIC: [u8; 8] = *b"dprofw2\n";
pub(super) const NONCE_BYTES: usize = 32;
const RUN_BYTES: usize = 16;
pub(super) const GREETING_BYTES: usize = MAGIC.len() + NONCE_BYTES + RUN_BYTES;
pub(super) const SEAL_BYTES: usize = 32;
/// Longest frame, bytes.
pub(super) const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Words in a frame at most: some 40 bytes each.
pub(super) const WORDS_MAX: usize = 1_000;

/// What every agent of a fleet knows. Never shown.
#[derive(Clone)]
pub struct Secret(std::sync::Arc<[u8]>);

impl Secret {
    /// These bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Words {
    #[prost(message, repeated, tag = "1")]
    words: Vec<PackedWord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PackedWord {
    #[prost(fixed64, tag = "1")]
    rpc: u64,
    #[prost(fixed64, tag = "2")]
    trace_high: u64,
    /// 0 in both: not known.
    #[prost(fixed64, tag = "3")]
    trace_low: u64,
    #[prost(double, tag = "4")]
    probability: f64,
    #[prost(uint32, tag = "5")]
    reason: u32,
}

/// What a listener says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Never the same twice.
    pub(super) nonce: [u8; NONCE_BYTES],
    /// Who listens.
    pub(super) run: RunId,
}

impl Greeting {
    pub(super) fn to_bytes(self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        let (magic, rest) = bytes.split_at_mut(MAGIC.len());
        let (nonce, run) = rest.split_at_mut(NONCE_BYTES);
        magic.copy_from_slice(&MAGIC);
        nonce.copy_from_slice(&self.nonce);
        run.copy_from_slice(&self.run.0.to_be_bytes());
        bytes
    }

    /// `None`: no agent of this version listens.
    pub(super) fn of(bytes: &[u8; GREETING_BYTES]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (nonce, run) = rest.split_first_chunk()?;
        let run = u128::from_be_bytes(run.try_into().ok()?);
        Some(Self { nonce: *nonce, run: RunId(run) })
    }
}

/// Frames of one connection, at either end.
pub(super) struct Sealer {
    key: Secret,
    greeting: Greeting,
    next: u64,
}

impl Sealer {
    pub(super) const fn new(key: Secret, greeting: Greeting) -> Self {
        Self { key, greeting, next: 0 }
    }

    fn mac(&mut self, payload: &[u8]) -> Hmac<Sha256> {
        // A key of any length is good.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0).expect("HMAC takes any key");
        mac.update(&self.greeting.nonce);
        mac.update(&self.greeting.run.0.to_be_bytes());
        mac.update(&self.next.to_be_bytes());
        mac.update(payload);
        self.next += 1;
        mac
    }

    /// The next frame.
    pub(super) fn seal(&mut self, words: &[Word]) -> Vec<u8> {
        let payload = Words { words: words.iter().map(pack).collect() }.encode_to_vec();
        let seal = self.mac(&payload).finalize().into_bytes();
        let length = (SEAL_BYTES + payload.len()) as u32;
        [&length.to_be_bytes()[..], &seal, &payload].concat()
    }

    /// The words of the next frame, which is given without its length; `None`: it was not sealed so.
    pub(super) fn open(&mut self, frame: &[u8]) -> Option<Vec<Word>> {
        let (seal, payload) = frame.split_at_checked(SEAL_BYTES)?;
        self.mac(payload).verify_slice(seal).ok()?;
        let words = Words::decode(payload).ok()?.words;
        words.iter().map(unpack).collect()
    }
}

fn pack(word: &Word) -> PackedWord {
    let trace = word.trace.map_or(0, |trace| trace.0);
    PackedWord {
        rpc: word.rpc.0,
        trace_high: (trace >> 64) as u64,
        trace_low: trace as u64,
        probability: word.probability,
        reason: u32::from(word.reason as u8),
    }
}

fn unpack(word: &PackedWord) -> Option<Word> {
    let trace = u128::from(word.trace_high) << 64 | u128::from(word.trace_low);
    Some(Word {
        rpc: SpanId(word.rpc),
        trace: (trace != 0).then_some(TraceId(trace)),
        probability: Some(word.probability).filter(|part| (0.0..=1.0).contains(part))?,
        reason: u8::try_from(word.reason).ok().and_then(KeepReason::from_u8)?,
    })
}
