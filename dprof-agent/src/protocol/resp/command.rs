//! What is known of Redis commands: names of low cardinality, where the keys are, and what changes the state of
//! the connection. Positions as `COMMAND INFO` of Redis 7.0 to 8 and of Valkey 8 gives them.
//!
//! What a reader would get wrong: an argument is kept only where this table says that it is a key. Of a command
//! that is not here nothing but the name is kept.

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

use crate::protocol::hash::ContentHasher;

/// Longest command or subcommand name looked at, bytes: the longest known has 17 (`GEORADIUSBYMEMBER`), modules
/// come up to 25.
pub(super) const NAME_BYTES_MAX: usize = 32;

/// Where the keys are among the arguments; the command's name is argument 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// First key; 0: none at fixed places.
    pub(super) first: u8,
    /// Last key; negative: counted from the end, -1 the last argument.
    pub(super) last: i8,
    /// Distance between keys.
    pub(super) step: u8,
    /// Argument that says how many keys follow it; 0: none.
    pub(super) count_at: u8,
    /// Keys are the first half of what follows the word `STREAMS`.
    pub(super) streams: bool,
}

impl Keys {
    const NONE: Self = Self { first: 0, last: 0, step: 1, count_at: 0, streams: false };

    const fn range(first: u8, last: i8, step: u8) -> Self {
        Self { first, last, step, ..Self::NONE }
    }

    const fn counted(count_at: u8) -> Self {
        Self { count_at, ..Self::NONE }
    }
}

/// What a command does to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The next argument names a subcommand.
    Container,
    /// Carries a secret: not even its hash is kept.
    Secret,
    /// `HELLO`: may carry a secret, and chooses the version.
    Hello,
    /// Waits until something comes, or for a time.
    Blocking,
    /// `MULTI`: what follows is queued.
    Multi,
    /// `EXEC`, `DISCARD`: not any more.
    EndMulti,
    /// `SUBSCRIBE` and kin: one confirmation per channel.
    Subscribe,
    /// `UNSUBSCRIBE` and kin.
    Unsubscribe,
    /// `MONITOR`.
    Monitor,
    /// `RESET`.
    Reset,
    /// `CLIENT REPLY`.
    Reply,
    /// `SYNC`.
    Sync,
    /// `PSYNC`.
    Psync,
    /// `REPLCONF`: with `ACK` or `GETACK` it shows a replication stream.
    Replconf,
}

/// One command, or one subcommand (`CONFIG GET`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// As stored.
    pub(super) name: &'static str,
    /// Where its keys are.
    pub(super) keys: Keys,
    /// What it does to the connection.
    pub(super) effect: Effect,
    /// Hash of the name.
    pub(super) hash: u64,
}

impl Command {
    /// Whether nothing of its arguments may leave the machine, whatever the configuration says.
    pub(super) const fn is_secret(&self) -> bool {
        matches!(self.effect, Effect::Secret | Effect::Hello)
    }
}

