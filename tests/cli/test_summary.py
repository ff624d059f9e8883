"""What is said at the end, and which exit code, without a kernel."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from streamtap.api import Run
from streamtap.cli.ending import exit_code, summary
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments


def ended(**values: Any) -> Run:
    """A run that is over, with these totals."""
    run = Run.__new__(Run)
    table = SimpleNamespace(opened=values.pop("flows", 1))
    watch = SimpleNamespace(pipeline=SimpleNamespace(table=table))
    totals = {"bytes": 0, "gaps": Counter(), "limits": 0, "failures": 0, "drops": {}, "ended": ""}
    vars(run).update({"watch": watch} | totals | values)
    return run


def outputs(**values: Any) -> Outputs:
    totals = {"records": 0, "dropped": 0, "failed": [], "left": True}
    return cast(Outputs, SimpleNamespace(**(totals | values)))


def code(run: Run, out: Outputs, *, strict: bool = False, signal: int = 0, status: int = 0) -> int:
    return exit_code(Arguments(strict=strict), run, out, signal, status)


def test_the_summary_is_one_line_where_nothing_was_lost() -> None:
    text = summary(ended(bytes=1), outputs(records=2))
    assert text == "streamtap: 1 flow, 1 byte, 2 records, 0 gaps, 0 drops"


def test_the_summary_says_what_was_lost_and_why() -> None:
    run = ended(
        gaps=Counter(lost=2, midstream=1),
        drops={"segments for which the ring had no room": 3, "sockets": 0},
    )
    totals, losses = summary(run, outputs(dropped=4)).splitlines()
    assert totals.endswith("3 gaps, 3 drops")
    assert losses == (
        "streamtap: lost: 3 segments for which the ring had no room; 2 gaps (lost); "
        "4 records that could not be written"
    )


@pytest.mark.parametrize("cause", ["lost", "unseen", "limit"])
def test_strict_counts_a_gap_that_should_not_be(cause: str) -> None:
    assert code(ended(gaps=Counter({cause: 1})), outputs(), strict=True) == 8
    assert code(ended(gaps=Counter({cause: 1})), outputs()) == 0


def test_strict_does_not_count_what_passed_before_watching() -> None:
    assert code(ended(gaps=Counter(midstream=1)), outputs(), strict=True) == 0


@pytest.mark.parametrize("loss", [{"drops": {"segments": 1}}, {"limits": 1}, {"failures": 1}])
def test_strict_counts_drops_bounds_and_parsers_that_broke(loss: dict[str, Any]) -> None:
    assert code(ended(ended="command", **loss), outputs(), strict=True, status=3) == 8


def test_no_output_left_is_a_failure_whatever_else_happened() -> None:
    out = outputs(failed=["a.jsonl"], left=False, dropped=1)
    assert code(ended(), out, strict=True, status=3) == 1


def test_nothing_seen_in_the_time_given_is_124_and_otherwise_0() -> None:
    assert code(ended(ended="duration", flows=0), outputs()) == 124
    assert code(ended(ended="duration", flows=1), outputs()) == 0
    assert code(ended(ended="stop", flows=0), outputs(), signal=2) == 0
