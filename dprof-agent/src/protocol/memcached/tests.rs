//! memcached as text: inputs in the notation of `testing`, and what the parser says of them.

use proptest::prelude::*;

use super::Memcached;
use crate::protocol::testing::{self, Step};
use crate::protocol::{Direction, Parsed};

#[track_caller]
fn check(input: &str, expected: &str) {
    testing::check(&Memcached, false, input, expected);
}

#[test]
fn commands_and_replies() {
    check(">| get a|\n<| VALUE a 0 1|x|END|", "> 0..7 req [get] [get a]\n< 0..21 res dprof.cache.hit=true");
    check(">| get a|\n<| END|", "> 0..7 req [get] [get a]\n< 0..5 res dprof.cache.hit=false");
    check(">| set a 0 0 5|hello|\n<| STORED|", "> 0..20 req [set] [set a ? ? ?]\n< 0..8 res");
    check(">| cas a 0 0 1 7|x|\n<| EXISTS|", "> 0..18 req [cas] [cas a ? ? ? ?]\n< 0..8 res [EXISTS]");
    check(
        ">| gats 10 a b c|\n<| VALUE a 0 1 7|x|VALUE c 0 1 8|y|END|",
        "> 0..15 req [gats] [gats ? a b c]\n< 0..41 res dprof.cache.hit=true dprof.cache.values=2",
    );
    check(">| incr n 5|\n<| 42|", "> 0..10 req [incr] [incr n ?]\n< 0..4 res dprof.cache.hit=true");
    check(
        ">| delete a|\n<| NOT_FOUND|",
        "> 0..10 req [delete] [delete a]\n< 0..11 res [NOT_FOUND] dprof.cache.hit=false",
    );
    check(">| version|\n<| VERSION 1.6.18|", "> 0..9 req [version] [version]\n< 0..16 res");
    check(
        ">| stats|get a|\n<| STAT pid 1|STAT uptime 2|END|END|",
        "> 0..7 req [stats] [stats]\n> 7..14 req [get] [get a]
         < 0..32 res\n< 32..37 res dprof.cache.hit=false",
    );
    check(">| flush_all 10|\n<| OK|", "> 0..14 req [flush_all] [flush_all ?]\n< 0..4 res");
    check(
        ">| get a|\n<| SERVER_ERROR out of memory|",
        "> 0..7 req [get] [get a]\n< 0..28 res [SERVER_ERROR] error",
    );
}

#[test]
fn a_value_may_hold_what_reads_like_commands() {
    check(">| set a 0 0 19|get b|get c||get|\n<| STORED|", "> 0..35 req [set] [set a ? ? ?]\n< 0..8 res");
    check(
        ">| get a|\n<| VALUE a 0 13|END|STORED||END|",
        "> 0..7 req [get] [get a]\n< 0..34 res dprof.cache.hit=true",
    );
}

#[test]
fn commands_without_answer() {
    check(
        ">| set a 0 0 1 noreply|x|delete a noreply|get a|\n<| END|",
        "> 0..24 one [set] [set a ? ? ?]\n> 24..42 one [delete] [delete a]\n> 42..49 req [get] [get a]
         < 0..5 res dprof.cache.hit=false",
    );
    // An error that may be a noreply's: the pairs after it are in doubt.
    check(
        ">| set a 0 0 1 noreply|x|get a|\n<| SERVER_ERROR object too large for cache|",
        "> 0..24 one [set] [set a ? ? ?]\n> 24..31 req [get] [get a]
         < lost 0\n< 0..41 res [TOO_LARGE] error",
    );
    check(">| quit|", "> 0..6 one [quit] [quit]");
    // Nor is it a quiet command's of long ago.
    check(
        ">| mg a v q O1|mn|\n<| MN|\n>| set a 0 0 1 noreply|x|get a|\n<| SERVER_ERROR object too large for cache|",
        "> 0..13 req [mg] [mg a ? ? ?] #0\n> 13..17 req [mn] [mn]
         < 0..4 silence dprof.cache.hit=false #0\n< 0..4 res
         > 17..41 one [set] [set a ? ? ?]\n> 41..48 req [get] [get a]
         < lost 4\n< 4..45 res [TOO_LARGE] error",
    );
}

