//! Times as people write and read them: text to nanoseconds since the epoch and back; and the quantities of
//! [`dprof_common::units`] under the same roof.
//!
//! What a reader would get wrong: a time without a zone is UTC, as everything printed is.

use dprof_common::units::scaled;
pub use dprof_common::units::{
    NS_PER_S, UnitError, bytes, count, duration, parse_duration, percent, signed_duration,
};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// A point in time as given on the command line, not yet resolved against a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long before now, nanoseconds.
    Ago(u64),
    /// Nanoseconds since the epoch.
    At(u64),
    /// No bound.
    Unbounded,
}

/// A time as `10m`, `10m ago`, `now`, `now-10m`, `all`, RFC 3339, `2026-11-03 14:05`, `2026-11-03` or
/// `@1700000000`.
pub fn parse_when(text: &str) -> Result<When, UnitError> {
    let trimmed = text.trim();
    match trimmed {
        "now" => return Ok(When::Ago(0)),
        "all" => return Ok(When::Unbounded),
        _ => {}
    }
    let ago = trimmed.strip_prefix("now-").or(trimmed.strip_suffix("ago")).unwrap_or(trimmed);
    if let Ok(ns) = parse_duration(ago)
        && ago.trim() != "0"
    {
        return Ok(When::Ago(ns));
    }
    let at = if let Some(seconds) = trimmed.strip_prefix('@') {
        scaled(seconds, NS_PER_S)
    } else {
        calendar(trimmed).and_then(|t| u64::try_from(t.as_nanosecond()).ok())
    };
    at.map(When::At).ok_or_else(|| {
        UnitError(format!(
            "'{text}' is not a time: use 10m, now, all, 2026-11-03, 2026-11-03T14:05:00Z or @1700000000"
        ))
    })
}

fn calendar(text: &str) -> Option<Timestamp> {
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some(timestamp);
    }
    let civil = match text.parse::<DateTime>() {
        Ok(date_time) => date_time,
        Err(_) => text.parse::<Date>().ok()?.to_datetime(jiff::civil::Time::midnight()),
    };
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// RFC 3339 with nanoseconds, UTC: `2026-11-03T14:05:00.000000001Z`.
pub fn rfc3339(unix_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(unix_ns))
        .map_or_else(|_| format!("@{unix_ns}"), |timestamp| format!("{timestamp:.9}"))
}

/// Date and time of day to the millisecond, UTC, for tables: `2026-11-03 14:05:00.001`.
pub fn date_time(unix_ns: u64) -> String {
    let text = rfc3339(unix_ns);
    match (text.get(..10), text.get(11..23)) {
        (Some(date), Some(time)) => format!("{date} {time}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse() {
        let noon = 1_793_707_200 * NS_PER_S;
        for (text, when) in [
            ("now", When::Ago(0)),
            ("all", When::Unbounded),
            ("10m", When::Ago(600 * NS_PER_S)),
            ("10m ago", When::Ago(600 * NS_PER_S)),
            ("now-10m", When::Ago(600 * NS_PER_S)),
            ("2026-11-03T12:00:00Z", When::At(noon)),
            ("2026-11-03T14:00:00+02:00", When::At(noon)),
            ("2026-11-03T12:00:00.000000001Z", When::At(noon + 1)),
            ("2026-11-03 12:00", When::At(noon)),
            ("2026-11-03T12:00:00", When::At(noon)),
            ("2026-11-03", When::At(noon - 12 * 3_600 * NS_PER_S)),
            ("@1793707200", When::At(noon)),
            ("@1793707200.000000001", When::At(noon + 1)),
        ] {
            assert_eq!(parse_when(text), Ok(when), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_times_are_refused_with_examples() {
        for text in
            ["", "yesterday", "10", "0", "2026-13-01", "1969-12-31T23:59:59Z", "@", "@-1", "12:00", "ago"]
        {
            let error = parse_when(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' is not a time: use 10m")), "{error}");
        }
    }

    #[test]
    fn times_print() {
        assert_eq!(rfc3339(1_793_707_200_000_000_001), "2026-11-03T12:00:00.000000001Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(u64::MAX), "2554-07-21T23:34:33.709551615Z");
        assert_eq!(date_time(1_793_707_200_123_456_789), "2026-11-03 12:00:00.123");
    }
}
