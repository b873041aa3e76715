"""HTTP rules, the session's own certificates, and credentials that stay outside."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import ssl
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography import x509

from remit.sandbox.authority.web import Credential
from remit.sandbox.egress import ca
from remit.sandbox.egress.loop import run
from remit.sandbox.egress.secrets import Exchange, Secret, SecretError, obtain, placeholder, put_in
from tests.unit.egress_world import Certificates, House, World, everything, head_of, house

GOOD = "203.0.113.10"
HOST = "api.example.com"
SECRET = "s3cret-f0r-the-tests-only"


def rule(host: str = HOST, methods: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> tuple[Any, ...]:
    return (host, methods, paths, "profile.toml:9 network.http")


class Site:
    """A TLS server called ``HOST``, what it was asked, and a gateway that reads what is asked of it."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.world = World()
        self.world.names = {HOST: [GOOD]}
        self.certificates = Certificates()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            self.heads.append(head)
            lower = head.lower()
            length = next((int(x[15:]) for x in lower.split(b"\r\n") if x.startswith(b"content-length:")), 0)
            self.bodies.append(await reader.readexactly(length))
            if b"upgrade: websocket" in lower:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                while data := await reader.read(100):
                    writer.write(data)
                return
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nAlt-Svc: h3\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    async def open(self) -> None:
        await self.world.serve(GOOD, 443, self.handle, self.certificates.server(HOST))
        await self.world.serve(GOOD, 80, self.handle)

    def house(self, rules: tuple[Any, ...] = (), credentials: tuple[Any, ...] = ()) -> Any:
        return house(
            self.world,
            [f"{HOST}:443/tcp", f"{HOST}:80/tcp"],
            http=rules,
            credentials=credentials,
            trust=self.certificates.client(),
        )

    async def ask(self, here: House, said: bytes, *, via: str = "transparent") -> tuple[int, bytes]:
        """One request under TLS as a program inside makes it; status and body."""
        if via == "transparent":
            reader, writer = await here.transparent(here.synthetic(HOST), 443, tls=here.inside, name=HOST)
        else:
            reader, writer = await here.proxy()
            writer.write(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
            await writer.start_tls(here.inside, server_hostname=HOST)
        writer.write(said)
        status = int((await head_of(reader)).split()[1])
        writer.close()
        body = await everything(reader)
        return status, body


def request(method: str = "GET", path: str = "/", more: str = "", body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{length}{more}\r\n".encode() + body


@pytest.mark.parametrize("via", ["transparent", "connect"])
def test_a_rule_allows_what_it_says_and_the_denial_says_which_is_missing(via: str) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(methods=("GET",), paths=("/v1",)),)) as here:
            assert (await site.ask(here, request(path="/v1/x?q=1"), via=via))[0] == 200
            status, body = await site.ask(here, request("POST", "/v1/x", body=b"abc"), via=via)
            assert status == 403
            assert json.loads(body)["missing"] == {
                "key": "network.http",
                "value": f'host = "{HOST}", methods = ["POST"], paths = ["/v1/x"]',
            }
            assert (await site.ask(here, request(path="/v2"), via=via))[0] == 403
            assert (await site.ask(here, request(path="/v1x"), via=via))[0] == 403
            assert len(site.heads) == 1
            assert next((event[2], event[3], event[4]) for event in here.events if event[3] == "denied") == (
                f"POST https://{HOST}/v1/x",
                "denied",
                "no HTTP rule allows it",
            )

    run(main())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/..;/admin",
        "/v1/%2E%2E%2Fadmin",
        "/v1/..%2fadmin",
        "/v1/%252e%252e/admin",
        "/v1/..\\admin",
        "/v1/%5c..%5cadmin",
        "/v1//admin",
        "//v1/x",
        "/v1/./x",
        "/%76%31",  # decodes to /v1: that is allowed
        "/v1/%00",
        "/v1/%zz",
        "/v1/%",
        "/v1#/x",
        "/V1/x",
        "v1/x",
        "*",
        "http://api.example.com/v1/x",
    ],
)
def test_paths_that_a_server_may_read_as_others(path: str) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(methods=("GET",), paths=("/v1",)),)) as here:
            status, _ = await site.ask(here, request(path=path))
            assert (status == 200) == (path == "/%76%31")
            assert len(site.heads) == (status == 200)

    run(main())


