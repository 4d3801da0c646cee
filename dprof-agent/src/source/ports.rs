//! Which ports the kernel programs watch, changed while they run (`filter.ports`).
//!
//! The problem: a thousand ports are not written at once, and a program that asks meanwhile must see the old choice or
//! the new one. The idea: the table has two halves. The one that is not in use is written, then one word, which every
//! program reads first, names it. What a reader would get wrong: the word has the number of the choice, too, by which
//! a socket that was judged under another one is judged again; nothing is told to sockets one by one.

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use dprof_common::probe_config::gate;

/// Entries of both halves.
const ENTRIES: usize = 2 * gate::ENTRIES as usize;

/// The choice in force, and the table in the kernel.
pub(super) struct Choice {
    table: Array<MapData, u64>,
    /// What the table holds.
    written: Box<[u64; ENTRIES]>,
    ports: Vec<u16>,
    word: u64,
}

impl Choice {
    /// All ports: what the programs begin with.
    pub(super) fn all(table: Array<MapData, u64>) -> Self {
        Self { table, written: Box::new([0; ENTRIES]), ports: Vec::new(), word: 0 }
    }

    /// The ports; empty = all.
    pub(super) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The choice's part of the word; in force once the word is written.
    pub(super) const fn word(&self) -> u64 {
        self.word
    }

    /// Writes the half that is not in use. Whether it is another choice.
    pub(super) fn set(&mut self, ports: &[u16]) -> anyhow::Result<bool> {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        ports.dedup();
        if ports == self.ports {
            return Ok(false);
        }
        let word = next_word(self.word, &ports);
        for (entry, bits) in differences(&self.written, word, &ports) {
            self.table.set(entry as u32, bits, 0).context("write the ports that are watched")?;
            self.written[entry] = bits;
        }
        (self.ports, self.word) = (ports, word);
        Ok(true)
    }
}

/// The choice's part of the word after `word`.
fn next_word(word: u64, ports: &[u16]) -> u64 {
    let numbered = (word & gate::CHOICE & !gate::PORTS).wrapping_add(gate::HALF);
    if ports.is_empty() { numbered } else { numbered | gate::PORTS }
}

/// Entries of the half of `word` that do not hold `ports` yet.
fn differences(written: &[u64; ENTRIES], word: u64, ports: &[u16]) -> Vec<(usize, u64)> {
    if word & gate::PORTS == 0 {
        // Nobody asks.
        return Vec::new();
    }
    let first = gate::place(word, 0).0 as usize;
    let mut wanted = vec![0; gate::ENTRIES as usize];
    for port in ports {
        let (entry, bit) = gate::place(word, *port);
        wanted[entry as usize - first] |= bit;
    }
    let entries = wanted.into_iter().enumerate().map(|(idx, bits)| (first + idx, bits));
    entries.filter(|(entry, bits)| written[*entry] != *bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program that reads `word` is told of a port.
    fn is_wanted(written: &[u64; ENTRIES], word: u64, port: u16) -> bool {
        let (entry, bit) = gate::place(word, port);
        word & gate::PORTS == 0 || written[entry as usize] & bit != 0
    }

    #[test]
    fn each_choice_is_written_where_the_one_before_is_not_read() {
        let mut written = Box::new([0; ENTRIES]);
        let (mut word, mut in_force) = (0, vec![]);
        let choices: [&[u16]; 7] =
            [&[6379], &[1, 80, 65_535], &[], &[63, 64], &[6379, 80], &[6379], &[1, 2, 3]];
        for ports in choices {
            let next = next_word(word, ports);
            assert_ne!(next & gate::CHOICE, word & gate::CHOICE);
            assert_eq!(next & gate::WINDOW, 0);
            for (entry, bits) in differences(&written, next, ports) {
                written[entry] = bits;
                for port in [1, 2, 3, 63, 64, 80, 6379, 65_535] {
                    let expected = in_force.is_empty() || in_force.contains(&port);
                    assert_eq!(is_wanted(&written, word, port), expected, "{in_force:?} {port}");
                }
            }
            (word, in_force) = (next, ports.to_vec());
            for port in 1..=u16::MAX {
                let expected = in_force.is_empty() || in_force.contains(&port);
                assert_eq!(is_wanted(&written, word, port), expected, "{in_force:?} {port}");
            }
        }
    }

    #[test]
    fn numbers_of_choices_start_again_after_the_last() {
        let last = gate::CHOICE & !gate::PORTS;
        assert!(!gate::is_skipped(last, 0) && !gate::is_skipped(0, next_word(0, &[80])));
        assert!(gate::is_skipped(last, next_word(0, &[80])) && gate::is_skipped(0, last));
        assert_eq!(next_word(last, &[]), 0);
        assert_eq!(next_word(last | gate::PORTS, &[80]), gate::PORTS);
    }
}
