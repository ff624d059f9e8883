"""HTTP/1: framing, pairing, faults, gaps, and that no credential leaves the parser."""

import msgspec
import pytest

from helpers.streams import Script, Trace, assert_tiles, bytewise, run
from protocols.samples import C, S, lines
from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols import Limits, Pool, _base
from streamtap.protocols._base import FULL
from streamtap.protocols._redact import is_redacted, redact, without_hashes
from streamtap.protocols.http import HttpBody, HttpParser, HttpRequest, HttpResponse, HttpTunnel

GET = lines("GET / HTTP/1.1", "Host: h", "")
OK2 = lines("HTTP/1.1 200 OK", "Content-Length: 2", "") + b"ok"


def feed(*steps: tuple[Direction, bytes | int], midstream: bool = False, end: bool = True) -> Trace:
    """Whole and byte by byte: both must tile and say the same."""
    trace = run(HttpParser, steps, midstream=midstream, end=end)
    single = run(HttpParser, bytewise(steps), midstream=midstream, end=end)
    assert single.merged() == trace.merged()
    if end:
        assert_tiles(trace)
    return trace


def brief(trace: Trace, direction: Direction) -> list[str]:
    """One word or two for each event, adjacent pieces joined."""
    words = []
    for event in trace.merged()[direction]:
        match event:
            case HttpRequest(method=method, target=target):
                words.append(f"{method} {target}")
            case HttpResponse(status=status):
                words.append(str(status))
            case HttpBody(payload_length=length, final=final, truncated=truncated):
                words.append(f"body {length}{' cut' * truncated}{'' if final else ' open'}")
            case HttpTunnel(length=length):
                words.append(f"tunnel {length}")
            case Malformed():
                words.append("malformed")
            case Skipped(length=length):
                words.append(f"skipped {length}")
            case _:
                words.append(f"gap {event.length}")
    return words


def request(target: str, *headers: str, method: str = "GET") -> HttpRequest:
    trace = feed((C, lines(f"{method} {target} HTTP/1.1", *headers, "")))
    found = [event for event in trace.of(C) if isinstance(event, HttpRequest)]
    assert len(found) == 1
    return found[0]


# Framing


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (["Content-Length: 5"], b"hello", "body 5"),
        (["content-length:5"], b"hello", "body 5"),
        (["Content-Length: 5, 5"], b"hello", "body 5"),
        (["Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n", "body 5"),
        (["Transfer-Encoding: gzip, Chunked"], b"5\nhello\n0\n\n", "body 5"),
        (
            ["Transfer-Encoding: chunked"],
            b'2;x="y"\r\nhe\r\n003 \r\nllo\r\n0\r\nA: b\r\n\r\n',
            "body 5",
        ),
    ],
)
def test_a_body_ends_where_its_framing_says(head: list[str], body: bytes, expected: str) -> None:
    trace = feed((C, lines("POST / HTTP/1.1", *head, "") + body + GET))
    assert brief(trace, C) == ["POST /", expected, "GET /"]
    trace = feed((S, lines("HTTP/1.1 200 OK", *head, "") + body + OK2))
    assert brief(trace, S) == ["200", expected, "200", "body 2"]


def test_a_body_piece_counts_chunk_framing_in_its_length_but_not_in_its_payload() -> None:
    trace = feed(
        (S, lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "2", "ok", "0", ""))
    )
    body = trace.merged()[S][-1]
    assert isinstance(body, HttpBody)
    assert (body.length, body.payload_length) == (len(b"2\r\nok\r\n0\r\n\r\n"), 2)


@pytest.mark.parametrize("status", ["100 Continue", "204 No Content", "304 Not Modified"])
def test_a_response_that_never_has_a_body_has_none(status: str) -> None:
    trace = feed((S, lines(f"HTTP/1.1 {status}", "Content-Length: 20", "") + OK2))
    assert brief(trace, S) == [status[:3], "200", "body 2"]


def test_a_response_to_head_has_no_body_also_when_requests_are_pipelined() -> None:
    head = lines("HEAD / HTTP/1.1", "Host: h", "")
    bare = lines("HTTP/1.1 200 OK", "Content-Length: 2", "")
    trace = feed((C, GET + head + GET), (S, OK2 + bare + OK2))
    assert brief(trace, S) == ["200", "body 2", "200", "200", "body 2"]
    methods = [event.request_method for event in trace.of(S) if isinstance(event, HttpResponse)]
    assert methods == ["GET", "HEAD", "GET"]


