//! The asker's end: each question lists the store anew, opens what it needs, and lets go of it again.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use dprof_common::model::{KeyStats, Rollup, RollupKey, RunId, Side, Sketch, Span, SpanId, TraceId};

use super::chunk::sqlite_error;
use super::names::ReadError;
use super::run::list_runs;
use super::sample::sample;
use super::select::select;
use super::session::{OpenChunk, Session};
use super::stitch::{climb, trace_of, whole_trace, whole_traces};
use crate::{Answer, HalfQuery, Reader, RollupQuery, RunEdge, RunInfo, SpanPlace, SpanQuery, StoreError};

/// Rollups read in one transaction.
const ROLLUP_PAGE: i64 = 2000;

/// Reads an embedded store.
pub(crate) struct SqliteReader {
    dir: PathBuf,
    n_opened: Arc<AtomicU64>,
}

impl SqliteReader {
    /// Checks that there is a store.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let (runs, warnings) = list_runs(dir)?;
        if runs.is_empty() && warnings.is_empty() {
            return Err(StoreError::NotFound(dir.display().to_string()));
        }
        Ok(Self { dir: dir.to_owned(), n_opened: Arc::default() })
    }

    /// Chunks opened by all questions so far.
    #[cfg(test)]
    pub(crate) fn n_opened(&self) -> u64 {
        self.n_opened.load(Ordering::Relaxed)
    }

    /// Runs `ask` off the asynchronous threads, if there are any.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Session) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<(T, Vec<String>), StoreError> {
        let dir = self.dir.clone();
        let n_opened = Arc::clone(&self.n_opened);
        let work = move || {
            let mut session = Session::begin(&dir)?;
            let answer = ask(&mut session);
            n_opened.fetch_add(session.n_opened, Ordering::Relaxed);
            Ok((answer?, session.finish()))
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime
                .spawn_blocking(work)
                .await
                .map_err(|error| StoreError::Other(anyhow::Error::new(error).context("reading the store")))?,
            Err(_) => work(),
        }
    }
}

#[async_trait]
impl Reader for SqliteReader {
    async fn spans(&self, query: &SpanQuery) -> Result<Answer<Span>, StoreError> {
        let query = query.clone();
        let (rows, warnings) = self.ask(move |session| select(session, &query)).await?;
        Ok(Answer { rows, warnings })
    }

    async fn trace(&self, trace_id: TraceId) -> Result<Answer<Span>, StoreError> {
        let (rows, warnings) = self.ask(move |session| whole_trace(session, trace_id)).await?;
        Ok(Answer { rows, warnings })
    }

    async fn traces(&self, ids: &[TraceId], spans_max: usize) -> Result<Answer<Vec<Span>>, StoreError> {
        let ids = ids.to_vec();
        let (rows, warnings) = self.ask(move |session| whole_traces(session, &ids, spans_max)).await?;
        Ok(Answer { rows, warnings })
    }

    async fn sample(&self, query: &HalfQuery) -> Result<Answer<SpanPlace>, StoreError> {
        let query = query.clone();
        let (rows, warnings) = self.ask(move |session| sample(session, &query)).await?;
        Ok(Answer { rows, warnings })
    }

    async fn trace_of_span(&self, span_id: SpanId) -> Result<Option<TraceId>, StoreError> {
        Ok(self.ask(move |session| trace_of(session, span_id)).await?.0)
    }

    async fn traces_with_prefix(&self, prefix: &str, limit: usize) -> Result<Vec<TraceId>, StoreError> {
        let prefix = prefix.to_ascii_lowercase();
        Ok(self.ask(move |session| with_prefix(session, &prefix, limit)).await?.0)
    }

    async fn rollups(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        let query = query.clone();
        let (rows, warnings) = self.ask(move |session| rollups(session, &query)).await?;
        Ok(Answer { rows, warnings })
    }

    async fn edges(&self, since_unix_ns: u64, until_unix_ns: u64) -> Result<Answer<RunEdge>, StoreError> {
        let (rows, warnings) =
            self.ask(move |session| super::edges::edges(session, since_unix_ns, until_unix_ns)).await?;
        Ok(Answer { rows, warnings })
    }

