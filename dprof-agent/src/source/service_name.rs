//! What to call a service: facts about a process into its [`ProcessInfo`]. Pure.
//!
//! The name is the first of: a rule of the configuration, the systemd unit (`system.slice/NAME.service`), the
//! container id, the command. What a reader would get wrong: a unit or container that the agent itself runs in
//! tells nothing (everything inside it would get one name), so it is passed over.

use dprof_common::model::ProcessInfo;
use dprof_common::settings::ServiceName;

/// Hexadecimal digits of a container id.
const CONTAINER_ID_DIGITS: usize = 64;
/// Digits of a container id that stand for it in a service name, as in `docker ps`.
const CONTAINER_NAME_DIGITS: usize = 12;

/// A text with `*` (any characters) and `?` (one character).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub String);

impl Pattern {
    /// Whether the whole `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where to go on when the characters after the last `*` do not match: one character later.
        let mut retry: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, t));
                    p += 1;
                }
                Some(c) if *c == b'?' || *c == text[t] => {
                    p += 1;
                    t += 1;
                }
                _ => match retry {
                    Some((after_star, from)) => {
                        retry = Some((after_star, from + 1));
                        p = after_star;
                        t = from + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == b'*')
    }
}

/// Names a service: every condition that is given must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRule {
    /// The name.
    pub service: String,
    /// `comm` of the process.
    pub comm: Option<Pattern>,
    /// Path of the executable.
    pub exe: Option<Pattern>,
    /// Arguments, joined by spaces.
    pub cmdline: Option<Pattern>,
    /// systemd unit without `.service`.
    pub unit: Option<Pattern>,
    /// Container id.
    pub container: Option<Pattern>,
    /// A port that the process listens on.
    pub port: Option<u16>,
}

impl From<ServiceName> for ServiceRule {
    fn from(configured: ServiceName) -> Self {
        let condition = |field: &str| {
            let found = configured.conditions.iter().find(|(known, _)| *known == field);
            found.map(|(_, pattern)| pattern.clone())
        };
        Self {
            comm: condition("comm").map(Pattern),
            exe: condition("exe").map(Pattern),
            cmdline: condition("cmdline").map(Pattern),
            unit: condition("unit").map(Pattern),
            container: condition("container").map(Pattern),
            port: condition("port").and_then(|port| port.parse().ok()),
            service: configured.name,
        }
    }
}

impl From<&ServiceRule> for ServiceName {
    fn from(rule: &ServiceRule) -> Self {
        let patterns = [
            ("comm", &rule.comm),
            ("exe", &rule.exe),
            ("cmdline", &rule.cmdline),
            ("unit", &rule.unit),
            ("container", &rule.container),
        ];
        let conditions = patterns
            .into_iter()
            .filter_map(|(field, pattern)| Some((field, pattern.as_ref()?.0.clone())))
            .chain(rule.port.map(|port| ("port", port.to_string())));
        Self { name: rule.service.clone(), conditions: conditions.collect() }
    }
}

impl ServiceRule {
    /// Whether no condition is given.
    pub const fn is_unconditional(&self) -> bool {
        self.comm.is_none()
            && self.exe.is_none()
            && self.cmdline.is_none()
            && self.unit.is_none()
            && self.container.is_none()
            && self.port.is_none()
    }

    fn matches(&self, facts: &ProcessFacts, place: &Place) -> bool {
        let is = |pattern: &Option<Pattern>, text: Option<&str>| {
            pattern.as_ref().is_none_or(|pattern| text.is_some_and(|text| pattern.matches(text)))
        };
        is(&self.comm, Some(&facts.comm))
            && is(&self.exe, facts.exe.as_deref())
            && is(&self.cmdline, Some(&facts.cmdline.join(" ")))
            && is(&self.unit, place.unit.as_deref())
            && is(&self.container, place.container.as_deref())
            && self.port.is_none_or(|port| facts.listening.contains(&port))
    }
}

/// What the system says about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// `comm` of its main thread.
    pub comm: String,
    /// Path of its executable, if it may be read.
    pub exe: Option<String>,
    /// Its arguments.
    pub cmdline: Vec<String>,
    /// Its cgroup path.
    pub cgroup: String,
    /// Ports that it listens on; empty unless a rule asks.
    pub listening: Vec<u16>,
}

/// What a cgroup path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// systemd unit without `.service`.
    pub unit: Option<String>,
    /// Container id.
    pub container: Option<String>,
}

