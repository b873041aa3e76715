"""Markers that skip by trying the thing, and what a machine must have (see ``tests/needs.py``)."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

from tests import needs

# Whoever runs the suite in the background starts it with signals ignored; tests compare with processes of their own.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# An ordinary user may not write beside the tests, and examples of one run are not another's. How long an example takes says
# something of the machine. What stands in the way of a change is to be the change: where much is promised (continuous
# integration), examples are the same in each run. Everywhere else each run looks further.
settings.register_profile(
    "remit",
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(needs.must_have()),
)
settings.load_profile("remit")


def pytest_configure(config: pytest.Config) -> None:
    """Declare ``needs``, and stop at once where something that must be here is not."""
    config.addinivalue_line("markers", "needs(*programs, **features): skipped where one of these is missing")
    for name, version in needs.must_have().items():
        reason = needs.missing(name, version)
        if reason:
            raise pytest.UsageError(f"REMIT_MUST_HAVE names {name}: {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot be tried here; fail where it was promised."""
    for mark in item.iter_markers("needs"):
        lacking = needs.all_missing(mark.args, mark.kwargs)
        promised = needs.must_have()
        broken = [reason for name, reason in lacking if name in promised]
        if broken:
            pytest.fail(f"promised by REMIT_MUST_HAVE, and missing: {'; '.join(broken)}", pytrace=False)
        if lacking:
            pytest.skip("; ".join(reason for _, reason in lacking))


_LONGEST = (
    "kernel/test_mediation_race",
    "bench/",
    "align/",
    "kernel/test_mediation_differential",
    "kernel/test_session_growth",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two workers that take them last end minutes apart."""
    items.sort(key=lambda item: not any([f"tests/{name}" in item.nodeid for name in _LONGEST]))
