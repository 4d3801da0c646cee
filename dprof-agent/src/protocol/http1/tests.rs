//! HTTP/1 as text: inputs in the notation of `testing`, and what the parser says of them.

use proptest::prelude::*;

use super::Http1;
use crate::protocol::testing::{self, Step};
use crate::protocol::{Direction, Parsed, Protocol};

/// Checks without the attributes, which one test looks at.
#[track_caller]
fn check(input: &str, expected: &str) {
    let short = |line: &str| -> String {
        line.split_whitespace()
            .map(|word| match word {
                "GET" => "[GET /] [GET /] http.request.method=GET url.path=/",
                "HEAD" => "[HEAD /] [HEAD /] http.request.method=HEAD url.path=/",
                "POST" => "[POST /] [POST /] http.request.method=POST url.path=/",
                "200" => "[200] http.response.status_code=200",
                "100" => "[100] http.response.status_code=100",
                "101" => "[101] http.response.status_code=101",
                "204" => "[204] http.response.status_code=204",
                "304" => "[304] http.response.status_code=304",
                "407" => "[407] http.response.status_code=407",
                "500" => "[500] http.response.status_code=500 error",
                other => other,
            })
            .collect::<Vec<_>>()
            .join(" ")
            + "\n"
    };
    testing::check(&Http1, false, input, &expected.lines().map(str::trim).map(short).collect::<String>());
}

#[test]
fn what_is_kept_of_a_request() {
    testing::check(
        &Http1,
        false,
        ">| GET /cart/17?user=joe HTTP/1.1|Host: shop:8080|Cookie: secret|Authorization: secret||
         <| HTTP/1.1 404 Not Found|Content-Length: 5|Set-Cookie: secret||hello",
        "> 0..90 req [GET /cart/{id}] [GET /cart/17?user=?] http.request.method=GET url.path=/cart/17 server.address=shop server.port=8080
         < 0..70 res [404] http.response.status_code=404",
    );
    testing::check(
        &Http1,
        false,
        ">| PURGE http://u:secret@shop/a HTTP/1.0|Host: other||",
        "> 0..54 req [_OTHER /a] [_OTHER /a] http.request.method=_OTHER url.path=/a server.address=shop",
    );
    testing::check(
        &Http1,
        false,
        ">| OPTIONS * HTTP/1.1|traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01||",
        "> 0..92 req [OPTIONS *] [OPTIONS *] http.request.method=OPTIONS url.path=* id=af7651916cd43dd8448eb211c80319c/b7ad6b7169203331",
    );
    testing::check(
        &Http1,
        false,
        ">| GET / HTTP/1.1|X-B3-TraceId: 8448eb211c80319c|x-b3-spanid:b7ad6b7169203331||",
        "> 0..80 req [GET /] [GET /] http.request.method=GET url.path=/ id=8448eb211c80319c/b7ad6b7169203331",
    );
}

#[test]
fn responses_end_where_they_should() {
    let get = ">| GET / HTTP/1.1||";
    check(&format!("{get}\n<| HTTP/1.1 200 OK|content-length:  2 ||ab"), "> 0..18 req GET\n< 0..42 res 200");
    check(
        &format!(
            "{get}\n<| HTTP/1.1 204 No|Content-Length: 2||\n{get}\n<| HTTP/1.1 304 No|Content-Length: 2||"
        ),
        "> 0..18 req GET\n< 0..38 res 204\n> 18..36 req GET\n< 38..76 res 304",
    );
    check(
        ">| HEAD / HTTP/1.1||GET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Content-Length: 9||HTTP/1.1 200 OK|Content-Length: 1||a",
        "> 0..19 req HEAD\n> 19..37 req GET\n< 0..38 res 200\n< 38..77 res 200",
    );
    check(
        &format!("{get}\n<| HTTP/1.1 200 OK|Transfer-Encoding: gzip, chunked||3;x|abc|0|A: b||"),
        "> 0..18 req GET\n< 0..74 res 200",
    );
    check(&format!("{get}\n<| HTTP/1.0 200 OK||abc\n<| def\n<."), "> 0..18 req GET\n< 0..25 res 200");
    check(&format!("{get}\n<| HTTP/1.0 200 OK||abc\n<~ 1000\n<."), "> 0..18 req GET\n< 0..1022 res 200");
    check(&format!("{get}\n<| HTTP/1.0 200 OK||"), "> 0..18 req GET");
    // Cut off: what it would have been is known.
    check(
        &format!("{get}\n<| HTTP/1.1 200 OK|Content-Length: 5||ab\n<."),
        "> 0..18 req GET\n< 0..40 res 200 incomplete",
    );
    check(
        &format!("{get}\n<| HTTP/1.1 200 OK|Transfer-Encoding: gzip||ab\n<."),
        "> 0..18 req GET\n< 0..46 res 200",
    );
    check(&format!("{get}\n<| HTTP/1.1 500 No|Content-Length: 0||"), "> 0..18 req GET\n< 0..38 res 500");
}

