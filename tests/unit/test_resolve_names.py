"""Names to objects: what a walk finds, what it records, what it refuses."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right, Source
from remit.sandbox.resolve.binding import Kind
from remit.sandbox.resolve.names import ResolveError, nearest, resolve, resolve_name

UID = os.getuid()
READ = frozenset({Right.READ})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(os.path.realpath(tmp_path))


def test_a_directory_and_a_file(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/f").write_text("x")
    named = resolve_name(f"{root}/d/f", uid=UID)
    found = (root / "d/f").stat()
    assert (named.kind, named.canonical, named.links) == (Kind.FILE, f"{root}/d/f", ())
    assert (named.device, named.inode, named.uid, named.mode) == (
        found.st_dev,
        found.st_ino,
        found.st_uid,
        found.st_mode,
    )
    assert resolve_name(f"{root}/d", uid=UID).kind is Kind.DIRECTORY


def test_the_root_itself() -> None:
    assert resolve_name("/", uid=UID).canonical == "/"
    assert resolve_name("/", uid=UID).kind is Kind.DIRECTORY


def test_links_are_recorded_outermost_first(root: Path) -> None:
    (root / "real/sub").mkdir(parents=True)
    (root / "one").symlink_to("two")
    (root / "two").symlink_to(root / "real")
    (root / "real/back").symlink_to("../real/sub")
    named = resolve_name(f"{root}/one/back", uid=UID)
    assert named.canonical == f"{root}/real/sub"
    assert named.links == (
        (f"{root}/one", "two"),
        (f"{root}/two", f"{root}/real"),
        (f"{root}/real/back", "../real/sub"),
    )


def test_dots_above_the_root_stay_there(root: Path) -> None:
    (root / "up").symlink_to("../" * 40 + "etc")
    assert resolve_name(f"{root}/up", uid=UID).canonical == "/etc"


def test_absent_names_keep_what_could_be_resolved(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    named = resolve_name(f"{root}/link/not/yet", uid=UID)
    assert (named.kind, named.canonical) == (Kind.ABSENT, f"{root}/real/not/yet")
    assert named.links == ((f"{root}/link", "real"),)
    (root / "file").write_text("")
    assert resolve_name(f"{root}/file/below", uid=UID).kind is Kind.ABSENT


def test_a_dangling_link_names_what_it_would_be(root: Path) -> None:
    (root / "dangling").symlink_to("../nowhere")
    named = resolve_name(f"{root}/dangling", uid=UID)
    assert (named.kind, named.canonical) == (Kind.ABSENT, f"{root.parent}/nowhere")


def test_a_loop_ends(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(ResolveError, match="symbolic links"):
        resolve_name(f"{root}/a", uid=UID)


def test_forty_links_are_followed_and_one_more_is_not(root: Path) -> None:
    (root / "l0").mkdir()
    for i in range(1, 42):
        (root / f"l{i}").symlink_to(f"l{i - 1}")
    assert resolve_name(f"{root}/l40", uid=UID).canonical == f"{root}/l0"
    with pytest.raises(ResolveError):
        resolve_name(f"{root}/l41", uid=UID)


@pytest.mark.parametrize("path", ["/proc/self/cwd", "/proc/self/root/etc", "/proc/self/fd/0", "/proc/self/exe"])
def test_links_of_proc_are_refused(path: str) -> None:
    with pytest.raises(ResolveError, match="/proc"):
        resolve_name(path, uid=UID)


def test_a_link_into_procs_links_is_refused(root: Path) -> None:
    (root / "sly").symlink_to("/proc/self/root")
    with pytest.raises(ResolveError, match="/proc"):
        resolve_name(f"{root}/sly/etc", uid=UID)


def test_relative_paths_are_refused() -> None:
    with pytest.raises(ResolveError, match="absolute"):
        resolve_name("etc", uid=UID)


def test_kinds(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{root}/s")
        assert resolve_name(f"{root}/s", uid=UID).kind is Kind.SOCKET
    os.mkfifo(root / "fifo")
    assert resolve_name(f"{root}/fifo", uid=UID).kind is Kind.OTHER
    assert resolve_name("/dev/null", uid=UID).kind is Kind.DEVICE


@pytest.mark.parametrize(
    ("mode", "uid", "writable"), [(0o755, 4242, False), (0o757, 4242, True), (0o1757, 4242, False)]
)
def test_parent_writable_by_another_user(root: Path, mode: int, uid: int, writable: bool) -> None:
    (root / "d").mkdir()
    (root / "d/f").write_text("")
    (root / "d").chmod(mode)
    assert resolve_name(f"{root}/d/f", uid=uid).parent_writable is writable


def test_the_walk_leaves_no_descriptor_open(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "l").symlink_to("a/../a/b")
    before = set(os.listdir("/proc/self/fd"))
    for name in ("l", "l/absent", "a/b"):
        resolve_name(f"{root}/{name}", uid=UID)
    assert set(os.listdir("/proc/self/fd")) <= before  # of other tests' some may be collected meanwhile


def test_resolve_covers_every_name_of_an_authority(root: Path) -> None:
    (root / "w").mkdir()
    (root / "w/.env").write_text("")
    authority = Authority(
        paths=(PathRule(f"{root}/w", READ), PathRule(f"{root}/gone", READ, optional=True)),
        deny=(PathPattern(f"{root}/w", (".env",)), PathPattern(f"{root}/w", ("x",), any_depth=True)),
        protect=(PathPattern(f"{root}/w", ("absent",)),),
        devices=("null", "/dev/zero"),
        unix=(f"{root}/sock",),
    )
    names = resolve(authority, uid=UID, also=(str(root),))
    assert names[f"{root}/w"].kind is Kind.DIRECTORY
    assert names[f"{root}/gone"].kind is Kind.ABSENT
    assert names[f"{root}/w/.env"].kind is Kind.FILE
    assert names[f"{root}/w/absent"].kind is Kind.ABSENT
    assert names["/dev/null"].kind is names["/dev/zero"].kind is Kind.DEVICE
    assert names[f"{root}/sock"].kind is Kind.ABSENT
    assert str(root) in names
    assert f"{root}/w/**/x" not in names


@pytest.mark.parametrize(
    ("source", "status"), [(Source("--read"), 2), (Source("/etc/remit/p.toml", 7, "filesystem.read"), 125)]
)
def test_a_granted_name_that_is_absent_is_an_error_with_a_hint(root: Path, source: Source, status: int) -> None:
    (root / "here").mkdir()
    paths = (PathRule(f"{root}/here/a/b", READ, source=source), PathRule(f"{root}/c", READ, source=source))
    with pytest.raises(ResolveError) as caught:
        resolve(Authority(paths=paths), uid=UID)
    assert caught.value.exit_status == status
    assert f"{root}/here/a/b" in caught.value.message
    assert f"{root}/c" in caught.value.message
    assert caught.value.hint.endswith(f"{root}/here")
    assert caught.value.where == str(source)


def test_nearest(root: Path) -> None:
    assert nearest(f"{root}/a/b/c", uid=UID) == str(root)


def test_the_way_is_every_directory_down_to_the_object(tmp_path: Path) -> None:
    place = os.path.realpath(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_text("x")
    (tmp_path / "link").symlink_to("a/b")
    direct, linked = (resolve_name(f"{place}/{name}", uid=1000) for name in ("a/b/f", "link/f"))
    above = [direct.canonical, *map(str, Path(direct.canonical).parents)][::-1]
    assert [*direct.way] == [(status.st_dev, status.st_ino) for status in map(os.stat, above)]
    assert linked.way == direct.way
    assert direct.way[-1] == direct.identity
    absent = resolve_name(f"{place}/a/none", uid=1000)
    assert (absent.way, absent.identity) == ((), None)
