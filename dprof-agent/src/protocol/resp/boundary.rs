//! Whether bytes look like the start of a request or of a reply: for detection, and to find the boundary again
//! after a loss. A verdict other than "need more" stands whatever bytes follow.

use super::command::{self, Keys, NAME_BYTES_MAX};
use super::number::{Number, Step};

/// What the first bytes of a request show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// No array of bulk strings.
    No,
    /// So far it may be.
    NeedMore,
    /// An array of bulk strings: a request of a command that we do not know, or a reply.
    Array,
    /// A known command with a possible number of arguments.
    Known,
}

/// Arguments of a request that is believed without having seen what came before it.
const BELIEVED_ARGS_MAX: i64 = 1 << 20;

/// Reads `*<n>\r\n$<len>\r\n<name>\r\n`.
pub(super) fn request_boundary(bytes: &[u8]) -> Boundary {
    let Some((b'*', rest)) = bytes.split_first() else {
        return if bytes.is_empty() { Boundary::NeedMore } else { Boundary::No };
    };
    let (n_args, rest) = match number(rest) {
        Some((n_args @ 1..=BELIEVED_ARGS_MAX, rest)) => (n_args, rest),
        Some(_) => return Boundary::No,
        None => return if is_number_so_far(rest) { Boundary::NeedMore } else { Boundary::No },
    };
    let Some((b'$', rest)) = rest.split_first() else {
        return if rest.is_empty() { Boundary::NeedMore } else { Boundary::No };
    };
    let (len, rest) = match number(rest) {
        Some((len @ 1.., rest)) => (len, rest),
        Some((0, _)) => return Boundary::Array,
        Some(_) => return Boundary::No,
        None => return if is_number_so_far(rest) { Boundary::NeedMore } else { Boundary::No },
    };
    if len > NAME_BYTES_MAX as i64 {
        return Boundary::Array;
    }
    let Some((name, rest)) = rest.split_at_checked(len as usize) else { return Boundary::NeedMore };
    match rest {
        [b'\r', b'\n', ..] => {}
        [] | [b'\r'] => return Boundary::NeedMore,
        _ => return Boundary::No,
    }
    match command::find(name) {
        Some(command) if enough_arguments(command.keys, n_args) => Boundary::Known,
        _ => Boundary::Array,
    }
}

fn enough_arguments(keys: Keys, n_args: i64) -> bool {
    n_args > i64::from(keys.first) && n_args > i64::from(keys.count_at)
}

/// The number of a line and what follows the line.
fn number(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut number = Number::default();
    for (idx, &byte) in bytes.iter().enumerate() {
        match number.push(byte) {
            Step::More => {}
            Step::Done(value) => return Some((value, &bytes[idx + 1..])),
            Step::Bad => return None,
        }
    }
    None
}

fn is_number_so_far(bytes: &[u8]) -> bool {
    let mut number = Number::default();
    bytes.iter().all(|&byte| number.push(byte) == Step::More)
}

/// Longest first line of a reply that detection waits for, bytes.
const REPLY_LINE_BYTES_MAX: usize = 128;

