"""The ground that a session stands on: namespaces entered, the new root built, the caller forgotten, privileges dropped.

What the one-shot's stage and a session's zygote share. Executes the part of a plan that is done once, and proves what it
did. Standard library only, everything imported before it restricts itself.
"""

from __future__ import annotations

import marshal
import posix
from _stat import S_IFREG  # stat would be a file to load
from errno import EAGAIN, ELOOP, EMFILE, ENFILE, ENOENT, ENOTDIR

from remit.sandbox.kernel import files, landlock, memory, mount, process, sockets
from remit.sandbox.launch import loopback, stdio
from remit.sandbox.launch.copies import Swapped
from remit.sandbox.launch.request import LARGEST
from remit.sandbox.launch.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from remit.sandbox.launch.hidden import Hidden
    from remit.sandbox.launch.request import Request
    from remit.sandbox.launch.wire import Operation

    Failure: TypeAlias = tuple[str, str, str, int]
    """(phase, message, hint, exit status)."""

SAFE = files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
NOT_HERE = (ENOENT, ENOTDIR)
HINT = "'remit doctor' says what this host lacks"
_CANARY = "canary"
_STREAMS = ("standard input", "standard output", "standard error")
_OPEN = files.O_PATH | posix.O_CLOEXEC
_NAMED = 200
"""Characters of a name that a message repeats."""
_MESSAGE = 1500
"""Of a whole message: with its hint and all that it comes with, less than any receiver's buffer."""


class Refused(Exception):
    """The start ended before the command: (phase, message, hint, exit status)."""


