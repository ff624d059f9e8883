"""Who holds the callouts that a watch reads, and the command that was launched for it.

`Local` is this very process. `service.holder` has another one, which keeps the rights while this
one gives them up.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from streamtap.capture.callouts import RING_BYTES, Callouts
from streamtap.capture.identity import in_host_pid_namespace
from streamtap.capture.kernel import Kernel
from streamtap.command import Child
from streamtap.driver import Driver
from streamtap.errors import KernelUnsupported
from streamtap.flows.scope import Scope

MAX_FILTERS = 64


class Hooks(NamedTuple):
    """Names of those that are attached; missing: optional ones that the kernel refused."""

    attached: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Holder(Kernel, Protocol):
    """Callouts that are loaded for scopes, and a command, if there is one, that waits."""

    @property
    def scopes(self) -> Sequence[Scope]:
        """Each is the filter of its index."""

    def attach(self, make_room: Callable[[], None]) -> Hooks:
        """Puts the scopes in force, and lets the command run.

        make_room: reads the control ring; called now and then, and after the processes were judged.
        """

    def status(self) -> int | None:
        """The exit code of the command once it has ended."""

    def flush(self) -> None:
        """The policies that were set are in force soon, without anything else being asked."""

    def detach(self) -> None:
        """No traffic is seen any more; what is in the rings stays readable."""

    def close(self) -> None:
        """Ends the command if it still runs, and removes everything; may be called again."""


class Local(Driver):
    """This process holds them.

    Nothing is pinned: when it ends, however it ends, the kernel removes everything.
    """

    def __init__(
        self,
        scopes: Sequence[Scope],
        *,
        command: Sequence[str] = (),
        command_stdout: int | None = None,
        command_dies: bool = False,
        new_only: bool = False,
        ring_bytes: int = RING_BYTES,
        variant: str | None = None,
    ) -> None:
        """Loads the callouts. command_stdout, command_dies: as for `Child`.

        Raises KernelUnsupported, PermissionMissing, CalloutError; ValueError for too many scopes.
        """
        if len(scopes) > MAX_FILTERS:
            raise ValueError(f"{len(scopes)} scopes; at most {MAX_FILTERS} at once")
        if not in_host_pid_namespace() and any(s.kind in ("pid", "launch") for s in scopes):
            raise KernelUnsupported(
                "a scope by process number in a pid namespace",
                "the kernel knows processes by their numbers on the host",
                "run streamtap on the host, or in its pid namespace (docker run --pid=host)",
            )
        self.scopes = tuple(scopes)
        self.child: Child | None = None
        self._new_only = new_only
        self._closed = False
        # Before the kernel is touched, while this process has no threads: fork.
        if command:
            self.child = Child(command, stdout=command_stdout, dies=command_dies)
        try:
            super().__init__(Callouts(ring_bytes=ring_bytes, variant=variant))
        except BaseException:
            self._end_child()
            raise

    def attach(self, make_room: Callable[[], None]) -> Hooks:
        """As in `Holder`. Raises LaunchError where the command cannot be executed."""
        callouts = self.callouts
        pid = self.child.pid if self.child else None
        for bit, scope in enumerate(self.scopes):
            self.install(bit, scope, pid=pid)
        callouts.enable((1 << len(self.scopes)) - 1)
        callouts.attach(new_only=self._new_only, make_room=make_room)
        make_room()  # decide on what runs already before its sockets are marked
        callouts.adopt(make_room=make_room)
        if self.child:
            self.child.release()
        return Hooks(callouts.hooks, callouts.missing)

    def status(self) -> int | None:
        return self.child.poll() if self.child else None

    def flush(self) -> None:
        """Each policy was in force when it was set."""

    def detach(self) -> None:
        self.callouts.detach()

    def _end_child(self) -> None:
        if self.child:
            self.child.end()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._end_child()
            self.callouts.close()
