//! Bytes → what a parser is fed: chunks and holes of both directions. And what a parser says, checked as it is said.

use dprof_agent::protocol::{ALL, Direction, Parsed, Parser, Protocol};

pub(crate) use crate::feeding::Step;
use crate::feeding::{cut, run_on};

/// The protocol of this name.
pub(crate) fn protocol(name: &str) -> &'static dyn Protocol {
    *ALL.iter().find(|protocol| protocol.name() == name).expect("a protocol of this name")
}

/// Reads steps: a control byte (direction, hole or bytes, how many), then that many bytes.
pub(crate) fn read(mut data: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((&control, rest)) = data.split_first() {
        let direction = if control & 1 == 0 { Direction::Out } else { Direction::In };
        let len = usize::from(control >> 2) * 3;
        if control & 2 != 0 && control & 0x80 != 0 {
            steps.push(Step::Gap(direction, u64::from(control >> 2) - 31));
            data = rest;
        } else {
            let (bytes, rest) = rest.split_at(len.min(rest.len()));
            if !bytes.is_empty() {
                steps.push(Step::Bytes(direction, bytes.to_vec()));
            }
            data = rest;
        }
    }
    steps
}

/// Steps as [`read`] reads them.
pub(crate) fn write(steps: &[(bool, &str)]) -> Vec<u8> {
    let mut data = vec![0];
    for (is_reply, text) in steps {
        for part in text.as_bytes().chunks(31 * 3) {
            let padded = part.len().div_ceil(3);
            data.push((padded as u8) << 2 | u8::from(*is_reply));
            data.extend_from_slice(part);
            // Empty lines are nothing to either protocol's requests.
            data.extend(std::iter::repeat_n(b'\n', padded * 3 - part.len()));
        }
    }
    data
}

/// Feeds the steps, each chunk in parts of at most `part` bytes, and ends both directions.
pub(crate) fn feed(parser: &mut dyn Parser, steps: &[Step], part: usize) -> Vec<Parsed> {
    let mut parts = cut(steps, |_| part);
    parts.extend([Direction::Out, Direction::In].map(Step::End));
    run_on(parser, &parts)
}