def clipped(text: str, limit: int = _NAMED) -> str:
    """Its beginning, where it is long. A name can be as long as all arguments of a program, a message cannot."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def told(error: BaseException) -> Failure:
    """What the launcher hears of an error: none of them looks like the command's own end."""
    phase, message, hint, status = _told(error)
    return (phase, clipped(message, _MESSAGE), clipped(hint, _MESSAGE // 3), status)


def _told(error: BaseException) -> Failure:
    if isinstance(error, Refused):
        phase, message, hint, status = error.args
        return (phase, message, hint, status)
    if isinstance(error, Swapped):
        return ("changed", f"{error.args[0]} was replaced while the session started", "start again", 125)
    if (isinstance(error, OSError) and error.errno == EAGAIN) or isinstance(error, RuntimeError):
        # A RuntimeError is a thread that could not be started (``_thread``).
        why = error.strerror if isinstance(error, OSError) else error
        return ("launch", f"no process could be started: {why}", "raise 'ulimit -u', or end what runs", 125)
    if isinstance(error, OSError) and error.errno in (EMFILE, ENFILE):
        return ("launch", f"no more descriptors: {error.strerror}", "raise 'ulimit -n', or run fewer at a time", 125)
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        # A name of the plan that is not there, or that a link is on the way of: the plan is older than the host's tree.
        phase = "changed" if error.filename and error.errno in (*NOT_HERE, ELOOP) else "launch"
        return (phase, f"{what}{error.strerror}", HINT, 125)
    return ("launch", f"internal error: {type(error).__name__}: {error}", "please report this", 125)


class Ground:
    """One session's first process, confining itself. Made and used in the child, once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.found: dict[str, Operation] = {op[0]: op for op in request.operations}
        self._own_network = "unshare" in self.found and "net" in self.found["unshare"][1]
        self.descriptors = [0, 1, 2]
        self.terminal = -1
        self._certificate: bytes | str = b""
        self._seen: tuple[str, bytes] = ("", b"")
        """The session's canary: a file of the host's, and what it begins with."""
        self.canary = -1
        """A file (O_PATH) that no Landlock domain of a command grants; -1 where the host's tree stays."""
        self.place = -1
        """The same for threads that no /proc shows: a directory (of a mount that is nowhere) with such a file in it."""
        self.rulesets: dict[str, int] = {}
        self.enforcement: dict[str, str] = {}
        self._root: Root | None = None
        self.hidden: Hidden | None = None
        """The secrets whose names are watched, once they are."""
        # Imported here, where Python's own directories can still be seen.
        if request.terminal is not None:
            __import__("termios")  # for ``stdio.open_terminal``
        if "egress" in self.found:
            from remit.sandbox.egress import inside

            self._open_way = inside.open_way
        if "certificates" in self.found:
            from remit.sandbox.launch import certificates

            self._added = certificates.added

    def enter(self) -> None:
        """Everything that needs capabilities: identity, the new root, a terminal."""
        request = self.request
        if not request.begun:
            process.die_with_parent()
            self._wait_for_launcher()
            if request.self_map and "unshare" in self.found:
                map_ids(request.uid, request.gid)
        process.set_name(b"remit-init")
        memory.forget_caller(request.stack_strings)
        posix.setsid()
        if "root" in self.found:
            self._enter_root()
        else:
            self._stay()
        if request.terminal is not None:
            self.terminal = stdio.open_terminal(request.control, request.terminal, self.descriptors)

    def _enter_root(self) -> None:
        request = self.request
        if not request.begun:
            self._see_canary()
            mount.make_private()
        root = self._root = Root()
        root.open_sources(request.operations, request.idmapped)
        if not request.begun:
            root.have_copies(None, request.operations)
        self.descriptors[:] = [stdio.harmless_stdin(), stdio.harmless_output(1), stdio.harmless_output(2)]
        self.bar(tuple(self.descriptors))
        # The host's objects were opened as the user who granted them; all else happens as the one who uses them.
        self._become_user()
        root.make_filesystems(request.operations)
        if request.begun:
            root.have_copies(self._copied(), request.operations)
        if "certificates" in self.found:
            if request.begun:
                self._wait_for_launcher()
            own = self._certified()
            root.certificates = lambda host: self._added(host, own)
        root.assemble(request.operations)
        if request.begun:
            # The host's tree is still there, below the new root.
            if "certificates" not in self.found:
                self._wait_for_launcher()
            self._see_canary()
        self.canary = root.hidden_file()
        if root.hidden is not None and root.hidden.device >= 0:
            self.hidden = root.hidden
        root.pivot(forbid_user_namespaces=bool(self.found["pivot"][1]))
        if self._own_network and self.found["unshare"][2]:
            loopback.up()
        if "egress" in self.found:
            self._open_way(self.found["egress"]).send(request.control)
        # It can be read now, by the very call that must fail later.
        posix.close(posix.open(f"/proc/self/fd/{self.canary}", posix.O_RDONLY | posix.O_CLOEXEC))

    def bar(self, descriptors: tuple[int, ...]) -> None:
        """Refuse standard descriptors that are a way to the host's files, or into its network, where the session's is another.

        A directory can be listed, and walked on from; the mode of what is in it can be changed, whatever Landlock says. A
        descriptor that only stands for something (O_PATH) is that something as soon as it is opened again. Raises Refused.
        """
        for name, descriptor in zip(_STREAMS, descriptors, strict=False):
            try:
                place = stdio.is_place(descriptor)
                leads = self._own_network and not place and sockets.leads_elsewhere(descriptor)
            except OSError:
                continue  # closed: whatever it becomes is made inside
            if place:
                raise Refused(
                    "launch",
                    f"{name} is a {place}, which the command could reach the host's files through",
                    "redirect it to a file or a pipe",
                    125,
                )
            if leads:
                raise Refused(
                    "launch",
                    f"{name} is a socket of the host's network, which the command could connect elsewhere",
                    "put a pipe between: cat | remit run ... | cat",
                    125,
                )

    def _wait_for_launcher(self) -> None:
        """Until it has set this process up, and made the record, which is the canary."""
        message: tuple[str, bytes, bytes | str] = self._heard()
        self._seen = message[:2]
        self._certificate = message[2]

    def _copied(self) -> dict[str, bytes] | None:
        """What the launcher has read of the files that the plan copies; None: nothing."""
        copied: dict[str, bytes] | None = self._heard()
        return copied

    def _heard(self) -> Any:
        """The launcher's next message."""
        data = posix.read(self.request.control, LARGEST)
        if not data:
            process.leave(125)  # the launcher is gone
        return marshal.loads(data)

    def _certified(self) -> bytes:
        """What the session's gateway made, if it had to make anything. Raises Refused where there is no gateway."""
        if isinstance(self._certificate, str):
            raise Refused("launch", f"the gateway is not there: {self._certificate}", "nothing was started", 125)
        return self._certificate

    def _see_canary(self) -> None:
        path, token = self._seen
        if files.read(path, len(token)) != token:
            raise Refused("launch", "the canary cannot be read before confinement", "", 125)

    def _stay(self) -> None:
        """Without namespaces (degraded by name): the host's tree stays, and Landlock alone stands before it."""
        process.adopt_orphans()
        self.bar(tuple(self.descriptors))
        self._become_user()

    def _become_user(self) -> None:
        request = self.request
        if not request.self_map:
            posix.setgroups([])
            posix.setresgid(request.gid, request.gid, request.gid)
            posix.setresuid(request.uid, request.uid, request.uid)
            process.die_with_parent()  # another user does not inherit that from itself (``prctl(2)``)

    def lock(self, capabilities: int) -> None:
        """No new privileges, no capability of this thread's but ``capabilities``, nobody may look into this process."""
        process.no_new_privileges()
        process.drop_bounding_set()
        process.set_capabilities(capabilities)
        process.set_dumpable(False)

    def make_rulesets(self) -> None:
        """The plan's Landlock domains as rulesets, about the very objects that are bound."""
        opened: dict[str, int] = {}
        trees = self._root.trees if self._root is not None else {}
        for operation in self.request.operations:
            if operation[0] != "landlock":
                continue
            _, domain, handled_fs, handled_net, scoped, rules, ports = operation
            ruleset = landlock.create_ruleset(handled_fs, handled_net, scoped)
            for path, access in rules:
                descriptor = trees.get(path, -1)
                if descriptor < 0:
                    descriptor = opened.get(path, -1)
                if descriptor < 0:
                    descriptor = opened[path] = open_inside(path)
                landlock.allow_path(ruleset, descriptor, access)
            for port, access in ports:
                landlock.allow_port(ruleset, port, access)
            self.rulesets[domain] = ruleset
        for descriptor in opened.values():
            posix.close(descriptor)
        self.close_root()

    def hide_place(self) -> None:
        """Make ``place``: to be called while this thread may still do everything."""
        quiet = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
        self.place = mount.new_filesystem(b"tmpfs", ((b"size", b"4096"),), quiet)
        posix.mknod(_CANARY, S_IFREG | 0o444, dir_fd=self.place)
        posix.close(posix.open(_CANARY, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=self.place))

    def close_root(self) -> None:
        """Give up the descriptors that the new root was built with."""
        if self._root is not None:
            self._root.close()
            self._root = None

    def prove(self, layers: tuple[str, ...] = ("namespaces", "landlock", "seccomp")) -> None:
        """Invariant 11: what could be read or called a moment ago must now be denied, layer by layer.

        Raises Refused where it is not.
        """
        degraded = self.request.degraded
        for layer in layers:
            if layer in degraded:
                self.enforcement[layer] = "degraded"
                continue
            try:
                self._probe(layer)
            except OSError as error:
                self.enforcement[layer] = f"canary: {error.strerror}"
            else:
                raise Refused(
                    "launch",
                    f"the canary of the layer '{layer}' was not denied: nothing was started",
                    "report this, with the output of 'remit doctor --json'",
                    125,
                )

    def _probe(self, layer: str) -> None:
        if layer == "seccomp":
            landlock.version()
        elif layer == "landlock" and self.place >= 0:
            posix.open(_CANARY, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=self.place)
        elif layer == "landlock" and self.canary >= 0:
            posix.open(f"/proc/self/fd/{self.canary}", posix.O_RDONLY | posix.O_CLOEXEC)
        else:
            files.read(self._seen[0], 1)


def map_ids(uid: int, gid: int) -> None:
    """In a new user namespace: this one user and group, the same inside and outside."""
    files.write("/proc/self/setgroups", b"deny")
    files.write("/proc/self/uid_map", b"%d %d 1" % (uid, uid))
    files.write("/proc/self/gid_map", b"%d %d 1" % (gid, gid))


def begin(uid: int, gid: int, missing: int) -> None:
    """In all new namespaces but ``missing`` (flags), which are made first: what every plan begins with that wants them all.

    Raises OSError, Refused.
    """
    process.die_with_parent()
    try:
        process.unshare(missing)
    except OSError as error:
        hint = "'remit doctor' says what refuses them and how to allow them"
        raise Refused("launch", f"no new namespaces: {error.strerror}", hint, 125) from None
    map_ids(uid, gid)
    mount.make_private()


def open_inside(path: str) -> int:
    """A descriptor (O_PATH) of a path of the new root, reached through no link. Raises OSError with the path."""
    try:
        return files.openat2(-100, path.encode(errors="surrogateescape"), _OPEN, 0, SAFE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