/// Rows of the table: key positions, effect, and the names that share them; `_` is the space before a subcommand.
const ROWS: &[(Keys, Effect, &str)] = &[
    (
        Keys::range(1, 1, 1),
        Effect::None,
        "APPEND BITCOUNT BITFIELD BITFIELD_RO BITPOS DECR DECRBY DUMP EXPIRE EXPIREAT EXPIRETIME GEOADD GEODIST \
         GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETDEL \
         GETEX GETRANGE GETSET HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY \
         HINCRBYFLOAT HKEYS HLEN HMGET HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET \
         HSETEX HSETNX HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT LINDEX LINSERT LLEN LPOP LPOS LPUSH LPUSHX LRANGE \
         LREM LSET LTRIM MOVE PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PSETEX PTTL RESTORE RESTORE-ASKING RPOP \
         RPUSH RPUSHX SADD SCARD SET SETBIT SETEX SETNX SETRANGE SISMEMBER SMEMBERS SMISMEMBER SORT SORT_RO SPOP \
         SPUBLISH SRANDMEMBER SREM SSCAN STRLEN SUBSTR TTL TYPE XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX \
         XLEN XPENDING XRANGE XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN \
         ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE \
         ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE \
         VADD VCARD VDIM VEMB VGETATTR VINFO VLINKS VRANDMEMBER VREM VSETATTR VSIM \
         JSON.ARRAPPEND JSON.ARRINDEX JSON.ARRINSERT JSON.ARRLEN JSON.ARRPOP JSON.ARRTRIM JSON.CLEAR JSON.DEL \
         JSON.FORGET JSON.GET JSON.MERGE JSON.NUMINCRBY JSON.NUMMULTBY JSON.OBJKEYS JSON.OBJLEN JSON.SET \
         JSON.STRAPPEND JSON.STRLEN JSON.TOGGLE JSON.TYPE \
         BF.ADD BF.CARD BF.EXISTS BF.INFO BF.INSERT BF.MADD BF.MEXISTS BF.RESERVE \
         CF.ADD CF.ADDNX CF.COUNT CF.DEL CF.EXISTS CF.INFO CF.INSERT CF.INSERTNX CF.MEXISTS CF.RESERVE \
         CMS.INCRBY CMS.INFO CMS.INITBYDIM CMS.INITBYPROB CMS.QUERY TOPK.ADD TOPK.COUNT TOPK.INCRBY TOPK.INFO \
         TOPK.LIST TOPK.QUERY TOPK.RESERVE TS.ADD TS.ALTER TS.CREATE TS.DECRBY TS.DEL TS.GET TS.INCRBY TS.INFO \
         TS.RANGE TS.REVRANGE",
    ),
    (
        Keys::range(1, -1, 1),
        Effect::None,
        "DEL EXISTS MGET PFCOUNT PFMERGE SDIFF SDIFFSTORE SINTER SINTERSTORE SUNION SUNIONSTORE TOUCH UNLINK WATCH",
    ),
    (Keys::range(1, -1, 1), Effect::Subscribe, "SSUBSCRIBE"),
    (Keys::range(1, -1, 1), Effect::Unsubscribe, "SUNSUBSCRIBE"),
    (Keys::range(1, -1, 2), Effect::None, "MSET MSETNX"),
    (Keys::range(1, -1, 3), Effect::None, "JSON.MSET TS.MADD"),
    (Keys::range(1, -2, 1), Effect::None, "JSON.MGET"),
    (Keys::range(1, -2, 1), Effect::Blocking, "BLPOP BRPOP BZPOPMAX BZPOPMIN"),
    (Keys::range(1, 2, 1), Effect::Blocking, "BLMOVE BRPOPLPUSH"),
    (
        Keys::range(1, 2, 1),
        Effect::None,
        "COPY GEOSEARCHSTORE LCS LMOVE RENAME RENAMENX RPOPLPUSH SMOVE ZRANGESTORE TS.CREATERULE \
         TS.DELETERULE",
    ),
    (Keys::range(2, -1, 1), Effect::None, "BITOP"),
    (
        Keys::range(2, 2, 1),
        Effect::None,
        "MEMORY_USAGE OBJECT_ENCODING OBJECT_FREQ OBJECT_IDLETIME OBJECT_REFCOUNT PFDEBUG XGROUP_CREATE \
         XGROUP_CREATECONSUMER XGROUP_DELCONSUMER XGROUP_DESTROY XGROUP_SETID XINFO_CONSUMERS XINFO_GROUPS \
         XINFO_STREAM",
    ),
    (Keys::range(3, 3, 1), Effect::Secret, "MIGRATE"),
    (Keys::counted(1), Effect::None, "LMPOP SINTERCARD ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION"),
    (Keys::counted(2), Effect::None, "EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO MSETEX TDIGEST.MERGE"),
    (Keys::counted(2), Effect::Blocking, "BLMPOP BZMPOP"),
    (
        Keys { first: 1, last: 1, count_at: 2, ..Keys::NONE },
        Effect::None,
        "ZDIFFSTORE ZINTERSTORE ZUNIONSTORE CMS.MERGE",
    ),
    (Keys { streams: true, ..Keys::NONE }, Effect::None, "XREAD XREADGROUP"),
    (
        Keys::NONE,
        Effect::None,
        "ACL_CAT ACL_DELUSER ACL_GENPASS ACL_GETUSER ACL_HELP ACL_LIST ACL_LOAD ACL_LOG ACL_SAVE ACL_USERS ACL_WHOAMI \
         ASKING BGREWRITEAOF BGSAVE CLIENT_CACHING CLIENT_GETNAME CLIENT_GETREDIR CLIENT_HELP CLIENT_ID CLIENT_INFO \
         CLIENT_KILL CLIENT_LIST CLIENT_NO-EVICT CLIENT_NO-TOUCH CLIENT_PAUSE CLIENT_SETINFO CLIENT_SETNAME \
         CLIENT_TRACKING CLIENT_TRACKINGINFO CLIENT_UNBLOCK CLIENT_UNPAUSE CLUSTER_ADDSLOTS CLUSTER_ADDSLOTSRANGE \
         CLUSTER_BUMPEPOCH CLUSTER_COUNT-FAILURE-REPORTS CLUSTER_COUNTKEYSINSLOT CLUSTER_DELSLOTS \
         CLUSTER_DELSLOTSRANGE CLUSTER_FAILOVER CLUSTER_FLUSHSLOTS CLUSTER_FORGET CLUSTER_GETKEYSINSLOT CLUSTER_HELP \
         CLUSTER_INFO CLUSTER_KEYSLOT CLUSTER_LINKS CLUSTER_MEET CLUSTER_MYID CLUSTER_MYSHARDID CLUSTER_NODES \
         CLUSTER_REPLICAS CLUSTER_REPLICATE CLUSTER_RESET CLUSTER_SAVECONFIG CLUSTER_SET-CONFIG-EPOCH CLUSTER_SETSLOT \
         CLUSTER_SHARDS CLUSTER_SLAVES CLUSTER_SLOT-STATS CLUSTER_SLOTS COMMAND_COUNT COMMAND_DOCS COMMAND_GETKEYS \
         COMMAND_GETKEYSANDFLAGS COMMAND_HELP COMMAND_INFO COMMAND_LIST CONFIG_GET CONFIG_HELP CONFIG_RESETSTAT \
         CONFIG_REWRITE DBSIZE ECHO FAILOVER FLUSHALL FLUSHDB FT.AGGREGATE FT.CREATE FT.INFO FT.SEARCH \
         FUNCTION_DELETE FUNCTION_DUMP FUNCTION_FLUSH FUNCTION_HELP FUNCTION_KILL FUNCTION_LIST FUNCTION_LOAD \
         FUNCTION_RESTORE FUNCTION_STATS INFO KEYS LASTSAVE LATENCY_DOCTOR LATENCY_GRAPH LATENCY_HELP \
         LATENCY_HISTOGRAM LATENCY_HISTORY LATENCY_LATEST LATENCY_RESET LOLWUT MEMORY_DOCTOR MEMORY_HELP \
         MEMORY_MALLOC-STATS MEMORY_PURGE MEMORY_STATS MODULE_HELP MODULE_LIST \
         MODULE_UNLOAD OBJECT_HELP PFSELFTEST PING PUBLISH PUBSUB_CHANNELS PUBSUB_HELP PUBSUB_NUMPAT \
         PUBSUB_NUMSUB PUBSUB_SHARDCHANNELS PUBSUB_SHARDNUMSUB QUIT RANDOMKEY READONLY READWRITE REPLICAOF ROLE SAVE \
         SCAN SCRIPT_DEBUG SCRIPT_EXISTS SCRIPT_FLUSH SCRIPT_HELP SCRIPT_KILL SCRIPT_LOAD SCRIPT_SHOW SELECT \
         SENTINEL_GET-MASTER-ADDR-BY-NAME SENTINEL_MASTER SENTINEL_MASTERS SENTINEL_MYID SENTINEL_REPLICAS \
         SENTINEL_SENTINELS SHUTDOWN SLAVEOF SLOWLOG_GET SLOWLOG_HELP SLOWLOG_LEN SLOWLOG_RESET SWAPDB TIME \
         TS.MGET TS.MRANGE TS.MREVRANGE TS.QUERYINDEX UNWATCH XGROUP_HELP XINFO_HELP",
    ),
    (
        Keys::NONE,
        Effect::Container,
        "ACL CLIENT CLUSTER COMMAND CONFIG FUNCTION LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT SENTINEL SLOWLOG \
         XGROUP XINFO",
    ),
    (
        Keys::NONE,
        Effect::Secret,
        "ACL_DRYRUN ACL_SETUSER AUTH CONFIG_SET DEBUG MODULE_LOAD MODULE_LOADEX SENTINEL_CONFIG SENTINEL_SET",
    ),
    (Keys::NONE, Effect::Hello, "HELLO"),
    (Keys::NONE, Effect::Blocking, "WAIT WAITAOF"),
    (Keys::NONE, Effect::Multi, "MULTI"),
    (Keys::NONE, Effect::EndMulti, "EXEC DISCARD"),
    (Keys::NONE, Effect::Subscribe, "SUBSCRIBE PSUBSCRIBE"),
    (Keys::NONE, Effect::Unsubscribe, "UNSUBSCRIBE PUNSUBSCRIBE"),
    (Keys::NONE, Effect::Monitor, "MONITOR"),
    (Keys::NONE, Effect::Reset, "RESET"),
    (Keys::NONE, Effect::Reply, "CLIENT_REPLY"),
    (Keys::NONE, Effect::Sync, "SYNC"),
    (Keys::NONE, Effect::Psync, "PSYNC"),
    (Keys::NONE, Effect::Replconf, "REPLCONF"),
];

