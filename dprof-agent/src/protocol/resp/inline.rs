//! Inline commands: a line typed by a person or a health check, split into arguments as Redis does.

use std::borrow::Cow;

/// The arguments of a line; none if it is blank or its quotes do not match (Redis then closes the connection).
pub(super) fn split(line: &[u8]) -> Vec<Cow<'_, [u8]>> {
    let mut arguments = Vec::new();
    let mut rest = line.trim_ascii();
    while !rest.is_empty() {
        let Some((argument, after)) = argument(rest) else { return Vec::new() };
        arguments.push(argument);
        rest = after.trim_ascii_start();
    }
    arguments
}

fn argument(line: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let plain = line.iter().position(|byte| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\''));
    match plain {
        None => return Some((Cow::Borrowed(line), b"")),
        Some(end) if line[end].is_ascii_whitespace() => {
            return Some((Cow::Borrowed(&line[..end]), &line[end..]));
        }
        Some(_) => {}
    }
    let mut argument = Vec::new();
    let mut quote = None;
    let mut idx = 0;
    while let Some(&byte) = line.get(idx) {
        match (quote, byte) {
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, byte) if byte.is_ascii_whitespace() => break,
            (Some(open), byte) if open == byte => {
                // A closing quote ends the argument.
                let rest = &line[idx + 1..];
                let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some((Cow::Owned(argument), rest));
            }
            // In single quotes only the quote itself can be escaped.
            (Some(b'\''), b'\\') if line.get(idx + 1) != Some(&b'\'') => argument.push(byte),
            (Some(open), b'\\') if idx + 1 < line.len() => {
                idx += 1;
                argument.push(if open == b'"' { escaped(line, &mut idx) } else { line[idx] });
            }
            (_, byte) => argument.push(byte),
        }
        idx += 1;
    }
    quote.is_none().then_some((Cow::Owned(argument), &line[idx..]))
}

/// The byte that an escape in double quotes stands for; `idx` is on the byte after the backslash, and is left on the
/// escape's last one.
fn escaped(line: &[u8], idx: &mut usize) -> u8 {
    let digit = |at: usize| line.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    match line[*idx] {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        b'x' => match (digit(*idx + 1), digit(*idx + 2)) {
            (Some(high), Some(low)) => {
                *idx += 2;
                (high << 4 | low) as u8
            }
            _ => b'x',
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &[&str]) {
        let found: Vec<String> =
            split(line.as_bytes()).iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        assert_eq!(found, expected, "{line:?}");
    }

    #[test]
    fn lines_are_split_as_redis_splits_them() {
        check("PING", &["PING"]);
        check("  set  a 1 \r", &["set", "a", "1"]);
        check("set \"a b\" 'c d'", &["set", "a b", "c d"]);
        check("set a\"b c\"", &["set", "ab c"]);
        check("set \"a\\\"b\"", &["set", "a\"b"]);
        check("set \"\\x41\\n\\q\" 'a\\n\\'b'", &["set", "A\nq", "a\\n'b"]);
        check("set \"\\x4\"", &["set", "x4"]);
        check("set \"a", &[]);
        check("set \"a\"b", &[]);
        check("set \"\" x", &["set", "", "x"]);
        check("   \r", &[]);
    }
}
