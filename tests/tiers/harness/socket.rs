//! System calls on sockets that `std` does not make: options, and every form of sending and receiving.

use std::io;
use std::mem::size_of;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::ptr;

pub(crate) use dprof_tests::socket_option::set_option;

/// Has `close` send a reset.
pub(crate) fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    set_option(stream, libc::SO_LINGER, libc::linger { l_onoff: 1, l_linger: 0 })
}

/// A connected pair on loopback: client, server.
pub(crate) fn pair(listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// A system call that sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Send {
    Write,
    Writev,
    Sendto,
    Sendmsg,
    Sendmmsg,
}

impl Send {
    pub(crate) const ALL: [Self; 5] =
        [Self::Write, Self::Writev, Self::Sendto, Self::Sendmsg, Self::Sendmmsg];

    /// Sends all of `bytes` (small: they fit the socket) by this call; forms that gather do so from three pieces.
    pub(crate) fn all(self, socket: &impl AsRawFd, bytes: &[u8]) -> io::Result<()> {
        let mut vectors = pieces(bytes.as_ptr().cast_mut().cast(), bytes.len());
        let mut message = message(&mut vectors);
        let fd = socket.as_raw_fd();
        // SAFETY: every pointer is to `bytes`, `vectors` or `message`, which live through the call; none is
        // written to through them.
        let sent = unsafe {
            match self {
                Self::Write => libc::write(fd, bytes.as_ptr().cast(), bytes.len()),
                Self::Writev => libc::writev(fd, vectors.as_ptr(), vectors.len() as i32),
                Self::Sendto => libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, ptr::null(), 0),
                Self::Sendmsg => libc::sendmsg(fd, &raw const message.msg_hdr, 0),
                Self::Sendmmsg => match libc::sendmmsg(fd, &raw mut message, 1, 0) {
                    1 => message.msg_len as isize,
                    other => other as isize,
                },
            }
        };
        whole(sent, bytes.len())
    }
}

/// A system call that receives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recv {
    Read,
    Readv,
    Recvfrom,
    Recvmsg,
    Recvmmsg,
}

impl Recv {
    pub(crate) const ALL: [Self; 5] =
        [Self::Read, Self::Readv, Self::Recvfrom, Self::Recvmsg, Self::Recvmmsg];

    /// Receives once, at most `max` bytes; forms that scatter do so into three pieces.
    pub(crate) fn once(self, socket: &impl AsRawFd, max: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; max];
        let mut vectors = pieces(buffer.as_mut_ptr().cast(), max);
        let mut message = message(&mut vectors);
        let fd = socket.as_raw_fd();
        // SAFETY: every pointer is to `buffer`, `vectors` or `message`, which live through the call, with their
        // lengths.
        let received = unsafe {
            match self {
                Self::Read => libc::read(fd, buffer.as_mut_ptr().cast(), max),
                Self::Readv => libc::readv(fd, vectors.as_ptr(), vectors.len() as i32),
                Self::Recvfrom => {
                    libc::recvfrom(fd, buffer.as_mut_ptr().cast(), max, 0, ptr::null_mut(), ptr::null_mut())
                }
                Self::Recvmsg => libc::recvmsg(fd, &raw mut message.msg_hdr, 0),
                Self::Recvmmsg => match libc::recvmmsg(fd, &raw mut message, 1, 0, ptr::null_mut()) {
                    1 => message.msg_len as isize,
                    other => other as isize,
                },
            }
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        buffer.truncate(received);
        Ok(buffer)
    }
}

/// Looks at what arrived without taking it.
pub(crate) fn peek(socket: &TcpStream) -> io::Result<usize> {
    socket.peek(&mut [0; 64])
}

/// `recv` with `MSG_WAITALL`: one call for all of `length` bytes.
pub(crate) fn recv_all(socket: &TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; length];
    // SAFETY: pointer and length are those of `buffer`.
    let received =
        unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), length, libc::MSG_WAITALL) };
    whole(received, length).map(|()| buffer)
}

