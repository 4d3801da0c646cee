//! JSON for programs: exactly one array, one object per line, written as it comes.

use std::io::Write;

use serde::Serialize;

use crate::context::Failure;

/// Writes `rows` as one array.
pub(crate) fn array<T: Serialize>(
    rows: impl IntoIterator<Item = T>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut first = true;
    for row in rows {
        out.write_all(if first { b"[\n" } else { b",\n" })?;
        first = false;
        serde_json::to_writer(&mut *out, &row)?;
    }
    out.write_all(if first { b"[]\n" } else { b"\n]\n" })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_one_array_also_when_there_are_none() {
        for (rows, expected) in
            [(vec![], "[]\n"), (vec!["a"], "[\n\"a\"\n]\n"), (vec!["a", "b"], "[\n\"a\",\n\"b\"\n]\n")]
        {
            let mut out = Vec::new();
            array(rows, &mut out).expect("memory");
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        }
    }
}
