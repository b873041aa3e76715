"""What an authority says of an action, decided from the authority alone: for reports, questions and replays.

Nothing enforces by this. It reads the symbolic authority (and what its names resolved to at the start), where the plan's
rules and the mediator work on what was compiled from it: where the two disagree about a recorded action, one of them is
wrong, and the report says so.

What a git configuration file *holds* decides whether it may be written, and no record has that: for such an action the
recorded decision stands wherever auto-executed files are protected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from remit.sandbox.authority import codec, lattice
from remit.sandbox.authority.endpoint import matches
from remit.sandbox.authority.model import Authority, AutoExec, PathPattern, PathRule, Right, Source
from remit.sandbox.authority.web import HttpRule, parse_http_host
from remit.sandbox.compile import catalogue
from remit.sandbox.compile.syscalls import TABLE, Action
from remit.sandbox.events.action import BY_AUTHORITY, HELD, PRIVATE, UNGRANTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.sandbox.authority.model import Endpoint
    from remit.sandbox.events.event import Event

AUTO_EXEC = "auto_exec "
_OWN = ("/dev/", "/proc/")
_SCRATCH = ("/tmp/", "/run/", "/var/tmp/")
_RIGHTS = {"read": Right.READ, "write": Right.WRITE, "remove": Right.WRITE, "setuid": Right.WRITE, "exec": Right.EXEC}
_LOOPBACK = ("127.", "[0:0:0:0:0:0:0:1]:", "[::1]:", "0.0.0.0:")


@dataclass(frozen=True, slots=True)
class Decision:
    """``kind``: ``granted``, ``private``, ``deny``, ``protect``, ``auto-exec``, ``ungranted``, ``call`` or ``refused``.

    ``line`` is the rule's text (for a grant: the granted path or endpoint), ``source`` where it stands.
    """

    allowed: bool
    kind: str
    line: str = ""
    source: Source | None = None


class Decider:
    """Decisions under one authority. ``canonical`` maps names of the authority to what they resolved to. ``visible``: what
    is shown besides, in the session around it."""

    def __init__(
        self,
        authority: Authority,
        canonical: Mapping[str, str],
        visible: tuple[str, ...] = (),
        http: tuple[HttpRule, ...] = (),
    ) -> None:
        def resolved(path: str) -> str:
            return canonical.get(path, path)

        def pattern(one: PathPattern) -> tuple[PathPattern, ...]:
            held = replace(one, anchor=resolved(one.anchor))
            whole = resolved(str(one))
            if one.any_depth or whole in (str(one), str(held)) or whole == "/":
                return (held,)
            anchor, _, name = whole.rpartition("/")
            return held, replace(one, anchor=anchor or "/", tail=(name,))

        self.given = authority
        """As it was granted, with the names that were granted."""
        self.names = canonical
        self.authority = replace(
            authority,
            paths=tuple(replace(rule, path=resolved(rule.path)) for rule in authority.paths),
            deny=tuple(made for one in authority.deny for made in pattern(one)),
            protect=tuple(made for one in authority.protect for made in pattern(one)),
            unix=tuple(resolved(path) for path in authority.unix),
        )
        self.http = http
        """The HTTP rules of the session, which hold for every call."""
        self._shown = (*(rule.path for rule in self.authority.paths), *visible)
        self._writable = sorted(rule.path for rule in self.authority.paths if Right.WRITE in rule.rights)

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any]) -> Decider:
        """From the content of a record's ``plan.json``. Raises KeyError, TypeError, ValueError, GrantError."""
        authority = codec.from_json(plan["grant"]["authority"], "plan.grant.authority")
        names = {str(one["path"]): str(one["canonical"]) for one in plan["plan"].get("assumptions", ())}
        return cls(authority, names, http=_http(plan))

    @classmethod
    def of_call(cls, beyond: Mapping[str, Any], plan: Mapping[str, Any], session: Decider) -> Decider:
        """From what a record has of a call's authority (``lattice.beyond``), in the session that ran under ``plan``, whose is
        ``session``. Raises as ``of_plan``."""
        floor = codec.from_json(plan["floor"], "plan.floor")
        visible = tuple(rule.path for rule in session.authority.paths)
        held = lattice.whole(codec.from_json(beyond, "policy.beyond"), floor, session.given)
        return cls(held, session.names, visible, session.http)

    def event(self, event: Event) -> Decision:
        """What this authority says of a recorded action, whatever was decided then."""
        if event.axis == "syscalls":
            return self._call(event)
        if event.axis == "ipc" and event.right in ("signal", "trace"):
            own = event.rule.text == PRIVATE
            return Decision(own, "private" if own else "ungranted", PRIVATE if own else UNGRANTED)
        if event.axis == "network":
            return self._connection(event)
        if event.axis == "ipc":
            return self.socket(event.object)
        if event.right == "setuid":
            return Decision(False, "refused", event.rule.text)
        content = event.rule.text if event.rule.text.startswith(AUTO_EXEC) else ""
        recorded = event.verdict != "denied"
        return self.path(event.object, event.right, content=content, known=event.object if recorded else "")

    def path(self, path: str, right: str, *, content: str = "", known: str = "") -> Decision:
        """A right on a canonical path. ``content``: the recorded rule of a file that is judged by what it holds."""
        try:
            allowed, line = lattice.allows_path(self.authority, path, _RIGHTS[right])
        except ValueError:
            return Decision(False, "ungranted", UNGRANTED)
        if isinstance(line, PathPattern):
            return Decision(False, "deny" if line in self.authority.deny else "protect", str(line), line.source)
        private = not allowed and right != "exec" and self._private(f"{path}/")
        if not allowed and not private:
            return Decision(False, "ungranted", UNGRANTED)
        # The session's own scratch directories are mediated as what is granted is.
        mediated = not private or path.startswith(_SCRATCH)
        protects = mediated and self.authority.auto_exec is AutoExec.PROTECT and not self._opened(path)
        if protects and right in ("write", "remove"):
            rule = content or ("" if known else self.catalogued(path, right))
            if rule:
                return Decision(False, "auto-exec", rule)
        if private:
            return Decision(True, "private", PRIVATE)
        assert isinstance(line, PathRule)
        return Decision(True, "granted", line.path, line.where(_RIGHTS[right]))

    def _private(self, slashed: str) -> bool:
        if slashed.startswith("/proc/sys/"):
            return False
        if slashed.startswith(_OWN):
            return True
        # What is granted below /tmp is the host's.
        return slashed.startswith(_SCRATCH) and not any(slashed.startswith(f"{path}/") for path in self._shown)

    def _opened(self, path: str) -> bool:
        return any(path == one or path.startswith(f"{one}/") for one in self.authority.opened)

    def catalogued(self, path: str, right: str = "write") -> str:
        """The name of the catalogue under which ``path`` falls by its name, as a rule's text; empty for none."""
        parts = path.strip("/").split("/")
        packaged = not set(catalogue.PACKAGE_DIRECTORIES).isdisjoint(parts)
        for entry in catalogue.ENTRIES:
            size = len(entry.tail)
            if entry.top:
                tops = [root for root in self._writable if path.startswith(f"{root}/")]
                below = [tuple(path[len(root) + 1 :].split("/")[:size]) for root in tops]
                if entry.tail in below:
                    return AUTO_EXEC + "/".join(entry.tail)
            elif not packaged:
                for at in range(len(parts) - size + 1):
                    if tuple(parts[at : at + size]) == entry.tail:
                        return AUTO_EXEC + "/".join(entry.tail)
        if parts[-1] in catalogue.HOOKS and parts[-2:-1] == ["hooks"] and ".git" in parts:
            return f"{AUTO_EXEC}git hook {parts[-1]}"
        if right == "write" and parts[-1] in catalogue.INTERPRETERS and parts[-2:-1] in (["bin"], ["Scripts"]):
            return f"{AUTO_EXEC}interpreter {parts[-1]}"
        return ""

    def _connection(self, event: Event) -> Decision:
        """Whose loopback was meant, and what a name led to or a program sent, only those knew who were there."""
        if event.right == "bind":
            return Decision(True, "private", PRIVATE)
        if event.object.startswith(_LOOPBACK) and event.source != "gateway":
            own = event.rule.text == PRIVATE
            return Decision(own, "private" if own else "ungranted", PRIVATE if own else UNGRANTED)
        made = self.request(event.object) if event.right == "request" else self.endpoint(event.object)
        if made.allowed and event.denied and event.rule.text not in (UNGRANTED, *BY_AUTHORITY):
            return Decision(False, "refused", event.rule.text)
        return made

    def endpoint(self, text: str) -> Decision:
        """A connection to ``HOST:PORT``, ``[ADDRESS]:PORT``, with ``/udp`` or not; a name alone: to any port of it."""
        if text.startswith(_LOOPBACK) and self.authority.loopback:
            return Decision(True, "private", PRIVATE)
        try:
            host, port, protocol = target(text)
            if is_name(host):
                found = next((one for one in self.authority.connect if _names(one, host, port, protocol)), None)
            else:
                found = lattice.allows_connect(self.authority, None, host, port, protocol)[1]
        except ValueError:
            found = None
        if found is None:
            return Decision(False, "ungranted", UNGRANTED)
        return Decision(True, "granted", str(found), found.source)

    def request(self, text: str) -> Decision:
        """A request, ``METHOD URL``: to a host that is granted and, where that has HTTP rules, by one of them."""
        method, host, port, path = requested(text)
        made = self.endpoint(endpoint(host, port, "tcp"))
        rules = [rule for rule in self.http if rule.holds(host)]
        if not made.allowed or not rules:
            return made
        for rule in rules:
            if rule.allows(method, path):
                return Decision(True, "granted", str(rule), rule.source)
        return Decision(False, "ungranted", UNGRANTED)

    def socket(self, path: str) -> Decision:
        """A Unix socket, by path or (``@NAME``) abstract name: those are of the session's own network."""
        if path[:1] == "@":
            return Decision(True, "private", PRIVATE)
        if path in self.authority.unix:
            return Decision(True, "granted", path)
        return self.path(path, "write")

    def _call(self, event: Event) -> Decision:
        if event.rule.text == HELD:
            return Decision(False, "refused", HELD)
        group = group_of(event.syscall) if event.rule.text.endswith(" is refused") else ""
        if group and group in self.authority.syscalls:
            return Decision(True, "granted", group)
        return Decision(False, "call" if group else "refused", event.rule.text)


