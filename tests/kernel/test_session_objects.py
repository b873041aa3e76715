"""Authority is about objects: who may rename inside moves no narrower session's authority, nor uncovers what it denies."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import patch

import pytest

from remit import PIPE, Grant, GrantError, GrantExpired, Session, Unenforceable
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, probe, probes, python, said
from tests.kernel.test_session_grants import tree

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]


def shell(session: Session, script: str, grant: Grant | None = None) -> None:
    """Run it, to success."""
    said(session.run(["sh", "-c", script], grant=grant))


# --- a name that another object has now -------------------------------------------------------------------------------------


def test_authority_stays_with_the_directory_when_another_one_gets_its_name(world: World) -> None:
    tree(world, "src/", "src/k", "secret/", "secret/k", "secret/below/", "secret/below/k")
    names = ("src/k", "src", "src/below", "src/below/k", "src-old/k")
    with opened(world) as session:
        part = session.narrow(Grant(write=["src"]))
        assert probe(part, "read('src/k')") == probe(part, "read('src/k')", Grant(read=["src/k"])) == "ok"
        shell(session, "mv src src-old && mv secret src")
        assert probe(part, "read('src/k')") == "EACCES"
        for name in names:
            for grant in (Grant(read=[name], limits={"files": 99}), Grant(read=[name], write=["src"])):
                with pytest.raises(GrantError, match=r"src is not what was granted|src-old/k: not granted"):
                    part.run(["cat", name], grant=grant)
                with pytest.raises(GrantError, match=r"src is not what was granted|src-old/k: not granted"):
                    part.narrow(grant)
        # A grant that was used means the object of that time, wherever it lies.
        assert probe(part, "read('src/k')", Grant(read=["src/k"])) == "EACCES"
        # The other arm: whoever was granted the directory around it has both.
        assert probe(session, "read('src/k')", Grant(read=["src/k"])) == "ok"
        shell(session, "mv src secret && mv src-old src")
        assert probe(part, "read('src/k')", Grant(read=["src/k"], limits={"files": 98})) == "ok"


def test_two_directories_that_change_places_keep_their_readers(world: World) -> None:
    tree(world, "proj/", "proj/pub/", "proj/pub/s", "proj/priv/", "proj/priv/s")
    (world.workspace / "proj/priv/s").write_text("private")
    with opened(world) as session:
        worker = session.narrow(Grant(write=["proj"]), principal="worker")
        reviewer = session.narrow(Grant(read=["proj/pub"]), principal="reviewer")
        assert probe(reviewer, "read('proj/pub/s')", Grant(read=["proj/pub"])) == "ok"
        shell(worker, "cd proj && mv pub x && mv priv pub && mv x priv")
        for grant in (Grant(read=["proj/pub/s"]), Grant(read=["proj/pub/s"], limits={"files": 99})):
            with pytest.raises(GrantError, match="proj/pub is not what was granted"):
                reviewer.run(["cat", "proj/pub/s"], grant=grant)
        assert said(worker.run(["cat", "proj/pub/s"], grant=Grant(read=["proj/pub/s"]))) == "private"


def test_what_lies_below_the_directory_that_was_granted_may_be_another_one(world: World) -> None:
    tree(world, "proj/", "proj/in/", "proj/in/f", "file")
    with opened(world) as session:
        part = session.narrow(Grant(write=["proj"], read=["file"]))
        assert probe(part, "read('proj/in/f')", Grant(read=["proj/in"])) == "ok"
        shell(part, "cd proj && mv in gone && mkdir in && echo new > in/f")
        assert said(part.run(["cat", "proj/in/f"], grant=Grant(read=["proj/in/f"]))) == "new"
        # The file that was granted, replaced as an editor does: another object, which nobody gave this session.
        shell(session, "echo other > new && mv new file")
        with pytest.raises(GrantError, match="file is not what was granted"):
            part.run(["cat", "file"], grant=Grant(read=["file"]))
        assert said(session.run(["cat", "file"], grant=Grant(read=["file"]))) == "other"


def test_what_every_call_has_anyway_is_not_looked_at(world: World) -> None:
    with opened(world) as session:
        part = session.narrow(Grant(read=["."]))
        assert part.run(["true"], grant=Grant(read=["/usr/lib", "/etc/passwd"])).returncode == 0


def test_a_name_that_was_missing_is_granted_as_what_it_is_where_it_lies_in_the_tree(world: World) -> None:
    """Of a profile's ``write_if_present``: nothing was granted under this name; the tree around it was."""
    path = world.home / "present.toml"
    path.write_text(
        'format = 1\nname = "present"\nextends = ["offline"]\n'
        '[filesystem]\nread_if_present = ["{workspace}/later", "~/later"]\n'
    )
    path.chmod(0o644)
    with opened(world, str(path)) as session:
        shell(session, "echo here > later")
        assert said(session.run(["cat", "later"], grant=Grant(read=["later"]))) == "here"
        (world.home / "later").write_text("outside")
        assert probe(session, f"read({str(world.home / 'later')!r})", Grant(read=[world.home / "later"])) != "ok"


# --- a denied name that is there later ----------------------------------------------------------------------------------------

MAKES = {"file": "echo L > later", "directory": "mkdir later && echo L > later/x", "moved": "mv other later"}
READS = {"file": "read('later')", "directory": "read('later/x')", "moved": "read('later')"}


