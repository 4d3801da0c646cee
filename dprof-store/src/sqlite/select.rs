//! Spans by filter and order: the best `limit` of all chunks without reading all rows.
//!
//! The problem: a filter is about the *merged* span, a row may hold one half. The caller's row knows the duration
//! and start of an RPC but not the service that served it; the server's row the other way round; they lie in
//! different chunks of different runs. A join of everything would be right and slow.
//!
//! The idea: rank rows as they are, best groups first, stopping where no row can be better (each group and chunk
//! knows its shortest, longest, earliest, latest). The filter on a row is exact where the row can tell and lets
//! pass where it cannot. Then complete the best rows, look again at the merged spans, and accept those that
//! still rank above everything that was not looked at. If too few are left, take as many more as the share of those
//! accepted calls for. A merged span's rank is that of one of its rows (the one with the client half, else the
//! server's), so nothing is missed.
//!
//! Where most rows have one half and a filter concerns the other, that loop would look at everything, one by one;
//! so when that takes too many rounds the one-sided rows of the window are loaded as a sorted table ([`Partners`]).
//! Whatever was given up for bounded memory is said in a warning.

use std::collections::BTreeMap;

use dprof_common::model::{Side, Span, SpanId};
use rusqlite::OptionalExtension;
use rusqlite::types::Value;
use rustc_hash::FxHashMap;

use super::chunk::sqlite_error;
use super::partners::{Partners, load_partners};
use super::session::{KEYS_MAX, OpenChunk, RawRow, SPAN_COLUMNS, Session, merge_rows};
use super::summary::Zone;
use crate::schema::{Bits, relative_ns, stored_duration};
use crate::{Order, SpanQuery, StoreError};

/// Rows looked at beyond those asked for, in the first round, where rows may turn out not to be asked for.
const SLACK: usize = 16;
/// Up to this many one-sided rows are completed by looking each up (0.1 ms); more by [`Partners`] (0.2 to 0.8 s per
/// million one-sided rows)…
const LOOKUPS_MAX: usize = 1024;
/// … where that is dearer than reading so many one-sided rows for each.
const ROWS_PER_LOOKUP: usize = 256;
/// Each round looks at up to so many times the rows of the last.
const WIDER_MAX: usize = 4;
/// Candidates looked at one by one at most, or 4 times those asked for.
const CAPACITY_MAX: usize = 20_000;

/// Smaller is better; ties go by span id.
type Rank = (u64, SpanId);

/// The rank of a span: the order's key, then its id.
pub(crate) fn rank(order: Order, start_ns: u64, duration_ns: u64, span_id: SpanId) -> Rank {
    let key = match order {
        Order::Slowest => !duration_ns,
        Order::Fastest => duration_ns,
        Order::Newest => !start_ns,
    };
    (key, span_id)
}

/// The best key that a row of a zone can have.
fn best_key(order: Order, zone: &Zone) -> u64 {
    match order {
        Order::Slowest => !zone.dur_max,
        Order::Fastest => zone.dur_min,
        Order::Newest => !zone.start_max,
    }
}

/// Whether a merged span is asked for.
pub(crate) fn matches(query: &SpanQuery, span: &Span) -> bool {
    let start_ns = span.start_ns();
    let status = |wanted| span.client.iter().chain(span.server.iter()).any(|half| half.status == wanted);
    start_ns >= query.since_unix_ns
        && start_ns < query.until_unix_ns
        && query.min_duration_ns.is_none_or(|min| span.duration_ns() >= min)
        && query.kind.is_none_or(|kind| span.kind() == kind)
        && query.status.is_none_or(status)
        && !(query.roots_only && span.link.is_some())
        && span.nearest().is_some_and(|half| {
            query.service.as_ref().is_none_or(|service| *service == half.process.service)
                && query.operation.as_ref().is_none_or(|operation| *operation == half.operation)
        })
}

pub(crate) fn may_match(query: &SpanQuery, zone: &Zone) -> bool {
    zone.n_spans > 0
        && zone.start_min < query.until_unix_ns
        && zone.start_max >= query.since_unix_ns
        && query.min_duration_ns.is_none_or(|min| zone.dur_max >= min)
}

/// Where a row is.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    chunk: usize,
    row: i64,
    bits: Bits,
}

/// The best rows so far, one per span.
struct Top {
    capacity: usize,
    rows: BTreeMap<Rank, Candidate>,
    keys: FxHashMap<SpanId, u64>,
    /// The best rank that was passed over: what ranks below it is not complete.
    passed_over: Option<Rank>,
}

impl Top {
    fn new(capacity: usize) -> Self {
        Self { capacity, rows: BTreeMap::new(), keys: FxHashMap::default(), passed_over: None }
    }

