"""What ``{package_index}`` means now: the hosts that the user's own pip, npm and cargo are configured to use.

Their configuration files are read, never run, and only the user's and the system's own: what lies in the workspace was or
can be written by whoever works there, and grants never come from the confined side. Where nothing is configured, the
default is the tool's own: pip and npm carry it in a source file, which is looked for beside the program that ``PATH``
leads to. So Remit itself names no index.

A registry's answers may point to files on other hosts; such a host is a grant of its own. URLs may hold passwords: only
host and port leave this module.
"""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import tomli

from remit.sandbox.authority.model import Endpoint
from remit.sandbox.authority.parse import ParseError, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOOLS = ("pip", "npm", "cargo")

VARIABLES = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_CONFIG_FILE",
    "PIP_NO_INDEX",
    "VIRTUAL_ENV",
    "NPM_CONFIG_REGISTRY",
    "NPM_CONFIG_USERCONFIG",
    "NPM_CONFIG_GLOBALCONFIG",
    "NPM_CONFIG_PREFIX",
    "npm_config_registry",
    "npm_config_userconfig",
    "npm_config_globalconfig",
    "npm_config_prefix",
    "CARGO_HOME",
    "XDG_CONFIG_DIRS",
)
"""What it depends on of the environment, beside HOME, PATH and XDG_CONFIG_HOME."""

_MAXIMUM = 1 << 20
_PORTS = {"https": 443, "http": 80, "sparse+https": 443, "sparse+http": 80, "registry+https": 443, "git+https": 443}
_PIP_SECTIONS = ("global", "install", "download", "wheel", "index")
_PIP_DEFAULT = re.compile(r'PackageIndex\(\s*"(https://[^"\s]+)",\s*file_storage_domain="([^"\s]+)"')
_NPM_DEFAULT = re.compile(r"""['"]?registry['"]?[^{}]{0,80}\{[^{}]*?default:\s*['"](https://[^'"\s]+)['"]""")
_NPM_ENV = re.compile(r"\$\{[^}]*\}")


@dataclass(slots=True)
class Indexes:
    """``found``: (tool, endpoint, where it was configured). ``inputs``: every file looked at, there or not."""

    found: list[tuple[str, Endpoint, str]] = field(default_factory=list[tuple[str, Endpoint, str]])
    inputs: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    variables: dict[str, str] = field(default_factory=dict[str, str])
    """What tells the same to the tool inside, where the file that says it is not there. Never with a password in it."""

    def endpoints(self, tool: str = "") -> list[tuple[str, Endpoint, str]]:
        """Those of one tool, or all."""
        return [one for one in self.found if tool in ("", one[0])]


def indexes(environ: Mapping[str, str], home: str, workspace: str, tools: tuple[str, ...] = TOOLS) -> Indexes:
    """What the given tools are configured to use. Never raises: what cannot be read or understood is a note."""
    reader = _Reader(environ, home, workspace)
    for tool in tools:
        before = len(reader.made.found)
        getattr(reader, tool)()
        if len(reader.made.found) == before:
            reader.made.notes.append(f"{{package_index:{tool}}}: no index is configured, and none is known")
    return reader.made


