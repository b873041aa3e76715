"""What leaves from the calls of one session: each has its own grant."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kernel.net_harness import TALK, Internet
from tests.kernel.run_harness import libc_python

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", "curl", userns=True, landlock=2),
]

GRANTED = "granted.example.com"
OTHER = "other.example.com"
CALLS = """
import json, os, sys
from remit import Grant, Session
program = sys.argv[1]
session = dict(profile="offline", workspace=os.environ["WORK"], connect=["granted.example.com:8080", "other.example.com:8080"])
with Session(**session) as running:
    for grant in (
        None,
        Grant(read=["."], connect=["other.example.com:8080"]),
        Grant(read=["."], connect=["granted.example.com:8080"]),
        Grant(read=["."]),
        Grant(read=["."], connect=["other.example.com:8080"]),
    ):
        result = running.run(["/usr/bin/python3", "-I", "-S", "-c", program], grant=grant, timeout=60)
        print(result.stdout.decode().strip() or result.stderr.decode(), flush=True)
"""
BOTH = """
import json
names = ("granted.example.com", "other.example.com", "203.0.113.20")
results = [attempt(lambda: talk(name, 8080)) for name in names]
print(json.dumps([*results, "HTTP_PROXY" in os.environ]))
"""


def test_a_calls_own_network_grant(net: Internet) -> None:
    """Each call reaches what it was granted, host by host, while its session may more; the record knows whose it was."""
    program = libc_python(TALK)[-1] + BOTH
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", CALLS, program],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    everything, other, granted, nothing, again = (json.loads(line) for line in done.stdout.splitlines())
    assert everything == ["ok", "ok", "ECONNRESET", True]
    assert other == ["EAI", "ok", "ECONNRESET", True]
    assert granted == ["ok", "EAI", "ECONNRESET", True]
    assert nothing[2:] == ["ENETUNREACH", False]
    assert nothing[:2] == ["EAI", "EAI"]
    assert again == other

    events = [json.loads(line) for line in (net.world.records()[-1] / "events.jsonl").read_text().splitlines()]
    calls = [event["call"] for event in events if event["kind"] == "call"]
    ended = [(event.get("call", ""), event["object"]) for event in events if event.get("verdict") == "ended"]
    name = f"{GRANTED}:8080/tcp", f"{OTHER}:8080/tcp"
    assert ended == [("", name[0]), ("", name[1]), (calls[1], name[1]), (calls[2], name[0]), (calls[4], name[1])]
    judged = [event for event in events if event.get("source") == "gateway" and event["verdict"] == "denied"]
    denied = {(event.get("call", ""), event["object"]) for event in judged}
    assert (calls[1], "203.0.113.20:8080/tcp") in denied
    assert not any(call == calls[3] for call, _ in denied)


TOLD = """
import json, os, pickle, signal, sys
from remit import Grant, Session
hosts = ["granted.example.com:8080", "203.0.113.20:8080"]
def told(result):
    assert pickle.loads(pickle.dumps(result)).denials == result.denials and len(result.denials) == result.denied
    found = sorted({(one.object, one.right, " ".join(one.missing)) for one in result.denials})
    print(json.dumps([result.returncode, found, str(result.denials[0]).splitlines()[0] if found else ""]), flush=True)
with Session("offline", os.environ["WORK"], connect=hosts) as running:
    python = ["/usr/bin/python3", "-I", "-S", "-c"]
    for grant in (None, Grant(read=["."], connect=hosts[:1]), Grant(read=["."])):
        told(running.run([*python, sys.argv[1]], grant=grant, timeout=60))
    told(running.run([*python, sys.argv[2]], timeout=60))
    told(running.run(["true"]))
    # The gateway's word and the call's end lie there together when whoever writes the record wakes up.
    template = int(open(f"/proc/self/task/{os.getpid()}/children").read().split()[0])
    for _ in range(5):
        os.kill(template, signal.SIGSTOP)
        late = running.run([*python, sys.argv[1].replace("203.0.113.20", "203.0.113.30")], timeout=60)
        os.kill(template, signal.SIGCONT)
        told(late)
    with running.narrow(Grant(read=["."], connect=hosts[:1])) as narrow:
        told(narrow.run([*python, sys.argv[1]], timeout=60))
    gone = running.run(["false"])
    os.rename(gone.record, gone.record + "-away")
    try:
        gone.denials
    except Exception as error:
        print(type(error).__name__, gone.counted)
    os.rename(gone.record + "-away", gone.record)
"""


def test_a_calls_denials_have_what_the_network_refused(net: Internet) -> None:
    """The gateway's refusals and the namespace's are told beside the mediator's, of each call its own."""
    beside = "\ntry:\n    open('/usr/planted', 'w')\nexcept OSError:\n    pass\n"
    refused, reached = (
        libc_python(TALK)[-1] + text
        for text in (beside + "talk('203.0.113.20', 8080)\n", beside + "talk('granted.example.com', 8080)\n")
    )
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", TOLD, refused, reached],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *told, gone = done.stdout.splitlines()
    whole, own, none, fine, silent, *late, narrow = (json.loads(line) for line in told)
    planted = ["/usr/planted", "write", "--write /usr"]
    address = ["203.0.113.20:8080/tcp", "connect", "--connect 203.0.113.20:8080"]
    assert whole[:2] == [0, [planted]]
    for one in (own, narrow):
        assert one[0] != 0
        assert one[1] == [planted, address]
    assert none[0] != 0
    assert [*none[1][0]] == planted
    assert [thing.partition("/")[0] for thing, *_ in none[1][1:]] == ["203.0.113.20:8080"]
    assert fine[:2] == [0, [planted]]
    assert silent == [0, [], ""]
    for one in late:
        assert [thing for thing, *_ in one[1]] == ["/usr/planted", "203.0.113.30:8080/tcp"]
    assert gone == "RecordError 0"


NARROWED = """
import os
from remit import Grant, Session
hosts = ["granted.example.com:8080", "other.example.com:8080"]
with Session("offline", os.environ["WORK"], connect=hosts) as wide:
    with wide.narrow(Grant(read=["."], connect=hosts[:1])) as narrow:
        for session in (wide, narrow, narrow.narrow(Grant(read=["."]))):
            for host in hosts:
                done = session.run(["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}/"])
                print(done.stdout.decode(), end=" ")
"""


def test_a_narrowed_session_has_no_more_than_its_own_network(net: Internet) -> None:
    """Its calls have the grant of the narrower session, where they have none of their own: not the whole session's network."""
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", NARROWED],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["200", "200", "200", "403", "000", "000"], done
    assert [what.split()[1] for kind, what in net.seen() if kind == "tcp"] == ["8080"] * 3


BRIEF = """
import os
from remit import Grant, Session
host = "granted.example.com:8080"
with Session("offline", os.environ["WORK"], connect=[host, "other.example.com:8080"]) as session:
    for _ in range(20):
        grant = Grant(read=["."], connect=[host])
        done = session.run(["curl", "-sS", "-m", "60", "-o", "/dev/null", f"http://{host}/"], grant=grant)
        print(done.returncode, done.call)
"""


def test_how_a_connection_ended_is_the_calls_own_though_it_is_told_when_that_is_over(net: Internet) -> None:
    """A program ends with its connection, and the gateway tells of that a moment later."""
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", BRIEF],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in done.stdout.splitlines()]
    assert [status for status, _ in calls] == ["0"] * 20
    events = [json.loads(line) for line in (net.world.records()[-1] / "events.jsonl").read_text().splitlines()]
    assert [event.get("call") for event in events if event.get("verdict") == "ended"] == [call for _, call in calls]
