//! A shop as a drill's system: on `front` an HTTP service that asks Redis through nutcracker and another service,
//! both on `middle`; two Redis servers on `back`.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Dice, Expected, Fault, Subject, mix, stop_and_go};
use crate::agent::binary;
use crate::behaviour::Behaviour;
use crate::cable::Shape;
use crate::cpu_limit::CpuLimit;
use crate::dial::turn;
use crate::netns::{Netns, Network};
use crate::program::Program;
use crate::service::ServiceConfig;
use crate::steady::{HOT_KEY, Steady};
use crate::subject::{self, Behind, find, listens};
use crate::wire::Protocol;

const HOSTS: [&str; 3] = ["front", "middle", "back"];
const FRONT: usize = 0;
const MIDDLE: usize = 1;
const BACK: usize = 2;

const SHOP_PORT: u16 = 8080;
const PRICES_PORT: u16 = 8081;
const PROXY_PORT: u16 = 22121;
const REDIS_PORTS: [u16; 2] = [6379, 6380];

/// Bytes of the value of the hot key.
const HOT_BYTES: u64 = 600_000;

/// What the services do as long as nothing is wrong.
const USUAL_SHOP: Behaviour = Behaviour {
    wait_us: 1_000,
    compute_us: 300,
    locked_us: 0,
    calls: 1,
    failing_percent: 0,
    slow_per_mille: 0,
    slow_us: 0,
};
const USUAL_PRICES: Behaviour = Behaviour {
    wait_us: 2_000,
    compute_us: 700,
    locked_us: 0,
    calls: 1,
    failing_percent: 0,
    slow_per_mille: 0,
    slow_us: 0,
};

/// How long a program may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

fn address(machine: usize, port: u16) -> SocketAddr {
    (ip(machine), port).into()
}

fn ip(machine: usize) -> IpAddr {
    [10, 78, 0, machine as u8 + 1].into()
}

pub(super) struct Shop {
    folder: PathBuf,
    shop: Program,
    prices: Option<Program>,
    proxy: Program,
    redis: Vec<Program>,
    limit: Option<CpuLimit>,
    network: Network,
}

impl Shop {
    pub(super) fn start(folder: &Path, seed: u64) -> Result<Self> {
        let addresses: Vec<IpAddr> = (0..HOSTS.len()).map(ip).collect();
        let network = Network::with_cables(folder, &addresses, &[MIDDLE, BACK], seed)?;
        let mut redis = Vec::new();
        for port in REDIS_PORTS {
            let mut command = network.machine(BACK).command(find("redis-server"));
            redis.push(subject::redis_on(folder, &mut command, &[&ip(BACK).to_string()], port)?.program);
        }
        let servers: Vec<SocketAddr> = REDIS_PORTS.iter().map(|port| address(BACK, *port)).collect();
        let mut command = network.machine(MIDDLE).command(find("nutcracker"));
        let listen = address(MIDDLE, PROXY_PORT);
        let proxy = subject::nutcracker_on(folder, &mut command, listen, &servers, Behind::Redis)?.program;
        let prices = prices(&network, folder, "prices")?;
        turn(&folder.join("prices.dial"), &USUAL_PRICES)?;
        turn(&folder.join("shop.dial"), &USUAL_SHOP)?;
        let config = ServiceConfig {
            listen: Some(address(FRONT, SHOP_PORT)),
            redis: Some(listen),
            http: Some(address(MIDDLE, PRICES_PORT)),
            dial: Some(folder.join("shop.dial")),
        };
        let shop = service(network.machine(FRONT), folder, "shop", "shop", &config)?;
        // Its value is there before anybody asks for it.
        let mut command = network.machine(MIDDLE).command(find("redis-cli"));
        command.args(["-h", &ip(MIDDLE).to_string(), "-p", &PROXY_PORT.to_string()]);
        let output = command.args(["SETRANGE", HOT_KEY, &HOT_BYTES.to_string(), "x"]).output()?;
        ensure!(output.status.success(), "redis-cli: {}", String::from_utf8_lossy(&output.stderr));
        let folder = folder.to_owned();
        Ok(Self { folder, shop, prices: Some(prices), proxy, redis, limit: None, network })
    }

    fn dial(&self, service: &str, behaviour: &Behaviour) -> Result<()> {
        turn(&self.folder.join(format!("{service}.dial")), behaviour)
    }
}

fn prices(network: &Network, folder: &Path, run: &str) -> Result<Program> {
    let config = ServiceConfig {
        listen: Some(address(MIDDLE, PRICES_PORT)),
        dial: Some(folder.join("prices.dial")),
        ..ServiceConfig::default()
    };
    service(network.machine(MIDDLE), folder, "prices", run, &config)
}

/// A service of ours under a name of its own, as `comm` has it.
fn service(machine: &Netns, folder: &Path, name: &str, run: &str, config: &ServiceConfig) -> Result<Program> {
    let program = folder.join(name);
    if !program.exists() {
        symlink(binary("test-service"), &program).context("name a service")?;
    }
    let mut started = Program::start_configured(run, folder, &mut machine.command(&program), config)?;
    let port = config.listen.context("it listens")?.port();
    started.wait_until(READY_WITHIN, "listens", |program| listens(program.pid(), port).then_some(()))?;
    Ok(started)
}

