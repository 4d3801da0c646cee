//! Masking as text: inputs in the notation of `testing`; what is written of them; and that a parser says the same
//! of what is written as of what came.

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::protocol::testing::{Step, cut, run, show, steps};
use crate::protocol::{ALL, Protocol};

fn mask(steps: &[Step], joined: bool, role: Option<Direction>) -> Vec<Step> {
    let mut mask = ConnectionMask::new(role, joined);
    let mut masked = steps.to_vec();
    for step in &mut masked {
        match step {
            Step::Bytes(direction, bytes) => mask.mask(*direction, bytes),
            Step::Gap(direction, len) => mask.gap(*direction, *len),
            Step::End(_) => {}
        }
    }
    masked
}

/// All bytes of a direction in one piece.
fn joined_bytes(steps: &[Step], wanted: Direction) -> Vec<u8> {
    let bytes = |step: &Step| match step {
        Step::Bytes(direction, bytes) if *direction == wanted => bytes.clone(),
        _ => Vec::new(),
    };
    steps.iter().flat_map(bytes).collect()
}

fn protocol(name: &str) -> &'static dyn Protocol {
    *ALL.iter().find(|protocol| protocol.name() == name).expect("a known protocol")
}

/// Checks that a parser says of masked bytes what it says of the bytes, however they are cut, and that no byte of
/// `secret` words is left.
#[track_caller]
fn check_same(name: &str, joined: bool, input: &str) {
    check_same_after("", name, joined, input);
}

/// [`check_same`] of a connection that starts with an `opening` that is not cut: what shows its protocol.
#[track_caller]
fn check_same_after(opening: &str, name: &str, joined: bool, input: &str) {
    let opening = steps(opening);
    let rest = steps(input);
    let original = [&opening[..], &rest].concat();
    let said = show(&run(protocol(name), joined, &original));
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut parts = vec![rest.clone(), cut(&rest, |_| 1)];
    parts.extend((0..20).map(|_| cut(&rest, |left| 1 + rng.next_u32() as usize % left.min(40))));
    for part in parts.into_iter().map(|part| [&opening[..], &part].concat()) {
        let masked = mask(&part, joined, Some(Direction::Out));
        assert_eq!(show(&run(protocol(name), joined, &masked)), said, "of\n{input}\nmasked\n{masked:?}");
        for direction in [Direction::Out, Direction::In] {
            let bytes = joined_bytes(&masked, direction);
            assert_eq!(bytes.len(), joined_bytes(&original, direction).len());
            let text = String::from_utf8_lossy(&bytes).to_lowercase();
            assert!(!text.contains("secret"), "{text}\nof\n{input}");
        }
    }
}

/// [`check_same`] without cuts: what is masked of a target depends on what the same call shows of it.
#[track_caller]
fn check_same_uncut(name: &str, input: &str) {
    let original = steps(input);
    let masked = mask(&original, false, Some(Direction::Out));
    let said = show(&run(protocol(name), false, &original));
    assert_eq!(show(&run(protocol(name), false, &masked)), said, "of\n{input}\nmasked\n{masked:?}");
}

/// Checks what is written of the request direction (or of the replies, after `<`).
#[track_caller]
fn check_written(input: &str, expected: &str) {
    let masked = mask(&steps(input), false, Some(Direction::Out));
    let direction = if expected.starts_with('<') { Direction::In } else { Direction::Out };
    let text = String::from_utf8_lossy(&joined_bytes(&masked, direction)).replace("\r\n", " ");
    assert_eq!(text.trim_end(), expected.trim_start_matches("< ").trim_end(), "of {input}");
}

#[test]
fn of_redis_commands_names_and_keys_stay() {
    check_written("> *3 $3 SET $1 a $5 hello", "*3 $3 SET $1 a $5 ?????");
    check_written("> *2 $4 AUTH $6 secret", "*2 $4 AUTH $6 ??????");
    check_written("> *4 $4 EVAL $6 secret $1 1 $1 k", "*4 $4 EVAL $6 ?????? $1 1 $1 k");
    check_written("> *4 $6 CONFIG $3 SET $4 pass $1 x", "*4 $6 CONFIG $3 SET $4 ???? $1 ?");
    check_written("> *2 $3 FOO $6 secret", "*2 $3 FOO $6 ??????");
    check_written("> *1 $6 secret", "*1 $6 secret");
    check_written("> *1 $8 se\\scret!", "*1 $8 se??????");
    check_written("> SET\\sa\\ssecret", "SET a ??????");
    check_written("> set\\sa\\s\"sec\\sret\"", "set a \"???????\"");
}