@pytest.mark.parametrize(
    "header", ["X-HTTP-Method-Override: DELETE", "X-Original-URL: /admin", "X-Rewrite-Url: /admin"]
)
def test_headers_that_ask_for_another_request(header: str) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(methods=("GET",)),)) as here:
            assert (await site.ask(here, request(more="X-Other: 1\r\n")))[0] == 200
            assert (await site.ask(here, request(more=header + "\r\n")))[0] == 403

    run(main())


def test_the_other_name_under_our_own_tls() -> None:
    """Fronting, where TLS is terminated: the inner Host is seen."""

    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(),)) as here:
            said = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
            assert (await site.ask(here, said))[0] == 403
            reader, writer = await here.transparent(here.synthetic(HOST), 443)
            writer.write(b"\x16\x03\x01\x00\x05hello")
            assert await everything(reader) == b""
            writer.close()
            assert site.heads == []
            assert site.world.dialled == []

    run(main())


def test_plain_requests_meet_the_rules_too() -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(methods=("GET",)),)) as here:
            for target, dial in (
                ("http://api.example.com/", here.proxy()),
                ("/", here.transparent(here.synthetic(HOST), 80)),
            ):
                reader, writer = await dial
                writer.write(request(path=target) + request("DELETE", target))
                assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
                assert b"HTTP/1.1 403" in await everything(reader)
                writer.close()
            assert len(site.heads) == 2

    run(main())


def test_a_websocket_passes_where_its_request_does() -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(paths=("/socket",)),)) as here:
            reader, writer = await here.transparent(here.synthetic(HOST), 443, tls=here.inside, name=HOST)
            writer.write(request(path="/socket", more="Connection: Upgrade\r\nUpgrade: websocket\r\n") + b"early")
            assert (await head_of(reader)).startswith(b"HTTP/1.1 101")
            assert await reader.readexactly(5) == b"early"
            writer.write(b"late")
            assert await reader.readexactly(4) == b"late"
            writer.close()

    run(main())


def test_answers_come_whole_and_uploads_too() -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(),)) as here:
            status, body = await site.ask(here, request("PUT", "/big", body=b"x" * 3_000_000))
            assert status == 200
            assert body == b"5\r\nhello\r\n0\r\n\r\n"
            assert site.bodies == [b"x" * 3_000_000]

    run(main())


def test_a_server_without_the_right_certificate_is_not_spoken_with() -> None:
    async def main() -> None:
        site = Site()
        await site.world.serve(GOOD, 443, site.handle, Certificates().server(HOST))
        async with site.house((rule(),)) as here:
            assert (await site.ask(here, request()))[0] == 502
            assert site.heads == []

    run(main())


def test_the_sessions_authority_stands_for_its_hosts_only() -> None:
    certificate, key = ca.make("s1", ["api.example.com", "*.wild.example"])
    made = x509.load_pem_x509_certificate(certificate)
    constraints = made.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    permitted = constraints.value.permitted_subtrees or []
    assert [one.value for one in permitted] == ["api.example.com", "wild.example"]
    assert len(constraints.value.excluded_subtrees or []) == 2

    inside = ssl.create_default_context(cadata=certificate.decode())
    authority = ca.Authority(certificate, key)
    for name, works in (("api.example.com", True), ("x.wild.example", True), ("evil.example", False)):
        client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
        client = inside.wrap_bio(client_in, client_out, server_hostname=name)
        server = authority.context(name).wrap_bio(server_in, server_out, server_side=True)
        accepted = False
        for _ in range(4):
            for one in (client, server):
                try:
                    one.do_handshake()
                    accepted = accepted or one is client
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    pass
            server_in.write(client_out.read())
            client_in.write(server_out.read())
        assert accepted == works
    assert authority.context("x.wild.example") is authority.context("x.wild.example")


