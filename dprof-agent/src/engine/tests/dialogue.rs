//! Conversations as servers would have them, in every odd mode: what a client asks and, beside it, what comes back
//! for it, so that the pairing is known without a parser.

// By path: the fuzz targets include this file, too, from their own place.
#[path = "dialogue/dnode.rs"]
mod dnode;
#[path = "dialogue/memcached.rs"]
mod memcached;

use dnode::Dnode;
use memcached::Memcached;

/// Where choices come from: a seeded generator, or the bytes of a fuzzer.
pub(crate) trait Choose {
    /// A number below `n`.
    fn below(&mut self, n: u32) -> u32;
}

/// In every value, and nowhere else: what is masked or stored must not have it.
pub(crate) const SECRET: &str = "secret";

/// What a client does at once, and what the server answers to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    /// Requests, one per element.
    pub(crate) requests: Vec<Vec<u8>>,
    /// Everything that comes back, in order.
    pub(crate) replies: Vec<Vec<u8>>,
    /// The answer takes this long, microseconds.
    pub(crate) takes_us: u64,
}

impl Turn {
    /// A request and what comes back for it; empty: nothing.
    fn say(&mut self, request: Vec<u8>, reply: Vec<u8>) {
        self.requests.push(request);
        if !reply.is_empty() {
            self.replies.push(reply);
        }
    }
}

/// A connection of some protocol.
pub(crate) enum Dialogue {
    Redis(Redis),
    Http,
    Memcached(Memcached),
    Dnode(Dnode),
}

impl Dialogue {
    /// Any of them.
    pub(crate) fn choose(rng: &mut dyn Choose) -> Self {
        match rng.below(8) {
            0..3 => Self::Redis(Redis::default()),
            3 | 4 => Self::Http,
            5 => Self::Memcached(Memcached::new(false)),
            6 => Self::Memcached(Memcached::new(true)),
            _ => Self::Dnode(Dnode::new(rng.below(2) == 0)),
        }
    }

    /// The protocol's name and usual port.
    pub(crate) const fn protocol(&self) -> (&'static str, u16) {
        match self {
            Self::Redis(_) => ("redis", 6379),
            Self::Http => ("http", 8080),
            Self::Memcached(_) => ("memcached", 11211),
            Self::Dnode(_) => ("dnode", 8101),
        }
    }

    /// What the client does next, `depth` requests at once at most.
    pub(crate) fn turns(&mut self, rng: &mut dyn Choose, depth: u32) -> Vec<Turn> {
        match self {
            Self::Redis(redis) => redis.turns(rng, depth),
            Self::Http => http_turns(rng, depth),
            Self::Memcached(memcached) => vec![memcached.turn(rng, depth)],
            Self::Dnode(dnode) => vec![dnode.turn(rng, depth)],
        }
    }
}

pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    text.into_bytes()
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// A connection to Redis: a client that knows what the server will say.
#[derive(Default)]
pub(crate) struct Redis {
    is_resp3: bool,
    n: u32,
}

impl Redis {
    fn key(&mut self) -> String {
        self.n += 1;
        format!("key:{}", self.n)
    }

    /// An ordinary command and its reply.
    fn ordinary(&mut self, rng: &mut dyn Choose) -> (Vec<u8>, String) {
        let key = self.key();
        let size = [3, 40, 700, 5000][rng.below(4) as usize];
        let value = format!("{SECRET}{key}").repeat(size / 12 + 1);
        match rng.below(14) {
            0 => (command(&["SET", &key, &value]), "+OK\r\n".into()),
            1 => (command(&["GET", &key]), bulk(&value)),
            2 => (command(&["GET", &key]), if self.is_resp3 { "_\r\n" } else { "$-1\r\n" }.into()),
            3 => (command(&["INCR", &key]), format!(":{}\r\n", self.n)),
            4 => (command(&["MGET", &key, "b"]), format!("*2\r\n{}$-1\r\n", bulk(&value))),
            5 => (command(&["LPUSH", &key, &value]), "-WRONGTYPE no\r\n".into()),
            6 => (command(&["GET", &key]), format!("-MOVED {} 10.0.0.3:6379\r\n", self.n)),
            7 => (command(&["ASKING"]), "+OK\r\n".into()),
            8 => (command(&["EVALSHA", "0123", "1", &key, &value]), "*2\r\n*1\r\n:1\r\n+x\r\n".into()),
            9 => (format!("get {key}\r\n").into_bytes(), bulk(&value)),
            10 => (command(&["CONFIG", "GET", "*"]), format!("*2\r\n{}{}", bulk("a"), bulk(&value))),
            11 if self.is_resp3 => (
                command(&["HGETALL", &key]),
                format!("|1\r\n+ttl\r\n:1\r\n%1\r\n{}", bulk("f") + &bulk(&value)),
            ),
            // A list that looks like a published message: only where nobody is subscribed in RESP2.
            12 => (
                command(&["LRANGE", &key, "0", "-1"]),
                format!("*3\r\n{}{}{}", bulk("message"), bulk("c"), bulk(&value)),
            ),
            _ => (command(&["PING"]), "+PONG\r\n".into()),
        }
    }

