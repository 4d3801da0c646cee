//! The first bytes of a chunk, for comparison with what is sent later; and the header that a relay may put before them.

/// Bytes compared per chunk: a command's name and key.
pub(super) const COMPARE_BYTES: usize = 64;
/// Longest PROXY protocol header looked for: version 1 has at most 107 bytes, version 2 with addresses 52.
const PROXY_HEADER_MAX: usize = 108;

/// The first bytes of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) start: u64,
    bytes: [u8; COMPARE_BYTES],
    pub(super) len: u8,
}

impl Head {
    pub(super) fn of(start: u64, bytes: &[u8]) -> Self {
        let len = bytes.len().min(COMPARE_BYTES);
        let mut head = Self { start, bytes: [0; COMPARE_BYTES], len: len as u8 };
        head.bytes[..len].copy_from_slice(&bytes[..len]);
        head
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether `bytes` at `start` agree where both are known; `None` if they do not meet.
    pub(super) fn agrees(&self, start: u64, bytes: &[u8]) -> Option<bool> {
        let (from, to) =
            (start.max(self.start), (start + bytes.len() as u64).min(self.start + u64::from(self.len)));
        if from >= to {
            return None;
        }
        let ours = &self.bytes()[(from - self.start) as usize..(to - self.start) as usize];
        let theirs = &bytes[(from - start) as usize..(to - start) as usize];
        Some(ours == theirs)
    }
}

/// Length of the PROXY protocol header (HAProxy's specification, versions 1 and 2) that `bytes` start with, or 0.
pub(super) fn proxy_header(bytes: &[u8]) -> usize {
    if bytes.starts_with(b"PROXY ") {
        let line = bytes.iter().take(PROXY_HEADER_MAX).position(|byte| *byte == b'\n');
        return line.map_or(0, |at| at + 1);
    }
    match bytes {
        [b'\r', b'\n', b'\r', b'\n', 0, b'\r', b'\n', b'Q', b'U', b'I', b'T', b'\n', _, _, high, low, ..] => {
            let len = 16 + usize::from(u16::from_be_bytes([*high, *low]));
            if len <= bytes.len() { len } else { 0 }
        }
        _ => 0,
    }
}
