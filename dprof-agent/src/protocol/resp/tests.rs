//! RESP as text: inputs in the notation of `testing`, and what the parser says of them.

use proptest::prelude::*;

use super::Resp;
use crate::protocol::testing::{self, Step};
use crate::protocol::{Direction, Parsed};

#[track_caller]
fn check(input: &str, expected: &str) {
    testing::check(&Resp, false, input, expected);
}

#[track_caller]
fn check_joined(input: &str, expected: &str) {
    testing::check(&Resp, true, input, expected);
}

/// One request and its reply (` ` separates lines), by what is stored of the request.
#[track_caller]
fn check_statement(request: &str, operation: &str, text: &str) {
    let words: Vec<&str> = request.split(' ').collect();
    let resp =
        words.iter().fold(format!("*{}", words.len()), |resp, word| format!("{resp} ${} {word}", word.len()));
    let length = testing::steps(&format!("> {resp}")).into_iter().map(|step| match step {
        Step::Bytes(_, bytes) => bytes.len(),
        _ => 0,
    });
    check(&format!("> {resp}"), &format!("> 0..{} req [{operation}] [{text}]", length.sum::<usize>()));
}

#[test]
fn requests_and_replies() {
    check("> *1 $4 PING\n< +PONG", "> 0..14 req [PING] [PING]\n< 0..7 res");
    check("> *2 $3 get $1 a\n< $-1", "> 0..20 req [GET] [GET a]\n< 0..5 res");
    check("> *3 $3 SET $1 a $5 hello\n< +OK", "> 0..31 req [SET] [SET a ?]\n< 0..5 res");
    check("> *2 $3 GET $1 a\n< -WRONGTYPE\\sno", "> 0..20 req [GET] [GET a]\n< 0..15 res [WRONGTYPE] error");
    check(
        "> *1 $4 PING *1 $4 PING\n> *1 $4 PING\n< +PONG +PONG +PONG",
        "> 0..14 req [PING] [PING]\n> 14..28 req [PING] [PING]\n> 28..42 req [PING] [PING]
         < 0..7 res\n< 7..14 res\n< 14..21 res",
    );
    check("> *2 $3 GET $0 \\s", "mistaken");
}

#[test]
fn statements_keep_keys_and_nothing_else() {
    for (request, operation, text) in [
        ("get key:000000000001", "GET", "GET key:000000000001"),
        ("SET a secret EX 10", "SET", "SET a ? ? ?"),
        ("DEL a b c", "DEL", "DEL a b c"),
        ("MSET a 1 b 2", "MSET", "MSET a ? b ?"),
        ("LCS a b", "LCS", "LCS a b"),
        ("LMOVE a b LEFT RIGHT", "LMOVE", "LMOVE a b ? ?"),
        ("BITOP AND d a b", "BITOP", "BITOP ? d a b"),
        ("EVAL return 2 a b secret", "EVAL", "EVAL ? ? a b ?"),
        ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "ZUNIONSTORE", "ZUNIONSTORE d ? a b ? ? ?"),
        ("ZINTER 2 a b", "ZINTER", "ZINTER ? a b"),
        ("XREAD COUNT 1 STREAMS a b 0 0", "XREAD", "XREAD ? ? ? a b ? ?"),
        ("XREADGROUP GROUP streams c STREAMS a >", "XREADGROUP", "XREADGROUP ? ? ? ? a ?"),
        ("OBJECT ENCODING a", "OBJECT ENCODING", "OBJECT ENCODING a"),
        ("config get maxmemory", "CONFIG GET", "CONFIG GET ?"),
        ("CONFIG SET requirepass secret", "CONFIG SET", "CONFIG SET ? ?"),
        ("CLIENT SETNAME worker", "CLIENT SETNAME", "CLIENT SETNAME ?"),
        ("CLUSTER NONSENSE a", "CLUSTER", "CLUSTER ? ?"),
        ("CLIENT", "CLIENT", "CLIENT"),
        ("AUTH user secret", "AUTH", "AUTH ? ?"),
        ("HELLO 3 AUTH user secret", "HELLO", "HELLO ? ? ? ?"),
        ("ACL SETUSER user on >secret", "ACL SETUSER", "ACL SETUSER ? ? ?"),
        ("MIGRATE h 1 k 0 9 AUTH secret", "MIGRATE", "MIGRATE ? ? k ? ? ? ?"),
        ("ECHO secret", "ECHO", "ECHO ?"),
        ("SCAN 0 MATCH secret", "SCAN", "SCAN ? ? ?"),
        ("My.Module-Cmd key secret", "MY.MODULE-CMD", "MY.MODULE-CMD ? ?"),
        ("9lives a", "(invalid)", "(invalid) ?"),
    ] {
        check_statement(request, operation, text);
    }
    check("> *2 $3 GET $200 \\{k*200}", &format!("> 0..221 req [GET] [GET {}\u{2026}]", "k".repeat(128)));
    check("> *2 $3 GET $6 caf\\xc3\\xa9\\xff", "> 0..25 req [GET] [GET café\\xff]");
    let long = format!("> *2 $33 {} $1 a", "n".repeat(33));
    check(&long, "> 0..51 req [(invalid)] [(invalid) ?]");
}

