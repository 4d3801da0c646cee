//! How protocol tests are written: bytes of both directions as lines of text in, what the parser says as lines of
//! text out. Every input is run whole, byte by byte and cut at random, with the same result.
//!
//! Input lines: `> *2 $3 GET $1 a` are words, each with a line end, in the request direction (`<`: the other);
//! `>| GET / HTTP/1.1|Host: a||` is text with `|` for a line end; `>\" a\\r\\n\\x00` is text with escapes, and
//! `\\{x*9}` repeats; `>~ 5` is a hole of 5 bytes; `>.` is the end.

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

pub(super) use super::feeding::{Step, cut, run_on};
use super::{Correlation, Direction, MessageKind, Parsed, Protocol};

pub(super) fn steps(input: &str) -> Vec<Step> {
    input.lines().map(str::trim_start).filter(|line| !line.is_empty()).map(step).collect()
}

fn step(line: &str) -> Step {
    let direction = match &line[..1] {
        ">" => Direction::Out,
        "<" => Direction::In,
        other => panic!("no direction: {other:?}"),
    };
    let (mode, rest) = line[1..].split_once(' ').unwrap_or((&line[1..], ""));
    match mode {
        "" => Step::Bytes(
            direction,
            rest.split_whitespace().flat_map(|word| unescape(&format!("{word}\\r\\n"))).collect(),
        ),
        "|" => Step::Bytes(direction, unescape(&rest.replace('|', "\\r\\n"))),
        "\"" => Step::Bytes(direction, unescape(rest)),
        "~" => Step::Gap(direction, rest.parse().expect("a length")),
        "." => Step::End(direction),
        other => panic!("no mode: {other:?}"),
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        if char != '\\' {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let code = rest.chars().next().expect("an escape");
        rest = &rest[1..];
        match code {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            's' => bytes.push(b' '),
            'x' => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hex digits"));
                rest = &rest[2..];
            }
            '{' => {
                let (inside, after) = rest.split_once('}').expect("a closing brace");
                let (what, times) = inside.rsplit_once('*').expect("a count");
                bytes.extend(unescape(what).repeat(times.parse().expect("a count")));
                rest = after;
            }
            other => bytes.push(other as u8),
        }
    }
    bytes
}

/// Runs steps on a new parser that starts at 0 in both directions.
pub(super) fn run(protocol: &dyn Protocol, joined: bool, steps: &[Step]) -> Vec<Parsed> {
    let mut parser = protocol.parser(Direction::Out, [0, 0], joined);
    run_on(&mut *parser, steps)
}

/// What a parser said, a line each.
pub(super) fn show(out: &[Parsed]) -> String {
    out.iter().map(|parsed| show_one(parsed) + "\n").collect()
}

fn show_one(parsed: &Parsed) -> String {
    let arrow = |direction| if direction == Direction::Out { '>' } else { '<' };
    let message = match parsed {
        Parsed::Message(message) => message,
        Parsed::Lost { direction, at } => return format!("{} lost {at}", arrow(*direction)),
        Parsed::Switch { at } => return format!("switch {} {}", at[0], at[1]),
        Parsed::Opaque { at } => return format!("opaque {} {}", at[0], at[1]),
        Parsed::Encrypted { at, request_direction, attributes } => {
            let attributes: String =
                attributes.iter().map(|(name, value)| format!(" {name}={value}")).collect();
            return format!("encrypted {} {} {}{attributes}", at[0], at[1], arrow(*request_direction));
        }
        Parsed::Origin { client, server } => return format!("origin {client} {server}"),
        Parsed::Mistaken => return "mistaken".to_owned(),
    };
    let kind = match message.kind {
        MessageKind::Request => "req",
        MessageKind::OneWay => "one",
        MessageKind::Response => "res",
        MessageKind::Push => "push",
        MessageKind::Silence => "silence",
    };
    let mut line = format!("{} {}..{} {kind}", arrow(message.direction), message.start, message.end);
    for part in [&*message.operation, &message.text, &message.status_code] {
        if !part.is_empty() {
            line.extend([" [", part, "]"]);
        }
    }
    for (name, value) in &message.attributes {
        line.extend([" ", name, "=", value]);
    }
    if let Correlation::Id(id) = message.correlation {
        line = format!("{line} #{id}");
    }
    if let Some((trace, span)) = message.explicit_id {
        line = format!("{line} id={trace:x}/{span:x}");
    }
    if message.is_error {
        line += " error";
    }
    if message.incomplete {
        line += " incomplete";
    }
    line
}

/// Checks what a parser says of an input, however it is cut.
#[track_caller]
pub(super) fn check(protocol: &dyn Protocol, joined: bool, input: &str, expected: &str) {
    let steps = steps(input);
    let whole = run(protocol, joined, &steps);
    let expected: String = expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| line.to_owned() + "\n")
        .collect();
    let shown = show(&whole);
    assert!(shown == expected, "of\n{input}\nexpected\n{expected}\nfound\n{shown}");
    assert_eq!(run(protocol, joined, &cut(&steps, |_| 1)), whole, "byte by byte\n{input}");
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for round in 0..20 {
        let parts = cut(&steps, |left| 1 + rng.next_u32() as usize % left.min(40));
        assert_eq!(run(protocol, joined, &parts), whole, "random cut {round}: {parts:?}");
    }
}

/// Puts holes of many lengths at every position of an input: what is then said to be whole must be true.
/// Returns how many messages were still found, over all holes.
#[track_caller]
pub(super) fn check_holes(protocol: &dyn Protocol, input: &str) -> usize {
    let steps = steps(input);
    let truth = run(protocol, false, &steps);
    let is_true = |parsed: &Parsed| {
        let Parsed::Message(message) = parsed else { return true };
        truth.iter().any(|known| {
            matches!(known, Parsed::Message(known) if {
                let same_range = (known.direction, known.start, known.end)
                    == (message.direction, message.start, message.end);
                let text_fits = known.text == message.text || message.text.contains('…');
                let hash_fits = message.content_hash.is_none() || known.content_hash == message.content_hash;
                same_range && (message.incomplete || (known.kind, &known.operation, known.is_error)
                    == (message.kind, &message.operation, message.is_error) && text_fits && hash_fits)
            })
        })
    };
    let mut found = 0;
    for (idx, step) in steps.iter().enumerate() {
        let Step::Bytes(direction, bytes) = step else { continue };
        for from in 0..bytes.len() {
            for len in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, usize::MAX] {
                let to = from.saturating_add(len).min(bytes.len());
                let holed = [
                    Step::Bytes(*direction, bytes[..from].to_vec()),
                    Step::Gap(*direction, (to - from) as u64),
                    Step::Bytes(*direction, bytes[to..].to_vec()),
                ];
                let all: Vec<Step> =
                    steps[..idx].iter().chain(&holed).chain(&steps[idx + 1..]).cloned().collect();
                let out = run(protocol, false, &all);
                for parsed in &out {
                    assert!(
                        is_true(parsed),
                        "step {idx}, hole {from}..{to}: {}\nof\n{input}\n{}",
                        show_one(parsed),
                        show(&out)
                    );
                    found += usize::from(matches!(parsed, Parsed::Message(_)));
                }
                assert_eq!(
                    run(protocol, false, &cut(&all, |_| 1)),
                    out,
                    "step {idx}, hole {from}..{to}, byte by byte"
                );
                if to == bytes.len() {
                    break;
                }
            }
        }
    }
    found
}