    /// The worst key that still helps, once there are enough rows.
    fn threshold(&self) -> Option<u64> {
        if self.rows.len() < self.capacity {
            return None;
        }
        Some(self.rows.last_key_value().map_or(0, |(rank, _)| rank.0))
    }

    fn pass_over(&mut self, rank: Rank) {
        self.passed_over = Some(self.passed_over.map_or(rank, |best| best.min(rank)));
    }

    /// Whether nothing with this key or a worse one helps; if so, that is noted.
    fn is_beyond(&mut self, key: u64) -> bool {
        let beyond = self.threshold().is_some_and(|threshold| key > threshold);
        if beyond {
            self.pass_over((key, SpanId(0)));
        }
        beyond
    }

    fn offer(&mut self, rank: Rank, candidate: Candidate) {
        if let Some(&key) = self.keys.get(&rank.1) {
            let known = self.rows[&(key, rank.1)];
            let (known_client, client) =
                (known.bits.0 & Bits::CLIENT != 0, candidate.bits.0 & Bits::CLIENT != 0);
            // The client's times are the span's; between equals the better rank, so that order does not matter.
            if known_client != client && known_client || known_client == client && key <= rank.0 {
                return;
            }
            self.rows.remove(&(key, rank.1));
        }
        self.rows.insert(rank, candidate);
        self.keys.insert(rank.1, rank.0);
        if self.rows.len() > self.capacity
            && let Some((worst, _)) = self.rows.pop_last()
        {
            self.keys.remove(&worst.1);
            self.pass_over(worst);
        }
    }
}

/// What a scan sees of a row.
pub(crate) struct RowView {
    pub(crate) span_id: SpanId,
    pub(crate) bits: Bits,
    pub(crate) named: bool,
}

/// The spans asked for, merged, in order.
pub(crate) fn select(session: &mut Session, query: &SpanQuery) -> Result<Vec<Span>, StoreError> {
    if query.limit == 0 {
        return Ok(Vec::new());
    }
    let mut all = Zone::EMPTY;
    for idx in 0..session.chunks.len() {
        if let Some(zone) = session.zone(idx)? {
            all.merge(&zone);
        }
    }
    // Only then can a row lack a half that another row has.
    let joinable = all.clients > 0 && all.servers > 0;
    // Where all rows are of one kind, no other row knows more.
    let uniform = [all.clients, all.servers].contains(&all.n_spans) || all.clients + all.servers == 0;
    let lookups_max = LOOKUPS_MAX.max((all.clients + all.servers) as usize / ROWS_PER_LOOKUP);
    let mut partners: Option<Partners> = None;
    let mut partners_tried = false;
    let mut known: FxHashMap<SpanId, Option<Span>> = FxHashMap::default();
    let mut capacity = query.limit.saturating_add(if uniform { 0 } else { SLACK });
    loop {
        let top = scan(session, query, joinable, partners.as_ref(), capacity)?;
        let one_sided = top
            .rows
            .iter()
            .filter(|(rank, row)| row.bits.sides() != Bits::SIDES && !known.contains_key(&rank.1));
        if joinable && !partners_tried && one_sided.count() > lookups_max {
            partners_tried = true;
            partners = load_partners(session, query)?;
            if partners.is_some() {
                continue;
            }
        }
        complete(session, query, uniform, partners.as_ref(), &top, &mut known)?;
        let mut ranks: Vec<Rank> = top
            .rows
            .keys()
            .filter_map(|(_, span_id)| known.get(span_id)?.as_ref())
            .map(|span| rank(query.order, span.start_ns(), span.duration_ns(), span.span_id))
            .filter(|rank| top.passed_over.is_none_or(|passed_over| *rank < passed_over))
            .collect();
        let all_seen = top.passed_over.is_none() || ranks.len() >= query.limit;
        if all_seen || capacity >= CAPACITY_MAX.max(query.limit.saturating_mul(4)) {
            if !all_seen {
                session.warn(format!(
                    "only the first {} are certain: ask for a shorter time or with fewer filters",
                    ranks.len()
                ));
            }
            ranks.sort_unstable();
            ranks.truncate(query.limit);
            return Ok(ranks.iter().filter_map(|(_, span_id)| known.remove(span_id)?).collect());
        }
        capacity = wider(capacity, ranks.len(), query.limit);
    }
}

/// How many rows to look at next, where of `capacity` rows `accepted` were asked for.
fn wider(capacity: usize, accepted: usize, limit: usize) -> usize {
    // Half as many again as the share says: the next rows need not be like these.
    let called_for = capacity.saturating_mul(limit) / accepted.max(1) / 2 * 3;
    called_for.clamp(capacity.saturating_mul(2), capacity.saturating_mul(WIDER_MAX))
}

