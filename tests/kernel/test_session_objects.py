"""Authority is about objects: who may rename inside moves no narrower session's authority, nor uncovers what it denies."""

from __future__ import annotations

import pytest

from remit import Grant, GrantError, Session
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, probe, said
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
