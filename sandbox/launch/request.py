"""What the launcher hands to the stage: plain values and inherited descriptors, by fork."""

from __future__ import annotations

from remit.sandbox.kernel import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from remit.sandbox.launch.wire import Operation


LARGEST = 1 << 20
"""Bytes of a message from the launcher that are read; a socket takes less at once (``net.core.wmem_default``)."""


class Terminal:
    """The terminal that the session's own one starts as a copy of: ``termios`` attributes and a window size."""

    __slots__ = ("attributes", "replaces", "size")

    def __init__(self, attributes: list[object] | None, size: bytes, replaces: tuple[bool, bool, bool]) -> None:
        self.attributes = attributes
        self.size = size
        self.replaces = replaces


class Identity:
    """A user and group number, whether the child may map itself, and the id-mapped trees by host path."""

    __slots__ = ("gid", "idmapped", "self_map", "uid")

    def __init__(self, uid: int, gid: int, *, self_map: bool, idmapped: Mapping[str, int]) -> None:
        self.uid = uid
        self.gid = gid
        self.self_map = self_map
        self.idmapped = idmapped

    def write_maps(self, pid: int) -> None:
        """As root: give the new user namespace of ``pid`` this one user and group, the same inside and outside."""
        for name, number in (("uid_map", self.uid), ("gid_map", self.gid)):
            files.write(f"/proc/{pid}/{name}", b"%d %d 1" % (number, number))


class Request:
    """One start. ``operations`` is the plan's wire form; ``begun`` says that ``ground.begin`` has been done."""

    __slots__ = (
        "argv",
        "begun",
        "control",
        "degraded",
        "directory",
        "environment",
        "gid",
        "idmapped",
        "operations",
        "self_map",
        "stack_strings",
        "terminal",
        "uid",
    )

    def __init__(
        self,
        *,
        operations: Sequence[Operation],
        idmapped: Mapping[str, int],
        control: int,
        uid: int,
        gid: int,
        self_map: bool,
        stack_strings: tuple[int, int],
        argv: list[bytes],
        environment: list[bytes],
        directory: bytes,
        terminal: Terminal | None,
        degraded: tuple[str, ...],
        begun: bool = False,
    ) -> None:
        self.operations = operations
        self.idmapped = idmapped
        self.control = control
        self.uid = uid
        self.gid = gid
        self.self_map = self_map
        self.stack_strings = stack_strings
        self.argv = argv
        self.environment = environment
        self.directory = directory
        self.terminal = terminal
        self.degraded = degraded
        self.begun = begun

    def packed(self) -> tuple[Any, ...]:
        """Without the descriptors, as plain values: for a process that was not forked with it."""
        terminal = self.terminal
        return (
            self.operations,
            self.uid,
            self.gid,
            self.stack_strings,
            self.argv,
            self.environment,
            self.directory,
            None if terminal is None else (terminal.attributes, terminal.size, terminal.replaces),
            self.degraded,
        )


def unpacked(control: int, packed: tuple[Any, ...]) -> Request:
    """The request of ``packed``, for a process that has its ids, its mounts to itself, and its socket at ``control``."""
    operations, uid, gid, stack_strings, argv, environment, directory, terminal, degraded = packed
    return Request(
        operations=operations,
        idmapped={},
        control=control,
        uid=uid,
        gid=gid,
        self_map=True,
        stack_strings=stack_strings,
        argv=argv,
        environment=environment,
        directory=directory,
        terminal=None if terminal is None else Terminal(*terminal),
        degraded=degraded,
        begun=True,
    )