def target(text: str) -> tuple[str, int, str]:
    """(host, port or 0, protocol) of an event's ``HOST:PORT/PROTOCOL``; an IPv6 address without its brackets, compressed.

    Raises:
        ValueError: the port is no number.
    """
    place, _, protocol = text.partition("/")
    host, colon, port = place.rpartition(":")
    if not colon:
        return place, 0, protocol or "tcp"
    return _canonical(host.strip("[]")), int(port), protocol or "tcp"


def _canonical(host: str) -> str:
    try:
        found = ip_address(host)
    except ValueError:
        return host
    return str(getattr(found, "ipv4_mapped", None) or found)


def endpoint(host: str, port: int, protocol: str) -> str:
    """The three as an endpoint is written."""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" + ("" if protocol == "tcp" else f"/{protocol}")


def is_name(host: str) -> bool:
    """Whether it is no address."""
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def _names(endpoint: Endpoint, name: str, port: int, protocol: str) -> bool:
    """Whether the endpoint is of that name, whatever its address has to be; without a port, on any."""
    if not endpoint.name and not endpoint.wildcard:
        return False
    wanted = (port, protocol) if port else (endpoint.port or 1, endpoint.protocol)
    return matches(replace(endpoint, network=""), name, None, *wanted)


def requested(text: str) -> tuple[str, str, int, str]:
    """(method, host, port, decoded path) of an event's ``METHOD URL``."""
    method, _, url = text.partition(" ")
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdecimal():
        host, port = place, "443" if scheme == "https" else "80"
    return method, host.strip("[]"), int(port), unquote(slash + path, "latin-1")


def _http(plan: Mapping[str, Any]) -> tuple[HttpRule, ...]:
    """The HTTP rules of a plan (``compile.plan.Web``)."""
    found: list[HttpRule] = []
    for operation in plan["plan"].get("operations", ()):
        if operation.get("op") == "web":
            for host, methods, paths, where in operation["http"]:
                name, wildcard = parse_http_host(host)
                found.append(HttpRule(name, wildcard, tuple(methods), tuple(paths), Source(where)))
    return tuple(found)


def group_of(call: str) -> str:
    """The group that allows a system call again; empty where there is none. (Of clone's flags, one is in none, which no library
    uses: what was refused is told by its name alone, and was one of the others.)"""
    groups = {row.group for row in TABLE if row.call == call and row.action is Action.COUNT and row.group}
    return groups.pop() if len(groups) == 1 else ""