#[test]
fn each_command_has_the_size_of_its_own_value() {
    let of = |input: &str| -> Vec<Option<u32>> {
        let message = |parsed| match parsed {
            Parsed::Message(message) => message.value_bytes,
            other => panic!("{other:?}"),
        };
        testing::run(&Resp, false, &testing::steps(input)).into_iter().map(message).collect()
    };
    let sizes = of("> *4 $5 RPUSH $1 a $5 hello $2 hi *3 $3 SET $1 a $3 abc *2 $3 GET $1 a *2 $3 DEL $1 a");
    assert_eq!(sizes, [Some(5), Some(3), None, None]);
}

/// Hash of each message, in order.
fn hashes(input: &str) -> Vec<Option<u64>> {
    let message = |parsed| match parsed {
        Parsed::Message(message) => message.content_hash,
        other => panic!("{other:?}"),
    };
    testing::run(&Resp, false, &testing::steps(input)).into_iter().map(message).collect()
}

#[test]
fn equal_contents_have_equal_hashes() {
    let of = hashes(
        "> *2 $3 GET $1 a *2 $3 get $1 a *2 $3 GET $1 b *2 $2 GE $2 Ta *3 $3 SET $2 ab $1 c *3 $3 SET $1 a $2 bc
         >\" get a\\r\\n",
    );
    assert_eq!((of[0], of[0]), (of[1], of[6]));
    let parts = |input: &str| -> Vec<Vec<u64>> {
        let message = |parsed| match parsed {
            Parsed::Message(message) => message.parts.as_slice().to_vec(),
            other => panic!("{other:?}"),
        };
        testing::run(&Resp, false, &testing::steps(input)).into_iter().map(message).collect()
    };
    let of_parts = parts(
        "> *4 $4 MGET $1 a $1 b $1 a *2 $3 GET $1 b *2 $4 MGET $1 a *5 $4 MSET $1 a $1 1 $1 b $1 2 *3 $3 SET $1 b $1 2
         > *4 $3 DEL $1 b $1 c $1 a *1 $4 PING *2 $4 AUTH $1 x *4 $4 MSET $1 a $1 1 $1 b *3 $5 BLPOP $1 a $1 0",
    );
    let (a, b) = (of_parts[2][0], of_parts[1][0]);
    assert_eq!(of_parts[0], [a, b, a]);
    assert_eq!(of_parts[3][1..], of_parts[4]);
    assert_eq!((of_parts[5].len(), of_parts[5][0], of_parts[5][2]), (3, b, a));
    assert!(of_parts[6..9].iter().all(Vec::is_empty), "{of_parts:?}");
    assert_eq!(of_parts[9].len(), 1);
    assert!(parts("> *3 $4 MGET $1 a $9 abc\n>~ 6")[0].is_empty());
    let many = |n: usize| parts(&format!("> *{} $3 DEL {}", n + 1, "$1 a ".repeat(n)))[0].len();
    assert_eq!((many(128), many(129)), (128, 0));
    for (idx, hash) in of.iter().enumerate().take(6).skip(1) {
        assert!(hash.is_some());
        assert!(of[idx + 1..6].iter().all(|other| other != hash), "{idx}");
    }
}

#[test]
fn secrets_leave_no_hash() {
    for request in ["*2 $4 AUTH $1 x", "*4 $6 CONFIG $3 SET $1 x $1 y", "*3 $5 HELLO $1 3 $4 AUTH"] {
        assert_eq!(hashes(&format!("> {request}")), [None], "{request}");
    }
    assert_eq!(hashes("> *2 $3 GET $20 abcdefgh\n>~ 12"), [None]);
}

