//! Causes of loss in the kernel programs; the discriminant is the index in the per-CPU `DROPS` map.

/// Why the kernel side lost (part of) an event. Each has its own counter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The ring was full: the whole event is lost.
    RingFull = 0,
    /// Socket storage could not be made (memory): the event is lost.
    NoSocketStorage = 1,
    /// The per-CPU gathering buffer was in use: the event came without payload.
    ScratchBusy = 2,
    /// User memory could not be read (not resident): the event came with less payload.
    UserReadFailed = 3,
}

impl DropReason {
    /// How many causes there are: the size of the `DROPS` map.
    pub const COUNT: usize = 4;

    /// All causes in the order of their index.
    pub const ALL: [Self; Self::COUNT] =
        [Self::RingFull, Self::NoSocketStorage, Self::ScratchBusy, Self::UserReadFailed];

    /// Name of the counter, as printed and exported.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::NoSocketStorage => "no_socket_storage",
            Self::ScratchBusy => "scratch_busy",
            Self::UserReadFailed => "user_read_failed",
        }
    }

    /// Whether a whole event was lost (else only payload).
    pub const fn loses_event(self) -> bool {
        matches!(self, Self::RingFull | Self::NoSocketStorage)
    }
}