#[test]
fn a_value_that_is_refused_before_it_came_keeps_its_place() {
    check(
        ">| set a 0 0 100|12345\n<| SERVER_ERROR object too large for cache|\n>\" \\{x*95}\\r\\n\n>| get a|\n<| END|",
        "> 0..117 req [set] [set a ? ? ?]
         < 0..41 res [TOO_LARGE] error
         > 117..124 req [get] [get a]
         < 41..46 res dprof.cache.hit=false",
    );
}

#[test]
fn meta_commands_are_quiet_until_mn() {
    check(
        ">| mg a v q O1|mg b v q O2|mg c v q O3|mn|\n<| VA 1 O2|x|MN|",
        "> 0..13 req [mg] [mg a ? ? ?] #0\n> 13..26 req [mg] [mg b ? ? ?] #1
         > 26..39 req [mg] [mg c ? ? ?] #2\n> 39..43 req [mn] [mn]
         < 0..12 silence dprof.cache.hit=false #0\n< 0..12 res dprof.cache.hit=true #1
         < 12..16 silence dprof.cache.hit=false #2\n< 12..16 res",
    );
    check(
        ">| ms a 1 q k|x|ms b 1 q k|y|mn|\n<| NS kb|MN|",
        "> 0..15 req [ms] [ms a ? ? ?] #0\n> 15..30 req [ms] [ms b ? ? ?] #1\n> 30..34 req [mn] [mn]
         < 0..7 silence #0\n< 0..7 res [NOT_STORED] #1\n< 7..11 res",
    );
    check(">| mg a t|\n<| HD t-1|", "> 0..8 req [mg] [mg a ?]\n< 0..8 res");
    check(">| mg a v|\n<| EN|", "> 0..8 req [mg] [mg a ?]\n< 0..4 res dprof.cache.hit=false");
    check(">| md a|\n<| NF|", "> 0..6 req [md] [md a]\n< 0..4 res [NOT_FOUND] dprof.cache.hit=false");
    // Two that cannot be told apart: neither is given the answer.
    check(
        ">| mg a v q|mg b v q|mn|\n<| VA 1|x|MN|",
        "> 0..10 req [mg] [mg a ? ?] #0\n> 10..20 req [mg] [mg b ? ?] #1\n> 20..24 req [mn] [mn]
         < 0..9 push dprof.cache.hit=true
         < 9..13 silence #0 incomplete\n< 9..13 silence #1 incomplete\n< 9..13 res",
    );
}

#[test]
fn the_log_of_watch_has_no_messages() {
    check(
        ">| watch fetchers|\n<| OK|ts=1 gid=1 type=item_get|",
        "> 0..16 req [watch] [watch ?]\n< 0..4 res\nopaque 16 4",
    );
}

/// A packet in the notation of tests.
fn packet(magic: u8, opcode: u8, extras: &[u8], key: &str, value: &str, status: u16, opaque: u32) -> String {
    let mut bytes = vec![magic, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0]);
    bytes.extend(status.to_be_bytes());
    bytes.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend(extras);
    bytes.extend(key.bytes());
    bytes.extend(value.bytes());
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[test]
fn binary_packets() {
    let request =
        |opcode, extras: &[u8], key, value, opaque| packet(0x80, opcode, extras, key, value, 0, opaque);
    let response = |opcode, extras: &[u8], value, status, opaque| {
        packet(0x81, opcode, extras, "", value, status, opaque)
    };
    check(
        &format!(
            ">\" {}{}\n<\" {}{}",
            request(1, &[0; 8], "a", "hello", 0),
            request(0, &[], "a", "", 0),
            response(1, &[], "", 0, 0),
            response(0, &[0; 4], "hello", 0, 0),
        ),
        "> 0..38 req [set] [set a ?]\n> 38..63 req [get] [get a]
         < 0..24 res\n< 24..57 res dprof.cache.hit=true",
    );
    // GetKQ, GetKQ, NoOp: the first misses.
    check(
        &format!(
            ">\" {}{}{}\n<\" {}{}",
            request(0x0d, &[], "a", "", 1),
            request(0x0d, &[], "b", "", 2),
            request(0x0a, &[], "", "", 3),
            packet(0x81, 0x0d, &[0; 4], "b", "x", 0, 2),
            response(0x0a, &[], "", 0, 3),
        ),
        "> 0..25 req [get] [get a] #0\n> 25..50 req [get] [get b] #1\n> 50..74 req [noop] [noop]
         < 0..30 silence dprof.cache.hit=false #0\n< 0..30 res dprof.cache.hit=true #1\n< 30..54 res",
    );
    // Statistics come in packets, the last one empty.
    check(
        &format!(
            ">\" {}\n<\" {}{}",
            request(0x10, &[], "", "", 9),
            packet(0x81, 0x10, &[], "pid", "1", 0, 9),
            response(0x10, &[], "", 0, 9),
        ),
        "> 0..24 req [stats] [stats]\n< 0..52 res",
    );
    // What logs in is never kept.
    check(
        &format!(
            ">\" {}\n<\" {}",
            request(0x21, &[], "PLAIN", "secret", 0),
            response(0x21, &[], "no", 0x20, 0)
        ),
        "> 0..35 req [sasl_auth] [sasl_auth ?]\n< 0..26 res [AUTH_ERROR] error",
    );
    check(&format!(">\" {}", request(0x11, &[0; 8], "a", "x", 0)), "> 0..34 req [set] [set a ?] #0");
    check(">\" \\x80\\xff\\x00\\x00", "mistaken");
}

