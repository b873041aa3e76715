"""``{package_index}``: what the user's own configuration names, and nothing that the confined side could have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit.sandbox.resolve.indexes import Indexes, indexes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    return tmp_path / "home"


def found(home: Path, tool: str, **environ: str) -> Indexes:
    # XDG_CONFIG_DIRS: not the configuration of the host that the test runs on.
    own = {"XDG_CONFIG_DIRS": str(home / "xdg"), "npm_config_prefix": str(home / "prefix"), **environ}
    return indexes(own, str(home), str(home.parent / "work"), (tool,))


def hosts(made: Indexes) -> set[str]:
    return {str(endpoint) for _, endpoint, _ in made.found}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_pip_takes_the_last_file_and_the_variable_over_all(home: Path) -> None:
    write(home / ".pip/pip.conf", "[global]\nindex-url = https://old.example.com/simple\n")
    assert hosts(found(home, "pip")) == {"old.example.com:443/tcp"}
    write(home / ".config/pip/pip.conf", "[install]\nindex_url = http://new.example.com:3141/root/+simple/\n")
    made = found(home, "pip")
    assert hosts(made) == {"new.example.com:3141/tcp"}
    assert made.variables == {"PIP_INDEX_URL": "http://new.example.com:3141/root/+simple/"}
    assert hosts(found(home, "pip", PIP_INDEX_URL="https://env.example.com")) == {"env.example.com:443/tcp"}


def test_pip_extra_indexes_and_links(home: Path) -> None:
    write(
        home / ".config/pip/pip.conf",
        "[global]\nindex-url = https://a.example.com/s\nextra-index-url =\n  https://b.example.com/s\n"
        "  https://[2001:db8::1]:8443/s\nfind-links = /srv/wheels https://c.example.com/w\n",
    )
    assert hosts(found(home, "pip")) == {
        "a.example.com:443/tcp",
        "b.example.com:443/tcp",
        "[2001:db8::1/128]:8443/tcp",
        "c.example.com:443/tcp",
    }


def test_pip_without_an_index_or_with_a_directory_reaches_nothing(home: Path) -> None:
    assert hosts(found(home, "pip", PIP_NO_INDEX="1")) == set()
    assert hosts(found(home, "pip", PIP_INDEX_URL="file:///srv/wheels")) == set()


def test_a_password_stays_outside(home: Path) -> None:
    made = found(home, "pip", PIP_INDEX_URL="https://user:hunter2@private.example.com/simple")
    assert hosts(made) == {"private.example.com:443/tcp"}
    assert made.variables == {}
    assert "hunter2" not in repr(made)


def test_the_default_is_read_from_the_installed_tool(home: Path) -> None:
    pip = home / "tool"
    write(pip / "bin/python3", "").chmod(0o755)
    source = 'PyPI = PackageIndex("https://index.example.org/", file_storage_domain="files.example.org")\n'
    write(pip / "lib/python3.11/site-packages/pip/_internal/models/index.py", source)
    npm = home / "node"
    write(npm / "npm/bin/npm-cli.js", "").chmod(0o755)
    (npm / "bin").mkdir()
    (npm / "bin/npm").symlink_to("../npm/bin/npm-cli.js")
    definitions = "const d = {\n  registry: new Definition('registry', {\n    default: 'https://reg.example.org/',\n"
    write(npm / "npm/node_modules/@npmcli/config/lib/definitions/definitions.js", definitions)
    path = f"{pip}/bin:{npm}/bin"
    assert hosts(found(home, "pip", PATH=path)) == {"index.example.org:443/tcp", "files.example.org:443/tcp"}
    assert hosts(found(home, "npm", PATH=path)) == {"reg.example.org:443/tcp"}
    assert hosts(found(home, "pip")) == set()  # no pip there, and none of our own


def test_npm_user_file_scopes_and_variable(home: Path) -> None:
    write(home / "prefix/etc/npmrc", "registry=https://global.example.com/\n")
    assert hosts(found(home, "npm")) == {"global.example.com:443/tcp"}
    write(
        home / ".npmrc",
        "; comment\nregistry = https://user.example.com/\n@corp:registry=https://corp.example.com:8443/npm/\n"
        "//user.example.com/:_authToken=hunter2\nregistry=${SECRET}\n",
    )
    made = found(home, "npm")
    assert hosts(made) == {"user.example.com:443/tcp", "corp.example.com:8443/tcp"}
    assert "hunter2" not in repr(made)
    assert hosts(found(home, "npm", npm_config_registry="http://v.example.com:4873/")) == {
        "corp.example.com:8443/tcp",
        "v.example.com:4873/tcp",
    }


def test_cargo_sources_and_registries(home: Path) -> None:
    write(
        home / ".cargo/config.toml",
        '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\nregistry = "sparse+https://m.example.com/i/"\n'
        '[registries.corp]\nindex = "https://git.example.com/index.git"\n[registry]\nindex = "broken\\u0000"\n',
    )
    assert hosts(found(home, "cargo")) == {"m.example.com:443/tcp", "git.example.com:443/tcp"}


def test_the_workspace_is_not_asked(home: Path) -> None:
    work = home.parent / "work"
    config = write(work / "pip.conf", "[global]\nindex-url = https://evil.example.com/\n")
    link = home / ".config/pip/pip.conf"
    link.parent.mkdir(parents=True)
    link.symlink_to(config)
    write(work / ".npmrc", "registry=https://evil.example.com/\n")
    write(work / ".cargo/config.toml", '[registry]\nindex = "https://evil.example.com/"\n')
    for tool, environ in (
        ("pip", {"PIP_CONFIG_FILE": str(config)}),
        ("npm", {"npm_config_userconfig": str(work / ".npmrc")}),
        ("cargo", {"CARGO_HOME": str(work / ".cargo")}),
    ):
        made = found(home, tool, **environ)
        assert hosts(made) == set()
        assert any("lies in the workspace" in note for note in made.notes)


@pytest.mark.parametrize(
    "text",
    [
        "https://exa mple.com/",
        "https://evil.com\x00.example.com/",
        "https://0x7f.1/",
        "https://*.example.com/",
        "x:y",
        "https://[::1",
    ],
)
def test_what_is_no_host_grants_nothing_and_says_so(home: Path, text: str) -> None:
    made = found(home, "pip", PIP_INDEX_URL=text)
    assert not any(one.wildcard for _, one, _ in made.found)
    assert hosts(made) == set()
    assert made.notes


def test_unreadable_files_are_notes(home: Path) -> None:
    write(home / ".config/pip/pip.conf", "no section\n")
    write(home / ".cargo/config.toml", "= =")
    assert any("pip could not read" in note for note in found(home, "pip").notes)
    assert any("not TOML" in note for note in found(home, "cargo").notes)