#[test]
fn requests_end_where_they_should() {
    check(
        ">| POST / HTTP/1.1|Content-Length: 3||abcGET / HTTP/1.1||GET / HTTP/1.1||",
        "> 0..41 req POST\n> 41..59 req GET\n> 59..77 req GET",
    );
    check(
        ">| POST / HTTP/1.1|Transfer-Encoding: chunked||3|abc|0||GET / HTTP/1.1||",
        "> 0..60 req POST\n> 60..78 req GET",
    );
    check(
        ">| POST / HTTP/1.1|Content-Length: 3, 3||abc|GET / HTTP/1.1||",
        "> 0..44 req POST\n> 46..64 req GET",
    );
    check(
        ">\" GET / HTTP/1.1\\nHost: a\\n\\n\\nGET / HTTP/1.1\\n\\n",
        "> 0..24 req [GET /] [GET /] http.request.method=GET url.path=/ server.address=a\n> 25..41 req GET",
    );
    check(">| POST / HTTP/1.1|Content-Length:| 3||abc", "> 0..43 req POST");
    check(">| POST / HTTP/1.1|X: a|\tb|Content-Length: 3||abc", "> 0..51 req POST");
    check(">| GET / HTTP/1.1|Long: \\{x*9000}|Content-Length: 3||abc", "> 0..9048 req GET");
    check(
        ">| POST / HTTP/1.1|Expect: 100-continue|Content-Length: 3||\n<| HTTP/1.1 100 Continue||\n>| abc\n<| HTTP/1.1 204 No||",
        "< 0..25 push 100\n> 0..63 req POST\n< 25..44 res 204",
    );
    // Answered before it was sent.
    check(
        ">| POST / HTTP/1.1|Content-Length: 3||a\n<| HTTP/1.1 500 No|Content-Length: 0||\n>| bc",
        "< 0..38 res 500\n> 0..41 req POST",
    );
}

/// Whether the first message of an input says that its body's length can be read in two ways, and how it is marked.
fn is_ambiguous(input: &str) -> bool {
    let out = testing::run(&Http1, false, &testing::steps(input));
    let Some(Parsed::Message(message)) = out.last() else { panic!("{out:?}") };
    let says = message.attributes.iter().any(|(name, _)| name == "dprof.http.framing");
    assert_eq!(says, message.answers_unknown || message.incomplete, "{input}");
    says
}

#[test]
fn bodies_that_others_may_end_elsewhere_are_marked() {
    for head in [
        "POST / HTTP/1.1|Transfer-Encoding: chunked|Content-Length: 9|",
        "POST / HTTP/1.1|Content-Length: 9|Transfer-Encoding: chunked|",
        "POST / HTTP/1.1|Transfer-Encoding : x|Transfer-Encoding: chunked|",
        "POST / HTTP/1.1|Content-Length : 9|Transfer-Encoding: chunked|",
        "POST / HTTP/1.1|Transfer-Encoding: chunked, chunked|",
        "POST / HTTP/1.0|Transfer-Encoding: chunked|",
    ] {
        assert!(is_ambiguous(&format!(">| {head}|0||")), "{head}");
    }
    for head in ["Transfer-Encoding: gzip, chunked|", "Transfer-Encoding:|\tchunked|"] {
        assert!(!is_ambiguous(&format!(">| POST / HTTP/1.1|{head}|0||")), "{head}");
    }
    assert!(!is_ambiguous(">| POST / HTTP/1.0|Content-Length: 1, 1||a"));
    let response = "HTTP/1.1 200 OK|Transfer-Encoding: chunked|Content-Length: 9||0||";
    assert!(is_ambiguous(&format!(">| GET / HTTP/1.1||\n<| {response}")));
}

