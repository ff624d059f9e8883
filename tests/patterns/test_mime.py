"""The parts of a message."""

import pytest

from streamtap.patterns.msnp.mime import shown_text


@pytest.mark.parametrize(
    ("body", "shown"), [(b"hi \r\n", "hi \r\n"), (b" ", " "), (b"", None), (b"\r\n\r\n", None)]
)
def test_a_text_of_spaces_is_shown_and_one_of_ends_of_lines_is_none(
    body: bytes, shown: str | None
) -> None:
    assert shown_text(body) == shown
