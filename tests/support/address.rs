//! Loopback addresses that no other test uses, and a bound on how many members run at once.
//!
//! A cluster takes eight neighbouring addresses `127.x.y.z`, found from the process id and a counter, and its members
//! use the standard ports there. Whoever holds the port [`RESERVATION_PORT`] on the first of them owns all eight, so
//! test binaries that run side by side cannot take the same. Nothing else uses these addresses: the kernel gives every
//! outgoing loopback connection the source 127.0.0.1, whatever its destination (`tests/cluster/processes.rs` looks whether that
//! is so), so a port here is never taken by a stranger between the stop and the restart of a member.
//!
//! Only Linux answers on all of 127.0.0.0/8 without being told to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// The port that marks a range of addresses as taken.
const RESERVATION_PORT: u16 = 7399;
/// Addresses of one cluster, and so the most members it can have.
pub const ADDRESSES_PER_CLUSTER: u8 = 8;
/// Where members listen for clients.
pub const CLIENT_PORT: u16 = 7400;
/// Where members listen for each other.
pub const PEER_PORT: u16 = 7401;
/// Where the gate of a member stands, when its cluster has a link between its sites (see [`super::link`]).
pub const GATE_PORT: u16 = 7411;

/// The members that may run at once in this test binary. More would only make all of them slow.
const MEMBERS_AT_ONCE: usize = 9;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Eight addresses that belong to one cluster as long as this lives.
pub struct Addresses {
    base: [u8; 4],
    _reservation: TcpListener,
}

impl Addresses {
    /// Finds addresses that nobody holds.
    pub fn reserve() -> Addresses {
        let process = std::process::id();
        for _ in 0..4096 {
            let counter = NEXT.fetch_add(1, Ordering::Relaxed);
            // 16..=247 in the second place keeps clear of 127.0.0.1, of 127.0.0.53 and of what people choose by hand.
            let place = process.wrapping_mul(31).wrapping_add(counter);
            let second = 16 + (place / (256 * 31)) % 232;
            let third = (place / 31) % 256;
            let fourth = (place % 31) * u32::from(ADDRESSES_PER_CLUSTER);
            let base = [127, second as u8, third as u8, fourth as u8];
            // The first of the eight may end in 0: it carries the reservation and no member.
            if let Ok(reservation) = TcpListener::bind((Ipv4Addr::from(base), RESERVATION_PORT)) {
                return Addresses { base, _reservation: reservation };
            }
        }
        panic!("4096 ranges of loopback addresses are all taken");
    }

    fn ip(&self, member: usize) -> IpAddr {
        assert!(member + 1 < usize::from(ADDRESSES_PER_CLUSTER), "a cluster has room for seven members");
        let [a, b, c, d] = self.base;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d + 1 + member as u8))
    }

    /// Where the member with this number listens for clients.
    pub fn client(&self, member: usize) -> SocketAddr {
        SocketAddr::new(self.ip(member), CLIENT_PORT)
    }

    /// Where the member with this number listens for its peers.
    pub fn peer(&self, member: usize) -> SocketAddr {
        SocketAddr::new(self.ip(member), PEER_PORT)
    }

    /// Where the gate of the member with this number stands.
    pub fn gate(&self, member: usize) -> SocketAddr {
        SocketAddr::new(self.ip(member), GATE_PORT)
    }
}

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// Leave to run so many members at once. Given back when dropped.
pub struct Permit {
    members: usize,
}

impl Permit {
    /// Waits until so many members may run besides those that do.
    pub fn acquire(members: usize) -> Permit {
        assert!(members <= MEMBERS_AT_ONCE, "{members} members are more than may run at once");
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = FREED
            .wait_while(running, |running| *running + members > MEMBERS_AT_ONCE)
            .unwrap_or_else(PoisonError::into_inner);
        *running += members;
        Permit { members }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= self.members;
        FREED.notify_all();
    }
}
