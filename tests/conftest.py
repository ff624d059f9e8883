"""Options of the test suite, and what becomes of tests that need root."""

import os

import pytest

REQUIRE_LIVE = "STREAMTAP_REQUIRE_LIVE"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected side of transcripts"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where a right is missing, tests marked root are skipped; where CI wants them, they fail."""
    if item.get_closest_marker("root") is None:
        return
    from helpers.live import missing_right  # numpy and all: only where it is needed

    reason = missing_right()
    if reason and os.environ.get(REQUIRE_LIVE):
        pytest.fail(f"{REQUIRE_LIVE} is set, and {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
