"""A session's record on disk, and the plan cache that trusts nothing."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from remit.sandbox.audit.record import CANARY_SIZE, Record, keep_plan, new_identifier, state_directory
from remit.sandbox.audit.text import dumps
from remit.sandbox.session.cache import Cache, fingerprint, key


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        1.5,
        'quote " backslash \\ newline \n',
        "\u00e9\u20ac\U0001f600",
        "\udcff",
        [1, ["a", ()]],
        {"a": {"b": [False]}},
    ],
)
def test_json_text_reads_back_as_it_was(value: object) -> None:
    assert json.loads(dumps(value)) == json.loads(json.dumps(value))


def test_json_text_refuses_what_is_not_json() -> None:
    with pytest.raises(TypeError, match="bytes"):
        dumps(b"x")


def test_identifiers_sort_by_time_and_do_not_repeat() -> None:
    names = [new_identifier() for _ in range(1000)]
    assert len(set(names)) == 1000
    assert {len(name) for name in names} == {26}


def test_state_directory_ignores_a_relative_one() -> None:
    assert state_directory({b"HOME": b"/h"}) == "/h/.local/state/remit"
    assert state_directory({b"HOME": b"/h", b"XDG_STATE_HOME": b"/s"}) == "/s/remit"
    assert state_directory({b"HOME": b"/h", b"XDG_STATE_HOME": b"s"}) == "/h/.local/state/remit"


def test_a_record_from_start_to_end(tmp_path: Path) -> None:
    state = str(tmp_path / "a" / "b")
    keep_plan(state, "d1", '{"plan": 1}')
    record = Record(state, "d1", {"workspace": "/w"})
    directory = Path(record.path)
    path, beginning = record.canary
    assert Path(path).read_bytes()[:CANARY_SIZE] == beginning
    assert Record(state, "d1", {}).canary[1] != beginning
    record.enforced({"landlock": "canary: Permission denied"})
    record.event({"object": "\udcff", "verdict": "denied"})
    record.ended({"status": 0})
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{record.identifier}:{n}" for n in (1, 2, 3, 4)]
    assert (lines[0]["kind"], lines[0]["schema"], lines[0]["plan"], lines[0]["workspace"]) == (
        "started",
        "remit.session/2",
        "d1",
        "/w",
    )
    assert len(lines[0]["canary"]) == 32
    assert lines[1]["enforcement"] == {"landlock": "canary: Permission denied"}
    assert lines[3]["status"] == 0
    assert json.loads((directory / "plan.json").read_text()) == {"plan": 1}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {f.name for f in directory.iterdir()} == {"plan.json", "events.jsonl", "head"}
    assert all(f.stat().st_mode & 0o077 == 0 for f in directory.iterdir())


def test_a_record_without_its_plan_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Record(str(tmp_path), "nowhere", {})


def make_cache(tmp_path: Path) -> tuple[Cache, Path, Path]:
    source = tmp_path / "profile.toml"
    source.write_text("one")
    directory = tmp_path / "cache"
    cache = Cache(str(directory))
    cache.store("entry", [str(source), str(tmp_path / "absent"), str(tmp_path)], ("plan", ("nested", 1, b"x")))
    return cache, directory, source


def test_the_cache_gives_back_what_was_stored(tmp_path: Path) -> None:
    cache, directory, _ = make_cache(tmp_path)
    cache.store("entry", [], ("plan", ("nested", 1, b"x")))
    assert cache.load("entry") == ("plan", ("nested", 1, b"x"))
    assert cache.load("another") is None
    assert (directory / "entry").stat().st_mode & 0o077 == 0


def test_a_changed_input_is_a_miss(tmp_path: Path) -> None:
    cache, _, source = make_cache(tmp_path)
    cache.store("entry", [str(source)], ("plan",))
    assert cache.load("entry") == ("plan",)
    source.write_text("two")
    assert cache.load("entry") is None


def test_a_shadowing_file_that_appears_is_a_miss(tmp_path: Path) -> None:
    cache, _, _ = make_cache(tmp_path)
    absent = tmp_path / "absent"
    cache.store("entry", [str(absent)], ("plan",))
    assert cache.load("entry") == ("plan",)
    absent.write_text("x")
    assert cache.load("entry") is None


@pytest.mark.parametrize("offset", [0, 31, 32, 40, -1])
def test_a_flipped_byte_is_a_miss(tmp_path: Path, offset: int) -> None:
    cache, directory, _ = make_cache(tmp_path)
    cache.store("entry", [], ("plan", "a longer text that fills the entry"))
    data = bytearray((directory / "entry").read_bytes())
    data[offset] ^= 1
    (directory / "entry").write_bytes(data)
    assert cache.load("entry") is None


def test_what_others_could_write_is_a_miss(tmp_path: Path) -> None:
    cache, directory, _ = make_cache(tmp_path)
    cache.store("entry", [], ("plan",))
    os.chmod(directory / "entry", 0o620)
    assert cache.load("entry") is None
    os.chmod(directory / "entry", 0o600)
    assert cache.load("entry") == ("plan",)
    os.chmod(directory, 0o720)
    assert cache.load("entry") is None


def test_a_link_in_its_place_is_a_miss(tmp_path: Path) -> None:
    cache, directory, _ = make_cache(tmp_path)
    cache.store("entry", [], ("plan",))
    (directory / "entry").rename(directory / "real")
    (directory / "entry").symlink_to(directory / "real")
    assert cache.load("entry") is None
    assert cache.load("real") == ("plan",)


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Cache(str(tmp_path / "file" / "below")).store("entry", [], ("plan",))


def test_keys_differ_with_their_material() -> None:
    assert key(("a", 1)) != key(("a", 2))
    assert key(("a", 1)) == key(("a", 1))


def test_fingerprints_tell_files_directories_and_absence_apart(tmp_path: Path) -> None:
    file = tmp_path / "f"
    absent = fingerprint(str(file))
    directory = fingerprint(str(tmp_path))
    file.write_text("x")
    first = fingerprint(str(file))
    os.chmod(file, 0o666)
    second = fingerprint(str(file))
    assert len({absent, directory, first, second, fingerprint(str(tmp_path))}) == 5


def test_a_content_put_back_to_its_old_size_and_time_is_another(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    before, times = fingerprint(str(file)), os.stat(file)
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(str(file)) != before


def test_a_plan_that_is_kept_again_meanwhile_can_be_linked(tmp_path: Path) -> None:
    """Starts at the same time compile the same plan: each renames it to its name while the others link it."""
    state = str(tmp_path)
    keep_plan(state, "d1", "{}")
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            keep_plan(state, "d1", "{}")

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        for _ in range(500):
            Record(state, "d1", {}).ended({"status": 0})
    finally:
        over.set()
        keeper.join()
