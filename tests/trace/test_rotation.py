"""The names of rotated files, and crashes between two renamings."""

from pathlib import Path

import pytest

from streamtap.trace.rotation import make_room, name_of, numbered


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.of.today.sqlite", "chat"])
@pytest.mark.parametrize("number", [0, 1, 12])
def test_a_number_stands_before_the_ending_and_is_found_again(name: str, number: int) -> None:
    path = numbered(Path("/tmp") / name, number)
    assert path.suffix == Path(name).suffix or name == "chat"
    if "." in name:
        assert name_of(path) == (Path("/tmp") / name, number)


def folder(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in path.iterdir()}


def rotate(path: Path, keep: int, limit_bytes: int = 1) -> None:
    place = make_room(path, keep, limit_bytes)
    if place is None:
        path.unlink()
    else:
        path.rename(place)


def test_files_move_up_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text in "123456":
        path.write_text(text)
        rotate(path, 3)
    assert folder(tmp_path) == {"a.1.jsonl": "6", "a.2.jsonl": "5", "a.3.jsonl": "4"}
    path.write_text("7")
    rotate(path, 1)  # fewer are kept from now on
    assert folder(tmp_path) == {"a.1.jsonl": "7"}
    path.write_text("8")
    rotate(path, 0)
    assert folder(tmp_path) == {}


def test_files_that_are_not_full_are_kept_as_long_as_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for letter in "abcdefghij":
        path.write_text(letter)
        rotate(path, 2, 100)
    assert "".join(numbered(path, n).read_text() for n in range(10, 0, -1)) == "abcdefghij"
    for letter in "kl":
        path.write_text(letter * 95)
        rotate(path, 2, 100)
    assert len(folder(tmp_path)) == 12
    path.write_text("m" * 95)
    rotate(path, 2, 100)
    assert {text[0] for text in folder(tmp_path).values()} == {"l", "m"}


@pytest.mark.parametrize("steps", range(5))
def test_a_rotation_that_is_cut_is_made_good_by_the_next(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashed(Exception):
        pass

    path = tmp_path / "a.jsonl"
    path.write_text("new")
    for number in (1, 2, 3):
        numbered(path, number).write_text(str(number))
    with monkeypatch.context() as patch:
        left = steps

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            if not left:
                raise Crashed
            left -= 1
            source.rename(target)

        patch.setattr("os.replace", replace)
        try:
            make_room(path, 4, 1)
        except Crashed:
            assert steps < 3
    rotate(path, 4)
    assert (
        folder(tmp_path)
        == {**{"a.1.jsonl": "new", "a.2.jsonl": "1", "a.3.jsonl": "2", "a.4.jsonl": "3"}}
        or steps == 1
    )
    assert sorted(folder(tmp_path).values()) == ["1", "2", "3", "new"]
    order = [numbered(path, number) for number in range(4, 0, -1)]
    assert [each.read_text() for each in order if each.exists()] == ["3", "2", "1", "new"]
