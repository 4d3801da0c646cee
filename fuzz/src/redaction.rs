//! Redaction: whatever a conversation is, and however it is cut, no value is left, lengths stay, and a parser reads the
//! same messages from what is left.

use dprof_agent::protocol::redact::ConnectionMask;
use dprof_agent::protocol::{Direction, Parsed};

use crate::dialogue::{Choose as _, SECRET};
use crate::parsers::{Choices, converse};
use crate::steps::{Step, feed, protocol};

pub(crate) fn redact(data: &[u8]) {
    // Any bytes: no panic.
    let mut mask = ConnectionMask::new(None, true);
    for (idx, bytes) in data.chunks(37).enumerate() {
        let direction = if idx % 2 == 0 { Direction::Out } else { Direction::In };
        mask.mask(direction, &mut bytes.to_vec());
        mask.gap(direction, bytes.len() as u64 % 5);
    }

    let mut choices = Choices(data);
    let (name, said) = converse(&mut choices);
    let mut mask = ConnectionMask::new(Some(Direction::Out), false);
    let mut masked = Vec::new();
    let mut is_cut = false;
    for (way, bytes) in &said {
        let mut bytes = bytes.clone();
        let part = if choices.below(3) == 0 { 1 + choices.below(50) as usize } else { usize::MAX };
        is_cut |= part < bytes.len();
        for part in bytes.chunks_mut(part) {
            mask.mask(*way, part);
        }
        let leaks = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!leaks, "a secret is left: {}", bytes.escape_ascii());
        masked.push(Step::Bytes(*way, bytes));
    }
    let whole: Vec<Step> = said.iter().map(|(way, bytes)| Step::Bytes(*way, bytes.clone())).collect();
    let parsed = |steps: &[Step]| -> Vec<_> {
        let out = feed(&mut *protocol(name).parser(Direction::Out, [0, 0], false), steps, usize::MAX);
        out.into_iter()
            .map(|parsed| match parsed {
                Parsed::Message(message) => Ok((
                    message.direction,
                    message.start,
                    message.end,
                    message.kind,
                    message.operation,
                    message.status_code,
                )),
                other => Err(other),
            })
            .collect()
    };
    // Of these the first message must come whole, to be told from others; else the beginning is masked all.
    if matches!(name, "redis" | "http") || !is_cut {
        assert_eq!(parsed(&masked), parsed(&whole));
    }
}