def test_an_interim_response_does_not_use_up_the_request() -> None:
    head = lines("HEAD / HTTP/1.1", "Host: h", "")
    bare = lines("HTTP/1.1 103 Early Hints", "", "HTTP/1.1 200 OK", "Content-Length: 9", "")
    assert brief(feed((C, head), (S, bare + OK2)), S) == ["103", "200", "200", "body 2"]


def test_a_response_without_known_request_is_treated_normally() -> None:
    trace = feed((S, OK2), (C, GET))
    assert brief(trace, S) == ["200", "body 2"]
    response = trace.of(S)[0]
    assert isinstance(response, HttpResponse)
    assert response.request_method is None


def test_a_response_without_length_goes_on_until_the_end() -> None:
    steps: Script = [(C, GET), (S, lines("HTTP/1.0 200 OK", "") + b"some"), (S, b"more")]
    assert brief(feed(*steps, end=False), S) == ["200", "body 8 open"]
    assert brief(feed(*steps), S) == ["200", "body 8"]


def test_an_end_within_a_body_says_that_it_is_cut() -> None:
    trace = feed((S, lines("HTTP/1.1 200 OK", "Content-Length: 20", "") + b"part"))
    assert brief(trace, S) == ["200", "body 4 cut"]
    trace = feed((S, lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "9") + b"part"))
    assert brief(trace, S) == ["200", "body 4 cut"]


def test_body_pieces_are_told_as_they_arrive() -> None:
    steps: Script = [(S, lines("HTTP/1.1 200 OK", "Content-Length: 9", ""))]
    for piece in (b"abc", b"def", b"ghi"):
        steps = [*steps, (S, piece)]
        body = run(HttpParser, steps, end=False).of(S)[-1]
        assert isinstance(body, HttpBody)
        assert body.length == 3


def test_line_ends_of_lf_alone_folds_and_empty_lines_are_taken() -> None:
    trace = feed((C, b"\r\n\nGET / HTTP/1.0\nHost: h\nX-Long: one\n two\r\n\tthree\n\n"))
    assert brief(trace, C) == ["skipped 3", "GET /"]
    found = trace.of(C)[1]
    assert isinstance(found, HttpRequest)
    assert found.headers == (("Host", "h"), ("X-Long", "one two three"))


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("GET http://example.com:81/x?y HTTP/1.1", "example.com:81"),
        ("OPTIONS * HTTP/1.1", None),
        ("CONNECT example.com:443 HTTP/1.1", "example.com:443"),
        ("GET /path HTTP/1.1", None),
    ],
)
def test_every_form_of_target_is_a_request(line: str, host: str | None) -> None:
    found = feed((C, lines(line, ""))).of(C)[0]
    assert isinstance(found, HttpRequest)
    assert f"{found.method} {found.target} HTTP/{found.version}" == line
    assert found.host == host


def test_text_that_is_no_utf8_is_escaped() -> None:
    found = feed((C, b"GET /\xff HTTP/1.1\r\nX-Name: \xc3\xa9 \xe9\r\n\r\n")).of(C)[0]
    assert isinstance(found, HttpRequest)
    assert found.target == "/\\xff"
    assert found.headers == (("X-Name", "é \\xe9"),)
    assert msgspec.json.encode(found)


# Tunnels


