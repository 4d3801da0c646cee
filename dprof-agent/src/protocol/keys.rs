//! Keys that a request names, as places in its statement: nothing is copied, and what redaction did to the
//! statement holds for them too.

/// Keys of one request that are told apart: those of a longer multi-get count by its first ones.
const KEYS_MAX: usize = 4;

/// Ranges of [`super::Message::text`], each a key. A statement is some hundred bytes long, so 16 bits hold any place
/// in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyRanges {
    ranges: [(u16, u16); KEYS_MAX],
    n: u8,
}

impl KeyRanges {
    /// No keys.
    pub const NONE: Self = Self { ranges: [(0, 0); KEYS_MAX], n: 0 };

    /// Adds the key at `start..end` of the statement; what has no room is left out.
    #[inline]
    pub fn push(&mut self, start: usize, end: usize) {
        if let (Some(place), Ok(start), Ok(end)) =
            (self.ranges.get_mut(usize::from(self.n)), u16::try_from(start), u16::try_from(end))
        {
            *place = (start, end);
            self.n += 1;
        }
    }

    /// The keys, of the statement that they were found in.
    pub fn of<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let ranges = self.ranges.into_iter().take(usize::from(self.n));
        ranges.filter_map(|(start, end)| text.get(usize::from(start)..usize::from(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again_and_those_without_room_are_left_out() {
        let text = "MGET a bc d e f";
        let mut keys = KeyRanges::NONE;
        assert_eq!(keys.of(text).count(), 0);
        for (start, end) in [(5, 6), (7, 9), (10, 11), (12, 13), (14, 15), (70_000, 70_001)] {
            keys.push(start, end);
        }
        assert_eq!(keys.of(text).collect::<Vec<_>>(), ["a", "bc", "d", "e"]);
        // Another statement: nothing that is not there.
        assert_eq!(keys.of("MGET a").collect::<Vec<_>>(), ["a"]);
    }
}