#[test]
fn an_event_stream_is_answered_by_its_head() {
    check(
        ">| GET / HTTP/1.1||
         <| HTTP/1.1 200 OK|Content-Type: Text/Event-Stream; charset=utf-8|Transfer-Encoding: chunked||3|abc|
         <| 3|def|0||
         >| GET / HTTP/1.1||
         <| HTTP/1.1 200 OK|Content-Type: text/event-stream||data: 1
         <.",
        "> 0..18 req GET
         < 0..95 res 200
         < 95..116 push
         > 18..36 req GET
         < 116..168 res 200
         < 168..175 push",
    );
}

#[test]
fn a_request_id_is_kept_when_it_is_one() {
    let id = |header: &str| {
        let out = testing::run(&Http1, false, &testing::steps(&format!(">| GET / HTTP/1.1|{header}||")));
        let Some(Parsed::Message(message)) = out.first() else { panic!("{out:?}") };
        let is_id = |(name, _): &&(std::borrow::Cow<str>, String)| name == "http.request.header.x-request-id";
        let id = message.attributes.iter().find(is_id).map(|(_, value)| value.clone());
        // For links, a hash of it: whatever stands around it.
        let hash = id.as_ref().map(|id| crate::protocol::hash::content_hash_of(id.as_bytes()));
        assert_eq!(message.request_id, hash);
        id
    };
    assert_eq!(id("x-request-ID:  7f-1 "), Some("7f-1".into()));
    assert_eq!(id("X-Request-ID: a|X-Request-ID: b"), Some("a".into()));
    assert_eq!(id(&format!("X-Request-ID: {}", "a".repeat(129))), None);
    for none in ["X-Request-ID: ", "X-Request-ID: a b", "X-Request-Id2: a", "X-B3-TraceId: 1"] {
        assert_eq!(id(none), None, "{none}");
    }
}

#[test]
fn another_protocol_may_follow() {
    let upgrade = "GET / HTTP/1.1|Connection: keep-alive, Upgrade|Upgrade: websocket||";
    check(
        &format!(">| {upgrade}\n<| HTTP/1.1 101 Go|Upgrade: websocket||\\x81\\x00"),
        "> 0..71 req GET\n< 0..39 res 101\nswitch 71 39",
    );
    check(
        &format!(">| {upgrade}\n<| HTTP/1.1 200 OK|Content-Length: 1||a\n>| GET / HTTP/1.1||"),
        "> 0..71 req GET\n< 0..39 res 200\n> 71..89 req GET",
    );
    check(
        &format!(
            ">| {upgrade}\n>\" \\x00\\x01\n<| HTTP/1.1 200 OK|Content-Length: 1||a\n>| GET / HTTP/1.1||"
        ),
        "> 0..71 req GET\n> lost 71\n< 0..39 res 200\n> 73..91 req GET",
    );
    testing::check(
        &Http1,
        false,
        ">| CONNECT shop:443 HTTP/1.1||\n<| HTTP/1.1 200 OK||\n>\" \\x16\\x03",
        "> 0..29 req [CONNECT] [CONNECT shop:443] http.request.method=CONNECT server.address=shop server.port=443
         < 0..19 res [200] http.response.status_code=200
         switch 29 19",
    );
    testing::check(
        &Http1,
        false,
        ">| CONNECT shop:443 HTTP/1.1||\n<| HTTP/1.1 407 No|Content-Length: 0||\n>| GET / HTTP/1.1||",
        "> 0..29 req [CONNECT] [CONNECT shop:443] http.request.method=CONNECT server.address=shop server.port=443
         < 0..38 res [407] http.response.status_code=407
         > 29..47 req [GET /] [GET /] http.request.method=GET url.path=/",
    );
}

