"""This end of a ``worker.py``, or of another module that answers in the same way."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import remit
from remit.cli.bench.measure import BenchError, Sample, tail
from remit.cli.bench.setting import PROFILE, Setting
from remit.cli.boot import ISOLATED

_START = (
    "import sys; sys.path.append(sys.argv[1]); from remit.cli.boot import dependencies; dependencies(); "
    "from remit.cli.bench.{module} import main; main(sys.argv[2])"
)
_PATIENCE = 300.0
"""Seconds until an answer counts as never to come."""
_END = 30.0


class Program:
    """A module of this package that runs, as a process of its own, and answers. As a context manager, it ends with it.

    Its ``main`` is called with ``settings``, as JSON.
    """

    def __init__(self, setting: Setting, module: str, settings: dict[str, object], directory: str) -> None:
        self.errors = f"{setting.errors}-client"
        package = os.path.dirname(os.path.dirname(remit.__file__ or ""))
        with open(self.errors, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *ISOLATED, "-c", _START.format(module=module), package, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=setting.environment,
                cwd=directory,
            )

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process.stdin is not None:
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def tell(self, **request: object) -> None:
        """Send a request. BenchError where the worker has ended."""
        stream = self._process.stdin
        try:
            if stream is None:
                raise BrokenPipeError
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
        except BrokenPipeError:
            raise BenchError(f"the measured program ended: {tail(self.errors)}") from None

    def answer(self) -> dict[str, Any]:
        """The reply to the oldest request. BenchError where it is an error, or none comes."""
        stream = self._process.stdout
        # One reply is on its way at most: what select does not see is not in the reader's buffer either.
        if stream is None or not select.select([stream], [], [], _PATIENCE)[0]:
            raise BenchError(f"the measured program does not answer within {_PATIENCE:.0f} s")
        line = stream.readline()
        if not line:
            raise BenchError(f"the measured program ended: {tail(self.errors)}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(str(reply["error"]))
        return reply

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        self.tell(**request)
        return self.answer()


class Client(Program):
    """A worker, with a workspace of its own to start sessions on."""

    def __init__(self, setting: Setting, workspace: str) -> None:
        self._call_errors = f"{setting.errors}-call"
        settings: dict[str, object] = {
            "workspace": workspace,
            "profile": PROFILE,
            "true": setting.true,
            "remit": list(setting.confined(workspace, "true")),
            "bwrap": list(setting.bubblewrapped(workspace, setting.true)),
            "filter": setting.filter,
        }
        super().__init__(setting, "worker", settings, workspace)

    def called(self, argv: tuple[str, ...], output: str = "") -> Callable[[], Sample]:
        """What makes one call in the session that is open. BenchError where the status is not zero."""

        def call() -> Sample:
            reply = self.ask(do="call", argv=list(argv), output=output, errors=self._call_errors)
            if reply["status"] != 0:
                raise BenchError(f"{argv[0]}: exit status {reply['status']}: {tail(self._call_errors)}")
            return Sample(int(reply["ns"][0]), 0)

        return call