def test_after_a_websocket_upgrade_the_rest_is_a_tunnel() -> None:
    upgrade = lines("GET /ws HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade", "")
    switched = lines("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "")
    trace = feed((C, upgrade), (S, switched + b"\x81\x00"), (C, b"GET / HTTP/1.1\r\n"), (C, 5))
    assert brief(trace, C) == ["GET /ws", "tunnel 16", "gap 5"]
    assert brief(trace, S) == ["101", "tunnel 2"]


def test_after_an_upgrade_that_was_ignored_requests_go_on() -> None:
    upgrade = lines("GET / HTTP/1.1", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "")
    trace = feed((C, upgrade), (S, OK2), (C, GET), (S, OK2))
    assert brief(trace, C) == ["GET /", "GET /"]
    assert brief(trace, S) == ["200", "body 2"] * 2


def test_a_tunnel_is_known_by_its_bytes_when_the_answer_comes_late() -> None:
    connect = lines("CONNECT h:443 HTTP/1.1", "")
    trace = feed((C, connect + b"\r\n\x16\x03\x01"), (S, lines("HTTP/1.1 200 OK", "") + b"\x16"))
    assert brief(trace, C) == ["CONNECT h:443", "tunnel 5"]
    assert brief(trace, S) == ["200", "tunnel 1"]


def test_a_refused_connect_leaves_http_behind() -> None:
    connect = lines("CONNECT h:443 HTTP/1.1", "")
    refused = lines("HTTP/1.1 403 Forbidden", "Content-Length: 2", "") + b"no"
    trace = feed((C, connect), (S, refused), (C, GET), (S, OK2))
    assert brief(trace, C) == ["CONNECT h:443", "GET /"]
    assert brief(trace, S) == ["403", "body 2", "200", "body 2"]


# Faults


def reasons(trace: Trace, direction: Direction) -> list[str]:
    return [event.reason for event in trace.of(direction) if isinstance(event, Malformed)]


def test_chunked_wins_over_a_length_and_the_contradiction_is_noted() -> None:
    head = lines("POST / HTTP/1.1", "Content-Length: 3", "Transfer-Encoding: chunked", "")
    trace = feed((C, head + b"1\r\nx\r\n0\r\n\r\n" + GET))
    assert brief(trace, C) == ["malformed", "POST /", "body 1", "GET /"]
    assert reasons(trace, C) == ["both transfer-encoding and content-length"]
    found = trace.of(C)[1]
    assert isinstance(found, HttpRequest)
    assert found.chunked
    assert found.content_length is None


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: 3, 4"],
        ["Content-Length: +3"],
        ["Content-Length: -1"],
        ["Content-Length: 0x3"],
        ["Content-Length: 3 4"],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length:"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, gzip"],
    ],
)
def test_a_request_of_uncertain_length_is_noted_and_the_next_one_found(headers: list[str]) -> None:
    trace = feed((C, lines("POST / HTTP/1.1", *headers, "") + b"abc" + GET))
    assert brief(trace, C) == ["malformed", "POST /", "skipped 3", "GET /"]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("no colon", "header line without colon"),
        ("Content-Length : 0", "blank before the colon of a header"),
        ("bad name: x", "header name is not a token"),
        ("Host: other", "more than one host"),
    ],
)
def test_faults_of_header_lines_are_noted_and_never_quoted(header: str, reason: str) -> None:
    trace = feed((C, lines("GET / HTTP/1.1", "Host: h", header, "") + GET))
    assert brief(trace, C) == ["malformed", "GET /", "GET /"]
    assert reasons(trace, C) == [reason]


@pytest.mark.parametrize("chunks", [b"xyz\r\n", b"2\r\nabc\r\n", b"-1\r\n", b"1" * 16 + b"\r\n"])
def test_a_bad_chunk_cuts_its_body_and_the_next_head_is_found(chunks: bytes) -> None:
    head = lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "")
    words = brief(feed((S, head + chunks + OK2)), S)
    assert words[0] == "200"
    assert words[1].endswith("cut")
    assert words[2] == "malformed"
    assert words[-2:] == ["200", "body 2"]


def test_a_head_above_the_limits_is_skipped_wherever_it_is_cut() -> None:
    limits = Limits(line=100, headers=300)
    for bad in (
        lines("GET /" + "a" * 100 + " HTTP/1.1", ""),
        lines("GET / HTTP/1.1", *["Name: value"] * 30, ""),
    ):
        steps: Script = [(C, bad + GET)]
        trace = run(HttpParser, steps, limits=limits)
        assert brief(trace, C) == ["malformed", f"skipped {len(bad)}", "GET /"]
        assert run(HttpParser, bytewise(steps), limits=limits).merged() == trace.merged()


def test_a_long_skip_is_told_in_pieces_before_it_is_over() -> None:
    trace = run(HttpParser, [(S, b"\x00" * 200_000)], midstream=True, end=False)
    assert [event.length for event in trace.of(S)] == [65536] * 3


def test_requests_without_end_or_answer_hold_no_memory() -> None:
    trace = feed((C, GET * 600), (S, OK2))
    response = trace.of(S)[0]
    assert isinstance(response, HttpResponse)
    assert response.request_method is None


# Gaps and joining midstream


def test_a_gap_inside_a_counted_body_costs_only_that_body() -> None:
    head = lines("HTTP/1.1 200 OK", "Content-Length: 10", "")
    trace = feed((S, head + b"abc"), (S, 4), (S, b"hij" + OK2))
    assert brief(trace, S) == ["200", "body 3 open", "gap 4", "body 3 cut", "200", "body 2"]
    trace = feed((S, head + b"abc"), (S, 7), (S, OK2))
    assert brief(trace, S) == ["200", "body 3 cut", "gap 7", "200", "body 2"]


def test_a_gap_inside_the_data_of_a_chunk_costs_only_that_body() -> None:
    head = lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "8")
    trace = feed((S, head + b"ab"), (S, 4), (S, b"gh\r\n0\r\n\r\n" + OK2))
    assert brief(trace, S) == ["200", "body 2 open", "gap 4", "body 2 cut", "200", "body 2"]


