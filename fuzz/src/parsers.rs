//! The parsers: any bytes give the same however they are cut; of a valid conversation with holes, every message is one
//! of the whole conversation's, and every pair that is said to be sure is its pair.

use std::collections::{HashMap, VecDeque};

use dprof_agent::protocol::{Correlation, Direction, Message, MessageKind, Parsed};

use crate::dialogue::{Choose, Dialogue, Turn};
use crate::steps::{Step, feed, protocol, read, write};

pub(crate) const RESP_WORDS: &[&[u8]] = &[
    b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
    b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n",
    b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n",
    b"*1\r\n$5\r\nMULTI\r\n",
    b"*1\r\n$7\r\nMONITOR\r\n",
    b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
    b"*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n",
    b"+OK\r\n",
    b"+QUEUED\r\n",
    b"-NOAUTH x\r\n",
    b":1\r\n",
    b"$-1\r\n",
    b"%1\r\n",
    b"|1\r\n",
    b">2\r\n",
    b"*?\r\n",
    b"$?\r\n",
    b";0\r\n",
    b".\r\n",
    b"*3\r\n",
    b"$3\r\n",
    b"\r\n",
];

pub(crate) const HTTP1_WORDS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"HEAD /a HTTP/1.1\r\n",
    b"POST /b HTTP/1.0\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n",
    b"HTTP/1.1 101 S\r\n",
    b"HTTP/1.0 304 N\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Type: text/event-stream\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b" folded\r\n",
    b"Host: a\r\n",
    b"\r\n\r\n",
    b"3;x=y\r\nabc\r\n",
    b"0\r\n\r\n",
];

pub(crate) fn resp(data: &[u8]) {
    cuts_do_not_matter("redis", data);
}

pub(crate) fn http1(data: &[u8]) {
    cuts_do_not_matter("http", data);
}

pub(crate) fn memcached(data: &[u8]) {
    cuts_do_not_matter("memcached", data);
}

pub(crate) fn dnode(data: &[u8]) {
    cuts_do_not_matter("dnode", data);
}

/// A hello, records and alerts; the header of a proxy.
pub(crate) fn tls(data: &[u8]) {
    cuts_do_not_matter("tls", data);
    cuts_do_not_matter("proxy", data);
}

pub(crate) const MEMCACHED_WORDS: &[&[u8]] = &[
    b"get a\r\n",
    b"gets a b\r\n",
    b"set a 0 0 1\r\nx\r\n",
    b"set a 0 0 1 noreply\r\n",
    b"mg a v q O1\r\n",
    b"ms a 1 q\r\nx\r\n",
    b"mn\r\n",
    b"stats\r\n",
    b"watch\r\n",
    b"VALUE a 0 1\r\nx\r\n",
    b"END\r\n",
    b"VA 1 O1\r\nx\r\n",
    b"HD\r\n",
    b"EN\r\n",
    b"MN\r\n",
    b"STORED\r\n",
    b"STAT a 1\r\n",
    b"SERVER_ERROR x\r\n",
    b"\x80\x0d\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0a",
    b"\x80\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0",
    b"\x81\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0",
];

pub(crate) const DNODE_WORDS: &[&[u8]] = &[
    b"   $2014$ ",
    b"1 3 0 1 1 *1 d *14\r\n",
    b"1 5 0 1 1 *1 d *5\r\n",
    b"2 4 1 1 0 *4 \r\n\0* *5\r\n",
    b"3 7 0 1 1 *1 d *3\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"get abc\r\n",
    b"+OK\r\n",
    b"END\r\n",
];

pub(crate) const TLS_WORDS: &[&[u8]] = &[
    b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03",
    b"\x16\x03\x03\0\x2a\x02\0\0\x26\x03\x03",
    b"\0\0\0\x0a\0\x08\0\0\x05local",
    b"\0\x10\0\x05\0\x03\x02h2",
    b"\x15\x03\x03\0\x02\x02\x28",
    b"\x17\x03\x03\0\x03abc",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02",
];

pub(crate) fn memcached_seeds() -> Vec<Vec<u8>> {
    vec![
        write(&[(false, "get a\r\nset b 0 0 1\r\nx\r\n"), (true, "VALUE a 0 1\r\nx\r\nEND\r\nSTORED\r\n")]),
        write(&[(false, "mg a v q O1\r\nmg b v q O2\r\nmn\r\n"), (true, "VA 1 O2\r\nx\r\nMN\r\n")]),
    ]
}

