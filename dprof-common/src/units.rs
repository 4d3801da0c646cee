//! Durations, sizes and counts as people write and read them: text to plain numbers and back.
//!
//! What a reader would get wrong: nothing is rounded on the way in. A number is taken apart as digits, so that
//! `0.3s` is 300,000,000 ns exactly.

use std::fmt;

/// Nanoseconds of a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Unit names with their length in nanoseconds.
const UNITS: [(&str, u64); 10] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", NS_PER_S),
    ("m", 60 * NS_PER_S),
    ("h", 3_600 * NS_PER_S),
    ("d", 86_400 * NS_PER_S),
    ("w", 7 * 86_400 * NS_PER_S),
];

/// Why a text is not a quantity; the message says what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError(pub String);

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

/// A duration as `250us`, `1.5ms`, `10m`, `1h30m`, nanoseconds. A number needs a unit; only `0` does not.
pub fn parse_duration(text: &str) -> Result<u64, UnitError> {
    unsigned_duration(text.trim(), text)
}

/// `trimmed` as a duration; an error names `text`, which was written.
fn unsigned_duration(trimmed: &str, text: &str) -> Result<u64, UnitError> {
    if trimmed == "0" {
        return Ok(0);
    }
    let not_one = |why: &str| {
        UnitError(format!("'{text}' is not a duration ({why}): use 250us, 1.5ms, 10s, 10m, 1h30m or 2d"))
    };
    let mut rest = trimmed;
    let mut total_ns = 0_u64;
    if rest.is_empty() {
        return Err(not_one("empty"));
    }
    if rest.starts_with('-') {
        return Err(not_one("it is negative"));
    }
    while !rest.is_empty() {
        let digits =
            rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| not_one("no unit"))?;
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let unit_len = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let (_, unit_ns) = UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| not_one("units are ns, us, ms, s, m, h, d, w"))?;
        let ns = scaled(number, unit_ns).ok_or_else(|| not_one("not a number, or too large"))?;
        total_ns = total_ns.checked_add(ns).ok_or_else(|| not_one("too large"))?;
        rest = after.trim_start();
    }
    Ok(total_ns)
}

/// The same with a sign: `-300s`, `+2ms`.
pub fn parse_signed_duration(text: &str) -> Result<i64, UnitError> {
    let trimmed = text.trim();
    let (negative, rest) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let too_long = || UnitError(format!("'{text}' is longer than 292 years"));
    let ns = i64::try_from(unsigned_duration(rest, text)?).map_err(|_| too_long())?;
    Ok(if negative { -ns } else { ns })
}

/// `number` (digits with at most one point) times `unit_ns`, without floating point; fractions of a nanosecond
/// are cut.
pub fn scaled(number: &str, unit_ns: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More than 18 digits are below a nanosecond of the largest unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = if fraction.is_empty() {
        0
    } else {
        let digits: u128 = fraction.parse().ok()?;
        (digits * u128::from(unit_ns) / 10_u128.pow(fraction.len() as u32)) as u64
    };
    whole.checked_mul(unit_ns)?.checked_add(part)
}