class _Reader:
    def __init__(self, environ: Mapping[str, str], home: str, workspace: str) -> None:
        self.environ = environ
        self.home = home
        self.workspace = os.path.realpath(workspace)
        self.made = Indexes()

    # --- what the three have in common

    def read(self, path: str) -> str | None:
        """A configuration file's text; None: not there, not readable, or the confined side could have written it."""
        self.made.inputs.append(path)
        real = os.path.realpath(path)
        if real == self.workspace or real.startswith(self.workspace.rstrip("/") + "/"):
            if os.path.exists(real):
                self.made.notes.append(f"{path} lies in the workspace: not asked for a package index")
            return None
        try:
            with open(real, encoding="utf-8", errors="replace") as file:
                return file.read(_MAXIMUM)
        except OSError:
            return None

    def add(self, tool: str, url: str, where: str) -> None:
        """The endpoint of a URL; one that names no host (a directory) grants nothing."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme)
            host = parts.hostname or ""
        except ValueError:
            self.made.notes.append(f"{where}: a {tool} index is not a URL")
            return
        if not host or port is None:
            if parts.scheme not in ("file", ""):
                self.made.notes.append(f"{where}: a {tool} index is of an unknown kind: {parts.scheme}")
            return
        try:
            endpoint = parse_endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except ParseError as error:
            self.made.notes.append(f"{where}: {error.message}")
            return
        if endpoint.wildcard or "/" in host:
            self.made.notes.append(f"{where}: a {tool} index is one host")
            return
        if not any(tool == one and endpoint == other for one, other, _ in self.made.found):
            self.made.found.append((tool, endpoint, where))

    def tell(self, tool: str, variable: str, urls: str, where: str) -> None:
        """Remember a variable for inside."""
        try:
            parts = [urlsplit(url) for url in urls.split()]
        except ValueError:
            return
        if any("@" in one.netloc for one in parts):
            self.made.notes.append(f"{where}: a {tool} index with a password in it: the password stays outside")
        elif all(one.scheme in ("https", "http") for one in parts):
            self.made.variables[variable] = urls

    def programs(self, name: str) -> Iterator[str]:
        """Where ``PATH`` leads for a name, links followed."""
        for directory in self.environ.get("PATH", "").split(":"):
            path = os.path.join(directory, name)
            if directory.startswith("/") and os.access(path, os.X_OK):
                yield os.path.realpath(path)

    def first(self, *names: str) -> str:
        return next((self.environ[name] for name in names if self.environ.get(name)), "")

    # --- pip: later files win, and variables over all of them

    def pip(self) -> None:
        config = self.environ.get("XDG_CONFIG_HOME") or os.path.join(self.home, ".config")
        directories = self.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
        files = [f"{one}/pip/pip.conf" for one in reversed(directories.split(":")) if one.startswith("/")]
        files.append("/etc/pip.conf")
        if self.home:
            files += [f"{self.home}/.pip/pip.conf", f"{config}/pip/pip.conf"]
        if self.environ.get("VIRTUAL_ENV"):
            files.append(f"{self.environ['VIRTUAL_ENV']}/pip.conf")
        chosen = self.environ.get("PIP_CONFIG_FILE", "")
        files = files if chosen != os.devnull else []
        if chosen.startswith("/") and chosen != os.devnull:
            files.append(chosen)
        values: dict[str, tuple[str, str]] = {}
        for file in files:
            for key, value in self.pip_file(file).items():
                values[key] = (value, file)
        for key, name in (
            ("index-url", "PIP_INDEX_URL"),
            ("extra-index-url", "PIP_EXTRA_INDEX_URL"),
            ("no-index", "PIP_NO_INDEX"),
        ):
            if self.environ.get(name):
                values[key] = (self.environ[name], name)
        if values.get("no-index", ("", ""))[0].lower() in ("1", "true", "yes", "on"):
            return
        if "index-url" in values:
            self.add("pip", *values["index-url"])
            self.tell("pip", "PIP_INDEX_URL", *values["index-url"])
        else:
            self.pip_default()
        for key in ("extra-index-url", "find-links"):
            text, where = values.get(key, ("", ""))
            for url in text.split():
                if "://" in url:
                    self.add("pip", url, where)
            if key == "extra-index-url" and text:
                self.tell("pip", "PIP_EXTRA_INDEX_URL", " ".join(text.split()), where)

    def pip_file(self, path: str) -> dict[str, str]:
        text = self.read(path)
        if text is None:
            return {}
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            self.made.notes.append(f"{path}: pip could not read it either")
            return {}
        found: dict[str, str] = {}
        for section in _PIP_SECTIONS:
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
        return found

    def pip_default(self) -> None:
        for python in (*self.programs("pip"), *self.programs("pip3"), *self.programs("python3")):
            library = os.path.join(os.path.dirname(os.path.dirname(python)), "lib")
            for directory in _python_directories(library):
                path = f"{directory}/pip/_internal/models/index.py"
                text = self.read(path) if os.path.exists(path) else None
                match = _PIP_DEFAULT.search(text or "")
                if match:
                    self.add("pip", match[1], path)
                    self.add("pip", f"https://{match[2]}/", path)
                    return

    # --- npm (and what reads its files: pnpm, yarn)

    def npm(self) -> None:
        prefix = self.first("npm_config_prefix", "NPM_CONFIG_PREFIX") or "/usr/local"
        files = [
            self.first("npm_config_globalconfig", "NPM_CONFIG_GLOBALCONFIG") or f"{prefix}/etc/npmrc",
            "/etc/npmrc",
            self.first("npm_config_userconfig", "NPM_CONFIG_USERCONFIG")
            or (f"{self.home}/.npmrc" if self.home else ""),
        ]
        registry = ("", "")
        for file in filter(None, files):
            for line in (self.read(file) or "").splitlines():
                key, equals, value = (part.strip() for part in line.partition("="))
                value = value.strip("\"'")
                if not equals or key.startswith(("#", ";", "//")) or _NPM_ENV.search(value):
                    continue
                if key == "registry":
                    registry = (value, file)
                elif key.startswith("@") and key.endswith(":registry"):
                    self.add("npm", value, file)
        for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
            if self.environ.get(name):
                registry = (self.environ[name], name)
        if registry[0]:
            self.add("npm", *registry)
            self.tell("npm", "npm_config_registry", *registry)
        else:
            self.npm_default()

    def npm_default(self) -> None:
        for npm in self.programs("npm"):
            # .../npm/bin/npm-cli.js
            root = os.path.dirname(os.path.dirname(npm))
            path = f"{root}/node_modules/@npmcli/config/lib/definitions/definitions.js"
            text = self.read(path) if os.path.exists(path) else None
            match = _NPM_DEFAULT.search(text or "")
            if match:
                self.add("npm", match[1], path)
                return

    # --- cargo: its own default is inside the program, where nothing can be read

    def cargo(self) -> None:
        place = self.environ.get("CARGO_HOME") or (f"{self.home}/.cargo" if self.home else "")
        for name in ("config.toml", "config"):
            text = self.read(f"{place}/{name}") if place.startswith("/") else None
            if text is None:
                continue
            try:
                content: dict[str, Any] = tomli.loads(text)
            except tomli.TOMLDecodeError:
                self.made.notes.append(f"{place}/{name}: not TOML")
                return
            for table, key in (("source", "registry"), ("registries", "index"), ("registry", "index")):
                for url in _texts(content.get(table), key):
                    self.add("cargo", url, f"{place}/{name}")
            return


def _texts(table: object, key: str) -> Iterator[str]:
    if not isinstance(table, dict):
        return
    entries = cast("dict[str, object]", table)
    for one in (entries, *entries.values()):
        value = cast("dict[str, object]", one).get(key) if isinstance(one, dict) else None
        if isinstance(value, str):
            yield value


def _python_directories(library: str) -> Iterator[str]:
    """``site-packages`` and Debian's ``dist-packages`` below a ``lib`` directory."""
    try:
        names = sorted(name for name in os.listdir(library) if name.startswith("python3"))
    except OSError:
        return
    for name in names:
        for packages in ("site-packages", "dist-packages"):
            yield f"{library}/{name}/{packages}"
