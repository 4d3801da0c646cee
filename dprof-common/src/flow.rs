//! A connection as one of its sockets names it.

/// Addresses and ports of a TCP socket. Addresses are 16 bytes in network order; an IPv4 address is stored
/// v4-mapped (`::ffff:a.b.c.d`), so an `AF_INET` socket and a dual-stack `AF_INET6` one compare equal.
/// Ports are in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Flow {
    /// Address of this machine.
    pub local_addr: [u8; 16],
    /// Address of the peer.
    pub peer_addr: [u8; 16],
    /// Port of this machine, host order.
    pub local_port: u16,
    /// Port of the peer, host order.
    pub peer_port: u16,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
}

const _: () = assert!(core::mem::size_of::<Flow>() == 40);

#[cfg(feature = "user")]
impl Flow {
    /// This machine's end. A v4-mapped address comes back as IPv4.
    pub fn local(&self) -> std::net::SocketAddr {
        socket_addr(self.local_addr, self.local_port)
    }

    /// The peer's end. A v4-mapped address comes back as IPv4.
    pub fn peer(&self) -> std::net::SocketAddr {
        socket_addr(self.peer_addr, self.peer_port)
    }
}

#[cfg(feature = "user")]
fn socket_addr(addr: [u8; 16], port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(std::net::Ipv6Addr::from(addr).to_canonical(), port)
}
