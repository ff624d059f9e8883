"""Tables on standard output, for verbs that show what there is."""

import json
from collections.abc import Iterable, Sequence

from streamtap.cli.parsing import Parser


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON array, on one line")


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as what is in them."""
    for line in table_lines(head, rows):
        print(line)


def table_lines(
    head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()
) -> list[str]:
    """The lines of a table, the first for `head`; the columns `numbers` stand at the right."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = widths_of(lines)
    return [table_line(line, widths, numbers) for line in lines]


def widths_of(lines: Sequence[Sequence[str]]) -> list[int]:
    """Of each column the longest cell."""
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def table_line(cells: Sequence[str], widths: Sequence[int], numbers: Sequence[int] = ()) -> str:
    """One line; a longer cell moves the rest of it."""
    placed = enumerate(zip(cells, widths, strict=True))
    texts = (
        cell.rjust(width) if index in numbers else cell.ljust(width)
        for index, (cell, width) in placed
    )
    return "  ".join(texts).rstrip()
