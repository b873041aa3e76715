"""The benchmark's own arithmetic, tables, picture and errors, on made-up figures."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.cli import main
from remit.cli.bench import memory, plot, report, traffic
from remit.cli.bench.measure import BenchError, Command, interleave, percentile, row, run
from remit.sandbox.authority.errors import UsageError


def made_up(group: str, name: str, variant: str, median: float, **extra: float) -> dict[str, Any]:
    """A row of a result."""
    return {
        "group": group,
        "name": name,
        "variant": variant,
        "unit": "ms",
        "n": 3,
        "median": median,
        "p99": median * 2,
        "minimum": median / 2,
        "ratio": median,
        "extra": extra,
    }


def result(*rows: dict[str, Any], missing: tuple[tuple[str, str, str], ...] = ()) -> dict[str, Any]:
    """A result with these rows."""
    return {
        "schema": "remit.bench/1",
        "when": "2030-01-01T00:00:00+00:00",
        "host": {
            "kernel": "6.0",
            "machine": "x86_64",
            "cpus": 2,
            "python": "3.11.2",
            "remit": "0.1.0",
            "load_before": [0.1, 0.1, 0.1],
            "load_after": [0.2, 0.2, 0.2],
            "caveats": ["run by a test"],
        },
        "rounds": 3,
        "rows": list(rows),
        "not_measured": [dict(zip(("group", "name", "reason"), one, strict=True)) for one in missing],
    }


# --- measuring -----------------------------------------------------------------------------------------------------------


def recorder(seen: list[str], name: str) -> Callable[[], int]:
    def act() -> int:
        seen.append(name)
        return len(seen)

    return act


def test_each_round_runs_every_variant_once() -> None:
    seen: list[str] = []
    samples, failed = interleave({name: recorder(seen, name) for name in "abc"}, 3)

    assert [sorted(seen[at : at + 3]) for at in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert failed == {}
    # The first round does not count; a sample is its place in all that ran.
    assert samples == {name: [at + 1 for at in range(3, 12) if seen[at] == name] for name in "abc"}


def test_nobody_comes_after_the_same_one_each_time() -> None:
    seen: list[str] = []
    interleave({name: recorder(seen, name) for name in "abcd"}, 400)
    after = Counter(pairwise(seen))
    counts = [after[one, other] for one in "abcd" for other in "abcd" if one != other]
    assert min(counts) > 90
    again: list[str] = []
    interleave({name: recorder(again, name) for name in "abcd"}, 400)
    assert again == seen


def test_a_variant_that_takes_part_now_and_then() -> None:
    seen: list[str] = []
    samples, _ = interleave({name: recorder(seen, name) for name in "ab"}, 6, every={"b": 3})

    assert {name: len(taken) for name, taken in samples.items()} == {"a": 6, "b": 2}


def test_what_fails_once_takes_no_further_part_and_the_rest_goes_on() -> None:
    turns: list[str] = []

    def broken() -> int:
        turns.append("broken")
        if len(turns) == 3:
            raise BenchError("no more")
        return 0

    samples, failed = interleave({"good": lambda: 1, "broken": broken}, 5)
    assert samples == {"good": [1] * 5}
    assert failed == {"broken": "no more"}
    assert len(turns) == 3
    turns.clear()
    with pytest.raises(BenchError, match="no more"):
        interleave({"broken": broken}, 5, must=("broken",))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.1, 100))
def test_a_percentile_was_measured_and_has_that_many_below_it(values: list[float], percent: float) -> None:
    found = percentile(values, percent)

    assert found in values
    assert sum(1 for value in values if value <= found) >= len(values) * percent / 100 - 1e-9
    assert sum(1 for value in values if value < found) < len(values) * percent / 100 + 1e-9


def test_the_99th_of_few_is_the_slowest_and_of_a_thousand_not() -> None:
    assert percentile(list(range(50)), 99) == 49
    assert percentile(list(range(1000)), 99) == 989


def test_a_row_without_anything_bare_has_no_ratio() -> None:
    assert row("memory", "x", "", "KiB", [1.0, 2.0, 3.0], None).ratio is None
    assert row("start", "x", "", "ms", [1.0, 2.0, 3.0], 0.5).ratio == 4


def test_a_command_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    here = os.getcwd()
    errors = str(tmp_path / "errors")
    try:
        sample = run(Command(("/bin/sh", "-c", "exit 0"), str(tmp_path), {}), errors)
        assert sample.wall > 0
        with pytest.raises(BenchError, match=r"sh: exit status 7: told\nyou|sh: exit status 7: told you"):
            run(Command(("/bin/sh", "-c", "echo told >&2; echo you >&2; exit 7"), str(tmp_path), {}), errors)
        with pytest.raises(BenchError, match="signal 9"):
            run(Command(("/bin/sh", "-c", "kill -9 $$"), str(tmp_path), {}), errors)
        with pytest.raises(BenchError, match="No such file"):
            run(Command((str(tmp_path / "none"),), str(tmp_path), {}), errors)
    finally:
        os.chdir(here)


def test_children_of_children_are_found_and_others_are_not() -> None:
    process = subprocess.Popen(
        ["/bin/sh", "-c", "(sleep 1000 & echo $!; wait) & echo $!; wait"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = {int(process.stdout.readline()), int(process.stdout.readline())}
        assert said <= set(memory.descendants(process.pid))
        assert os.getpid() not in memory.descendants(process.pid)
        assert process.pid in memory.descendants(os.getpid())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# --- tables --------------------------------------------------------------------------------------------------------------


def test_tables_have_a_line_a_row_and_name_what_was_not_measured() -> None:
    text = report.markdown(
        result(
            made_up("start", "bare", "", 1.0),
            made_up("start", "bubblewrap + seccomp", "", 5.0),
            made_up("start", "remit run", "", 20.0),
            made_up("session", "first session of a program", "", 60.0),
            made_up("warm", "output captured", "subprocess.run", 1.0),
            made_up("warm", "output captured", "bubblewrap + seccomp", 8.0),
            made_up("warm", "output captured", "remit, call in a session", 1.6),
            made_up("rate", "2 programs", "bare", 1000.0),
            made_up("rate", "2 programs", "bubblewrap + seccomp", 200.0),
            made_up("rate", "2 programs", "remit, call in a session", 700.0),
            made_up("memory", "remit run", "", 9000.0, rss=20000, processes=2),
            made_up("syscall", "rename", "bare", 2.0),
            made_up("syscall", "rename", "remit run", 60.0),
            made_up("network", "round trip", "bare", 20.0),
            {**made_up("network", "start", "remit run", -2.0), "ratio": None},
            made_up("workload", "make", "bare", 100.0),
            made_up("workload", "make", "remit run", 130.0, net_ratio=1.1),
            missing=(("start", "srt", "not installed"), ("start", "nsjail", "not\ninstalled"), ("warm", "x", "y")),
        )
    )

    assert "| remit run | 3 | 20.0 | 40.0 | 10.0 | 20.0 | 4.00 |" in text
    assert "| remit, call in a session | output captured | 3 | 1.60 | 3.20 | 0.80 | 1.60 | 5.00 |" in text
    assert "| remit, call in a session | 2 programs | 3 | 700 | 350 | 700 | 3.50 |" in text
    assert "| remit run | 3 | 9,000 | 20,000 | 2.0 |" in text
    assert "| rename | 3 | 2.00 / 1.00 | 60.0 / 30.0 | 60.0 |" in text
    assert "| round trip | bare | ms | 3 | 20.0 | 40.0 | 10.0 | 20.0 |" in text
    assert "| start | remit run | ms | 3 | -2.00 | -4.00 | -1.00 | - |" in text
    assert "| make | 3 | 100 | 200 | 50.0 | 130 | 260 | 65.0 | 130 | 1.10 |" in text
    assert "- start: srt; nsjail: not installed\n- warm: x: y" in text
    assert "Beware: run by a test." in text
    for table in text.split("### ")[1:]:
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) == 1, table


def test_a_page_keeps_what_is_around_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.replace(page, "new\n")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    for broken in ("nothing", f"{report.END}\n{report.BEGIN}\n", f"{report.BEGIN}\n" * 2 + report.END):
        page.write_text(broken)
        with pytest.raises(UsageError, match="wants one"):
            report.replace(page, "new\n")
        assert page.read_text() == broken


# --- the picture ---------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def dots(text: str) -> dict[str, float]:
    """Where the dot of each label is."""
    found: dict[str, float] = {}
    for group in ElementTree.fromstring(text).iter(f"{SVG}g"):
        label, circle = group.find(f"{SVG}text"), group.find(f"{SVG}circle")
        assert label is not None
        assert circle is not None
        found[str(label.text)] = float(circle.attrib["cx"])
    return found


def test_the_axis_is_logarithmic_and_shared_by_a_panel() -> None:
    found = dots(plot.svg(result(*[made_up("start", str(10**power), "", 10.0**power) for power in range(4)])))

    steps = [found[str(10 ** (power + 1))] - found[str(10**power)] for power in range(3)]
    assert steps[0] > 10
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)


def test_names_are_escaped_and_remit_stands_out() -> None:
    text = plot.svg(result(made_up("start", "<&> peer", "", 3.0), made_up("start", "remit run", "", 5.0)))

    assert set(dots(text)) == {"<&> peer", "remit run"}
    classes = [group.attrib["class"] for group in ElementTree.fromstring(text).iter(f"{SVG}g")]
    assert classes == ["theirs", "ours"]
    assert "prefers-color-scheme: dark" in text


@given(st.floats(1e-3, 1e5), st.floats(1.0, 1e4))
def test_any_figures_lie_between_the_ends_of_their_axis(low: float, factor: float) -> None:
    found = dots(plot.svg(result(made_up("start", "a", "", low), made_up("start", "b", "", low * factor))))

    assert 300 <= found["a"] <= found["b"] <= 760
    assert all(math.isfinite(at) for at in found.values())


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        plot.svg(result(made_up("memory", "x", "", 1.0)))


def test_a_png_wants_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no program here"):
        plot.write(tmp_path / "x.png", result(made_up("start", "x", "", 1.0)))
    plot.write(tmp_path / "x.svg", result(made_up("start", "x", "", 1.0)))
    assert sorted(os.listdir(tmp_path)) == ["x.svg"]


def test_a_png_is_made_by_the_program_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "rsvg-convert"
    program.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n/bin/cp "$3" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    plot.write(tmp_path / "x.png", result(made_up("start", "x", "", 1.0)))
    assert (tmp_path / "x.png").read_text().startswith("<svg ")
    assert sorted(os.listdir(tmp_path)) == ["rsvg-convert", "x.png"]


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nope"], "nothing is called 'nope'"),
        (["--plot", "x.gif"], "ends neither in .svg nor in .png"),
        (["--rounds", "0"], "--rounds"),
        (["--directory", "/nonexistent/x"], "no directory can be made here"),
        (["--json", "/nonexistent/x.json"], "there is no such directory"),
        (["--write", "/nonexistent.md"], "cannot be read"),
        (["--write", "/dev/null"], "wants one '<!-- bench:begin -->'"),
        (["--from-json", "/nonexistent.json"], "no result can be read"),
        (["--from-json", "/dev/null"], "no result can be read"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_usage_errors_come_before_anything_is_measured(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["bench", "speed", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "remit.why/1"}', "3", "null"])
def test_another_document_is_no_result(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main.run(["bench", "speed", "--from-json", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ['{"schema": "remit.bench/1"}', '{"schema": "remit.bench/1", "host": {}, "rows": [3]}']
)
def test_a_result_that_is_not_whole_is_an_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    assert main.run(["bench", "speed", "--from-json", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"{file}: a result that is not whole" in told
    assert "internal" not in told


def test_an_earlier_result_becomes_tables_a_page_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, page, picture = tmp_path / "b.json", tmp_path / "page.md", tmp_path / "p.svg"
    source.write_text(json.dumps(result(made_up("start", "bare", "", 1.0))))
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    words = ["bench", "speed", "--from-json", str(source)]
    assert main.run([*words, "--write", str(page), "--plot", str(picture)]) == 0
    assert capsys.readouterr().out == ""
    assert "| bare | 3 |" in page.read_text()
    assert picture.read_text().startswith("<svg ")
    assert main.run(words) == 0
    assert "| bare | 3 |" in capsys.readouterr().out
    assert main.run([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(source.read_text())


def test_a_client_that_asks_a_proxy_says_who_it_is_and_measures_through_it(tmp_path: Path) -> None:
    """The proxy here answers, and is then the server itself."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 403 No\r\n\r\n"):
            sock, _ = listener.accept()
            with sock:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += sock.recv(1)
                asked.append(head)
                sock.sendall(answer)
                if b"200" in answer:
                    assert sock.recv(16, socket.MSG_WAITALL) == b"D%015d" % 1
                    sock.sendall(b"x")
                sock.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        done = subprocess.run(
            [sys.executable, "-I", "-S", traffic.__file__, "proxied", "192.0.2.1", "9"],
            input="connections 1\nconnections 1\n",
            env={"HTTPS_PROXY": f"http://user:pa%2Fss@127.0.0.1:{listener.getsockname()[1]}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        server.join(60)
    assert float(done.stdout.splitlines()[0]) > 0
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert "the proxy refuses" in done.stderr
    assert asked[0].splitlines()[0] == b"CONNECT 192.0.2.1:9 HTTP/1.1"
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"user:pa/ss") in asked[0].splitlines()
