//! The running kernel's own type information: where a member lies in its struct, and which tracepoints exist.
//!
//! BTF is a header, a table of types and a table of strings (kernel documentation: `Documentation/bpf/btf.rst`).
//! aya keeps struct members private, so this is a small reader of our own. What a reader would get wrong: members
//! may hide in anonymous structs and unions, whose own offset must be added, and with bit-fields in a struct the
//! offset word holds a size too.

use std::path::Path;

use rustc_hash::FxHashMap;

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// No file.
    #[error("the kernel has no BTF ({path}): a kernel built with CONFIG_DEBUG_INFO_BTF is needed")]
    Missing {
        /// Where it should be.
        path: String,
    },
    /// Not understood.
    #[error("the kernel's BTF is damaged: {0}")]
    Damaged(&'static str),
    /// A member that the programs need does not exist.
    #[error("this kernel has no {0}")]
    NoMember(String),
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;

/// Parsed type information. Holds the file's bytes and where each type starts.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Start of each type, by id; id 0 is `void`.
    types: Vec<u32>,
    /// Structs by name.
    structs: FxHashMap<String, u32>,
    /// Names of typedefs that stand for tracepoints, without `btf_trace_`.
    tracepoints: Vec<String>,
    /// Ids of functions: tens of thousands, so names are compared when asked for.
    functions: Vec<u32>,
}

impl Btf {
    /// Reads the running kernel's.
    pub fn from_kernel() -> Result<Self, BtfError> {
        Self::from_file(Path::new("/sys/kernel/btf/vmlinux"))
    }

    /// Reads a file in the kernel's format.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let data = std::fs::read(path).map_err(|_| BtfError::Missing { path: path.display().to_string() })?;
        Self::parse(data)
    }

    /// Finds the types in `data`.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let word = |at: usize| {
            data.get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_le_bytes)
                .ok_or(BtfError::Damaged("cut short"))
        };
        if word(0)? & 0xffff != 0xeb9f {
            return Err(BtfError::Damaged("no magic"));
        }
        let header = word(4)? as usize;
        let (type_off, type_len, str_off) = (word(8)? as usize, word(12)? as usize, word(16)? as usize);
        let strings = header + str_off;
        let end = header + type_off + type_len;
        if end > data.len() || strings > data.len() {
            return Err(BtfError::Damaged("tables reach past the end"));
        }
        let mut types = vec![0];
        let mut structs = FxHashMap::default();
        let mut tracepoints = Vec::new();
        let mut functions = Vec::new();
        let mut at = header + type_off;
        while at < end {
            let (name, info) = (word(at)? as usize, word(at + 4)?);
            let (vlen, kind) = ((info & 0xffff) as usize, (info >> 24) & 0x1f);
            types.push(at as u32);
            if (kind == KIND_STRUCT || kind == KIND_UNION) && name != 0 {
                structs.entry(text(&data, strings + name).to_owned()).or_insert(types.len() as u32 - 1);
            }
            if kind == KIND_FUNC {
                functions.push(types.len() as u32 - 1);
            }
            if kind == KIND_TYPEDEF
                && let Some(tracepoint) = text(&data, strings + name).strip_prefix("btf_trace_")
            {
                tracepoints.push(tracepoint.to_owned());
            }
            at += 12 + trailer_bytes(kind, vlen)?;
        }
        Ok(Self { data, strings, types, structs, tracepoints, functions })
    }

    /// Whether the kernel has this tracepoint (and says so in BTF, as `tp_btf` needs).
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoints.iter().any(|t| t == name)
    }

    /// How many parameters the kernel's function of this name has; `None` = there is none (or it is inlined).
    pub fn parameters(&self, function: &str) -> Option<usize> {
        let name = |at: u32| text(&self.data, self.strings + self.word(at as usize) as usize);
        let at = self.functions.iter().map(|id| self.types[*id as usize]).find(|at| name(*at) == function)?;
        // Its type is a prototype, whose length is the number of parameters.
        let prototype = *self.types.get(self.word(at as usize + 8) as usize)?;
        Some((self.word(prototype as usize + 4) & 0xffff) as usize)
    }

    /// Bytes of a struct or union.
    pub fn size(&self, of: &str) -> Option<u32> {
        let id = *self.structs.get(of)?;
        Some(self.word(self.types[id as usize] as usize + 8))
    }

    /// Byte offset of `member` in struct `of`; a dotted path goes down into named members.
    pub fn offset(&self, of: &str, member: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::NoMember(format!("{of}.{member}"));
        let mut id = *self.structs.get(of).ok_or_else(missing)?;
        let mut offset = 0;
        for step in member.split('.') {
            let (bits, next) = self.find(id, step, 0).ok_or_else(missing)?;
            offset += bits / 8;
            id = next;
        }
        Ok(offset)
    }

    fn word(&self, at: usize) -> u32 {
        self.data.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// Bit offset and type of a member, looked for in anonymous members too.
    fn find(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let mut at = *self.types.get(id as usize)? as usize;
        let mut info = self.word(at + 4);
        // Through typedef, volatile, const, restrict to what they stand for.
        for _ in 0..8 {
            if !(KIND_TYPEDEF..=KIND_RESTRICT).contains(&((info >> 24) & 0x1f)) {
                break;
            }
            at = *self.types.get(self.word(at + 8) as usize)? as usize;
            info = self.word(at + 4);
        }
        let kind = (info >> 24) & 0x1f;
        if depth > 8 || (kind != KIND_STRUCT && kind != KIND_UNION) {
            return None;
        }
        let bit_fields = info >> 31 == 1;
        for n in 0..(info & 0xffff) as usize {
            let member = at + 12 + n * 12;
            let (member_name, member_type, offset) =
                (self.word(member) as usize, self.word(member + 4), self.word(member + 8));
            let offset = if bit_fields { offset & 0x00ff_ffff } else { offset };
            if member_name == 0 {
                if let Some((inner, found)) = self.find(member_type, name, depth + 1) {
                    return Some((offset + inner, found));
                }
            } else if text(&self.data, self.strings + member_name) == name {
                return Some((offset, member_type));
            }
        }
        None
    }
}

