"""An internet on the loopback, and a gateway before it: names, addresses, servers and certificates of the tests' own.

Names and addresses are those of the documentation (RFC 2606, RFC 5737). The gateway decides on them as on any; only the last
step, ``connect(2)``, is told where in this process's own servers an address is. What is not a server here is refused by
the loopback, so nothing can leave.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import datetime
import marshal
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from remit.sandbox.egress import wire
from remit.sandbox.egress.connect import Connector
from remit.sandbox.egress.serve import Gateway

PATIENCE = 60.0
"""Seconds until what hangs is given up and its test fails. Not a synchronisation."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Certificates:
    """A certificate authority of the tests' own: the "real" one of the servers outside."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The tests' authority")])
        self.certificate = self._sign(self.name, self.key, None)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, host: str | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .issuer_name(self.name)
            .subject_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if host is None:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, host: str) -> ssl.SSLContext:
        """A context for the server called ``host``."""
        from remit.sandbox.egress.ca import _load  # pyright: ignore[reportPrivateUsage]

        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._sign(x509.Name([]), key, host)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load(context, leaf.public_bytes(serialization.Encoding.PEM) + private)
        return context

    def client(self) -> ssl.SSLContext:
        """A context that trusts this authority and no other."""
        return ssl.create_default_context(cadata=self.pem)


class World:
    """Names, addresses, servers; and what was asked of them."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self.places: dict[tuple[str, int], int] = {}
        self.servers: list[asyncio.Server] = []
        self.nowhere = socket.socket()  # bound and not listening: refuses
        self.nowhere.bind(("127.0.0.1", 0))

    async def resolve(self, name: str) -> list[str]:
        """The gateway's resolver."""
        self.asked.append(name)
        if name not in self.names:
            raise OSError(f"no such name: {name}")
        return self.names[name]

    def route(self, address: str, port: int) -> tuple[str, int]:
        """Where an address of the documentation is on this loopback."""
        self.dialled.append((address, port))
        nowhere: int = self.nowhere.getsockname()[1]
        return "127.0.0.1", self.places.get((address, port), nowhere)

    async def serve(self, address: str, port: int, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        """A server at ``address``."""

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls, backlog=2048)
        self.servers.append(server)
        self.places[address, port] = server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Close the servers."""
        for server in self.servers:
            server.close()
        self.nowhere.close()


class House:
    """A gateway with its launcher's end, and a session's sockets (on this loopback) before it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[tuple[Any, ...]] = []
        self.messages: list[tuple[Any, ...]] = []
        self.trust = ssl.create_default_context()
        self.ports: dict[str, int] = {}
        self.originals: dict[int, tuple[str, int]] = {}
        self._ours: socket.socket
        self.gateway: Gateway

    async def start(self, options: dict[str, Any], **more: Any) -> None:
        """Start the gateway and configure it."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        connector = Connector(self.world.resolve, route=self.world.route, connect_timeout=5.0)
        self.gateway = Gateway(
            theirs,
            connector=connector,
            verify=lambda: self.trust,
            original=lambda sock: self.originals[sock.getpeername()[1]],
            **more,
        )
        self._task = asyncio.create_task(self.gateway.run())
        self.send((wire.CONFIG, "test", options))
        kind, self.certificate = await self._message()
        assert kind == wire.READY
        self.inside = ssl.create_default_context(cadata=self.certificate.decode() or None)
        self._reader = asyncio.create_task(self._read())

    def send(self, message: tuple[Any, ...], sockets: list[socket.socket] | None = None) -> None:
        """Say something as the launcher does."""
        numbers = array.array("i", [sock.fileno() for sock in sockets or []])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes())] if sockets else []
        self._ours.sendmsg([marshal.dumps(message)], control)
        for sock in sockets or []:
            sock.close()

    def listen(
        self, call: str, rules: list[str], family: int = socket.AF_INET, variables: tuple[str, ...] = ()
    ) -> None:
        """A source with one socket of every kind; its ports are ``ports["CALL:ROLE"]``."""
        sockets: list[socket.socket] = []
        for role in (wire.TCP, wire.PROXY, wire.DNS_TCP, wire.DNS_UDP):
            kind = socket.SOCK_DGRAM if role == wire.DNS_UDP else socket.SOCK_STREAM
            sock = socket.socket(family, kind)
            sock.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.listen(2048)
            self.ports[f"{call}:{role}"] = sock.getsockname()[1]
            sockets.append(sock)
        roles = tuple((role, 0) for role in (wire.TCP, wire.PROXY, wire.DNS_TCP, wire.DNS_UDP))
        listed = tuple((rule, f"call.toml:1 {rule}") for rule in rules)
        self.send((wire.LISTEN, call, listed, roles, variables), sockets)

    async def _message(self) -> tuple[Any, ...]:
        data = await asyncio.get_running_loop().sock_recv(self._ours, wire.MESSAGE_SIZE)
        message: tuple[Any, ...] = marshal.loads(data) if data else ()
        return message

    async def _read(self) -> None:
        while message := await self._message():
            if message[0] == wire.EVENTS:
                self.events += message[1]
            else:
                self.messages.append(message[1:])

    async def transparent(
        self, host: str, port: int, call: str = "", tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to ``host`` that the session's namespace has redirected."""
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.originals[sock.getsockname()[1]] = (host, port)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.ports[f"{call}:tcp"]))
        except OSError:
            sock.close()
            raise
        if tls is None:
            return await asyncio.open_connection(sock=sock)
        return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name or host)

    async def proxy(self, call: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the proxy."""
        return await asyncio.open_connection("127.0.0.1", self.ports[f"{call}:proxy"])

    def synthetic(self, name: str) -> str:
        """The address that the session's resolver gives for a granted ``name``."""
        return str(self.gateway.gate.names.addresses(name)[0])

    async def stop(self) -> None:
        """End the gateway as the launcher does: by going."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._ours.close()
        async with asyncio.timeout(PATIENCE):
            await self._task

    def verdicts(self, right: str = "connect") -> list[tuple[str, str]]:
        """(object, verdict) of each event of ``right``."""
        return [(event[2], event[3]) for event in self.events if event[1] == right]


@contextlib.asynccontextmanager
async def house(world: World, rules: list[str], **options: Any) -> AsyncGenerator[House]:
    """A gateway whose session has ``rules``, with the session's own source (call "")."""
    made = House(world)
    listed = tuple((rule, f"profile.toml:{index + 1} network.connect") for index, rule in enumerate(rules))
    trust = options.pop("trust", None)
    if trust is not None:
        made.trust = trust
    await made.start({"rules": listed, **options})
    made.listen("", [])
    try:
        yield made
    finally:
        await made.stop()
        world.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that says back what it hears."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def saying(text: bytes) -> Handler:
    """A server that answers each HTTP request with ``text``."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            await writer.drain()

    return handle


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """The next message's head, b"" at the end."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def everything(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end, or until the connection is reset."""
    data = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while piece := await reader.read(65536):
                data += piece
    except ConnectionError:
        pass
    return data


async def refused(reader: asyncio.StreamReader) -> bool:
    """Whether the connection is reset before a byte comes."""
    try:
        async with asyncio.timeout(PATIENCE):
            return not await reader.read(1)
    except ConnectionError:
        return True


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other tasks bring about; fails after a minute."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
