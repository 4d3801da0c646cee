//! The key that was most likely meant by a name that is none.

use super::KEYS;

/// A name this many edits away or more is another one; of short names a third of their length.
const EDITS_MAX: usize = 4;

/// The known key nearest to `name`, if one is near; the part behind the dot alone is near enough too.
pub fn suggest(name: &str) -> Option<&'static str> {
    let distance = |key: &str| {
        let tail = key.rsplit_once('.').map_or(key, |(_, tail)| tail);
        edits(name, key).min(edits(name, tail))
    };
    near(name, KEYS.iter().map(|key| (distance(key.name), key.name)))
}

/// The word nearest to `name`, if one is near.
pub(super) fn nearest(name: &str, words: &[&'static str]) -> Option<&'static str> {
    near(name, words.iter().map(|word| (edits(name, word), *word)))
}

fn near(name: &str, words: impl Iterator<Item = (usize, &'static str)>) -> Option<&'static str> {
    let (distance, word) = words.min()?;
    (distance <= EDITS_MAX.min(name.len() / 3)).then_some(word)
}

/// Levenshtein's distance: letters added, removed or replaced.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (idx, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], idx + 1);
        for (column, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Option<&str>) {
        assert_eq!(suggest(name), expected, "{name}");
    }

    #[test]
    fn a_key_that_is_nearly_one_is_named_and_nonsense_is_not() {
        check("trace.keep_ration", Some("trace.keep_ratio"));
        check("trace.kep_slow", Some("trace.keep_slow"));
        check("keep_ratio", Some("trace.keep_ratio"));
        check("duty-cycle", Some("capture.duty_cycle"));
        for nonsense in ["", "x", "store.password", "something.entirely.else"] {
            check(nonsense, None);
        }
    }

    #[test]
    fn distance_counts_single_edits() {
        for (a, b, expected) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!((edits(a, b), edits(b, a)), (expected, expected), "{a} {b}");
        }
    }
}
