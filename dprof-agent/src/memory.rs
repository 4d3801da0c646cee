//! Gives memory that the allocator keeps for later back to the system.
//!
//! What a reader would get wrong: freed is not returned. Reading the kernel's type information takes twenty
//! megabytes for a moment, a burst some more, and the C library would keep both for as long as the agent runs.

/// Returns what is free. Takes up to some milliseconds: not for a busy moment.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number of bytes to keep; may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
