"""The libbpf calls that streamtap uses, by ctypes, and no more.

libbpf 1.x: calls that return int give -errno; calls that return a pointer give NULL and set errno.
Here both raise OSError.
"""

import ctypes
import ctypes.util
import errno
import os
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from streamtap.errors import KernelUnsupported

BPF_ANY = 0
MAP_ID, PROGRAM_ID, LINK_ID = "map", "prog", "link"

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class IterLinkInfo(ctypes.Structure):
    """union bpf_iter_link_info: the part for iterators over a map (`map_fd`)."""

    _fields_ = (("map_fd", c_uint32), ("rest", c_uint32 * 7))


class IterOptions(ctypes.Structure):
    """struct bpf_iter_attach_opts; `size` comes first so that libbpf knows the version."""

    _fields_ = (
        ("size", c_size_t),
        ("link_info", ctypes.POINTER(IterLinkInfo)),
        ("link_info_length", c_uint32),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_set_print": (c_void_p, (_PRINT,)),
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_program__attach_iter": (c_void_p, (c_void_p, ctypes.POINTER(IterOptions))),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_link_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_map_get_next_id": (c_int, (c_uint32, ctypes.POINTER(c_uint32))),
    "bpf_prog_get_next_id": (c_int, (c_uint32, ctypes.POINTER(c_uint32))),
    "bpf_link_get_next_id": (c_int, (c_uint32, ctypes.POINTER(c_uint32))),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, ctypes.POINTER(c_uint32))),
}


@cache
def library() -> ctypes.CDLL:
    """libbpf.so.1 of the system; raises KernelUnsupported naming the package that brings it."""
    name = os.environ.get("STREAMTAP_LIBBPF", "libbpf.so.1")
    try:
        loaded = ctypes.CDLL(name, use_errno=True)
    except OSError as error:
        raise KernelUnsupported(
            "libbpf",
            f"{name} cannot be loaded",
            "apt-get install libbpf1 (Debian, Ubuntu) or dnf install libbpf (Fedora, RHEL)",
        ) from error
    for function, (result, arguments) in _SIGNATURES.items():
        try:
            symbol = getattr(loaded, function)
        except AttributeError as error:
            raise KernelUnsupported("libbpf", f"{name} has no {function}: 1.0 or newer") from error
        symbol.restype, symbol.argtypes = result, arguments
    return loaded


