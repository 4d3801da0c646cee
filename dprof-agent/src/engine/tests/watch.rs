//! What is no longer watched, and what is watched again: other ports, protocols turned off, lower limits.

use dprof_common::settings::parse_protocols;

use super::stage::{PAIR, Stage, check, config, nonzero, show};
use crate::args::{EngineLimits, Options};
use crate::engine::{Engine, EngineConfig, EngineCounters, Output};
use crate::settings::Settings;
use crate::source::BlockBuilder;
use crate::stream::worth;

/// Counters of what is not watched, and those that a mistake about it would move.
#[track_caller]
fn check_counted(counters: &EngineCounters, expected: &[(&str, u64)]) {
    let names = [
        "calls_without_socket",
        "gaps",
        "boundaries_lost",
        "mistaken",
        "unrecognised",
        "no_reply",
        "timeouts",
        "protocols_off",
        "connections_unwatched",
        "requests_unwatched",
        "responses_without_request",
        "open_requests",
    ];
    let counted: Vec<_> = nonzero(counters).into_iter().filter(|(name, _)| names.contains(name)).collect();
    assert_eq!(counted, expected);
}

/// Two connections to Redis and one to a web server.
const THREE: &str = "
    0 c open active 10.0.0.1:5000 10.0.0.2:6379 th=1/1
    0 d open active 10.0.0.1:5001 10.0.0.2:6380 th=1/2
    0 w open passive 10.0.0.1:80 10.0.0.3:6000 th=1/3
";

#[test]
fn connections_of_other_ports_go_and_those_that_stay_lose_nothing() {
    let run = check(
        &format!(
            "{THREE}
            10 c send Q1:a
            11 d send Q1:b
            12 w recv Q1:x
            20 - ports begin 6379,80
            21 d recv A1:b
            22 d send Q1:c
            23 - ports end 6379,80
            30 c recv A1:a
            31 w send A1:x
            40 w recv Q1:y
            41 w send A1:y"
        ),
        "a ok c=10..30 edge
         b ok c=11..21 edge
         x ok s=11..31 edge fragment
         y ok s=39..41 edge fragment",
    );
    check_counted(&run.counters, &[("connections_unwatched", 1), ("requests_unwatched", 1)]);
    assert_eq!(run.out.payload_limits.last(), Some(&(2, worth::START)));
}

#[test]
fn every_connection_stays_when_all_ports_are_watched_again() {
    let run = check(
        &format!(
            "{THREE}
            10 - ports begin 80
            11 - ports end 80
            12 w recv Q1:x
            20 - ports begin all
            21 - ports end all
            30 w send A1:x"
        ),
        "x ok s=11..30 edge fragment",
    );
    check_counted(&run.counters, &[("connections_unwatched", 2)]);
}

#[test]
fn a_connection_that_is_watched_again_is_taken_up_as_an_older_one_at_its_next_message() {
    // The kernel announces it without a role; the answer to what was asked meanwhile belongs to nobody.
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a
            11 s recv Q1:a
            20 - ports begin 80
            21 - ports end 80
            1000 - ports begin 6379
            1001 e open old 10.0.0.1:5000 10.0.0.2:6379 th=1/1 at=40/40
            1002 e recv A1:q
            1003 - ports end 6379
            40000 e send Q1:b
            40001 e recv A1:b"
        ),
        "b ok c=40000..40001 edge c:incomplete+paired_across_gap+role_guessed",
    );
    let expected =
        [("connections_unwatched", 2), ("requests_unwatched", 2), ("responses_without_request", 1)];
    check_counted(&run.counters, &expected);
}

#[test]
fn silence_before_a_connection_was_watched_says_nothing() {
    // Older than the agent and silent since its start, a connection would be in order at once.
    let silent = |ports: &str| {
        format!(
            "0 - tick
            {ports}
            60000 e open old 10.0.0.1:5000 10.0.0.2:6379 th=1/1 at=40/40
            60001 e send Q1:b
            60002 e recv A1:b"
        )
    };
    check(&silent(""), "b ok c=60001..60002 edge c:role_guessed");
    let begins = "59990 - ports begin 6379\n59991 - ports end 6379";
    check(&silent(begins), "b ok c=60001..60002 edge c:incomplete+paired_across_gap+role_guessed");
}

/// The engine of the real protocols, told things between parts of a script.
struct Told {
    engine: Engine,
    out: Output,
    stage: Stage,
    pushed: usize,
    settings: Settings,
}

impl Told {
    fn new(config: EngineConfig, script: &str) -> Self {
        let settings = Settings::of(&options());
        let engine = Engine::new(config);
        let mut told = Self { engine, out: Output::default(), stage: Stage::of(script), pushed: 0, settings };
        told.push();
        told
    }

    fn push(&mut self) {
        let mut builder = BlockBuilder::default();
        for record in &self.stage.records[self.pushed..] {
            builder.push(&[record]);
        }
        self.pushed = self.stage.records.len();
        self.engine.push(&builder.take(), &mut self.out);
    }

