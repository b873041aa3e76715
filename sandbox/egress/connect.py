"""From a granted name to a connected socket: resolve once, check each address, connect to what was checked.

The resolver is a function, so that tests bring their own. The real one asks the host's, for the name with a dot behind
it: a search list would otherwise turn a granted ``api.example.com`` into ``api.example.com.corp.example``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.sandbox.egress.addresses import canonical
from remit.sandbox.egress.decide import Decision, Destination, Rules, decide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STAGGER = 0.25
"""Seconds before the next address is tried beside the ones before it (RFC 8305, 5)."""

KEEP = 5.0
"""Seconds for which an answer is used again: a page's twenty connections ask once. Each still checks its addresses."""

MOST = 16
"""Addresses of one name that are looked at."""

_CACHED = 1024


class Unreachable(Exception):
    """A granted destination that could not be reached: ``code`` for the record, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Refused(Exception):
    """A destination that the rules do not allow, with the decision and the destination as it was decided on."""

    def __init__(self, decision: Decision, wanted: Destination) -> None:
        super().__init__(decision.reason)
        self.decision = decision
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection, where it goes, and what allowed it."""

    sock: socket.socket
    wanted: Destination
    decision: Decision


@dataclass(frozen=True, slots=True)
class Begun:
    """A connection that is being made to one address: there already, or not yet (``errno`` EINPROGRESS), or not at all."""

    sock: socket.socket
    place: tuple[str, int]
    wanted: Destination
    decision: Decision
    errno: int

    @property
    def reached(self) -> Reached | None:
        """The connection, if it is there."""
        return None if self.errno else Reached(self.sock, self.wanted, self.decision)

    async def finish(self) -> Reached:
        """Wait for it. Raises OSError."""
        try:
            if self.errno == errno.EINPROGRESS:
                await asyncio.get_running_loop().sock_connect(self.sock, self.place)
            elif self.errno:
                raise OSError(self.errno, os.strerror(self.errno))
        except BaseException:
            self.sock.close()
            raise
        return Reached(self.sock, self.wanted, self.decision)


def hosts_file(name: str, path: str = "/etc/hosts") -> list[str]:
    """What ``path`` says of ``name``. The system's own reading of it does not find a name with a dot behind it."""
    found: list[str] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                address, *given = line.partition("#")[0].split()[:64] or [""]
                if name in [one.lower().removesuffix(".") for one in given]:
                    found.append(address)
    except OSError:
        pass
    return found


