//! Conversations with memcached: text with its meta commands, and binary; quiet commands in both.

use super::{Choose, SECRET, Turn};

/// A connection to memcached, in one of its two languages.
pub(crate) struct Memcached {
    is_binary: bool,
    n: u32,
}

const GET: u8 = 0x00;
const SET: u8 = 0x01;
const DELETE: u8 = 0x04;
const INCREMENT: u8 = 0x05;
const NOOP: u8 = 0x0a;
const VERSION: u8 = 0x0b;
const GET_KEY_QUIET: u8 = 0x0d;
const STAT: u8 = 0x10;
const SET_QUIET: u8 = 0x11;

const NOT_FOUND: u16 = 1;
const NOT_STORED: u16 = 5;

/// A packet's fields; magic and the rest of its header follow from the direction.
#[derive(Default)]
struct Packet<'a> {
    opcode: u8,
    extras: &'a [u8],
    key: &'a str,
    value: &'a str,
    status: u16,
    opaque: u32,
}

impl Packet<'_> {
    fn bytes(&self, magic: u8) -> Vec<u8> {
        let mut bytes = vec![magic, self.opcode];
        bytes.extend((self.key.len() as u16).to_be_bytes());
        bytes.extend([self.extras.len() as u8, 0]);
        bytes.extend(self.status.to_be_bytes());
        let body = self.extras.len() + self.key.len() + self.value.len();
        bytes.extend((body as u32).to_be_bytes());
        bytes.extend(self.opaque.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend_from_slice(self.extras);
        bytes.extend(self.key.bytes());
        bytes.extend(self.value.bytes());
        bytes
    }

    fn request(&self) -> Vec<u8> {
        self.bytes(0x80)
    }

    fn response(&self) -> Vec<u8> {
        self.bytes(0x81)
    }
}

impl Memcached {
    pub(crate) const fn new(is_binary: bool) -> Self {
        Self { is_binary, n: 0 }
    }

    fn key(&mut self) -> String {
        self.n += 1;
        format!("key:{}", self.n)
    }

    fn value(&self, rng: &mut dyn Choose) -> String {
        let size = [1, 40, 700, 5000][rng.below(4) as usize];
        format!("{SECRET}{}", self.n).repeat(size / 12 + 1)
    }

    /// What a client does in one go.
    pub(crate) fn turn(&mut self, rng: &mut dyn Choose, depth: u32) -> Turn {
        let mut turn = Turn { takes_us: 20 + u64::from(rng.below(300)), ..Turn::default() };
        for _ in 0..=rng.below(depth) {
            match (self.is_binary, rng.below(6)) {
                (false, 0) => self.quiet_text(rng, &mut turn),
                (false, _) => self.text(rng, &mut turn),
                (true, 0) => self.quiet_binary(rng, &mut turn),
                (true, _) => self.binary(rng, &mut turn),
            }
        }
        turn
    }

    /// One command that is answered.
    pub(crate) fn plain(&mut self, rng: &mut dyn Choose) -> Turn {
        loop {
            let mut turn = Turn::default();
            self.text(rng, &mut turn);
            if !turn.replies.is_empty() {
                return turn;
            }
        }
    }

    fn text(&mut self, rng: &mut dyn Choose, turn: &mut Turn) {
        let key = self.key();
        let value = self.value(rng);
        let len = value.len();
        let (request, reply) = match rng.below(14) {
            0 => (format!("set {key} 0 0 {len}\r\n{value}\r\n"), "STORED\r\n".into()),
            1 => (format!("get {key}\r\n"), format!("VALUE {key} 0 {len}\r\n{value}\r\nEND\r\n")),
            2 => (format!("get {key}\r\n"), "END\r\n".into()),
            3 => (
                format!("gets {key} b c\r\n"),
                format!("VALUE {key} 0 {len} 7\r\n{value}\r\nVALUE c 1 1 8\r\nx\r\nEND\r\n"),
            ),
            4 => (format!("delete {key}\r\n"), "NOT_FOUND\r\n".into()),
            5 => (format!("incr {key} 5\r\n"), format!("{}\r\n", self.n)),
            6 => (format!("set {key} 0 0 {len} noreply\r\n{value}\r\n"), String::new()),
            7 => (format!("cas {key} 0 0 {len} 9\r\n{value}\r\n"), "EXISTS\r\n".into()),
            8 => (format!("touch {key} 100\r\n"), "TOUCHED\r\n".into()),
            9 => (format!("mg {key} v\r\n"), format!("VA {len}\r\n{value}\r\n")),
            10 => (format!("mg {key} v\r\n"), "EN\r\n".into()),
            11 => (format!("ms {key} {len}\r\n{value}\r\n"), "HD\r\n".into()),
            12 => ("stats\r\n".into(), "STAT pid 1\r\nSTAT uptime 2\r\nEND\r\n".into()),
            _ => (format!("md {key}\r\n"), "NF\r\n".into()),
        };
        turn.say(request.into_bytes(), reply.into_bytes());
    }

