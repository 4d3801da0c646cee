//! JSON for programs: exactly one document, either an array with one object per line, written as it comes, or an
//! object that says its schema. docs/json.md lists the fields.
//!
//! What a reader would get wrong: the arrays came first and stay arrays; their objects are of schema 1 as well.

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

/// Version of every JSON that is printed. Within a version fields are added, never renamed, removed or given
/// another meaning or unit.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// An answer with what it is.
#[derive(Serialize)]
struct Document<'a, T> {
    schema_version: u32,
    kind: &'static str,
    #[serde(flatten)]
    answer: &'a T,
}

/// Writes `answer` (a struct) as one object that begins with `schema_version` and `kind`.
pub(crate) fn document<T: Serialize>(
    kind: &'static str,
    answer: &T,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, &Document { schema_version: SCHEMA_VERSION, kind, answer })?;
    out.write_all(b"\n")?;
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

    #[test]
    fn a_document_says_its_schema_first() {
        #[derive(Serialize)]
        struct Answer {
            rows: Vec<u32>,
        }
        let mut out = Vec::new();
        document("sample", &Answer { rows: vec![7] }, &mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "{\n  \"schema_version\": 1,\n  \"kind\": \"sample\",\n  \"rows\": [\n    7\n  ]\n}\n"
        );
    }
}
