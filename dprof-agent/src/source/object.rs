//! The kernel programs as one ELF object, embedded by `build.rs`.
//!
//! What a reader would get wrong: [`OBJECT`] is empty when the agent was built before `cargo xtask build-ebpf`
//! had run; that is how the pure parts build on a machine without the kernel tool chain.

/// The ELF reader takes structures straight out of the bytes, so they must be aligned as its headers are.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/dprof-ebpf.o")));

/// The object, aligned to 8 bytes; empty if there was none to embed.
pub static OBJECT: &[u8] = &ALIGNED.0;

#[cfg(test)]
mod tests {
    use super::OBJECT;

    #[test]
    fn the_object_is_aligned_and_is_an_elf_file_or_empty() {
        assert_eq!(OBJECT.as_ptr().addr() % 8, 0);
        assert!(OBJECT.is_empty() || OBJECT.starts_with(b"\x7fELF"), "not an ELF file");
    }
}
