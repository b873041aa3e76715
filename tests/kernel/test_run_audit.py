"""What the record says of a session, against what was done in it: tried by the installed command, read from outside.

Every hostile action comes in two arms: without the grant the record has it as an attempt outside, found by its object;
with the grant the same object is there as exercised, and the effect is on the host.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from array import array
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from pathlib import Path
from termios import FIONREAD
from typing import Any

import jsonschema
import pytest

from tests.kernel.run_harness import TIMEOUT, World
from tests.kernel.session_harness import opened, until

pytestmark = pytest.mark.kernel
SCHEMAS = Path(__file__).resolve().parents[2] / "cli" / "schemas"


def profile(world: World, level: str, on_full: str = "deny") -> str:
    directory = world.home / ".config/remit/profiles"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"audit-{level}.toml"
    path.write_text(
        f'format = 1\nname = "audit-{level}"\nextends = ["offline"]\n[audit]\nlevel = "{level}"\non_full = "{on_full}"\n'
    )
    subprocess.run(["chown", "-R", f"--reference={world.home}", str(world.home / ".config")], check=True)
    return f"audit-{level}"


def record(world: World) -> list[dict[str, Any]]:
    """Every line of the record of the session that started last."""
    found = [(one / "events.jsonl").read_text().splitlines() for one in (world.state / "sessions").iterdir()]
    return max(([json.loads(line) for line in lines] for lines in found), key=lambda lines: lines[0]["time"])


def events(world: World) -> list[dict[str, Any]]:
    """Every action of that session."""
    return [line for line in record(world) if line["kind"] == "action"]


def of(world: World, name: Path | str, **wanted: str) -> list[dict[str, Any]]:
    return [e for e in events(world) if e["object"] == str(name) and all(e[k] == v for k, v in wanted.items())]


def test_reads_are_seen_where_the_profile_says_full(world: World) -> None:
    secret = world.base / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("x")
    script = f"cat {secret}; cat {secret.parent}/nothing; cat ../elsewhere/secret"
    world.run("sh", "-c", script, options=["-p", profile(world, "full")])
    found = of(world, secret)
    assert [(e["verdict"], e["certainty"], e["right"], e["syscall"]) for e in found] == [
        ("denied", "attempted", "read", "openat")
    ] * 2
    assert {Path(e["exe"]).name for e in found} == {"cat"}
    # Nothing is there on the host either: no denial.
    assert [e["verdict"] for e in of(world, secret.parent / "nothing")] == ["moot"]
    world.run("cat", str(secret), options=["-p", "audit-full", "--read", str(secret)])
    assert [e["verdict"] for e in of(world, secret)] == ["allowed"]
    world.run("cat", str(secret), options=["-p", profile(world, "writes"), "--read", str(secret)])
    assert of(world, secret) == []


def test_what_changes_the_workspace_is_exercised_and_nothing_else_is(world: World) -> None:
    script = """
        echo a > one; mkdir two; mv one two/three; ln two/three four; ln -s four five; rm four; chmod 600 two/three
        rmdir nothing; mkdir two
    """
    assert world.shell(script).status == 1
    changed = {(e["right"], e["object"]) for e in events(world) if e["certainty"] == "exercised"}
    w = world.workspace
    assert changed == {
        ("write", f"{w}/one"),
        ("write", f"{w}/two"),
        ("remove", f"{w}/one"),
        ("write", f"{w}/two/three"),
        ("write", f"{w}/four"),
        ("write", f"{w}/five"),
        ("remove", f"{w}/four"),
    }
    moot = {(e["object"], e["errno"]) for e in events(world) if e["verdict"] == "moot"}
    assert moot == {(f"{w}/nothing", "ENOENT")}
    assert not [e for e in events(world) if e["verdict"] == "denied"]
    assert {e["rule"]["text"] for e in events(world) if e["certainty"] == "exercised"} == {str(w)}
    assert all(e["rule"]["file"] and e["rule"]["line"] for e in events(world) if e["certainty"] == "exercised")


def test_asking_for_a_directory_that_is_there_is_looking(world: World) -> None:
    """mkdir of it changes nothing, whatever protects it: no attempt to write, and no denial."""
    kept = world.workspace / "kept"
    kept.mkdir()
    (world.workspace / "link").symlink_to("kept/..")
    script = "mkdir kept; mkdir link/kept; mkdir -p kept && mkdir kept/below; test ! -e kept/below"

    done = world.run("sh", "-c", script, options=["-p", profile(world, "writes"), "--protect", "kept"])

    assert (done.status, done.stderr.count("File exists"), done.stderr.count("Permission denied")) == (0, 2, 1)
    assert of(world, kept) == []
    assert [e["verdict"] for e in of(world, kept / "below")] == ["denied"]
    world.run("sh", "-c", script, options=["-p", profile(world, "full"), "--protect", "kept"])
    found = [e for e in of(world, kept) if e["right"] == "write"]
    assert [(e["verdict"], e["errno"]) for e in found] == [("moot", "EEXIST")] * 3


def test_events_name_the_line_that_decided_of_several_about_one_place(world: World) -> None:
    """One path can be granted by three lines, and taken away by a fourth: each right has its own."""
    tools = world.home / "tools"
    tools.mkdir()
    world.give(tools)
    shutil.copy("/usr/bin/true", tools / "program")
    world.give(tools / "kept").write_text("")
    profile(world, "writes")
    path = world.home / ".config/remit/profiles/audit-writes.toml"
    lines = [
        "[filesystem]",
        f'write = ["{tools}"]',
        f'exec = ["{tools}"]',
        f'protect = ["{tools}/kept"]',
        f'read = ["{tools}/kept"]',
    ]
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    at = {line.partition(" ")[0]: number for number, line in enumerate(path.read_text().splitlines(), 1)}
    script = f"{tools}/program; echo x > {tools}/made; echo x > {tools}/kept; cat {tools}/kept"
    world.run("sh", "-c", script, options=["-p", "audit-writes"])
    found = {
        (e["right"], e["verdict"]): (e["rule"]["text"], e["rule"]["file"], e["rule"]["line"])
        for e in events(world)
        if e["object"].startswith(str(tools))
    }
    assert found == {
        ("exec", "allowed"): (str(tools), str(path), at["exec"]),
        ("write", "allowed"): (str(tools), str(path), at["write"]),
        ("write", "denied"): (f"{tools}/kept", str(path), at["protect"]),
    }


def test_the_oracle_sees_nothing_that_the_record_has_not(world: World) -> None:
    before = set(world.workspace.rglob("*"))
    world.shell('mkdir -p a/b/c; echo x > a/b/c/d; cp a/b/c/d e; python3 -c \'open("f", "w")\'; git init -q g')
    made = {str(path) for path in world.workspace.rglob("*")} - {str(path) for path in before}
    assert len(made) > 20
    assert made <= {e["object"] for e in events(world) if e["verdict"] == "allowed"}


@pytest.mark.parametrize(
    ("script", "name", "right", "errno"),
    [
        ("echo > .envrc", "{w}/.envrc", "write", "EACCES"),
        ("mkdir -p .git/hooks; echo > .git/hooks/pre-commit", "{w}/.git/hooks/pre-commit", "write", "EACCES"),
        ("echo > x; chmod 4755 x", "{w}/x", "setuid", "EPERM"),
        ("mkdir {b}/elsewhere/new", "{b}/elsewhere/new", "write", None),
        ("rm {b}/elsewhere/there", "{b}/elsewhere/there", "remove", None),
        ("echo >> {b}/elsewhere/there", "{b}/elsewhere/there", "write", None),
        ("unshare -U true", "unshare", "call", "EPERM"),
    ],
)
def test_what_is_denied_is_found_by_its_object(
    world: World, script: str, name: str, right: str, errno: str | None
) -> None:
    elsewhere = world.base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "there").write_text("")
    subprocess.run(["chown", "-R", f"--reference={world.workspace}", str(elsewhere)], check=True)
    places = {"w": world.workspace, "b": world.base}
    assert world.shell(script.format(**places)).status != 0
    found = of(world, name.format(**places), verdict="denied")
    assert [(e["right"], e["errno"]) for e in found] == [(right, errno)]
    if "elsewhere" in script:
        assert world.shell(script.format(**places), "--write", str(elsewhere)).status == 0
        assert [e["certainty"] for e in of(world, name.format(**places), right=right)] == ["exercised"]


def test_processes_of_the_host(world: World) -> None:
    # A number that no process in the session has.
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        while sleeper.pid < 300:
            pytest.skip("process numbers are too low here")
        try:
            world.shell(f"kill -9 {sleeper.pid}")
            found = of(world, f"/proc/{sleeper.pid}")
            assert [(e["right"], e["verdict"], e["axis"]) for e in found] == [("signal", "denied", "ipc")]
            assert sleeper.poll() is None
        finally:
            sleeper.kill()
    world.shell("sleep 60 & kill -9 $!")
    assert [e["verdict"] for e in events(world) if e["right"] == "signal"] == ["allowed"]


def test_the_hosts_loopback(world: World) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        connect = f"""
            s = socket.socket()
            try: s.connect(("127.0.0.1", {port}))
            except ConnectionRefusedError: print("refused")
        """
        # Nobody listens there yet, and nobody else can: that nothing answered is no denial.
        world.python(connect)
        assert [e["verdict"] for e in of(world, f"127.0.0.1:{port}")] == ["moot"]
        listener.listen()
        assert world.python(connect).lines == ["refused"]
        assert [(e["verdict"], e["right"]) for e in of(world, f"127.0.0.1:{port}")] == [("denied", "connect")]
    inside = """
        l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
        s = socket.socket(); s.connect(l.getsockname()); print(l.getsockname()[1])
    """
    port = int(world.python(inside).lines[0])
    assert [e["verdict"] for e in of(world, f"127.0.0.1:{port}", right="connect")] == ["allowed"]


def test_off_records_start_and_end_only(world: World) -> None:
    status = world.run("sh", "-c", "echo > x; echo > .envrc", options=["-p", profile(world, "off")])
    assert status.status != 0
    assert events(world) == []


def test_the_command_counts_and_the_record_agree(world: World, tmp_path: Path) -> None:
    world.shell("echo > .envrc; mkdir .git; echo > .git/config; cat /nonexistent/x; rm -f nothing")
    assert record(world)[-1]["denials"] == len([e for e in events(world) if e["verdict"] == "denied"]) > 0


def _limited(world: World, script: str, kib: int, name: str) -> subprocess.CompletedProcess[str]:
    """``remit run`` whose own files may not grow beyond ``kib``: a disk that is full for the record."""
    code = "import os, resource, sys; n = int(sys.argv[1]) * 1024; resource.setrlimit(resource.RLIMIT_FSIZE, (n, n));"
    code += "os.execv(sys.argv[2], sys.argv[2:])"
    argv = world.argv("run", "-p", name, "-w", str(world.workspace), "--", "sh", "-c", script)
    argv[argv.index(world.command)] = sys.executable
    return subprocess.run(
        [
            *argv[: argv.index(sys.executable) + 1],
            "-c",
            code,
            str(kib),
            world.command,
            *argv[argv.index(sys.executable) + 1 :],
        ],
        env=world.env(),
        cwd=world.workspace,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


LOOP = "i=0; while [ $i -lt 400 ]; do mkdir d$i || exit 7; i=$((i+1)); done"


def test_a_full_disk_denies_what_would_be_recorded(world: World) -> None:
    name = profile(world, "writes", "deny")
    world.run("true", options=["-p", name])
    done = _limited(world, LOOP, 128, name)
    assert "No space left on device" in done.stderr
    made = len(list(world.workspace.glob("d*")))
    assert 0 < made < 400
    # Where there is no room for its end either, that is Remit's failure, and told as one.
    assert done.returncode in (7, 125)
    # What was done and not recorded is at most what was on its way.
    recorded = {e["object"] for e in events(world) if e["syscall"] == "mkdir" and e["verdict"] == "allowed"}
    assert made - len(recorded) <= 2 * 64
    checked = world.remit("audit", "verify", "--last")
    assert (checked.status, "no end" in checked.stdout) == (0, done.returncode == 125)
    if done.returncode == 7:
        assert sum(line["lost"] for line in record(world) if line["kind"] == "gap") > 0


def test_a_full_disk_stops_the_session_where_the_profile_says_so(world: World) -> None:
    name = profile(world, "writes", "stop")
    world.run("true", options=["-p", name])
    done = _limited(world, LOOP, 128, name)
    assert done.returncode == 125
    assert "record cannot be written" in done.stderr
    assert 0 < len(list(world.workspace.glob("d*"))) < 400


def test_why_and_report_by_the_command(world: World) -> None:
    world.shell("echo > .envrc; echo > fine")
    assert ".envrc" in world.remit("why", "--last").stdout
    told = json.loads(world.remit("why", "--last", "--json").stdout)["denials"][0]
    assert told["object"] == f"{world.workspace}/.envrc"
    assert len(told["message"].splitlines()) <= 3
    assert "Not Remit" in world.remit("why", str(world.workspace / "fine")).stdout
    report = json.loads(world.remit("report", "--last", "--json").stdout)
    assert (report["totals"]["violation_attempts"], report["totals"]["leaked"], report["totals"]["false_denials"]) == (
        1,
        0,
        0,
    )
    assert report["totals"]["alignment_score"] == 1
    replayed = json.loads(world.remit("audit", "replay", "--last", "-p", "readonly", "--json").stdout)
    assert [(a["object"], a["then"], a["now"]) for a in replayed["actions"]] == [
        (f"{world.workspace}/fine", "allowed", "denied")
    ]


def test_an_ordinary_eacces_is_not_remits(world: World) -> None:
    world.shell("echo > locked; chmod 400 locked; echo > locked")
    found = of(world, world.workspace / "locked", errno="EACCES")
    assert [e["verdict"] for e in found] == ["moot"]
    assert "Not Remit" in world.remit("why", str(world.workspace / "locked")).stdout


# --- what a model reads


def test_a_model_is_told_what_was_denied(world: World) -> None:
    script = "echo > .envrc; mkdir {0}/new; echo > .envrc; exit 3"
    envrc = f"--write {world.workspace}/.envrc"
    elsewhere = world.base / "elsewhere"
    elsewhere.mkdir()
    done = world.run("sh", "-c", script.format(elsewhere), options=["--denials", "text"])
    told = [line for line in done.stderr.splitlines() if line.startswith("remit: ")]
    assert (done.status, len(told)) == (3, 6)
    assert told[0].startswith(f"remit: Denied by the sandbox: write {world.workspace}/.envrc by ")
    assert "(2 times)" in told[0]
    assert "trying again" in told[1]
    assert told[2].endswith(f"ask the user. Only what is there at start can be granted: make it, then {envrc}.")
    assert f"{elsewhere}/new" in told[3]
    assert told[5].endswith(f"--write {elsewhere}")
    # The options that they name are those that do; and this one only so.
    assert world.run("true", options=envrc.split()).status == 2
    (world.workspace / ".envrc").touch()
    again = world.run("sh", "-c", script.format(elsewhere), options=["--denials", "text"])
    assert f"ask the user to grant: {envrc}\n" in again.stderr
    assert world.run("sh", "-c", "echo > .envrc", options=envrc.split()).status == 0
    assert world.run("sh", "-c", f"mkdir {elsewhere}/new", options=["--write", str(elsewhere)]).status == 0


def test_a_failure_that_was_not_the_sandboxs_is_said_to_be_none(world: World) -> None:
    # The owner's own mode refuses it; who is root inside the workspace is nobody's superuser.
    script = "echo > locked; chmod 400 locked; echo > locked"
    done = world.run("sh", "-c", script, options=["--denials=text"])
    told = [line for line in done.stderr.splitlines() if line.startswith("remit: ")]
    assert done.status == 2
    assert told[0].startswith(f"remit: Not Remit: write {world.workspace}/locked by ")
    assert "failed with EACCES" in told[0]
    assert told[1].startswith("remit: Not Remit: nothing was denied")
    assert len(told) <= 3
    # A command that did what it should needs no word.
    assert world.run("true", options=["--denials=text"]).stderr == ""
    assert "Not Remit" not in world.shell(script).stderr


@pytest.mark.parametrize("on_status", [False, True])
def test_a_program_is_told_in_one_line(world: World, on_status: bool) -> None:
    reading, writing = os.pipe()
    options = ["--denials=json", *(["--status-fd", str(writing)] if on_status else [])]
    done = world.run("sh", "-c", "echo > .envrc; exit 3", options=options, pass_fds=[writing])
    os.close(writing)
    with open(reading) as file:
        status = file.read().splitlines()
    line = status[-1] if on_status else done.stderr.splitlines()[-1]
    made = json.loads(line)
    jsonschema.validate(made, json.loads((SCHEMAS / "denials.schema.json").read_text()))
    assert [(one["object"], one["grant"]) for one in made["denials"]] == [(f"{world.workspace}/.envrc", [])]
    assert made["denials"][0]["note"].endswith(f"make it, then --write {world.workspace}/.envrc")
    assert ("remit" in done.stderr) != on_status
    done = world.run("false", options=["--denials=json"])
    made = json.loads(done.stderr)
    jsonschema.validate(made, json.loads((SCHEMAS / "denials.schema.json").read_text()))
    assert (made["denials"], made["not_remit"][0].startswith("Not Remit")) == ([], True)
    # Nothing failed: there is nothing that was not Remit.
    succeeded = json.loads(world.run("true", options=["--denials=json"]).stderr)
    assert (succeeded["denials"], succeeded["not_remit"]) == ([], [])
    session = world.remit("session", "start", "-p", world.profile, "-w", str(world.workspace)).stdout.strip()
    try:
        told = [
            json.loads(world.remit("exec", session, "--denials=json", "--", one).stderr) for one in ("true", "false")
        ]
    finally:
        world.remit("session", "stop", session)
    assert [bool(one["not_remit"]) for one in told] == [False, True]


def test_a_call_is_told_of_its_own_denials(world: World) -> None:
    session = world.remit("session", "start", "-p", world.profile, "-w", str(world.workspace)).stdout.strip()
    try:
        (world.workspace / "data").write_text("x")
        one = world.remit("exec", session, "--denials=text", "--read", ".", "--", "sh", "-c", "echo y > data")
        told = [line for line in one.stderr.splitlines() if line.startswith("remit: ")]
        assert (one.status, len(told)) == (2, 3)
        assert told[2].endswith(f"--write {world.workspace}/data")
        other = world.remit("exec", session, "--denials=json", "--", "sh", "-c", "echo y > data; exit 3")
        made = json.loads(other.stderr.splitlines()[-1])
        jsonschema.validate(made, json.loads((SCHEMAS / "denials.schema.json").read_text()))
        assert (other.status, made["denials"], len(made["not_remit"])) == (3, [], 1)
    finally:
        world.remit("session", "stop", session)


def test_a_profile_is_asked_what_it_would_allow(world: World) -> None:
    def asked(what: str) -> dict[str, dict[str, Any]]:
        told = world.remit("why", "-p", "offline", "-w", str(world.workspace), what, "--json")
        made = json.loads(told.stdout)
        jsonschema.validate(made, json.loads((SCHEMAS / "would.schema.json").read_text()))
        return {one["right"]: one for one in made["answers"]}

    (world.home / "notes").write_text("x")
    mine, theirs = asked(str(world.workspace / "new")), asked(str(world.home / "notes"))
    assert {right: one["allowed"] for right, one in mine.items()} == {"read": True, "write": True, "exec": True}
    assert {right: one["allowed"] for right, one in theirs.items()} == {"read": False, "write": False, "exec": False}
    assert theirs["read"]["grant"] == ["--read", str(world.home / "notes")]
    assert asked("example.com:443")["connect"]["grant"] == ["--connect", "example.com:443"]
    assert asked("127.0.0.1:8080")["connect"]["allowed"]
    assert not (world.state / "sessions").exists()  # nothing ran


# --- what is not in a record


def test_no_record_has_a_value_a_content_or_an_output(world: World) -> None:
    planted = {name: f"PLANTED-{name}-{os.urandom(6).hex()}" for name in ("set", "passed", "file", "stdin", "output")}
    (world.workspace / "data").write_text(planted["file"])
    script = f'cat data; echo "$SET $PASSED"; cat; printf %s-%s {planted["output"][:12]} {planted["output"][12:]}; echo > new'
    options = ["-p", profile(world, "full"), "--env", f"SET={planted['set']}", "--env", "PASSED"]
    done = world.run("sh", "-c", script, options=options, stdin=planted["stdin"], env={"PASSED": planted["passed"]})
    for name in ("set", "passed", "file", "stdin"):
        assert planted[name] in done.stdout
    kept = [path for path in world.state.rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"plan.json", "events.jsonl", "head"}
    assert world.remit("report", "--last").status == 0
    for path in kept:
        content = path.read_text(errors="replace")
        assert [name for name, value in planted.items() if value in content] == [], path
    for form in ("json", "html", "text"):
        told = world.remit("report", "--last", "--format", form).stdout
        assert [name for name, value in planted.items() if value in told] == [], form


def test_no_call_has_a_value_in_the_record(world: World) -> None:
    planted = f"PLANTED-{os.urandom(6).hex()}"
    start = ["session", "start", "-p", world.profile, "-w", str(world.workspace), "--env", f"SET={planted}"]
    session = world.remit(*start).stdout.strip()
    try:
        options = ["--read", ".", "--env", f"SET={planted}"]
        assert world.remit("exec", session, *options, "--", "sh", "-c", "echo $SET").stdout == f"{planted}\n"
    finally:
        world.remit("session", "stop", session)
    kept = [path for path in world.state.rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert [path for path in kept if planted in path.read_text(errors="replace")] == []


@pytest.mark.parametrize("words", [("audit", "show"), ("audit", "export"), ("audit", "export", "--ocsf")])
def test_a_reader_that_never_reads_keeps_nobody_waiting(world: World, words: tuple[str, ...]) -> None:
    """Readers have files, and no writer knows of them: what is done while one is stuck is done, and in the record."""
    with opened(world) as session:
        many = "for n in $(seq 150); do : > made$n; done"
        assert session.run(["sh", "-c", many], timeout=TIMEOUT).returncode == 0
        lines = world.state / "sessions" / session.id / "events.jsonl"
        until(lambda: "made150" in lines.read_text())
        ours, theirs = os.pipe()
        fcntl(theirs, F_SETPIPE_SZ, 4096)
        with (
            open(ours, "rb") as answer,
            subprocess.Popen(world.argv(*words, session.id), stdout=theirs, env=world.env()) as reader,
        ):
            os.close(theirs)
            waiting = array("i", [0])
            until(lambda: not ioctl(answer, FIONREAD, waiting) and waiting[0] > 2000)
            assert session.run(["sh", "-c", ": > later"], timeout=TIMEOUT).returncode == 0
            until(lambda: f"{world.workspace}/later" in lines.read_text())
            assert reader.poll() is None
            assert len(answer.read()) > 8192
    assert reader.returncode == 0
    assert (world.workspace / "later").exists()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("live", [False, True])
def test_denials_go_to_a_stderr_that_is_full_and_does_not_block(
    world: World, form: str, reads: bool, live: bool
) -> None:
    """Whole to whoever reads late; where nobody does, the command's status is still its own."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl(writer, F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    filled = os.write(writer, b"." * 4096)
    script = "for n in $(seq 30); do { true > /etc/nope-$n; } 2>/dev/null; done; echo done; exit 3"
    options = [f"--denials={form}"]
    command = ["sh", "-c", script]
    session = (
        world.remit("session", "start", "-p", "offline", "-w", str(world.workspace)).stdout.strip() if live else ""
    )
    try:
        argv = world.argv("exec", session, *options, "--", *command) if live else world.run_argv(command, options)
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer, env=world.env(), cwd=world.workspace
        ) as run:
            os.close(writer)
            assert run.stdout is not None
            assert run.stdout.readline() == b"done\n"
            told = b""
            while reads and (piece := os.read(reader, 1000)):
                told += piece
            status = run.wait(TIMEOUT)
    finally:
        os.close(reader)
        if live:
            world.remit("session", "stop", session)
    assert status == 3
    if reads:
        told = told[filled:]
        assert told.endswith(b"\n")
        assert len(json.loads(told.splitlines()[-1])["denials"]) == 30 if form == "json" else told.count(b"nope-") >= 8


def test_actions_with_the_longest_names_are_all_told(world: World) -> None:
    """Programs' own paths, the directories that they are in and the names that they say, as long as the kernel has them.

    How many of them are told in one message is a matter of moments.
    """
    one, other = ("/".join([letter * 250] * 14) for letter in "de")
    for directory in (one, other):
        made = world.python(f"import shutil; os.makedirs({directory!r}); shutil.copy('/bin/sh', {directory!r} + '/sh')")
        assert made.status == 0, made
    first = f"cd {one}; read x; command : > {'/'.join(['f' * 200] * 3)}; echo"
    second = f"cd {other}; echo; read x; command : > {'/'.join(['g' * 200] * 19)}; echo done"
    (world.workspace / "first").write_text(first)
    (world.workspace / "second").write_text(second)
    starts = f"{one}/sh first <&3 > there & {other}/sh second < there >&3"
    script = f"mkfifo there back; exec 3<>back; {starts}; read line <&3; echo $line"
    result = world.shell(script)
    assert (result.status, result.stdout) == (0, "done\n"), result
    written = [event for event in events(world) if "/fff" in event["object"] or "/ggg" in event["object"]]
    assert sorted(len(event["object"]) > 7000 for event in written) == [False, True]