/// Whether bytes can be the start of a reply; `None`: need more. One line is all that is looked at.
pub(super) fn reply_boundary(bytes: &[u8]) -> Option<bool> {
    let (kind, rest) = bytes.split_first()?;
    let counted = |least: i64| match number(rest) {
        Some((value, _)) => Some(value >= least),
        None => (!is_number_so_far(rest)).then_some(false),
    };
    match kind {
        // Streamed: the end says how long it was.
        b'$' | b'*' | b'%' | b'~' | b'>' if rest.first() == Some(&b'?') => {
            let fits = rest.iter().zip(b"?\r\n").all(|(byte, expected)| byte == expected);
            (rest.len() >= 3 || !fits).then_some(fits)
        }
        b':' => counted(i64::MIN),
        b'$' | b'*' => counted(-1),
        b'%' | b'~' | b'>' | b'|' | b'=' | b'!' => counted(0),
        b'+' | b'-' | b',' | b'(' | b'#' | b'_' => {
            let line_end = rest.iter().position(|byte| !matches!(byte, b' '..=b'~'));
            let line = &rest[..line_end.unwrap_or(rest.len())];
            let fits = match kind {
                b'-' => line.is_empty() || line[0].is_ascii_uppercase(),
                b'_' => line.is_empty(),
                b'#' => matches!(line, [] | [b't' | b'f']),
                b'+' => true,
                _ => {
                    line.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+'))
                }
            };
            match line_end.map(|end| &rest[end..]) {
                _ if !fits => Some(false),
                Some([b'\r', b'\n', ..]) => Some(!line.is_empty() || *kind == b'_'),
                Some([b'\r']) => None,
                Some(_) => Some(false),
                None => (line.len() > REPLY_LINE_BYTES_MAX).then_some(false),
            }
        }
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the verdict, and that every prefix says "need more" until it is final.
    #[track_caller]
    fn check(bytes: &str, expected: Boundary) {
        let verdicts: Vec<_> =
            (0..=bytes.len()).map(|len| request_boundary(&bytes.as_bytes()[..len])).collect();
        assert_eq!(verdicts.last(), Some(&expected), "{bytes:?}");
        let first_final = verdicts.iter().position(|verdict| *verdict != Boundary::NeedMore);
        if let Some(first_final) = first_final {
            assert!(
                verdicts[first_final..].iter().all(|verdict| *verdict == expected),
                "{bytes:?} {verdicts:?}"
            );
        }
    }

    #[test]
    fn a_request_shows_itself() {
        check("*1\r\n$4\r\nPING\r\n", Boundary::Known);
        check("*2\r\n$3\r\nget\r\n$1\r\na\r\n", Boundary::Known);
        check("*1\r\n$3\r\nget\r\n", Boundary::Array);
        check("*2\r\n$3\r\nfoo\r\n", Boundary::Array);
        check("*2\r\n$0\r\n", Boundary::Array);
        check("*2\r\n$99\r\n", Boundary::Array);
        check("*2\r\n$4\r\nPIN", Boundary::NeedMore);
        check("*2\r\n$4\r\nPINGS", Boundary::No);
        check("*2", Boundary::NeedMore);
        check("*0\r\n", Boundary::No);
        check("*-1\r\n", Boundary::No);
        check("*2\r\n:1\r\n", Boundary::No);
        check("*x", Boundary::No);
        check("PING\r\n", Boundary::No);
    }

    #[track_caller]
    fn check_reply(bytes: &str, expected: Option<bool>) {
        let verdicts: Vec<_> =
            (0..=bytes.len()).map(|len| reply_boundary(&bytes.as_bytes()[..len])).collect();
        assert_eq!(verdicts.last(), Some(&expected), "{bytes:?}");
        if let Some(first_final) = verdicts.iter().position(Option::is_some) {
            assert!(verdicts[first_final..].iter().all(|verdict| *verdict == expected), "{bytes:?}");
        }
    }

    #[test]
    fn a_reply_shows_itself() {
        for reply in [
            "$?", "*?", "%?", "+OK", "-ERR no", ":1", ":-1", "$-1", "$5", "*-1", "*3", "_", "#t", ",1.5",
            ",inf", "(12", "%2",
        ] {
            check_reply(&format!("{reply}\r\nmore"), Some(true));
            check_reply(reply, None);
        }
        for other in [
            "HTTP/1.1 200 OK\r\n",
            "*?1",
            "|?",
            "+\r\n",
            "-err\r\n",
            "_1",
            "#x",
            "$-2\r\n",
            "%-1\r\n",
            "+a\nb",
            "",
        ] {
            check_reply(other, (!other.is_empty()).then_some(false));
        }
    }
}