    /// Some of a batch are answered, by what they repeat; `mn` ends it.
    fn quiet_text(&mut self, rng: &mut dyn Choose, turn: &mut Turn) {
        for opaque in 0..=rng.below(5) {
            let key = self.key();
            let value = self.value(rng);
            let reply = if rng.below(2) == 0 {
                format!("VA {} O{opaque}\r\n{value}\r\n", value.len())
            } else {
                String::new()
            };
            turn.say(format!("mg {key} v q O{opaque}\r\n").into_bytes(), reply.into_bytes());
        }
        turn.say(b"mn\r\n".to_vec(), b"MN\r\n".to_vec());
    }

    fn binary(&mut self, rng: &mut dyn Choose, turn: &mut Turn) {
        let (key, opaque) = (self.key(), self.n);
        let value = self.value(rng);
        let (key, value) = (&*key, &*value);
        let of = |opcode| Packet { opcode, opaque, ..Packet::default() };
        let (request, response) = match rng.below(7) {
            0 => (Packet { extras: &[0; 8], key, value, ..of(SET) }, of(SET)),
            1 => (Packet { key, ..of(GET) }, Packet { extras: &[0; 4], value, ..of(GET) }),
            2 => (Packet { key, ..of(GET) }, Packet { value: "Not found", status: NOT_FOUND, ..of(GET) }),
            3 => {
                (Packet { key, ..of(DELETE) }, Packet { value: "Not found", status: NOT_FOUND, ..of(DELETE) })
            }
            4 => (
                Packet { extras: &[0; 20], key, ..of(INCREMENT) },
                Packet { value: "\0\0\0\0\0\0\0\x07", ..of(INCREMENT) },
            ),
            5 => {
                let one = Packet { key: "pid", value: "1", ..of(STAT) }.response();
                let last = of(STAT).response();
                turn.say(of(STAT).request(), [one, last].concat());
                return;
            }
            _ => (of(VERSION), Packet { value: "1.6.18", ..of(VERSION) }),
        };
        turn.say(request.request(), response.response());
    }

    /// Gets that miss and sets that succeed say nothing.
    fn quiet_binary(&mut self, rng: &mut dyn Choose, turn: &mut Turn) {
        let is_get = rng.below(2) == 0;
        for _ in 0..=rng.below(5) {
            let (key, opaque) = (self.key(), self.n);
            let value = self.value(rng);
            let (key, value) = (&*key, &*value);
            let speaks = rng.below(2) == 0;
            let of = |opcode| Packet { opcode, opaque, ..Packet::default() };
            let (request, response) = if is_get {
                (
                    Packet { key, ..of(GET_KEY_QUIET) },
                    Packet { extras: &[0; 4], key, value, ..of(GET_KEY_QUIET) },
                )
            } else {
                (
                    Packet { extras: &[0; 8], key, value, ..of(SET_QUIET) },
                    Packet { value: "Not stored.", status: NOT_STORED, ..of(SET_QUIET) },
                )
            };
            turn.say(request.request(), if speaks { response.response() } else { Vec::new() });
        }
        self.n += 1;
        let noop = Packet { opcode: NOOP, opaque: self.n, ..Packet::default() };
        turn.say(noop.request(), noop.response());
    }
}