#[test]
fn of_redis_replies_status_words_stay() {
    check_written(
        "< +OK +secret -WRONGTYPE\\ssecret :42 $6 secret",
        "< +OK +?????? -WRONGTYPE ?????? :11 $6 ??????",
    );
    check_written("< *3 $7 message $1 c $6 secret", "< *3 $7 message $1 ? $6 ??????");
    check_written("< *2 $3 GET $6 secret", "< *2 $3 ??? $6 ??????");
    check_written("< ,3.14 #f _ (123 !9 ERR\\ssecre", "< ,1.11 #t _ (111 !9 ERR ?????");
}

#[test]
fn of_http_framing_and_known_headers_stay() {
    check_written(
        ">| POST /a;b=secret/c?token=secret&secret#secret HTTP/1.1|Host: h|Authorization: secret|Content-Length: 6||secret",
        "POST /a;xxxxxxxx/c?token=xxxxxx&xxxxxx#xxxxxx HTTP/1.1 Host: h Authorization: ?????? Content-Length: 6  ??????",
    );
    check_written(
        ">| GET http://user:secret@h:80/a?x=1 HTTP/1.1||",
        "GET http://xxxxxxxxxxx@h:80/a?x=x HTTP/1.1 ",
    );
    check_written(
        "<| HTTP/1.1 200 OK|Set-Cookie: secret x|Transfer-Encoding: chunked||6;a=b|secret|0|X: secret||",
        "< HTTP/1.1 200 ?? Set-Cookie: ?????? ? Transfer-Encoding: chunked  6;??? ?????? 0 X:???????",
    );
}

