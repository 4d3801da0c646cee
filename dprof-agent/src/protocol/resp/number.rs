//! Lengths and counts on the wire: `<digits>\r\n`, one byte at a time.

/// What a byte did to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The number goes on.
    More,
    /// The line ended.
    Done(i64),
    /// Not a number as Redis writes it.
    Bad,
}

/// A decimal number under way. Strict: no leading zeros, no blanks, `\r\n` at the end. Strictness is what tells a
/// header from data after a loss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Number {
    value: u64,
    digits: u8,
    negative: bool,
    cr: bool,
}

/// Digits of the largest 64-bit number that is written with a sign.
const DIGITS_MAX: u8 = 19;

impl Number {
    /// Whether nothing came yet.
    pub(super) const fn is_empty(&self) -> bool {
        self.digits == 0 && !self.negative
    }

    /// The next byte of the line.
    #[inline]
    pub(super) fn push(&mut self, byte: u8) -> Step {
        match byte {
            b'0'..=b'9' if !self.cr => {
                if self.digits == DIGITS_MAX || (self.digits == 1 && self.value == 0) {
                    return Step::Bad;
                }
                self.value = self.value * 10 + u64::from(byte - b'0');
                self.digits += 1;
                Step::More
            }
            b'\r' if !self.cr && self.digits > 0 => {
                self.cr = true;
                Step::More
            }
            b'\n' if self.cr => {
                let value = self.value as i64;
                Step::Done(if self.negative { value.wrapping_neg() } else { value })
            }
            b'-' if self.digits == 0 && !self.negative => {
                self.negative = true;
                Step::More
            }
            _ => Step::Bad,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Step) {
        let mut number = Number::default();
        let mut steps = line.bytes().map(|byte| number.push(byte));
        let step = steps.find(|step| *step != Step::More).unwrap_or(Step::More);
        assert_eq!(step, expected, "{line:?}");
    }

    #[test]
    fn only_what_redis_writes_is_a_number() {
        check("0\r\n", Step::Done(0));
        check("123\r\n", Step::Done(123));
        check("-1\r\n", Step::Done(-1));
        check("9223372036854775807\r\n", Step::Done(i64::MAX));
        check("-9223372036854775808\r\n", Step::Done(i64::MIN));
        check("12345678901234567890\r\n", Step::Bad);
        check("12", Step::More);
        check("12\r", Step::More);
        check("12\n", Step::Bad);
        check("12\rx", Step::Bad);
        check("01\r\n", Step::Bad);
        check("\r\n", Step::Bad);
        check("-\r\n", Step::Bad);
        check("--1\r\n", Step::Bad);
        check("1-\r\n", Step::Bad);
        check(" 1\r\n", Step::Bad);
    }
}
