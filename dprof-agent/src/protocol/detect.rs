//! Detection: the first bytes of a connection in, the protocol that they speak out.
//!
//! What a reader would get wrong: ports decide nothing by themselves. They only break a tie between protocols
//! that say [`Verdict::Maybe`]. And the answer does not depend on how bytes were cut into calls: no protocol
//! sees more than [`HEAD_BYTES_MAX`] bytes, and a verdict stands whatever follows.

use super::{ALL, Direction, Head, Protocol, Verdict};

/// First bytes of each direction that detection looks at. A request line with a long path fits, and so do the
/// first commands of any Redis client; what does not show itself here is not detected.
pub const HEAD_BYTES_MAX: usize = 1024;

/// What the first bytes speak.
#[derive(Clone, Copy)]
pub enum Detection {
    /// This protocol, with requests in this direction.
    Protocol {
        /// Makes the parser.
        protocol: &'static dyn Protocol,
        /// Which direction carries requests.
        request_direction: Direction,
    },
    /// Ask again when more bytes are there.
    NeedMore,
    /// None that we know. Of a joined connection: not from these bytes; the next change of direction is a good
    /// place to begin new heads.
    None,
}

/// Asks every protocol but the `excluded` (by name) about the first bytes of a connection.
pub fn detect(head: &Head<'_>, excluded: &[&str]) -> Detection {
    detect_among(ALL, head, excluded)
}

pub(crate) fn detect_among(
    protocols: &[&'static dyn Protocol],
    head: &Head<'_>,
    excluded: &[&str],
) -> Detection {
    let full = head.bytes.iter().any(|bytes| bytes.len() >= HEAD_BYTES_MAX);
    let head = Head { bytes: head.bytes.map(|bytes| &bytes[..bytes.len().min(HEAD_BYTES_MAX)]), ..*head };
    let mut undecided = false;
    let mut by_port = None;
    for &protocol in protocols.iter().filter(|protocol| !excluded.contains(&protocol.name())) {
        let detected = protocol.detect(&head);
        let request_direction = detected.request_direction.or(head.request_direction);
        match (detected.verdict, request_direction) {
            (Verdict::Yes, Some(request_direction)) => {
                return Detection::Protocol { protocol, request_direction };
            }
            (Verdict::Maybe, Some(request_direction))
                if by_port.is_none() && head.ports.iter().any(|port| protocol.ports().contains(port)) =>
            {
                by_port = Some(Detection::Protocol { protocol, request_direction });
            }
            (Verdict::No, _) => {}
            (Verdict::NeedMore | Verdict::Maybe | Verdict::Yes, _) => undecided = true,
        }
    }
    match by_port {
        Some(detection) => detection,
        None if undecided && !full => Detection::NeedMore,
        None => Detection::None,
    }
}