#[test]
fn inline_commands() {
    check(">\" PING\\r\\n", "> 0..6 req [PING] [PING]");
    check(">\" ping\\n", "> 0..5 req [PING] [PING]");
    check(
        ">\" \\r\\n\\r\\nset k \"a b\"\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n",
        "> 4..17 req [SET] [SET k ?]\n> 17..31 req [PING] [PING]",
    );
    // Redis answers it, with an error.
    check(
        "> *1 $4 PING\n>\" nonsense a\\r\\n",
        "> 0..14 req [PING] [PING]\n> 14..26 req [NONSENSE] [NONSENSE ?]",
    );
    check("> *1 $4 PING\n>\" non\\x00sense\\r\\n", "> 0..14 req [PING] [PING]\n> lost 14");
    check(">\" nonsense\\r\\n", "mistaken");
    check("> *0 *-1 *1 $4 PING", "> 9..23 req [PING] [PING]");
}

#[test]
fn every_type_of_reply() {
    for reply in [
        "+OK",
        "+",
        ":0",
        ":-12",
        "$-1",
        "$0 \\x",
        "$5 hello",
        "*0",
        "*-1",
        "*2 $1 a :1",
        "*2 *1 :1 *2 $1 a $-1",
        "_",
        "#t",
        "#f",
        ",1.5",
        ",inf",
        "(123456789012345678901234567890",
        "%2 +a :1 +b *0",
        "~2 :1 :2",
        "=7 txt:abc",
        "*0",
        "%0",
        "*1 %1 +a ~1 #t",
        "|1 +ttl :3 *2 $1 a $1 b",
        "*2 |1 +k +v :1 :2",
        "|1 *1 :1 %1 +a +b $-1",
        "$? ;4 Hell ;5 oworl ;1 d ;0",
        "*? :1 *2 :2 :3 %? +a :1 . .",
        "~? .",
        "*1 *? $? ;0 .",
    ] {
        let reply = reply.replace("\\x", "");
        let steps = testing::steps(&format!("< {reply}"));
        let Step::Bytes(_, mut bytes) = steps[0].clone() else { panic!("{steps:?}") };
        if reply.starts_with("$0") {
            bytes.extend(b"\r\n");
        }
        let escaped = bytes.iter().fold(String::new(), |escaped, byte| format!("{escaped}\\x{byte:02x}"));
        let n = bytes.len();
        let expected = format!(
            "> 0..14 req [PING] [PING]\n< 0..{n} res\n> 14..28 req [PING] [PING]\n< {n}..{} res",
            n + 7
        );
        check(&format!("> *1 $4 PING\n<\" {escaped}\n> *1 $4 PING\n< +PONG"), &expected);
    }
}

#[test]
fn failures_are_those_of_the_outermost_value() {
    let ping = "> 0..14 req [PING] [PING]";
    check("> *1 $4 PING\n< -ERR\\sunknown", &format!("{ping}\n< 0..14 res [ERR] error"));
    check("> *1 $4 PING\n< !9 OOM\\slater", &format!("{ping}\n< 0..15 res [OOM] error"));
    check("> *1 $4 PING\n< *2 -ERR\\sx :1", &format!("{ping}\n< 0..16 res"));
    check("> *1 $4 PING\n< |1 +a -ERR -MOVED\\s1\\sh:1", &format!("{ping}\n< 0..28 res [MOVED] error"));
    check("> *1 $4 PING\n< |1 +a -ERR +OK", &format!("{ping}\n< 0..19 res"));
    check("> *1 $4 PING\n< -no\\ssuch", &format!("{ping}\n< 0..10 res [(invalid)] error"));
}

#[test]
fn garbage_is_lost_or_mistaken() {
    for garbage in [
        "*x",
        "*1 :1",
        "*1 $-1",
        "*1 $x",
        "*99999999999",
        "*1 $99999999999",
        "\\x00",
        "$4 PING",
        "*1 $4 PINGS",
    ] {
        check(&format!("> {garbage}"), "mistaken");
        check(&format!("> *1 $4 PING\n> {garbage}"), "> 0..14 req [PING] [PING]\n> lost 14");
    }
    for garbage in
        ["x", "$x", "$-2", "*-2", "%-1", "#tt", "_x", ":", ":1x", "+a\\nb", "$1 abc", "*9223372036854775807"]
    {
        check(&format!("< {garbage}"), "mistaken");
        check(&format!("> *1 $4 PING\n< {garbage}"), "> 0..14 req [PING] [PING]\n< lost 0");
    }
}