impl Subject for Shop {
    fn network(&self) -> Option<&Network> {
        Some(&self.network)
    }

    fn hosts(&self) -> Vec<String> {
        HOSTS.map(str::to_owned).to_vec()
    }

    fn client(&self) -> Result<&Netns> {
        Ok(self.network.machine(FRONT))
    }

    fn load(&self) -> Steady {
        Steady {
            targets: vec![address(FRONT, SHOP_PORT)],
            protocol: Protocol::Http,
            connections: 8,
            per_second: 10,
            seconds: 0,
            keys: 1000,
            commands: vec!["GET /item/{key}".to_owned()],
            seed: 0,
            dial: PathBuf::new(),
        }
    }

    fn inject(&mut self, fault: Fault, dice: &mut Dice, lasting: Duration) -> Result<(String, Expected)> {
        // A service and its machine, for faults that either may have.
        let (victim, host, usual) = if dice.below(2) == 0 {
            ("shop", HOSTS[FRONT], USUAL_SHOP)
        } else {
            ("prices", HOSTS[MIDDLE], USUAL_PRICES)
        };
        let expected = |kinds: &[&'static str], services: &[&'static str], hosts: &[&str]| Expected {
            kinds: kinds.to_vec(),
            services: services.to_vec(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        let cable = [MIDDLE, BACK][dice.below(2) as usize];
        Ok(match fault {
            Fault::LinkDelay => {
                let delay_us = 3_000 + dice.below(12_000);
                self.network.shape(cable, &Shape { delay_us, ..Shape::default() })?;
                let done = format!("{delay_us} us each way on {}'s cable", HOSTS[cable]);
                (done, expected(&["network"], &[], &[HOSTS[cable]]))
            }
            Fault::Retransmissions => {
                let lost_per_mille = 80 + dice.below(60);
                self.network.shape(cable, &Shape { lost_per_mille, ..Shape::default() })?;
                let done = format!("{lost_per_mille} of 1000 frames lost on {}'s cable", HOSTS[cable]);
                (done, expected(&["retransmissions"], &[], &[HOSTS[cable]]))
            }
            Fault::CpuStarvation => {
                let program =
                    if victim == "shop" { &self.shop } else { self.prices.as_ref().context("prices")? };
                let percent = 3;
                self.limit = Some(CpuLimit::new(program.pid(), percent)?);
                let done = format!("{victim} on {host} has {percent} % of a CPU");
                (done, expected(&["service", "queue"], &[victim], &[host]))
            }
            Fault::Lock => {
                let locked_us = 6_000 + dice.below(3_000);
                self.dial(victim, &Behaviour { locked_us, ..usual })?;
                let done = format!("{victim} on {host} holds one lock for {locked_us} us per request");
                (done, expected(&["service"], &[victim], &[host]))
            }
            Fault::HotKey => {
                let percent = 50 + dice.below(30);
                mix(&self.folder, percent)?;
                let done =
                    format!("{percent} % of the requests are for the key {HOT_KEY}, of {HOT_BYTES} bytes");
                (done, expected(&["hot key"], &[], &[]))
            }
            Fault::MoreCalls => {
                let calls = 15 + dice.below(20) as u32;
                self.dial("shop", &Behaviour { calls, ..USUAL_SHOP })?;
                let done = format!("shop asks Redis for {calls} keys one by one");
                (done, expected(&["more calls"], &["nutcracker", "redis-server"], &[]))
            }
            Fault::Pause => {
                let stopped = Duration::from_millis(150 + dice.below(150));
                let (program, name, host) = match dice.below(3) {
                    0 => (&self.proxy, "nutcracker", HOSTS[MIDDLE]),
                    1 => (self.prices.as_ref().context("prices")?, "prices", HOSTS[MIDDLE]),
                    _ => (&self.redis[0], "redis-server", HOSTS[BACK]),
                };
                stop_and_go(program, stopped, Duration::from_millis(600), lasting);
                let done = format!("{name} on {host} stops for {stopped:?} every 600 ms");
                (done, expected(&["queue", "service", "reply queue"], &[name], &[host]))
            }
            Fault::Errors => {
                let failing_percent = 10 + dice.below(30);
                self.dial(victim, &Behaviour { failing_percent, ..usual })?;
                let done = format!("{failing_percent} % of the requests to {victim} on {host} fail");
                (done, expected(&["failures"], &[victim], &[host]))
            }
            Fault::NewVersion => {
                let wait_us = 8_000 + dice.below(8_000);
                self.dial("prices", &Behaviour { wait_us, ..USUAL_PRICES })?;
                drop(self.prices.take());
                self.prices = Some(prices(&self.network, &self.folder, "prices-2")?);
                let done = format!("prices on {} is started anew and waits for {wait_us} us", HOSTS[MIDDLE]);
                (done, expected(&["new process"], &["prices"], &[HOSTS[MIDDLE]]))
            }
            Fault::SlowReplica => bail!("{} is not a fault of the shop", fault.name()),
        })
    }
}
