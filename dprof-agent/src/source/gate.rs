//! The word that the kernel programs ask first: outside the capture window they return at once, and of sockets with
//! other ports than those that are chosen.
//!
//! What a reader would get wrong: the word is turned by the thread that reads the ring, between two looks, so an edge
//! is as exact as that thread is punctual (a millisecond or two), and what was written before a closing edge, or before
//! other ports were chosen, is read before the record that says so.

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use bytemuck::bytes_of;
use dprof_common::event::{EventHeader, EventKind, PortsEvent, WindowEvent, flag};

use super::BlockBuilder;
use super::ports::Choice;
use super::window::Schedule;
use crate::clock::{ClockReading, monotonic_ns, wall_clock_error_ns};

/// The word in the kernel and when it is turned next.
pub(super) struct Gate {
    /// See [`dprof_common::probe_config::gate`].
    word: Array<MapData, u64>,
    choice: Choice,
    schedule: Option<Schedule>,
    is_open: bool,
    n_windows: u32,
    due_ns: u64,
    /// A window closed and its last events are still being read: when.
    closing_ns: Option<u64>,
    /// Other ports were chosen and what was written before is still being read: when.
    choosing_ns: Option<u64>,
}

impl Gate {
    /// Open for good without a schedule; with one, closed until [`Gate::turn`].
    pub(super) fn new(
        word: Array<MapData, u64>,
        choice: Choice,
        schedule: Option<Schedule>,
    ) -> anyhow::Result<Self> {
        let mut gate = Self {
            word,
            choice,
            schedule,
            is_open: false,
            n_windows: 0,
            due_ns: 0,
            closing_ns: None,
            choosing_ns: None,
        };
        if schedule.is_none() {
            gate.set(true)?;
            gate.due_ns = u64::MAX;
        }
        Ok(gate)
    }

    /// When to call [`Gate::turn`] next, monotonic; `u64::MAX` = never.
    pub(super) const fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Opens and closes by another schedule from now on; without one it opens for good.
    pub(super) fn set_schedule(
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

    /// Has the programs watch these ports from now on; all, if there are none.
    pub(super) fn set_ports(&mut self, ports: &[u16], block: &mut BlockBuilder) -> anyhow::Result<()> {
        // The record of the last change names the ports of then.
        self.close(block);
        if self.choice.set(ports)? {
            self.write()?;
            let time_ns = monotonic_ns();
            push_ports(block, time_ns, self.choice.ports(), true);
            self.choosing_ns = Some(time_ns);
        }
        Ok(())
    }

    /// Turns the word if an edge is due; an opening edge goes into the stream.
    pub(super) fn turn(&mut self, reading: ClockReading, block: &mut BlockBuilder) -> anyhow::Result<()> {
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

    /// The ring was empty after the last turn: if a window closed or other ports were chosen, the stream is told.
    pub(super) fn close(&mut self, block: &mut BlockBuilder) {
        if let Some(time_ns) = self.closing_ns.take() {
            push(block, time_ns, false);
        }
        if let Some(time_ns) = self.choosing_ns.take() {
            push_ports(block, time_ns, self.choice.ports(), false);
        }
    }

    fn set(&mut self, open: bool) -> anyhow::Result<()> {
        self.n_windows = self.n_windows.wrapping_add(u32::from(open)).max(1);
        self.is_open = open;
        self.write()
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let window = if self.is_open { self.n_windows } else { 0 };
        self.word.set(0, self.choice.word() | u64::from(window), 0).context("turn the word of the capture")
    }
}

fn push(block: &mut BlockBuilder, time_ns: u64, opened: bool) {
    let flags = if opened { flag::OPENED } else { 0 };
    let header = EventHeader { kind: EventKind::Window as u8, flags, ..EventHeader::default() };
    block.push(&[bytes_of(&WindowEvent { header, time_ns })]);
}

fn push_ports(block: &mut BlockBuilder, time_ns: u64, ports: &[u16], begins: bool) {
    let mut flags = if begins { flag::BEGINS } else { 0 };
    if ports.is_empty() {
        flags |= flag::ALL;
    }
    let ports: Vec<u8> = ports.iter().flat_map(|port| port.to_le_bytes()).collect();
    let payload_len = ports.len() as u16;
    let header = EventHeader { kind: EventKind::Ports as u8, flags, payload_len, ..EventHeader::default() };
    block.push(&[bytes_of(&PortsEvent { header, time_ns }), &ports]);
}