#[test]
fn garbage_is_lost_or_mistaken() {
    let get = ">| GET / HTTP/1.1||";
    for garbage in [
        "\\x00",
        "get / HTTP/1.1||",
        "GET /|",
        "GET / HTTP/2.0||",
        "GET / HTTP/1.1|Content-Length: x||",
        "GET / HTTP/1.1|Content-Length: 1|Content-Length: 2||",
        "GET / HTTP/1.1|Content-Length: -1||",
        "POST / HTTP/1.1|Transfer-Encoding: gzip||",
    ] {
        check(&format!(">| {garbage}"), "mistaken");
        check(&format!("{get}\n>| {garbage}"), "> 0..18 req GET\n> lost 18");
    }
    for garbage in
        ["\\x00", "HTTP/1.1 20 OK||", "HTTP/2 200||", "HTTP/1.1 200 OK|Transfer-Encoding: chunked||x|"]
    {
        check(&format!("<| {garbage}"), "mistaken");
        check(&format!("{get}\n<| {garbage}"), "> 0..18 req GET\n< lost 0");
    }
    check(">| GET / HTTP/1.1|\\{x: y|*60000}", "mistaken");
}

#[test]
fn the_boundary_is_found_again_where_the_connection_turns() {
    check(
        ">| GET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Conte\n<~ 20\n<| rest\n>| GET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Content-Length: 1||a",
        "> 0..18 req GET\n< lost 0\n> 18..36 req GET\n< 46..85 res 200",
    );
    // The body was lost whole, and its length with it: what follows the hole is a boundary if it looks like one.
    check(">| GET / HTTP/1.1||\n>~ 30\n>| GET / HTTP/1.1||", "> 0..18 req GET\n> lost 18\n> 48..66 req GET");
    check(
        ">| GET / HTTP/1.1||\n>~ 30\n>| xGET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Content-Length: 1||a\n>| GET / HTTP/1.1||",
        "> 0..18 req GET\n> lost 18\n< 0..39 res 200\n> 67..85 req GET",
    );
    // Whether the answer was to HEAD is not known then: its next bytes say it.
    check(
        ">~ 30\n<| HTTP/1.1 200 OK|Content-Length: 9||\n>| HEAD / HTTP/1.1||\n<| HTTP/1.1 200 OK|Content-Length: 1||",
        "> lost 0\n< 0..38 res 200 incomplete\n> 30..49 req HEAD",
    );
    check(">~ 30\n<| HTTP/1.1 200 OK|Content-Length: 9||HTTP/1.0X\n<.", "> lost 0\n< 0..38 res 200");
    check(
        ">~ 30\n<| HTTP/1.1 200 OK|Content-Length: 9||HTTP/2.0X\n<.",
        "> lost 0\n< 0..47 res 200 incomplete",
    );
    check(">~ 30\n<| HTTP/1.1 200 OK|Content-Length: 4||HTTP\n<.", "> lost 0\n< 0..42 res 200 incomplete");
    testing::check(
        &Http1,
        true,
        ">| dy|\n<| tail\n>| GET / HTTP/1.1||",
        "> lost 0
         < lost 0
         > 4..22 req [GET /] [GET /] http.request.method=GET url.path=/",
    );
}

#[test]
fn holes_in_bodies_cost_nothing() {
    let post = ">| POST / HTTP/1.1|Content-Length: 1000||abc";
    check(&format!("{post}\n>~ 997\n>| GET / HTTP/1.1||"), "> 0..1041 req POST\n> 1041..1059 req GET");
    check(
        &format!("{post}\n>~ 900\n>| \\{{x*97}}GET / HTTP/1.1||"),
        "> 0..1041 req POST\n> 1041..1059 req GET",
    );
    check(&format!("{post}\n>~ 998\n>| ET / HTTP/1.1||"), "> 0..1041 req POST\n> lost 1041");
    let chunked = ">| POST / HTTP/1.1|Transfer-Encoding: chunked||3e8|";
    check(&format!("{chunked}\n>~ 1000\n>| |0||"), "> 0..1059 req POST");
    check(&format!("{chunked}\n>~ 1002\n>| 1|a|0||"), "> 0..1065 req POST");
    check(&format!("{chunked}\n>~ 1003\n>| |a|0||"), "> lost 0");
}