#[test]
fn the_boundary_is_found_again() {
    // Requests: at the next array that begins with a known command.
    check(
        "> *1 $4 PING\n>~ 5\n> garbage *1 $4 PING *1 $4 PING",
        "> 0..14 req [PING] [PING]\n> lost 14\n> 28..42 req [PING] [PING]\n> 42..56 req [PING] [PING]",
    );
    // A header that is none hides a header.
    check(
        ">~ 3\n> *1 $9 x *1 $4 PING *1 $4 PING",
        "> lost 0\n> 14..28 req [PING] [PING]\n> 28..42 req [PING] [PING]",
    );
    // A command that lacks its key, or one that Redis does not have, is no boundary.
    check(">~ 3\n> *1 $3 GET *1 $3 FOO *1 $4 PING", "> lost 0\n> 29..43 req [PING] [PING]");
    // Replies: at the first byte after requests, if a line ended before it.
    check(
        "> *1 $4 PING *1 $4 PING\n<~ 3\n< NG +PONG\n> *1 $4 PING\n< +PONG",
        "> 0..14 req [PING] [PING]\n> 14..28 req [PING] [PING]\n< lost 0\n> 28..42 req [PING] [PING]\n< 14..21 res",
    );
    check(
        "> *1 $4 PING\n<~ 3\n<\" NG\n> *1 $4 PING\n<\" \\r\\n+PONG\\r\\n\n> *1 $4 PING\n< +PONG",
        "> 0..14 req [PING] [PING]\n< lost 0\n> 14..28 req [PING] [PING]\n> 28..42 req [PING] [PING]\n< 14..21 res",
    );
}

#[test]
fn a_joined_connection_waits_for_a_boundary() {
    check_joined(
        ">\" lue\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n\n<\" tail\\r\\n+PONG\\r\\n\n> *1 $4 PING\n< +PONG",
        "> 5..19 req [PING] [PING]\n< lost 0\n> 19..33 req [PING] [PING]\n< 13..20 res",
    );
    check_joined("> *1 $4 PING\n< +PONG", "> 0..14 req [PING] [PING]\n< 0..7 res");
    check_joined("< *3 $7 message $1 c $1 x\n< *3 $7 message $1 c $1 x", "");
}

#[test]
fn a_hole_in_a_value_costs_only_what_it_hid() {
    let set = "> *3 $3 SET $1 a $9 1234";
    check(
        &format!("{set}\n>~ 3\n>\" \\r\\n\n> *1 $4 PING"),
        "> 0..35 req [SET] [SET a ?]\n> 35..49 req [PING] [PING]",
    );
    check(&format!("{set}\n>~ 5\n> *1 $4 PING"), "> 0..35 req [SET] [SET a ?]\n> 35..49 req [PING] [PING]");
    check(
        &format!("{set}\n>~ 6\n> *1 $4 PING *1 $4 PING"),
        "> 0..35 req [SET] [SET a ?]\n> lost 35\n> 36..50 req [PING] [PING]\n> 50..64 req [PING] [PING]",
    );
    check("> *2 $3 GET $9 abcd\n>~ 5", "> 0..28 req [GET] [GET …]");
    check(
        ">\" *2\\r\\n$3\\r\\nG\n>~ 4\n>\" $1\\r\\na\\r\\n",
        "> 0..20 req [(unseen)] [(unseen) ?] incomplete",
    );
    check(
        "> *1 $4 PING\n<\" $9\\r\\nabc\n<~ 8\n< +PONG",
        "> 0..14 req [PING] [PING]\n< 0..15 res\n< 15..22 res",
    );
}

#[test]
fn published_messages_are_not_paired() {
    check(
        "> *2 $9 SUBSCRIBE $1 c
         < *3 $9 subscribe $1 c :1
         < *3 $7 message $1 c $1 x
         > *1 $4 PING
         < *3 $7 message $1 c $1 x *2 $4 pong $1 x
         > *1 $11 UNSUBSCRIBE *1 $4 PING
         < *3 $11 unsubscribe $1 c :0 +PONG *3 $7 message $1 c $1 x",
        "> 0..26 req [SUBSCRIBE] [SUBSCRIBE ?]
         < 0..30 res
         < 30..61 push
         > 26..40 req [PING] [PING]
         < 61..92 push
         < 92..113 res
         > 40..62 req [UNSUBSCRIBE] [UNSUBSCRIBE]
         > 62..76 req [PING] [PING]
         < 113..146 res
         < 146..153 res
         < 153..184 res",
    );
}

