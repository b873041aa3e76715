"""The gateway's relay alone, without a session, beside a relay without any policy: the same as the group ``network`` of
``remit bench speed`` measures, and what both keep in memory.

``python -m tests.bench.relay [ROUNDS]``. Both run as a process of their own, before the same server; the client is a third.
A bare connection stands beside them. Ratios are of medians; there is nothing that fails.
"""

from __future__ import annotations

import array
import contextlib
import marshal
import os
import socket
import statistics
import sys
import threading
from collections.abc import Callable, Generator

from remit.cli.bench import traffic
from remit.sandbox.egress.loop import run

MEGABYTES = 256
CONNECTIONS = 200
ROUND_TRIPS = 1500


def gateway(listener: socket.socket, place: tuple[str, int]) -> None:
    """Serve as the gateway does: every connection decided on, by name, recorded, relayed."""
    from remit.sandbox.egress import wire
    from remit.sandbox.egress.connect import Connector
    from remit.sandbox.egress.serve import Gateway

    async def resolve(name: str) -> list[str]:
        return ["203.0.113.10"]

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=drain, args=(ours,), daemon=True).start()
        gate: list[Gateway] = []

        def original(sock: socket.socket) -> tuple[str, int]:
            return str(gate[0].gate.names.addresses("bench.example.com")[0]), 2222

        connector = Connector(resolve, route=lambda address, port: place)
        gate.append(Gateway(theirs, connector=connector, original=original))
        rules = (("bench.example.com:2222/tcp", "bench"),)
        ours.send(marshal.dumps((wire.CONFIG, "bench", {"rules": rules})))
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]).tobytes())]
        ours.sendmsg([marshal.dumps((wire.LISTEN, "", (), ((wire.TCP, 0),), ()))], control)
        await gate[0].run()

    def drain(ours: socket.socket) -> None:
        while ours.recv(1 << 17):
            pass

    run(main())


@contextlib.contextmanager
def process(run: Callable[[], None]) -> Generator[int]:
    """``run`` in a child of this process, killed at the end."""
    pid = os.fork()
    if not pid:
        try:
            run()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def rss(pid: int) -> float:
    """Mebibytes resident."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def main(rounds: int) -> None:
    """Measure and print."""
    measures: dict[str, Callable[[traffic.Place], float]] = {
        "MB/s": lambda where: traffic.throughput(where, MEGABYTES),
        "connections/s": lambda where: traffic.connections(where, CONNECTIONS),
        "round trips/s": lambda where: 1e6 / traffic.round_trip(where, ROUND_TRIPS),
    }
    results: dict[tuple[str, str], list[float]] = {}
    outside, plain, gated = (traffic.listening("127.0.0.1") for _ in range(3))
    place = outside.getsockname()
    with (
        process(lambda: traffic.serve(outside)),
        process(lambda: traffic.relay(plain, place)) as policyless_pid,
        process(lambda: gateway(gated, place)) as gateway_pid,
    ):
        variants = {"bare": place, "policy-free": plain.getsockname(), "gateway": gated.getsockname()}
        for where in variants.values():
            traffic.round_trip(where, ROUND_TRIPS)
        for _ in range(rounds):
            for measure, run in measures.items():
                for variant, where in variants.items():
                    results.setdefault((measure, variant), []).append(run(where))
        print(f"{rounds} rounds, {MEGABYTES} MB, {CONNECTIONS} connections, {ROUND_TRIPS} round trips of 64 bytes")
        for measure in measures:
            medians = {variant: statistics.median(results[measure, variant]) for variant in variants}
            ratio = medians["gateway"] / medians["policy-free"]
            shown = "  ".join(f"{variant} {value:9.0f}" for variant, value in medians.items())
            print(f"{measure:14} {shown}  gateway / policy-free {ratio:.2f}")
        print(f"resident: policy-free {rss(policyless_pid):.1f} MiB, gateway {rss(gateway_pid):.1f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
