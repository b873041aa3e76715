"""The in-child stage: PID 1 of the session. It executes a plan, starts the command, mediates, reaps, and ends with it.

Forked (``clone3``) from a launcher that holds nothing of the caller but its environment, which the stage wipes before
anything else. Standard library only, everything imported before it restricts itself. The order is the proof:

1. file system (``root``), identity, no_new_privs, capabilities but CAP_SYS_PTRACE of the session's own user namespace;
2. Landlock domain *session* on the main thread, which becomes the mediator and never runs anything else's code;
3. a second thread nests itself in the domain *command*, drops the last capability, loads the filter, proves with canaries
   that each layer holds, and spawns the command, which inherits all of it.

The mediator is in an ancestor of the command's Landlock domain: Landlock lets it look into the command, never the
reverse.
"""

from __future__ import annotations

import _thread
import marshal
import posix
from errno import EACCES, ENOENT, ENOEXEC, ENOTDIR

from remit.sandbox.audit.record import CANARY_SIZE
from remit.sandbox.kernel import files, landlock, memory, mount, notify, process
from remit.sandbox.launch import loopback, stdio
from remit.sandbox.launch.init import Init
from remit.sandbox.launch.root import Root, Swapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.launch.request import Request
    from remit.sandbox.launch.wire import Operation

_SAFE = files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
_NOT_HERE = (ENOENT, ENOTDIR)


class Refused(Exception):
    """The start ended before the command: (phase, message, hint, exit status)."""


