//! The dictionary of a blob that stands alone: names and origins lie in it, not in a table beside it.

use std::sync::Arc;

use dprof_common::model::{Half, HostInfo, ProcessInfo};

use crate::StoreError;
use crate::rows::{Dictionary, Lookup, Origin, RowError, pack_origin, unpack_origin};

/// While packing: a handful of names, so a search from the front beats a map.
#[derive(Default)]
pub(crate) struct Words {
    texts: Vec<String>,
    origins: Vec<(Arc<HostInfo>, Arc<ProcessInfo>, u32)>,
    packed_origins: Vec<Vec<u8>>,
}

impl Words {
    /// Texts and origins, each in the order of its numbers.
    pub(crate) fn into_parts(self) -> (Vec<String>, Vec<Vec<u8>>) {
        (self.texts, self.packed_origins)
    }
}

impl Dictionary for Words {
    type Error = StoreError;

    fn text_id(&mut self, text: &str) -> Result<u32, StoreError> {
        let place = self.texts.iter().position(|known| known == text).unwrap_or_else(|| {
            self.texts.push(text.to_owned());
            self.texts.len() - 1
        });
        Ok(place as u32)
    }

    fn origin_id(&mut self, half: &Half) -> Result<u32, StoreError> {
        let same = |known: &(Arc<HostInfo>, Arc<ProcessInfo>, u32)| {
            known.2 == half.netns
                && (Arc::ptr_eq(&known.1, &half.process) || known.1 == half.process)
                && (Arc::ptr_eq(&known.0, &half.host) || known.0 == half.host)
        };
        let place = self.origins.iter().position(same).unwrap_or_else(|| {
            self.origins.push((Arc::clone(&half.host), Arc::clone(&half.process), half.netns));
            self.packed_origins.push(pack_origin(half));
            self.origins.len() - 1
        });
        Ok(place as u32)
    }
}

/// While unpacking.
pub(crate) struct Unwords {
    texts: Vec<Arc<str>>,
    origins: Vec<Origin>,
}

impl Unwords {
    /// From [`Words::into_parts`].
    pub(crate) fn new(texts: &[String], origins: &[Vec<u8>]) -> Result<Self, RowError> {
        Ok(Self {
            texts: texts.iter().map(|text| Arc::from(text.as_str())).collect(),
            origins: origins.iter().map(|origin| unpack_origin(origin)).collect::<Result<_, _>>()?,
        })
    }
}

impl Lookup for Unwords {
    type Error = RowError;

    fn text(&mut self, id: u32) -> Result<Arc<str>, RowError> {
        self.texts.get(id as usize).cloned().ok_or_else(|| RowError("unknown text".into()))
    }

    fn origin(&mut self, id: u32) -> Result<Origin, RowError> {
        self.origins.get(id as usize).cloned().ok_or_else(|| RowError("unknown origin".into()))
    }
}