pub(crate) fn dnode_seeds() -> Vec<Vec<u8>> {
    vec![write(&[
        (false, "   $2014$ 7 3 0 1 1 *1 d *14\r\n*1\r\n$4\r\nPING\r\n"),
        (true, "   $2014$ 7 5 0 1 1 *1 d *7\r\n+PONG\r\n"),
    ])]
}

pub(crate) fn tls_seeds() -> Vec<Vec<u8>> {
    TLS_WORDS.iter().map(|word| [&[0, (word.len().div_ceil(3) as u8) << 2][..], word].concat()).collect()
}

pub(crate) fn resp_seeds() -> Vec<Vec<u8>> {
    let seed = |steps: &[(bool, &str)]| write(steps);
    vec![
        seed(&[
            (false, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n"),
            (true, "$1\r\nx\r\n+PONG\r\n"),
        ]),
        seed(&[(false, "*1\r\n$5\r\nMULTI\r\n*1\r\n$4\r\nEXEC\r\n"), (true, "+OK\r\n*1\r\n:1\r\n")]),
        seed(&[
            (false, "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n"),
            (true, "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n"),
        ]),
        seed(&[(false, "*1\r\n$7\r\nMONITOR\r\n"), (true, "+OK\r\n+1.5 [0 x] \"get\"\r\n")]),
        seed(&[(false, "set a \"b c\"\r\n"), (true, "%1\r\n+a\r\n*?\r\n:1\r\n.\r\n")]),
    ]
}

pub(crate) fn http1_seeds() -> Vec<Vec<u8>> {
    let seed = |steps: &[(bool, &str)]| write(steps);
    vec![
        seed(&[
            (false, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n"),
            (true, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"),
        ]),
        seed(&[
            (false, "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            (true, "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 204 N\r\n\r\n"),
        ]),
        seed(&[(false, "HEAD / HTTP/1.1\r\n\r\n"), (true, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")]),
        seed(&[(false, "GET / HTTP/1.0\r\n\r\n"), (true, "HTTP/1.0 200 OK\r\n\r\nuntil the end")]),
        seed(&[
            (false, "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
            (true, "HTTP/1.1 101 S\r\n\r\n\x01"),
        ]),
    ]
}

fn cuts_do_not_matter(name: &str, data: &[u8]) {
    let Some((&control, rest)) = data.split_first() else { return };
    let steps = read(rest);
    let parsed = |part| {
        let mut parser = protocol(name).parser(Direction::Out, [0, 0], control & 1 != 0);
        feed(&mut *parser, &steps, part)
    };
    assert_eq!(parsed(usize::MAX), parsed(1 + usize::from(control >> 4)));
}

/// Choices from bytes; zeros when they end.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choose for Choices<'_> {
    fn below(&mut self, n: u32) -> u32 {
        let (first, rest) = self.0.split_at(self.0.len().min(if n > 256 { 2 } else { 1 }));
        self.0 = rest;
        first.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)) % n
    }
}

/// A valid conversation, and in which protocol.
pub(crate) fn converse(choices: &mut Choices<'_>) -> (&'static str, Vec<(Direction, Vec<u8>)>) {
    let mut dialogue = Dialogue::choose(choices);
    let depth = [1, 4, 20][choices.below(3) as usize];
    let mut said = Vec::new();
    for _ in 0..=choices.below(6) {
        for Turn { requests, replies, .. } in dialogue.turns(choices, depth) {
            said.push((Direction::Out, requests.concat()));
            said.push((Direction::In, replies.concat()));
        }
    }
    said.retain(|(_, bytes)| !bytes.is_empty());
    (dialogue.protocol().0, said)
}

/// What [`dialogue`] makes of an input: what was said, with holes, and what a parser says of both.
pub(crate) fn show_dialogue(data: &[u8]) -> String {
    let mut choices = Choices(data);
    let (name, said) = converse(&mut choices);
    let whole: Vec<Step> = said.iter().map(|(way, bytes)| Step::Bytes(*way, bytes.clone())).collect();
    let mut text = format!("{name}\n");
    for (title, steps) in [("whole", whole), ("with holes", holes(&said, &mut choices))] {
        text += &format!("{title}\n");
        for step in &steps {
            text += &match step {
                Step::Bytes(way, bytes) => format!("  {way:?} {}\n", bytes.escape_ascii()),
                other => format!("  {other:?}\n"),
            };
        }
        for parsed in feed(&mut *protocol(name).parser(Direction::Out, [0, 0], false), &steps, usize::MAX) {
            text += &match parsed {
                Parsed::Message(message) => format!(
                    "  {:?} {}..{} {:?} {}{}\n",
                    message.direction,
                    message.start,
                    message.end,
                    message.kind,
                    message.operation,
                    if message.incomplete { " incomplete" } else { "" }
                ),
                other => format!("  {other:?}\n"),
            };
        }
    }
    text
}

/// A conversation with holes, against the same without.
pub(crate) fn dialogue(data: &[u8]) {
    let mut choices = Choices(data);
    let (name, said) = converse(&mut choices);
    let whole: Vec<Step> = said.iter().map(|(way, bytes)| Step::Bytes(*way, bytes.clone())).collect();
    let parsed =
        |steps: &[Step], part| feed(&mut *protocol(name).parser(Direction::Out, [0, 0], false), steps, part);
    let truth = parsed(&whole, usize::MAX);
    let mut messages: HashMap<(Direction, u64), &Message> = HashMap::new();
    for parsed in &truth {
        let Parsed::Message(message) = parsed else { panic!("of a valid conversation: {parsed:?}") };
        if message.kind != MessageKind::Silence {
            messages.insert((message.direction, message.start), message);
        }
    }
    let true_pairs: HashMap<u64, u64> = pairs(&truth).into_iter().collect();
    let holed = holes(&said, &mut choices);
    let out = parsed(&holed, usize::MAX);
    assert_eq!(out, parsed(&holed, 1 + choices.below(40) as usize), "cuts");
    for parsed in &out {
        let Parsed::Message(message) = parsed else { continue };
        if message.incomplete || message.kind == MessageKind::Silence {
            continue;
        }
        let known = messages.get(&(message.direction, message.start));
        let Some(known) = known else { panic!("nobody said {message:?}") };
        assert_eq!((message.end, &message.operation), (known.end, &known.operation), "{message:?}");
        assert_eq!((message.is_error, &message.status_code), (known.is_error, &known.status_code));
        assert!(message.content_hash.is_none() || message.content_hash == known.content_hash);
        assert!(message.parts.as_slice().is_empty() || message.parts == known.parts);
    }
    for (request, response) in pairs(&out) {
        assert_eq!(true_pairs.get(&request), Some(&response), "request {request}, response {response}");
    }
}

/// Takes ranges out of a conversation.
fn holes(said: &[(Direction, Vec<u8>)], choices: &mut Choices<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (way, bytes) in said {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = match choices.below(8) {
                0 => 1 + choices.below(8) as usize,
                1 => 1 + choices.below(300) as usize,
                _ => rest.len(),
            };
            let (part, after) = rest.split_at(len.min(rest.len()));
            if choices.below(6) == 1 {
                steps.push(Step::Gap(*way, part.len() as u64));
            } else {
                steps.push(Step::Bytes(*way, part.to_vec()));
            }
            rest = after;
        }
    }
    steps
}

/// The pairs that order alone makes sure, up to the first loss (what is sure again later is the engine's to say, who
/// sees time), and those by id.
fn pairs(out: &[Parsed]) -> Vec<(u64, u64)> {
    let (mut open, mut by_id, mut pairs) = (VecDeque::new(), HashMap::new(), Vec::new());
    let mut is_certain = true;
    for parsed in out {
        let Parsed::Message(message) = parsed else {
            is_certain = false;
            continue;
        };
        is_certain &= !message.answers_unknown;
        let asked = match (message.kind, message.correlation) {
            (MessageKind::Request, Correlation::Id(id)) => {
                by_id.insert(id, message.start);
                continue;
            }
            (MessageKind::Request, Correlation::Fifo) => {
                open.push_back(message.start);
                continue;
            }
            (MessageKind::Response | MessageKind::Silence, Correlation::Id(id)) => by_id.remove(&id),
            (MessageKind::Response | MessageKind::Silence, Correlation::Fifo) => {
                let asked = open.pop_front();
                is_certain &= asked.is_some();
                asked.filter(|_| is_certain)
            }
            (MessageKind::OneWay | MessageKind::Push, _) => continue,
        };
        if let Some(asked) = asked
            && !message.incomplete
        {
            // A silence has no bytes of its own.
            let start = if message.kind == MessageKind::Silence { u64::MAX } else { message.start };
            pairs.push((asked, start));
        }
    }
    pairs
}