#[test]
fn holes_never_make_a_message() {
    let found = testing::check_holes(
        &Memcached,
        ">| get a|
         <| VALUE a 0 4|wxyz|END|
         >| set a 0 0 5|hello|
         <| STORED|
         >| get a b|delete a|
         <| END|NOT_FOUND|
         >| incr a 1|
         <| 7|",
    );
    assert!(found > 1000, "{found}");
    let binary = |magic, opcode, key, value| packet(magic, opcode, &[], key, value, 0, 5);
    let found = testing::check_holes(
        &Memcached,
        &format!(
            ">\" {}\n<\" {}\n>\" {}\n<\" {}",
            binary(0x80, 0, "a", ""),
            binary(0x81, 0, "", "xyz"),
            binary(0x80, 4, "bc", ""),
            binary(0x81, 4, "", "")
        ),
    );
    assert!(found > 200, "{found}");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        parts in prop::collection::vec((any::<bool>(), prop::sample::select(vec![
            "get a\r\n", "mg a v q\r\n", "mn\r\n", "MN\r\n", "VA 1\r\n", "x\r\n", "set a 0 0 3\r\n", "abc\r\n", "END\r\n", "VALUE a 0 1\r\n",
            "STORED\r\n", "HD\r\n", "EN\r\n", "ERROR\r\n", "watch\r\n", "OK\r\n", "\u{0}", "stats\r\n", "STAT a 1\r\n", "set a 0 0 1 noreply\r\n",
        ]), 0u64..4), 0..30),
        joined: bool,
        part in 1usize..9,
    ) {
        let mut steps: Vec<Step> = Vec::new();
        for (out, word, gap) in parts {
            let direction = if out { Direction::Out } else { Direction::In };
            if gap == 3 {
                steps.push(Step::Gap(direction, 5));
            }
            // Words of one direction that follow each other are one call.
            match steps.last_mut() {
                Some(Step::Bytes(last, bytes)) if *last == direction => bytes.extend_from_slice(word.as_bytes()),
                _ => steps.push(Step::Bytes(direction, word.as_bytes().to_vec())),
            }
        }
        let whole = testing::run(&Memcached, joined, &steps);
        prop_assert_eq!(testing::run(&Memcached, joined, &testing::cut(&steps, |_| part)), whole);
    }

    #[test]
    fn any_binary_bytes_are_survived(bytes in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)), 0..20), joined: bool) {
        let steps: Vec<Step> = bytes.into_iter().map(|(out, mut bytes)| {
            if let Some(first) = bytes.first_mut() {
                *first = if out { 0x80 } else { 0x81 };
            }
            Step::Bytes(if out { Direction::Out } else { Direction::In }, bytes)
        }).collect();
        let out = testing::run(&Memcached, joined, &steps);
        prop_assert!(out.iter().filter(|parsed| matches!(parsed, Parsed::Mistaken)).count() <= 1);
    }
}