static TABLE: LazyLock<FxHashMap<&'static [u8], Command>> = LazyLock::new(|| {
    let mut table = FxHashMap::default();
    for &(keys, effect, names) in ROWS {
        for name in names.split_ascii_whitespace() {
            // The few names with a space are made once and live as long as the table does.
            let subcommand = ROWS.iter().any(|(_, effect, containers)| {
                *effect == Effect::Container
                    && containers.split_ascii_whitespace().any(|container| {
                        name.strip_prefix(container).is_some_and(|rest| rest.starts_with('_'))
                    })
            });
            let name =
                if subcommand { &*Box::leak(name.replacen('_', " ", 1).into_boxed_str()) } else { name };
            let mut hasher = ContentHasher::new();
            hasher.update(name.as_bytes());
            table.insert(name.as_bytes(), Command { name, keys, effect, hash: hasher.finish() });
        }
    }
    table
});

/// The command of this name, in any case.
pub(super) fn find(name: &[u8]) -> Option<&'static Command> {
    let mut upper = [0; NAME_BYTES_MAX];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    TABLE.get(&*upper)
}

/// The subcommand of a container, in any case.
pub(super) fn find_subcommand(container: &Command, name: &[u8]) -> Option<&'static Command> {
    let mut upper = [0; 2 * NAME_BYTES_MAX];
    let len = container.name.len() + 1 + name.len();
    let upper = upper.get_mut(..len)?;
    upper[..container.name.len()].copy_from_slice(container.name.as_bytes());
    upper[container.name.len()] = b' ';
    upper[container.name.len() + 1..].copy_from_slice(name);
    upper.make_ascii_uppercase();
    TABLE.get(&*upper)
}

