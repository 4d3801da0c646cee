//! One TCP connection of an event loop, with the system calls that Dynomite makes: `read` of up to 16,320 bytes,
//! `writev` of up to 128 pieces, header and payload each a piece of its own.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What one `read` returns at most: Dynomite's buffer of 16 KiB less its header.
pub const READ_BYTES_MAX: usize = 16_320;

/// Pieces of one `writev`: Dynomite's limit.
const PIECES_MAX: usize = 128;

/// System calls of one kind of connection, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Calls of `read` that returned data.
    pub reads: u64,
    /// Of those, how many returned all of [`READ_BYTES_MAX`].
    pub reads_full: u64,
    /// Calls of `writev`.
    pub writes: u64,
    /// Pieces that they were given.
    pub pieces: u64,
    /// Messages whose last byte they took.
    pub messages: u64,
    /// Most messages that one of them ended.
    pub messages_max: u64,
}

struct Piece {
    bytes: Rc<[u8]>,
    ends_message: bool,
}

/// A connection.
pub struct Pipe {
    file: File,
    /// This end.
    pub local: SocketAddr,
    /// The other.
    pub peer: SocketAddr,
    input: Vec<u8>,
    /// Bytes of the input that are worked on.
    taken: usize,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    /// Whether the other end has closed.
    pub closed: bool,
}

impl Pipe {
    /// Takes over a connected socket.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        // As a file: its calls are `read` and `writev`, those of a socket `recvfrom` and `sendmsg`.
        let file = File::from(OwnedFd::from(stream));
        Ok(Self {
            file,
            local,
            peer,
            input: Vec::new(),
            taken: 0,
            pieces: VecDeque::new(),
            sent: 0,
            closed: false,
        })
    }

    /// For the poll.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads all there is.
    pub fn read(&mut self, calls: &mut Calls) -> Result<()> {
        let mut buffer = [0; READ_BYTES_MAX];
        self.input.drain(..self.taken);
        self.taken = 0;
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => {
                    self.closed = true;
                    return Ok(());
                }
                Ok(count) => {
                    calls.reads += 1;
                    calls.reads_full += u64::from(count == READ_BYTES_MAX);
                    self.input.extend_from_slice(&buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    self.closed = true;
                    return Ok(());
                }
                Err(error) => return Err(error).with_context(|| format!("read from {}", self.peer)),
            }
        }
    }

    /// What was read and not taken.
    pub fn input(&self) -> &[u8] {
        &self.input[self.taken..]
    }

    /// Takes the first bytes of what was read.
    pub fn take(&mut self, length: usize) {
        self.taken += length;
    }

    /// A message to be sent by the next [`Self::write`].
    pub fn push<const N: usize>(&mut self, parts: [Rc<[u8]>; N]) {
        for (idx, bytes) in parts.into_iter().enumerate() {
            self.pieces.push_back(Piece { bytes, ends_message: idx + 1 == N });
        }
    }

    /// Sends what it can.
    pub fn write(&mut self, calls: &mut Calls) -> Result<()> {
        while !self.pieces.is_empty() {
            let mut slices: Vec<IoSlice<'_>> =
                self.pieces.iter().take(PIECES_MAX).map(|piece| IoSlice::new(&piece.bytes)).collect();
            slices[0].advance(self.sent);
            let n_slices = slices.len() as u64;
            match self.file.write_vectored(&slices) {
                Ok(count) => {
                    calls.writes += 1;
                    calls.pieces += n_slices;
                    self.advance(count, calls);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    self.closed = true;
                    self.pieces.clear();
                }
                Err(error) => return Err(error).with_context(|| format!("write to {}", self.peer)),
            }
        }
        Ok(())
    }

    fn advance(&mut self, count: usize, calls: &mut Calls) {
        self.sent += count;
        let mut ended = 0;
        while let Some(piece) = self.pieces.front()
            && self.sent >= piece.bytes.len()
        {
            self.sent -= piece.bytes.len();
            ended += u64::from(piece.ends_message);
            self.pieces.pop_front();
        }
        calls.messages += ended;
        calls.messages_max = calls.messages_max.max(ended);
    }
}
