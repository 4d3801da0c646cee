//! What two Dynomite nodes say to each other: batches of requests of many clients and their replies by message id,
//! RESP or memcached inside, some encrypted; gossip between them.

use super::memcached::Memcached;
use super::{Choose, Redis, Turn};

/// A connection from one node to another.
pub(crate) struct Dnode {
    redis: Redis,
    memcached: Memcached,
    carries_memcached: bool,
    /// The sending process's counter: other peers get numbers, too.
    id: u32,
}

const REQUEST: u8 = 3;
const FORWARD: u8 = 4;
const REPLY: u8 = 5;
const GOSSIP: u8 = 7;

const ENCRYPTED: u8 = 1;

fn frame(id: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let key = if flags & ENCRYPTED != 0 { "*4 \r\n\0*" } else { "*1 d" };
    let mut bytes = format!("   $2014$ {id} {kind} {flags} 1 1 {key} *{}\r\n", payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Dnode {
    pub(crate) fn new(carries_memcached: bool) -> Self {
        Self { redis: Redis::default(), memcached: Memcached::new(false), carries_memcached, id: 240_000 }
    }

    /// What a node does in one go.
    pub(crate) fn turn(&mut self, rng: &mut dyn Choose, depth: u32) -> Turn {
        let mut turn = Turn { takes_us: 20 + u64::from(rng.below(300)), ..Turn::default() };
        for _ in 0..=rng.below(depth * 2) {
            self.id += 1 + rng.below(3);
            let id = self.id;
            if rng.below(12) == 0 {
                turn.say(frame(id, GOSSIP, 0, b"10.0.0.1:8101,token"), Vec::new());
                continue;
            }
            let (request, reply) = self.carried(rng);
            let is_encrypted = rng.below(10) == 0;
            let kind = if rng.below(4) == 0 { FORWARD } else { REQUEST };
            if is_encrypted {
                let hidden: Vec<u8> = (0..request.len()).map(|n| n as u8 ^ 0xa5).collect();
                turn.say(
                    frame(id, kind, ENCRYPTED, &hidden),
                    frame(id, REPLY, ENCRYPTED, &hidden[..=hidden.len() / 2]),
                );
            } else {
                turn.say(frame(id, kind, 0, &request), frame(id, REPLY, 0, &reply));
            }
        }
        // Replies need no order.
        if rng.below(4) == 0 {
            turn.replies.reverse();
        }
        turn
    }

    /// A client's command and its reply.
    fn carried(&mut self, rng: &mut dyn Choose) -> (Vec<u8>, Vec<u8>) {
        if !self.carries_memcached {
            let (request, reply) = self.redis.ordinary(rng);
            // Dynomite knows no inline commands.
            let request =
                if request[0] == b'*' { request } else { super::command(&["GET", &self.redis.key()]) };
            return (request, reply.into_bytes());
        }
        let turn = self.memcached.plain(rng);
        (turn.requests.concat(), turn.replies.concat())
    }
}