/// Whether these bytes begin the name of a known command, or of a subcommand of `container`. Slow: a walk over the
/// table.
pub(super) fn begins_a_name(container: Option<&str>, bytes: &[u8]) -> bool {
    let begins = |name: &[u8]| name.get(..bytes.len()).is_some_and(|name| name.eq_ignore_ascii_case(bytes));
    match container {
        None => TABLE.keys().any(|name| begins(name)),
        Some(container) => TABLE
            .keys()
            .filter_map(|name| name.strip_prefix(container.as_bytes())?.strip_prefix(b" "))
            .any(begins),
    }
}

/// Whether an unknown name looks like a command: then it is an operation, else it might be anything.
pub(super) fn looks_like_a_name(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.first().is_some_and(u8::is_ascii_alphabetic)
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: &str) {
        let found = match name.split_once(' ') {
            None => find(name.as_bytes()),
            Some((container, sub)) => {
                find_subcommand(find(container.as_bytes()).expect("a known container"), sub.as_bytes())
            }
        };
        let found = found.map_or_else(String::new, |command| {
            let keys = command.keys;
            format!("{} {} {} {} {}", command.name, keys.first, keys.last, keys.step, keys.count_at)
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn keys_are_where_redis_says() {
        check("get", "GET 1 1 1 0");
        check("GeoRadiusByMember_ro", "GEORADIUSBYMEMBER_RO 1 1 1 0");
        check("mset", "MSET 1 -1 2 0");
        check("blpop", "BLPOP 1 -2 1 0");
        check("blmpop", "BLMPOP 0 0 1 2");
        check("eval_ro", "EVAL_RO 0 0 1 2");
        check("zunionstore", "ZUNIONSTORE 1 1 1 2");
        check("object encoding", "OBJECT ENCODING 2 2 1 0");
        check("client no-evict", "CLIENT NO-EVICT 0 0 1 0");
        check("config nonsense", "");
        check("GETS", "");
        check("", "");
        check("CLIENT_ID", "");
    }

    #[test]
    fn no_name_is_listed_twice_and_all_fit() {
        let names = || ROWS.iter().flat_map(|(.., names)| names.split_ascii_whitespace());
        assert_eq!(TABLE.len(), names().count());
        assert!(TABLE.keys().all(|name| name.len() <= NAME_BYTES_MAX + 8));
    }
}
