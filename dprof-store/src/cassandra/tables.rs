//! The tables, as CQL. Keys and why they are so are in docs/cassandra.md.
//!
//! What a reader would get wrong: nothing but `dprof-cli store` makes or changes tables (concurrent DDL by many
//! agents is a race), and a TTL counts from the *write*, not from the time of the span.

use super::admin::InitOptions;

/// Version of the tables, in `schema_info`. Newer ones are refused.
pub(crate) const SCHEMA_VERSION: i64 = 2;

/// Seconds of one partition of `service_span_name_index`: 10,000 RPCs a second make 17 MB of one.
pub(crate) const INDEX_BUCKET_S: u64 = 60;
/// Seconds of one window of `duration_index`.
pub(crate) const DURATION_BUCKET_S: u64 = 600;
/// Seconds of one partition of the rollups.
pub(crate) const ROLLUP_BUCKET_S: u64 = 3600;
/// Seconds of a day: names and the list of buckets.
pub(crate) const DAY_S: u64 = 86_400;

/// `time_buckets.kind`: days of the index (period 0), its minutes (period = day), hours of rollups (period 0).
pub(crate) const KIND_DAYS: i8 = 0;
pub(crate) const KIND_MINUTES: i8 = 1;
pub(crate) const KIND_HOURS: i8 = 2;

/// `piece` of the row that only says that a run has rollups in an hour.
pub(crate) const PIECE_MARK: i16 = -1;

/// The bucket of a time: whole periods since the epoch. The one place that cuts time into partitions.
pub(crate) fn bucket(time_ns: u64, period_s: u64) -> i32 {
    i32::try_from(time_ns / 1_000_000_000 / period_s).unwrap_or(i32::MAX)
}

/// Start of a bucket, nanoseconds since the epoch.
pub(crate) fn bucket_start_ns(bucket: i32, period_s: u64) -> u64 {
    u64::try_from(bucket).unwrap_or(0).saturating_mul(period_s).saturating_mul(1_000_000_000)
}

/// How long a table's rows live and how they are compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// As long as spans.
    Spans,
    /// As long as minutes of rollups.
    Minutes,
    /// As long as hours of rollups.
    Hours,
    /// As long as the longest of these: small tables that are written again and again.
    Names,
    /// For ever.
    Ever,
}

/// A table: its name, its columns with the primary key, and how long its rows live.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static str,
    pub(crate) clustering: &'static str,
    pub(crate) life: Life,
}

/// Every table.
pub(crate) const TABLES: [Table; 11] = [
    Table {
        name: "traces",
        columns: "trace_id blob, part smallint, run_id uuid, seq bigint, start_ns bigint, span_count int, flags int, \
                  spans blob, PRIMARY KEY ((trace_id, part), run_id, seq)",
        clustering: "",
        life: Life::Spans,
    },
    Table {
        name: "service_span_name_index",
        columns: "bucket int, shard smallint, service text, run_id uuid, seq bigint, names frozen<set<text>>, n int, \
                  packed blob, PRIMARY KEY ((bucket, shard), service, run_id, seq)",
        clustering: "",
        life: Life::Spans,
    },
    Table {
        name: "duration_index",
        columns: "service text, name text, level tinyint, bucket int, which tinyint, shard smallint, \
                  duration_ns bigint, start_ns bigint, trace_id blob, span_id bigint, kind tinyint, status tinyint, \
                  peer text, run_id uuid, floor_ns bigint, \
                  PRIMARY KEY ((service, name, level, bucket, which, shard), duration_ns, span_id, run_id)",
        clustering: "CLUSTERING ORDER BY (duration_ns DESC, span_id ASC, run_id ASC) AND ",
        life: Life::Spans,
    },
    Table {
        name: "service_names",
        columns: "day int, service text, PRIMARY KEY ((day), service)",
        clustering: "",
        life: Life::Names,
    },
    Table {
        name: "span_names",
        columns: "day int, service text, kind tinyint, name text, PRIMARY KEY ((day, service), kind, name)",
        clustering: "",
        life: Life::Names,
    },
    Table {
        name: "time_buckets",
        columns: "kind tinyint, period int, bucket int, PRIMARY KEY ((kind, period), bucket)",
        clustering: "",
        life: Life::Names,
    },
    Table {
        name: "latency_rollup_60",
        columns: "bucket int, run_id uuid, seq bigint, rollups blob, PRIMARY KEY ((bucket, run_id), seq)",
        clustering: "",
        life: Life::Minutes,
    },
    Table {
        name: "latency_rollup_3600",
        columns: "bucket int, run_id uuid, piece smallint, from_seq bigint, through_seq bigint, rollups blob, \
                  PRIMARY KEY ((bucket), run_id, piece)",
        clustering: "",
        life: Life::Hours,
    },
    Table {
        name: "dependencies",
        columns: "bucket int, run_id uuid, seq bigint, edges blob, PRIMARY KEY ((bucket, run_id), seq)",
        clustering: "",
        life: Life::Spans,
    },
    Table {
        name: "agents",
        columns: "region text, run_id uuid, host text, labels frozen<map<text, text>>, version text, kernel text, \
                  backend text, started_ns bigint, PRIMARY KEY ((region), run_id)",
        clustering: "",
        life: Life::Names,
    },
    Table { name: "schema_info", columns: "k text PRIMARY KEY, v text", clustering: "", life: Life::Ever },
];