#[test]
fn one_subscribe_of_many_channels_is_one_request() {
    check(
        "> *3 $9 SUBSCRIBE $1 a $1 b *2 $10 PSUBSCRIBE $1 p *1 $11 UNSUBSCRIBE *2 $3 GET $1 a
         < *3 $9 subscribe $1 a :1 *3 $9 subscribe $1 b :2 *3 $10 psubscribe $1 p :3
         < *3 $11 unsubscribe $1 a :2 *3 $11 unsubscribe $1 b :1 -ERR",
        "> 0..33 req [SUBSCRIBE] [SUBSCRIBE ? ?]
         > 33..61 req [PSUBSCRIBE] [PSUBSCRIBE ?]
         > 61..83 req [UNSUBSCRIBE] [UNSUBSCRIBE]
         > 83..103 req [GET] [GET a]
         < 0..30 res
         < 30..60 push
         < 60..92 res
         < 92..125 res
         < 125..158 push
         < 158..164 res [ERR] error",
    );
    // Not allowed: one error, and later replies keep their order.
    check(
        "> *3 $9 SUBSCRIBE $1 a $1 b *1 $4 PING\n< -NOPERM +PONG",
        "> 0..33 req [SUBSCRIBE] [SUBSCRIBE ? ?]\n> 33..47 req [PING] [PING]\n< 0..9 res [NOPERM] error\n< 9..16 res",
    );
}

#[test]
fn push_frames_are_not_paired() {
    check(
        "> *2 $5 HELLO $1 3 *2 $9 SUBSCRIBE $1 c *2 $3 GET $1 a
         < %1 $5 proto :3 >3 $9 subscribe $1 c :1 >2 $10 invalidate *1 $1 a $1 v >3 $7 message $1 c $1 x",
        "> 0..22 req [HELLO] [HELLO ?]
         > 22..48 req [SUBSCRIBE] [SUBSCRIBE ?]
         > 48..68 req [GET] [GET a]
         < 0..19 res
         < 19..49 res
         < 49..81 push
         < 81..88 res
         < 88..119 push",
    );
    check("< >2 $10 invalidate _", "< 0..24 push");
    // A list that looks like a message is a reply where nothing is subscribed.
    check(
        "> *4 $6 LRANGE $1 l $1 0 $2 -1\n< *3 $7 message $1 c $1 x",
        "> 0..38 req [LRANGE] [LRANGE l ? ?]\n< 0..31 res",
    );
}

#[test]
fn monitored_commands_are_not_paired() {
    check(
        "> *1 $7 MONITOR\n< +OK +1.5\\s[0\\sx]\\s\"GET\"\n> *1 $5 RESET *1 $4 PING\n< +1.5\\s[0\\sx]\\s\"GET\" +RESET +PONG",
        "> 0..17 req [MONITOR] [MONITOR]\n< 0..5 res\n< 5..23 push\n> 17..32 req [RESET] [RESET]
         > 32..46 req [PING] [PING]\n< 23..41 push\n< 41..49 res\n< 49..56 res",
    );
}

#[test]
fn commands_without_a_reply_are_one_way() {
    check(
        "> *3 $6 CLIENT $5 REPLY $4 SKIP *2 $4 INCR $1 a *2 $4 INCR $1 a
         > *3 $6 client $5 reply $3 off *1 $4 PING *3 $6 CLIENT $5 REPLY $4 SKIP *3 $6 CLIENT $5 REPLY $2 ON *1 $4 PING",
        "> 0..37 one [CLIENT REPLY] [CLIENT REPLY ?]
         > 37..58 one [INCR] [INCR a]
         > 58..79 req [INCR] [INCR a]
         > 79..115 one [CLIENT REPLY] [CLIENT REPLY ?]
         > 115..129 one [PING] [PING]
         > 129..166 one [CLIENT REPLY] [CLIENT REPLY ?]
         > 166..201 req [CLIENT REPLY] [CLIENT REPLY ?]
         > 201..215 req [PING] [PING]",
    );
}

#[test]
fn streamed_values_have_an_end() {
    for garbage in ["*? :1 ; .", ".", "*? *1 .", "$? :1", "$? ;x", "$? ;-1", "|?", ";4", "*? .x"] {
        check(&format!("> *1 $4 PING\n< {garbage}"), "> 0..14 req [PING] [PING]\n< lost 0");
    }
    let deep = "*? ".repeat(17);
    check(&format!("> *1 $4 PING\n< {deep}"), "> 0..14 req [PING] [PING]\n< lost 0");
}

