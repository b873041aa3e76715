"""A network namespace of the benchmark's own, and what is measured in it: the worker of ``network.py``.

A session's way out never leads to its host's loopback, so that the server needs another address; and none that others could
reach, or whose traffic could leave. The namespace has a loopback and nothing else, with a documentation address on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

from remit.cli.bench.measure import BARE, RUN, BenchError, interleave, tail
from remit.cli.bench.worker import answer
from remit.sandbox.kernel import process

ADDRESS = "192.0.2.1"
PLACE = "{place}"
"""Stands for the server's endpoint in what ``network.py`` sends, who cannot know the port."""
RELAY = "relay without a policy"
SRT = "srt's proxy"
_PATIENCE = 60.0
"""Seconds until an answer counts as never to come."""
_END = 10.0
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCSIFADDR, _UP_RUNNING = 0x8914, 0x8916, 0x41


class Lone:
    """What the requests work on: the server, the relay, and a client for each way to the server.

    ``settings``: ``python`` and ``own``, the interpreter inside and Remit's own, with their options; ``script``, where
    ``traffic.py`` is for both; ``workspace``; ``remit``, how a command is confined, with PLACE for what it may connect
    to; ``srt``, the same for srt, whose programs have to ask its proxy, or nothing; ``errors``, the file of everybody's
    standard error.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._errors: str = settings["errors"]
        self._running: list[subprocess.Popen[str]] = []
        self._clients: dict[str, subprocess.Popen[str]] = {}
        self._failed: dict[str, str] = {}

    def open(self) -> dict[str, object]:
        """Make the namespace, and start everything."""
        try:
            _namespace()
        except OSError as error:
            raise BenchError(f"no network namespace: {error.strerror}") from None
        python, own, script = (self._settings[name] for name in ("python", "own", "script"))
        server = self._said(self._start([*python, script, "server", ADDRESS]))
        # By the interpreter that the gateway runs on.
        relay = self._said(self._start([*own, script, "relay", ADDRESS, server]))
        client = [*python, script, "client", ADDRESS]
        confined = [word.replace(PLACE, f"{ADDRESS}:{server}") for word in self._settings["remit"]]
        for name, argv in (
            (BARE, [*client, server]),
            (RELAY, [*client, relay]),
            (RUN, [*confined, *client, server]),
        ):
            self._clients[name] = self._start(argv)
        if self._settings["srt"]:
            self._clients[SRT] = self._start([*self._settings["srt"], *python, script, "proxied", ADDRESS, server])
        return {}

    def sample(self, measure: str, number: int, rounds: int) -> dict[str, object]:
        """One of ``traffic.MEASURES`` by each client, interleaved."""
        variants: dict[str, Callable[[], float]] = {
            name: partial(self._measured, client, measure, number)
            for name, client in self._clients.items()
            if name not in self._failed
        }
        samples, failed = interleave(variants, rounds, must=(BARE, RELAY))
        # Whose answer did not come once could take it for that to the next question.
        self._failed |= failed
        return {"samples": samples, "failed": self._failed}

    def close(self) -> dict[str, object]:
        """End all, the clients first."""
        for one in reversed(self._running):
            _end(one)
        self._running.clear()
        self._clients.clear()
        return {}

    def _start(self, argv: list[str]) -> subprocess.Popen[str]:
        with open(self._errors, "ab") as errors:
            pipe = subprocess.PIPE
            one = subprocess.Popen(
                argv, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=self._settings["workspace"]
            )
        self._running.append(one)
        return one

    def _measured(self, client: subprocess.Popen[str], measure: str, number: int) -> float:
        assert client.stdin is not None
        try:
            client.stdin.write(f"{measure} {number}\n")
            client.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"the client ended: {tail(self._errors)}") from None
        return float(self._said(client))

    def _said(self, one: subprocess.Popen[str]) -> str:
        """Its next line. BenchError where none comes."""
        # It says one line at a time, and only when it is asked: what select does not see is not buffered either.
        if one.stdout is None or not select.select([one.stdout], [], [], _PATIENCE)[0]:
            raise BenchError(f"no answer within {_PATIENCE:.0f} s: {tail(self._errors)}")
        line = one.stdout.readline().strip()
        if not line:
            raise BenchError(f"it ended: {tail(self._errors)}")
        return line


def _end(one: subprocess.Popen[str]) -> None:
    for stream in (one.stdin, one.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                pass
    try:
        one.wait(_END)
    except subprocess.TimeoutExpired:
        one.kill()
        one.wait()


def _namespace() -> None:
    """Be in a network namespace of one's own, with ``ADDRESS`` on its loopback; still this user, whoever that is."""
    uid, gid = os.geteuid(), os.getegid()
    process.unshare(_CLONE_NEWNET | (_CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_RUNNING))
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
        fcntl.ioctl(sock, _SIOCSIFADDR, address)


def main(settings: str) -> None:
    """Answer requests until there are no more."""
    lone = Lone(json.loads(settings))
    try:
        answer(lone)
    finally:
        lone.close()
