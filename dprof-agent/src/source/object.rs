//! The kernel programs as ELF objects, embedded by `build.rs`: one writes events to the ring buffer, one to perf
//! buffers, since a map's type is fixed in the object.
//!
//! What a reader would get wrong: they are empty when the agent was built before `cargo xtask build-ebpf`
//! had run; that is how the pure parts build on a machine without the kernel tool chain.

/// The ELF reader takes structures straight out of the bytes, so they must be aligned as its headers are.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static RING: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/dprof-ebpf.o")));
static PERF: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/dprof-ebpf-perf.o")));

/// The object for the ring buffer, aligned to 8 bytes; empty if there was none to embed.
pub static OBJECT: &[u8] = &RING.0;

/// The object for perf buffers, likewise.
pub static OBJECT_PERF: &[u8] = &PERF.0;

#[cfg(test)]
mod tests {
    use super::{OBJECT, OBJECT_PERF};

    #[test]
    fn the_objects_are_aligned_and_are_elf_files_or_empty() {
        for object in [OBJECT, OBJECT_PERF] {
            assert_eq!(object.as_ptr().addr() % 8, 0);
            assert!(object.is_empty() || object.starts_with(b"\x7fELF"), "not an ELF file");
        }
    }
}