#[test]
fn queued_commands_and_the_transaction_are_answered_in_order() {
    check(
        "> *1 $5 MULTI *2 $4 INCR $1 a *3 $5 BLPOP $1 l $1 0 *1 $4 EXEC *1 $4 PING
         < +OK +QUEUED +QUEUED *2 :1 *-1 +PONG",
        "> 0..15 req [MULTI] [MULTI]
         > 15..36 req [INCR] [INCR a]
         > 36..65 req [BLPOP] [BLPOP l ?]
         > 65..79 req [EXEC] [EXEC]
         > 79..93 req [PING] [PING]
         < 0..5 res
         < 5..14 res
         < 14..23 res
         < 23..36 res
         < 36..43 res",
    );
    check(
        "> *1 $5 MULTI *1 $3 GET *1 $4 EXEC\n< +OK -ERR\\swrong -EXECABORT\\sno",
        "> 0..15 req [MULTI] [MULTI]
         > 15..28 req [GET] [GET]
         > 28..42 req [EXEC] [EXEC]
         < 0..5 res
         < 5..17 res [ERR] error
         < 17..32 res [EXECABORT] error",
    );
    // Subscribed by a transaction: published messages come unasked from then on.
    check(
        "> *1 $5 MULTI *3 $9 SUBSCRIBE $1 a $1 b *1 $4 EXEC
         < +OK +QUEUED *1 *3 $9 subscribe $1 a :1 *3 $9 subscribe $1 b :2
         < *3 $7 message $1 a $1 x
         > *1 $4 PING
         < *2 $4 pong $0 \\x20",
        "> 0..15 req [MULTI] [MULTI]
         > 15..48 req [SUBSCRIBE] [SUBSCRIBE ? ?]
         > 48..62 req [EXEC] [EXEC]
         < 0..5 res
         < 5..14 res
         < 14..48 res
         < 48..78 push
         < 78..109 push
         > 62..76 req [PING] [PING]
         < lost 109",
    );
    // What is queued silences nothing that shows: its place in the order is not known.
    check(
        "> *1 $5 MULTI *3 $6 CLIENT $5 REPLY $3 OFF *1 $4 EXEC",
        "> 0..15 req [MULTI] [MULTI]
         > 15..51 req [CLIENT REPLY] [CLIENT REPLY ?] incomplete
         > 51..65 req [EXEC] [EXEC]",
    );
}

#[test]
fn commands_that_wait_by_their_own_wish_say_so() {
    let blocking = |request: &str, text: &str| {
        let operation = text.split(' ').next().expect("a name");
        let steps = testing::steps(&format!("> {request}"));
        let Step::Bytes(_, bytes) = &steps[0] else { panic!("{steps:?}") };
        check(
            &format!("> {request}"),
            &format!("> 0..{} req [{operation}] [{text}] dprof.blocking=true", bytes.len()),
        );
    };
    blocking("*4 $5 BLPOP $1 a $1 b $1 5", "BLPOP a b ?");
    blocking("*3 $4 WAIT $1 1 $1 0", "WAIT ? ?");
    blocking("*6 $6 BLMOVE $1 a $1 b $4 LEFT $4 LEFT $1 0", "BLMOVE a b ? ? ?");
    blocking("*5 $6 BLMPOP $1 0 $1 1 $1 a $4 LEFT", "BLMPOP ? ? a ?");
    blocking("*6 $5 XREAD $5 block $1 0 $7 STREAMS $1 s $1 $", "XREAD ? ? ? s ?");
    check_statement("XREAD COUNT 1 STREAMS BLOCK 0", "XREAD", "XREAD ? ? ? BLOCK ?");
    check_statement("XREADGROUP GROUP BLOCK c STREAMS a >", "XREADGROUP", "XREADGROUP ? ? ? ? a ?");
    check(
        "> *6 $5 XREAD $5\n>~ 5\n>\" \\r\\n\n> $1 0 $7 STREAMS $1 s $1 $",
        "> 0..60 req [XREAD] [XREAD ? ? ? s ?] dprof.blocking=unknown",
    );
}

#[test]
fn a_hidden_argument_that_decides_the_answer_marks_the_request() {
    check(
        "> *3 $6 CLIENT $5 REPLY $3\n>~ 3\n>\" \\r\\n\n> *1 $4 PING",
        "> 0..36 req [CLIENT REPLY] [CLIENT REPLY ?] incomplete\n> 36..50 req [PING] [PING]",
    );
    // Refused for its arity: answered.
    check(
        "> *4 $6 CLIENT $5 REPLY $3 OFF $1 x *1 $4 PING",
        "> 0..43 req [CLIENT REPLY] [CLIENT REPLY ? ?]\n> 43..57 req [PING] [PING]",
    );
    // Refused for want of a password: the order is in doubt, and said to be.
    check(
        "> *3 $6 CLIENT $5 REPLY $3 OFF *1 $4 PING\n< -NOAUTH\\sno -NOAUTH\\sno\n> *1 $4 PING",
        "> 0..36 one [CLIENT REPLY] [CLIENT REPLY ?]
         > 36..50 one [PING] [PING]
         < lost 0
         < 0..12 res [NOAUTH] error
         < lost 12
         < 12..24 res [NOAUTH] error
         > 50..64 req [PING] [PING]",
    );
}

