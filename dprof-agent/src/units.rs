//! Durations and sizes as people write them (`1.5s`, `200ms`, `4MiB`) into plain numbers, and back for messages.

/// Parses a duration such as `30s`, `200ms`, `1.5h`, `0`; a number without a unit is an error unless it is 0.
pub fn parse_duration_ns(text: &str) -> Result<u64, String> {
    let ns = parse_signed_duration_ns(text)?;
    u64::try_from(ns).map_err(|_| format!("'{text}' is negative"))
}

/// Parses a duration that may carry a sign (`-300s`, `+2ms`).
pub fn parse_signed_duration_ns(text: &str) -> Result<i64, String> {
    let bad =
        || format!("'{text}' is not a duration: write a number and ns, us, ms, s, m, h or d, such as 30s");
    let (number, unit) = split_number(text);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let scale = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        "d" => 86_400e9,
        "" if number == 0.0 => 1.0,
        _ => return Err(bad()),
    };
    let ns = (number * scale).round();
    if !ns.is_finite() || ns.abs() >= i64::MAX as f64 {
        return Err(format!("'{text}' is longer than 292 years"));
    }
    Ok(ns as i64)
}

/// Parses a size such as `65536`, `4MiB`, `256K`, `1GB`. `K`, `M`, `G` and `KiB`… are powers of 1024, `kB`, `KB`,
/// `MB`, `GB` powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size: write a number and nothing, KiB, MiB or GiB, such as 4MiB");
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

/// A duration with three significant digits: `1.23ms`.
pub fn format_ns(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}{unit}")
}

/// A size with up to three significant digits: `4 MiB`, `98.1 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(value < 100.0 && value.fract() != 0.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A count with separators: `1,234,567`.
pub fn format_count(n: u64) -> String {
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

    #[track_caller]
    fn check_duration(text: &str, expected: Option<i64>) {
        assert_eq!(parse_signed_duration_ns(text).ok(), expected, "{text}");
    }

    #[test]
    fn durations_need_a_unit() {
        check_duration("30s", Some(30_000_000_000));
        check_duration("1.5s", Some(1_500_000_000));
        check_duration("200 ms", Some(200_000_000));
        check_duration("7us", Some(7_000));
        check_duration("7µs", Some(7_000));
        check_duration("2m", Some(120_000_000_000));
        check_duration("7d", Some(604_800_000_000_000));
        check_duration("-300s", Some(-300_000_000_000));
        check_duration("+2ns", Some(2));
        check_duration("0", Some(0));
        for bad in ["", "s", "5", "1.2.3s", "5 parsecs", "1e300s", "nan", "infs", "99999999999h"] {
            check_duration(bad, None);
        }
        assert_eq!(parse_duration_ns("-1s"), Err("'-1s' is negative".to_owned()));
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

    #[test]
    fn numbers_print_short() {
        let texts = [0, 999, 1_500, 12_345, 123_456, 1_230_000, 1_500_000_000].map(format_ns);
        assert_eq!(texts, ["0ns", "999ns", "1.50us", "12.3us", "123us", "1.23ms", "1.50s"]);
        let texts = [0, 1023, 4 << 20, 1_600, 5 << 40].map(format_bytes);
        assert_eq!(texts, ["0 B", "1023 B", "4 MiB", "1.6 KiB", "5.0 TiB"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(format_count), ["0", "999", "1,000", "1,234,567"]);
    }
}
