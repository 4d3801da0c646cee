//! Detection: the first bytes of a connection in, the protocol that they speak out.
//!
//! What a reader would get wrong: ports decide nothing by themselves. They only break a tie between protocols
//! that say [`Verdict::Maybe`]. And the answer does not depend on how bytes were cut into calls: no protocol
//! sees more than [`HEAD_BYTES_MAX`] bytes, and a verdict stands whatever follows.

use super::{ALL, Direction, Head, Protocol, Verdict};

/// First bytes of each direction that detection looks at. A request line with a long path fits, and so do the
/// first commands of any Redis client; what does not show itself here is not detected.
pub const HEAD_BYTES_MAX: usize = 1024;

/// What the first bytes speak.
#[derive(Clone, Copy)]
pub enum Detection {
    /// This protocol, with requests in this direction.
    Protocol {
        /// Makes the parser.
        protocol: &'static dyn Protocol,
        /// Which direction carries requests.
        request_direction: Direction,
    },
    /// Ask again when more bytes are there.
    NeedMore,
    /// None that we know. Of a joined connection: not from these bytes; the next change of direction is a good
    /// place to begin new heads.
    None,
}

/// Asks every protocol but the `excluded` (by name) about the first bytes of a connection.
pub fn detect(head: &Head<'_>, excluded: &[&str]) -> Detection {
    detect_among(ALL, head, excluded)
}

