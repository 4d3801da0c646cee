//! Options of sockets that `std` does not set.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

/// Sets an option of `SOL_SOCKET`, whose value is as the kernel has it: an integer or a structure of integers.
pub fn set_option<T: Copy>(socket: &impl AsRawFd, option: libc::c_int, value: T) -> io::Result<()> {
    // SAFETY: pointer and length are those of `value`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<T>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