#[test]
fn what_no_grammar_fits_is_masked() {
    check_written("> secret", "se\0\0\0\0 ");
    check_written(">\" \\x16\\x03secret", "\0\0\0\0\0\0\0\0");
    check_written(">| GET /path secret|secret||", "GET /path ?????? se\0\0\0\0 ");
    check_written(">| zork secret", "z\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn redis_reads_the_same() {
    for request in [
        "*1 $4 PING",
        "*2 $3 get $1 a",
        "*3 $3 SET $1 a $6 secret",
        "*6 $4 MSET $1 a $6 secret $1 b $6 secret $3 odd",
        "*4 $5 BLPOP $1 a $1 b $1 0",
        "*6 $4 EVAL $6 secret $1 2 $1 a $1 b $6 secret",
        "*8 $5 XREAD $5 COUNT $1 1 $7 STREAMS $1 a $1 b $6 secret $6 secret",
        "*7 $10 XREADGROUP $5 GROUP $7 streams $1 c $7 STREAMS $1 a $6 secret",
        "*3 $6 OBJECT $8 ENCODING $1 a",
        "*5 $5 HELLO $1 3 $4 AUTH $4 user $6 secret",
        "*3 $13 My.Module-Cmd $3 key $6 secret",
        "*2 $6 9lives $6 secret",
        "*3 $6 CLIENT $5 REPLY $4 SKIP *2 $4 INCR $1 a",
        "*3 $8 REPLCONF $14 listening-port $4 6380",
        "*3 $9 SUBSCRIBE $1 a $1 b",
        "set\\sa\\ssecret",
    ] {
        check_same("redis", false, &format!("> {request} *1 $4 PING\n< +OK +OK"));
    }
}

#[test]
fn redis_replies_read_the_same() {
    for reply in [
        "$6 secret",
        "$-1",
        "-WRONGTYPE\\ssecret",
        "-secret\\sx",
        ":123456",
        "*3 $6 secret :5 *1 $6 secret",
        "%1 +key $6 secret",
        ">3 $7 message $1 c $6 secret",
        "|1 +k $6 secret $6 secret",
        "=10 txt:secret",
        "!12 ERR\\ssecret.2",
        ",1.5e3",
        "(123456789012345678901234567890",
        "#t",
        "_",
    ] {
        check_same("redis", false, &format!("> *2 $3 GET $1 a *1 $4 PING\n< {reply} +PONG"));
    }
}

#[test]
fn redis_sessions_read_the_same() {
    check_same(
        "redis",
        false,
        "> *3 $9 SUBSCRIBE $1 a $1 b
         < *3 $9 subscribe $1 a :1 *3 $9 subscribe $1 b :2 *3 $7 message $1 a $6 secret
         > *1 $11 UNSUBSCRIBE
         < *3 $11 unsubscribe $1 a :1 *3 $11 unsubscribe $1 b :0
         > *1 $4 PING\n< +PONG",
    );
    check_same("redis", false, "> *1 $7 MONITOR\n< +OK +1.5\\s[0\\sx]\\s\"secret\"\n> *1 $5 RESET\n< +RESET");
    check_same(
        "redis",
        false,
        "> *3 $5 PSYNC $1 ? $2 -1\n<\" +FULLRESYNC x 0\\r\\n$6\\r\\nsecret\n> *1 $4 PING",
    );
}

#[test]
fn holes_and_late_starts_read_the_same() {
    check_same(
        "redis",
        false,
        "> *3 $3 SET $1 a $20 secret\n>~ 12\n>\" \\r\\n\n< +OK\n> *2 $3 GET $1 a\n< $1 b",
    );
    check_same(
        "redis",
        false,
        "> *3 $3 SET $1 a $30 secret\n>~ 50\n> *2 $3 GET $1 a\n< +OK\n> *1 $4 PING\n< +PONG",
    );
    check_same("redis", false, "> *2 $3 GET $1 a\n< $30 secret\n<~ 50\n> *1 $4 PING\n< +PONG");
    check_same("redis", true, "> secret *2 $3 GET $1 a *1 $4 PING\n< +OK\n> *2 $3 GET $1 b\n< $6 secret");
}

#[test]
fn without_a_known_role_values_are_masked_too() {
    for direction in ['>', '<'] {
        let input = format!("{direction} *3 $3 SET $1 a $6 secret *2 $6 secret $6 secret $6 secret");
        let masked = mask(&steps(&input), false, None);
        let text: String = [Direction::Out, Direction::In]
            .map(|direction| String::from_utf8_lossy(&joined_bytes(&masked, direction)).into_owned())
            .concat();
        assert_eq!(text.replace("\r\n", " "), "*3 $3 SET $1 a $6 ?????? *2 $6 se???? $6 ?????? $6 ?????? ");
    }
}

#[test]
fn any_bytes_keep_their_length_and_never_panic() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let alphabet = b"*$+-:0123\r\n \"'?;GETSPUHhtp/1.:xX\0\xff";
    for _ in 0..3000 {
        let mut connection = ConnectionMask::new(None, rng.next_u32().is_multiple_of(2));
        for _ in 0..rng.next_u32() % 20 {
            let direction = if rng.next_u32().is_multiple_of(2) { Direction::Out } else { Direction::In };
            let len = rng.next_u32() as usize % 60;
            let mut bytes: Vec<u8> =
                (0..len).map(|_| alphabet[rng.next_u32() as usize % alphabet.len()]).collect();
            connection.mask(direction, &mut bytes);
            assert_eq!(bytes.len(), len);
            if rng.next_u32().is_multiple_of(5) {
                connection.gap(direction, u64::from(rng.next_u32() % 100));
            }
        }
    }
}

