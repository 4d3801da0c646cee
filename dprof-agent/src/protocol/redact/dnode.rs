//! A message of DNODE: its header stays, its payload is masked as what it is, a command or reply of Redis or
//! memcached.

use super::super::dnode::header::{HEADER_BYTES_MAX, Header, Kind, Read, read};
use super::super::resp::redact::Role;
use super::{Exchange, FILLER, Progress, State, StreamMask, UNKNOWN_FILLER};

/// Headers longer than this have a key block; only their ends are judged.
const PLAIN_HEADER_BYTES_MAX: usize = 96;

/// Whether a call's bytes start with a whole header.
pub(super) fn starts_with_a_header(bytes: &[u8]) -> bool {
    matches!(read(bytes), Read::Header(_))
}

/// A message that passes by.
#[derive(Debug, Default)]
pub(super) struct DnodeMask {
    /// The header as it came.
    held: Vec<u8>,
    payload: Option<Payload>,
}

#[derive(Debug)]
struct Payload {
    left: u64,
    /// `None`: nobody can read it.
    mask: Option<Box<StreamMask>>,
}

impl Payload {
    fn new(header: &Header) -> Self {
        let role = match header.kind {
            _ if header.is_opaque => None,
            Kind::Request | Kind::Forward => Some(Role::Requests),
            Kind::Reply => Some(Role::Replies),
            Kind::Other(_) => None,
        };
        let mask = role.map(|role| Box::new(StreamMask { role, state: State::Start }));
        Self { left: header.payload, mask }
    }

    const fn progress(&self) -> Progress {
        if self.left == 0 { Progress::Done } else { Progress::More }
    }
}

impl DnodeMask {
    /// Masks bytes up to the end of the message; how many that were.
    pub(super) fn mask(&mut self, bytes: &mut [u8], exchange: &mut Exchange) -> (usize, Progress) {
        let mut n = 0;
        while n < bytes.len() {
            let progress = match &mut self.payload {
                None => {
                    let progress = self.mask_header(&mut bytes[n]);
                    n += usize::from(progress != Progress::Bad);
                    progress
                }
                Some(payload) => {
                    let part = payload.left.min((bytes.len() - n) as u64) as usize;
                    match &mut payload.mask {
                        Some(mask) => mask.mask(&mut bytes[n..n + part], true, exchange.inside()),
                        None => bytes[n..n + part].fill(UNKNOWN_FILLER),
                    }
                    payload.left -= part as u64;
                    n += part;
                    payload.progress()
                }
            };
            if progress != Progress::More {
                return (n, progress);
            }
        }
        (n, Progress::More)
    }

    /// Some bytes were not seen; how many of them belong to the message.
    pub(super) fn skip(&mut self, len: u64, exchange: &mut Exchange) -> (u64, Progress) {
        let Some(payload) = &mut self.payload else { return (0, Progress::Bad) };
        let skipped = len.min(payload.left);
        if let Some(mask) = &mut payload.mask {
            mask.gap(skipped, exchange.inside());
        }
        payload.left -= skipped;
        (skipped, payload.progress())
    }

    fn mask_header(&mut self, byte: &mut u8) -> Progress {
        self.held.push(*byte);
        if self.held.len() <= PLAIN_HEADER_BYTES_MAX || *byte == b'\n' || self.held.len() >= HEADER_BYTES_MAX
        {
            match read(&self.held) {
                Read::NeedMore => {}
                Read::No => return Progress::Bad,
                Read::Header(header) => {
                    let payload = Payload::new(&header);
                    let progress = payload.progress();
                    self.payload = Some(payload);
                    return progress;
                }
            }
        }
        // What is no number is the key block.
        if !matches!(*byte, b'0'..=b'9' | b' ' | b'$' | b'*' | b'd' | b'\r' | b'\n') {
            *byte = FILLER;
        }
        Progress::More
    }
}
