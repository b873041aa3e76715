"""The gateway at work: sources come with their sockets and go, connections are accepted and handed on."""

from __future__ import annotations

import asyncio
import errno
import marshal
import os
import resource
import signal
import socket
import ssl
import struct
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from remit.sandbox.authority.parse import ParseError
from remit.sandbox.egress import config, proxy, publish, wire
from remit.sandbox.egress.ca import Authority, make, upstream_context
from remit.sandbox.egress.connect import Connector
from remit.sandbox.egress.control import Control
from remit.sandbox.egress.datagram import Datagrams
from remit.sandbox.egress.decide import Rules
from remit.sandbox.egress.denial import Denial
from remit.sandbox.egress.dns import LONGEST, Code, Reply, answer
from remit.sandbox.egress.gate import Event, Gate, Ledger, denied
from remit.sandbox.egress.loop import Loop
from remit.sandbox.egress.loop import run as run_loop
from remit.sandbox.egress.names import Names
from remit.sandbox.egress.policy import Source, Web
from remit.sandbox.egress.relay import Engine, Meter, reset
from remit.sandbox.egress.stream import Plain
from remit.sandbox.egress.tunnel import Tunnel
from remit.sandbox.events.action import NO_NAME
from remit.sandbox.kernel import memfd
from remit.sandbox.kernel.process import set_dumpable

_BATCH = 64
"""Connections or datagrams taken at one time from one socket, before others have their turn."""

_PAUSE = 0.5
"""Seconds without accepting when there are no descriptors left."""

_LAST_WORDS = 2.0
"""Seconds that the launcher has for what the gateway still has to say when it is ended."""

_SECRETS = 1 << 22
"""Bytes of the file that comes with a config."""

_PERIODS, _FINEST = (1.0, 5.0), 0.1
"""Seconds between looks at connections: with any, without; and at least, where their time is limited."""

_REMEMBERED = 1024
_QUERIES = 256
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
_LISTENERS = (("127.0.0.1", wire.TCP_PORT), ("::1", wire.TCP_PORT))
_NOT_TRANSLATED = (errno.ENOENT, errno.ENOPROTOOPT)
"""There is no NAT of it, or none of anything."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Live:
    """A source at work: its sockets, and the tasks of its connections."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.listeners: list[socket.socket] = []
        self.datagrams: list[Datagrams] = []
        self.resolvers: list[socket.socket] = []
        self.doors = publish.Doors()
        self.tasks: set[asyncio.Task[None]] = set()
        self.told: OrderedDict[str, None] = OrderedDict()


_Serve = Callable[[_Live, socket.socket], Coroutine[Any, Any, None] | None]
"""What a connection is handed to. It returns what is still to be waited for."""