/// Bytes after the common 12 of a type of this kind.
fn trailer_bytes(kind: u32, vlen: usize) -> Result<usize, BtfError> {
    Ok(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => vlen * 12,
        6 | 13 => vlen * 8,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return Err(BtfError::Damaged("a type of unknown kind")),
    })
}

fn text(data: &[u8], at: usize) -> &str {
    let bytes = data.get(at..).unwrap_or(&[]);
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(0);
    std::str::from_utf8(&bytes[..end]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tiny BTF by hand: `struct outer { int a; struct { int b; union { int c; }; }; struct inner i; }`,
    /// `struct inner { int d; int e; }`, a tracepoint's typedef,
    /// and a function of two parameters.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0inner\0d\0e\0btf_trace_hello\0i\0call\0";
        let at = |name: &str| {
            let needle = [b"\0", name.as_bytes(), b"\0"].concat();
            strings.windows(needle.len()).position(|w| w == needle).expect("in the table") as u32 + 1
        };
        let info = |kind: u32, vlen: u32| (kind << 24) | vlen;
        let mut types: Vec<u32> = Vec::new();
        types.extend([at("int"), info(1, 0), 4, 0x2000_0020]);
        types.extend([at("inner"), info(4, 2), 8, at("d"), 1, 0, at("e"), 1, 32]);
        types.extend([0, info(5, 1), 4, at("c"), 1, 0]);
        types.extend([0, info(4, 2), 8, at("b"), 1, 0, 0, 3, 32]);
        types.extend([at("outer"), info(4, 3), 20, at("a"), 1, 0, 0, 4, 32, at("i"), 2, 96]);
        types.extend([at("btf_trace_hello"), info(8, 0), 1]);
        types.extend([0, info(13, 2), 1, 0, 1, 0, 1]);
        types.extend([at("call"), info(12, 0), 7]);
        let type_bytes: Vec<u8> = types.iter().flat_map(|w| w.to_le_bytes()).collect();
        let header =
            [0x0001_eb9f, 24, 0, type_bytes.len() as u32, type_bytes.len() as u32, strings.len() as u32];
        let mut data: Vec<u8> = header.iter().flat_map(|w: &u32| w.to_le_bytes()).collect();
        data.extend(type_bytes);
        data.extend(strings);
        data
    }

    #[track_caller]
    fn check(of: &str, member: &str, expected: Option<u32>) {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        assert_eq!(btf.offset(of, member).ok(), expected, "{of}.{member}");
    }

    #[test]
    fn members_are_found_through_anonymous_and_named_ones() {
        check("outer", "a", Some(0));
        check("outer", "b", Some(4));
        check("outer", "c", Some(8));
        check("outer", "i", Some(12));
        check("outer", "i.e", Some(16));
        check("outer", "nothing", None);
        check("nobody", "a", None);
        check("outer", "a.b", None);
    }

    #[test]
    fn tracepoints_are_known_by_their_typedef() {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        assert!(btf.has_tracepoint("hello") && !btf.has_tracepoint("int"));
    }

    #[test]
    fn functions_have_parameters_and_structs_a_size() {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        assert_eq!((btf.parameters("call"), btf.parameters("int")), (Some(2), None));
        assert_eq!((btf.size("outer"), btf.size("call")), (Some(20), None));
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let whole = sample();
        for len in 0..whole.len() {
            let mut cut = whole.clone();
            cut.truncate(len);
            // Cut inside the strings it may still parse; it must not panic.
            let _ = Btf::parse(cut).map(|btf| btf.offset("outer", "c"));
        }
        assert!(Btf::parse(vec![0; 64]).is_err());
    }
}
