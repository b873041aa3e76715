"""Who acts, as the mediator's observer remembers it: for a moment, and never of more and more processes."""

from __future__ import annotations

from remit.sandbox.mediate.broker import Source
from remit.sandbox.mediate.observe import WRITES, Observer


def test_nothing_is_kept_of_the_commands_of_calls_that_are_over() -> None:
    noted: list[tuple[object, ...]] = []
    observer, source = Observer([], lambda *action: noted.append(action), WRITES), Source()
    most = 0
    for pid in range(1 << 22, (1 << 22) + 2000):  # above every pid
        observer.meet_newcomer(pid)
        observer.proceeding(source, pid, 0, b"/usr/bin/true", "exec", allowed=True, layer="", rule="")
        observer.executes(pid)
        most = max(most, len(observer._starts))  # pyright: ignore[reportPrivateUsage]
    assert len(noted) == 2000
    assert most < 300
