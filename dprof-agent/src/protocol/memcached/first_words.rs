//! What replies begin with, for detection: strict, since other protocols' lines are words, too.

/// A number in decimal digits.
pub(super) fn decimal(word: &[u8]) -> Option<u64> {
    let is_number = !word.is_empty() && word.len() <= 20 && word.iter().all(u8::is_ascii_digit);
    str::from_utf8(word).ok().filter(|_| is_number)?.parse().ok()
}

/// Whether a line can be the first of a reply: strict, for detection.
pub(super) fn is_first_line(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let word = words.next().unwrap_or_default();
    let rest: Vec<&[u8]> = words.take(8).collect();
    match word {
        b"VALUE" => (3..=4).contains(&rest.len()) && rest[1..].iter().all(|word| decimal(word).is_some()),
        b"VA" => rest.first().is_some_and(|word| decimal(word).is_some()),
        b"STORED" | b"NOT_STORED" | b"EXISTS" | b"NOT_FOUND" | b"DELETED" | b"TOUCHED" | b"END"
        | b"ERROR" | b"OK" | b"MN" | b"EN" | b"NF" => rest.is_empty(),
        b"HD" | b"NS" | b"EX" => rest.iter().all(|word| word.first().is_none_or(u8::is_ascii_alphabetic)),
        b"STAT" => rest.len() >= 2,
        b"VERSION" => rest.len() == 1,
        b"CLIENT_ERROR" | b"SERVER_ERROR" => !rest.is_empty(),
        number => rest.is_empty() && decimal(number).is_some(),
    }
}

/// First words of replies that are no numbers.
const FIRST_WORDS: [&str; 20] = [
    "VALUE",
    "VA",
    "STORED",
    "NOT_STORED",
    "EXISTS",
    "NOT_FOUND",
    "DELETED",
    "TOUCHED",
    "END",
    "ERROR",
    "OK",
    "MN",
    "EN",
    "NF",
    "HD",
    "NS",
    "EX",
    "STAT",
    "VERSION",
    "CLIENT_ERROR",
];

/// Whether this is the first word of a reply.
pub(super) fn is_first_word(word: &[u8]) -> bool {
    word == b"SERVER_ERROR"
        || FIRST_WORDS.iter().any(|known| known.as_bytes() == word)
        || decimal(word).is_some()
}

/// Whether the first word of a reply begins so.
pub(super) fn begins_a_first_word(bytes: &[u8]) -> bool {
    b"SERVER_ERROR".starts_with(bytes)
        || FIRST_WORDS.iter().any(|known| known.as_bytes().starts_with(bytes))
        || decimal(bytes).is_some()
}
