import gzip
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streamtap.capture.inputs import Input, open_input
from streamtap.errors import CaptureFileError, NotFound, PermissionMissing

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"".join(b"%d " % number for number in range(100_000))
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
each_compression = pytest.mark.parametrize("kind", PACK)


def read(source: Input, piece: int = 10_000) -> bytes:
    """All of it; an error on the way has what was read before as its last argument."""
    buffer, whole = memoryview(bytearray(piece)), bytearray()
    with source:
        try:
            while count := source.readinto(buffer):
                whole += buffer[:count]
        except CaptureFileError as error:
            error.args = (*error.args, bytes(whole))
            raise
    return bytes(whole)


def same_from_the_start(one: bytes, other: bytes) -> int:
    """How many bytes are."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.file"


def written(file: Path, data: bytes) -> str:
    file.write_bytes(data)
    return str(file)


# --- files ----------------------------------------------------------------------------------------


def test_a_regular_file_is_given_as_it_is(file: Path) -> None:
    source = open_input(written(file, TEXT))
    assert (source.name, source.size, source.position) == (str(file), len(TEXT), 0)
    assert source.regular
    assert os.pread(source.fileno(), 4, 0) == TEXT[:4]
    assert source.readinto(memoryview(bytearray(100))) == 100
    assert source.position == 100
    assert read(source) == TEXT[100:]


@pytest.mark.parametrize("length", range(6))
def test_a_short_file_is_given_as_it_is(file: Path, length: int) -> None:
    assert read(open_input(written(file, TEXT[:length]))) == TEXT[:length]


@each_compression
def test_compressed_files_are_told_by_their_bytes_and_read_to_the_end(
    file: Path, kind: str
) -> None:
    packed = PACK[kind](TEXT)
    source = open_input(written(file, packed))
    assert (source.size, source.regular) == (len(packed), False)
    buffer = memoryview(bytearray(7))
    assert source.readinto(buffer) == 7
    assert buffer == TEXT[:7]
    assert read(source) == TEXT[7:]
    assert source.position == len(packed)


@each_compression
@pytest.mark.parametrize("padding", [0, 3, 300_000])
def test_members_one_behind_the_other_are_one_text(file: Path, kind: str, padding: int) -> None:
    packed = PACK[kind](TEXT) + PACK[kind](b"") + PACK[kind](b"more") + bytes(padding)
    assert read(open_input(written(file, packed))) == TEXT + b"more"


def test_frames_that_are_to_be_skipped_are_skipped(file: Path) -> None:
    skipped = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert read(open_input(written(file, skipped + zstd.compress(TEXT)))) == TEXT


@each_compression
@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_compressed_file_that_ends_early_is_read_so_far_and_then_an_error(
    file: Path, kind: str, cut: int
) -> None:
    packed = PACK[kind](TEXT)[:-cut]
    with pytest.raises(CaptureFileError, match=f"the {kind} data ends too early") as error:
        read(open_input(written(file, packed)))
    assert error.value.offset == len(packed)
    so_far = error.value.args[-1]
    assert TEXT.startswith(so_far)
    assert len(so_far) > 0


@each_compression
def test_a_damaged_compressed_file_is_an_error(file: Path, kind: str) -> None:
    packed = bytearray(PACK[kind](TEXT))
    packed[10] ^= 0xFF
    with pytest.raises(CaptureFileError, match=f"the {kind} data"):
        read(open_input(written(file, bytes(packed))))


@pytest.mark.parametrize("piece", [100, 1 << 20])
@pytest.mark.parametrize("place", [-8, -1000, 0x2000])
def test_what_is_before_damage_in_gzip_data_is_given(file: Path, place: int, piece: int) -> None:
    packed = bytearray(gzip.compress(TEXT))
    packed[place] ^= 0xFF
    with pytest.raises(CaptureFileError, match="the gzip data is damaged") as error:
        read(open_input(written(file, bytes(packed))), piece)
    so_far = error.value.args[-1]
    # Damage may look like other data: at the latest the checksum, 8 bytes from the end, tells.
    expected = len(TEXT) * (place % len(packed)) // len(packed) - 10_000
    assert same_from_the_start(TEXT, so_far) >= expected
    assert place != -8 or so_far == TEXT


def test_of_damaged_zstd_data_a_block_at_most_is_forgotten(file: Path) -> None:
    noise = random.Random(1).randbytes(1_000_000)
    packed = bytearray(zstd.compress(noise))
    packed[-1] ^= 0xFF
    packed[700_000 : 700_000 + 200_000] = bytes(200_000)
    with pytest.raises(CaptureFileError, match="the zstd data is damaged") as error:
        read(open_input(written(file, bytes(packed))), 1 << 20)
    so_far = error.value.args[-1]
    assert same_from_the_start(noise, so_far) > 700_000 - 2 * (1 << 17)


@each_compression
def test_what_is_behind_compressed_data_and_is_something_else_is_an_error(
    file: Path, kind: str
) -> None:
    with pytest.raises(CaptureFileError, match=f"what follows the {kind} data") as error:
        read(open_input(written(file, PACK[kind](TEXT) + bytes(10) + b"else")))
    assert error.value.args[-1] == TEXT


def test_little_that_stands_for_very_much_is_given_piece_by_piece(file: Path) -> None:
    source = open_input(written(file, gzip.compress(bytes(50_000_000))))
    assert source.readinto(memoryview(bytearray(1000))) == 1000
    assert read(source, 1 << 20) == bytes(50_000_000 - 1000)


def test_what_cannot_be_opened_is_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        open_input(str(file))
    with pytest.raises(CaptureFileError, match="is a directory"):
        open_input(str(tmp_path))
    with pytest.raises(CaptureFileError, match="can't be opened"):
        open_input(written(file, b"") + "/x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(file: Path) -> None:
    file.touch(0)
    with pytest.raises(PermissionMissing, match="may not be read"):
        open_input(str(file))


# --- pipes ----------------------------------------------------------------------------------------


def test_a_fifo_gives_what_comes_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    opened: list[Input] = []
    opening = threading.Thread(target=lambda: opened.append(open_input(str(path))))
    opening.start()
    with path.open("wb", buffering=0) as writer:
        writer.write(b"abcdef")
        opening.join()
        (source,) = opened
        assert (source.size, source.regular) == (None, False)
        buffer = memoryview(bytearray(1000))
        whole = b""
        while len(whole) < 6:
            whole += buffer[: source.readinto(buffer)]
        assert whole == b"abcdef"
        writer.write(b"g")
        assert source.readinto(buffer) == 1
    assert source.readinto(buffer) == 0
    assert source.position == 7
    source.close()


READ_STDIN = """
import sys
from streamtap.capture.inputs import open_input
source, view = open_input("-"), memoryview(bytearray(5000))
print(source.name, source.size, source.position, source.regular)
while count := source.readinto(view):
    sys.stdout.buffer.write(view[:count])