/// The best rows of all chunks.
fn scan(
    session: &mut Session,
    query: &SpanQuery,
    joinable: bool,
    partners: Option<&Partners>,
    capacity: usize,
) -> Result<Top, StoreError> {
    let mut order: Vec<(u64, usize)> = Vec::new();
    for idx in 0..session.chunks.len() {
        if let Some(zone) = session.zone(idx)?.filter(|zone| may_match(query, zone)) {
            order.push((best_key(query.order, &zone), idx));
        }
    }
    order.sort_unstable();
    let mut top = Top::new(capacity);
    for (key, idx) in order {
        if top.is_beyond(key) {
            break;
        }
        session.with(idx, |chunk| scan_chunk(chunk, idx, query, joinable, partners, &mut top))?;
    }
    Ok(top)
}

/// The number of a name in a chunk; -1, which no row has, if the chunk lacks it.
pub(crate) fn name_id(chunk: &OpenChunk, name: Option<&String>) -> Result<Option<i64>, StoreError> {
    name.map(|name| {
        chunk
            .connection
            .prepare_cached("SELECT id FROM texts WHERE text = ?1")
            .and_then(|mut select| select.query_row([name], |row| row.get(0)).optional())
            .map(|id| id.unwrap_or(-1))
            .map_err(|error| sqlite_error(&chunk.path, error))
    })
    .transpose()
}

/// The filter as SQL on the columns of `spans_by_duration`.
struct Conditions {
    sql: String,
    values: Vec<Value>,
    service: Option<i64>,
    operation: Option<i64>,
}

fn conditions(chunk: &OpenChunk, query: &SpanQuery, joinable: bool) -> Result<Conditions, StoreError> {
    let service = name_id(chunk, query.service.as_ref())?;
    let operation = name_id(chunk, query.operation.as_ref())?;
    let mut exact = vec!["1".to_owned()];
    let mut named = vec!["1".to_owned()];
    named.extend(service.map(|id| format!("service = {id}")));
    named.extend(operation.map(|id| format!("operation = {id}")));
    exact.extend(named.iter().cloned());
    exact.extend(query.kind.map(|kind| match kind {
        Side::Client => format!("bits & {} = {}", Bits::SIDES, Bits::CLIENT),
        Side::Server => format!("bits & {} <> 0", Bits::SERVER),
    }));
    exact.extend(query.status.map(|status| {
        format!(
            "((bits >> {}) & 15 = {status} OR (bits >> {}) & 15 = {status})",
            Bits::CLIENT_STATUS_SHIFT,
            Bits::SERVER_STATUS_SHIFT,
            status = status as u8,
        )
    }));
    let mut filter = exact.join(" AND ");
    if joinable && exact.len() > 1 {
        // A client's row does not know who served it, a server's row not how it ended at the client.
        let sides = Bits::SIDES;
        filter = format!(
            "({filter} OR bits & {sides} = {} OR (bits & {sides} = {} AND {}))",
            Bits::CLIENT,
            Bits::SERVER,
            named.join(" AND ")
        );
    }
    if query.roots_only {
        filter = format!("{filter} AND bits & {} = 0", Bits::LINKED);
    }
    let values = vec![
        Value::Integer(relative_ns(chunk.base_ns, query.since_unix_ns)),
        Value::Integer(relative_ns(chunk.base_ns, query.until_unix_ns)),
    ];
    // `until` is exclusive, but a start that does not fit is stored as the largest number.
    let until = if query.until_unix_ns == u64::MAX { "<=" } else { "<" };
    Ok(Conditions {
        sql: format!("start >= ?4 AND start {until} ?5 AND {filter}"),
        values,
        service,
        operation,
    })
}

