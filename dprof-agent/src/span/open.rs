//! Requests that are not answered yet, of all connections: the open table.
//!
//! What a reader would get wrong: a slot is used again. Who keeps slots (a connection's order) takes its own out
//! when the request ends; the queue by age keeps generations and skips what has changed hands.

use std::collections::VecDeque;
use std::sync::Arc;

use dprof_common::model::{ProcessInfo, Side, SpanId};

use super::Timed;
use super::times::WallOffset;
use crate::link::Ref;

/// A request without an answer.
#[derive(Debug)]
pub(crate) struct OpenHalf {
    /// Its socket.
    pub(crate) cookie: u64,
    /// Which end this is.
    pub(crate) side: Side,
    /// The RPC.
    pub(crate) span_id: SpanId,
    /// Its place among the requests (server) or calls (client) of the linker.
    pub(crate) linked_at: Ref,
    /// The request.
    pub(crate) request: Timed,
    /// Process that read or sent it.
    pub(crate) process: Arc<ProcessInfo>,
    /// Offset of its times.
    pub(crate) offset: WallOffset,
    /// Something was lost on its connection while it was open.
    pub(crate) touched: bool,
    /// Segments of the request that were sent again.
    pub(crate) retransmits: u32,
    /// The connection's time to connect, on its first RPC.
    pub(crate) connect_ns: Option<u64>,
    /// When it was seen, on the engine's clock.
    pub(crate) seen_ns: u64,
}

/// All open requests.
#[derive(Debug, Default)]
pub(crate) struct OpenTable {
    slots: Vec<(u32, Option<OpenHalf>)>,
    free: Vec<u32>,
    by_age: VecDeque<(u32, u32)>,
    len: usize,
}

impl OpenTable {
    /// Adds a request; its slot.
    pub(crate) fn insert(&mut self, half: OpenHalf) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (generation, place) = &mut self.slots[slot as usize];
        *generation = generation.wrapping_add(1);
        *place = Some(half);
        self.by_age.push_back((slot, *generation));
        self.len += 1;
        if self.by_age.len() > 2 * self.len + 1024 {
            let slots = &self.slots;
            self.by_age.retain(|(slot, generation)| {
                let (now, half) = &slots[*slot as usize];
                now == generation && half.is_some()
            });
        }
        slot
    }

    /// Takes a request out.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<OpenHalf> {
        let half = self.slots.get_mut(slot as usize)?.1.take()?;
        self.free.push(slot);
        self.len -= 1;
        Some(half)
    }

    /// A request.
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut OpenHalf> {
        self.slots.get_mut(slot as usize)?.1.as_mut()
    }

    /// How many are open.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The oldest request's slot, if it was seen at or before `limit_ns`.
    pub(crate) fn oldest(&mut self, limit_ns: u64) -> Option<u32> {
        while let Some((slot, generation)) = self.by_age.front().copied() {
            match &self.slots[slot as usize] {
                (now, Some(half)) if *now == generation => return (half.seen_ns <= limit_ns).then_some(slot),
                _ => {
                    self.by_age.pop_front();
                }
            }
        }
        None
    }

    /// Every open request, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OpenHalf> {
        self.by_age.iter().filter_map(|(slot, generation)| match &self.slots[*slot as usize] {
            (now, Some(half)) if now == generation => Some(half),
            _ => None,
        })
    }
}
