"""Lines in the style of tracefmt."""

from helpers.records import Kept, body, message, opened, record
from streamtap.events import Record
from streamtap.trace.sink import Output
from streamtap.trace.wpp import Wpp


def line(each: Record) -> str:
    kept = Kept()
    sink = Wpp(Output(kept))
    sink.write(1, [each])
    sink.close()
    [only] = kept.lines
    return only


def test_a_record_looks_like_a_line_of_tracefmt() -> None:
    assert line(record(opened())) == (
        "[0]1019.0000::11/24/2008-23:01:16.0430009 [MONITOR][FLOW_ESTABLISHED] "
        "opened 10.0.0.1:50000 -> 1.2.3.4:1863  /usr/bin/pidgin "
        "{flow 12 10.0.0.1:50000 -> 1.2.3.4:1863}"
    )


def test_a_record_without_a_process_has_number_zero() -> None:
    assert line(record(body("state.changed", enabled=False), flow=None)) == (
        "[0]0000.0000::11/24/2008-23:01:16.0430009 [MONITOR][STATE_CHANGE] disabled everything"
    )


def test_whatever_was_said_a_record_stays_one_printable_line() -> None:
    assert line(record(message(content="a\r\nb\x1b[2J\u2028c"), "sent")).isprintable()
