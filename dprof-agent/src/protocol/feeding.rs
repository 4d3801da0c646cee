//! What a parser is fed, chunks and holes of both directions, and what it says, checked as it is said.
//!
//! What a reader would get wrong: this is for tests, and the fuzz targets include this file from their own place.

use super::{Direction, MessageKind, Parsed, Parser};

/// A step of an input.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Bytes(Direction, Vec<u8>),
    Gap(Direction, u64),
    End(Direction),
}

/// Feeds the steps, and checks what must hold of whatever a parser says.
pub(super) fn run_on(parser: &mut dyn Parser, steps: &[Step]) -> Vec<Parsed> {
    let mut pos = [0u64; 2];
    let mut kept_from = [0u64; 2];
    let mut out = Vec::new();
    for step in steps {
        let (Step::Bytes(direction, _) | Step::Gap(direction, _) | Step::End(direction)) = *step;
        let at = &mut pos[direction.idx()];
        match step {
            Step::Bytes(_, bytes) => {
                parser.feed(direction, *at, bytes, &mut out);
                *at += bytes.len() as u64;
            }
            Step::Gap(_, len) => {
                parser.gap(direction, *at, *len, &mut out);
                *at += len;
            }
            Step::End(_) => parser.end(direction, *at, &mut out),
        }
        let from = parser.unfinished_from(direction);
        assert!(from <= *at && from >= kept_from[direction.idx()], "unfinished_from {from} at {at}");
        kept_from[direction.idx()] = from;
    }
    let mut ends = [0; 2];
    for parsed in &out {
        if let Parsed::Message(message) = parsed
            && message.kind != MessageKind::Silence
        {
            let last = &mut ends[message.direction.idx()];
            assert!(*last <= message.start && message.start < message.end, "ranges overlap: {message:?}");
            assert!(message.end <= pos[message.direction.idx()], "beyond the stream: {message:?}");
            assert!(message.text.len() < 2048 && message.operation.len() < 1024, "too long: {message:?}");
            *last = message.end;
        }
    }
    out
}

/// The same bytes, each chunk cut where `cut` says (given how many bytes are left, how many to take).
pub(super) fn cut(steps: &[Step], mut cut: impl FnMut(usize) -> usize) -> Vec<Step> {
    let mut parts = Vec::new();
    for step in steps {
        if let Step::Bytes(direction, bytes) = step {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
                parts.push(Step::Bytes(*direction, part.to_vec()));
                rest = after;
            }
        } else {
            parts.push(step.clone());
        }
    }
    parts
}
