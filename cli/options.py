"""The one table of options. It drives the click commands (help, errors, completion) and the parser of the hot path.

Importing this must cost next to nothing (it is on the cold path of ``remit run``), so there is one class with slots
and tuples of it: no dataclasses, no enum, no ``typing``, no ``re``; not even ``from __future__``, which is a module too.
"""


class Option:
    """One option: its long name, its letter or "", its metavar ("" for a flag), and the commands that take it."""

    __slots__ = ("commands", "help", "metavar", "name", "repeatable", "short")

    def __init__(
        self, name: str, short: str, metavar: str, repeatable: bool, commands: tuple[str, ...], help: str
    ) -> None:
        self.name = name
        self.short = short
        self.metavar = metavar
        self.repeatable = repeatable
        self.commands = commands
        self.help = help


_START = ("run", "explain", "session start")
_CALL = (*_START, "exec")
_GIVE = (*_CALL, "grant new")

SESSION: tuple[Option, ...] = (
    Option("profile", "p", "PROFILE", False, _START, "Profile: a name, or the path of a TOML file.  [default: coding]"),
    Option(
        "workspace",
        "w",
        "DIR",
        False,
        (*_START, "grant new"),
        "The directory worked on.  [default: the current directory]",
    ),
    Option("chdir", "", "DIR", False, _CALL, "Where the command starts.  [default: the workspace]"),
    Option("accept-suggestion", "", "", False, _START, "Apply the grants that the workspace's remit.toml suggests."),
    Option("status-fd", "", "N", False, ("run", "exec"), "Write JSON lines about the run to descriptor N."),
    Option(
        "denials",
        "",
        "text|json",
        False,
        ("run", "exec"),
        "When CMD has ended, say on stderr what was denied, as a model should read it; json: to --status-fd if given.",
    ),
)

_LIMITS = "memory, pids, cpu, cpu-time, time, files, file-size, tmp, connections, connection-time or traffic."
_CALL_LIMITS = "memory, pids, cpu-time, time, files or file-size: a session's call has no others of its own."

GRANT: tuple[Option, ...] = (
    Option("read", "", "PATH", True, _GIVE, "Let it read PATH: a file, or a directory with all below it."),
    Option(
        "write",
        "",
        "PATH",
        True,
        _GIVE,
        "Let it read and write PATH. A file is granted as it is now, not by its name.",
    ),
    Option("exec", "", "PATH", True, _GIVE, "Let it read and execute PATH."),
    Option("deny", "", "PATH", True, _GIVE, "No access at all to PATH, there yet or not. Wins over every grant."),
    Option("protect", "", "PATH", True, _GIVE, "PATH stays readable and is never written, even below a write grant."),
    Option(
        "connect", "", "HOST:PORT[/tcp|udp]", True, _GIVE, "Let it connect. HOST: a name, *.example.com, or a CIDR."
    ),
    Option("listen", "", "PORT", True, _GIVE, "Let it listen on PORT, inside the session."),
    Option(
        "publish",
        "",
        "[ADDRESS:]PORT:INNER",
        True,
        _START,
        "Make PORT of this host lead to INNER inside.  [ADDRESS: 127.0.0.1]",
    ),
    Option("unix", "", "PATH", True, _GIVE, "Let it connect to the Unix socket PATH."),
    Option("env", "", "NAME[=VALUE]", True, _GIVE, "Pass the caller's variable NAME, or set it to VALUE."),
    Option("limit", "", "NAME=VALUE", True, _GIVE, _LIMITS),
    Option(
        "allow-syscalls", "", "GROUP", True, _GIVE, "Let it use a group of system calls that is refused by default."
    ),
    Option("expires", "", "DURATION", False, _GIVE, "The grant ends after DURATION (90s, 15m, 2h)."),
    Option("purpose", "", "TEXT", False, _GIVE, "What the grant is for; kept in the record."),
    Option("grant", "", "FILE", True, _CALL, "Add the signed grant in FILE (remit grant new makes one)."),
    Option("degrade", "", "NAME", True, _START, "Run although layer NAME cannot be enforced here."),
)

EXPLAIN: tuple[Option, ...] = (
    Option("plan", "", "", False, ("explain",), "Also print the ordered kernel operations."),
)

_NEW = ("grant new",)

PROVENANCE: tuple[Option, ...] = (
    Option(
        "profile", "p", "PROFILE", False, _NEW, "Also grant what PROFILE grants, with its denials.  [default: none]"
    ),
    Option(
        "principal", "", "TEXT", False, _NEW, "Whom it is given to: uid:N, key:HEX or a name.  [default: uid:yours]"
    ),
    Option("task", "", "TEXT", False, _NEW, "The task that it is for, such as a ticket's number."),
    Option("uses", "", "N", False, _NEW, "It can be used N times, by whomever.  [default: any number]"),
    Option("not-before", "", "TIME", False, _NEW, "It begins at TIME: 2030-01-31T12:00Z, or Unix seconds."),
    Option("session", "", "ID", False, _NEW, "It is of use in that session only."),
    Option("from", "", "FILE", False, _NEW, "Take it out of the grant in FILE: narrower, or refused."),
    Option("output", "o", "FILE", False, _NEW, "Write it to FILE, which must not be there yet."),
)

JSON = Option("json", "", "", False, ("explain", "doctor", "profile", "session start", "grant new"), "Print JSON.")

