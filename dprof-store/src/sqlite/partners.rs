//! The one-sided rows of a window as a table sorted by span id, for questions whose filter concerns the other half.
//!
//! What a reader would get wrong: it holds which rows belong together and what the filter says of them, not the
//! rows. 24 bytes each, so that millions fit.

use dprof_common::model::{Side, SpanId};

use super::chunk::sqlite_error;
use super::select::{RowView, may_match, name_id};
use super::session::Session;
use super::summary::Zone;
use crate::schema::{Bits, GROUP_ROWS};
use crate::{SpanQuery, StoreError};

/// One-sided rows that [`Partners`] may hold: 24 bytes each, 96 MB.
const PARTNERS_MAX: usize = 4_000_000;
/// Clocks of two hosts may differ by this much and the halves of an RPC still meet in [`Partners`].
const SKEW_NS: u64 = 3600 * 1_000_000_000;

/// One-sided rows of the window, by span id.
pub(crate) struct Partners {
    rows: Vec<Partner>,
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct Partner {
    span_id: SpanId,
    pub(crate) row: u32,
    pub(crate) chunk: u32,
    bits: u16,
    /// Whether service and operation are those asked for.
    named: bool,
}

impl Partners {
    pub(crate) fn of(&self, span_id: SpanId) -> &[Partner] {
        let from = self.rows.partition_point(|partner| partner.span_id < span_id);
        let len = self.rows[from..].partition_point(|partner| partner.span_id == span_id);
        &self.rows[from..from + len]
    }

    /// Whether a one-sided row should stay a candidate, now that its other halves are known.
    pub(crate) fn keep(&self, query: &SpanQuery, row: &RowView) -> bool {
        let side_of = |partner: &&Partner| i64::from(partner.bits) & Bits::SIDES;
        let status = |bits: Bits| query.status.is_none_or(|status| bits.has_status(status));
        if row.bits.sides() == Bits::SERVER {
            // The caller's row stands for the span.
            return !self.of(row.span_id).iter().any(|partner| side_of(&partner) == Bits::CLIENT);
        }
        let mut servers =
            self.of(row.span_id).iter().filter(|partner| side_of(partner) == Bits::SERVER).peekable();
        if servers.peek().is_none() {
            return row.named && query.kind != Some(Side::Server) && status(row.bits);
        }
        query.kind != Some(Side::Client)
            && servers
                .any(|partner| partner.named && (status(row.bits) || status(Bits(i64::from(partner.bits)))))
    }
}

/// Loads the one-sided rows of the window; `None`, with a warning, if there are too many.
pub(crate) fn load_partners(
    session: &mut Session,
    query: &SpanQuery,
) -> Result<Option<Partners>, StoreError> {
    let window = SpanQuery {
        since_unix_ns: query.since_unix_ns.saturating_sub(SKEW_NS),
        until_unix_ns: query.until_unix_ns.saturating_add(SKEW_NS),
        min_duration_ns: None,
        ..query.clone()
    };
    let mut rows: Vec<Partner> = Vec::new();
    for idx in 0..session.chunks.len() {
        let one_sided = |zone: &Zone| zone.clients + zone.servers > 0 && may_match(&window, zone);
        if rows.len() > PARTNERS_MAX || !session.zone(idx)?.is_some_and(|zone| one_sided(&zone)) {
            continue;
        }
        session.with(idx, |chunk| {
            let service = name_id(chunk, query.service.as_ref())?;
            let operation = name_id(chunk, query.operation.as_ref())?;
            let mut load = || -> rusqlite::Result<()> {
                let mut select = chunk.connection.prepare_cached(
                    "SELECT id, span_id, bits, service, operation FROM spans
                     WHERE id >= ?1 AND id < ?2 AND bits & 3 <> 3",
                )?;
                for (group, _) in chunk.groups.iter().filter(|(_, zone)| one_sided(zone)) {
                    let mut found = select.query((group * GROUP_ROWS, (group + 1) * GROUP_ROWS))?;
                    while let Some(row) = found.next()? {
                        rows.push(Partner {
                            row: row.get(0)?,
                            span_id: SpanId(row.get::<_, i64>(1)? as u64),
                            chunk: idx as u32,
                            bits: row.get(2)?,
                            named: service.is_none_or(|id| row.get(3) == Ok(id))
                                && operation.is_none_or(|id| row.get(4) == Ok(id)),
                        });
                    }
                    if rows.len() > PARTNERS_MAX {
                        break;
                    }
                }
                Ok(())
            };
            load().map_err(|error| sqlite_error(&chunk.path, error))
        })?;
    }
    if rows.len() > PARTNERS_MAX {
        session.warn(format!(
            "more than {PARTNERS_MAX} RPCs of the window were seen from one end only: some may be missing, \
             ask for a shorter time"
        ));
        return Ok(None);
    }
    rows.sort_unstable_by_key(|partner| partner.span_id);
    Ok(Some(Partners { rows }))
}