def test_a_gap_past_the_end_of_a_body_needs_a_new_head() -> None:
    head = lines("HTTP/1.1 200 OK", "Content-Length: 10", "")
    rest = b"of another body HTTP/1.1 200 not a head\r\n"
    trace = feed((S, head + b"abc"), (S, 50), (S, rest + OK2))
    assert brief(trace, S) == [
        "200",
        "body 3 cut",
        "gap 50",
        f"skipped {len(rest)}",
        "200",
        "body 2",
    ]


def test_a_gap_in_a_head_loses_that_head_and_finds_the_next_even_within_a_line() -> None:
    trace = feed((C, GET[:10]), (C, 20), (C, b"tail of a body" + GET + GET))
    assert brief(trace, C) == ["skipped 10", "gap 20", "skipped 14", "GET /", "GET /"]


def test_a_gap_between_messages_costs_nothing_more() -> None:
    trace = feed((C, GET), (C, 100), (C, GET), (S, OK2), (S, 31), (S, OK2))
    assert brief(trace, C) == ["GET /", "gap 100", "GET /"]
    assert brief(trace, S) == ["200", "body 2", "gap 31", "200", "body 2"]


def test_a_candidate_that_is_no_head_is_not_believed() -> None:
    text = b"log: GET /x HTTP/1.1\r\nthen prose without colon\r\n\r\n"
    trace = feed((C, text + GET), midstream=True)
    assert brief(trace, C) == [f"skipped {len(text)}", "GET /"]


def test_joining_midstream_begins_with_the_next_head_of_each_direction() -> None:
    trace = feed((S, b"...rest"), (C, GET), (S, OK2), midstream=True)
    assert brief(trace, C) == ["GET /"]
    assert brief(trace, S) == ["skipped 7", "200", "body 2"]
    skipped = trace.of(S)[0]
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "joined midstream"


def test_a_lost_request_does_not_shift_the_pairing_of_later_ones() -> None:
    head = lines("HEAD / HTTP/1.1", "")
    bare = lines("HTTP/1.1 200 OK", "Content-Length: 2", "")
    trace = feed(
        (C, GET), (C, len(GET)), (S, OK2), (S, OK2), (C, head), (S, bare), (C, GET), (S, OK2)
    )
    assert brief(trace, S) == ["200", "body 2", "200", "body 2", "200", "200", "body 2"]


# Credentials

SECRET = "S3cr3t-0f-M1ne"
PARAMETERS = ["token", "access_token", "id_token", "key", "api_key", "apikey", "password", "passwd"]
PARAMETERS += ["pwd", "secret", "client_secret", "sig", "signature", "sessionid", "session_id"]
PARAMETERS += ["SessionID", "auth", "code", "X-Amz-Signature", "user[password]", "%74oken", "pass"]
PARAMETERS += ["PHPSESSID", "access_key", "ticket", "%0Atoken"]


@pytest.mark.parametrize(
    "header",
    [
        f"Authorization: Bearer {SECRET}",
        f"AUTHORIZATION:{SECRET}",
        f"Authorization : Basic {SECRET}",
        f"Authorization: Basic\r\n {SECRET}",
        f"Proxy-Authorization: Basic {SECRET}",
        f"Cookie: a=b; c={SECRET}",
        f"Set-Cookie: c={SECRET}; Path=/",
        f"X-Api-Key: {SECRET}",
        f"X-Auth-Token: {SECRET}",
        f"X-Amz-Security-Token: {SECRET}",
        f"X-CSRF-Token: {SECRET}",
        f"Authentication-Info: Passport1.4 da-status=success,from-PP='t={SECRET}'",
        f"WWW-Authenticate: NTLM {SECRET}",
        f"X-Unheard-Of: Bearer {SECRET}",
        f"Authorization\x00: {SECRET}",
        f"Authorization {SECRET}",
        f"Referer: http://h/?token={SECRET}",
        f"Referer: http://user:{SECRET}@h/",
        f"Location: https://h/cb#access_token={SECRET}&x=1",
        f"Location: /cb?code={SECRET}",
        f"Link: <https://h/?page=2&api_key={SECRET}>; rel=next",
        f"X-MSN-Messenger: SessionID={SECRET}; GW-IP=192.0.2.80",
        f'X-Custom: a=1, token="{SECRET}"',
        f"Host: user:{SECRET}@h",
        f"Upgrade: x; token={SECRET}",
    ],
)
def test_credentials_in_fields_are_in_no_event(header: str) -> None:
    for start, way in (("GET / HTTP/1.1", C), ("HTTP/1.1 200 OK", S)):
        trace = feed((way, f"{start}\r\n{header}\r\n\r\n".encode()))
        assert any(isinstance(event, HttpRequest | HttpResponse) for event in trace.of(way))
        assert_unseen(trace.of(way))


