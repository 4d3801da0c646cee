//! What a node is started with: `cassandra.yaml` and the options of its virtual machine.
//!
//! What a reader would get wrong: this makes rings for development and tests start in seconds on one machine. All
//! nodes are seeds with one fixed token each and do not bootstrap, so they start at once; a production ring does
//! none of that.

use std::path::{Path, PathBuf};

use super::{Options, address, secure};

/// Measures objects for Cassandra 4.1. Newer versions have one that needs no help.
const JAMM: &str = "jamm-0.3.2.jar";

/// Where the ring's tokens lie: equal thirds (halves, the whole) of the partitioner's range.
fn token(node: u8, n_nodes: u8) -> i64 {
    let step = (1_i128 << 64) / i128::from(n_nodes);
    (i128::from(i64::MIN) + step * i128::from(node - 1)) as i64
}

/// `cassandra.yaml` of node `node` (from 1), whose files lie in `folder`.
pub(super) fn yaml(node: u8, folder: &Path, options: &Options) -> String {
    let seeds: Vec<String> = (1..=options.n_nodes).map(|node| address(node).to_string()).collect();
    let seeds = seeds.join(",");
    let (address, token) = (address(node), token(node, options.n_nodes));
    let node_folder = folder;
    let folder = folder.display();
    let commit_log = if options.sync_every_write {
        // An acknowledged write is on disk: what a test that kills all replicas needs.
        "commitlog_sync: group\ncommitlog_sync_group_window: 5ms"
    } else {
        "commitlog_sync: periodic\ncommitlog_sync_period: 1000ms"
    };
    // A write waits for the commit log in its thread.
    let writes = if options.sync_every_write { 64 } else { 16 };
    format!(
        "cluster_name: dprof
num_tokens: 1
initial_token: '{token}'
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: '{seeds}'
listen_address: {address}
rpc_address: {address}
storage_port: 7000
native_transport_port: 9042
start_native_transport: true
data_file_directories: ['{folder}/data']
commitlog_directory: '{folder}/commitlog'
saved_caches_directory: '{folder}/saved_caches'
hints_directory: '{folder}/hints'
cdc_raw_directory: '{folder}/cdc_raw'
{commit_log}
commitlog_segment_size: 8MiB
commitlog_total_space: 256MiB
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
memtable_allocation_type: offheap_objects
concurrent_reads: 8
concurrent_writes: {writes}
concurrent_compactors: 1
compaction_throughput: 0MiB/s
file_cache_size: 32MiB
networking_cache_size: 32MiB
key_cache_size: 8MiB
counter_cache_size: 0MiB
auto_snapshot: false
hinted_handoff_enabled: true
{access}sasi_indexes_enabled: {sasi}
",
        access = secure::yaml(node_folder, options),
        sasi = options.sasi,
    )
}

/// Everything goes to standard output, which is the node's log.
pub(super) const LOGBACK: &str = "<configuration>
  <appender name=\"OUT\" class=\"ch.qos.logback.core.ConsoleAppender\">
    <encoder><pattern>%d{ISO8601} %-5level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level=\"INFO\"><appender-ref ref=\"OUT\"/></root>
</configuration>
";

/// Packages of the Java library that Cassandra reaches into (its own `jvm17-server.options`).
const EXPORTS: [&str; 11] = [
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
    "jdk.compiler/com.sun.tools.javac.file",
    "jdk.attach/sun.tools.attach",
];
const OPENS: [&str; 19] = [
    "java.base/java.lang.module",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "java.base/java.io",
    "java.base/java.lang.reflect",
    "java.base/java.lang",
    "java.base/java.util",
    "java.base/java.nio",
    // 4.1 asks for these too.
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.net",
    "java.base/jdk.internal.misc",
    "jdk.management/com.sun.management.internal",
    "jdk.compiler/com.sun.tools.javac",
];

/// What Cassandra's classes, its tools included, may reach into.
pub(super) fn module_options() -> impl Iterator<Item = String> {
    let exports = EXPORTS.iter().map(|package| format!("--add-exports={package}=ALL-UNNAMED"));
    exports.chain(OPENS.iter().map(|package| format!("--add-opens={package}=ALL-UNNAMED")))
}

/// The agent of the virtual machine that the version needs. With one there is no archive of classes.
pub(super) fn agent(jars: &Path) -> Option<PathBuf> {
    Some(jars.join("lib").join(JAMM)).filter(|path| path.is_file())
}

/// Options of the virtual machine that every node of a version shares: an archive of its classes can be made and
/// used with them only if they are the same.
pub(super) fn machine_options(options: &Options, jars: &Path) -> Vec<String> {
    let mut list: Vec<String> = module_options().collect();
    if let Some(jamm) = agent(jars) {
        // Java 17 has classes whose fields only an agent of the virtual machine may look at; without it 4.1 ends at
        // its first statement ("can't get field offset on a hidden class").
        list.push(format!("-javaagent:{}", jamm.display()));
    }
    list.extend(
        [
            "-Djdk.attach.allowAttachSelf=true",
            "-Dio.netty.tryReflectionSetAccessible=true",
            "-Djava.net.preferIPv4Stack=true",
            "-Djava.security.manager=allow",
            "-Xss256k",
            "-XX:+UseSerialGC",
        ]
        .map(str::to_owned),
    );
    list.extend(["-Xms", "-Xmx"].map(|option| format!("{option}{}m", options.heap_mb)));
    if !options.warm {
        // The second compiler takes more of two cores than a short test gets back.
        list.push("-XX:TieredStopAtLevel=1".to_owned());
    }
    list
}

/// Options of one node's own.
pub(super) fn node_options(node: u8, folder: &Path) -> Vec<String> {
    let shown = folder.display();
    vec![
        "-Dcassandra.skip_wait_for_gossip_to_settle=0".to_owned(),
        "-Dcassandra.ring_delay_ms=1000".to_owned(),
        "-Dcassandra.consistent.rangemovement=false".to_owned(),
        "-Dcassandra.superuser_setup_delay_ms=0".to_owned(),
        "-Dcassandra.available_processors=2".to_owned(),
        "-Dcassandra-foreground=yes".to_owned(),
        format!("-Dcassandra.config=file://{shown}/cassandra.yaml"),
        format!("-Dcassandra.storagedir={shown}"),
        format!("-Dcassandra.logdir={shown}"),
        format!("-Dlogback.configurationFile=file:{shown}/logback.xml"),
        format!("-Dcassandra.jmx.local.port={}", jmx_port(node)),
        format!("-Djava.io.tmpdir={shown}"),
    ]
}

/// Port of a node's management interface, loopback only.
pub(super) fn jmx_port(node: u8) -> u16 {
    7099 + 100 * u16::from(node)
}

#[cfg(test)]
mod tests {
    use super::token;

    #[test]
    fn tokens_part_the_range_evenly() {
        assert_eq!(
            [1, 2, 3].map(|node| token(node, 3)),
            [-9_223_372_036_854_775_808, -3_074_457_345_618_258_603, 3_074_457_345_618_258_602]
        );
        assert_eq!(token(1, 1), i64::MIN);
    }
}