def check(result: int, what: str) -> int:
    """The result of an int call, or OSError with the kernel's reason."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def check_pointer(result: int | None, what: str) -> int:
    """The result of a pointer call, or OSError."""
    if not result:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


_LOG_BYTES = 4 << 20  # of one text: what the verifier says ends with the reason


class Log:
    """Collects what libbpf prints: the verifier's words among them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        format_text = ctypes.CDLL(None).vsnprintf
        format_text.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)
        text = ctypes.create_string_buffer(_LOG_BYTES)

        def take(level: int, template: bytes, arguments: int) -> int:
            format_text(text, len(text), template, arguments)
            if level < 2:
                self.lines.append(text.value.decode("utf-8", "backslashreplace").rstrip())
            return 0

        self._callback = _PRINT(take)  # C keeps the pointer: hold the object as long as we live
        library().libbpf_set_print(self._callback)

    def close(self) -> None:
        library().libbpf_set_print(_PRINT())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Map:
    """A BPF map by descriptor; keys and values are bytes of exactly the map's sizes."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        check(library().bpf_map_update_elem(self.fd, key, value, flags), f"update {self.name}")

    def lookup(self, key: bytes, size: int) -> bytes | None:
        """The value, `size` bytes (for per-CPU maps the values of all CPUs), or None."""
        value = ctypes.create_string_buffer(size)
        result = library().bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        check(result, f"look up {self.name}")
        return value.raw

    def delete(self, key: bytes) -> None:
        """No error where it is not there."""
        result = library().bpf_map_delete_elem(self.fd, key)
        if result != -errno.ENOENT:
            check(result, f"delete {self.name}")

    def keys(self, size: int) -> list[bytes]:
        """All keys of a hash, each `size` bytes; not while others add to it."""
        found: list[bytes] = []
        key = ctypes.create_string_buffer(size)
        before = None
        while library().bpf_map_get_next_key(self.fd, before, key) == 0:
            found.append(key.raw)
            before = key.raw
        return found


def open_pin(path: str) -> int:
    """A descriptor of what is pinned at a path of a BPF file system. Raises OSError."""
    return check(library().bpf_obj_get(path.encode()), path)


def pin(fd: int, path: str) -> None:
    """Keeps a map or a link alive by a file. Raises OSError."""
    check(library().bpf_obj_pin(fd, path.encode()), path)


class Object:
    """A loaded BPF object with the links made from it; closing it detaches those that are not
    pinned.

    reuse: descriptors of maps that exist already, by name, to be used in place of new ones.
    """

    def __init__(
        self,
        path: str,
        *,
        skip: tuple[str, ...] = (),
        sizes: dict[str, int] | None = None,
        reuse: dict[str, int] | None = None,
    ) -> None:
        lib = library()
        self._pointer = check_pointer(lib.bpf_object__open_file(path.encode(), None), path)
        self._links: dict[str, int] = {}
        try:
            for name in skip:
                check(lib.bpf_program__set_autoload(self._program(name), False), name)
            for name, size in (sizes or {}).items():
                check(lib.bpf_map__set_max_entries(self._map(name), size), name)
            for name, fd in (reuse or {}).items():
                check(lib.bpf_map__reuse_fd(self._map(name), fd), name)
            check(lib.bpf_object__load(self._pointer), "load")
        except BaseException:
            self.close()
            raise

    def _program(self, name: str) -> int:
        found = library().bpf_object__find_program_by_name(self._pointer, name.encode())
        return check_pointer(found, name)

    def _map(self, name: str) -> int:
        return check_pointer(
            library().bpf_object__find_map_by_name(self._pointer, name.encode()), name
        )

    def map(self, name: str) -> Map:
        return Map(check(library().bpf_map__fd(self._map(name)), name), name)

    def attach(self, name: str) -> None:
        link = library().bpf_program__attach(self._program(name))
        self._links[name] = check_pointer(link, f"attach {name}")

    def attach_cgroup(self, name: str, cgroup_fd: int) -> None:
        link = library().bpf_program__attach_cgroup(self._program(name), cgroup_fd)
        self._links[name] = check_pointer(link, f"attach {name}")

    def link_fd(self, name: str) -> int:
        """Of an attached program: what `pin` takes."""
        return check(library().bpf_link__fd(self._links[name]), name)

    def replace(self, name: str, link_fd: int) -> None:
        """Puts this object's program into a link of another, at once and without a gap; cgroup
        links only. Raises OSError."""
        program = check(library().bpf_program__fd(self._program(name)), name)
        check(library().bpf_link_update(link_fd, program, None), f"update {name}")

    def run_iterator(
        self, name: str, map_fd: int | None = None, piece: int = 1 << 16
    ) -> Iterator[bytes]:
        """Runs an iterator once, over the map given if it is one over a map: what it writes, in
        pieces of at most so many bytes. Between them it stands still."""
        lib = library()
        options = None
        if map_fd is not None:
            info = IterLinkInfo(map_fd=map_fd)
            options = IterOptions(
                ctypes.sizeof(IterOptions), ctypes.pointer(info), ctypes.sizeof(info)
            )
        link = check_pointer(
            lib.bpf_program__attach_iter(
                self._program(name), ctypes.byref(options) if options else None
            ),
            f"attach {name}",
        )
        try:
            fd = check(lib.bpf_iter_create(lib.bpf_link__fd(link)), name)
            try:
                while written := os.read(fd, piece):
                    yield written
            finally:
                os.close(fd)
        finally:
            lib.bpf_link__destroy(link)

    def detach(self) -> None:
        """Removes the links in the reverse order of attachment."""
        while self._links:
            _, link = self._links.popitem()
            library().bpf_link__destroy(link)

    def close(self) -> None:
        self.detach()
        if self._pointer:
            library().bpf_object__close(self._pointer)
            self._pointer = 0