    async fn runs(&self) -> Result<Vec<RunInfo>, StoreError> {
        Ok(list_runs(&self.dir)?.0.into_iter().map(|run| run.info).collect())
    }
}

/// Ids between `from` and `to`, both included, on one half of the id with the other fixed or free.
struct IdRange {
    index: &'static str,
    column: &'static str,
    from: u64,
    to: u64,
    /// The upper half must be this.
    high: Option<u64>,
    /// The lower half must lie between these.
    low: Option<(u64, u64)>,
}

/// The numbers whose first `digits` hexadecimal digits of `of` are those of `value`.
fn prefix_range(value: u64, digits: usize, of: usize) -> (u64, u64) {
    let free_bits = 4 * (of - digits);
    if free_bits >= 64 {
        return (0, u64::MAX);
    }
    (value << free_bits, (value << free_bits) | ((1 << free_bits) - 1))
}

fn prefix_ranges(prefix: &str) -> Vec<IdRange> {
    let digits = prefix.len();
    if !(1..=32).contains(&digits) || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Vec::new();
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("at most 16 digits, checked above");
    let low = |from, to, high| IdRange {
        index: "spans_by_trace",
        column: "trace_lo",
        from,
        to,
        high: Some(high),
        low: None,
    };
    // The index leaves out zero.
    let adopted =
        |from, to, low| IdRange { index: "spans_by_adopted", column: "trace_hi", from, to, high: None, low };
    let mut ranges = Vec::new();
    if digits >= 16 {
        let high = hex(&prefix[..16]);
        let below = (digits > 16).then(|| prefix_range(hex(&prefix[16..]), digits - 16, 16));
        ranges.push(if high == 0 {
            let (from, to) = below.unwrap_or((0, u64::MAX));
            low(from, to, 0)
        } else {
            adopted(high, high, below)
        });
    } else {
        let (from, to) = prefix_range(hex(prefix), digits, 16);
        if from == 0 {
            ranges.push(low(0, u64::MAX, 0));
        }
        ranges.push(adopted(from, to, None));
    }
    if digits <= 16 {
        let (from, to) = prefix_range(hex(prefix), digits, 16);
        ranges.push(low(from, to, 0));
    }
    ranges
}