# --- credentials ------------------------------------------------------------------------------------------------------


def credential(kind: str, name: str, holder: str) -> tuple[Any, ...]:
    return (HOST, kind, name, holder, SECRET, "profile.toml:12 credentials", "")


@pytest.mark.parametrize(
    ("kind", "name", "said", "arrives"),
    [
        ("header", "x-api-key", "X-Api-Key: HOLDER\r\n", f"x-api-key: {SECRET}"),
        ("header", "authorization", "Authorization: Bearer HOLDER\r\n", f"authorization: bearer {SECRET}"),
        ("header", "authorization: Bearer {}", "", f"authorization: bearer {SECRET}"),
        ("header", "authorization: Bearer {}", "Authorization: none\r\n", f"authorization: bearer {SECRET}"),
        ("query", "key", "", f"?a=1&key={SECRET}&b=holder"),
        (
            "header",
            "authorization",
            "BASIC",
            "authorization: basic " + base64.b64encode(f"me:{SECRET}".encode()).decode().lower(),
        ),
    ],
)
def test_the_secret_reaches_its_host_and_nobody_else(kind: str, name: str, said: str, arrives: str) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        holder = placeholder()
        said_now = said.replace("HOLDER", holder)
        if said == "BASIC":
            said_now = "Authorization: Basic " + base64.b64encode(f"me:{holder}".encode()).decode() + "\r\n"
        path = f"/v1?a=1&key={holder}&b=HOLDER" if kind == "query" else "/v1"
        async with site.house((rule(paths=("/v1",)),), (credential(kind, name, holder),)) as here:
            status, body = await site.ask(here, request(path=path, more=said_now))
            assert status == 200
            assert arrives.lower() in site.heads[0].decode().lower()
            assert holder not in site.heads[0].decode()
            assert SECRET.encode() not in body

            # Denied by a rule: nothing of it leaves. Plain HTTP: refused.
            status, body = await site.ask(here, request(path="/v2", more=said_now))
            assert status == 403
            assert SECRET.encode() not in body
            reader, writer = await here.proxy()
            writer.write(request(path=f"http://{HOST}/v1", more=said_now))
            answer = await everything(reader)
            assert b"403" in answer
            assert b"TLS only" in answer
            writer.close()
            assert len(site.heads) == 1
            for shown in (here.events, here.messages):
                assert SECRET not in repr(shown)
                assert base64.b64encode(f"me:{SECRET}".encode()).decode() not in repr(shown)

    run(main())


@pytest.mark.parametrize("answer", ["HTTP/1.1 200 OK\r\nx {} \0: y\r\n\r\n", "{} is no HTTP\r\n\r\n"])
def test_what_a_server_echoes_that_is_no_http_is_told_to_nobody(answer: str) -> None:
    holder = placeholder()

    async def main() -> None:
        site = Site()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            site.heads.append(await head_of(reader))
            writer.write(answer.format(SECRET).encode())
            writer.close()

        await site.world.serve(GOOD, 443, echo, site.certificates.server(HOST))
        async with site.house((rule(),), (credential("header", "x-api-key", holder),)) as here:
            status, body = await site.ask(here, request(more=f"X-Api-Key: {holder}\r\n"))
            assert status == 502
            assert SECRET.encode() in site.heads[0]
            assert SECRET.encode() not in body
            assert SECRET not in repr(here.events) + repr(here.messages)

    run(main())


