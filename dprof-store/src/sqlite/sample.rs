//! Some RPCs of many, spread over a window: from a few groups of rows far apart, a few of each.
//!
//! What a reader would get wrong: a row stands for the end that it holds, so nothing is joined. A row with both ends
//! is listed under who served it; for whom called, it is unpacked and looked at.

use dprof_common::model::Side;
use rustc_hash::FxHashSet;

use super::chunk::sqlite_error;
use super::select::name_id;
use super::session::{OpenChunk, RawRow, SPAN_COLUMNS, Session};
use super::summary::Zone;
use crate::schema::{Bits, relative_ns, stored_duration};
use crate::{HalfQuery, SpanPlace, StoreError};

/// Groups that a sample comes from at least, if there are as many.
const GROUPS_MIN: usize = 32;
/// Groups looked at in most: a millisecond each.
const GROUPS_MAX: usize = 512;
/// Rows with both ends that are unpacked for one that was called by whom the question is about.
const CALLS_READ: usize = 4;

fn overlaps(query: &HalfQuery, zone: &Zone) -> bool {
    // A row's times may be the other end's, which differ by a clock: a group at the edge is looked at.
    zone.n_spans > 0
        && zone.start_min < query.until_unix_ns
        && zone.start_max >= query.since_unix_ns
        && query.min_duration_ns.is_none_or(|min| zone.dur_max >= min)
}

/// Numbers below `n`, each once, such that those first are far apart: steps of the golden ratio (Knuth, "The Art of
/// Computer Programming", 6.4, on Fibonacci hashing).
fn spread(n: usize) -> impl Iterator<Item = usize> {
    let mut step = (n as f64 * 0.618_033_988_749_895) as usize;
    while step > 1 && greatest_divisor(step, n) > 1 {
        step -= 1;
    }
    let step = step.max(1);
    (0..n).map(move |turn| turn * step % n)
}

const fn greatest_divisor(mut a: usize, mut b: usize) -> usize {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The places of about `query.limit` RPCs.
pub(crate) fn sample(session: &mut Session, query: &HalfQuery) -> Result<Vec<SpanPlace>, StoreError> {
    let mut groups: Vec<(u64, usize, i64)> = Vec::new();
    for idx in 0..session.chunks.len() {
        if !session.zone(idx)?.is_some_and(|zone| overlaps(query, &zone)) {
            continue;
        }
        let found = session.with(idx, |chunk| {
            let of_window = chunk.groups.iter().filter(|(_, zone)| overlaps(query, zone));
            Ok(of_window.map(|(group, zone)| (zone.start_min, idx, *group)).collect::<Vec<_>>())
        })?;
        groups.extend(found.unwrap_or_default());
    }
    groups.sort_unstable();
    let each = query.limit.div_ceil(GROUPS_MIN.min(groups.len()).max(1));
    let mut places = FxHashSet::default();
    for (n_seen, at) in spread(groups.len()).take(GROUPS_MAX).enumerate() {
        // Of one group the next ones have fewer, so that no single one makes up for the rest.
        if places.len() >= query.limit && n_seen >= GROUPS_MIN {
            break;
        }
        let (_, idx, group) = groups[at];
        places.extend(of_group(session, query, idx, group, each)?);
    }
    let mut places: Vec<SpanPlace> = places.into_iter().collect();
    places.sort_unstable();
    // Ids are hashes: the first of them are as good as any.
    places.truncate(query.limit);
    Ok(places)
}

/// Up to `limit` of a group, evenly from the shortest to the longest.
fn of_group(
    session: &mut Session,
    query: &HalfQuery,
    idx: usize,
    group: i64,
    limit: usize,
) -> Result<Vec<SpanPlace>, StoreError> {
    let unpacked = session.with(idx, |chunk| {
        let ids = matching_rows(chunk, query, group)?;
        let wanted = if query.side == Side::Server { limit } else { CALLS_READ * limit };
        let some = evenly(&ids, wanted);
        let mut rows = Vec::with_capacity(some.len());
        let load = || -> rusqlite::Result<()> {
            let mut select = chunk
                .connection
                .prepare_cached(&format!("SELECT {SPAN_COLUMNS} FROM spans s WHERE id = ?1"))?;
            for id in some {
                rows.push(select.query_row([id], RawRow::read)?);
            }
            Ok(())
        };
        load().map_err(|error| sqlite_error(&chunk.path, error))?;
        Ok(rows.iter().map(|row| chunk.span_of(row)).collect::<Vec<_>>())
    })?;
    let spans = session.take_spans(idx, unpacked.unwrap_or_default())?;
    let matching: Vec<SpanPlace> = spans
        .iter()
        .filter(|span| query.matches(span))
        .map(|span| SpanPlace { trace_id: span.trace_id, span_id: span.span_id })
        .collect();
    Ok(evenly(&matching, limit))
}

/// Up to `limit` of them, evenly from the first to the last.
fn evenly<T: Copy>(all: &[T], limit: usize) -> Vec<T> {
    let n = all.len();
    if n <= limit {
        return all.to_vec();
    }
    (0..limit).map(|k| all[(2 * k + 1) * n / (2 * limit)]).collect()
}

/// Rows of a group that may be what is asked for, the shortest first.
fn matching_rows(chunk: &OpenChunk, query: &HalfQuery, group: i64) -> Result<Vec<i64>, StoreError> {
    let name = |name: &String| Ok::<_, StoreError>(name_id(chunk, Some(name))?.unwrap_or(-1));
    let (service, operation) = (name(&query.service)?, name(&query.operation)?);
    let (sides, client) = (Bits::SIDES, Bits::CLIENT);
    let side = match query.side {
        Side::Server => format!("service = {service} AND bits & {} <> 0", Bits::SERVER),
        Side::Client => format!("bits & {client} <> 0 AND (bits & {sides} = {sides} OR service = {service})"),
    };
    let sql = format!(
        "SELECT id FROM spans INDEXED BY spans_by_duration
         WHERE grp = ?1 AND dur >= ?2 AND start >= ?3 AND start <= ?4 AND operation = {operation} AND {side}
         ORDER BY dur"
    );
    let read = || -> rusqlite::Result<Vec<i64>> {
        let shortest = query.min_duration_ns.map_or(0, stored_duration);
        let window = [query.since_unix_ns, query.until_unix_ns.saturating_sub(1)];
        let [since, until] = window.map(|time_ns| relative_ns(chunk.base_ns, time_ns));
        let mut select = chunk.connection.prepare(&sql)?;
        select.query_map((group, shortest, since, until), |row| row.get(0))?.collect()
    };
    read().map_err(|error| sqlite_error(&chunk.path, error))
}

#[cfg(test)]
mod tests {
    use super::{evenly, spread};

    #[test]
    fn few_of_many_are_taken_from_all_of_them() {
        assert_eq!(evenly(&(0..100).collect::<Vec<_>>(), 4), [12, 37, 62, 87]);
        assert_eq!(evenly(&[1, 2], 4), [1, 2]);
    }

    #[test]
    fn the_first_of_a_spread_are_far_apart_and_all_come_once() {
        for n in [1, 2, 3, 7, 32, 100, 610] {
            let mut all: Vec<usize> = spread(n).collect();
            let mut first: Vec<usize> = all.iter().copied().take(10).collect();
            first.sort_unstable();
            let gap = first.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(gap <= n.div_ceil(4).max(1), "{n}: {first:?}");
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
        assert_eq!(spread(0).count(), 0);
    }
}
