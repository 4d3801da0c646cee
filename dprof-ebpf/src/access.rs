//! How a kernel structure is read: by plain loads where the verifier knows the pointer's type, else through a helper.
//!
//! Programs are generic over it, and each hook says which it has: arguments of `tp_btf`, `fentry` and `fexit` are
//! typed, those of kprobes and raw tracepoints are numbers. What a reader would get wrong: the two are never mixed in
//! one program, so the choice costs nothing while it runs.

use core::marker::PhantomData;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// A way to read kernel memory.
pub(crate) trait Access: Copy + 'static {
    /// Whether pointers are numbers to the verifier.
    const PROBED: bool;
}

/// Plain loads: checked by the verifier, and unable to fault.
#[derive(Clone, Copy)]
pub(crate) struct Typed;

/// Loads through `bpf_probe_read_kernel`.
#[derive(Clone, Copy)]
pub(crate) struct Probed;

impl Access for Typed {
    const PROBED: bool = false;
}

impl Access for Probed {
    const PROBED: bool = true;
}

/// A kernel address.
#[derive(Clone, Copy)]
pub(crate) struct Ptr<A>(pub(crate) u64, PhantomData<A>);

impl<A: Access> Ptr<A> {
    /// An address that the verifier knows the type of if `A` is [`Typed`].
    #[inline(always)]
    pub(crate) fn new(address: u64) -> Self {
        Self(address, PhantomData)
    }

    /// Loads the member at `offset`; zero if it cannot be read.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, offset: u32) -> T {
        let at = self.0 + u64::from(offset);
        if A::PROBED {
            probed(at)
        } else {
            // SAFETY: the verifier has checked that a T lies at this constant offset of the pointer's type.
            unsafe { core::ptr::read_volatile(at as *const T) }
        }
    }

    /// Copies a member that plain loads cannot reach (arrays of bytes); zeros if it cannot be read.
    #[inline(always)]
    pub(crate) fn copy<const N: usize>(self, offset: u32) -> [u8; N] {
        probed(self.0 + u64::from(offset))
    }
}

/// Reads kernel memory; zeros if it cannot be read. No branch: the helper itself fills in zeros then, and every branch
/// would be another way through the program for the verifier (all kernels).
#[inline(always)]
fn probed<T: Copy>(at: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and writes all of the value either way; T is an integer or an array of
    // them, for which all zeros are valid.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, at as *const _);
        value.assume_init()
    }
}