TABLE: tuple[Option, ...] = (*SESSION, *GRANT, *EXPLAIN, *PROVENANCE, JSON)

GRANT_NAMES = tuple([option.name for option in GRANT])

DEFAULT_PROFILE = "coding"


def taken(command: str) -> list[Option]:
    """The options that ``command`` takes, in the order that help shows them."""
    return [option for option in TABLE if command in option.commands]


def help_of(option: Option, command: str) -> str:
    """What ``command``'s help says of ``option``."""
    return _CALL_LIMITS if (option.name, command) == ("limit", "exec") else option.help


class Invocation:
    """What was asked on the command line, as written: nothing is resolved, checked or defaulted yet.

    ``profile``, ``workspace`` and ``chdir`` are ``""`` when not given; ``status_fd`` is -1. ``grants`` holds the grant
    options as (option name, value), in the table's order and, for one option, in the order given; ``command`` is CMD
    with its arguments. ``denials`` is ``text``, ``json`` or ``""``.
    """

    __slots__ = (
        "accept_suggestion",
        "chdir",
        "command",
        "denials",
        "grants",
        "json",
        "plan",
        "profile",
        "status_fd",
        "verb",
        "workspace",
    )

    def __init__(
        self,
        verb: str = "run",
        command: tuple[str, ...] = (),
        profile: str = "",
        workspace: str = "",
        chdir: str = "",
        grants: tuple[tuple[str, str], ...] = (),
        status_fd: int = -1,
        accept_suggestion: bool = False,
        json: bool = False,
        plan: bool = False,
        denials: str = "",
    ) -> None:
        self.verb = verb
        self.command = command
        self.profile = profile
        self.workspace = workspace
        self.chdir = chdir
        self.grants = grants
        self.status_fd = status_fd
        self.accept_suggestion = accept_suggestion
        self.json = json
        self.plan = plan
        self.denials = denials

    def key(self) -> tuple[object, ...]:
        """Everything that the compiled plan can depend on, as plain values (``marshal``, hashing, comparison)."""
        return (self.profile, self.workspace, self.chdir, self.grants, self.accept_suggestion)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Invocation):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.verb, self.command, self.key()))

    def __repr__(self) -> str:
        return "Invocation(" + ", ".join([f"{name}={getattr(self, name)!r}" for name in self.__slots__]) + ")"


def parse(verb: str, argv: list[str]) -> tuple[Invocation, list[str]]:
    """Parse what follows ``verb``. Never raises: the second value is every error found, each one line.

    The first word that is no option starts CMD, and everything after it belongs to CMD; ``--`` ends the options. A
    separate value may not begin with a dash (``--read --write x`` is a forgotten value far more often than a path
    named ``--write``); ``--read=--write`` says it plainly. The last one wins where an option is not repeatable.
    """
    table = {option.name: option for option in taken(verb)}
    shorts = {option.short: option for option in table.values() if option.short}
    given: dict[str, str] = {}
    flags: set[str] = set()
    grants: dict[str, list[str]] = {}
    errors: list[str] = []
    index, end = 0, len(argv)
    while index < end:
        word = argv[index]
        if word == "--":
            index += 1
            break
        if word == "-" or not word.startswith("-"):
            break
        index += 1
        attached = False
        value = ""
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            attached = bool(equals)
            option = table.get(name)
        else:
            option = shorts.get(word[1])
            value = word[2:]
            attached = bool(value)
        if option is None:
            errors.append(f"no such option: {word.partition('=')[0]}")
            continue
        shown = "--" + option.name
        if not option.metavar:
            if attached:
                errors.append(f"{shown} takes no value")
            else:
                flags.add(option.name)
            continue
        if not attached:
            if index >= end or (argv[index].startswith("-") and argv[index] != "-"):
                errors.append(f"{shown} needs a value: {shown} {option.metavar}")
                continue
            value = argv[index]
            index += 1
        if value == "":
            errors.append(f"{shown} needs a value, not an empty one")
        elif option.repeatable:
            grants.setdefault(option.name, []).append(value)
        elif option.name in GRANT_NAMES:
            grants[option.name] = [value]
        else:
            given[option.name] = value
    status = given.get("status-fd", "-1")
    if "status-fd" in given and not (status.isascii() and status.isdigit() and len(status) < 8):
        errors.append(f"--status-fd needs the number of an open descriptor, not {status!r}")
        status = "-1"
    denials = given.get("denials", "")
    if denials not in ("", "text", "json"):
        errors.append(f"--denials takes text or json, not {denials!r}")
    command = tuple(argv[index:])
    if verb in ("run", "exec") and not command:
        errors.append("nothing to run: give a command after the options")
    if verb == "session start" and command:
        errors.append(f"a session starts without a command: {command[0]!r}; remit exec SESSION -- CMD runs one in it")
    if verb == "grant new" and command:
        errors.append(f"unexpected argument: {command[0]}")
    invocation = Invocation(
        verb,
        command,
        given.get("profile", ""),
        given.get("workspace", ""),
        given.get("chdir", ""),
        tuple([(name, value) for name in GRANT_NAMES if name in grants for value in grants[name]]),
        int(status),
        "accept-suggestion" in flags,
        "json" in flags,
        "plan" in flags,
        denials,
    )
    return invocation, errors
