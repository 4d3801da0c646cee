//! Addresses of this host, in the network namespaces that are watched.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::netns;

/// More are not told: containers' hosts have thousands, and a person reads them.
const ADDRESSES_MAX: usize = 16;

/// Addresses in these namespaces; without any in this process's own. Loopback and link-local ones are left out. Those
/// of other namespaces can only be asked for while the process may enter them: call it before privileges are given up.
pub fn addresses(namespaces: &[PathBuf]) -> Vec<String> {
    let mut found = BTreeSet::new();
    if namespaces.is_empty() {
        found = own();
    }
    for path in namespaces {
        found.extend(netns::within(path, own).unwrap_or_default());
    }
    found.into_iter().take(ADDRESSES_MAX).map(|address| address.to_string()).collect()
}

/// Addresses in this process's own namespace.
pub fn own() -> BTreeSet<IpAddr> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: fills in the head of a list, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return BTreeSet::new();
    }
    let mut found = BTreeSet::new();
    let mut next = list;
    // SAFETY: the list's elements live until it is freed; each says where the next is, the last that there is none.
    while let Some(interface) = unsafe { next.as_ref() } {
        found.extend(address_of(interface.ifa_addr));
        next = interface.ifa_next;
    }
    // SAFETY: came from getifaddrs, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(list) };
    found.retain(|address| !is_of_no_use(address));
    found
}

/// The address behind a pointer from `getifaddrs`, null or of any family.
fn address_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null, or a valid address whose family says how long it is.
    let family = unsafe { address.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: an address of this family is such a struct; it need not be aligned for it.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::from(address.sin6_addr.s6_addr))
        }
        _ => None,
    }
}

/// The same on every host, or of one cable only.
pub const fn is_of_no_use(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_back_and_loopback_is_none() {
        for text in addresses(&[]) {
            let address: IpAddr = text.parse().expect("an address");
            assert!(!is_of_no_use(&address), "{address}");
        }
        assert_eq!(addresses(&[PathBuf::from("/nowhere")]), [""; 0]);
        for (text, expected) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("fe80::1", true),
            ("169.254.0.1", true),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_of_no_use(&text.parse().expect("an address")), expected, "{text}");
        }
    }
}