#[test]
fn http_reads_the_same() {
    let get = ">| GET / HTTP/1.1||";
    for input in [
        ">| POST /a;p=secret HTTP/1.1|Host: h:80|Cookie: secret|Content-Length: 6||secretGET / HTTP/1.1||",
        ">| POST / HTTP/1.1|Transfer-Encoding: chunked||6;x=secret|secret|0|T: secret||GET / HTTP/1.1||",
        ">| POST / HTTP/1.1|Content-Length: 3, 3||abc|GET / HTTP/1.1||",
        ">\" GET / HTTP/1.1\\nHost: a\\n\\n\\nGET / HTTP/1.1\\n\\n",
        ">| POST / HTTP/1.1|Content-Length:| 6||secret",
        ">| POST / HTTP/1.1|X: secret|\tsecret|Content-Length: 3||abc",
        ">| GET / HTTP/1.1|Long: \\{x*9000}|Content-Length: 3||abc",
        ">| OPTIONS * HTTP/1.1|traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01||",
        ">| GET / HTTP/1.1|X-B3-TraceId: 8448eb211c80319c|x-b3-spanid:b7ad6b7169203331||",
        ">| CONNECT shop:443 HTTP/1.1||\n<| HTTP/1.1 200 OK||\n>\" \\x16\\x03secret",
        ">| CONNECT shop:443 HTTP/1.1||\n<| HTTP/1.1 407 No|Content-Length: 0||\n>| GET / HTTP/1.1||",
        ">| GET / HTTP/1.1|Connection: Upgrade|Upgrade: x||\n<| HTTP/1.1 101 Go|Upgrade: x||secret\n>| secret",
        ">| POST / HTTP/1.1|Expect: 100-continue|Content-Length: 3||\n<| HTTP/1.1 100 Continue||\n>| abc\n<| HTTP/1.1 204 No||",
        ">| HEAD / HTTP/1.1||GET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Content-Length: 9||HTTP/1.1 200 OK|Content-Length: 6||secret",
    ] {
        check_same("http", false, input);
    }
    for response in [
        "HTTP/1.1 200 OK|content-length:  6 ||secret",
        "HTTP/1.1 204 No|Content-Length: 2||",
        "HTTP/1.1 200 OK|Transfer-Encoding: gzip, chunked||6;x|secret|0|A: secret||",
        "HTTP/1.0 200 OK||secret",
        "HTTP/1.1 200 OK|Transfer-Encoding: gzip||secret",
        "HTTP/1.1 500 No|Content-Length: 0|Set-Cookie: secret||",
    ] {
        check_same("http", false, &format!("{get}\n<| {response}\n<."));
    }
    check_same_uncut("http", ">| GET /cart/17?user=secret&secret&b=secret#secret HTTP/1.1|Host: shop||");
    check_same_uncut("http", ">| GET http://u:secret@shop:81/a HTTP/1.1||");
}

#[test]
fn holes_in_http_read_the_same() {
    let post = ">| POST / HTTP/1.1|Content-Length: 1000||secret";
    check_same("http", false, &format!("{post}\n>~ 994\n>| GET / HTTP/1.1||"));
    check_same("http", false, &format!("{post}\n>~ 900\n>| \\{{x*94}}GET / HTTP/1.1||"));
    let chunked = ">| POST / HTTP/1.1|Transfer-Encoding: chunked||3e8|";
    check_same("http", false, &format!("{chunked}\n>~ 1000\n>| |0||"));
    check_same("http", false, ">| GET / HTTP/1.1||\n>~ 30\n>| GET / HTTP/1.1||");
    check_same(
        "http",
        false,
        ">| GET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Conte\n<~ 20\n<| secret\n>| GET / HTTP/1.1||
         <| HTTP/1.1 200 OK|Content-Length: 1||a",
    );
    check_same("http", true, ">| dy|\n<| secret\n>| GET / HTTP/1.1||\n<| HTTP/1.1 204 No||");
}

#[test]
fn of_memcached_names_keys_and_lengths_stay() {
    check_written(">| set k 7 -1 6 noreply|secret|get a b|", "set k 7 -1 6 noreply ?????? get a b");
    check_written(">| set k 7 0 6|secret|incr n 42|foo secret|", "set k 7 0 6 ?????? incr n 11 fxx ??????");
    check_written(
        ">| ms k 6 T30 Osecre Isecret|secret|mg k v D15 q|",
        "ms k 6 T11 Osecre I?????? ?????? mg k v D11 q",
    );
    check_written(
        ">| gets a|\n<| VALUE a 7 6 12|secret|END|STORED|42|CLIENT_ERROR secret|SERVER_ERROR object too large|",
        "< VALUE a 7 6 12 ?????? END STORED 11 CLIENT_ERROR ?????? SERVER_ERROR object too large",
    );
    // Words of an inline command of Redis are not taken for numbers of memcached.
    check_written(">| set pin 1234|", "set pin ????");
    check_written(">| set pin 1 2 x|", "set pin ? ? ?");
}