/// Trace ids with a prefix, smallest first; fragments count as the trace that they belong to only when asked by
/// their whole id.
fn with_prefix(session: &mut Session, prefix: &str, limit: usize) -> Result<Vec<TraceId>, StoreError> {
    let ranges = prefix_ranges(prefix);
    let whole: BTreeSet<TraceId> = if [16, 32].contains(&prefix.len()) {
        prefix.parse().ok().into_iter().collect()
    } else {
        BTreeSet::new()
    };
    if let Some(id) = whole.first().copied() {
        // A whole id: through the filters instead of every chunk.
        if !session.rows_of_traces(&[id].into_iter().collect(), 1)?.is_empty() {
            return Ok(vec![climb(session, id)?].into_iter().take(limit).collect());
        }
        if prefix.len() == 32 {
            return Ok(Vec::new());
        }
    }
    let mut found = BTreeSet::new();
    for idx in 0..session.chunks.len() {
        for range in &ranges {
            let ids = session.with(idx, |chunk| ids_in(chunk, range, limit))?;
            found.extend(ids.into_iter().flatten());
            while found.len() > limit {
                found.pop_last();
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn ids_in(chunk: &mut OpenChunk, range: &IdRange, limit: usize) -> Result<Vec<TraceId>, StoreError> {
    // Signed in the file: the upper half of the numbers comes as negative ones.
    const MIDDLE: u64 = 1 << 63;
    let IdRange { index, column, from, to, high, low } = *range;
    let sql = format!(
        "SELECT DISTINCT trace_hi, trace_lo FROM spans INDEXED BY {index}
         WHERE grp = ?1 AND {column} BETWEEN ?2 AND ?3 {} {} ORDER BY {column}, trace_lo LIMIT ?4",
        high.map_or("AND trace_hi <> 0".to_owned(), |high| format!("AND trace_hi = {}", high as i64)),
        // One digit more than the upper half's is known, so both ends have the same sign.
        low.map_or(String::new(), |(from, to)| {
            format!("AND trace_lo BETWEEN {} AND {}", from as i64, to as i64)
        }),
    );
    let read = || -> rusqlite::Result<Vec<TraceId>> {
        let mut ids = Vec::new();
        let mut select = chunk.connection.prepare_cached(&sql)?;
        for (group, _) in &chunk.groups {
            for (from, to) in [(from, to.min(MIDDLE - 1)), (from.max(MIDDLE), to)] {
                if from > to {
                    continue;
                }
                let mut rows = select.query((group, from as i64, to as i64, limit.min(1 << 30) as i64))?;
                while let Some(row) = rows.next()? {
                    let half = |at| row.get::<_, i64>(at).map(|n| u128::from(n as u64));
                    ids.push(TraceId(half(0)? << 64 | half(1)?));
                }
            }
        }
        Ok(ids)
    };
    read().map_err(|error| sqlite_error(&chunk.path, error))
}

fn rollups(session: &mut Session, query: &RollupQuery) -> Result<Vec<Rollup>, StoreError> {
    let since_s = query.since_unix_ns / 1_000_000_000 / 60 * 60;
    let until_s = query.until_unix_ns.div_ceil(1_000_000_000);
    let mut sums: HashMap<(RunId, RollupKey), Rollup> = HashMap::new();
    for idx in 0..session.chunks.len() {
        if let Some(summary) = session.summary(idx)
            && (summary.minute_min >= until_s || summary.minute_max < since_s)
        {
            continue;
        }
        let run_id = session.chunks[idx].run_id;
        let mut damaged = Vec::new();
        session.with(idx, |chunk| {
            damaged.clear();
            let mut after = 0;
            loop {
                let (rows, last) = rollup_page(chunk, query, (since_s, until_s), after)?;
                for row in rows {
                    match row {
                        Ok(rollup) => {
                            let key = (run_id, rollup.key.clone());
                            match sums.get_mut(&key) {
                                Some(sum) => sum.merge(&rollup),
                                None => {
                                    sums.insert(key, rollup);
                                }
                            }
                        }
                        Err(cause) => damaged.push(cause),
                    }
                }
                match last {
                    Some(last) => after = last,
                    None => return Ok(()),
                }
            }
        })?;
        for cause in &damaged {
            session.damaged_row(idx, cause);
        }
    }
    let mut rows: Vec<((RunId, RollupKey), Rollup)> = sums.into_iter().collect();
    rows.sort_by(|((run_a, key_a), _), ((run_b, key_b), _)| (key_a, run_a).cmp(&(key_b, run_b)));
    Ok(rows.into_iter().map(|(_, rollup)| rollup).collect())
}

/// Whether the chunk counts keys: those of before schema 2 need not. The version does not tell.
fn has_keys(connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM pragma_table_info('rollups') WHERE name = 'keys'")?.exists([])
}

/// Rollups after row `after`, and the row to go on from if there are more.
#[expect(clippy::type_complexity, reason = "one caller, next to it")]
fn rollup_page(
    chunk: &mut OpenChunk,
    query: &RollupQuery,
    (since_s, until_s): (u64, u64),
    after: i64,
) -> Result<(Vec<Result<Rollup, String>>, Option<i64>), StoreError> {
    let signed = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
    let mut raw = Vec::new();
    let mut read = || -> rusqlite::Result<()> {
        let keys = if has_keys(&chunk.connection)? { "keys" } else { "NULL" };
        let mut select = chunk.connection.prepare_cached(&format!(
            "SELECT id, minute, service, operation, side, protocol, count, errors, sum_ns, min_ns, max_ns,
                 request_bytes, response_bytes, sketch, {keys}
             FROM rollups WHERE id > ?1 AND minute >= ?2 AND minute < ?3
                 AND (?4 IS NULL OR service = (SELECT id FROM texts WHERE text = ?4))
                 AND (?5 IS NULL OR operation = (SELECT id FROM texts WHERE text = ?5))
             ORDER BY id LIMIT ?6",
        ))?;
        let mut rows = select.query((
            after,
            signed(since_s),
            signed(until_s),
            &query.service,
            &query.operation,
            ROLLUP_PAGE,
        ))?;
        while let Some(row) = rows.next()? {
            let number = |at| row.get::<_, i64>(at).map(|n| n as u64);
            raw.push((
                row.get::<_, i64>(0)?,
                number(1)?,
                [row.get::<_, u32>(2)?, row.get(3)?, row.get(5)?],
                row.get::<_, u8>(4)?,
                [number(6)?, number(7)?, number(8)?, number(9)?, number(10)?, number(11)?, number(12)?],
                (row.get::<_, Vec<u8>>(13)?, row.get::<_, Option<Vec<u8>>>(14)?),
            ));
        }
        Ok(())
    };
    read().map_err(|error| sqlite_error(&chunk.path, error))?;
    let more = (raw.len() as i64 == ROLLUP_PAGE).then(|| raw.last().map(|row| row.0)).flatten();
    let mut rollups = Vec::with_capacity(raw.len());
    for (_, minute_unix_s, [service, operation, protocol], side, numbers, (sketch, keys)) in raw {
        let mut name = |id| match chunk.text(id) {
            Ok(text) => Ok(Ok(text.as_ref().to_owned())),
            Err(ReadError::Row(error)) => Ok(Err(error.to_string())),
            Err(ReadError::Store(error)) => Err(error),
        };
        let (service, operation, protocol) = (name(service)?, name(operation)?, name(protocol)?);
        let [count, errors, sum_ns, min_ns, max_ns, request_bytes, response_bytes] = numbers;
        let rollup = || {
            let side = match side {
                1 => Side::Client,
                2 => Side::Server,
                _ => return Err("unknown side".to_owned()),
            };
            Ok(Rollup {
                key: RollupKey {
                    minute_unix_s,
                    service: service?,
                    operation: operation?,
                    side,
                    protocol: protocol?.into(),
                },
                count,
                errors,
                sum_ns,
                min_ns,
                max_ns,
                request_bytes,
                response_bytes,
                sketch: Sketch::decode(&sketch).map_err(|error| error.to_string())?,
                keys: match keys {
                    Some(keys) => Some(Box::new(KeyStats::decode(&keys).map_err(|error| error.to_string())?)),
                    None => None,
                },
            })
        };
        rollups.push(rollup());
    }
    Ok((rollups, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_ranges() {
        let shown = |prefix: &str| {
            prefix_ranges(prefix)
                .iter()
                .map(|r| {
                    let low = r.low.map_or(String::new(), |(from, to)| format!(" {from:x}..{to:x}"));
                    format!("{} {:x}..{:x} {:?}{low}", r.column, r.from, r.to, r.high)
                })
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert_eq!(
            shown("ab"),
            "trace_hi ab00000000000000..abffffffffffffff None; trace_lo ab00000000000000..abffffffffffffff Some(0)"
        );
        assert_eq!(
            shown("00"),
            "trace_lo 0..ffffffffffffffff Some(0); trace_hi 0..ffffffffffffff None; trace_lo 0..ffffffffffffff Some(0)"
        );
        assert_eq!(shown("00000000000000017"), "trace_hi 1..1 None 7000000000000000..7fffffffffffffff");
        assert_eq!(shown("00000000000000007"), "trace_lo 7000000000000000..7fffffffffffffff Some(0)");
        let ones = 0x1111_1111_1111_1111_u64;
        assert_eq!(shown(&"1".repeat(32)), format!("trace_hi {ones:x}..{ones:x} None {ones:x}..{ones:x}"));
        assert_eq!(
            shown(&"1".repeat(16)),
            format!("trace_hi {ones:x}..{ones:x} None; trace_lo {ones:x}..{ones:x} Some(0)")
        );
        for bad in ["", "xyz", "-1", &"1".repeat(33)] {
            assert_eq!(shown(bad), "", "{bad}");
        }
    }
}
