"""Sessions: how long one takes to start, a call in one, and how many calls a second several clients get."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from remit.cli.bench import worker
from remit.cli.bench.client import Client
from remit.cli.bench.measure import BARE, BWRAP, CALL, RUN, BenchError, Line, NotMeasured, interleave, row
from remit.cli.bench.setting import Setting
from remit.cli.bench.worker import CAPTURED, NEW, OWN, QUIET, SAME, SPAWN, SUBPROCESS

START, WARM, RATE = "session", "warm", "rate"
CLIENTS = (2, 16)
FIRST, LATER, STOP = "first session of a program", "later session of a program", "end of a session"


def starts(setting: Setting, rounds: int) -> list[Line]:
    """Starts of sessions, each first one in a program that has just begun."""
    workspace = setting.directory("session")
    taken: dict[str, list[float]] = {FIRST: [], LATER: [], STOP: []}
    for turn in range(-1, rounds):
        setting.tell(f"session starts {turn + 1}/{rounds}")
        with Client(setting, workspace) as client:
            first, later = client.ask(do="open", sessions=2)["ns"]
            stopped = client.ask(do="close")["ns"][0] / 2
        if turn >= 0:
            for name, value in ((FIRST, first), (LATER, later), (STOP, stopped)):
                taken[name].append(value / 1e6)
    return [row(START, name, "", "ms", values, None) for name, values in taken.items()]


def calls(setting: Setting, rounds: int) -> list[Line]:
    """One call through the Python API, beside ``subprocess.run`` of the same and bubblewrap through it."""
    workspace = setting.directory("warm")
    for number in range(worker.DIRECTORIES):
        os.mkdir(f"{workspace}/d{number}")
    ways = [SUBPROCESS]
    lines: list[Line] = []
    if setting.bwrap is None:
        lines.append(NotMeasured(WARM, BWRAP, "not installed"))
    else:
        ways.append(BWRAP)
    with Client(setting, workspace) as client:
        refused = _opened([client])
        if refused:
            lines.append(NotMeasured(WARM, CALL, refused))
        else:
            ways += [CALL, SAME]
            try:
                client.ask(do="open", sessions=1, connect=[worker.WAY_OUT])
            except BenchError as error:
                lines.append(NotMeasured(WARM, OWN, str(error)))
            else:
                ways.append(OWN)
        setting.tell("warm calls")
        kinds = [(QUIET, SPAWN), *[(output, way) for output in (QUIET, CAPTURED) for way in ways]]
        measured = _sampled(client, kinds, rounds)
        if not refused:
            # By itself: the session is still making room for the next such call when other things would be timed.
            setting.tell("calls under new grants")
            kinds = [(output, way) for output in (QUIET, CAPTURED) for way in (SUBPROCESS, NEW)]
            sampled = _sampled(client, kinds, rounds)
            measured += [line for line in sampled if isinstance(line, NotMeasured) or line.variant != SUBPROCESS]
    return [*measured, *lines]


def _sampled(client: Client, kinds: list[tuple[str, str]], rounds: int) -> list[Line]:
    """Rows of what was sampled together, with their ratio to ``subprocess.run`` in the same rounds."""
    reply = client.ask(do="sample", kinds=kinds, rounds=rounds)
    taken: dict[tuple[str, str], list[float]] = {
        (name, way): [ns / 1e6 for ns in many] for name, way, many in reply["ns"]
    }
    lines: list[Line] = []
    for (name, way), values in taken.items():
        if (name, SUBPROCESS) not in taken:
            raise BenchError(f"{SUBPROCESS}: {reply['failed']}")
        lines.append(row(WARM, name, way, "ms", values, statistics.median(taken[name, SUBPROCESS])))
    return [*lines, *[NotMeasured(WARM, f"{way}, {name}", why) for name, way, why in reply["failed"]]]


def rates(setting: Setting, rounds: int, seconds: float) -> list[Line]:
    """Calls a second, of ``true``: as many threads of one program and session, and as many programs."""
    workspace = setting.directory("rate")
    ways = {SUBPROCESS: BARE, RUN: RUN}
    lines: list[Line] = []
    if setting.bwrap is None:
        lines.append(NotMeasured(RATE, BWRAP, "not installed"))
    else:
        ways[BWRAP] = BWRAP
    with ExitStack() as stack:
        programs = [stack.enter_context(Client(setting, workspace)) for _ in range(max(CLIENTS))]
        refused = _opened(programs)
        if refused:
            lines.append(NotMeasured(RATE, CALL, refused))
        else:
            ways[CALL] = CALL

        for name, processes, threads in _SHAPES:
            variants = {
                variant: _rate(programs[:processes], kind=kind, threads=threads, seconds=seconds)
                for kind, variant in ways.items()
            }
            samples, failed = interleave(
                variants,
                rounds,
                must=(BARE,),
                tell=partial(_tell, setting, name, rounds),
            )
            bare = statistics.median(samples[BARE])
            lines += [
                row(RATE, name, variant, "1/s", values, bare, {"window_s": seconds})
                for variant, values in samples.items()
            ]
            lines += [NotMeasured(RATE, f"{variant}, {name}", why) for variant, why in failed.items()]
    return lines


def _tell(setting: Setting, name: str, rounds: int, turn: int) -> None:
    setting.tell(f"calls a second, {name} {turn}/{rounds}")


def _rate(programs: list[Client], **request: object) -> Callable[[], float]:
    """What asks all programs at once for as many calls as they can make, and tells how many a second that were."""

    def rate() -> float:
        for program in programs:
            program.tell(do="rate", **request)
        replies = [program.answer() for program in programs]
        return sum([float(reply["count"]) for reply in replies]) / max([float(reply["seconds"]) for reply in replies])

    return rate


def _opened(clients: list[Client]) -> str:
    """Start a session in each. Why there is none, or ``""``."""
    try:
        for client in clients:
            client.ask(do="open", sessions=1)
    except BenchError as error:
        return str(error)
    return ""


_SHAPES = tuple(
    shape
    for clients in CLIENTS
    for shape in ((f"{clients} threads of one program", 1, clients), (f"{clients} programs", clients, 1))
)
