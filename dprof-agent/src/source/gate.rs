//! The flag that the kernel programs ask first: outside the capture window they return at once.
//!
//! What a reader would get wrong: the flag is turned by the thread that reads the ring, between two looks, so an edge
//! is as exact as that thread is punctual (a millisecond or two), and what was written before a closing edge is
//! read before the edge's record is.

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use bytemuck::bytes_of;
use dprof_common::event::{EventHeader, EventKind, WindowEvent, flag};

use super::BlockBuilder;
use super::window::Schedule;
use crate::clock::{ClockReading, wall_clock_error_ns};

/// The flag in the kernel and when it is turned next.
pub struct Gate {
    /// 0 = closed, else the number of the window: a socket's state from an earlier window is stale.
    flag: Array<MapData, u32>,
    schedule: Option<Schedule>,
    is_open: bool,
    n_windows: u32,
    due_ns: u64,
    /// A window closed and its last events are still being read: when.
    closing_ns: Option<u64>,
}

impl Gate {
    /// Open for good without a schedule; with one, closed until [`Gate::turn`].
    pub fn new(flag: Array<MapData, u32>, schedule: Option<Schedule>) -> anyhow::Result<Self> {
        let mut gate = Self { flag, schedule, is_open: false, n_windows: 0, due_ns: 0, closing_ns: None };
        if schedule.is_none() {
            gate.set(true)?;
            gate.due_ns = u64::MAX;
        }
        Ok(gate)
    }

    /// When to call [`Gate::turn`] next, monotonic; `u64::MAX` = never.
    pub const fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Opens and closes by another schedule from now on; without one it opens for good.
    pub fn set_schedule(
        &mut self,
        schedule: Option<Schedule>,
        reading: ClockReading,
        block: &mut BlockBuilder,
    ) -> anyhow::Result<()> {
        if schedule == self.schedule {
            return Ok(());
        }
        self.schedule = schedule;
        if schedule.is_some() {
            self.due_ns = 0;
            return self.turn(reading, block);
        }
        self.due_ns = u64::MAX;
        if !self.is_open {
            self.set(true)?;
            self.close(block);
            push(block, reading.monotonic_ns, true);
        }
        Ok(())
    }

    /// Turns the flag if an edge is due; an opening edge goes into the stream.
    pub fn turn(&mut self, reading: ClockReading, block: &mut BlockBuilder) -> anyhow::Result<()> {
        let Some(schedule) = self.schedule else { return Ok(()) };
        if reading.monotonic_ns < self.due_ns {
            return Ok(());
        }
        let moment = schedule.at(reading.unix_ns, wall_clock_error_ns().unwrap_or(0));
        self.due_ns = reading.monotonic_ns + moment.edge_in_ns;
        if moment.is_open != self.is_open {
            self.set(moment.is_open)?;
            if moment.is_open {
                // It may be that the last one was never read to its end.
                self.close(block);
                push(block, reading.monotonic_ns, true);
            } else {
                self.closing_ns = Some(reading.monotonic_ns);
            }
        }
        Ok(())
    }

    /// The ring was empty after the last turn: if a window closed, the stream is told.
    pub fn close(&mut self, block: &mut BlockBuilder) {
        if let Some(time_ns) = self.closing_ns.take() {
            push(block, time_ns, false);
        }
    }

    fn set(&mut self, open: bool) -> anyhow::Result<()> {
        self.n_windows = self.n_windows.wrapping_add(u32::from(open)).max(1);
        self.flag
            .set(0, if open { self.n_windows } else { 0 }, 0)
            .context("turn the capture window's flag")?;
        self.is_open = open;
        Ok(())
    }
}

fn push(block: &mut BlockBuilder, time_ns: u64, opened: bool) {
    let flags = if opened { flag::OPENED } else { 0 };
    let header = EventHeader { kind: EventKind::Window as u8, flags, ..EventHeader::default() };
    block.push(&[bytes_of(&WindowEvent { header, time_ns })]);
}
