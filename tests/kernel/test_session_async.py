"""``remit.AsyncSession`` under asyncio and under trio, and one ``Session`` from many threads."""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import anyio.to_thread
import pytest

import remit
from remit import AsyncSession, Grant, Session
from remit.sandbox.launch.zygote import MOST
from remit.sandbox.session import aio
from remit.sandbox.session.base import Opened, begin
from remit.sandbox.session.door import Door
from remit.sandbox.session.shared import POLICIES
from tests.kernel.run_harness import World
from tests.kernel.session_harness import first_processes, stopped

pytestmark = [pytest.mark.kernel]

LONG = 60
"""Seconds after which a test that waits has failed."""


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def workspace(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace, in a home of its own, with records of its own."""
    monkeypatch.setenv("HOME", str(world.home))
    for name, directory in (("STATE", "state"), ("CACHE", "cache"), ("CONFIG", "config"), ("RUNTIME", "runtime")):
        monkeypatch.setenv(f"XDG_{name}_{'DIR' if name == 'RUNTIME' else 'HOME'}", str(world.base / directory))
    monkeypatch.chdir(world.workspace)
    return world.workspace


def in_session(backend: str, body: Callable[[AsyncSession], Awaitable[None]], **options: Any) -> None:
    """Run ``body`` in a session of its own."""

    async def main() -> None:
        async with AsyncSession("offline", ".", **options) as session:
            with anyio.fail_after(LONG):
                await body(session)

    anyio.run(main, backend=backend)


async def timed_out(session: AsyncSession, args: Any, **options: Any) -> Any:
    """What a call that is ended by its timeout had said: with a longer one, where it takes longer here to say something."""
    for seconds in (0.5, 5.0, LONG / 2):
        with pytest.raises(subprocess.TimeoutExpired) as slow:
            await session.run(args, timeout=seconds, **options)
        assert isinstance(slow.value, remit.TimeoutExpired)
        assert slow.value.timeout == seconds
        if slow.value.output:
            return slow.value.output
    raise AssertionError("it never spoke")


class Lifeline:
    """A FIFO in the workspace: every process of a call holds its other end. Knows nothing of Remit."""

    command = "exec 3>life; echo up >&3; sleep 1000 & sleep 1000"

    def __init__(self, workspace: Path) -> None:
        self._path = workspace / "life"
        os.mkfifo(self._path)
        self._path.chmod(0o666)
        self._open()

    def _open(self) -> None:
        # Not blocking: it opens whether or not somebody writes.
        self._reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)

    def heard(self) -> bytes:
        """What a process at the other end says; nothing once there is none."""
        ready, _, _ = select.select([self._reader], [], [], LONG)
        assert ready, "nothing happened at the other end"
        return os.read(self._reader, 100)

    async def up(self) -> None:
        """Until a command has begun."""
        assert await anyio.to_thread.run_sync(self.heard) == b"up\n"

    async def down(self) -> None:
        """Until every process that held the other end has gone."""
        assert await anyio.to_thread.run_sync(self.heard) == b""
        # What was opened before goes on seeing the end.
        os.close(self._reader)
        self._open()

    def close(self) -> None:
        os.close(self._reader)
        self._path.unlink()


@pytest.fixture
def lifeline(workspace: Path) -> Any:
    made = Lifeline(workspace)
    yield made
    made.close()


# --- the same surface ----------------------------------------------------------------------------------------------------


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_both_sessions_have_the_same_methods_with_the_same_parameters() -> None:
    blocking, waiting = public(Session), public(AsyncSession)

    assert blocking.keys() == waiting.keys() >= {"run", "popen", "narrow", "revoke", "close", "id", "grant"}
    for name, method in blocking.items():
        if inspect.isfunction(method):
            assert parameters(method) == parameters(waiting[name]), name
    assert parameters(Session) == parameters(AsyncSession)
    assert {name for name in waiting if inspect.iscoroutinefunction(waiting[name])} == {
        "close",
        "narrow",
        "popen",
        "revoke",
        "run",
    }


def test_both_kinds_of_call_have_the_same_methods_with_the_same_parameters() -> None:
    blocking, waiting = public(remit.Popen), public(remit.AsyncPopen)

    assert blocking.keys() == waiting.keys() >= {"wait", "communicate", "kill", "poll", "result", "resize"}
    for name, method in blocking.items():
        if inspect.isfunction(method):
            assert parameters(method) == parameters(waiting[name]), name


def test_blocking_use_imports_no_event_loop() -> None:
    program = "import sys, remit; remit.Session, remit.Grant, remit.Popen; print({'anyio', 'asyncio'} & {*sys.modules})"

    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


# --- calls ---------------------------------------------------------------------------------------------------------------


def test_a_call_under_a_grant_and_the_same_without(backend: str, workspace: Path) -> None:
    (workspace / "one").write_text("1\n")
    (workspace / "two").write_text("2\n")

    async def body(session: AsyncSession) -> None:
        everything = await session.run(["cat", "one", "two"])
        narrow = await session.run(["cat", "one", "two"], grant=Grant(read=["one"]), text=True)

        assert (everything.returncode, everything.stdout, everything.stderr) == (0, b"1\n2\n", b"")
        assert (narrow.returncode, narrow.stdout) == (1, "1\n")
        assert narrow.stderr is not None
        assert "two: Permission denied" in narrow.stderr
        assert narrow.grant.parent == session.grant.id == everything.grant.id
        assert everything.usage.wall > 0

    in_session(backend, body)


def test_input_output_directory_and_variables(backend: str, workspace: Path) -> None:
    (workspace / "sub").mkdir(mode=0o755)
    big = os.urandom(1 << 20)

    async def body(session: AsyncSession) -> None:
        copied = await session.run(["cat"], input=big)
        bounded = await session.run(["cat"], input=big, max_output=1000)
        joined = await session.run("echo out; echo err >&2", shell=True, stderr=remit.STDOUT, text=True)
        where = await session.run(["pwd"], cwd="sub", text=True)
        variable = await session.run(["printenv", "COLOUR"], env={"COLOUR": "red"}, text=True)
        nowhere = await session.run(["echo", "x"], stdout=remit.DEVNULL)
        latin = await session.run(["cat"], input="é", encoding="latin-1")

        assert copied.stdout == big
        assert (bounded.stdout, bounded.stdout_lost) == (big[:500] + big[-500:], len(big) - 1000)
        assert (joined.stdout, joined.stderr) == ("out\nerr\n", None)
        assert where.stdout == f"{session.workspace}/sub\n"
        assert variable.stdout == "red\n"
        assert nowhere.stdout is None
        assert latin.stdout == "é"

    in_session(backend, body, env={"COLOUR": "blue"})


def test_a_file_as_input_is_read_and_cannot_be_written_through(backend: str, workspace: Path) -> None:
    given = workspace / "given"
    given.write_text("given\n")

    async def body(session: AsyncSession) -> None:
        with given.open() as file:
            read = await session.run(["cat"], stdin=file)
        with given.open() as file:
            written = await session.run("echo over >/proc/self/fd/0", shell=True, stdin=file, text=True)

        assert read.stdout == b"given\n"
        assert written.returncode != 0
        assert given.read_text() == "given\n"

    in_session(backend, body)


def test_errors_are_the_blocking_session_s(backend: str, workspace: Path) -> None:
    attempts: dict[str, tuple[type[Exception], dict[str, Any]]] = {
        "beyond": (remit.GrantError, {"args": ["true"], "grant": Grant(read=["/root"])}),
        "failed": (remit.CalledProcessError, {"args": ["false"], "check": True}),
        "slow": (remit.TimeoutExpired, {"args": ["sleep", "1000"], "timeout": 0.1}),
        "absent": (remit.LaunchError, {"args": ["no-such-program"]}),
        "empty": (remit.LaunchError, {"args": []}),
        "directory": (remit.LaunchError, {"args": ["true"], "cwd": "a\0b"}),
        "nowhere": (remit.LaunchError, {"args": ["true"], "cwd": ""}),
        "large": (remit.LaunchError, {"args": ["true", "x" * (1 << 25)]}),
        "variable": (remit.GrantError, {"args": ["true"], "env": {"SECRET": "x"}}),
        "old": (remit.GrantExpired, {"args": ["sleep", "1000"], "grant": Grant(expires=0.2)}),
    }
    seen: dict[str, tuple[Any, ...]] = {}

    def of(error: remit.Error) -> tuple[Any, ...]:
        return type(error), error.phase, error.exit_status, error.hint

    with Session("offline", ".") as blocking:
        for name, (kind, options) in attempts.items():
            with pytest.raises(kind) as caught:
                blocking.run(**options)
            assert isinstance(caught.value, remit.Error)
            seen[name] = of(caught.value)
        assert blocking.run(["echo", "on"]).stdout == b"on\n"
    assert seen["absent"][2] == 127

    async def body(session: AsyncSession) -> None:
        # Its expiry counts from its first use: this one has been used.
        attempts["old"][1]["grant"] = Grant(expires=0.2)
        for name, (kind, options) in attempts.items():
            with pytest.raises(kind) as caught:
                await session.run(**options)
            assert isinstance(caught.value, remit.Error)
            assert of(caught.value) == seen[name]
        assert (await session.run(["echo", "on"])).stdout == b"on\n"

    in_session(backend, body)


def test_text_that_remit_has_cut_is_text(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        assert await timed_out(session, "printf 'a\\303'; sleep 1000", shell=True, text=True) == "a"
        kept = await session.run(["printf", "é" * 10], text=True, max_output=7)
        assert (kept.stdout, kept.stdout_lost) == ("é" * 3, 14)
        with pytest.raises(UnicodeDecodeError):
            await session.run(["printf", "\\351"], text=True)

    in_session(backend, body)


def test_a_descriptor_that_cannot_be_a_stream_is_refused_and_the_session_goes_on(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        run: Any = session.run
        unused = 999  # the lowest one would be used at once
        for wrong, kind in ({"timeout": float("nan")}, ValueError), ({"grant": "src"}, TypeError):
            with pytest.raises(kind):
                await run(["true"], **wrong)
        for name in ("stdin", "stdout", "stderr"):
            with pytest.raises(OSError, match=name):
                await run(["true"], **{name: unused})
        with patch("os.fstat", return_value=os.stat("/dev/null")), pytest.raises(OSError, match="descriptor"):
            await session.run(["true"], stderr=unused)  # by another thread, after it was looked at
        assert (await session.run(["echo", "on"])).stdout == b"on\n"

    in_session(backend, body)


def test_subprocess_s_own_classes_catch_them(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        with pytest.raises(subprocess.CalledProcessError) as failed:
            await session.run("echo why >&2; exit 3", shell=True, check=True, text=True)
        assert (failed.value.returncode, failed.value.stderr) == (3, "why\n")
        assert await timed_out(session, "echo so far; sleep 1000", shell=True) == b"so far\n"

    in_session(backend, body)


def test_before_and_after_a_session(backend: str, workspace: Path) -> None:
    async def main() -> None:
        session = AsyncSession("offline", ".")
        with pytest.raises(remit.SessionClosed, match="has not begun"):
            await session.run(["true"])
        await session.close()
        assert await session is session
        assert (await session.run(["true"])).returncode == 0
        running = await session.popen(["sleep", "1000"])
        await session.close()
        await session.close()
        with pytest.raises(remit.SessionClosed):
            await running.wait()
        await running.close()
        with pytest.raises(remit.SessionClosed, match="was closed"):
            await session.run(["true"])
        with pytest.raises(remit.ProfileError):
            async with AsyncSession("no-such-profile", "."):
                pass

    anyio.run(main, backend=backend)


# --- running calls -------------------------------------------------------------------------------------------------------


def test_streams(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        async with await session.popen(["cat"], stdin=remit.PIPE) as call:
            assert isinstance(call.stdin, anyio.abc.ByteSendStream)
            assert isinstance(call.stdout, anyio.abc.ByteReceiveStream)
            for word in (b"one", b"two"):
                await call.stdin.send(word)
                assert await call.stdout.receive() == word
            assert call.poll() is None
            await call.stdin.aclose()
            with pytest.raises(anyio.EndOfStream):
                await call.stdout.receive()
            assert await call.wait() == 0
            with pytest.raises(anyio.ClosedResourceError):
                await call.stdin.send(b"more")
        async with await session.popen("exec <&-; echo é; exit 4", shell=True, stdin=remit.PIPE, text=True) as call:
            assert isinstance(call.stdout, anyio.abc.ObjectReceiveStream)
            assert [text async for text in call.stdout] == ["é\n"]
            assert await call.wait() == 4
            assert isinstance(call.stdin, anyio.abc.ObjectSendStream)
            with pytest.raises(anyio.BrokenResourceError):
                await call.stdin.send("nobody reads")
            assert (await call.result()).returncode == 4

    in_session(backend, body)


def test_leaving_the_block_closes_the_streams_and_waits(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        async with await session.popen(["cat"], stdin=remit.PIPE) as reads:
            pass
        async with await session.popen(["cat", "/dev/zero"]) as writes:
            pass
        assert (reads.returncode, writes.returncode) == (0, -13)

    in_session(backend, body)
    with Session("offline", ".") as session:
        with session.popen(["cat"], stdin=remit.PIPE) as reads:
            pass
        with session.popen(["cat", "/dev/zero"]) as writes:
            pass
        assert (reads.returncode, writes.returncode) == (0, -13)


def test_more_than_a_pipe_holds_goes_both_ways(backend: str, workspace: Path) -> None:
    big = os.urandom(1 << 20)

    async def body(session: AsyncSession) -> None:
        async with await session.popen(["cat"], stdin=remit.PIPE) as call, anyio.create_task_group() as tasks:

            async def feed() -> None:
                assert isinstance(call.stdin, aio.PipeSender)
                await call.stdin.send(big)
                await call.stdin.aclose()

            tasks.start_soon(feed)
            assert isinstance(call.stdout, aio.PipeReceiver)
            assert b"".join([data async for data in call.stdout]) == big

    in_session(backend, body)


def test_signals_and_several_who_wait(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        async with await session.popen(
            "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done", shell=True
        ) as call:
            assert isinstance(call.stdout, aio.PipeReceiver)
            assert await call.stdout.receive() == b"up\n"
            with pytest.raises(remit.TimeoutExpired):
                await call.wait(0.05)
            with pytest.raises(remit.TimeoutExpired):
                await call.communicate(timeout=0.05)
            statuses: list[int] = []

            async def wait() -> None:
                statuses.append(await call.wait())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                call.terminate()
                assert await call.communicate() == (b"bye\n", b"")
            assert statuses == [5, 5]
        async with await session.popen(["sleep", "1000"]) as call:
            call.kill()
            assert await call.wait() == -9

    in_session(backend, body)


def test_a_terminal(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        async with await session.popen("read x; stty size; test -t 0 && test -t 2", shell=True, pty=True) as call:
            await call.resize(50, 120)
            assert isinstance(call.stdin, aio.PipeSender)
            assert isinstance(call.stdout, aio.PipeReceiver)
            await call.stdin.send(b"go\n")
            assert b"".join([data async for data in call.stdout]) == b"go\r\n50 120\r\n"
            assert await call.wait() == 0
        call = await session.popen(["no-such-program"], pty=True)
        with pytest.raises(remit.LaunchError):
            await call.wait()
        await call.close()

    in_session(backend, body)


def test_a_background_call_s_children_live_until_it_is_let_go(
    backend: str, workspace: Path, lifeline: Lifeline
) -> None:
    async def body(session: AsyncSession) -> None:
        async with await session.popen(f"({lifeline.command}) & exit 0", shell=True, background=True) as call:
            await lifeline.up()
            assert await call.wait() == 0
            assert (await session.run("echo still >life", shell=True)).returncode == 0
        # What the second call wrote, and then nothing: the first one's children are gone as well.
        assert await anyio.to_thread.run_sync(lifeline.heard) == b"still\n"
        await lifeline.down()

    in_session(backend, body)


# --- cancellation --------------------------------------------------------------------------------------------------------


def test_a_cancelled_run_ends_with_all_that_it_started(backend: str, workspace: Path, lifeline: Lifeline) -> None:
    async def body(session: AsyncSession) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(session.run, lifeline.command, shell=True))
            await lifeline.up()
            tasks.cancel_scope.cancel()
        await lifeline.down()
        assert (await session.run(["echo", "on"])).stdout == b"on\n"

    in_session(backend, body)


def test_a_first_process_that_is_stuck_keeps_no_task_waiting(
    backend: str, workspace: Path, lifeline: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the event loop; and the session is ended."""
    before = first_processes()

    async def body(session: AsyncSession) -> None:
        (zygote,) = first_processes() - before
        call = await session.popen(lifeline.command, shell=True)
        async with call:
            await lifeline.up()
            stopped(zygote)
            monkeypatch.setattr(Door, "PATIENCE", 1.0)
            taken = Door.taken
            ticks = meanwhile = 0

            def waits(door: Door, *arguments: Any) -> bool:
                nonlocal meanwhile
                before = ticks
                try:
                    return taken(door, *arguments)
                finally:
                    meanwhile = ticks - before

            monkeypatch.setattr(Door, "taken", waits)

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await anyio.sleep(0.01)

            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                with pytest.raises(remit.SessionClosed, match="did not answer"):
                    await session.run(["sleep", "1000"], timeout=0.2)
                group.cancel_scope.cancel()
            assert meanwhile > 0
            with pytest.raises(remit.SessionClosed):
                await call.wait()
        await lifeline.down()

    in_session(backend, body)


def test_a_timeout_ends_all_that_was_started(backend: str, workspace: Path, lifeline: Lifeline) -> None:
    async def body(session: AsyncSession) -> None:
        with pytest.raises(remit.TimeoutExpired):
            await session.run(lifeline.command, shell=True, timeout=3)
        await lifeline.up()
        await lifeline.down()
        # One that never stops talking, too.
        assert len(await timed_out(session, ["yes"], max_output=100)) == 100
        assert (await session.run(["echo", "on"])).stdout == b"on\n"

    in_session(backend, body)


def test_a_popen_whose_block_is_cancelled_ends(backend: str, workspace: Path, lifeline: Lifeline) -> None:
    async def body(session: AsyncSession) -> None:
        calls: list[remit.AsyncPopen] = []
        with anyio.CancelScope() as scope:
            async with await session.popen(lifeline.command, shell=True) as call:
                calls.append(call)
                await lifeline.up()
                scope.cancel()
        assert scope.cancelled_caught
        assert calls[0].poll() == -9
        await lifeline.down()
        call = await session.popen(lifeline.command, shell=True)
        await lifeline.up()
        # What leaves the block by an error, too.
        await call.__aexit__(ZeroDivisionError, None, None)
        await lifeline.down()

    in_session(backend, body)


@pytest.mark.parametrize("how", ["cancellation", "timeout"])
def test_a_call_that_waits_for_others_and_is_given_up_never_starts(backend: str, workspace: Path, how: str) -> None:
    """And nothing happens to the others; one that waits and is not given up has its turn."""

    async def body(session: AsyncSession) -> None:
        held = [await session.popen("sleep 1000 & exit 0", shell=True, background=True) for _ in range(MOST)]
        for call in held:
            assert await call.wait() == 0
        if how == "timeout":
            with pytest.raises(remit.TimeoutExpired):
                await session.run("echo x > made", shell=True, timeout=0.2)
        else:
            with anyio.move_on_after(0.2) as scope:
                await session.run("echo x > made", shell=True)
            assert scope.cancelled_caught
        async with await session.popen("echo x > kept", shell=True) as kept:
            assert (await session.run(["true"], grant=Grant(read=["."]), timeout=LONG)).returncode == 0
            await held.pop().close()
            assert await kept.wait(timeout=LONG) == 0
        for call in held:
            await call.close()
        assert [path.name for path in workspace.iterdir()] == ["kept"]

    in_session(backend, body)


def test_asyncio_s_own_cancellation(workspace: Path, lifeline: Lifeline) -> None:
    async def body(session: AsyncSession) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(session.run(lifeline.command, shell=True), 3)
        await lifeline.up()
        await lifeline.down()
        task = asyncio.create_task(session.run(lifeline.command, shell=True))
        await lifeline.up()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # while it waits for the end of the call
        with pytest.raises(asyncio.CancelledError):
            await task
        await lifeline.down()
        assert (await session.run(["echo", "on"])).stdout == b"on\n"

    in_session("asyncio", body)


def test_a_session_that_nobody_waits_for_any_more_is_not_left_behind(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, stopped = threading.Event(), threading.Event(), threading.Event()
    made: list[Opened] = []
    stop = Opened.stop

    def slow(wanted: Any) -> Opened:
        begun.set()
        assert go.wait(LONG)
        made.append(begin(wanted))
        return made[0]

    def seen(opened: Opened) -> None:
        stop(opened)
        stopped.set()

    monkeypatch.setattr(aio, "begin", slow)
    monkeypatch.setattr(Opened, "stop", seen)

    async def main() -> None:
        task = asyncio.create_task(AsyncSession("offline", ".").__aenter__())
        assert await asyncio.to_thread(begun.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        assert await asyncio.to_thread(stopped.wait, LONG)
        assert made[0].core.shared.closed == "it was closed"

    asyncio.run(main())


# --- many ----------------------------------------------------------------------------------------------------------------


def test_fifty_calls_at_once(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        said: dict[int, bytes | None] = {}
        grant = Grant(read=["."])

        async def one(number: int) -> None:
            result = await session.run(
                ["sh", "-c", f"echo {number}; echo /proc/[0-9]* >&2"], grant=grant if number % 2 else None
            )
            assert result.returncode == 0
            # It sees its PID 1 and itself, and none of the others.
            assert len((result.stderr or b"").split()) == 2
            said[number] = result.stdout

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one, number)
        assert said == {number: b"%d\n" % number for number in range(50)}

    in_session(backend, body)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_handles_that_are_dropped_hold_no_authority_and_no_descriptor(backend: str, workspace: Path) -> None:
    async def body(session: AsyncSession) -> None:
        await session.run(["true"])
        before = len(os.listdir("/proc/self/fd"))
        for number in range(POLICIES + 8):
            (workspace / f"q{number}").mkdir()
            call = await session.popen(["true"], stdin=remit.PIPE, grant=Grant(read=[f"q{number}"]))
            del call
        await session.run(["true"], grant=Grant(read=["."]))
        policies = session._core.shared.policies  # pyright: ignore[reportPrivateUsage]
        assert len(policies) <= POLICIES
        assert [armed.held for armed in policies.values()] == [0] * len(policies)
        # What is armed has a socket.
        assert len(os.listdir("/proc/self/fd")) <= before + len(policies)

    in_session(backend, body)


def test_more_authorities_at_once_than_are_kept_armed(backend: str, workspace: Path) -> None:
    many = 40
    for number in range(many):
        (workspace / f"file{number}").write_text(f"{number}\n")

    async def body(session: AsyncSession) -> None:
        said: dict[int, bytes | None] = {}

        async def one(number: int) -> None:
            grant = Grant(read=[f"file{number}"])
            result = await session.run(f"cat file{number}; cat file{(number + 1) % many}", shell=True, grant=grant)
            assert (result.returncode, result.stderr) == (
                1,
                b"cat: file%d: Permission denied\n" % ((number + 1) % many),
            )
            said[number] = result.stdout

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for number in range(many):
                    tasks.start_soon(one, number)
            assert said == {number: b"%d\n" % number for number in range(many)}

    in_session(backend, body)


def test_as_many_calls_as_there_are_descriptors_for(backend: str, workspace: Path) -> None:
    """Descriptors in messages that nobody has received yet are counted too, for an ordinary user."""

    async def body(session: AsyncSession) -> None:
        await session.run(["true"])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = 256
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        calls = (room - used) // 5
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(calls):
                    tasks.start_soon(partial(session.run, ["true"], check=True))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    in_session(backend, body)


def test_the_loop_goes_on_while_there_is_no_room_for_a_request(backend: str, workspace: Path) -> None:
    """The session's first process stands still: requests wait in the socket, and when that is full, in the program."""
    before = first_processes()
    calls = 240

    async def body(session: AsyncSession) -> None:
        (zygote,) = first_processes() - before
        await session.run(["true"])
        ended = 0

        async def one() -> None:
            nonlocal ended
            done = await session.run(
                ["true", "x" * 2000], stdin=remit.DEVNULL, stdout=remit.DEVNULL, stderr=remit.DEVNULL
            )
            ended += done.returncode == 0

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        stopped(zygote)
        # Whoever waits in the system call waits until then, and finds that out.
        late = threading.Timer(LONG / 2, os.kill, (zygote, signal.SIGCONT))
        late.start()
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(calls):
                    tasks.start_soon(one)
                for _ in range(100):
                    await anyio.sleep(0.001)
                assert late.is_alive()
                assert ended == 0
                os.kill(zygote, signal.SIGCONT)
        finally:
            late.cancel()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert ended == calls

    in_session(backend, body)


def test_a_timeout_holds_while_there_is_no_room_for_a_request(backend: str, workspace: Path) -> None:
    before = first_processes()
    calls = 240

    async def body(session: AsyncSession) -> None:
        (zygote,) = first_processes() - before
        await session.run(["true"])
        unsent = anyio.Event()
        send = session._send  # pyright: ignore[reportPrivateUsage]

        def looked_at(*arguments: Any) -> float | None:
            pause = send(*arguments)
            if pause is not None:
                unsent.set()
            return pause

        nothing: dict[str, Any] = {"stdin": remit.DEVNULL, "stdout": remit.DEVNULL, "stderr": remit.DEVNULL}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        stopped(zygote)
        late = threading.Timer(LONG / 2, os.kill, (zygote, signal.SIGCONT))
        late.start()
        try:
            with patch.object(session, "_send", looked_at):
                async with anyio.create_task_group() as tasks:
                    for _ in range(calls):
                        tasks.start_soon(partial(session.run, ["true", "x" * 2000], **nothing))
                    await unsent.wait()
                    with pytest.raises(remit.TimeoutExpired) as slow:
                        await session.run(["touch", "begun"], timeout=0.2, **nothing)
                    assert late.is_alive()
                    assert (slow.value.cmd, slow.value.timeout) == (["touch", "begun"], 0.2)
                    os.kill(zygote, signal.SIGCONT)
        finally:
            late.cancel()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await session.run(["echo", "on"])).stdout == b"on\n"
        assert not (workspace / "begun").exists()

    in_session(backend, body)


def test_one_session_from_many_threads(workspace: Path) -> None:
    with Session("offline", ".") as session, ThreadPoolExecutor(24) as threads:
        grants = [None, Grant(read=["."]), Grant(read=["."], write=["."])]

        def one(number: int) -> bytes | None:
            return session.run(["echo", str(number)], grant=grants[number % 3], check=True, timeout=LONG).stdout

        assert list(threads.map(one, range(200))) == [b"%d\n" % number for number in range(200)]


def test_threads_that_wait_for_the_same_call(workspace: Path) -> None:
    with (
        Session("offline", ".") as session,
        ThreadPoolExecutor(4) as threads,
        session.popen(["cat"], stdin=remit.PIPE) as call,
    ):
        waiting = [threads.submit(call.wait) for _ in range(3)]
        assert call.communicate(b"all") == (b"all", b"")
        assert [one.result(LONG) for one in waiting] == [0, 0, 0]


# --- grants --------------------------------------------------------------------------------------------------------------


def test_narrowing_and_taking_back(backend: str, workspace: Path, lifeline: Lifeline) -> None:
    (workspace / "inside").write_text("yes\n")
    (workspace / "outside").write_text("no\n")

    async def body(session: AsyncSession) -> None:
        narrow = await session.narrow(Grant(read=["inside"]), principal="helper")
        assert isinstance(narrow, AsyncSession)
        assert narrow.grant.parent == session.grant.id
        assert (await narrow.run(["cat", "inside"])).stdout == b"yes\n"
        assert (await narrow.run(["cat", "outside"])).returncode == 1
        assert (await session.run(["cat", "outside"])).returncode == 0
        with pytest.raises(remit.GrantError, match="beyond"):
            await narrow.run(["true"], grant=Grant(read=["outside"]))
        await narrow.close()
        with pytest.raises(remit.GrantRevoked):
            await narrow.run(["true"])

        async with await session.popen(lifeline.command, shell=True, grant=Grant(read=["."], write=["."])) as call:
            await lifeline.up()
            assert await session.revoke(call) == [call.call]
            with pytest.raises(remit.GrantRevoked):
                await call.result()
            await lifeline.down()
        assert (await session.run(["echo", "on"])).stdout == b"on\n"

    in_session(backend, body)


def test_a_call_whose_grant_is_taken_back_before_it_starts_never_starts(workspace: Path) -> None:
    (workspace / "out").mkdir()
    (workspace / "out").chmod(0o777)
    with Session("offline", ".") as session:
        for number in range(20):
            # A new authority each time: its first call waits until there is a thread for it.
            grant = Grant(read=["."], write=["out"], limits={"files": 100 + number})
            with session.popen(f"echo x >out/{number}; sleep 1000", shell=True, grant=grant) as call:
                session.revoke(call)
                with pytest.raises(remit.GrantRevoked):
                    call.result()
        assert session.run(["true"]).returncode == 0


def test_what_is_said_to_a_call_that_has_just_ended_ends_no_session(workspace: Path) -> None:
    with Session("offline", ".") as session:
        for _ in range(20):
            with session.popen(["sleep", "1000"]) as call:
                # The first ends it; the last is not read any more.
                while call.poll() is None:
                    call.kill()
                assert call.wait() == -9
        assert session.run(["true"]).returncode == 0