    /// Lines `TIME NAME send|recv TEXT`, with `|` for the end of a line; or any other of a script.
    fn says(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                [us, name, way @ ("send" | "recv"), text] => {
                    let time_ns = us.parse::<u64>().expect("microseconds") * 1000;
                    let bytes = text.replace('|', "\r\n");
                    self.stage.call(time_ns, name, way == "send", bytes.as_bytes(), &[]);
                }
                _ => self.stage.line(line),
            }
        }
        self.push();
    }

    fn choose(&mut self, protocols: &str) {
        self.settings.protocols = parse_protocols(protocols).expect("protocols");
        self.engine.obey(&self.settings, &mut self.out);
    }

    #[track_caller]
    fn ends(mut self, expected: &str) -> (EngineCounters, Output) {
        self.engine.finish(&mut self.out);
        let lines = |text: &str| {
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let text = show(&self.out.spans);
        let counters = self.engine.counters();
        assert_eq!(lines(&text), lines(expected), "\n{text}{:#?}", nonzero(&counters));
        (counters, self.out)
    }
}

fn options() -> Options {
    match crate::args::parse(["dprof-agent"]) {
        Ok(crate::args::Command::Run(options)) => *options,
        other => panic!("{other:?}"),
    }
}

/// A client of Redis and a web server.
const TWO: &str = "
    0 c open active 10.0.0.1:5000 10.0.0.2:6379 th=1/1
    0 w open passive 10.0.0.1:80 10.0.0.3:6000 th=2/2
";

#[test]
fn a_protocol_that_is_off_makes_no_spans_keeps_no_payload_and_is_known_by_its_first_bytes() {
    let mut told = Told::new(config(), TWO);
    told.choose("http");
    told.says(
        "10 c send *2|$3|GET|$1|a|
         11 c recv $1|x|
         12 c send GET / HTTP/1.1||
         20 w recv GET /a HTTP/1.1||
         21 w send HTTP/1.1 200 OK|content-length: 0||
         30 c close",
    );
    let (counters, out) = told.ends("GET /a ok:200 s=19..21 edge fragment");
    check_counted(&counters, &[("protocols_off", 1)]);
    assert_eq!(out.payload_limits.iter().filter(|(sock, _)| *sock == 1).collect::<Vec<_>>(), [&(1, 0)]);
}

#[test]
fn a_protocol_that_is_turned_off_abandons_what_is_open_and_taken_up_again_at_a_message() {
    let mut told = Told::new(config(), TWO);
    told.says(
        "10 c send *2|$3|GET|$1|a|
         11 c recv $1|x|
         20 c send *2|$3|GET|$1|b|
         21 w recv GET /a HTTP/1.1||",
    );
    told.choose("http,tls");
    told.says(
        "30 c recv $1|x|
         31 w send HTTP/1.1 200 OK|content-length: 0||
         40 c send *3|$3|SET|$1|k|$3000|0123456789",
    );
    told.choose("all");
    // The rest of a message that began while it was off, its answer, and then whole ones.
    told.says(&format!("50 c send {}|", "x".repeat(2990)));
    told.says(
        "51 c recv +OK|
         40000 c send *2|$3|TTL|$1|c|
         40001 c recv :1|
         40010 c send *2|$3|TTL|$1|d|
         40011 c recv :1|",
    );
    let (counters, out) = told.ends(
        "GET ok c=10..11 edge
         GET /a ok:200 s=20..31 edge fragment
         TTL ok c=40000..40001 edge
         TTL ok c=40010..40011 edge",
    );
    check_counted(&counters, &[("protocols_off", 1), ("requests_unwatched", 1)]);
    let limits: Vec<u32> =
        out.payload_limits.iter().filter(|(sock, _)| *sock == 1).map(|(_, bytes)| *bytes).collect();
    assert!(limits.windows(2).any(|two| two == [0, worth::START]), "{limits:?}");
}

#[test]
fn a_choice_that_says_nothing_new_changes_nothing() {
    let mut told = Told::new(config(), TWO);
    told.says("10 c send *2|$3|GET|$1|a|");
    told.choose("redis");
    told.says("11 c recv $1|x|");
    told.choose("redis,http");
    told.choose("all");
    let (counters, _) = told.ends("GET ok c=10..11 edge");
    check_counted(&counters, &[]);
}

#[test]
fn lower_limits_hold_for_what_comes_next_and_cost_the_oldest() {
    let mut told = Told::new(config(), PAIR);
    told.says("10 c send PING|PING|PING|\n 11 c send PING|");
    assert_eq!(told.engine.counters().open_requests, 4);
    told.settings.limits = EngineLimits { open_requests_max: 2, connections_max: 1, ..EngineLimits::DEFAULT };
    told.engine.obey(&told.settings, &mut told.out);
    assert_eq!(told.engine.counters().open_requests, 4);
    told.says("12 c send PING|");
    let counters = told.engine.counters();
    assert_eq!((counters.open_requests, counters.requests_beyond_limit), (2, 3));
    told.says("20 e open active 10.0.0.1:5009 10.0.0.2:6379 th=1/1");
    let counters = told.engine.counters();
    assert_eq!((counters.connections, counters.connections_forgotten), (1, 2));
}

#[test]
fn held_spans_beyond_a_lower_limit_leave_early_and_a_longer_hold_is_for_what_comes_next() {
    let mut told = Told::new(config(), PAIR);
    for at in [10, 20, 30] {
        told.says(&format!("{at} s recv PING|\n {} s send +PONG|", at + 1));
    }
    assert_eq!((told.engine.counters().held, told.engine.counters().spans), (3, 0));
    told.settings.limits = EngineLimits { held_max: 1, hold_ns: 10_000_000_000, ..EngineLimits::DEFAULT };
    told.engine.obey(&told.settings, &mut told.out);
    told.says("40 s recv PING|\n 41 s send +PONG|");
    let counters = told.engine.counters();
    assert_eq!((counters.held, counters.spans_released_early, counters.spans), (1, 3, 3));
}
