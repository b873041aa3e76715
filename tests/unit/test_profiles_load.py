"""Search order, safety of files, extends, suggestions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from remit.profiles import find, load
from remit.profiles.errors import ProfileError
from remit.profiles.load import accept, available
from remit.profiles.model import Profile
from remit.profiles.suggest import read_suggestion

HEAD = 'format = 1\nname = "{}"\n'


class House:
    """A home directory and an administrator's directory of profiles."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.home = root / "home"
        self.user = self.home / ".config" / "remit" / "profiles"
        self.system = root / "etc" / "remit" / "profiles"
        for directory in (self.user, self.system):
            directory.mkdir(parents=True, mode=0o755)
        monkeypatch.setattr(find, "SYSTEM", str(self.system))
        self.environ: Mapping[str, str] = {}

    def write(self, name: str, body: str = "", *, directory: Path | None = None, named: str | None = None) -> Path:
        path = (directory or self.user) / f"{name}.toml"
        path.write_text(HEAD.format(named or name) + body)
        path.chmod(0o644)
        return path

    def load(self, name: str) -> Profile:
        return load.load(name, environ=self.environ, home=str(self.home))

    def fails(self, name: str) -> ProfileError:
        with pytest.raises(ProfileError) as raised:
            self.load(name)
        assert raised.value.exit_status == 2
        assert raised.value.phase == "profile"
        return raised.value


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """Files that the tests make are safe unless a test says otherwise, whatever the umask outside."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


def values(profile: Profile, key: str) -> list[object]:
    return [entry.value for entry in profile.items(key)]


# --- Search order -------------------------------------------------------


def test_user_before_system_before_shipped(house: House) -> None:
    assert house.load("coding").file == os.path.join(find.SHIPPED, "coding.toml")
    system = house.write("coding", directory=house.system)
    assert house.load("coding").file == str(system)
    user = house.write("coding")
    assert house.load("coding").file == str(user)


def test_xdg_config_home_counts_only_when_absolute(house: House) -> None:
    elsewhere = house.root / "config" / "remit" / "profiles"
    elsewhere.mkdir(parents=True)
    there = house.write("mine", directory=elsewhere)
    here = house.write("mine")
    house.environ = {"XDG_CONFIG_HOME": "config"}
    assert house.load("mine").file == str(here)
    house.environ = {"XDG_CONFIG_HOME": str(house.root / "config")}
    assert house.load("mine").file == str(there)


def test_no_home_is_no_users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".config/remit/profiles").mkdir(parents=True)
    (tmp_path / ".config/remit/profiles/base.toml").write_text(HEAD.format("base"))
    monkeypatch.chdir(tmp_path)
    assert load.load("base", environ={}, home="").file.startswith(find.SHIPPED)


@pytest.mark.parametrize("form", ["{dir}/x.toml", "{dir}/../profiles/x.toml"])
def test_a_path_is_not_searched(house: House, form: str) -> None:
    house.write("x", directory=house.system, named="other-name")
    profile = house.load(form.format(dir=house.system))
    assert profile.name == "other-name"


def test_a_name_that_ends_in_toml_is_a_file_here(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.write("x", directory=house.system)
    monkeypatch.chdir(house.system)
    assert house.load("x.toml").name == "x"


def test_unknown_name_is_suggested(house: House) -> None:
    assert "did you mean coding?" in str(house.fails("codign"))
    house.write("my-own")
    assert "did you mean my-own?" in str(house.fails("myown"))


@pytest.mark.parametrize("name", ["", "Coding", "-x", "1x", "a_b", "é", "a b", "coding\n"])
def test_what_is_not_a_name(house: House, name: str) -> None:
    assert "not a profile name" in str(house.fails(name))


def test_a_missing_file_and_a_nul(house: House) -> None:
    assert "no such profile" in str(house.fails("/nowhere/x.toml"))
    assert "NUL" in str(house.fails("/nowhere/\0x.toml"))


def test_file_and_name_must_agree(house: House) -> None:
    house.write("mine", named="yours")
    (problem,) = house.fails("mine").problems
    assert (problem.line, problem.key) == (2, "name")


def test_available_lists_what_load_finds(house: House) -> None:
    house.write("coding", 'description = "my own"\n')
    house.write("broken", "oops")
    (house.user / "Not-a-name.toml").write_text("")
    listed = {entry.name: entry for entry in available({}, str(house.home))}
    assert listed["coding"][2:] == ("my own", "user")
    assert listed["broken"].description.startswith("cannot be used: not TOML")
    assert listed["offline"].where == "shipped"
    assert set(listed) == {path.stem for path in Path(find.SHIPPED).glob("*.toml")} | {"broken"}
    for name in set(listed) - {"broken"}:
        assert house.load(name).file == listed[name].path


def test_files_are_listed_with_their_digests(house: House) -> None:
    house.write("a", 'extends = ["base"]\n')
    profile = house.load("a")
    paths = [path for path, _ in profile.files]
    assert paths == [os.path.join(find.SHIPPED, "base.toml"), str(house.user / "a.toml")]
    for path, digest in profile.files:
        assert digest == hashlib.blake2b(Path(path).read_bytes(), digest_size=32).hexdigest()


# --- Who could have written it ------------------------------------------


@pytest.mark.parametrize(("mode", "who"), [(0o664, "group"), (0o646, "everybody")])
def test_a_file_that_others_can_write(house: House, mode: int, who: str) -> None:
    path = house.write("x")
    path.chmod(mode)
    error = house.fails("x")
    assert who in str(error)
    assert error.hint == f"chmod go-w {path}"


@pytest.mark.parametrize("part", ["profiles", "remit", ".config", "home"])
def test_a_directory_on_the_way_that_others_can_write(house: House, part: str) -> None:
    house.write("x")
    directory = house.user
    while directory.name != part:
        directory = directory.parent
    directory.chmod(0o777)
    assert f"chmod go-w {directory}" in str(house.fails("x"))


def test_a_sticky_directory_is_safe(house: House) -> None:
    house.write("x")
    house.user.chmod(0o1777)
    assert house.load("x").name == "x"


def test_an_unsafe_file_is_not_passed_over(house: House) -> None:
    house.write("coding").chmod(0o666)
    house.fails("coding")


def test_links_are_followed_and_their_targets_checked(house: House) -> None:
    open_directory = house.root / "open"
    open_directory.mkdir()
    house.write("x", directory=open_directory)
    (house.user / "x.toml").symlink_to("../../../../open/x.toml")
    assert house.load("x").name == "x"
    open_directory.chmod(0o777)
    assert f"chmod go-w {open_directory}" in str(house.fails("x"))


def test_a_link_through_an_unsafe_directory(house: House) -> None:
    (house.root / "open").mkdir()
    (house.root / "open" / "profiles").symlink_to(house.system)
    house.write("x", directory=house.system)
    (house.user / "x.toml").symlink_to(house.root / "open" / "profiles" / "x.toml")
    assert house.load("x").name == "x"
    (house.root / "open").chmod(0o777)
    assert "can be written by everybody" in str(house.fails("x"))


def test_a_circle_of_links(house: House) -> None:
    (house.user / "x.toml").symlink_to("x.toml")
    assert "Too many levels" in str(house.fails("x"))


def test_a_dangling_link_is_not_passed_over(house: House) -> None:
    (house.user / "coding.toml").symlink_to("/nowhere")
    house.fails("coding")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@needs_root
@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_another_owner(house: House, what: str) -> None:
    path = house.write("x")
    if what == "link":
        path.rename(house.root / "x.toml")
        path.symlink_to(house.root / "x.toml")
        os.lchown(path, 12345, 12345)
    else:
        os.chown(path if what == "file" else house.user, 12345, 12345)
    assert "belongs to uid 12345" in str(house.fails("x"))


@needs_root
def test_roots_profiles_are_trusted_by_others_and_not_the_other_way_round(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = house.write("x")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert house.load("x").name == "x"
    os.chown(path, 12345, 12345)
    assert house.load("x").name == "x"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    house.fails("x")


@pytest.mark.parametrize("what", ["directory", "fifo"])
def test_what_is_no_regular_file(house: House, what: str) -> None:
    path = house.user / "x.toml"
    path.mkdir() if what == "directory" else os.mkfifo(path, 0o600)
    assert "not a regular file" in str(house.fails("x"))


def test_size(house: House) -> None:
    house.write("x", "#" * ((1 << 20) - len(HEAD.format("x"))))
    assert house.load("x").name == "x"
    house.write("x", "#" * (1 << 20))
    assert "larger than 1 MiB" in str(house.fails("x"))


# --- extends ------------------------------------------------------------


def test_lists_unite_and_scalars_are_the_childs(house: House) -> None:
    house.write(
        "a", 'description = "A"\n[filesystem]\nread = ["/a", "/both"]\ndeny = ["/x"]\n[limits]\npids = 1\nfiles = 7\n'
    )
    house.write("b", '[filesystem]\nread = ["/b", "/both"]\ndeny = ["/y"]\nprotect = ["/p"]\n')
    house.write("c", 'extends = ["a", "b"]\n[filesystem]\nread = ["/c"]\n[limits]\npids = 3\n')
    profile = house.load("c")
    assert values(profile, "filesystem.read") == ["/a", "/both", "/b", "/c"]
    assert values(profile, "filesystem.deny") == ["/x", "/y"]
    assert values(profile, "filesystem.protect") == ["/p"]
    assert values(profile, "limits.pids") == [3]
    assert values(profile, "limits.files") == [7]
    assert (profile.name, profile.description) == ("c", "")


def test_sources_name_file_line_and_key(house: House) -> None:
    a = house.write("a", '[filesystem]\nread = [\n  "/a",\n]\n')
    c = house.write("c", 'extends = ["a"]\nfilesystem.read = ["/c"]\n')
    sources = [str(entry.source) for entry in house.load("c").items("filesystem.read")]
    assert sources == [f"{a}:5 filesystem.read", f"{c}:4 filesystem.read"]


def test_parents_that_differ(house: House) -> None:
    a = house.write("a", "[limits]\npids = 1\n")
    b = house.write("b", "[limits]\npids = 2\n")
    house.write("c", 'extends = ["a", "b"]\n')
    (problem,) = house.fails("c").problems
    assert (problem.line, problem.key) == (3, "limits.pids")
    assert f"a ({a}:4)" in problem.message
    assert f"b ({b}:4)" in problem.message
    house.write("c", 'extends = ["a", "b"]\n[limits]\npids = 9\n')
    assert values(house.load("c"), "limits.pids") == [9]
    house.write("b", "[limits]\npids = 1\n")
    house.write("c", 'extends = ["a", "b"]\n')
    assert values(house.load("c"), "limits.pids") == [1]


def test_variables_merge_by_name(house: House) -> None:
    house.write("a", '[environment]\nset = { X = "1", Y = "1" }\npass = ["P"]\n')
    house.write("b", '[environment]\nset = { X = "2" }\n')
    house.write("c", 'extends = ["a", "b"]\n')
    assert house.fails("c").problems[0].key == "environment.set.X"
    house.write("c", 'extends = ["a", "b"]\n[environment]\npass = ["X"]\nset = { P = "3" }\n')
    profile = house.load("c")
    assert {entry.name: entry.value for entry in profile.items("environment.set")} == {"Y": "1", "P": "3"}
    assert values(profile, "environment.pass") == ["X"]


def test_one_parent_passes_what_another_sets(house: House) -> None:
    house.write("a", '[environment]\npass = ["X"]\n')
    house.write("b", '[environment]\nset = { X = "2" }\n')
    house.write("c", 'extends = ["a", "b"]\n')
    (problem,) = house.fails("c").problems
    assert problem.key == "environment.set.X"
    house.write("c", 'extends = ["a", "b"]\nenvironment.set.X = "3"\n')
    assert values(house.load("c"), "environment.pass") == []


def test_a_circle_is_shown(house: House) -> None:
    house.write("a", 'extends = ["b"]\n')
    house.write("b", 'extends = ["c"]\n')
    house.write("c", 'extends = ["b"]\n')
    (problem,) = house.fails("a").problems
    assert problem.message == "a circle: b -> c -> b"
    assert (problem.file, problem.line) == (str(house.user / "c.toml"), 3)


def test_a_file_that_extends_itself(house: House) -> None:
    house.write("a", 'extends = ["./a.toml"]\n')
    assert "a circle: a -> a" in str(house.fails("a"))


def test_the_same_parent_twice_is_no_circle(house: House) -> None:
    house.write("top", "[limits]\npids = 5\n")
    house.write("a", 'extends = ["top"]\n')
    house.write("b", 'extends = ["top"]\n')
    house.write("c", 'extends = ["a", "b"]\n')
    profile = house.load("c")
    assert len(profile.files) == 4
    assert values(profile, "limits.pids") == [5]


def test_files_beside(house: House) -> None:
    (house.user / "parts").mkdir()
    house.write("data", 'filesystem.read = ["/srv"]\n', directory=house.user / "parts", named="any")
    house.write("a", 'extends = ["./parts/data.toml"]\n')
    assert values(house.load("a"), "filesystem.read") == ["/srv"]
    (house.user / "parts").chmod(0o777)
    house.fails("a")


def test_ones_own_name_means_the_next_one(house: House) -> None:
    house.write("coding", 'extends = ["coding"]\nfilesystem.read = ["/srv"]\n')
    profile = house.load("coding")
    assert values(profile, "filesystem.write") == ["{workspace}"]
    assert "/srv" in values(profile, "filesystem.read")


def test_a_users_file_does_not_change_a_shipped_profile(house: House) -> None:
    before = house.load("coding")
    house.write("base", '[filesystem]\nwrite = ["/"]\n')
    house.write("readonly", '[filesystem]\nwrite = ["/"]\n', directory=house.system)
    assert house.load("coding") == before


def test_a_system_profile_does_not_see_users_files(house: House) -> None:
    house.write("mine")
    house.write("site", 'extends = ["mine"]\n', directory=house.system)
    assert "there is no profile" in str(house.fails("site"))


def test_errors_of_all_files_at_once(house: House) -> None:
    house.write("a", "colour = 1\n")
    house.write("b", "taste = 1\n")
    house.write("c", 'extends = ["a", "nobody", "b"]\n')
    assert [problem.key for problem in house.fails("c").problems] == ["colour", "extends", "taste"]


def test_degrade_is_not_inherited_but_for_limits_of_a_shipped_profile(house: House) -> None:
    house.write("a", '[enforcement]\ndegrade = ["limits", "seccomp"]\n')
    house.write("b", 'extends = ["a"]\n')
    assert values(house.load("a"), "enforcement.degrade") == ["limits", "seccomp"]
    assert values(house.load("b"), "enforcement.degrade") == []
    house.write("c", 'extends = ["b", "coding"]\n')
    assert values(house.load("c"), "enforcement.degrade") == ["limits"]


def test_too_many_files(house: House) -> None:
    for number in range(70):
        house.write(f"p{number}", f'extends = ["p{number + 1}"]\n')
    assert "more than 64 files" in str(house.fails("p0"))


# --- Suggestions --------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def test_no_suggestion(workspace: Path) -> None:
    assert read_suggestion(str(workspace)) is None


def test_a_suggestion_is_read_and_changes_nothing(house: House, workspace: Path) -> None:
    before = house.load("coding")
    (workspace / "remit.toml").write_text(HEAD.format("project") + 'filesystem.read = ["/srv"]\n')
    suggestion = read_suggestion(str(workspace))
    assert suggestion is not None
    assert suggestion.text.entries[0].value == "/srv"
    assert house.load("coding") == before


def test_an_accepted_suggestion(house: House, workspace: Path) -> None:
    path = workspace / "remit.toml"
    path.write_text(HEAD.format("project") + 'extends = ["python"]\nfilesystem.read = ["/srv"]\nlimits.pids = 7\n')
    suggestion = read_suggestion(str(workspace))
    assert suggestion is not None
    coding = house.load("coding")
    accepted = accept(coding, suggestion, environ={}, home=str(house.home))
    assert (accepted.name, accepted.file) == ("coding", coding.file)
    assert "/srv" in values(accepted, "filesystem.read")
    assert values(accepted, "limits.pids") == [7]
    assert set(values(coding, "filesystem.deny")) <= set(values(accepted, "filesystem.deny"))
    assert "VIRTUAL_ENV" in values(accepted, "environment.pass")
    assert (str(path), suggestion.digest) in accepted.files
    assert set(coding.files) < set(accepted.files)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('[floor]\nread = ["/"]\n', "floor"),
        ('[enforcement]\ndegrade = ["seccomp"]\n', "enforcement"),
        ('[audit]\nlevel = "off"\n', "audit"),
        ('extends = ["./more.toml"]\n', "extends"),
    ],
)
def test_what_cannot_be_suggested(workspace: Path, body: str, key: str) -> None:
    (workspace / "remit.toml").write_text(HEAD.format("x") + body)
    with pytest.raises(ProfileError) as raised:
        read_suggestion(str(workspace))
    assert [problem.key for problem in raised.value.problems] == [key]
    assert "suggest" in raised.value.problems[0].message


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "large"])
def test_a_suggestion_that_is_not_read(workspace: Path, what: str, tmp_path: Path) -> None:
    path = workspace / "remit.toml"
    if what == "link":
        (tmp_path / "secret").write_text(HEAD.format("x"))
        path.symlink_to(tmp_path / "secret")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ProfileError):
        read_suggestion(str(workspace))