/// Windows over a table's life: one file per finished window, dropped whole when it has expired. Cassandra's
/// documentation advises 20 to 30.
const WINDOWS: u64 = 28;

impl Table {
    /// Seconds until a row expires; 0 = never.
    pub(crate) fn ttl_s(&self, options: &InitOptions) -> u64 {
        match self.life {
            Life::Spans => options.ttl_s,
            Life::Minutes => options.ttl_minutes_s,
            Life::Hours => options.ttl_hours_s,
            // A day more: a row that is written once a day covers the day's end.
            Life::Names => options.ttl_s.max(options.ttl_minutes_s).max(options.ttl_hours_s) + DAY_S,
            Life::Ever => 0,
        }
    }

    /// What follows `WITH`, and what `ALTER TABLE` sets anew.
    pub(crate) fn with(&self, options: &InitOptions) -> String {
        let ttl_s = self.ttl_s(options);
        let compaction = if matches!(self.life, Life::Names | Life::Ever) {
            // Small, and the same rows again and again.
            "{'class': 'LeveledCompactionStrategy'}".to_owned()
        } else {
            // A read that repaired would put old cells into new files, which then cannot be dropped.
            let minutes = (ttl_s / WINDOWS / 60).max(1);
            let (unit, size) = if minutes >= 60 { ("HOURS", minutes / 60) } else { ("MINUTES", minutes) };
            format!(
                "{{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': '{unit}', \
                 'compaction_window_size': '{size}'}} AND read_repair = 'NONE'"
            )
        };
        let compression = &options.compression;
        format!(
            "default_time_to_live = {ttl_s} AND gc_grace_seconds = {GC_GRACE_S} AND compression = {compression} AND \
             compaction = {compaction}"
        )
    }

    /// Makes the table unless it is there.
    pub(crate) fn create(&self, keyspace: &str, options: &InitOptions) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.{} ({}) WITH {}{}",
            self.name,
            self.columns,
            self.clustering,
            self.with(options)
        )
    }

    /// Sets life and compaction anew.
    pub(crate) fn alter(&self, keyspace: &str, options: &InitOptions) -> String {
        format!("ALTER TABLE {keyspace}.{} WITH {}", self.name, self.with(options))
    }
}

/// Nothing is ever deleted, so this bounds only how long hints for a dead node are kept: three hours, as in
/// Cassandra's own default for hints.
const GC_GRACE_S: u64 = 10_800;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_window(ttl_s: u64, expected: &str) {
        let options = InitOptions { ttl_s, ..InitOptions::default() };
        let with = TABLES[0].with(&options);
        assert!(with.contains(expected), "{with}");
        assert!(with.contains(&format!("default_time_to_live = {ttl_s} ")), "{with}");
    }

    #[test]
    fn windows_are_a_twenty_eighth_of_the_life() {
        check_window(7 * DAY_S, "'compaction_window_unit': 'HOURS', 'compaction_window_size': '6'");
        check_window(28 * DAY_S, "'compaction_window_unit': 'HOURS', 'compaction_window_size': '24'");
        check_window(3600, "'compaction_window_unit': 'MINUTES', 'compaction_window_size': '2'");
        check_window(60, "'compaction_window_unit': 'MINUTES', 'compaction_window_size': '1'");
    }

    #[test]
    fn buckets_are_whole_periods_since_the_epoch() {
        for (time_ns, period_s, expected) in [
            (0, 60, 0),
            (59_999_999_999, 60, 0),
            (60_000_000_000, 60, 1),
            (1_700_000_000_000_000_000, DAY_S, 19_675),
            (u64::MAX, 60, 307_445_734),
        ] {
            assert_eq!(bucket(time_ns, period_s), expected, "{time_ns}");
            assert!(bucket_start_ns(expected, period_s) <= time_ns);
        }
    }
}