#[test]
fn resp3_lists_are_never_published_messages() {
    check(
        "> *2 $5 HELLO $1 3 *2 $9 SUBSCRIBE $1 c
         < %1 $5 proto :3 >3 $9 subscribe $1 c :1
         > *4 $6 LRANGE $1 l $1 0 $2 -1 *4 $6 LRANGE $1 l $1 0 $2 -1
         < *3 $7 message $1 c $1 x >3 $7 message $1 c $1 x *3 $9 subscribe $1 c :1
         > *1 $5 RESET *2 $9 SUBSCRIBE $1 c
         < +RESET *3 $9 subscribe $1 c :1 *3 $7 message $1 c $1 x",
        "> 0..22 req [HELLO] [HELLO ?]
         > 22..48 req [SUBSCRIBE] [SUBSCRIBE ?]
         < 0..19 res
         < 19..49 res
         > 48..86 req [LRANGE] [LRANGE l ? ?]
         > 86..124 req [LRANGE] [LRANGE l ? ?]
         < 49..80 res
         < 80..111 push
         < 111..141 res
         > 124..139 req [RESET] [RESET]
         > 139..165 req [SUBSCRIBE] [SUBSCRIBE ?]
         < 141..149 res
         < 149..179 res
         < 179..210 push",
    );
}

#[test]
fn confirmations_find_their_own_kind() {
    // A slot moved away while a pattern is given up.
    check(
        "> *2 $10 SSUBSCRIBE $1 s *2 $10 PSUBSCRIBE $1 p
         < *3 $10 ssubscribe $1 s :1 *3 $10 psubscribe $1 p :1
         > *1 $12 PUNSUBSCRIBE
         < *3 $12 sunsubscribe $1 s :0 *3 $12 punsubscribe $1 p :0",
        "> 0..28 req [SSUBSCRIBE] [SSUBSCRIBE s]
         > 28..56 req [PSUBSCRIBE] [PSUBSCRIBE ?]
         < 0..32 res
         < 32..64 res
         > 56..79 req [PUNSUBSCRIBE] [PUNSUBSCRIBE]
         < 64..98 push
         < 98..132 res",
    );
}

#[test]
fn a_replication_stream_ends_the_messages() {
    check(
        "> *1 $4 PING *3 $5 PSYNC $1 ? $2 -1\n<\" +PONG\\r\\n\\n\\n+FULLRESYNC x 0\\r\\n$5\\r\\nREDIS*1\\r\\n$4\\r\\nPING\\r\\n\n> *3 $8 REPLCONF $3 ACK $1 0",
        "> 0..14 req [PING] [PING]\n> 14..44 req [PSYNC] [PSYNC ? ?]\n< 0..7 res\n< 9..26 res\nopaque 44 26",
    );
    check(
        "> *3 $5 PSYNC $1 x $1 1\n< -NOMASTERLINK\n> *3 $5 PSYNC $1 x $1 1\n< +CONTINUE",
        "> 0..29 req [PSYNC] [PSYNC ? ?]\n< 0..15 res [NOMASTERLINK] error\n> 29..58 req [PSYNC] [PSYNC ? ?]
         < 15..26 res\nopaque 58 26",
    );
    check("> *1 $4 SYNC\n<\" $9\\r\\nREDIS0011", "> 0..14 req [SYNC] [SYNC]\n< 0..4 res\nopaque 14 4");
    check(
        "> *1 $4 SYNC\n<\" $EOF:0123\\r\\nREDIS0011",
        "> 0..14 req [SYNC] [SYNC]\n< 0..11 res\nopaque 14 11",
    );
    check_joined("> *3 $8 REPLCONF $3 ACK $1 0", "opaque 0 0");
    // Joined: what the master sends looks like requests until the replica acknowledges.
    check_joined(
        "> *3 $3 SET $1 a $1 b\n< *3 $8 REPLCONF $3 ACK $1 0",
        "> 0..27 req [SET] [SET a ?]\nopaque 27 0",
    );
    check("> *2 $8 REPLCONF $13 capa\\sconfused", "> 0..38 req [REPLCONF] [REPLCONF ?]");
}

#[test]
fn holes_never_make_a_wrong_message() {
    let found = testing::check_holes(
        &Resp,
        "> *3 $3 SET $1 a $40 0123456789012345678901234567890123456789
         < +OK
         > *2 $3 GET $1 a
         < $40 0123456789012345678901234567890123456789
         > *2 $3 DEL $1 b *4 $6 LRANGE $1 l $1 0 $2 -1 *2 $6 CONFIG $3 GET *3 $3 SET $2 cc $1 x
         < :1 *3 $2 aa $2 bb *2 :1 :2 -ERR\\sno +OK
         > *2 $4 INCR $1 n
         < :5
         > *1 $4 PING
         < +PONG",
    );
    assert!(found > 20_000, "{found}");
}