pub(crate) fn detect_among(
    protocols: &[&'static dyn Protocol],
    head: &Head<'_>,
    excluded: &[&str],
) -> Detection {
    let full = head.bytes.iter().any(|bytes| bytes.len() >= HEAD_BYTES_MAX);
    let head = Head { bytes: head.bytes.map(|bytes| &bytes[..bytes.len().min(HEAD_BYTES_MAX)]), ..*head };
    let mut undecided = false;
    let mut answer_decides = false;
    let mut by_port = None;
    for &protocol in protocols.iter().filter(|protocol| !excluded.contains(&protocol.name())) {
        let detected = protocol.detect(&head);
        // A request that several protocols know is told by its answer, however many requests come before that.
        answer_decides |= detected.verdict == Verdict::Maybe
            && detected
                .request_direction
                .is_some_and(|way| head.bytes[way.reverse().idx()].len() < HEAD_BYTES_MAX);
        let request_direction = detected.request_direction.or(head.request_direction);
        match (detected.verdict, request_direction) {
            (Verdict::Yes, Some(request_direction)) => {
                return Detection::Protocol { protocol, request_direction };
            }
            (Verdict::Maybe, Some(request_direction))
                if by_port.is_none() && head.ports.iter().any(|port| protocol.ports().contains(port)) =>
            {
                by_port = Some(Detection::Protocol { protocol, request_direction });
            }
            (Verdict::No, _) => {}
            (Verdict::NeedMore | Verdict::Maybe | Verdict::Yes, _) => undecided = true,
        }
    }
    match by_port {
        Some(detection) => detection,
        None if undecided && (!full || answer_decides) => Detection::NeedMore,
        None => Detection::None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, Step};
    use super::*;

    /// What is said of a connection, however its bytes are cut: the first answer that is not "need more".
    fn decide(steps: &[Step], ports: [u16; 2], role: Option<Direction>, joined: bool) -> String {
        let mut bytes = [Vec::new(), Vec::new()];
        let mut said = "more".to_owned();
        for step in steps {
            let Step::Bytes(direction, part) = step else { continue };
            bytes[direction.idx()].extend_from_slice(part);
            let head = Head { bytes: [&bytes[0], &bytes[1]], ports, request_direction: role, joined };
            said = match detect(&head, &[]) {
                Detection::NeedMore => continue,
                Detection::None => "none".to_owned(),
                Detection::Protocol { protocol, request_direction } => {
                    format!("{} {request_direction:?}", protocol.name())
                }
            };
            break;
        }
        said
    }

    #[track_caller]
    fn check_all(input: &str, ports: [u16; 2], role: Option<Direction>, joined: bool, expected: &str) {
        let steps = testing::steps(input);
        for part in [usize::MAX, 1, 2, 3, 7, 50] {
            let cut = testing::cut(&steps, |_| part);
            assert_eq!(decide(&cut, ports, role, joined), expected, "parts of {part} of\n{input}");
        }
    }

    const PORTS: [u16; 2] = [40000, 5000];
    const REDIS: [u16; 2] = [40000, 6379];

    #[track_caller]
    fn check(input: &str, expected: &str) {
        check_all(input, PORTS, None, false, expected);
    }

    #[test]
    fn a_protocol_shows_itself_on_any_port() {
        check("> *1 $4 PING", "redis Out");
        check("< *2 $3 get $1 a", "redis In");
        check("> *2 $3 FOO $1 a", "more");
        check("> *2 $3 FOO $1 a\n< +OK", "redis Out");
        check("> *2 $3 FOO $1 a\n< nonsense", "none");
        check("<\" \\x16\\x03\n>| get a|", "none");
        check_all("> *2 $3 FOO $1 a", PORTS, Some(Direction::Out), false, "redis Out");
        check_all("> *2 $3 FOO $1 a", REDIS, None, false, "more");
        check(">| GET / HTTP/1.1|", "http Out");
        check("<| GET / HTTP/1.1|", "http In");
        check(">| OPTIONS * HTTP/1.0||", "http Out");
        check(">| CONNECT a:1 HTTP/1.1||", "http Out");
        check(">| GET /\\{x*200} HTTP/1.1|", "http Out");
        check(">| GET /\\{x*5000}", "http Out");
        for other in ["GET / HTTP/2.0|", "PRI * HTTP/2.0||", "SSH-2.0-x|", "\\x16\\x03\\x05", "|x", "\\x00"] {
            check(&format!(">| {other}"), "none");
        }
        check(">| set k 0 0 1|", "memcached Out");
        check(">| G", "more");
        check(">| *", "more");
        check("< +OK\\sready", "none");
        check(">\" \\s\\s\\s$2014$ 1 3 0 1 1 *1 d *4\\r\\n", "dnode Out");
        check("<\" \\s\\s\\s$2014$ 1 5 0 1 1 *1 d *4\\r\\n", "dnode Out");
        let payload =
            ">\" \\s\\s\\s$2014$ 1 3 0 1 1 *1 d *22\\r\\n*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n";
        check_all(payload, PORTS, None, true, "dnode Out");
        check("<| mg key v|", "memcached In");
        check(">| get key|", "more");
        // A pipeline of more than what is looked at: the answer tells.
        let pipeline = ">| get key|".to_owned() + &"\n>| get key|".repeat(200);
        check(&pipeline, "more");
        check(&format!("{pipeline}\n<| END|"), "memcached Out");
        check(&format!("{pipeline}\n< +OK"), "redis Out");
        check(">| get key|\n<| VALUE key 0 1|", "memcached Out");
        check(">| get key|\n<| $-1|", "redis Out");
        check(">| gets \\{k*200} \\{k*200} \\{k*200}|", "memcached Out");
        check(">\" \\x80\\x00\\x00\\x01\\{\\x00*7}\\x01\\{\\x00*12}", "memcached Out");
        check(">\" \\x16\\x03\\x01\\x01\\x00\\x01", "tls Out");
        check(">\" \\x16\\x03\\x01", "more");
        check(">| PROXY TCP4 1.2.3.4 5.6.7.8 1 2|", "proxy Out");
        check(">\" \\r\\n\\r\\n\\x00\\r\\nQUIT\\n\\x21\\x11\\x00\\x0c", "proxy Out");
    }

    #[test]
    fn ports_break_ties_only() {
        check(">| PING|", "more");
        check(">| PING|\n<| +PONG|", "redis Out");
        check_all(">| PING|", REDIS, None, false, "redis Out");
        check_all(">| GET / HTTP/1.1|", REDIS, None, false, "http Out");
        check_all(">| NONSENSE|", REDIS, None, false, "none");
    }

    #[test]
    fn joined_connections_show_themselves_later() {
        let joined = |input, expected| check_all(input, PORTS, None, true, expected);
        joined(">| tail of a value|*1|$4|PING|", "redis Out");
        joined("<| +OK|\n> *1 $4 PING", "redis Out");
        joined("<| tail of a body\n>| GET / HTTP/1.1|", "http Out");
        joined("<| HTTP/1.1 200", "http Out");
        joined(">| HTTP/1.0 404", "http In");
        joined(">| \\{x*2000}", "none");
        check_all("<| +OK|", REDIS, Some(Direction::Out), true, "redis Out");
        // A list of values that begins like a command, in the direction of replies.
        check_all("< *2 $3 GET $1 a", PORTS, Some(Direction::Out), true, "redis Out");
        check_all("< *3 $7 message $1 c $1 x", PORTS, Some(Direction::Out), true, "redis Out");
    }

    #[test]
    fn a_value_in_the_middle_of_a_connection_ends_where_its_command_says() {
        let joined = |input, expected| check_all(input, PORTS, None, true, expected);
        joined(">| set a 0 0 1", "more");
        joined(">| set a 0 0 1|x", "more");
        joined(">| set a 0 0 1|x|", "memcached Out");
        joined(">| set a 0 0 1|xx|", "more");
        joined(">| set a 0 0 1|xx|\n<| STORED|", "memcached Out");
        joined("<| ms a 3 T0|xyz|", "memcached In");
        // Its end is beyond what detection looks at: the reply tells.
        joined(">| set a 0 0 1010|", "more");
        joined(">| set a 0 0 1010|\n<| STORED|", "memcached Out");
        joined(">| set a 0 0 1003|\\{x*1003}|", "memcached Out");
        // Found by the test of two protocols below.
        let head = |input| {
            let steps = testing::steps(input);
            let [Step::Bytes(_, bytes)] = steps.as_slice() else { panic!("one call: {input}") };
            let head = Head { bytes: [bytes, b""], ports: PORTS, request_direction: None, joined: true };
            let certain = ALL.iter().filter(|protocol| protocol.detect(&head).verdict == Verdict::Yes);
            certain.map(|protocol| protocol.name()).collect::<Vec<_>>()
        };
        assert_eq!(head(">\" mg a v\\r\\n\\s\\s\\s$2014$ 1 3 0 1 1 *1 d *4\\r\\n"), ["dnode"]);
        assert_eq!(head(">\" set a 0 0 1\\r\\n\\s\\s\\s$2014$ 1 3 0 1 1 *1 d *4\\r\\n"), ["dnode"]);
        joined(">\" set a 0 0 1\\r\\n\\s\\s\\s$2014$ 1 3 0 1 1 *1 d *4\\r\\n", "dnode Out");
    }

    #[test]
    fn every_protocol_can_be_chosen_but_the_one_that_only_leads_to_others() {
        let mut names: Vec<_> = ALL.iter().map(|protocol| protocol.name()).collect();
        names.retain(|name| *name != super::super::proxy::Proxy.name());
        names.sort_unstable();
        assert_eq!(names, dprof_common::settings::PROTOCOLS);
    }

    #[test]
    fn what_was_excluded_is_not_asked() {
        let bytes = b"*1\r\n$4\r\nPING\r\n";
        let head = Head { bytes: [bytes, b""], ports: REDIS, request_direction: None, joined: false };
        assert!(matches!(detect(&head, &[]), Detection::Protocol { .. }));
        assert!(!matches!(detect(&head, &["redis"]), Detection::Protocol { .. }));
    }

    /// Pieces of every protocol, whole and broken.
    const WORDS: &[&[u8]] = &[
        b"*1\r\n",
        b"*2\r\n$3\r\n",
        b"$3\r\n",
        b"GET",
        b"GET ",
        b"GET /",
        b"/",
        b" HTTP/1.1\r\n",
        b"\r\n",
        b"HTTP/1.1 200",
        b"+OK\r\n",
        b"PING\r\n",
        b"PING",
        b":1\r\n",
        b"-ERR\r\n",
        b"x",
        b"\0",
        b"HEAD /a HTTP/1.1\r\n",
        b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        b"OPTIONS *",
        b"\n",
        b"\r",
        b"$-1\r\n",
        b"*0\r\n",
        b"_\r\n",
        b"#t",
        b"message\r\n",
        b"get ",
        b"get a\r\n",
        b"set a 0 0 1\r\n",
        b"mg a v\r\n",
        b"stats\r\n",
        b"VALUE a 0 1\r\n",
        b"END\r\n",
        b"STORED\r\n",
        b"42\r\n",
        b"quit\r\n",
        b"   $2014$ ",
        b"1 3 0 1 1 *1 d *4\r\n",
        b"1 5 0 1 1 *1 d *4\r\n",
        b"\x80\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0a",
        b"\x81\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x80",
        b"\x16\x03\x01\x01\x00\x01",
        b"\x16\x03",
        b"\x17\x03\x03\0\x01a",
        b"PROXY ",
        b"TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x21\x11\0\x0c",
    ];

    /// Words of one direction that follow each other are one call.
    fn calls(words: &[(bool, &[u8])]) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for (out, word) in words {
            let direction = if *out { Direction::Out } else { Direction::In };
            match steps.last_mut() {
                Some(Step::Bytes(last, bytes)) if *last == direction => bytes.extend_from_slice(word),
                _ => steps.push(Step::Bytes(direction, word.to_vec())),
            }
        }
        steps
    }

    proptest! {
        #[test]
        fn no_two_protocols_are_certain_of_the_same_bytes(
            words in prop::collection::vec((any::<bool>(), prop::sample::select(WORDS)), 1..8),
            one_way: bool,
            role in prop::sample::select(vec![None, Some(Direction::Out), Some(Direction::In)]),
            joined: bool,
        ) {
            let mut bytes = [Vec::new(), Vec::new()];
            for (out, word) in &words {
                bytes[usize::from(*out && !one_way)].extend_from_slice(word);
            }
            let head = Head { bytes: [&bytes[0], &bytes[1]], ports: PORTS, request_direction: role, joined };
            let certain: Vec<_> = ALL
                .iter()
                .filter(|protocol| protocol.detect(&head).verdict == Verdict::Yes)
                .map(|protocol| protocol.name())
                .collect();
            // In the middle of a connection, each direction may look like another protocol's by chance.
            prop_assert!(certain.len() <= if joined && !one_way { 2 } else { 1 }, "{:?} of {:?}", certain, head);
        }

        #[test]
        fn the_answer_does_not_depend_on_cuts(
            words in prop::collection::vec((any::<bool>(), prop::sample::select(WORDS)), 0..10),
            redis: bool,
            role in prop::sample::select(vec![None, Some(Direction::Out), Some(Direction::In)]),
            joined: bool,
            part in 1usize..30,
        ) {
            let steps = calls(&words);
            let ports = if redis { REDIS } else { PORTS };
            let whole = decide(&steps, ports, role, joined);
            for part in [1, part] {
                prop_assert_eq!(&decide(&testing::cut(&steps, |_| part), ports, role, joined), &whole, "parts of {}", part);
            }
        }
    }
}