    fn push(&self, words: &[&str], number: Option<u32>) -> String {
        let kind = if self.is_resp3 { '>' } else { '*' };
        let words_text: String = words.iter().map(|word| bulk(word)).collect();
        let number_text = number.map_or_else(String::new, |n| format!(":{n}\r\n"));
        format!("{kind}{}\r\n{words_text}{number_text}", words.len() + usize::from(number.is_some()))
    }

    /// What a client does in one go: ordinary commands, `depth` at a time, or an episode of an odd mode.
    fn turns(&mut self, rng: &mut dyn Choose, depth: u32) -> Vec<Turn> {
        let turn = |requests: Vec<Vec<u8>>, replies: &[&str], takes_us| Turn {
            requests,
            replies: replies.iter().map(|reply| reply.as_bytes().to_vec()).collect(),
            takes_us,
        };
        let takes_us = 20 + u64::from(rng.below(300));
        if rng.below(3) > 0 {
            let mut this = Turn { takes_us, ..Turn::default() };
            for _ in 0..=rng.below(depth) {
                let (request, reply) = self.ordinary(rng);
                this.requests.push(request);
                this.replies.push(reply.into_bytes());
            }
            return vec![this];
        }
        match rng.below(9) {
            0 => {
                let key = self.key();
                let requests = vec![
                    command(&["MULTI"]),
                    command(&["INCR", &key]),
                    command(&["BLPOP", &key, "0"]),
                    command(&["EXEC"]),
                ];
                let replies = ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", "*2\r\n:1\r\n*-1\r\n"];
                one_by_one(requests, &replies, depth, takes_us)
            }
            1 => {
                // The value comes when somebody pushes it.
                let key = self.key();
                let reply = format!("*2\r\n{}{}", bulk(&key), bulk("job"));
                vec![turn(vec![command(&["BLPOP", &key, "0"])], &[&reply], 60_000)]
            }
            2 => {
                let mut requests = vec![command(&["CLIENT", "REPLY", "SKIP"]), command(&["INCR", "a"])];
                requests.push(command(&["INCR", "b"]));
                vec![turn(requests, &[":7\r\n"], takes_us)]
            }
            3 => {
                let requests = vec![
                    command(&["CLIENT", "REPLY", "OFF"]),
                    command(&["SET", "a", "b"]),
                    command(&["GET", "a"]),
                    command(&["CLIENT", "REPLY", "ON"]),
                ];
                vec![turn(requests, &["+OK\r\n"], takes_us)]
            }
            4 => {
                let mut turns = Vec::new();
                let (first, second) =
                    (self.push(&["subscribe", "a"], Some(1)), self.push(&["subscribe", "b"], Some(2)));
                turns.push(turn(vec![command(&["SUBSCRIBE", "a", "b"])], &[&first, &second], takes_us));
                let message = self.push(&["message", "a", "hello"], None);
                for _ in 0..rng.below(4) {
                    turns.push(turn(vec![], &[&message, &message], takes_us));
                }
                let pong =
                    if self.is_resp3 { "+PONG\r\n".to_owned() } else { self.push(&["pong", ""], None) };
                turns.push(turn(vec![command(&["PING"])], &[&message, &pong, &message], takes_us));
                if self.is_resp3 {
                    let (request, reply) = self.ordinary(rng);
                    turns.push(turn(vec![request], &[&message, &reply], takes_us));
                }
                let (one, none) =
                    (self.push(&["unsubscribe", "a"], Some(1)), self.push(&["unsubscribe", "b"], Some(0)));
                turns.push(turn(vec![command(&["UNSUBSCRIBE"])], &[&one, &message, &none], takes_us));
                turns
            }
            5 => {
                let line = "+1339518083.107412 [0 127.0.0.1:60866] \"get\" \"a\"\r\n";
                self.is_resp3 = false;
                vec![
                    turn(vec![command(&["MONITOR"])], &["+OK\r\n"], takes_us),
                    turn(vec![], &[line, line], takes_us),
                    turn(vec![command(&["RESET"])], &[line, "+RESET\r\n"], takes_us),
                ]
            }
            6 => {
                self.is_resp3 = !self.is_resp3;
                let version = if self.is_resp3 { "3" } else { "2" };
                let reply =
                    if self.is_resp3 { "%1\r\n$5\r\nproto\r\n:3\r\n" } else { "*2\r\n$5\r\nproto\r\n:2\r\n" };
                vec![turn(vec![command(&["HELLO", version])], &[reply], takes_us)]
            }
            7 if self.is_resp3 => {
                let push = self.push(&["invalidate", "a"], None);
                vec![turn(vec![], &[&push], takes_us)]
            }
            _ => {
                let key = self.key();
                let request = command(&["XREAD", "BLOCK", "100", "STREAMS", &key, "$"]);
                vec![turn(vec![request], &[if self.is_resp3 { "_\r\n" } else { "*-1\r\n" }], 100_000)]
            }
        }
    }
}