#[test]
fn contents_have_hashes_unless_bytes_are_missing() {
    let of = |input: &str| match &testing::run(&Http1, false, &testing::steps(input))[..] {
        [Parsed::Message(message)] => message.content_hash,
        other => panic!("{other:?}"),
    };
    let plain = of(">| POST / HTTP/1.1|Content-Length: 3||abc");
    assert!(plain.is_some());
    assert_eq!(of(">| POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked||1|a|2|bc|0||"), plain);
    assert_ne!(of(">| POST / HTTP/1.1|Content-Length: 3||abd"), plain);
    assert_ne!(of(">| POST /a HTTP/1.1|Content-Length: 3||abc"), plain);
    assert_eq!(of(">| POST / HTTP/1.1|Content-Length: 3||a\n>~ 2"), None);
}

#[test]
fn payload_is_worth_more_once_there_are_chunks() {
    let mut parser = Http1.parser(Direction::Out, [0, 0], false);
    assert_eq!(parser.payload_limit(Direction::In), 4096);
    testing::run_on(
        &mut *parser,
        &testing::steps(">| GET / HTTP/1.1||\n<| HTTP/1.1 200 OK|Transfer-Encoding: chunked||0||"),
    );
    assert_eq!((parser.payload_limit(Direction::Out), parser.payload_limit(Direction::In)), (4096, 16384));
}

#[test]
fn holes_never_make_a_wrong_message() {
    let found = testing::check_holes(
        &Http1,
        ">| POST /a HTTP/1.1|Host: a|Content-Length: 20||01234567890123456789
         <| HTTP/1.1 200 OK|Content-Length: 10||0123456789
         >| HEAD /b HTTP/1.1|Host: a||
         <| HTTP/1.1 200 OK|Content-Length: 10||
         >| POST /c HTTP/1.1|Transfer-Encoding: chunked||5|01234|a|0123456789|0||
         <| HTTP/1.1 100 Continue||HTTP/1.1 503 No|Transfer-Encoding: chunked||5|01234|a|0123456789|0||
         >| GET /d HTTP/1.1||
         <| HTTP/1.1 204 No||",
    );
    assert!(found > 20_000, "{found}");
}

/// Bytes that are half right: whole lines of the protocol in any order.
fn words() -> impl Strategy<Value = Vec<u8>> {
    const WORDS: &[&str] = &[
        "GET / HTTP/1.1\r\n",
        "HEAD /a HTTP/1.1\r\n",
        "POST /b HTTP/1.0\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 100 C\r\n",
        "HTTP/1.1 101 S\r\n",
        "HTTP/1.0 304 N\n",
        "Content-Length: 3\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Upgrade: x\r\n",
        "Connection: upgrade\r\n",
        " folded\r\n",
        "Host: a\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "3\r\n",
        "abc",
        "abc\r\n",
        "0\r\n",
        "HTTP",
        "\0",
    ];
    let word = prop_oneof![
        8 => prop::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(word, 0..20).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_bytes_give_the_same_however_cut(
        steps in prop::collection::vec((any::<bool>(), words(), 0u64..4), 0..12),
        joined: bool,
        seed in 1usize..50,
    ) {
        let mut steps: Vec<Step> = steps
            .into_iter()
            .flat_map(|(out, bytes, gap)| {
                let direction = if out { Direction::Out } else { Direction::In };
                [Step::Bytes(direction, bytes), Step::Gap(direction, gap)]
            })
            .collect();
        steps.push(Step::End(Direction::In));
        let whole = testing::run(&Http1, joined, &steps);
        prop_assert_eq!(&testing::run(&Http1, joined, &testing::cut(&steps, |_| 1)), &whole);
        prop_assert_eq!(&testing::run(&Http1, joined, &testing::cut(&steps, |left| left % seed + 1)), &whole);
    }
}