/// Parses a size such as `65536`, `4MiB`, `256K`, `1GB`. `K`, `M`, `G` and `KiB`… are powers of 1024, `kB`, `KB`,
/// `MB`, `GB` powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let bad = || {
        UnitError(format!(
            "'{text}' is not a size: write a number and nothing, KiB, MiB or GiB, such as 4MiB"
        ))
    };
    let (number, unit) = split_number(text);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let scale: u64 = match unit {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    let bytes = number * scale as f64;
    if number.is_sign_negative() || !bytes.is_finite() || bytes >= u64::MAX as f64 || bytes.fract() != 0.0 {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// A part of the whole as `1/16`, `5%` or `0.05`, from `min` to 1.
pub fn parse_part(text: &str, min: f64) -> Result<f64, UnitError> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let part = match text.split_once('/') {
        Some((part, whole)) => number(part).zip(number(whole)).map(|(part, whole)| part / whole),
        None => match text.trim().strip_suffix('%') {
            Some(percent) => number(percent).map(|percent| percent / 100.0),
            None => number(text),
        },
    };
    part.filter(|part| (min..=1.0).contains(part)).ok_or_else(|| {
        UnitError(format!("'{text}' is no part of the whole: give 1/16, 5% or 0.05, from {min} to 1"))
    })
}

/// A duration for people, three digits: `950 ns`, `1.23 ms`, `59.9 s`, `1m 05s`, `2h 03m`, `3d 04h`.
pub fn duration(ns: u64) -> String {
    if ns < 1_000 {
        return format!("{ns} ns");
    }
    for (unit, unit_ns, end) in [("us", 1_000, 1_000.0), ("ms", 1_000_000, 1_000.0), ("s", NS_PER_S, 60.0)] {
        let value = ns as f64 / unit_ns as f64;
        let text = if value < 9.995 {
            format!("{value:.2}")
        } else if value < 99.95 {
            format!("{value:.1}")
        } else {
            format!("{value:.0}")
        };
        // Rounding may reach the next unit: 999.96 us is 1.00 ms.
        if text.parse::<f64>().is_ok_and(|rounded| rounded < end) {
            return format!("{text} {unit}");
        }
    }
    let s = (ns + NS_PER_S / 2) / NS_PER_S;
    if s < 3_600 {
        format!("{}m {:02}s", s / 60, s % 60)
    } else if s < 86_400 {
        format!("{}h {:02}m", s / 3_600, s % 3_600 / 60)
    } else {
        format!("{}d {:02}h", s / 86_400, s % 86_400 / 3_600)
    }
}

/// A signed duration: parts of a split may be negative, which is shown.
pub fn signed_duration(ns: i64) -> String {
    let text = duration(ns.unsigned_abs());
    if ns < 0 { format!("-{text}") } else { text }
}

/// Bytes for people: `77 B`, `1.50 kB`, `64.0 MB`; powers of 1000.
pub fn bytes(n: u64) -> String {
    if n < 1_000 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        if value < 999.5 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// A count with thousands apart: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `part` of `whole` in percent: `98%`, `<1%`, `0%`.
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0%".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    if percent < 1.0 { "<1%".to_owned() } else { format!("{percent:.0}%") }
}

fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .char_indices()
        .find(|(_, c)| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .map_or(text.len(), |(idx, _)| idx);
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse() {
        for (text, ns) in [
            ("0", 0),
            ("1ns", 1),
            ("250us", 250_000),
            ("250µs", 250_000),
            ("1.5ms", 1_500_000),
            (".5s", 500_000_000),
            ("10m", 600_000_000_000),
            ("1h30m", 5_400_000_000_000),
            (" 1h 30m ", 5_400_000_000_000),
            ("1.23 ms", 1_230_000),
            ("2d", 172_800_000_000_000),
            ("0.0000000000000000001w", 0),
            ("18446744073709551615ns", u64::MAX),
            ("30500w", 30_500 * 7 * 86_400 * NS_PER_S),
        ] {
            assert_eq!(parse_duration(text), Ok(ns), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_durations_are_refused_with_an_example() {
        for text in [
            "",
            " ",
            "5",
            "ms",
            "5 parsecs",
            "-5ms",
            "1..5s",
            ".s",
            "5ms3",
            "18446744073709551616ns",
            "30501w",
        ] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' is not a duration")), "{error}");
            assert!(error.contains("250us"), "{error}");
        }
    }

    #[test]
    fn durations_print_with_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (1_234, "1.23 us"),
            (9_994, "9.99 us"),
            (9_995, "10.0 us"),
            (12_345, "12.3 us"),
            (123_456, "123 us"),
            (999_499, "999 us"),
            (999_500, "1.00 ms"),
            (104_200_000, "104 ms"),
            (59_940_000_000, "59.9 s"),
            (59_960_000_000, "1m 00s"),
            (65_000_000_000, "1m 05s"),
            (7_380_000_000_000, "2h 03m"),
            (273_600_000_000_000, "3d 04h"),
        ] {
            assert_eq!(duration(ns), text, "{ns}");
        }
        assert_eq!(signed_duration(-12_345), "-12.3 us");
    }

    #[test]
    fn what_is_printed_parses_again() {
        for ns in [950, 1_230, 104_000_000, 59_900_000_000, 65 * NS_PER_S] {
            assert_eq!(parse_duration(&duration(ns)), Ok(ns));
        }
    }

    #[test]
    fn sizes_counts_and_shares_print() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_500, "1.50 kB"),
            (64_000_000, "64.0 MB"),
            (999_999, "1.00 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        assert_eq!(
            [percent(0, 9), percent(1, 1_000), percent(49, 50), percent(1, 0)],
            ["0%", "<1%", "98%", "0%"]
        );
    }

    #[test]
    fn a_signed_duration_keeps_its_sign() {
        for (text, ns) in [("-300s", -300_000_000_000), ("+2ns", 2), ("-1h30m", -5_400_000_000_000), ("0", 0)]
        {
            assert_eq!(parse_signed_duration(text), Ok(ns), "{text}");
        }
        for text in ["", "-", "--5s", "-5", "s", "1.2.3s", "1e300s", "nan", "infs", "99999999999h", "300y"] {
            let error = parse_signed_duration(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' is")), "{error}");
        }
    }

    #[test]
    fn sizes_are_whole_bytes() {
        for (text, expected) in [
            ("4MiB", Some(4 << 20)),
            ("4M", Some(4 << 20)),
            ("65536", Some(65536)),
            ("1.5K", Some(1536)),
            ("10 GB", Some(10_000_000_000)),
            ("0", Some(0)),
            ("-1", None),
            ("-0.0", None),
            ("", None),
            ("1.0001K", None),
            ("4 mib", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        }
    }
}