@pytest.mark.parametrize(
    "target",
    [
        *(f"/x?a=1&{name}={SECRET}&b=2" for name in PARAMETERS),
        f"/x;jsessionid={SECRET}?a=1",
        f"/x;jsessionid={SECRET}/y",
        f"/x#token={SECRET}",
        f"/x?token={SECRET};{SECRET}/{SECRET}?{SECRET}",
        f"/x?next=http://h/?token={SECRET}",
        f"/x?next=http%3A%2F%2Fh%2F%3Ftoken%3D{SECRET}",
        f"/x?next=http%253A%252F%252Fh%252F%253Ftoken%253D{SECRET}",
        f"/x?next=http%3A%2F%2Fu:{SECRET}%40h%2F",
        f"http://user:{SECRET}@h/x",
        f"http://user:{SECRET}@{SECRET}@h/x",
        f"http://h/gateway/gateway.dll?Action=poll&SessionID={SECRET}",
        f"/x?a b&token={SECRET} {SECRET}",
    ],
)
def test_credentials_in_targets_are_in_no_event(target: str) -> None:
    found = request(target)
    assert_unseen([found])
    assert "redacted:" in found.target
    proxied = request(f"user:{SECRET}@h:443", method="CONNECT")
    assert_unseen([proxied])
    assert proxied.host is not None
    assert proxied.host.endswith("@h:443")


def assert_unseen(events: list[Event]) -> None:
    assert SECRET not in msgspec.json.encode(events).decode()


def test_what_is_no_credential_stays_readable() -> None:
    target = "/a/b;v=1?q=secret+plans&author=Eve&monkey=1&page=2&country_code=de"
    found = request(
        target,
        "Host: example.com:8080",
        "Content-Type: multipart/form-data; boundary=xyz",
        "Referer: http://example.com/@someone?page=1",
        "Access-Control-Request-Headers: authorization",
        "User-Agent: Mozilla/5.0 (X11; Linux)",
    )
    assert found.target == target
    assert "redacted" not in str(found.headers)
    assert request("/gateway/gateway.dll?Action=open&Server=NS").target.endswith("Server=NS")


def test_equal_secrets_have_equal_marks_and_others_have_others() -> None:
    first, second = request("/?token=one&x=1"), request("/?x=1&token=one")
    assert first.target.split("token=")[1].split("&")[0] == second.target.split("token=")[1]
    assert redact("one") == redact(b"one") != redact("two")
    assert is_redacted(redact("one"))
    assert not is_redacted("redacted:")
    assert not is_redacted(f"x{redact('one')}")
    assert without_hashes(f"/?a={redact('one')}&b=2") == "/?a=redacted&b=2"


def test_events_can_be_read_back_from_json() -> None:
    union = HttpRequest | HttpResponse | HttpBody | HttpTunnel
    trace = feed((C, GET), (S, OK2))
    for event in (*trace.of(C), *trace.of(S)):
        assert msgspec.json.decode(msgspec.json.encode(event), type=union) == event


@pytest.mark.parametrize(
    ("direction", "before", "held"),
    [
        (C, b"", b"GET / HTTP/1.1\r\nX: "),
        (S, lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", ""), b"3\r\nabc\r\n000000"),
    ],
    ids=["head", "line of a chunk"],
)
def test_what_finds_no_room_is_passed_over_and_the_next_head_is_found(
    direction: Direction, before: bytes, held: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_base, "OWN_LEAST", 4)
    monkeypatch.setattr(_base, "OWN_MOST", 4)
    pool = Pool()
    pool.held = others = pool.limit + 1
    parser = HttpParser(limits=Limits(pool=pool), midstream=False)
    head = lines("GET /next HTTP/1.1" if direction is C else "HTTP/1.1 204 No Content", "")
    events = [*parser.receive(direction, before), *parser.receive(direction, held)]
    assert pool.held == others
    events += parser.receive(direction, b"\r\n\r\n" + head)
    events += [event for each in Direction for event in parser.end(each)]
    assert (pool.held, pool._sharers) == (others, 0)
    assert FULL in [event.reason for event in events if isinstance(event, Skipped)]
    assert isinstance(events[-1], HttpRequest | HttpResponse)
    assert sum(event.length for event in events) == len(before + held + b"\r\n\r\n" + head)