#[test]
fn memcached_reads_the_same() {
    for input in [
        ">| set a 0 0 6|secret|get a b|\n<| STORED|VALUE a 0 6|secret|END|",
        ">| cas a 0 -1 6 99 noreply|secret|incr n 5|\n<| 6|",
        ">| ms a 6 T0 q|secret|mg a v k O77|mn|\n<| VA 6 ka O77|secret|MN|",
        ">| stats items|\n<| STAT items:1:number 5|STAT x secret|END|",
        ">| set a 0 0 6|secret|\n<| SERVER_ERROR object too large for cache|\n>| delete a|\n<| NOT_FOUND|",
        ">| set a 0 0 6|secret|bogus secret|version|\n<| STORED|ERROR|VERSION 1.6.18|",
        ">| set a 0 0 50|secret\n>~ 44\n>| |get a|\n<| STORED|VALUE a 0 50|secret\n<~ 44\n<| |END|",
    ] {
        check_same_after(">| version|\n<| VERSION secret|", "memcached", false, input);
        check_same_after("<| et|END|\n>| set a 0 0 6|secret|\n<| STORED|", "memcached", true, input);
    }
}

/// A packet of memcached's binary protocol, as text of [`steps`].
fn packet(is_response: bool, opcode: u8, extras: &[u8], key: &str, value: &str) -> String {
    let body = (extras.len() + key.len() + value.len()) as u32;
    let mut bytes =
        vec![if is_response { 0x81 } else { 0x80 }, opcode, 0, key.len() as u8, extras.len() as u8, 0, 0, 0];
    bytes.extend(body.to_be_bytes());
    bytes.extend([0, 0, 0, 9]);
    bytes.extend([0; 8]);
    bytes.extend([extras, key.as_bytes(), value.as_bytes()].concat());
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[test]
fn memcached_packets_read_the_same() {
    let set = packet(false, 0x01, &[0; 8], "a", "secret");
    let get = packet(false, 0x00, &[], "a", "");
    let (stored, value) = (packet(true, 0x01, &[], "", ""), packet(true, 0x00, &[0; 4], "", "secret"));
    let opening = format!(">\" {get}\n<\" {value}").replace("secret", "letter");
    check_same_after(&opening, "memcached", false, &format!(">\" {set}{get}\n<\" {stored}{value}"));
    let login = packet(false, 0x21, &[], "secret", "secret");
    check_same_after(&opening, "memcached", false, &format!(">\" {get}{login}\n<\" {value}"));
}

#[test]
fn dnode_reads_the_same() {
    let request = "*3|$3|SET|$1|a|$6|secret|";
    let framed = |id: u32, kind: u8, payload: &str| {
        let len = payload.replace('|', "\r\n").len();
        format!("   $2014$ {id} {kind} 0 1 1 *1 d *{len}|{payload}")
    };
    for (request, reply) in [
        (request, "+OK|"),
        ("*2|$3|GET|$1|a|", "$6|secret|"),
        ("set a 0 0 6|secret|", "STORED|"),
        ("gets a|", "VALUE a 0 6 1|secret|END|"),
    ] {
        let (first, second) = (framed(1, 3, request), framed(2, 4, request));
        let (one, two) = (framed(1, 5, reply), framed(2, 5, reply));
        let opening = format!(">| {first}\n<| {one}");
        check_same_after(&opening, "dnode", false, &format!(">| {first}{second}\n<| {one}{two}"));
        check_same_after(&opening, "dnode", false, &format!(">~ 20\n>| secret {first}\n<| {two}"));
    }
    let gossip = framed(1, 7, "secret|");
    check_same_after(&format!(">| {}", framed(1, 3, request)), "dnode", false, &format!(">| {gossip}"));
}