"""


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_standard_input_may_be_a_pipe(pack: Callable[[bytes], bytes]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", READ_STDIN], input=pack(TEXT), capture_output=True, check=True
    )
    assert TEXT in ran.stdout


def test_standard_input_may_be_a_file_that_another_program_read_the_beginning_of(
    file: Path,
) -> None:
    path = written(file, TEXT)
    with Path(path).open("rb", buffering=0) as stdin:
        stdin.seek(1000)
        ran = subprocess.run(
            [sys.executable, "-c", READ_STDIN], stdin=stdin, capture_output=True, check=True
        )
    first = f"standard input {len(TEXT)} 1000 True\n".encode()
    assert sorted(ran.stdout) == sorted(first + TEXT[1000:])
    assert TEXT[1000:] in ran.stdout


# --- files that grow ------------------------------------------------------------------------------


class Waiting:
    """Does something each time the reader would wait; without more to do it is the end."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    def __call__(self, seconds: float) -> bool:
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False


def append(file: Path, data: bytes) -> None:
    with file.open("ab") as out:
        out.write(data)


def test_a_file_that_grows_is_read_on_until_no_more_is_wanted(file: Path) -> None:
    wait = Waiting(lambda: None, lambda: append(file, b"more"), lambda: append(file, b", and more"))
    source = open_input(written(file, b"some, "), follow=True, wait=wait)
    assert read(source) == b"some, more, and more"


def test_a_file_that_is_empty_at_first_can_be_followed(file: Path) -> None:
    packed = gzip.compress(TEXT)
    wait = Waiting(
        *(
            lambda at=at: append(file, packed[at : at + 50_000])
            for at in range(0, len(packed), 50_000)
        )
    )
    assert read(open_input(written(file, b""), follow=True, wait=wait)) == TEXT


def test_a_file_that_is_not_followed_ends_at_its_end(file: Path) -> None:
    assert read(open_input(written(file, TEXT), wait=Waiting(lambda: append(file, b"x")))) == TEXT


def test_a_followed_file_that_becomes_shorter_is_an_error(file: Path) -> None:
    wait = Waiting(lambda: os.truncate(file, 3))
    with pytest.raises(CaptureFileError, match="was truncated at offset 100"):
        read(open_input(written(file, bytes(100)), follow=True, wait=wait))


def test_a_followed_file_that_is_replaced_is_read_to_its_end_and_then_an_error(
    file: Path, tmp_path: Path
) -> None:
    def replace() -> None:
        append(file, b" last")
        other = tmp_path / "other"
        other.write_bytes(b"other")
        other.replace(file)

    source = open_input(written(file, b"some file"), follow=True, wait=Waiting(replace))
    with pytest.raises(CaptureFileError, match="removed or replaced") as error:
        read(source)
    assert error.value.args[-1] == b"some file last"


def test_a_followed_file_that_is_removed_is_an_error(file: Path) -> None:
    source = open_input(written(file, b"some file"), follow=True, wait=Waiting(file.unlink))
    with pytest.raises(CaptureFileError, match="removed or replaced"):
        read(source)