/// `splice` from one descriptor to another (one of them a pipe), until `length` bytes went through.
pub(crate) fn splice(from: &impl AsRawFd, to: &impl AsRawFd, length: usize) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        // SAFETY: no memory is passed, offsets are null.
        let moved = unsafe {
            libc::splice(from.as_raw_fd(), ptr::null_mut(), to.as_raw_fd(), ptr::null_mut(), left, 0)
        };
        match usize::try_from(moved) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => left -= moved,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// `sendfile` of the first `length` bytes of `file`.
pub(crate) fn sendfile(socket: &TcpStream, file: &impl AsRawFd, length: usize) -> io::Result<()> {
    let mut offset: libc::off_t = 0;
    while (offset as usize) < length {
        let left = length - offset as usize;
        // SAFETY: `offset` lives through the call.
        let sent = unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, left) };
        if sent <= 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Moves bytes by `io_uring`, one entry at a time, until all of `buffer` is sent or filled.
pub(crate) fn by_io_uring(socket: &TcpStream, buffer: &mut [u8], is_send: bool) -> io::Result<()> {
    let mut ring = io_uring::IoUring::new(2)?;
    let fd = io_uring::types::Fd(socket.as_raw_fd());
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let length = rest.len() as u32;
        let entry = if is_send {
            io_uring::opcode::Send::new(fd, rest.as_ptr(), length).build()
        } else {
            io_uring::opcode::Recv::new(fd, rest.as_mut_ptr(), length).build()
        };
        // SAFETY: the buffer lives until the entry is complete, which is waited for.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().ok_or(io::ErrorKind::UnexpectedEof)?.result();
        match usize::try_from(result) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => done += moved,
            Err(_) => return Err(io::Error::from_raw_os_error(-result)),
        }
    }
    Ok(())
}

/// Three pieces of unequal length.
fn pieces(start: *mut libc::c_void, length: usize) -> [libc::iovec; 3] {
    let cuts = [0, length / 5, length / 2, length];
    std::array::from_fn(|idx| libc::iovec {
        iov_base: start.wrapping_byte_add(cuts[idx]),
        iov_len: cuts[idx + 1] - cuts[idx],
    })
}

fn message(vectors: &mut [libc::iovec; 3]) -> libc::mmsghdr {
    // SAFETY: all zeros is a valid header: null pointers with zero lengths.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = vectors.as_mut_ptr();
    message.msg_hdr.msg_iovlen = vectors.len();
    message
}

fn whole(moved: isize, length: usize) -> io::Result<()> {
    match usize::try_from(moved) {
        Ok(moved) if moved == length => Ok(()),
        Ok(moved) => Err(io::Error::other(format!("{moved} bytes of {length} in one call"))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A map of sockets with one socket in it; the socket leaves it when this is dropped.
#[derive(Debug)]
pub(crate) struct SockMap(#[expect(dead_code, reason = "holds the map")] std::os::fd::OwnedFd);

impl SockMap {
    /// Puts an established socket into a map of its own. Needs the right to make maps.
    pub(crate) fn of(socket: &TcpStream) -> io::Result<Self> {
        use std::os::fd::{FromRawFd as _, OwnedFd};

        const BPF_MAP_CREATE: libc::c_long = 0;
        const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
        const BPF_MAP_TYPE_SOCKMAP: u32 = 15;

        /// The members of `union bpf_attr` that the two commands read.
        #[repr(C)]
        struct Update {
            map: u64,
            key: u64,
            value: u64,
            flags: u64,
        }

        let bpf = |command: libc::c_long, attributes: *const libc::c_void, length: usize| {
            // SAFETY: the attributes are of this length and live through the call, as does what they point to.
            let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, length) };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
        };
        // Type, size of a key, of a value, entries.
        let create: [u32; 4] = [BPF_MAP_TYPE_SOCKMAP, 4, 4, 1];
        let map = bpf(BPF_MAP_CREATE, create.as_ptr().cast(), size_of_val(&create))? as i32;
        // SAFETY: a descriptor that was made a moment ago and that nobody else has.
        let map = unsafe { OwnedFd::from_raw_fd(map) };
        let (key, value) = (0_u32, socket.as_raw_fd() as u32);
        let update = Update {
            map: map.as_raw_fd() as u64,
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_ELEM, (&raw const update).cast(), size_of::<Update>())?;
        Ok(Self(map))
    }
}
