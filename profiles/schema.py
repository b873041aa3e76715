"""The one declarative table of what a profile may say.

Everything that knows a profile's keys is driven by ``KEYS``: the parser, the suggestions for mistyped keys, merging
under ``extends``, expansion, the JSON Schema and the reference in ``docs/profiles.md``. A key that is not here is
an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from remit.sandbox.authority.model import DEGRADABLE, SYSCALL_GROUPS

FORMAT = 1
"""The profile format that this version reads."""

NAME_PATTERN = "[a-z][a-z0-9-]*"

PACKAGE_INDEXES = ("pip", "npm", "cargo")
"""What ``{package_index:NAME}`` can name; ``{package_index}`` alone means all of them."""


class Shape(StrEnum):
    """How a key's values are written."""

    SCALAR = "scalar"
    LIST = "list"
    MAP = "map"
    RECORDS = "records"


class Kind(StrEnum):
    """What one value (a scalar, a list's item, a map's value) is."""

    FORMAT = "format"
    NAME = "profile name"
    TEXT = "text"
    PARENT = "profile"
    PATH = "path"
    PATTERN = "pattern"
    ENDPOINT = "endpoint"
    PORT = "port"
    PUBLISH = "published port"
    BOOLEAN = "boolean"
    ENVIRONMENT_NAME = "variable"
    ENVIRONMENT_VALUE = "variable's value"
    LIMIT = "quantity"
    SYSCALL_GROUP = "group"
    DEVICE = "device"
    CHOICE = "choice"
    HTTP_RULE = "HTTP rule"
    CREDENTIAL = "credential"
    HTTP_HOST = "host"
    METHOD = "method"
    HTTP_PATH = "path of a URL"
    HEADER = "header"
    QUERY = "query parameter"
    ORIGIN = "where a secret is"