class Gateway:
    """One gateway on a control socket. The rest is for tests: their own resolver, certificates, redirection."""

    def __init__(
        self,
        control: socket.socket,
        *,
        connector: Connector | None = None,
        verify: Callable[[], ssl.SSLContext] | None = None,
        original: Callable[[socket.socket], tuple[str, int]] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, Loop):
            raise TypeError("a gateway runs in a loop of its own kind (egress.loop.run)")
        self._loop = loop
        self._over, self._configured = asyncio.Event(), asyncio.Event()
        self._original = original or original_destination
        self._live: dict[str, _Live] = {}
        self._web = Web()
        self._rules: Rules | None = None
        self._trust: ssl.SSLContext | None = None
        self._verify = verify or self._system_trust
        self.ledger = Ledger(self._event)
        engine = Engine(self._loop)
        limits = config.limits({})
        self.gate = Gate(engine, connector or Connector(), self.ledger, Names(), limits, self._verify)
        self.control = Control(control, self._message, self._over.set, self.ledger.written)

    async def run(self) -> None:
        """Until the control socket ends."""
        sweeper = asyncio.create_task(self._sweep())
        try:
            await self._over.wait()
        finally:
            sweeper.cancel()
            tasks = [task for live in self._live.values() for task in live.tasks]
            for call in list(self._live):
                self._close(call)
            self.gate.engine.close()
            await asyncio.gather(sweeper, *tasks, return_exceptions=True)
            try:
                # The launcher may have closed its side for writing only, and still listen to how things ended.
                async with asyncio.timeout(_LAST_WORDS):
                    await self.control.flushed()
            except TimeoutError:
                pass
            self.control.close()

    # --- what the launcher says ---------------------------------------------------------------------------------------

    def _message(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        try:
            if message[0] == wire.CONFIG:
                options = dict(message[2])
                for descriptor in descriptors:
                    options |= marshal.loads(memfd.content(descriptor, _SECRETS))
                self._configure(message[1], options)
            elif message[0] == wire.LISTEN:
                sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
                self._listen(message[1], message[2], message[3], message[4], sockets)
            elif message[0] == wire.CLOSE:
                self._close(message[1])
            else:
                self._fail(f"unknown message {message[0]!r}", "launcher and gateway are of two versions")
        except (ParseError, ValueError, TypeError, KeyError, IndexError, OSError) as error:
            # A config that is not understood is no config. The text of these errors shows hosts and paths, no secret.
            self._fail(f"{type(error).__name__}: {error}", "")

    def _configure(self, session: str, options: dict[str, Any]) -> None:
        self._rules = Rules(config.endpoints(options.get("rules", ())))
        self._web = config.web(options)
        gate = self.gate
        gate.limits = config.limits(options)
        gate.meter = Meter(gate.limits.bytes)
        certificate = b""
        names = self._web.names()
        if names:
            certificate, key = make(session, names)
            gate.authority = Authority(certificate, key)
        self._configured.set()
        self.control.send((wire.READY, certificate))

    def _listen(
        self,
        call: str,
        rules: tuple[wire.Rule, ...],
        roles: tuple[wire.Role, ...],
        variables: tuple[str, ...],
        sockets: list[socket.socket],
    ) -> None:
        if self._rules is None or len(roles) != len(sockets):
            for one in sockets:
                one.close()
            raise ValueError("sockets before the config, or not as many as roles")
        live = self._live.get(call)
        if live is None:
            own = Rules(config.endpoints(rules), self._rules) if call else self._rules
            live = self._live[call] = _Live(Source(call, own, self._web.given(variables) if call else self._web))
        for (role, number), sock in zip(roles, sockets, strict=True):
            sock.setblocking(False)
            self._take(live, role, number, sock)

    def _take(self, live: _Live, role: str, number: int, sock: socket.socket) -> None:
        """Put one socket to its use."""
        if role == wire.DNS_UDP:
            live.resolvers.append(sock)
            self._loop.add_reader(sock, self._query, live, sock)
        elif role == wire.UDP:
            live.datagrams.append(Datagrams(self.gate, live.source, sock, number))
        elif role == wire.PUBLISH:
            live.doors.add(sock)
        else:
            serve = {
                wire.TCP: self._transparent,
                wire.PROXY: self._proxy,
                wire.DNS_TCP: self._queries,
                wire.PUBLISHED: self._published(number),
            }.get(role)
            if serve is None:
                raise ValueError(f"unknown role {role!r}")
            live.listeners.append(sock)
            self._loop.add_reader(sock, self._accept, live, sock, serve)

    def _close(self, call: str) -> None:
        live = self._live.pop(call, None)
        if live is None:
            return
        for sock in (*live.listeners, *live.resolvers):
            self._loop.remove_reader(sock)
            sock.close()
        for datagrams in live.datagrams:
            datagrams.close()
        for task in list(live.tasks):
            task.cancel()
        for relay in list(live.source.relays):
            relay.abort("the call is over")
        live.doors.close()

    def _fail(self, message: str, hint: str) -> None:
        self.control.send((wire.FAILED, message, hint))
        self._over.set()

    def _event(self, event: Event) -> None:
        # How a connection ended may be told a little later: with the next one's beginning, most of the time.
        self.control.tell(event, waits=event.verdict == "ended")

    def _system_trust(self) -> ssl.SSLContext:
        if self._trust is None:
            self._trust = upstream_context()
        return self._trust

    async def _sweep(self) -> None:
        """Look at what has been silent or open for too long, at moments that are near enough to the limit on time."""
        await self._configured.wait()
        limits = self.gate.limits
        finest = max(_FINEST, limits.time / 4) if limits.time else _PERIODS[1]
        while True:
            await asyncio.sleep(min(finest, _PERIODS[0] if self.gate.open else _PERIODS[1]))
            self.gate.engine.sweep(limits.idle, limits.time)
            for live in self._live.values():
                for datagrams in live.datagrams:
                    datagrams.sweep()
            if self.ledger.lost:
                lost, self.ledger.lost = self.ledger.lost, 0
                self.ledger.note(Event("", "connect", "", "denied", f"{lost} events more than the record could take"))

    # --- what programs inside do --------------------------------------------------------------------------------------

    def _accept(self, live: _Live, listener: socket.socket, serve: _Serve) -> None:
        for _ in range(_BATCH):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _NO_ROOM and listener.fileno() >= 0:
                    # They wait in the backlog. Asking again at once would ask for ever.
                    self._loop.remove_reader(listener)
                    self._loop.call_later(_PAUSE, self._again, live, listener, serve)
                return
            sock.setblocking(False)
            if self.gate.open >= self.gate.limits.connections:
                denial = Denial(403, "connection", f"more than {self.gate.limits.connections} connections at a time")
                self.ledger.note(denied(live.source.call, "connect", "transparent", denial))
                reset(sock)
                continue
            rest = serve(live, sock)
            if rest is None:
                continue
            self.gate.open += 1
            task = self._loop.create_task(self._served(rest))
            live.tasks.add(task)
            task.add_done_callback(live.tasks.discard)

    def _again(self, live: _Live, listener: socket.socket, serve: _Serve) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, live, listener, serve)

    async def _served(self, serve: Coroutine[Any, Any, None]) -> None:
        """One connection's task: its end is an end of the connection, never of the gateway."""
        try:
            if self.gate.limits.time:
                async with asyncio.timeout(self.gate.limits.time):
                    await serve
            else:
                await serve
        except TimeoutError:
            pass
        finally:
            self.gate.open -= 1

    def _transparent(self, live: _Live, sock: socket.socket) -> Coroutine[Any, Any, None] | None:
        plain = Plain(sock)
        text = "connection"
        try:
            host, port = self._original(sock)
            text = f"[{host}]:{port}/tcp" if ":" in host else f"{host}:{port}/tcp"
            wanted = self.gate.meant(host, port)
        except (ParseError, OSError) as error:
            reason = error.message if isinstance(error, ParseError) else str(error)
            self.ledger.note(denied(live.source.call, "connect", "transparent", Denial(403, text, reason)))
            plain.reset()
            return None
        return Tunnel(self.gate, live.source, plain, wanted, "transparent").begin()

    async def _proxy(self, live: _Live, sock: socket.socket) -> None:
        await proxy.serve(self.gate, live.source, Plain(sock))

    def _published(self, port: int) -> Callable[[_Live, socket.socket], Coroutine[Any, Any, None]]:
        async def serve(live: _Live, sock: socket.socket) -> None:
            await publish.serve(self.gate, live.source, live.doors, sock, port)

        return serve

    # --- names --------------------------------------------------------------------------------------------------------

    def _query(self, live: _Live, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, client = sock.recvfrom(LONGEST + 1)
            except OSError:
                return
            reply = self._answer(live, data)
            if reply.data:
                try:
                    sock.sendto(reply.data, client)
                except OSError:
                    pass

    async def _queries(self, live: _Live, sock: socket.socket) -> None:
        """DNS over TCP (RFC 7766): length and message, again and again."""
        stream = Plain(sock)
        try:
            for _ in range(_QUERIES):
                async with asyncio.timeout(self.gate.limits.first):
                    while len(stream.first) < 2 or len(stream.first) < 2 + int.from_bytes(stream.first[:2], "big"):
                        if not await stream.more(LONGEST + 2):
                            return
                length = int.from_bytes(stream.first[:2], "big")
                data, stream.first = stream.first[2 : 2 + length], stream.first[2 + length :]
                reply = self._answer(live, data)
                if not reply.data:
                    return
                async with asyncio.timeout(self.gate.limits.first):
                    await stream.write(len(reply.data).to_bytes(2, "big") + reply.data)
        except (OSError, TimeoutError):
            pass
        finally:
            stream.close()

    def _answer(self, live: _Live, data: bytes) -> Reply:
        reply = answer(data, live.source.rules, self.gate.names)
        if reply.name and reply.code in (Code.NOERROR, Code.NXDOMAIN) and reply.name not in live.told:
            # Once for each name: a resolver asks for both families, and again, and a program that guesses names for
            # ever must not fill the record with the same ones.
            live.told[reply.name] = None
            while len(live.told) > _REMEMBERED:
                live.told.popitem(last=False)
            verdict = "denied" if reply.code is Code.NXDOMAIN else "allowed"
            reason = NO_NAME if verdict == "denied" else ""
            self.ledger.note(Event(live.source.call, "resolve", reply.name, verdict, reason, "", "dns"))
        return reply


def original_destination(sock: socket.socket) -> tuple[str, int]:
    """Where a connection was going: its own address, or where that is the listener's and NAT brought it there,
    ``netfilter``'s SO_ORIGINAL_DST (for both families).

    Raises:
        OSError: the connection is over already.
        ParseError: it was going to the listener itself.
    """
    host, port = sock.getsockname()[:2]
    if (host, port) not in _LISTENERS:
        return host, port
    try:
        if sock.family == socket.AF_INET:
            data = sock.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DESTINATION, 16)
            meant = socket.inet_ntoa(data[4:8]), int(struct.unpack_from("!H", data, 2)[0])
        else:
            data = sock.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DESTINATION, 28)
            meant = socket.inet_ntop(socket.AF_INET6, data[8:24]), int(struct.unpack_from("!H", data, 2)[0])
    except OSError as error:
        if error.errno not in _NOT_TRANSLATED:
            raise
        meant = host, port
    if meant == (host, port):
        raise ParseError("a connection to the gateway's own socket")
    return meant


def run(control: int) -> None:
    """Serve on the control socket with this number until it ends."""
    # The terminal's signals are for the command: the gateway ends with the session, when the control socket does.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    set_dumpable(False)  # its memory holds secrets
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def serve() -> None:
        await Gateway(socket.socket(fileno=control)).run()

    run_loop(serve())