@pytest.mark.parametrize("how", MAKES)
@pytest.mark.parametrize("warm", [False, True], ids=["first call", "warm"])
def test_a_denied_name_that_another_call_makes_is_denied(world: World, how: str, warm: bool) -> None:
    tree(world, "other")
    taken = Grant(read=["."], deny=["later"])
    with opened(world) as session:
        part = session.narrow(taken)
        below = part.narrow(Grant(read=["."]))
        inside = ((part, None), (part, Grant(read=["."])), (below, None), (below, Grant(read=["."])), (session, taken))
        if warm:
            before = "ENOENT" if how == "directory" else "EACCES"
            assert [probe(one, READS[how], grant) for one, grant in inside] == [before] * len(inside)
        shell(session, MAKES[how])
        assert [probe(one, READS[how], grant) for one, grant in inside] == ["EACCES"] * len(inside)
        assert probe(session, READS[how], Grant(read=["."])) == "ok"
        shell(session, "rm -r later")
        assert probe(part, "os.stat('later')") == "ENOENT"


def test_a_running_call_does_not_read_a_denied_name_that_is_made_meanwhile(world: World) -> None:
    waits = python("print('up', flush=True); sys.stdin.readline(); print(attempt(lambda: read('later')), flush=True)")
    with opened(world) as session:
        for deny, end in ((["later"], "EACCES"), ([], "ok")):
            with session.popen(waits, stdin=PIPE, grant=Grant(read=["."], deny=deny), text=True) as call:
                assert call.stdout is not None
                assert call.stdin is not None
                assert call.stdout.readline() == "up\n"
                shell(session, "echo L > later")
                call.stdin.write("\n")
                call.stdin.flush()
                assert call.stdout.readline() == f"{end}\n"
            shell(session, "rm later")


def test_where_files_may_be_executed_no_call_starts_once_the_denied_name_is_there(world: World) -> None:
    """Nobody can open a file for a command that may execute it: that was refused before, for names that are there."""
    with opened(world) as session:
        part = session.narrow(Grant(write=["."], exec=["."], deny=["later"]))
        grants = (None, Grant(read=["."], exec=["."]))
        assert [part.run(["true"], grant=grant).returncode for grant in grants] == [0, 0]
        assert probe(part, "write('later')") == "EACCES"
        shell(session, "echo L > later")
        for grant in grants:
            with pytest.raises(Unenforceable, match="later"):
                part.run(["cat", "later"], grant=grant)
        assert probe(part, "read('later')", Grant(read=["."])) == "EACCES"
        shell(session, "rm later")
        assert [part.run(["true"], grant=grant).returncode for grant in grants] == [0, 0]


@pytest.mark.parametrize("what", ["deny", "protect"])
def test_a_link_in_the_place_of_a_name_takes_what_it_leads_to_away_too(world: World, what: str) -> None:
    tree(world, "one", "two", "pd/", "pd/s", "link -> one", "el/", "el/s")
    action = "read({!r})" if what == "deny" else "write({!r}, flags=0)"
    tries = {name: action.format(name) for name in ("one", "two", "link", "pd/s", "el/s")}
    taken: dict[str, Any] = {"write": ["."], what: ["link", "pd/s"]}
    with opened(world) as session:
        part = session.narrow(Grant(**taken))
        before = {"one": "EACCES", "two": "ok", "link": "EACCES", "pd/s": "EACCES", "el/s": "ok"}
        assert probes(part, tries) == before
        assert probes(part, tries, Grant(write=["."])) == before
        shell(session, "ln -sf two link && mv pd gone && ln -s el pd")
        for grant in (None, Grant(write=["."])):
            assert set(probes(part, tries, grant).values()) == {"EACCES"}
        assert set(probes(session, tries).values()) == {"ok"}


def test_a_denied_file_that_is_saved_anew_stays_denied(world: World) -> None:
    tree(world, "key")
    with opened(world) as session:
        part = session.narrow(Grant(write=["."], deny=["key"]))
        assert probe(part, "read('key')") == "EACCES"
        shell(session, "echo new > .key.tmp && mv .key.tmp key")
        assert probe(part, "read('key')") == "EACCES"
        assert probe(part, "os.rename('key', 'other')") == "EACCES"
        assert probe(session, "read('key')") == "ok"


# --- the clock ----------------------------------------------------------------------------------------------------------------


def test_setting_the_clock_back_revives_no_narrowed_session(world: World) -> None:
    with opened(world) as session:
        part = session.narrow(Grant(read=["."], expires=1.0))
        below = part.narrow(Grant(read=["."]))
        kept = session.narrow(Grant(read=["."], expires="1h"))
        with pytest.raises(GrantExpired):
            part.run(["sleep", "1000"])
        begun = session.grant.not_before
        assert begun is not None
        with patch.object(time, "time", lambda: begun + 0.001):
            for one in (part, below):
                for grant in (None, Grant(expires="1h"), Grant(read=["."])):
                    with pytest.raises(GrantExpired):
                        one.run(["true"], grant=grant)
                with pytest.raises(GrantExpired):
                    one.narrow(Grant(read=["."]))
        # What has begun goes on, whatever the clock says, until its time is over.
        for moment in (begun - 1_000_000, begun + 1_000_000):
            with patch.object(time, "time", lambda moment=moment: moment):
                assert kept.run(["true"]).returncode == 0
                assert session.run(["true"], grant=Grant(expires="1h")).returncode == 0
