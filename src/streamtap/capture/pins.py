"""Callouts that outlive their process: maps and links as files of a BPF file system.

    FOLDER/maps/NAME    what the callouts know, and the rings
    FOLDER/links/NAME   one hook each; without its file a hook is gone

The kernel keeps what has a file, whoever made it and whether or not that process still runs.
"""

import ctypes
import errno
import os
import struct
from pathlib import Path

from streamtap.capture.identity import find_mount
from streamtap.capture.libbpf import open_pin, pin
from streamtap.errors import KernelUnsupported, PermissionMissing, StreamtapError

BPF_MOUNT = "/sys/fs/bpf"
_BPF_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC
_NEW = "-new"  # a link that is to take the place of another; no dots in names here


class Pins:
    """The files below `folder`, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps, self._links = folder / "maps", folder / "links"

    @property
    def maps(self) -> list[str]:
        return _names(self._maps)

    @property
    def links(self) -> list[str]:
        return [name for name in _names(self._links) if not name.endswith(_NEW)]

    def make(self) -> None:
        """The folders; mounts the BPF file system where the machine has not done so.

        Raises PermissionMissing, KernelUnsupported, StreamtapError for a folder elsewhere.
        """
        require_bpf_mount(self.folder)
        try:
            for folder in (self._maps, self._links):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except PermissionError as error:
            raise PermissionMissing(
                f"{self.folder}: cannot be made: {error.strerror}", "run with sudo"
            ) from error

    def open_map(self, name: str) -> int:
        return open_pin(str(self._maps / name))

    def open_link(self, name: str) -> int:
        return open_pin(str(self._links / name))

    def pin_map(self, name: str, fd: int) -> None:
        pin(fd, str(self._maps / name))

    def pin_link(self, name: str, fd: int) -> None:
        """In place of the one that has the name, which ends once this one is there."""
        path, new = str(self._links / name), str(self._links / name) + _NEW
        if not os.path.lexists(path):
            pin(fd, path)
            return
        if os.path.lexists(new):  # of an upgrade that was cut short
            os.unlink(new)
        pin(fd, new)
        # A rename does not replace on this file system.
        os.unlink(path)
        os.rename(new, path)

    def remove_links(self) -> None:
        """All hooks are gone with this; what the maps hold stays."""
        for name in _names(self._links):
            os.unlink(self._links / name)

    def remove(self) -> None:
        """Everything: links before maps, so that no hook runs without its maps."""
        self.remove_links()
        for name in self.maps:
            os.unlink(self._maps / name)
        for folder in (self._links, self._maps, self.folder):
            if folder.is_dir():
                folder.rmdir()


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def require_bpf_mount(folder: Path) -> None:
    """A BPF file system at or above `folder`; mounts one at its usual place where there is none."""
    if _is_bpf(folder):
        return
    if find_mount("bpf") is None and str(folder).startswith(BPF_MOUNT + "/"):
        _mount()
    if not _is_bpf(folder):
        raise StreamtapError(
            f"{folder} is not on a BPF file system",
            f"mount -t bpf bpf {BPF_MOUNT}    or let STREAMTAP_BPF_DIR name a folder on one",
        )


def _is_bpf(folder: Path) -> bool:
    above = folder
    while not above.exists():
        above = above.parent
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with the type, a long
    if ctypes.CDLL(None).statfs(str(above).encode(), buffer):
        return False
    magic: int = struct.unpack_from("@l", buffer)[0]
    return magic & 0xFFFFFFFF == _BPF_MAGIC


def _mount() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", BPF_MOUNT.encode(), b"bpf", 0, b"mode=0700") == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionMissing(
            f"cannot mount the BPF file system at {BPF_MOUNT}: CAP_SYS_ADMIN is missing",
            "run with sudo",
        )
    raise KernelUnsupported("the BPF file system", f"mount: {os.strerror(code)}")
