"""A small internet in a network namespace: a resolver that remembers what it was asked, and servers that say who came.

Run by ``net_harness`` in new network and mount namespaces, as a program of its own: standard library only. Nothing here
can reach anything: every address is one of ``lo``, and there is no route to others.

Arguments: a directory of its own, certificate and key (PEM) for the TLS servers. On standard output: ``ready``, then one
JSON line for each line on standard input: everything that was seen until then, after ``forget`` nothing. Ends with its
standard input. Every HTTP server has the files below the directory's ``site``, if there are any, and its repositories.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

HOSTS = {
    "granted.example.com": ("203.0.113.10", "2001:db8::10"),
    "other.example.com": ("203.0.113.20", "2001:db8::20"),
    "deep.sub.example.net": ("203.0.113.30", ""),
    "rebound.example.com": ("127.0.0.1", "::1"),
    "private.example.com": ("10.0.0.5", ""),
}
RESOLVER = "203.0.113.53"
ADDRESSES = ("203.0.113.10", "203.0.113.20", "203.0.113.30", RESOLVER, "10.0.0.5", "2001:db8::10", "2001:db8::20")
TCP, TLS, UDP = (22, 80, 5432, 6379, 8080), (443, 8443), (4433, 9999)
POSTGRES_TLS = bytes((0, 0, 0, 8)) + (80877103).to_bytes(4, "big")
TRUSTED = "/etc/ssl/certs/ca-certificates.crt"
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18

seen: list[tuple[str, str]] = []
lock = threading.Lock()


def note(kind: str, what: str) -> None:
    """Remember."""
    with lock:
        seen.append((kind, what))


def setup(directory: str) -> None:
    """Addresses, and a resolv.conf that names this world's resolver."""
    for argument in (
        "link set lo up",
        *(f"addr add {address} dev lo nodad" for address in ADDRESSES if ":" in address),
    ):
        subprocess.run(["ip", *argument.split()], check=True)
    for address in ADDRESSES:
        if ":" not in address:
            subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "mount")
    for name, content in (("resolv.conf", f"nameserver {RESOLVER}\n"), ("hosts", "127.0.0.1 localhost\n")):
        path = f"{directory}/{name}"
        with open(path, "w") as file:
            file.write(content)
        if libc.mount(path.encode(), os.path.realpath(f"/etc/{name}").encode(), None, MS_BIND, None):
            raise OSError(ctypes.get_errno(), "mount")
    # This world's host trusts the servers' authority, and no other.
    own, trusted = f"{directory}/ca.pem".encode(), os.path.realpath(TRUSTED).encode()
    if os.path.exists(trusted) and libc.mount(own, trusted, None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "mount")


def opened(family: int, kind: int, address: object) -> socket.socket:
    """A server's socket, ready before anybody is told so."""
    server = socket.socket(family, kind)
    if family != socket.AF_UNIX:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(address)  # type: ignore[arg-type]  # whatever the family takes
    if kind == socket.SOCK_STREAM:
        server.listen(64)
    return server


def dns(server: socket.socket) -> None:
    """Answer A and AAAA."""
    while True:
        query, client = server.recvfrom(4096)
        labels: list[str] = []
        at = 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
            at += query[at] + 1
        name, end = ".".join(labels).lower(), at + 5
        kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
        note("dns", name)
        v4, v6 = HOSTS.get(name, ("", ""))
        data = b""
        if kind == 1 and v4:
            data = socket.inet_pton(socket.AF_INET, v4)
        elif kind == 28 and v6:
            data = socket.inet_pton(socket.AF_INET6, v6)
        answer = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(data)) + data if data else b""
        code = 0x8180 if name in HOSTS else 0x8183
        head = query[:2] + struct.pack(">HHHHH", code, 1, bool(data), 0, 0)
        server.sendto(head + query[12:end] + answer, client)


def serve(server: socket.socket, host: str, port: int, context: ssl.SSLContext | None, site: str) -> None:
    """Answer every connection with one response; note who was asked for what."""
    while True:
        client, _ = server.accept()
        note("tcp", f"{host} {port}")
        threading.Thread(target=answer, args=(client, host, port, context, site), daemon=True).start()