class Stage:
    """One session's PID 1, until the command runs. Made and run in the child, once."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._found: dict[str, Operation] = {op[0]: op for op in request.operations}
        self._descriptors = [0, 1, 2]
        self._terminal = -1
        self._canary = -1
        self._rulesets: dict[str, int] = {}
        self._root: Root | None = None
        self._enforcement: dict[str, str] = {}

    def run(self) -> None:
        """Ends the process. Every failure before the command is told to the launcher; none looks like the command's."""
        try:
            self._confine()
            init = Init(self._request, self._descriptors, self._terminal, self._found)
            _thread.start_new_thread(self._start_command, (init,))
            init.loop()
        except Refused as refusal:
            self._fail(*refusal.args)
        except Swapped as swapped:
            self._fail("changed", f"{swapped.args[0]} was replaced while the session started", "start again", 125)
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            # A name of the plan that is not there: the plan is older than the host's tree.
            phase = "changed" if error.filename and error.errno in _NOT_HERE else "launch"
            self._fail(phase, f"{what}{error.strerror}", "'remit doctor' says what this host lacks", 125)
        except Exception as error:  # a bug of ours must not look like the command's own end
            self._fail("launch", f"internal error: {type(error).__name__}: {error}", "please report this", 125)

    def _fail(self, phase: str, message: str, hint: str, status: int) -> None:
        posix.write(self._request.control, marshal.dumps(("failed", phase, message, hint, status)))

    # --- the main thread -------------------------------------------------------------------------------------------

    def _confine(self) -> None:
        request = self._request
        process.die_with_parent()
        if posix.read(request.control, 64) != b"go":
            process.leave(125)  # the launcher is gone
        process.set_name(b"remit-init")
        if request.self_map and "unshare" in self._found:
            files.write("/proc/self/setgroups", b"deny")
            files.write("/proc/self/uid_map", b"%d %d 1" % (request.uid, request.uid))
            files.write("/proc/self/gid_map", b"%d %d 1" % (request.gid, request.gid))
        memory.forget_caller(request.stack_strings)
        posix.setsid()
        if "root" in self._found:
            self._enter_root()
        else:
            self._stay()
        if request.terminal is not None:
            self._terminal = stdio.open_terminal(request.control, request.terminal, self._descriptors)
        process.no_new_privileges()
        process.drop_bounding_set()
        process.set_capabilities(1 << process.CAP_SYS_PTRACE if "unshare" in self._found else 0)
        process.set_dumpable(False)
        if "landlock" in self._found:
            self._restrict_main()
        elif self._root is not None:
            self._root.close()

    def _enter_root(self) -> None:
        request = self._request
        path, token = request.canary
        if files.read(path, CANARY_SIZE) != token:
            raise Refused("launch", "the canary cannot be read before confinement", "", 125)
        mount.make_private()
        root = self._root = Root()
        root.open_sources(request.operations, request.idmapped)
        self._descriptors[0] = stdio.harmless_stdin()
        # The host's objects were opened as the user who granted them; all else happens as the one who uses them.
        self._become_user()
        root.make_filesystems(request.operations)
        root.assemble(request.operations)
        self._canary = root.hidden_file()
        root.pivot(forbid_user_namespaces=bool(self._found["pivot"][1]))
        if "net" in self._found["unshare"][1]:
            loopback.up()
        if "egress" in self._found:
            from remit.sandbox.egress import inside

            inside.open_way(self._found["egress"], request.control)
        # It can be read now, by the very call that must fail later.
        posix.close(posix.open(f"/proc/self/fd/{self._canary}", posix.O_RDONLY | posix.O_CLOEXEC))

    def _stay(self) -> None:
        """Without namespaces (degraded by name): the host's tree stays, and Landlock alone stands before it."""
        process.adopt_orphans()
        self._become_user()

    def _become_user(self) -> None:
        request = self._request
        if not request.self_map:
            posix.setgroups([])
            posix.setresgid(request.gid, request.gid, request.gid)
            posix.setresuid(request.uid, request.uid, request.uid)

    def _restrict_main(self) -> None:
        domains = [op for op in self._request.operations if op[0] == "landlock"]
        opened: dict[str, int] = {}
        trees = self._root.trees if self._root is not None else {}
        for _, domain, handled_fs, handled_net, scoped, rules, ports in domains:
            ruleset = landlock.create_ruleset(handled_fs, handled_net, scoped)
            for path, access in rules:
                descriptor = trees.get(path, -1)
                if descriptor < 0:
                    descriptor = opened.get(path, -1)
                if descriptor < 0:
                    descriptor = opened[path] = _open_inside(path)
                landlock.allow_path(ruleset, descriptor, access)
            for port, access in ports:
                landlock.allow_port(ruleset, port, access)
            self._rulesets[domain] = ruleset
        for descriptor in opened.values():
            posix.close(descriptor)
        if self._root is not None:
            self._root.close()
        landlock.restrict_self(self._rulesets["session"])

    # --- the command's thread ----------------------------------------------------------------------------------------

    def _start_command(self, init: Init) -> None:
        try:
            self._confine_thread(init)
            self._prove()
            init.enforced(self._enforcement)
            init.command_started(self._spawn())
        except Refused as refusal:
            init.command_failed(refusal.args)
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            init.command_failed(("launch", f"{what}{error.strerror}", "'remit doctor' says what this host lacks", 125))
        except Exception as error:
            init.command_failed(
                ("launch", f"internal error: {type(error).__name__}: {error}", "please report this", 125)
            )

    def _confine_thread(self, init: Init) -> None:
        # Its own working directory and umask: the mediator changes the main thread's.
        process.unshare(process.CLONE_FS)
        try:
            posix.chdir(self._request.directory)
        except OSError as error:
            directory = self._request.directory.decode(errors="replace")
            raise Refused(
                "launch",
                f"the working directory {directory} is not visible inside: {error.strerror}",
                "grant it (--read), or choose another with --chdir",
                125,
            ) from None
        if "command" in self._rulesets:
            landlock.restrict_self(self._rulesets["command"])
        process.set_capabilities(0)
        if "seccomp" in self._found:
            _, program, notifies = self._found["seccomp"]
            listener = notify.load_filter(program, listener=bool(notifies))
            if notifies:
                init.listen(listener)

    def _prove(self) -> None:
        """Invariant 11: what could be read or called a moment ago must now be denied, layer by layer."""
        degraded = self._request.degraded
        probes = (
            ("namespaces", lambda: files.read(self._request.canary[0], CANARY_SIZE)),
            ("landlock", self._read_behind_landlock),
            ("seccomp", landlock.version),
        )
        for layer, probe in probes:
            if layer in degraded:
                self._enforcement[layer] = "degraded"
                continue
            try:
                probe()
            except OSError as error:
                self._enforcement[layer] = f"canary: {error.strerror}"
            else:
                raise Refused(
                    "launch",
                    f"the canary of the layer '{layer}' was not denied: nothing was started",
                    "report this, with the output of 'remit doctor --json'",
                    125,
                )
        if self._canary >= 0:
            posix.close(self._canary)

    def _read_behind_landlock(self) -> None:
        if self._canary >= 0:
            posix.open(f"/proc/self/fd/{self._canary}", posix.O_RDONLY | posix.O_CLOEXEC)
        else:
            files.read(self._request.canary[0], CANARY_SIZE)

    def _spawn(self) -> int:
        request = self._request
        problem: OSError | None = None
        for candidate in _candidates(request.argv[0], request.environment):
            try:
                return self._spawn_one(candidate, request.argv)
            except OSError as error:
                if error.errno == ENOEXEC:
                    # As execvp(3) does: a file without a format is a shell script.
                    return self._spawn_one(b"/bin/sh", [b"sh", candidate, *request.argv[1:]])
                if error.errno not in _NOT_HERE:
                    problem = error
        name = request.argv[0].decode(errors="replace")
        if problem is None:
            raise Refused("exec", f"{name}: not found", "", 127)
        if problem.errno == EACCES:
            raise Refused("exec", f"{name}: not executable, or execution is not granted", f"--exec {name}", 126)
        raise Refused("exec", f"{name}: {problem.strerror}", "", 126)

    def _spawn_one(self, program: bytes, argv: list[bytes]) -> int:
        return process.spawn(
            program,
            argv,
            self._request.environment,
            directory=self._request.directory,
            descriptors=tuple(self._descriptors),
            new_group=True,
            foreground=self._terminal,
        )


_OPEN = files.O_PATH | posix.O_CLOEXEC


def _open_inside(path: str) -> int:
    try:
        return files.openat2(-100, path.encode(errors="surrogateescape"), _OPEN, 0, _SAFE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _candidates(name: bytes, environment: list[bytes]) -> list[bytes]:
    """Where execvp(3) would look for a program, without what is not there."""
    if b"/" in name:
        return [name]
    path = next((v[5:] for v in environment if v.startswith(b"PATH=")), b"/usr/bin:/bin")
    found: list[bytes] = []
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + name
        try:
            posix.stat(candidate)
        except OSError:
            continue
        found.append(candidate)
    return found
