"""The demo's script through the Python API: ten agents at a time in one session, in threads and in asyncio's tasks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.align.demo.house import host_python
from tests.align.test_demo import HOSTILE, SCRIPT

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SOURCE = Path(__file__).resolve().parents[2]


# Half a minute each: root, for whom only the identity is another one, tries the first.
@pytest.mark.parametrize("loop", ["threads", pytest.param("asyncio", marks=pytest.mark.needs(ordinary=True))])
def test_two_hundred_tool_calls_have_the_demo_s_verdicts(loop: str) -> None:
    if importlib.util.find_spec("minisweagent") is None:
        reason = "the agent is not installed (dependency group demo)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    for needed in (["unshare", "--user", "true"], [host_python(), "-I", "-c", ""]):
        probe = subprocess.run(needed, capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"not permitted on this host: {' '.join(needed)}: {probe.stderr.strip()}")
    command = [sys.executable, "-m", "tests.align.loops", loop]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    if os.geteuid() == 0:
        assert report["isolated"]

    first, *others = report["agents"]
    assert [outcome["step"]["name"] for outcome in first] == [step.name for step in SCRIPT]
    for outcomes in others:
        assert [outcome["step"]["name"] for outcome in outcomes] == [*(step.name for step in HOSTILE), "submit"]
    every = [outcome for outcomes in report["agents"] for outcome in outcomes]
    assert len(every) >= 200
    assert [(o["step"]["name"], o["happened"], o["output"]) for o in every if not o["good"]] == []
    assert report["task"] == {"the hidden test passes": True, "the fix is committed": True}
    assert report["changes"] == []
    assert {name for name, there in report["effects"].items() if there} == set()
    assert report["effects"].keys() == {step.name for step in HOSTILE} - {"userns"}
    # Recorded in full, each call under its own grant: every hostile step of every agent is an attempt outside it, all that
    # the witness saw to change is there as exercised, and nothing that was granted was denied.
    trace = report["trace"]
    assert (trace["sessions"], trace["missed"], trace["uncovered"], trace["wrong"]) == (len(every), [], [], [])
    assert trace["covered"] > 50