fn scan_chunk(
    chunk: &mut OpenChunk,
    idx: usize,
    query: &SpanQuery,
    joinable: bool,
    partners: Option<&Partners>,
    top: &mut Top,
) -> Result<(), StoreError> {
    let conditions = conditions(chunk, query, joinable)?;
    let direction = match query.order {
        Order::Slowest => "ORDER BY dur DESC",
        Order::Fastest => "ORDER BY dur",
        Order::Newest => "",
    };
    let sql = format!(
        "SELECT id, dur, start, bits, span_id, service, operation FROM spans INDEXED BY spans_by_duration
         WHERE grp = ?1 AND dur >= ?2 AND dur <= ?3 AND {} {direction}",
        conditions.sql
    );
    let mut groups: Vec<(u64, i64)> = chunk
        .groups
        .iter()
        .filter(|(_, zone)| may_match(query, zone))
        .map(|(group, zone)| (best_key(query.order, zone), *group))
        .collect();
    groups.sort_unstable();
    let scan = || -> rusqlite::Result<()> {
        let mut select = chunk.connection.prepare_cached(&sql)?;
        for (key, group) in groups {
            if top.is_beyond(key) {
                break;
            }
            // What is already too bad need not be read: said to SQLite as bounds.
            let mut dur = (query.min_duration_ns.map_or(0, stored_duration), i64::MAX);
            let mut since = conditions.values[0].clone();
            if let Some(threshold) = top.threshold() {
                match query.order {
                    Order::Slowest => dur.0 = dur.0.max(stored_duration(!threshold)),
                    Order::Fastest => dur.1 = stored_duration(threshold),
                    Order::Newest => {
                        let later = relative_ns(chunk.base_ns, (!threshold).max(query.since_unix_ns));
                        since = Value::Integer(later);
                    }
                }
                top.pass_over((threshold.saturating_add(1), SpanId(0)));
            }
            let mut rows = select.query((group, dur.0, dur.1, since, conditions.values[1].clone()))?;
            while let Some(row) = rows.next()? {
                let duration_ns = row.get::<_, i64>(1)? as u64;
                let start_ns = chunk.base_ns.saturating_add_signed(row.get(2)?);
                let span_id = SpanId(row.get::<_, i64>(4)? as u64);
                let row_rank = rank(query.order, start_ns, duration_ns, span_id);
                if top.is_beyond(row_rank.0) {
                    if query.order == Order::Newest {
                        continue;
                    }
                    break;
                }
                let bits = Bits(row.get(3)?);
                if let Some(partners) = partners.filter(|_| bits.sides() != Bits::SIDES) {
                    let named = conditions.service.is_none_or(|id| row.get(5) == Ok(id))
                        && conditions.operation.is_none_or(|id| row.get(6) == Ok(id));
                    if !partners.keep(query, &RowView { span_id, bits, named }) {
                        continue;
                    }
                }
                top.offer(row_rank, Candidate { chunk: idx, row: row.get(0)?, bits });
            }
        }
        Ok(())
    };
    scan().map_err(|error| sqlite_error(&chunk.path, error))
}

/// Loads those candidates that are not `known` yet, with all that other rows know of them; `None` for spans that
/// after all are not asked for.
fn complete(
    session: &mut Session,
    query: &SpanQuery,
    uniform: bool,
    partners: Option<&Partners>,
    top: &Top,
    known: &mut FxHashMap<SpanId, Option<Span>>,
) -> Result<(), StoreError> {
    let mut wanted: Vec<(usize, i64)> = Vec::new();
    let mut lookups: Vec<SpanId> = Vec::new();
    for ((_, span_id), candidate) in &top.rows {
        if known.contains_key(span_id) {
            continue;
        }
        let one_sided = candidate.bits.sides() != Bits::SIDES;
        let partners = partners.filter(|_| one_sided);
        // Also a whole row may be a fragment's while its trace is known elsewhere.
        let is_part = (one_sided && !uniform) || candidate.bits.0 & Bits::FRAGMENT != 0;
        if partners.is_none() && is_part {
            // Finds the candidate itself, too.
            lookups.push(*span_id);
            continue;
        }
        wanted.push((candidate.chunk, candidate.row));
        if let Some(partners) = partners {
            let halves = partners.of(*span_id).iter();
            wanted.extend(halves.map(|partner| (partner.chunk as usize, i64::from(partner.row))));
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    let mut rows: FxHashMap<SpanId, Vec<Span>> = FxHashMap::default();
    for of_chunk in wanted.chunk_by(|a, b| a.0 == b.0) {
        for few in of_chunk.chunks(KEYS_MAX) {
            for span in load_rows(session, of_chunk[0].0, few)? {
                rows.entry(span.span_id).or_default().push(span);
            }
        }
    }
    for (span_id, found) in session.rows_of_spans(&lookups)? {
        rows.entry(span_id).or_default().extend(found);
    }
    known.extend(rows.into_iter().map(|(span_id, rows)| {
        let span = merge_rows(rows).filter(|span| matches(query, span));
        (span_id, span)
    }));
    Ok(())
}

fn load_rows(session: &mut Session, idx: usize, rows: &[(usize, i64)]) -> Result<Vec<Span>, StoreError> {
    let sql = format!("SELECT {SPAN_COLUMNS} FROM spans s WHERE id = ?1");
    let unpacked = session.with_short(idx, |chunk| {
        let mut raw = Vec::with_capacity(rows.len());
        let mut load = || -> rusqlite::Result<()> {
            let mut select = chunk.connection.prepare_cached(&sql)?;
            for (_, id) in rows {
                raw.extend(select.query_row([id], RawRow::read).optional()?);
            }
            Ok(())
        };
        load().map_err(|error| sqlite_error(&chunk.path, error))?;
        Ok(raw.iter().map(|row| chunk.span_of(row)).collect::<Vec<_>>())
    })?;
    session.take_spans(idx, unpacked.unwrap_or_default())
}
