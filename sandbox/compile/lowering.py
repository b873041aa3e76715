"""What a plan says of itself, collected while it is compiled.

Three kinds of difference between what was granted and what is enforced:

*slack* (wider): refuses, unless the layer that would have held it was given up by name;
*deficit* (narrower): starts, and says so, unless the command line asked for that very thing;
*notes*: where one layer holds what two usually do, or a meaning that surprises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remit.sandbox.authority.errors import Unenforceable
from remit.sandbox.authority.model import Authority, AutoExec
from remit.sandbox.compile import landlock
from remit.sandbox.compile.paths import below
from remit.sandbox.compile.plan import Line, Lowering


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers a plan has."""

    namespaces: bool
    network: bool
    landlock: bool
    seccomp: bool
    mediation: bool


@dataclass(slots=True)
class Report:
    """The lines so far, and the reasons to refuse."""

    degrade: frozenset[str]
    reasons: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    granted: list[Line] = field(default_factory=list[Line])
    denied: list[Line] = field(default_factory=list[Line])
    slack: list[Line] = field(default_factory=list[Line])
    deficit: list[Line] = field(default_factory=list[Line])
    notes: list[str] = field(default_factory=list[str])
    gone: set[str] = field(default_factory=set[str])

    def missing(self, layer: str, problem: str, fix: str) -> None:
        """A layer that this host does not have and nobody gave up. What follows from it is not a reason of its own."""
        self.gone.add(layer)
        self.reasons.append((problem, fix))

    def wider(self, layer: str, line: Line, fix: str) -> None:
        """Slack: refuses unless ``layer`` is given up."""
        if layer in self.degrade:
            self.slack.append(line)
        elif layer not in self.gone:
            self.reasons.append((f"{line.axis}: {line.object}: {line.note}", fix))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def raise_if_unenforceable(self) -> None:
        """Unenforceable, with every reason, if there is one."""
        if not self.reasons:
            return
        problem, fix = self.reasons[0]
        more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
        raise Unenforceable(f"{problem}{more}", reasons=tuple(self.reasons), hint=fix)

    def lowering(self) -> Lowering:
        return Lowering(
            tuple(self.granted), tuple(self.denied), tuple(self.slack), tuple(self.deficit), notes=tuple(self.notes)
        )


def missing(says: Report, authority: Authority, layers: Layers, abi: int, visible: tuple[str, ...]) -> None:
    """What the layers that are off, or older than they could be, leave to one layer or to none."""
    if layers.landlock:
        for row in landlock.lacking(abi):
            _abi(says, row, layers)
    if not layers.mediation:
        line = Line("filesystem", "auto-executed files", "protect", "can be written: no mediator")
        if authority.auto_exec is AutoExec.PROTECT:
            says.wider("mediation" if layers.landlock else "landlock", line, "keep the mediator")
        if "mediation" in says.degrade or "seccomp" in says.degrade:
            says.note("denials are not counted: no mediator listens")
    if not layers.seccomp:
        says.slack.append(Line("syscalls", "every call", "use", "no filter: the kernel's whole surface is reachable"))
    if not layers.landlock:
        says.slack.append(Line("filesystem", "what is mounted", "read", "one layer: mounts alone hold the file system"))
    if not layers.namespaces:
        shared = (
            ("ipc", "processes of the same user", "see", "the host's process list is visible"),
            ("filesystem", "names and attributes", "stat", "Landlock hides no names"),
            ("ipc", "System V objects", "use", "shared with the host"),
        )
        for axis, what, right, text in shared:
            says.wider("namespaces", Line(axis, what, right, text), "keep namespaces")
        for path in ("/tmp", "/dev/shm"):
            if not any(below(path, other) for other in visible):
                says.deficit.append(Line("filesystem", path, "write", "no private one without namespaces"))
    says.note("what may be read can be run by an interpreter, and memory can be executed: exec governs files")


def _abi(says: Report, row: landlock.Abi, layers: Layers) -> None:
    held_by = {
        3: ("filesystem", "truncation", "mounts and the mediator hold it"),
        4: ("network", "TCP", "the network namespace holds it"),
        5: ("devices", "ioctl", "the private /dev holds it"),
        6: ("ipc", "signals and abstract sockets", "the PID and network namespaces hold it"),
        9: ("ipc", "named Unix sockets", "only mounts hold it"),
    }
    if row.version not in held_by:
        return
    axis, what, other = held_by[row.version]
    needed = layers.network if row.version in (4, 6) else layers.namespaces
    if needed:
        says.note(f"{axis}: {what}: Landlock cannot deny it here (Linux {row.kernel}): {other}")
    else:
        layer = "namespaces" if not layers.namespaces else "network"
        line = Line(axis, what, "use", f"Landlock cannot deny it before Linux {row.kernel}")
        says.wider(layer, line, f"use Linux {row.kernel} or later, or keep namespaces")