@pytest.mark.parametrize("records", [1, 2])
def test_what_follows_an_answer_is_not_the_next_answer(records: int) -> None:
    """In one record of TLS with it, or in the next one, which came along."""

    async def main() -> None:
        site = Site()

        async def two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await head_of(reader):
                site.heads.append(head)
                whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
                answers = [whole + b"hello", whole + b"wrong"]
                for one in answers if records == 2 else [b"".join(answers)]:
                    writer.write(one)

        await site.world.serve(GOOD, 443, two, site.certificates.server(HOST))
        async with site.house((rule(),)) as here:
            reader, writer = await here.transparent(here.synthetic(HOST), 443, tls=here.inside, name=HOST)
            for _ in range(3):
                writer.write(request())
                assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(5) == b"hello"
            writer.close()
            assert len(site.heads) == 3
            assert len(site.world.dialled) == 3

    run(main())


def test_another_host_gets_the_placeholder() -> None:
    async def main() -> None:
        heads: list[bytes] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await head_of(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        world, certificates = World(), Certificates()
        world.names = {HOST: [GOOD], "other.example.com": ["203.0.113.11"]}
        await world.serve("203.0.113.11", 443, handle, certificates.server("other.example.com"))
        holder = placeholder()
        options: Mapping[str, Any] = {
            "http": (rule("other.example.com"),),
            "credentials": (credential("header", "authorization: Bearer {}", holder),),
            "trust": certificates.client(),
        }
        async with house(world, [f"{HOST}:443/tcp", "other.example.com:443/tcp"], **options) as here:
            reader, writer = await here.transparent(
                here.synthetic("other.example.com"), 443, tls=here.inside, name="other.example.com"
            )
            more = f"Authorization: Bearer {holder}"
            writer.write(f"GET / HTTP/1.1\r\nHost: other.example.com\r\n{more}\r\n\r\n".encode())
            assert b"200" in await head_of(reader)
            writer.close()
        assert holder.encode() in heads[0]
        assert SECRET.encode() not in heads[0]

    run(main())


def test_a_secret_does_not_show_itself() -> None:
    import copy
    import pickle

    secret = Secret(SECRET.encode())
    exchange = Exchange(HOST, "authorization", "", "", "p", secret)
    for shown in (repr(secret), str(secret), f"{secret!r} {secret}", repr(exchange), f"{exchange}"):
        assert SECRET not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(secret)
    assert not hasattr(secret, "__dict__")
    gc.collect()


@pytest.mark.parametrize(
    ("origin", "place", "problem"),
    [
        ("env", "TOKEN", ""),
        ("file", "~/token", ""),
        ("file", "{home}/token", ""),
        ("command", "printf '%s' s3cret-f0r-the-tests-only", ""),
        ("env", "OTHER", "is not set"),
        ("env", "EMPTY", "empty"),
        ("env", "LINES", "control characters"),
        ("env", "LONG", "longer"),
        ("file", "/nonexistent/token", "No such file"),
        ("command", "false", "status 1"),
        ("command", "/nonexistent/program", "cannot be run"),
        ("command", "'", "cannot be run"),
        ("keyring", "remit-tests/nobody", "keyring"),
    ],
)
def test_where_a_secret_comes_from(origin: str, place: str, problem: str, tmp_path: Any) -> None:
    (tmp_path / "token").write_text(SECRET + "\n")
    environ = {"TOKEN": SECRET, "EMPTY": "", "LINES": f"{SECRET}\nx", "LONG": SECRET * 1000}
    wanted = Credential(HOST, "authorization", "", origin, place)
    if problem:
        with pytest.raises(SecretError, match=problem) as caught:
            obtain(wanted, environ, str(tmp_path))
        assert SECRET not in str(caught.value)
    else:
        assert obtain(wanted, environ, str(tmp_path)).reveal() == SECRET.encode()


def test_a_query_secret_is_encoded() -> None:
    exchange = Exchange(HOST, "", "key", "", "PH", Secret(b"a b&c=d"))
    assert put_in([exchange], b"/x?key=PH&other=PH", [])[0] == b"/x?key=a+b%26c%3Dd&other=PH"
    assert put_in([exchange], b"/x", [])[0] == b"/x"
