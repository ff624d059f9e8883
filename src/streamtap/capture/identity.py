"""Who a file, a cgroup or a process is, as the kernel numbers it."""

import ctypes
import os
import re
import struct
from hashlib import blake2b
from typing import NamedTuple

from streamtap.errors import KernelUnsupported, PermissionMissing

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same number on every architecture
_FSCONFIG_CREATE = 6
_HOST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO
_HOST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO
_HANDLE_KERNFS = 0xFE  # FILEID_KERNFS: a cgroup is found by its id


class FileKey(NamedTuple):
    """Inode number and superblock device ((major << 20) | minor) of a file."""

    inode: int
    device: int


def file_key(path: str) -> tuple[FileKey, int]:
    """The key of the file at `path` as the kernel's `inode` and `s_dev` give it, and an O_PATH
    descriptor that keeps the inode's number from being used again.

    The device of stat() is another one on btrfs and overlays; the mount table has the right one.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            fields = dict(re.findall(r"^(\w+):\s+(\S+)", file.read(), re.MULTILINE))
        inode = int(fields.get("ino", 0)) or os.fstat(fd).st_ino
        return FileKey(inode, _mount_device(fields["mnt_id"]) or _stat_device(fd)), fd
    except BaseException:
        os.close(fd)
        raise


def _mount_device(mount_id: str) -> int | None:
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[0] == mount_id:
                major, minor = map(int, fields[2].split(":"))
                return major << 20 | minor
    return None


def _stat_device(fd: int) -> int:
    device = os.fstat(fd).st_dev
    return os.major(device) << 20 | os.minor(device)


class Cgroups:
    """The cgroup v2 hierarchy: mounted somewhere, or, where the machine has not done so, mounted
    for this process alone and attached to no folder, so that nothing is left behind.

    root: a path below which the cgroups are, valid while this object is open.
    """

    def __init__(self) -> None:
        mounted = find_mount("cgroup2")
        self.private = mounted is None
        if mounted is None:
            # Opened again: through the descriptor of a mount itself nothing is found by its id.
            mount = _mount_cgroup2()
            try:
                self.fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
            finally:
                os.close(mount)
            self.root = f"/proc/self/fd/{self.fd}"
        else:
            self.fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.root = mounted
        self._paths: dict[int, str] = {}
        self._open_by_handle = ctypes.CDLL(None, use_errno=True).open_by_handle_at

    def id_of(self, path: str) -> int:
        """The id of the cgroup at `path` below the root: what the kernel knows it by."""
        return os.stat(os.path.join(self.root, path)).st_ino

    def path_of(self, cgroup_id: int) -> str:
        """The path of a cgroup ("/" is the root), or "" where it is gone."""
        known = self._paths.get(cgroup_id)
        if known is None:
            if len(self._paths) > 4096:
                self._paths.clear()
            known = self._paths[cgroup_id] = self._find(cgroup_id)
        return known

    def _find(self, cgroup_id: int) -> str:
        handle = struct.pack("=IiQ", 8, _HANDLE_KERNFS, cgroup_id)
        fd = self._open_by_handle(self.fd, handle, os.O_RDONLY | os.O_CLOEXEC)
        if fd < 0:
            return ""
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            root = os.readlink(f"/proc/self/fd/{self.fd}")
        finally:
            os.close(fd)
        return "/" + path.removeprefix(root).strip("/")

    def close(self) -> None:
        os.close(self.fd)


def find_mount(kind: str) -> str | None:
    """Where a file system of this kind is mounted, by /proc/self/mountinfo; the first one."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            if rest.split()[0] == kind:
                return fields.split()[4].encode().decode("unicode_escape")
    return None


def _mount_cgroup2() -> int:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, number: int, *arguments: object) -> int:
        result: int = libc.syscall(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            if code in (1, 13):
                raise PermissionMissing(
                    "cannot mount cgroup v2: CAP_SYS_ADMIN is missing", "run with sudo"
                )
            raise KernelUnsupported("cgroup v2", f"{what}: {os.strerror(code)}")
        return result

    context = call("fsopen", _FSOPEN, b"cgroup2", 1)
    try:
        call("fsconfig", _FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        return call("fsmount", _FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


def in_host_pid_namespace() -> bool:
    """Whether process numbers here are those that the kernel's own hooks see."""
    return os.stat("/proc/self/ns/pid").st_ino == _HOST_PID_NAMESPACE


def in_host_user_namespace() -> bool:
    """Whether capabilities held here are held before the kernel as a whole."""
    return os.stat("/proc/self/ns/user").st_ino == _HOST_USER_NAMESPACE


def host_key() -> bytes | None:
    """16 bytes that stay the same on this host and tell nothing of it, made from machine-id(5) as
    its manual asks; None where the host has none."""
    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read(64).strip()
    except OSError:
        return None
    if len(machine) != 32:
        return None
    return blake2b(b"names in records", key=machine, digest_size=16).digest()


class ProcessText(NamedTuple):
    """What /proc tells a person of a process that runs; empty where it is gone."""

    arguments: bytes
    directory: str


def process_text(pid: int) -> ProcessText:
    """Command line (words ended by zero bytes) and working directory of a process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(1 << 16)
        return ProcessText(arguments, os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return ProcessText(b"", "")


def descendants(pid: int) -> list[int]:
    """The processes that descend from `pid`, by /proc, itself not included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b") ")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found, todo = [], [pid]
    while todo:
        todo += (below := children.pop(todo.pop(), []))
        found += below
    return found
