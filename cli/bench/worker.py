"""A program that uses the Python API, as anybody's would: a process of its own, told over a pipe what to do and time.

Requests and replies are JSON, one a line. ``client.py`` is the other end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any

from remit import Grant, Session
from remit.cli.bench.measure import BWRAP, CALL, RUN, BenchError, interleave

SPAWN = "os.posix_spawn and wait"
SUBPROCESS = "subprocess.run"
SAME = "remit, call, narrower grant"
OWN = "remit, call, narrower grant, network of its own"
NEW = "remit, call, narrower grant, new each"
FIRST, SECOND = "remit, call in the first session", "remit, call in the second session"
QUIET, CAPTURED = "output to /dev/null", "output captured"
DIRECTORIES = 512
"""So many directories the workspace has, each granted in turn by NEW: half of them by each of its rows, so that every grant
is one that the session has forgotten or never seen."""
WAY_OUT = "192.0.2.1:443"
"""What the second session may connect to, and OWN may not (RFC 5737: nobody's). Nothing is sent."""

Action = Callable[[], object]


class Worker:
    """What the requests work on: the sessions that are open, and the ways to run a command."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._workspace: str = settings["workspace"]
        self._true: str = settings["true"]
        self._stack = ExitStack()
        self._sessions: list[Session] = []
        self._environment = dict(os.environ)

    def open(self, sessions: int, profile: str = "", connect: tuple[str, ...] = ()) -> dict[str, object]:
        """Start as many sessions, of the settings' profile or another. Replies how long each took until it could be called."""
        took: list[int] = []
        for _ in range(sessions):
            started = time.perf_counter_ns()
            one = self._stack.enter_context(
                Session(profile or self._settings["profile"], self._workspace, connect=connect)
            )
            took.append(time.perf_counter_ns() - started)
            self._sessions.append(one)
        return {"ns": took}

    def close(self) -> dict[str, object]:
        """Stop all sessions."""
        self._sessions.clear()
        started = time.perf_counter_ns()
        self._stack.close()
        return {"ns": [time.perf_counter_ns() - started]}

    def call(self, argv: list[str], output: str, errors: str) -> dict[str, object]:
        """One call in the first session, with the session's own grant."""
        with open(output or os.devnull, "wb") as out, open(errors, "wb") as err:
            started = time.perf_counter_ns()
            done = self._sessions[0].run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            took = time.perf_counter_ns() - started
        return {"ns": [took], "status": done.returncode}

    def sample(self, kinds: list[list[str]], rounds: int) -> dict[str, object]:
        """Each of the ways to run ``true``, interleaved: pairs of what is done with its output, and the way."""
        variants = {json.dumps(kind): _timed(self._action(*kind)) for kind in kinds}
        samples, failed = interleave(variants, rounds)
        return {"ns": [[*json.loads(kind), taken] for kind, taken in samples.items()],
                "failed": [[*json.loads(kind), why] for kind, why in failed.items()]}  # fmt: skip

    def rate(self, kind: str, threads: int, seconds: float) -> dict[str, object]:
        """How often ``true`` ran by ``kind`` in ``threads`` loops of ``seconds``. The clock stops with the last."""
        counts = [0] * threads
        errors: list[str] = []
        action = self._action(QUIET, kind)
        end = time.perf_counter() + seconds

        def loop(index: int) -> None:
            try:
                while time.perf_counter() < end:
                    action()
                    counts[index] += 1
            except Exception as error:
                errors.append(_said(error))

        started = time.perf_counter()
        running = [threading.Thread(target=loop, args=(index,)) for index in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        elapsed = time.perf_counter() - started
        if errors:
            raise BenchError(errors[0])
        return {"count": sum(counts), "seconds": elapsed}

    def _action(self, output: str, kind: str) -> Action:
        """One run of ``true``. Whatever ends otherwise than with 0 raises."""
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL}
        if output == CAPTURED:
            streams.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        else:
            streams.update(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kind == SPAWN:
            return self._spawn
        if kind == BWRAP:
            return lambda: self._bubblewrapped(streams)
        if kind in (SUBPROCESS, RUN):
            return lambda: _subprocess([self._true] if kind == SUBPROCESS else self._settings["remit"], streams)
        return self._called(kind, streams, first=1 if output == CAPTURED else 0)

    def _called(self, kind: str, streams: dict[str, Any], first: int) -> Action:
        call: Callable[..., object] = self._sessions[1 if kind in (SECOND, OWN) else 0].run
        true = ["true"]
        numbers = count(first, 2)

        def act() -> None:
            if kind in (CALL, FIRST, SECOND):
                call(true, check=True, **streams)
            elif kind in (SAME, OWN):
                call(true, check=True, grant=Grant(read=["d0"]), **streams)
            else:
                call(true, check=True, grant=Grant(read=[f"d{next(numbers) % DIRECTORIES}"]), **streams)

        return act

    def _spawn(self) -> None:
        actions = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        pid = os.posix_spawn(self._true, [self._true], self._environment, file_actions=actions)
        if os.waitpid(pid, 0)[1] != 0:
            raise BenchError(f"{self._true} failed")

    def _bubblewrapped(self, streams: dict[str, Any]) -> None:
        argv: list[str] = self._settings["bwrap"]
        # A description of its own: bubblewrap reads the filter from where the last reader stopped.
        descriptor = os.open(self._settings["filter"], os.O_RDONLY)
        try:
            at = argv.index("--seccomp") + 1
            subprocess.run(
                [*argv[:at], str(descriptor), *argv[at + 1 :]], check=True, pass_fds=(descriptor,), **streams
            )
        finally:
            os.close(descriptor)


def _subprocess(argv: list[str], streams: dict[str, Any], **options: Any) -> None:
    subprocess.run(argv, check=True, **streams, **options)


def _timed(action: Action) -> Callable[[], int]:
    def run() -> int:
        started = time.perf_counter_ns()
        try:
            action()
        except Exception as error:
            raise BenchError(_said(error)) from None
        return time.perf_counter_ns() - started

    return run


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"


def answer(handler: object) -> None:
    """Answer requests until there are no more: each names a method of ``handler`` and its arguments."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        act: Callable[..., dict[str, object]] = getattr(handler, request.pop("do"))
        try:
            reply = act(**request)
        except Exception as error:  # whatever the measured code raises is the answer
            reply = {"error": _said(error)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def main(settings: str) -> None:
    """Answer requests until there are no more."""
    worker = Worker(json.loads(settings))
    answer(worker)
    worker.close()
