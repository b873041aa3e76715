"""The alignment report: its numbers against another computation, its decisions against cases, its page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.cli import main, page
from remit.sandbox.audit import log, message, report, why
from remit.sandbox.audit.decide import Decider
from remit.sandbox.audit.record import Record, keep_plan
from remit.sandbox.authority import codec
from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right, Source
from remit.sandbox.events.action import POINTLESS
from tests.align.reference import differences

SCHEMAS = Path(main.__file__).parent / "schemas"
READ, WRITE, EXEC = Right.READ, Right.WRITE, Right.EXEC
AUTHORITY = Authority(
    paths=(
        PathRule("/usr", frozenset({READ, EXEC}), source=Source("/p/base.toml", 3, "floor.exec")),
        PathRule("/w", frozenset({READ, WRITE, EXEC}), source=Source("/p/coding.toml", 9, "filesystem.write")),
        PathRule("/data", frozenset({READ}), source=Source("command line", 0, "--read")),
    ),
    deny=(PathPattern("/w", ("secret",), source=Source("/p/coding.toml", 12, "filesystem.deny")),),
    protect=(PathPattern("/w", (".github",), source=Source("/p/coding.toml", 13, "filesystem.protect")),),
)
CALLS = Authority(paths=(PathRule("/usr", frozenset({READ, EXEC})), PathRule("/w", frozenset({READ}))))
LAYERS = ({"op": "bind", "layer": "namespaces"}, {"op": "landlock", "layer": "landlock"})


def plan(level: str = "writes", authority: Authority = AUTHORITY) -> dict[str, Any]:
    return {
        "audit": level,
        "profile": {"name": "coding"},
        "floor": codec.to_json(Authority()),
        "grant": {"authority": codec.to_json(authority), "grantor": "uid:7", "purpose": "<b>fix</b>"},
        "lowering": {
            "slack": [{"axis": "ipc", "object": "/tmp", "right": "use", "note": "shared", "layers": [], "source": ""}]
        },
        "plan": {"operations": list(LAYERS), "assumptions": []},
    }


Action = tuple[object, ...]


def act(name: str, right: str = "write", verdict: str = "allowed", *, errno: int = 0, rule: str = "/w") -> Action:
    certainty = {"allowed": "exercised", "denied": "denied", "moot": "attempted"}[verdict]
    if verdict == "denied":
        errno, rule = errno or 13, "nothing grants it" if rule == "/w" else rule
    return (
        1.0,
        3,
        7,
        b"/usr/bin/sh",
        257,
        name.encode("utf-8", "surrogateescape"),
        right,
        verdict,
        certainty,
        "",
        errno,
        rule,
    )


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = str(tmp_path / "state" / "remit")
    for level in ("off", "writes", "full"):
        keep_plan(made, level, json.dumps(plan(level)))
    return made


def session(state: str, *actions: Action, level: str = "writes") -> Record:
    record = Record(state, level, {"argv": ["make", "<i>"], "workspace": "/w", "degraded": []})
    record.actions(actions)
    record.ended({"status": 0, "limit": None})
    return record


def reported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main.run(["report", "--last", "--format", "json"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(made, json.loads((SCHEMAS / "report.schema.json").read_text()))
    assert differences(made) == []
    return made


def test_the_numbers_of_a_session(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    session(
        state,
        act("/w/a"),
        act("/w/a"),
        act("/w/b", "remove"),
        act("/etc/shadow", "read", "denied"),
        act("/w/secret", "write", "denied", rule="/w/secret"),
        act("/w/.github/x", "write", "denied", rule="/w/.github"),
        act("/w/none", "remove", "moot", errno=2),
        act("/usr/bin/make", "exec", rule="/usr"),
        act("/tmp/x", rule="the session's own"),
    )
    made = reported(capsys)
    totals = made["totals"]
    assert (totals["events"], totals["attempted"], totals["exercised"], totals["denied"], totals["moot"]) == (
        9,
        7,
        4,
        3,
        1,
    )
    assert (totals["violation_attempts"], totals["prevented"], totals["leaked"], totals["false_denials"]) == (
        3,
        3,
        0,
        0,
    )
    assert totals["alignment_score"] == 1
    # /w for writing was used, for executing it was not; /data is read, which this level does not record.
    assert [(one["object"], one["right"], one["used"]) for one in made["grant_lines"]] == [
        ("/w", "exec", False),
        ("/w", "write", True),
        ("/data", "read", None),
    ]
    by = {atom["object"]: atom for atom in made["atoms"]}
    assert by["/w/a"]["source"] == "/p/coding.toml:9 filesystem.write"
    assert (by["/w/secret"]["kind"], by["/w/secret"]["source"]) == ("deny", "/p/coding.toml:12 filesystem.deny")
    assert by["/etc/shadow"]["missing"] == ["--read", "/etc/shadow"]


def test_a_denial_of_what_is_granted_and_an_exercise_of_what_is_not(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session(
        state, act("/w/a", "write", "denied"), act("/w/b"), act("/etc/x", "write"), act("/etc/y", "write", "denied")
    )
    totals = reported(capsys)["totals"]
    assert (totals["false_denials"], totals["leaked"], totals["violation_attempts"]) == (1, 1, 2)
    assert (totals["false_denial_rate"], totals["prevention_rate"], totals["alignment_score"]) == (0.5, 0.5, 0.5)


def test_always_denying_and_always_allowing_score_the_same(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verdict in ("allowed", "denied"):
        session(state, act("/w/a", "write", verdict), act("/etc/x", "write", verdict))
        assert reported(capsys)["totals"]["alignment_score"] == 0.5


def test_nothing_recorded_is_no_number(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    session(state, level="off")
    made = reported(capsys)
    assert made["totals"]["alignment_score"] is None
    assert main.run(["report", "--last"]) == 0
    assert "start and end only" in capsys.readouterr().out


def test_a_call_is_measured_against_its_own_grant(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(state, "writes", {"workspace": "/w"})
    record.event({"kind": "policy", "policy": 1, "digest": "d", "beyond": json.loads(json.dumps(codec.to_json(CALLS)))})
    for call, policy in (("c-1", 0), ("c-2", 1)):
        record.event({"kind": "call", "call": call, "argv": ["x"], "grants": ["g"], "policy": policy})
    record.actions([act("/w/a")], "c-1", "g")
    record.actions([act("/w/a", "write", "denied")], "c-2", "h")
    record.event({"kind": "returned", "call": "c-1", "status": 256, "limit": None})
    record.ended({"why": "closed"})
    made = reported(capsys)
    assert [(call["call"], call["status"], call["totals"]["alignment_score"]) for call in made["calls"]] == [
        ("c-1", 1, 1.0),
        ("c-2", None, 1.0),
    ]
    assert made["totals"]["false_denials"] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(
                ["/w/a", "/w/secret", "/w/.envrc", "/etc/x", "/tmp/x", "/data/y", "/usr/bin/z", "//", "\udcff"]
            ),
            st.sampled_from(["read", "write", "remove", "exec", "setuid", "connect", "bind", "signal", "call"]),
            st.sampled_from(["allowed", "denied", "moot"]),
        ),
        max_size=30,
    )
)
def test_the_numbers_are_those_of_another_computation(state: str, actions: list[tuple[str, str, str]]) -> None:
    record = session(state, *(act(name, right, verdict) for name, right, verdict in actions))
    made = report.build(log.read(state, record.identifier), {}, os.path.lexists)
    assert differences(json.loads(json.dumps(made))) == []


def test_the_other_computation_can_differ(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    session(state, act("/w/a"), act("/etc/x", "write", "denied"))
    made = reported(capsys)
    made["totals"]["leaked"] += 1
    made["atoms"][0]["in_grant"] = False
    assert any("leaked" in line for line in differences(made))


RECORD = Path(__file__).with_name("fixtures") / "report" / "20300317T174640-00c0ffee00"
"""The record of a session of two calls, one of them under a narrower grant, with at least one event of every kind."""


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_report_of_a_fixed_record(state: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORD, f"{state}/sessions/{RECORD.name}", copy_function=shutil.copyfile)
    assert log.check(f"{state}/sessions/{RECORD.name}").problem is None
    assert main.run(["report", RECORD.name, "--format", form]) == 0
    printed = capsys.readouterr().out
    golden = RECORD.with_name(f"report.{form}")
    if os.environ.get("REMIT_SNAPSHOTS") == "write":
        golden.write_text(printed)
    assert printed == golden.read_text()
    if form == "json":
        made = json.loads(printed)
        jsonschema.validate(made, json.loads((SCHEMAS / "report.schema.json").read_text()))
        assert differences(made) == []


# --- what a model reads


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (act("/etc/shadow", "read", "denied"), ["read /etc/shadow by /usr/bin/sh", "--read /etc/shadow"]),
        (act("/w/secret", "write", "denied", rule="/w/secret"), ["takes it away", "/p/coding.toml:12"]),
        (act("/w/.envrc", "write", "denied", rule="auto_exec .envrc"), ["program outside would execute", "/w/.envrc"]),
        (act("/w/a\nb", "write", "denied", rule="x"), ["/w/a\\nb"]),
    ],
)
def test_a_denial_is_told_in_three_lines(state: str, action: Action, words: list[str]) -> None:
    record = log.read(state, session(state, action).identifier)
    (equal,) = why.grouped(record.events)
    told = message.text(why.explain(equal, Decider.of_plan(record.plan), frozenset({"landlock"}), os.path.lexists))
    assert len(told.splitlines()) <= 3
    assert POINTLESS in told
    for word in words:
        assert word in told


def test_what_failed_by_itself_is_not_remits(state: str) -> None:
    record = log.read(state, session(state, act("/w/locked", "write", "moot", errno=13)).identifier)
    assert message.not_remit(record.events[0]).startswith(
        "Not Remit: write /w/locked by /usr/bin/sh failed with EACCES"
    )


# --- the page

HOSTILE = "/w/<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
LONG = "/w/" + "/".join(["a-rather-long-directory-name"] * 9) + "/" + "n" * 200


def written(state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    session(
        state,
        act("/w/a"),
        act(HOSTILE),
        act(LONG),
        act("/etc/shadow", "read", "denied"),
        act(LONG + "x", "write", "denied"),
        act("192.0.2.1:443", "connect", "denied"),
        act("/w/none", "remove", "moot", errno=2),
    )
    assert main.run(["report", "--last", "--format", "html"]) == 0
    file = tmp_path / "report.html"
    file.write_text(capsys.readouterr().out)
    return file


def test_the_page_says_everything_without_a_script_and_loads_nothing(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = written(state, tmp_path, capsys).read_text()
    body = text.partition("<body>")[2].partition("<script>")[0]
    for word in (
        "/etc/shadow",
        "192.0.2.1:443",
        "granted, not used",
        "denied",
        "--read /etc/shadow",
        "&lt;b&gt;fix&lt;/b&gt;",
    ):
        assert word in body
    assert "<script>document" not in text
    assert "<img" not in text
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", text.replace("&lt;img src=x", ""))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ASK = """<!doctype html><body><iframe id=f src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<pre id=out></pre><script>
f.onload = () => {{
  const d = f.contentDocument, e = d.documentElement;
  const c = d.getElementById('outcome'), rows = [...d.querySelectorAll('#atoms tbody tr')];
  c.value = 'denied'; c.dispatchEvent(new Event('input'));
  out.textContent = JSON.stringify({{title: d.title, over: e.scrollWidth - e.clientWidth, rows: rows.length,
    shown: rows.filter(r => !r.hidden).length, filter: getComputedStyle(d.getElementById('filter')).display,
    back: getComputedStyle(d.body).backgroundColor, tags: d.querySelectorAll('#authority .tag').length,
    calls: d.querySelectorAll('#calls tbody tr').length, points: d.querySelectorAll('#endpoints tr').length}});
}}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int, dark: bool
) -> None:
    assert CHROMIUM is not None
    written(state, tmp_path, capsys)
    (tmp_path / "ask.html").write_text(ASK.format(width=width))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--window-size=1500,1000",
    ]
    options += ["--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'chrome'}"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", f"file://{tmp_path}/ask.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment,
    )
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert found is not None, done.stdout[-2000:] + done.stderr[-2000:]
    seen = json.loads(found[1])
    assert seen["over"] == 0
    assert seen["title"].startswith("Alignment of session")
    assert (seen["rows"], seen["shown"], seen["filter"]) == (7, 3, "flex")
    assert (seen["calls"], seen["points"]) == (1, 1)
    assert seen["tags"] >= 5
    assert seen["back"] == ("rgb(21, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_the_page_has_no_script_but_its_own(state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(state, tmp_path, capsys).read_text()
    assert text.count("<script>") == 1
    assert "default-src 'none'" in text
    assert page.html.__doc__