def answer(client: socket.socket, host: str, port: int, context: ssl.SSLContext | None, site: str) -> None:
    """One connection, to its end: one request of a database's, or of HTTP, whose answer names the server."""
    served = f"served by {host} {port}\n".encode()
    try:
        if context is not None:
            client = context.wrap_socket(client, server_side=True)
        if port == 22:
            client.sendall(b"SSH-2.0-test\r\n")
        first = client.recv(65536)
        note("head", f"{host} {port} {first.decode('latin-1')}")
        note("said", f"{host} {port} {first.partition(bytes((13,)))[0].decode('latin-1')}")
        if port == 5432 and first == POSTGRES_TLS:
            client.sendall(b"N")
            note("said", f"{host} {port} {client.recv(4096)[8:].decode('latin-1')}")
            fields = b"SFATAL\0VFATAL\0C28000\0M" + served.strip() + b"\0\0"
            client.sendall(b"E" + struct.pack(">I", len(fields) + 4) + fields)
        elif port == 22 and first.startswith(b"SSH-"):
            return  # it has said who it is
        elif port == 6379 and first.startswith(b"*1\r\n"):
            client.sendall(b"+" + served.strip() + b"\r\n")
        else:
            kind, body = http(client, first, site) or ("200 OK\r\nContent-Type: text/plain", served)
            head = f"HTTP/1.1 {kind}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
    except OSError:
        pass
    finally:
        client.close()


def http(client: socket.socket, data: bytes, site: str) -> tuple[str, bytes] | None:
    """The response to one request: status line and headers, and body. None: the usual one."""
    while b"\r\n\r\n" not in data and (piece := client.recv(65536)):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(body) < int(headers.get("content-length", "0")) and (piece := client.recv(65536)):
        body += piece
    method, target = [*line.split(" "), ""][:2]
    path, _, query = target.partition("?")
    if path.startswith("/to/"):  # somewhere else: /to/HOST:PORT/
        return f"302 Found\r\nLocation: http://{path[4:]}", b""
    if path.startswith("/repo.git/"):
        return git(method, path, query, headers, body, site)
    file = site + (path + "index.html" if path.endswith("/") else path)
    if path == "/" or ".." in path or not os.path.isfile(file):
        return None
    kind = {"html": "text/html", "json": "application/json"}.get(file.rpartition(".")[2], "application/octet-stream")
    with open(file, "rb") as opened:
        return f"200 OK\r\nContent-Type: {kind}", opened.read().replace(b"HOST", headers.get("host", "").encode())


def git(method: str, path: str, query: str, headers: dict[str, str], body: bytes, site: str) -> tuple[str, bytes]:
    """git's own server for HTTP, as a CGI program."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": site,
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
        "GIT_PROTOCOL": headers.get("git-protocol", ""),
    }
    done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    status = next((line[8:] for line in lines if line.startswith("Status: ")), "200 OK")
    return "\r\n".join([status, *(line for line in lines if not line.startswith("Status: "))]), content


def echo(server: socket.socket, host: str, port: int) -> None:
    """UDP: say what came, and from which server."""
    while True:
        data, client = server.recvfrom(65536)
        note("udp", f"{host} {port}")
        server.sendto(host.encode() + b" " + data, client)


def abstract(server: socket.socket) -> None:
    """A server on an abstract Unix socket, as D-Bus or X11 have."""
    while True:
        client, _ = server.accept()
        note("unix", "abstract")
        client.close()


def main() -> None:
    """See the module."""
    directory, certificate, key = sys.argv[1:]
    setup(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    jobs: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (dns, (opened(socket.AF_INET, socket.SOCK_DGRAM, (RESOLVER, 53)),)),
        (abstract, (opened(socket.AF_UNIX, socket.SOCK_STREAM, "\0remit-test-abstract"),)),
    ]
    for address in (*ADDRESSES, "127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in (*TCP, *TLS):
            server = opened(family, socket.SOCK_STREAM, (address, port))
            jobs.append((serve, (server, address, port, context if port in TLS else None, f"{directory}/site")))
        for port in UDP:
            jobs.append((echo, (opened(family, socket.SOCK_DGRAM, (address, port)), address, port)))
    for target, arguments in jobs:
        threading.Thread(target=target, args=arguments, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        with lock:
            if line == "forget\n":
                seen.clear()
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