async def system_resolver(name: str) -> list[str]:
    """The addresses of ``name``, by the host's resolver, in its order.

    Raises:
        OSError: there are none.
    """
    loop = asyncio.get_running_loop()
    listed = await loop.run_in_executor(None, hosts_file, name)
    if listed:
        return listed
    # A name of one label has no meaning but by the search list, and whoever granted it meant that.
    asked = f"{name}." if "." in name else name
    answers = await loop.getaddrinfo(asked, 0, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


def _straight(address: str, port: int) -> tuple[str, int]:
    return address, port


class Connector:
    """Resolves and connects for every connection of a gateway."""

    def __init__(
        self,
        resolve: Callable[[str], Awaitable[list[str]]] = system_resolver,
        *,
        resolve_timeout: float = 10.0,
        connect_timeout: float = 30.0,
        lookups: int = 64,
        route: Callable[[str, int], tuple[str, int]] = _straight,
    ) -> None:
        """``route`` is where an address really is: for tests, which have no internet but their own."""
        self._resolve = resolve
        self._resolve_timeout = resolve_timeout
        self._connect_timeout = connect_timeout
        self._route = route
        self._slots = asyncio.Semaphore(lookups)
        self._known: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[list[str]]] = {}

    async def allowed(self, rules: Rules, wanted: Destination) -> list[tuple[Destination, Decision]]:
        """Where ``wanted`` may be reached now, each decided on. A name is resolved only if it is granted.

        Raises:
            Refused: the rules do not allow it, or none of its addresses.
            Unreachable: it has no addresses.
        """
        decision = decide(rules, wanted)
        if not decision.allowed:
            raise Refused(decision, wanted)
        if wanted.address:
            return [(wanted, decision)]
        good: list[tuple[Destination, Decision]] = []
        bad: tuple[Destination, Decision] | None = None
        for text in (await self._addresses(wanted.name))[:MOST]:
            try:
                at = wanted.at(text)
            except ValueError:
                continue  # a zone: nothing that could be connected to
            checked = decide(rules, at)
            if not checked.allowed:
                bad = bad or (at, checked)
            elif all(at != other for other, _ in good):
                good.append((at, checked))
        if good:
            return good
        if bad is not None:
            raise Refused(bad[1], bad[0])
        raise Unreachable("no-address", f"{wanted.name} has no address")

    async def connect(self, rules: Rules, wanted: Destination, begun: Begun | None = None) -> Reached:
        """A connection to ``wanted`` at one of the addresses that were checked. ``begun``: what ``begin`` made of it.

        Raises:
            Refused, Unreachable: as ``allowed``; Unreachable also where nothing answers.
        """
        places = _interleaved(await self.allowed(rules, wanted)) if begun is None else []
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await (self._first(places) if begun is None else begun.finish())
        except TimeoutError:
            raise Unreachable("timeout", f"{wanted} does not answer") from None
        except OSError as error:
            raise Unreachable(errno.errorcode.get(error.errno or 0, "error"), f"{wanted}: {error.strerror}") from None

    async def _addresses(self, name: str) -> list[str]:
        now = asyncio.get_running_loop().time()
        known = self._known.get(name)
        if known is not None and known[0] > now:
            return known[1]
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        try:
            # Shielded: one connection that is given up does not take the answer from the others that wait for it.
            return await asyncio.shield(task)
        except TimeoutError:
            raise Unreachable("resolver", f"{name}: the resolver does not answer") from None
        except (OSError, UnicodeError) as error:
            raise Unreachable("no-address", f"{name} has no address: {error}") from None

    async def _ask(self, name: str) -> list[str]:
        async with self._slots, asyncio.timeout(self._resolve_timeout):
            found = await self._resolve(name)
        self._known[name] = (asyncio.get_running_loop().time() + KEEP, found)
        self._known.move_to_end(name)
        while len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return found

    async def _first(self, places: list[tuple[Destination, Decision]]) -> Reached:
        """The first connection that stands, each address being tried a little after the one before it, or on its failure.

        Raises:
            OSError: the first address's failure, where all fail.
        """
        if len(places) == 1:
            return await self._one(*places[0])
        left = list(places)
        running: dict[asyncio.Task[Reached], None] = {}
        failures: list[OSError] = []
        try:
            while left or running:
                if left:
                    running[asyncio.create_task(self._one(*left.pop(0)))] = None
                done, _ = await asyncio.wait(
                    running, timeout=STAGGER if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                won: Reached | None = None
                for task in done:
                    del running[task]
                    error = task.exception()
                    if error is None:
                        if won is None:
                            won = task.result()
                        else:
                            task.result().sock.close()
                    elif isinstance(error, OSError):
                        failures.append(error)
                    else:
                        raise error
                if won is not None:
                    return won
            raise failures[0]
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_close_late)

    async def _one(self, wanted: Destination, decision: Decision) -> Reached:
        return await self.begin(wanted, decision).finish()

    def begin(self, wanted: Destination, decision: Decision) -> Begun:
        """Begin to connect to an address that was decided on. Raises OSError: there is no socket."""
        place = self._route(wanted.address, wanted.port)
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A number, never a name: nothing is resolved here.
            code = sock.connect_ex(place)
            if code == errno.EINPROGRESS:
                # On this machine's own networks it is there by now, and asking is cheaper than being told.
                code = sock.connect_ex(place)
        except BaseException:
            sock.close()
            raise
        if code in (errno.EALREADY, errno.EINTR):
            code = errno.EINPROGRESS
        return Begun(sock, place, wanted, decision, 0 if code == errno.EISCONN else code)


def _interleaved(places: list[tuple[Destination, Decision]]) -> list[tuple[Destination, Decision]]:
    """Families in turn, the resolver's first one first (RFC 8305, 4)."""
    first = canonical(places[0][0].address).version
    one = [place for place in places if canonical(place[0].address).version == first]
    other = [place for place in places if canonical(place[0].address).version != first]
    mixed: list[tuple[Destination, Decision]] = []
    for index in range(max(len(one), len(other))):
        mixed += one[index : index + 1] + other[index : index + 1]
    return mixed


def _close_late(task: asyncio.Task[Reached]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().sock.close()