/// Reads a cgroup path.
pub fn place(cgroup: &str) -> Place {
    let segments = || cgroup.split('/').filter(|segment| !segment.is_empty());
    let unit = segments()
        .skip_while(|segment| *segment != "system.slice")
        .find_map(|segment| segment.strip_suffix(".service"))
        .map(unescape_unit);
    Place { unit, container: segments().rev().find_map(container_id) }
}

/// The container id in one segment of a cgroup path: `docker-ID.scope`, `cri-containerd-ID.scope`,
/// `crio-ID.scope`, `libpod-ID.scope`, `libpod-payload-ID`, or the bare `ID` of the cgroupfs driver;
/// `lxc.payload.NAME` names its container itself.
fn container_id(segment: &str) -> Option<String> {
    if let Some(name) = segment.strip_prefix("lxc.payload.") {
        return Some(name.to_owned()).filter(|name| !name.is_empty());
    }
    let segment = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = segment.rsplit(['-', ':']).next().unwrap_or(segment);
    let is_id = id.len() == CONTAINER_ID_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

/// systemd writes `-` inside an instance name as `\x2d`, and so on.
fn unescape_unit(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(code) = code.filter(u8::is_ascii) {
            text.push(char::from(code));
            rest = &rest[at + 4..];
        } else {
            text.push_str("\\x");
            rest = &rest[at + 2..];
        }
    }
    text + rest
}

/// Names the service of a process. `own` is the agent's own place, which names nothing.
pub fn describe_facts(pid: u32, facts: &ProcessFacts, rules: &[ServiceRule], own: &Place) -> ProcessInfo {
    let place = place(&facts.cgroup);
    let service = if let Some(rule) = rules.iter().find(|rule| rule.matches(facts, &place)) {
        rule.service.clone()
    } else if let Some(unit) = place.unit.as_ref().filter(|unit| own.unit.as_ref() != Some(unit)) {
        unit.clone()
    } else if let Some(id) = place.container.as_ref().filter(|id| own.container.as_ref() != Some(id)) {
        id.get(..CONTAINER_NAME_DIGITS).unwrap_or(id).to_owned()
    } else {
        command_name(facts)
    };
    ProcessInfo { pid, comm: facts.comm.clone(), service, container: place.container }
}

/// The command that a person would name: for an interpreter what it runs, else `comm`.
fn command_name(facts: &ProcessFacts) -> String {
    let exe = facts.exe.as_deref().map(|exe| exe.strip_suffix(" (deleted)").unwrap_or(exe));
    let exe_name = exe.and_then(|exe| exe.rsplit('/').next()).unwrap_or(&facts.comm);
    let args = facts.cmdline.get(1..).unwrap_or_default();
    if let Some(name) = interpreted(exe_name, args).filter(|name| !name.is_empty()) {
        return name;
    }
    // `comm` holds 15 bytes: a longer name is cut.
    if facts.comm.len() >= 15 && exe_name.starts_with(&facts.comm) {
        return exe_name.to_owned();
    }
    facts.comm.clone()
}

fn interpreted(exe_name: &str, args: &[String]) -> Option<String> {
    let base = exe_name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    match base {
        "python" | "pypy" => {
            script_after(args, &["-W", "-X", "--check-hash-based-pycs"], &["-c"], Some("-m"))
        }
        "node" | "nodejs" | "bun" | "deno" => {
            let options = ["-r", "--require", "--import", "--loader", "-C", "--env-file", "--title"];
            script_after(args, &options, &["-e", "--eval", "-p", "--print"], None)
        }
        "ruby" => script_after(args, &["-I", "-r", "-C", "-E"], &["-e"], None),
        "perl" => script_after(args, &["-I", "-M", "-m"], &["-e", "-E"], None),
        "php" => script_after(args, &["-c", "-d"], &["-r", "-S"], None),
        "sh" | "bash" | "dash" | "zsh" => script_after(args, &["-o", "-O"], &["-c"], None),
        "java" => java_main(args),
        _ => None,
    }
}

/// The first argument that is no option: a script. `with_value`: options whose value is the next argument;
/// `no_script`: options after which there is none; `module`: the option that names a module instead.
fn script_after(
    args: &[String],
    with_value: &[&str],
    no_script: &[&str],
    module: Option<&str>,
) -> Option<String> {
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        if no_script.contains(&arg) {
            return None;
        }
        if Some(arg) == module {
            return args.next().map(str::to_owned);
        }
        if with_value.contains(&arg) {
            args.next();
        } else if !arg.starts_with('-') {
            return Some(script_name(arg));
        }
    }
    None
}

