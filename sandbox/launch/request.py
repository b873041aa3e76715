"""What the launcher hands to the stage: plain values and inherited descriptors, by fork."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remit.sandbox.launch.wire import Operation


class Terminal:
    """The terminal that the session's own one starts as a copy of: ``termios`` attributes and a window size."""

    __slots__ = ("attributes", "replaces", "size")

    def __init__(self, attributes: list[object] | None, size: bytes, replaces: tuple[bool, bool, bool]) -> None:
        self.attributes = attributes
        self.size = size
        self.replaces = replaces


class Request:
    """One start. ``operations`` is the plan's wire form."""

    __slots__ = (
        "argv",
        "canary",
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
        canary: tuple[str, bytes],
        argv: list[bytes],
        environment: list[bytes],
        directory: bytes,
        terminal: Terminal | None,
        degraded: tuple[str, ...],
    ) -> None:
        self.operations = operations
        self.idmapped = idmapped
        self.control = control
        self.uid = uid
        self.gid = gid
        self.self_map = self_map
        self.stack_strings = stack_strings
        self.canary = canary
        self.argv = argv
        self.environment = environment
        self.directory = directory
        self.terminal = terminal
        self.degraded = degraded
