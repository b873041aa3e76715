"""UDP from inside: granted ports, each datagram decided on by where it was going, answers from where they were asked.

A *flow* is one program's socket speaking with one destination. It has a connected socket of its own outside, so that only
the address that was checked can answer. Flows are bounded, and the longest silent one goes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from remit.sandbox.authority.parse import ParseError
from remit.sandbox.egress.connect import Refused, Unreachable
from remit.sandbox.egress.denial import Denial
from remit.sandbox.egress.gate import Event, Gate, denied, refusal

if TYPE_CHECKING:
    from remit.sandbox.egress.policy import Source

FLOWS = 256
"""At a time, for each source."""

SILENT = 120.0
"""Seconds after which a flow is forgotten (RFC 4787, 4.3 wants two minutes)."""

_WAITING = 16
_SIZE = 65535
_ANSWER_SPACE = 256
_V4_PKTINFO = 8  # IP_PKTINFO of linux/in.h; the module has it from Python 3.14 on
_V6_PKTINFO = 50  # IPV6_PKTINFO of linux/in6.h


def destination_of(control: list[tuple[int, int, bytes]]) -> str:
    """Where a datagram was going, by its control messages; "" where they do not say."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _V4_PKTINFO and len(data) >= 12:
            return socket.inet_ntop(socket.AF_INET, data[8:12])
        if level == socket.IPPROTO_IPV6 and kind == _V6_PKTINFO and len(data) >= 20:
            return socket.inet_ntop(socket.AF_INET6, data[:16])
    return ""


def origin_of(address: str) -> tuple[int, int, bytes]:
    """The control message that makes a datagram come from ``address``."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return (socket.IPPROTO_IPV6, _V6_PKTINFO, packed + bytes(4))
    return (socket.IPPROTO_IP, _V4_PKTINFO, struct.pack("I4s4x", 0, socket.inet_aton(address)))


class _Flow:
    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.waiting: list[bytes] = []
        self.active = time.monotonic()
        self.began = self.active
        self.sent = self.received = 0
        self.text = ""
        self.rule = ""
        self.task: asyncio.Task[None] | None = None
        self.refused = False


class Datagrams:
    """The datagrams of one granted port of one source (one socket inside for each family)."""

    def __init__(self, gate: Gate, source: Source, inside: socket.socket, port: int) -> None:
        self.gate, self.source, self.inside, self.port = gate, source, inside, port
        self._flows: OrderedDict[tuple[Any, str], _Flow] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_SIZE)
        self._loop.add_reader(inside, self._from_inside)

    def sweep(self) -> None:
        """Forget flows that have been silent."""
        now = time.monotonic()
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if now - flow.active < SILENT:
                return
            self._forget(key)

    def close(self) -> None:
        """Forget everything, and close the socket inside."""
        self._loop.remove_reader(self.inside)
        for key in list(self._flows):
            self._forget(key)
        self.inside.close()

    def _from_inside(self) -> None:
        try:
            data, control, _, client = self.inside.recvmsg(_SIZE, _ANSWER_SPACE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            return  # an ICMP error for an earlier answer
        address = destination_of(control)
        if not address:
            return
        key = (client, address)
        flow = self._flows.get(key)
        if flow is None:
            while len(self._flows) >= FLOWS:
                self._forget(next(iter(self._flows)))
            flow = self._flows[key] = _Flow()
            flow.task = self._loop.create_task(self._open(key, flow))
        self._flows.move_to_end(key)
        flow.active = time.monotonic()
        if flow.sock is not None:
            self._out(flow, data)
        elif not flow.refused and len(flow.waiting) < _WAITING:
            flow.waiting.append(data)

    async def _open(self, key: tuple[Any, str], flow: _Flow) -> None:
        """Decide on a flow's destination, and connect a socket to it."""
        address = key[1]
        flow.text = f"{address}:{self.port}/udp"
        try:
            wanted = self.gate.meant(address, self.port, "udp")
            flow.text = f"{wanted}/udp"
            if wanted.name and self.source.web.reads(wanted.name):
                self._refuse(
                    flow, Denial(403, flow.text, "requests to this host are read: it is reached by HTTP over TCP only")
                )
                return
            place, decision = (await self.gate.connector.allowed(self.source.rules, wanted))[0]
            rule = str(decision.rule.source) if decision.rule is not None else ""
            event = Event(self.source.call, "connect", flow.text, "allowed", place.address, rule, "udp")
            await self.gate.ledger.allowed(event)
            family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sock.connect((place.address, self.port))
        except Refused as error:
            self._refuse(flow, refusal(error.decision, error.wanted))
        except (Unreachable, OSError) as error:
            self._refuse(flow, Denial(502, flow.text, str(error)), "failed")
        except ParseError as error:
            self._refuse(flow, Denial(403, flow.text, error.message))
        else:
            flow.sock, flow.rule = sock, rule
            self._loop.add_reader(sock, self._from_outside, key, flow)
            waiting, flow.waiting = flow.waiting, []
            for data in waiting:
                self._out(flow, data)

    def _refuse(self, flow: _Flow, denial: Denial, verdict: str = "denied") -> None:
        # The flow stays, refused: one event for it, not one for each datagram.
        flow.refused = True
        flow.waiting = []
        self.gate.ledger.note(denied(self.source.call, "connect", "udp", denial)._replace(verdict=verdict))

    def _out(self, flow: _Flow, data: bytes) -> None:
        if flow.sock is None or not self.gate.meter.passed(len(data)):
            return
        flow.sent += len(data)
        try:
            flow.sock.send(data)
        except OSError:
            pass  # datagrams may be lost: a full buffer, an ICMP error

    def _from_outside(self, key: tuple[Any, str], flow: _Flow) -> None:
        assert flow.sock is not None
        try:
            count = flow.sock.recv_into(self._buffer)
        except OSError:
            return
        flow.active = time.monotonic()
        flow.received += count
        if not self.gate.meter.passed(count):
            return
        client, address = key
        try:
            self.inside.sendmsg([memoryview(self._buffer)[:count]], [origin_of(address)], 0, client)
        except OSError:
            pass

    def _forget(self, key: tuple[Any, str]) -> None:
        flow = self._flows.pop(key)
        if flow.task is not None and not flow.task.done():
            flow.task.cancel()
        if flow.sock is None:
            return
        self._loop.remove_reader(flow.sock)
        flow.sock.close()
        milliseconds = int((time.monotonic() - flow.began) * 1000)
        self.gate.ledger.note(
            Event(
                self.source.call,
                "connect",
                flow.text,
                "ended",
                "",
                flow.rule,
                "udp",
                flow.sent,
                flow.received,
                milliseconds,
            )
        )