/// `/srv/cart/worker.py` is `worker`; a name that says nothing (`index`, `main`, …) gives way to its folder's.
fn script_name(path: &str) -> String {
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    let file = segments.next().unwrap_or(path);
    let stem = match file.rsplit_once('.') {
        Some((stem, "py" | "pyc" | "js" | "mjs" | "cjs" | "ts" | "rb" | "pl" | "php" | "sh" | "jar")) => stem,
        _ => file,
    };
    let says_nothing =
        matches!(stem, "index" | "main" | "app" | "server" | "start" | "run" | "__main__" | "manage");
    let folder =
        segments.find(|segment| !matches!(*segment, "src" | "bin" | "dist" | "build" | "lib" | "." | ".."));
    match folder.filter(|_| says_nothing) {
        Some(folder) => folder.to_owned(),
        None => stem.to_owned(),
    }
}

/// `-jar x/foo.jar` is `foo`, `org.example.Main` is `Main`.
fn java_main(args: &[String]) -> Option<String> {
    const WITH_VALUE: [&str; 9] = [
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--add-modules",
        "--add-opens",
        "--add-exports",
        "--add-reads",
    ];
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "-jar" => return args.next().map(script_name),
            "-m" | "--module" => {
                return args
                    .next()
                    .map(|module| module.rsplit(['/', '.']).next().unwrap_or(module).to_owned());
            }
            _ if WITH_VALUE.contains(&arg) => {
                args.next();
            }
            _ if !arg.starts_with('-') => return arg.rsplit(['.', '/']).next().map(str::to_owned),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check_place(cgroup: &str, unit: Option<&str>, container: Option<&str>) {
        let cgroup = cgroup.replace("ID", ID);
        let container = container.map(|id| id.replace("ID", ID));
        assert_eq!(place(&cgroup), Place { unit: unit.map(str::to_owned), container }, "{cgroup}");
    }

    #[test]
    fn units_are_those_of_the_system() {
        check_place("/system.slice/redis-server.service", Some("redis-server"), None);
        check_place(
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            Some("postgresql@15-main"),
            None,
        );
        check_place(r"/system.slice/a@b\x2dc.service", Some("a@b-c"), None);
        check_place(r"/system.slice/a\xzz\x.service", Some(r"a\xzz\x"), None);
        check_place("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", None, None);
        check_place("/user.slice/user-0.slice/session-3.scope", None, None);
        check_place("/", None, None);
        check_place("", None, None);
    }

    #[test]
    fn containers_are_known_by_their_ids() {
        check_place("/system.slice/docker-ID.scope", None, Some("ID"));
        check_place("/docker/ID", None, Some("ID"));
        check_place("/docker/ID/init.scope", None, Some("ID"));
        check_place("/kubepods.slice/kubepods-podx.slice/cri-containerd-ID.scope", None, Some("ID"));
        check_place("/kubepods/burstable/pod9/ID", None, Some("ID"));
        check_place("/kubepods.slice/kubepods-podx.slice/crio-ID.scope", None, Some("ID"));
        check_place("/kubepods.slice/x:cri-containerd:ID", None, Some("ID"));
        check_place("/machine.slice/libpod-ID.scope/container", None, Some("ID"));
        check_place("/system.slice/cache.service/libpod-payload-ID", Some("cache"), Some("ID"));
        check_place("/lxc.payload.web1/system.slice/x.service", Some("x"), Some("web1"));
        check_place("/docker/0123", None, None);
    }

    #[track_caller]
    fn check_command(comm: &str, exe: &str, cmdline: &str, expected: &str) {
        let facts = ProcessFacts {
            comm: comm.to_owned(),
            exe: Some(exe.to_owned()).filter(|exe| !exe.is_empty()),
            cmdline: cmdline.split_whitespace().map(str::to_owned).collect(),
            ..ProcessFacts::default()
        };
        assert_eq!(command_name(&facts), expected, "{comm} {cmdline}");
    }

    #[test]
    fn a_command_is_named_by_comm_and_an_interpreter_by_what_it_runs() {
        check_command("redis-server", "/usr/bin/redis-check-rdb", "redis-server *:6379", "redis-server");
        check_command(
            "prometheus-node",
            "/usr/bin/prometheus-node-exporter",
            "x",
            "prometheus-node-exporter",
        );
        check_command("curl", "", "", "curl");
        check_command("python3", "/usr/bin/python3.11", "python3 -u -X dev /srv/worker.py --n 5", "worker");
        check_command("python3", "/usr/bin/python3.11", "python3 -m http.server 80", "http.server");
        check_command("python3", "/usr/bin/python3.11", "python3 -c print()", "python3");
        check_command("python3", "/usr/bin/python3.11", "python3", "python3");
        check_command(
            "gunicorn",
            "/usr/bin/python3.11",
            "/usr/bin/python3 /usr/bin/gunicorn a:b",
            "gunicorn",
        );
        check_command("python3", "/usr/bin/python3.11", "python3 /srv/cart/src/main.py", "cart");
        check_command("node-MainThread", "/usr/bin/node", "node --require x /srv/cart/index.js", "cart");
        check_command("node", "/usr/bin/node (deleted)", "node server.js", "server");
        check_command("node", "/usr/bin/node", "node -e 1", "node");
        check_command("bash", "/usr/bin/bash", "bash ./load.sh", "load");
        check_command("java", "/usr/bin/java", "java -Xmx1g -jar /opt/shop-1.2.jar --port 1", "shop-1.2");
        check_command(
            "java",
            "/usr/bin/java",
            "java -ea -cp a.jar:b.jar --add-opens x=y org.apache.cassandra.service.CassandraDaemon",
            "CassandraDaemon",
        );
        check_command("java", "/usr/bin/java", "java -m com.example.shop/com.example.Main", "Main");
        check_command("java", "/usr/bin/java", "java -cp", "java");
    }

    #[test]
    fn patterns_match_the_whole_text() {
        for (pattern, text, expected) in [
            ("redis-*", "redis-server", true),
            ("redis-*", "xredis-server", false),
            ("*server", "redis-server", true),
            ("r?dis*", "redis", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxaxxbxx", false),
            ("a*a*a", "aa", false),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            ("/opt/*/bin", "/opt/x/y/bin", true),
        ] {
            assert_eq!(Pattern(pattern.into()).matches(text), expected, "{pattern} {text}");
        }
    }

    fn rule(service: &str) -> ServiceRule {
        ServiceRule {
            service: service.to_owned(),
            comm: None,
            exe: None,
            cmdline: None,
            unit: None,
            container: None,
            port: None,
        }
    }

    #[track_caller]
    fn check_service(facts: &ProcessFacts, rules: &[ServiceRule], own: &Place, expected: &str) {
        assert_eq!(describe_facts(1, facts, rules, own).service, expected);
    }

    #[test]
    fn the_first_matching_rule_wins_then_unit_container_command() {
        let nowhere = Place::default();
        let mut facts = ProcessFacts {
            comm: "node".into(),
            cgroup: format!("/system.slice/cart.service/docker-{ID}.scope"),
            cmdline: vec!["node".into(), "x.js".into()],
            listening: vec![8080],
            ..ProcessFacts::default()
        };
        let by_port = ServiceRule { port: Some(8080), ..rule("by-port") };
        let by_comm = ServiceRule { comm: Some(Pattern("node".into())), ..rule("by-comm") };
        let both = ServiceRule { port: Some(1), comm: Some(Pattern("node".into())), ..rule("both") };
        let by_args = ServiceRule { cmdline: Some(Pattern("node x*".into())), ..rule("by-args") };
        let by_exe = ServiceRule { exe: Some(Pattern("*".into())), ..rule("by-exe") };
        let by_unit = ServiceRule { unit: Some(Pattern("cart".into())), ..rule("by-unit") };
        let by_container = ServiceRule { container: Some(Pattern("0123*".into())), ..rule("by-container") };
        check_service(&facts, &[both.clone(), by_port.clone(), by_comm.clone()], &nowhere, "by-port");
        check_service(&facts, &[both.clone(), by_comm], &nowhere, "by-comm");
        check_service(&facts, &[by_exe, by_args], &nowhere, "by-args");
        check_service(&facts, &[by_unit], &nowhere, "by-unit");
        check_service(&facts, &[by_container], &nowhere, "by-container");
        check_service(&facts, std::slice::from_ref(&both), &nowhere, "cart");
        facts.cgroup = format!("/docker/{ID}");
        check_service(&facts, std::slice::from_ref(&both), &nowhere, "0123456789ab");
        facts.cgroup = "/".into();
        check_service(&facts, &[both], &nowhere, "x");
    }

    #[test]
    fn the_agents_own_unit_and_container_name_nothing() {
        let facts = |cgroup: &str| ProcessFacts {
            comm: "redis-server".into(),
            cgroup: cgroup.replace("ID", ID),
            ..ProcessFacts::default()
        };
        let own = place(&format!("/system.slice/runner.service/docker-{ID}.scope"));
        check_service(&facts("/system.slice/runner.service/docker-ID.scope"), &[], &own, "redis-server");
        check_service(&facts("/system.slice/other.service"), &[], &own, "other");
    }
}
