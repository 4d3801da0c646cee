//! Limits that the kernel programs and the agent must agree on, each with the reason for its value.

/// Payload bytes captured of one system call at most. Pipelines and proxies put hundreds of messages into one: Redis
/// reads 32 KiB at once, many runtimes 64 KiB. Less than that by the room for headers: the length of a record's
/// payload has 16 bits, and so has that of a sample in a perf buffer.
pub const PAYLOAD_BYTES_MAX: usize = 60 * 1024;

/// The same of a call whose messages are large, or while much of the ring waits to be read: bulk data must not push
/// out what others have to say. What a `readv` of a proxy returns (16,320 bytes) still fits.
pub const PAYLOAD_BYTES_BUSY: usize = 16 * 1024;

/// Up to this many payload bytes go straight into the ring record; more are gathered in per-CPU memory first.
/// A pipelined batch of small Redis commands fits.
pub const PAYLOAD_INLINE_BYTES: usize = 128;

/// Entries of one `iovec` array that are walked at most: nutcracker writes 128 at once.
pub const IOVEC_ENTRIES_MAX: usize = 128;

/// Unread segments of one socket whose arrival times are kept apart; further ones merge into the last.
/// A power of two: the kernel program masks the index.
pub const ARRIVALS_MAX: usize = 16;

/// Size of the bare record that costs are compared with: about what a message of a small RPC takes.
pub const FLOOR_BYTES: usize = 176;

/// Default size of the event ring, bytes; a power of two and a multiple of the page.
/// At 200,000 events of 100 bytes it holds 200 ms.
pub const RING_BYTES_DEFAULT: u32 = 4 * 1024 * 1024;

/// Sockets whose state is kept where programs cannot reach socket storage: as many as the connections that the agent
/// remembers. 6 MiB of kernel memory, taken only there.
pub const SOCKETS_MAX: usize = 16 * 1024;