class Merge(StrEnum):
    """What ``extends`` makes of a key that a parent has."""

    UNITE = "unite"
    CHILD = "child wins"
    OWN = "not inherited"
    DEGRADE = "not inherited, but for `limits` of a shipped profile"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its table ("" is the top level), shape, kind of value, and what it means to people.

    ``fields``: of ``RECORDS``, the keys of one record.
    ``toolchains``: a path list in which ``{toolchains}`` may stand. ``suggestible``: a workspace's ``remit.toml``
    may have it.
    """

    table: str
    name: str
    shape: Shape
    kind: Kind
    meaning: str
    example: str
    merge: Merge
    unit: str = ""
    choices: tuple[str, ...] = ()
    default: str = ""
    required: bool = False
    toolchains: bool = False
    suggestible: bool = True
    fields: tuple[Key, ...] = ()

    @property
    def dotted(self) -> str:
        """``table.name``, as errors and sources print it."""
        return f"{self.table}.{self.name}" if self.table else self.name


TABLES: dict[str, str] = {
    "": "What the profile is, and what it builds on.",
    "filesystem": (
        "Files and directories. A path means itself and everything below it. `write` and `exec` include `read`."
    ),
    "floor": (
        "What every call needs to run at all, whatever its own grant says: system directories, variables, device nodes."
    ),
    "network": "Connections out, and ports that the session's own programs listen on.",
    "exec": "Programs, where they are listed one by one.",
    "environment": "Environment variables. Nothing is passed unless it is named.",
    "limits": "Quantities. What is not named is not limited.",
    "ipc": "Sockets of programs outside.",
    "syscalls": "System calls that the base filter refuses.",
    "devices": "Device nodes.",
    "audit": "What the record holds.",
    "enforcement": "Layers that may be missing, and what becomes of a call whose authority ends.",
}
"""Every table, with one sentence on what it is for."""


def _key(
    table: str,
    name: str,
    shape: Shape,
    kind: Kind,
    meaning: str,
    example: str,
    *,
    merge: Merge | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    default: str = "",
    required: bool = False,
    toolchains: bool = False,
) -> Key:
    usual = Merge.UNITE if shape is Shape.LIST else Merge.CHILD
    return Key(
        table=table,
        name=name,
        shape=shape,
        kind=kind,
        meaning=meaning,
        example=example,
        merge=merge or usual,
        unit=unit,
        choices=choices,
        default=default,
        required=required,
        toolchains=toolchains,
        suggestible=table not in ("floor", "audit", "enforcement"),
    )


def _paths(table: str, name: str, meaning: str, example: str, *, toolchains: bool = False) -> Key:
    return _key(table, name, Shape.LIST, Kind.PATH, meaning, example, toolchains=toolchains)


def _limit(name: str, meaning: str, example: str, unit: str) -> Key:
    return _key("limits", name, Shape.SCALAR, Kind.LIMIT, meaning, example, unit=unit)


def _records(
    table: str, name: str, kind: Kind, meaning: str, example: str, fields: tuple[Key, ...], *, suggestible: bool
) -> Key:
    return Key(table, name, Shape.RECORDS, kind, meaning, example, Merge.UNITE, suggestible=suggestible, fields=fields)


def _field(
    shape: Shape, kind: Kind, table: str, name: str, meaning: str, example: str, *, required: bool = False
) -> Key:
    return Key(table, name, shape, kind, meaning, example, Merge.UNITE, required=required)


_SIZE = "bytes, or `KiB` `MiB` `GiB`"
_TIME = "`ms` `s` `m` `h`"

KEYS: tuple[Key, ...] = (
    _key(
        "",
        "format",
        Shape.SCALAR,
        Kind.FORMAT,
        "Version of the profile format.",
        "1",
        merge=Merge.OWN,
        required=True,
    ),
    _key(
        "",
        "name",
        Shape.SCALAR,
        Kind.NAME,
        "The profile's name: the file's name without `.toml`.",
        '"coding"',
        merge=Merge.OWN,
        required=True,
    ),
    _key(
        "",
        "description",
        Shape.SCALAR,
        Kind.TEXT,
        "One line, for `remit profile list`.",
        '"Work on one project."',
        merge=Merge.OWN,
    ),
    _key(
        "",
        "extends",
        Shape.LIST,
        Kind.PARENT,
        "Profiles that this one builds on, left to right: names, or `./FILE.toml` beside this file.",
        '["base"]',
        merge=Merge.OWN,
    ),
    _paths("filesystem", "read", "What may be read.", '["/srv/data"]', toolchains=True),
    _paths("filesystem", "read_if_present", "As `read`, where it exists: a missing path is no error.", '["/opt/sdk"]'),
    _paths("filesystem", "write", "What may be read, written, created and removed.", '["{workspace}"]'),
    _paths("filesystem", "write_if_present", "As `write`, where it exists.", '["~/.cache/ccache"]'),
    _paths("filesystem", "exec", "What may be read and executed.", '["{workspace}", "{toolchains}"]', toolchains=True),
    _paths("filesystem", "exec_if_present", "As `exec`, where it exists.", '["/opt/jdk"]'),
    _key(
        "filesystem",
        "deny",
        Shape.LIST,
        Kind.PATTERN,
        "No access at all, whether it exists yet or not. Wins over everything, the command line included.",
        '["{workspace}/.env", "~/.ssh"]',
    ),
    _key(
        "filesystem",
        "protect",
        Shape.LIST,
        Kind.PATTERN,
        "Readable where it is granted, never writable, even below a `write`.",
        '["{workspace}/.github", "{workspace}/**/Makefile"]',
    ),
    _key(
        "filesystem",
        "auto_exec",
        Shape.SCALAR,
        Kind.CHOICE,
        "Whether files that a program outside would execute (git hooks, editor tasks, shell startup files) "
        "may be written.",
        '"protect"',
        choices=("protect", "allow"),
        default="protect",
    ),
    _paths("floor", "read", "What every call may read.", '["/usr"]'),
    _paths(
        "floor",
        "read_if_present",
        "As `read`, where it exists: directories that only some distributions have.",
        '["/etc/crypto-policies"]',
    ),
    _paths("floor", "exec", "What every call may read and execute.", '["/usr"]'),
    _paths("floor", "exec_if_present", "As `exec`, where it exists.", '["/lib64", "/nix/store"]'),
    _key("floor", "pass", Shape.LIST, Kind.ENVIRONMENT_NAME, "Variables passed to every call.", '["LANG", "PATH"]'),
    _key("floor", "set", Shape.MAP, Kind.ENVIRONMENT_VALUE, "Variables set for every call.", '{ TMPDIR = "/tmp" }'),
    _key("floor", "devices", Shape.LIST, Kind.DEVICE, "Device nodes every call may use.", '["null", "urandom"]'),
    _key(
        "network",
        "connect",
        Shape.LIST,
        Kind.ENDPOINT,
        "Where connections may go: `HOST:PORT`, `*.example.com:443`, `*:443`, `CIDR:PORT`, with `/tcp` (default) or `/udp`.",
        '["{package_index}", "*.example.com:443"]',
    ),
    _key(
        "network",
        "listen",
        Shape.LIST,
        Kind.PORT,
        "Ports that programs inside may listen on; reachable inside the session only.",
        "[3000]",
        unit="port, 1 to 65535",
    ),
    _key(
        "network",
        "publish",
        Shape.LIST,
        Kind.PUBLISH,
        "Ports of the host that lead to a port inside: `[ADDRESS:]PORT:INNER`, at 127.0.0.1 unless an address is named.",
        '["127.0.0.1:8080:3000"]',
    ),
    _key(
        "network",
        "loopback",
        Shape.SCALAR,
        Kind.BOOLEAN,
        "Whether the session has a loopback of its own.",
        "true",
        default="true",
    ),
    _records(
        "network",
        "http",
        Kind.HTTP_RULE,
        "Requests, where a host that `connect` grants is not granted whole: any of `methods` on any of `paths`. A host that "
        "is named here is reached by HTTP only, and by no request that no entry allows; its TLS is read with certificates "
        "of the session's own.",
        '[{ host = "api.example.com", methods = ["GET"], paths = ["/v1"] }]',
        (
            _field(
                Shape.SCALAR,
                Kind.HTTP_HOST,
                "network.http",
                "host",
                "A host's name, or `*.example.com`.",
                '"api.example.com"',
                required=True,
            ),
            _field(
                Shape.LIST,
                Kind.METHOD,
                "network.http",
                "methods",
                "Methods; none for all.",
                '["GET", "HEAD"]',
            ),
            _field(
                Shape.LIST,
                Kind.HTTP_PATH,
                "network.http",
                "paths",
                "Paths, each with everything below it; none for all.",
                '["/v1/models"]',
            ),
        ),
        suggestible=True,
    ),
    _records(
        "",
        "credentials",
        Kind.CREDENTIAL,
        "Secrets that stay outside: programs see a placeholder, and the gateway puts the secret in, for this host only, over "
        "TLS only, after the rules have allowed the request. One of `header` and `query`.",
        '[{ host = "api.example.com", header = "Authorization: Bearer {}", from = "env:API_TOKEN" }]',
        (
            _field(
                Shape.SCALAR,
                Kind.HTTP_HOST,
                "credentials",
                "host",
                "The host's name.",
                '"api.example.com"',
                required=True,
            ),
            _field(
                Shape.SCALAR,
                Kind.HEADER,
                "credentials",
                "header",
                "`NAME`: the placeholder in it is replaced. `NAME: VALUE` with `{}` for the secret: the value that is sent, "
                "whatever the program said.",
                '"x-api-key"',
            ),
            _field(
                Shape.SCALAR,
                Kind.QUERY,
                "credentials",
                "query",
                "The query parameter in which the placeholder is replaced.",
                '"key"',
            ),
            _field(
                Shape.SCALAR,
                Kind.ORIGIN,
                "credentials",
                "from",
                "Where the secret is: `env:NAME`, `file:PATH`, `keyring:SERVICE/USER` or `command:COMMAND`.",
                '"env:API_TOKEN"',
                required=True,
            ),
            _field(
                Shape.SCALAR,
                Kind.ENVIRONMENT_NAME,
                "credentials",
                "variable",
                "The variable that holds the placeholder inside; that of `from` where it is `env:`.",
                '"API_TOKEN"',
            ),
        ),
        suggestible=False,
    ),
    _paths(
        "exec",
        "allow",
        "Programs that may be read and executed. The same authority as `filesystem.exec`.",
        '["/opt/tool/bin/tool"]',
    ),
    _key(
        "environment",
        "pass",
        Shape.LIST,
        Kind.ENVIRONMENT_NAME,
        "Variables passed with the caller's value.",
        '["EDITOR"]',
    ),
    _key("environment", "set", Shape.MAP, Kind.ENVIRONMENT_VALUE, "Variables set to a value.", '{ CI = "1" }'),
    _limit("memory", "Memory of all processes together.", '"4GiB"', _SIZE),
    _limit("pids", "Processes and threads at a time.", "512", "count"),
    _limit("cpu", "Processor time per wall-clock time.", '"1.5"', "CPUs"),
    _limit("cpu-time", "Processor time in all.", '"30m"', _TIME),
    _limit("time", "Wall-clock time.", '"1h"', _TIME),
    _limit("files", "Open files of one process.", "4096", "count"),
    _limit("file-size", "Size of one file that is written.", '"10GiB"', _SIZE),
    _limit("tmp", "Size of the private `/tmp`.", '"2GiB"', _SIZE),
    _limit("connections", "Connections out of the session at a time; 4096 where it is not named.", "100", "count"),
    _limit("connection-time", "Wall-clock time of one connection.", '"10m"', _TIME),
    _limit("traffic", "What all connections carry, both ways together.", '"1GiB"', _SIZE),
    _paths("ipc", "unix", "Unix sockets outside that programs inside may connect to.", '["{runtime}/bus"]'),
    _key(
        "syscalls",
        "allow",
        Shape.LIST,
        Kind.SYSCALL_GROUP,
        "Groups of system calls to allow.",
        '["perf"]',
        choices=SYSCALL_GROUPS,
    ),
    _key(
        "devices",
        "allow",
        Shape.LIST,
        Kind.DEVICE,
        "Device nodes to allow beside the floor's, named below `/dev`.",
        '["kvm", "dri/renderD128"]',
    ),
    _key(
        "audit",
        "level",
        Shape.SCALAR,
        Kind.CHOICE,
        "What is recorded: `writes`: denials, writes, programs and connections; `full`: reads as well; "
        "`off`: start and end only.",
        '"writes"',
        choices=("off", "writes", "full"),
        default="writes",
    ),
    _key(
        "audit",
        "on_full",
        Shape.SCALAR,
        Kind.CHOICE,
        "When the record cannot be written: `deny` the action that waits for it, or `stop` the session.",
        '"deny"',
        choices=("deny", "stop"),
        default="deny",
    ),
    _key(
        "enforcement",
        "degrade",
        Shape.LIST,
        Kind.CHOICE,
        "Layers that may be missing on this host. Everything else refuses to start.",
        '["limits"]',
        choices=DEGRADABLE,
        merge=Merge.DEGRADE,
    ),
    _key(
        "enforcement",
        "on_expiry",
        Shape.SCALAR,
        Kind.CHOICE,
        "What happens to a call of a session whose grant expires or is taken back while it runs, and to a command of `remit "
        "run` whose grant is revoked: `kill` it, or `freeze` it where it stands, to be looked at.",
        '"freeze"',
        choices=("kill", "freeze"),
        default="kill",
    ),
)
"""Every key, in the order in which people should read them."""

BY_DOTTED: dict[str, Key] = {key.dotted: key for key in KEYS}

PATH_PLACEHOLDERS = ("workspace", "home", "runtime")
"""Placeholders that a path may begin with."""

PLACEHOLDERS = {
    "workspace": "The directory the session works in (`-w`).",
    "home": "The user's home directory. `~/` is short for `{home}/`.",
    "runtime": "`$XDG_RUNTIME_DIR`. Where it is not set, entries that begin with it grant nothing.",
    "toolchains": (
        "What the user's `PATH` leads to (pyenv, nvm, rustup, virtual environments and the like): read and "
        "exec, never write. A whole entry."
    ),
    "package_index": (
        "The hosts that the user's own pip, npm and cargo are configured to use, looked up when a session is opened; "
        "`{package_index:pip}`, `{package_index:npm}`, `{package_index:cargo}` for one of them. A whole entry of "
        "`network.connect`."
    ),
}
"""Every placeholder, with its meaning."""


def keys_of(table: str) -> tuple[Key, ...]:
    """The keys of ``table`` in order."""
    return tuple(key for key in KEYS if key.table == table)