#[test]
fn an_answer_to_a_subscriber_without_its_word_makes_the_order_doubtful() {
    let check = |input: &str| {
        let found = testing::check_holes(&Resp, input);
        assert!(found > 1_000, "{found}");
    };
    check(
        "> *2 $9 SUBSCRIBE $1 a
         < *3 $9 subscribe $1 a :1 *3 $7 message $1 a $5 hello
         > *2 $4 PING $1 x
         < *3 $7 message $1 a $5 hello *2 $4 pong $1 x *3 $7 message $1 a $5 hello
         > *2 $11 UNSUBSCRIBE $1 a
         < *3 $7 message $1 a $5 hello *3 $11 unsubscribe $1 a :0
         > *2 $3 GET $1 a
         < $-1",
    );
    check(
        "> *3 $9 SUBSCRIBE $1 a $1 b
         < *3 $9 subscribe $1 a :1 *3 $9 subscribe $1 b :2 *3 $7 message $1 a $5 hello
         > *2 $4 PING $1 x
         < *3 $7 message $1 a $5 hello *2 $4 pong $1 x *3 $7 message $1 a $5 hello
         > *1 $11 UNSUBSCRIBE
         < *3 $11 unsubscribe $1 a :1 *3 $7 message $1 a $5 hello *3 $11 unsubscribe $1 b :0
         > *2 $3 GET $1 a
         < $-1",
    );
}

#[test]
fn what_the_last_confirmation_says_ends_the_doubt_about_a_lost_one() {
    // A list that looks like a published message is the answer again.
    check(
        "> *3 $9 SUBSCRIBE $1 a $1 b
         <| *3|$9|subs
         <~ 1
         <| ribe|$1|a|:1|
         < *3 $9 subscribe $1 b :2
         > *1 $11 UNSUBSCRIBE
         < *3 $11 unsubscribe $1 a :1 *3 $11 unsubscribe $1 b :0
         > *4 $6 LRANGE $1 l $1 0 $2 -1 *1 $4 PING
         < *3 $7 message $1 a $5 hello +PONG",
        "> 0..33 req [SUBSCRIBE] [SUBSCRIBE ? ?]
         < 0..30 res
         < 30..60 push
         > 33..55 req [UNSUBSCRIBE] [UNSUBSCRIBE]
         < 60..93 res
         < 93..126 push
         > 55..93 req [LRANGE] [LRANGE l ? ?]
         > 93..107 req [PING] [PING]
         < 126..161 res
         < 161..168 res",
    );
}

/// Bytes that are half right: whole words of the protocol in any order.
fn words() -> impl Strategy<Value = Vec<u8>> {
    const WORDS: &[&str] = &[
        "*1\r\n",
        "*2\r\n",
        "*3\r\n",
        "$3\r\n",
        "$4\r\n",
        "GET\r\n",
        "PING\r\n",
        "SET\r\n",
        "\r\n",
        "*",
        "$",
        "+OK\r\n",
        ":1\r\n",
        "$-1\r\n",
        "*0\r\n",
        "%1\r\n",
        ">2\r\n",
        "|1\r\n",
        "-ERR x\r\n",
        "PING",
        "subscribe\r\n",
        "$9\r\n",
        "\0",
        "*1\r\n$4\r\nPING\r\n",
        "*1\r\n$7\r\nMONITOR\r\n",
        "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n",
        "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
        "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n",
        "*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n",
    ];
    let word = prop_oneof![
        8 => prop::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(word, 0..30).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_bytes_give_the_same_however_cut(
        steps in prop::collection::vec((any::<bool>(), words(), 0u64..4), 0..12),
        joined: bool,
        seed in 1usize..50,
    ) {
        let steps: Vec<Step> = steps
            .into_iter()
            .flat_map(|(out, bytes, gap)| {
                let direction = if out { Direction::Out } else { Direction::In };
                [Step::Bytes(direction, bytes), Step::Gap(direction, gap)]
            })
            .collect();
        let whole = testing::run(&Resp, joined, &steps);
        prop_assert_eq!(&testing::run(&Resp, joined, &testing::cut(&steps, |_| 1)), &whole);
        prop_assert_eq!(&testing::run(&Resp, joined, &testing::cut(&steps, |left| left % seed + 1)), &whole);
    }
}
