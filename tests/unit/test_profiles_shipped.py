"""The shipped profiles, the shipped JSON Schema and the page keep what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import tomli

from remit.profiles import jsonschema as generated
from remit.profiles.errors import ProfileError
from remit.profiles.expand import Context, Expanded, expand
from remit.profiles.find import SHIPPED
from remit.profiles.load import load
from remit.profiles.parse import parse
from remit.profiles.reference import BEGIN, END, markdown
from remit.profiles.schema import KEYS, Kind, Shape
from remit.sandbox.authority.lattice import allows_connect, allows_path, join, leq, meet, normal
from remit.sandbox.authority.model import AutoExec, Right

ROOT = Path(__file__).parents[2]
NAMES = ("base", "readonly", "coding", "python", "node", "build", "mcp-server", "research", "offline", "service")
WRITERS = {"coding", "python", "node", "build", "offline", "service"}
FILES = sorted(Path(SHIPPED).glob("*.toml"))

HOME = "/home/u"


def shipped(name: str) -> Expanded:
    profile = load(name, environ={}, home="/nonexistent")
    return expand(profile, Context(f"{HOME}/project", HOME, "/run/user/1000", (f"{HOME}/sdk",)))


def test_the_ten() -> None:
    assert {path.stem for path in FILES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_every_shipped_profile_holds(name: str) -> None:
    result = shipped(name)
    session = join(result.floor, result.authority)

    assert result.degrade == ("limits",)
    assert result.notes == ()
    assert session.auto_exec is AutoExec.PROTECT
    assert session.opened == session.syscalls == session.unix == ()
    assert set(session.devices) == {"null", "zero", "full", "random", "urandom", "tty"}
    assert {"memory", "pids", "files", "tmp"} <= {limit for limit, _ in session.limits}
    assert dict(session.environment)["TMPDIR"] == "/tmp"
    for path in ("/usr/bin/env", "/lib64/ld-linux-x86-64.so.2", "/bin/sh"):
        assert allows_path(result.floor, path, Right.EXEC)[0]
    for path in (
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/sudoers",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssl/private/x",
        "/root",
    ):
        assert not allows_path(session, path, Right.READ)[0]
    for path in (
        HOME,
        f"{HOME}/.bashrc",
        f"{HOME}/other",
        f"{HOME}/.ssh/id_ed25519",
        "/home/other",
        "/var/log",
        "/proc/1",
    ):
        assert not allows_path(session, path, Right.READ)[0]
    for path in ("/usr/bin/x", "/etc/passwd", f"{HOME}/sdk/cc", f"{HOME}/project/.env"):
        assert not allows_path(session, path, Right.WRITE)[0]
    assert allows_path(session, f"{HOME}/project/src/x", Right.WRITE)[0] == (name in WRITERS)
    assert allows_path(session, f"{HOME}/project/src/x", Right.READ)[0] == (name != "base")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"base", "service"}))
def test_secrets_stay_closed_when_the_home_is_granted(name: str) -> None:
    home = expand(
        load(name, environ={}, home="/nonexistent"), Context(HOME, HOME)
    ).authority  # the workspace is the whole home
    assert allows_path(home, f"{HOME}/notes", Right.READ)[0]
    for secret in (
        ".ssh/id_rsa",
        ".aws/credentials",
        ".gnupg/x",
        ".config/gcloud/x",
        ".kube/config",
        ".docker/config.json",
    ):
        assert not allows_path(home, f"{HOME}/{secret}", Right.READ)[0]
    for secret in (
        ".netrc",
        ".git-credentials",
        ".npmrc",
        ".config/remit/keys/k",
        ".local/state/remit/sessions/x",
        ".env",
    ):
        assert not allows_path(home, f"{HOME}/{secret}", Right.READ)[0]


def test_who_reaches_what() -> None:
    for name in NAMES:
        result = shipped(name)
        assert bool(result.authority.connect) == (name == "research")
        assert bool(result.package_index) == (name in {"coding", "python", "node"})
        assert bool(result.authority.listen) == (name == "node")
        assert result.authority.loopback == (name != "mcp-server")


def test_research_reaches_every_name_and_no_address() -> None:
    authority = shipped("research").authority
    assert [str(endpoint) for endpoint in authority.connect] == ["*:443/tcp"]
    assert allows_connect(authority, "www.example.com", None, 443)[0]
    assert not allows_connect(authority, "www.example.com", None, 80)[0]
    assert not allows_connect(authority, None, "203.0.113.10", 443)[0]


def test_readonly_is_within_coding() -> None:
    readonly, coding = shipped("readonly").authority, shipped("coding").authority
    assert set(readonly.deny) == set(coding.deny)
    assert leq(meet(readonly, coding), coding)
    assert set(normal(readonly).deny) <= set(normal(coding).deny)


def test_languages_combine(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text('format = 1\nname = "both"\nextends = ["python", "node"]\n')
    path.chmod(0o600)
    combined = load(str(path), environ={}, home="")
    assert {"VIRTUAL_ENV", "NODE_ENV"} <= {entry.value for entry in combined.items("environment.pass")}


# --- JSON Schema --------------------------------------------------------


def schema_errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(generated.schema())
    errors = validator.iter_errors(tomli.loads(text))  # pyright: ignore[reportUnknownMemberType]
    return [error.message for error in errors]


def test_the_schema_refuses_what_is_plainly_wrong() -> None:
    for wrong in ('colour = "red"', 'filesystem.read = "/usr"', 'filesystem.read = ["usr"]', "network.listen = [0]"):
        assert schema_errors(f'format = 1\nname = "x"\n{wrong}') != []
    assert schema_errors("format = 1") != []


def test_the_shipped_schema_is_the_generated_one() -> None:
    assert (Path(SHIPPED) / "profile.schema.json").read_text() == generated.text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_profile_validates(path: Path) -> None:
    assert schema_errors(path.read_text()) == []


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(generated.schema())


def test_the_schema_is_never_stricter_than_the_parser() -> None:
    accepted = 0
    words = (
        '"/a"',
        '"~"',
        '"~/a"',
        '"{home}"',
        '"{workspace}/a"',
        '"{toolchains}"',
        '"**/a"',
        '"/a/**/b"',
        '"a:1"',
        '"a:*/udp"',
    )
    more = (
        '"{package_index}"',
        '"{package_index:npm}"',
        '"[::1]:2"',
        '"1GiB"',
        '"1.5"',
        '"1h"',
        '"LANG"',
        '"null"',
        '"base"',
        '"./a.toml"',
    )
    others = (
        "1",
        "1.5",
        "true",
        '"443"',
        '"perf"',
        '"limits"',
        '"allow"',
        '"full"',
        '"stop"',
        '"a\\nb"',
        '"a/b"',
        '"x:y:z"',
    )
    for key in KEYS:
        for value in (*words, *more, *others):
            written = (
                f"[{value}]" if key.shape is Shape.LIST else f"{{ A = {value} }}" if key.shape is Shape.MAP else value
            )
            required = [one for one in ("format = 1", 'name = "x"') if not one.startswith(f"{key.dotted} ")]
            document = "\n".join([*required, f"{key.dotted} = {written}"])
            try:
                parse(document.encode(), "x")
            except ProfileError:
                continue
            accepted += 1
            assert schema_errors(document) == []
    assert accepted > 150


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.dotted)
def test_every_example_is_accepted(key: object) -> None:
    from remit.profiles.schema import Key

    assert isinstance(key, Key)
    required = [one for one in ("format = 1", 'name = "x"') if not one.startswith(f"{key.dotted} ")]
    document = "\n".join([*required, f"{key.dotted} = {key.example}"])
    parse(document.encode(), "x")
    assert schema_errors(document) == []
    if key.kind is Kind.CHOICE and key.default:
        assert key.default in key.choices


# --- The page -----------------------------------------------------------


def test_the_page_has_the_tables_keys() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    assert page[page.index(BEGIN) : page.index(END) + len(END)] == markdown()


def test_the_pages_example_is_a_profile() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert parse(example.encode(), "x").name == "mine"


# --- What an import costs -----------------------------------------------


def imported(module: str) -> set[str]:
    packages = str(Path(tomli.__file__).parents[1])
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {packages!r}]; import {module}; print(*sys.modules)"
    # -S: what an installation's .pth files import is not ours.
    return set(
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_finding_a_profile_imports_no_parser() -> None:
    modules = imported("remit.profiles.find")
    assert "remit.profiles.find" in modules
    assert modules.isdisjoint({"tomli", "dataclasses", "typing", "re", "enum", "remit.profiles.schema"})


def test_loading_imports_nothing_that_only_errors_need() -> None:
    modules = imported("remit.profiles.load")
    assert "tomli" in modules
    assert modules.isdisjoint({"tomlkit", "difflib", "json", "ipaddress", "remit.profiles.jsonschema"})