/// All at once if the client pipelines, else each after the reply to the one before.
fn one_by_one(requests: Vec<Vec<u8>>, replies: &[&str], depth: u32, takes_us: u64) -> Vec<Turn> {
    let replies = replies.iter().map(|reply| reply.as_bytes().to_vec());
    if depth > 1 {
        return vec![Turn { requests, replies: replies.collect(), takes_us }];
    }
    requests
        .into_iter()
        .zip(replies)
        .map(|(request, reply)| Turn { requests: vec![request], replies: vec![reply], takes_us })
        .collect()
}

/// What an HTTP client does in one go.
fn http_turns(rng: &mut dyn Choose, depth: u32) -> Vec<Turn> {
    let takes_us = 20 + u64::from(rng.below(300));
    let text = |lines: &str| lines.replace('|', "\r\n").into_bytes();
    let mut turn = Turn { takes_us, ..Turn::default() };
    for _ in 0..=rng.below(depth) {
        let body = SECRET.repeat([0, 1, 50, 800][rng.below(4) as usize]);
        let id = rng.below(100_000);
        let length = body.len();
        let get = format!("GET /cart/{id}?q=1 HTTP/1.1|Host: shop|X-Request-ID: {id}||");
        let (request, reply) = match rng.below(11) {
            0 => (get, format!("HTTP/1.1 200 OK|Content-Length: {length}||{body}")),
            1 => (
                format!("POST /cart HTTP/1.1|Host: shop|Content-Length: {length}||{body}"),
                "HTTP/1.1 204 No Content||".into(),
            ),
            2 => (
                format!("HEAD /cart/{id} HTTP/1.1|Host: shop||"),
                format!("HTTP/1.1 200 OK|Content-Length: {}||", length + 1),
            ),
            3 => (get, "HTTP/1.1 304 Not Modified|Content-Length: 9||".into()),
            4 => (
                get,
                format!(
                    "HTTP/1.1 200 OK|Transfer-Encoding: chunked||5;a=b|hello|{length:x}|{body}|0|Trailer: x||"
                )
                .replace("|0||0|", "|0|"),
            ),
            5 => (
                "POST /up HTTP/1.1|Host: shop|Transfer-Encoding: chunked||3|abc|0||".into(),
                "HTTP/1.1 503 Busy|Content-Length: 0||".into(),
            ),
            6 => {
                (get, format!("HTTP/1.1 103 Early|Link: x||HTTP/1.1 200 OK|Content-Length: {length}||{body}"))
            }
            7 => (
                format!("GET / HTTP/1.1|Host: shop|X-Folded: a|\tb|Content-Length: {length}||{body}"),
                "HTTP/1.1 404 No|Content-Length: 3||abc".into(),
            ),
            8 => ("OPTIONS * HTTP/1.1|Host: shop||".into(), "HTTP/1.1 200 OK|Content-Length: 0||".into()),
            9 => (
                "GET http://shop/a HTTP/1.1|Host: shop||".into(),
                "HTTP/1.1 200 OK|Content-Length: 1||a".into(),
            ),
            _ => (get, "HTTP/1.1 500 No|Content-Length: 2||no".into()),
        };
        // An empty chunk would end the body: what follows would be a trailer.
        let reply = if length == 0 { reply.replace("|0||0|Trailer", "|0|Trailer") } else { reply };
        turn.requests.push(text(&request));
        turn.replies.push(text(&reply));
    }
    vec![turn]
}
