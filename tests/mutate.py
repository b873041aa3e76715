"""Breaks each invariant on purpose, in a copy, and watches a test fail.

``python -m tests.mutate [NAME...]``, by hand: it is no part of the suite. The checkout is copied to a temporary directory
that everybody can read, with an installed ``remit`` of its own; each mutation is applied there alone, its tests are run,
and it is taken back. The same tests must pass without it. A mutation that no test notices is printed as SURVIVED, and the
exit status is 1.

Started as root, tests that are about an ordinary user run as ``REMIT_TEST_USER``: where only ownership denies, as it does
when root gives its command to somebody else, a broken layer would go unnoticed. What cannot be run is said, never passed.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TIMEOUT = 180.0
"""Seconds for one run of pytest."""
_PR_SET_CHILD_SUBREAPER = 36
_IGNORED = (".git", "__pycache__", "*.pyc", ".*_cache", ".hypothesis", ".venv", "dist", "build")
_HANG = ("tests/kernel/run_harness.py", "TIMEOUT = 60.0", "TIMEOUT = 15.0")
"""In the copy, always: a mutant that hangs need not hang for a minute."""

Edit = tuple[str, str, str]
"""(file, what stands there, what stands there instead)."""

ROOT, ORDINARY = "root", "ordinary"
START, STDIO, STATUS = "test_run_start.py", "test_run_stdio.py", "test_run_status.py"


@dataclass(frozen=True)
class Mutation:
    """One way to break an invariant, and the tests of which one must notice: files of ``tests/`` and a ``-k`` expression."""

    invariant: int
    name: str
    what: str
    edits: tuple[Edit, ...]
    file: str
    keyword: str
    user: str = ORDINARY


@dataclass(frozen=True)
class Run:
    """What pytest said: its exit status (-1: it did not end) and the tests that failed, with the first line of why."""

    status: int
    failed: tuple[tuple[str, str], ...]
    passed: int
    output: str


STAGE = "sandbox/launch/stage.py"
GROUND = "sandbox/launch/ground.py"
NO_PROOF: Edit = (STAGE, "            ground.prove()\n", "            pass\n")
NO_PDEATHSIG: Edit = (
    "sandbox/kernel/process.py",
    '    quick(NR["prctl"], _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)\n',
    "    pass\n",
)

MUTATIONS = (
    Mutation(
        1,
        "unknown-key",
        "an unknown key or table of a profile is no error",
        (
            (
                "profiles/parse.py",
                '        self._problem(path, shown, "unknown table"',
                '        _ = (path, shown, "unknown table"',
            ),
        ),
        START,
        "invariant_1_a_bad_profile",
    ),
    Mutation(
        1,
        "shared-profile",
        "a profile that others can write is used",
        (("profiles/find.py", "if status.st_mode & 0o022 and not (", "if status.st_mode & 0 and not ("),),
        START,
        "invariant_1_a_profile_that_somebody",
    ),
    Mutation(
        1,
        "poisoned-plan",
        "a cached plan is used whatever its digest",
        (
            (
                "sandbox/session/cache.py",
                "if blake2b(body, digest_size=_DIGEST_SIZE).digest() != digest:",
                "if not digest:",
            ),
        ),
        "test_record_and_cache.py",
        "flipped_byte",
    ),
    Mutation(
        2,
        "landlock-alone",
        "without namespaces, Landlock's rules all stand at / (and the start proves nothing)",
        ((GROUND, "opened[path] = open_inside(path)", 'opened[path] = open_inside("/")'), NO_PROOF),
        "test_run_confinement.py",
        "invariant_2_each_layer and namespaces",
    ),
    Mutation(
        2,
        "namespaces-alone",
        "without Landlock, the new root is built and never entered (and the start proves nothing)",
        (
            (GROUND, '        root.pivot(forbid_user_namespaces=bool(self.found["pivot"][1]))\n', ""),
            NO_PROOF,
        ),
        "test_run_confinement.py",
        "invariant_2_each_layer and landlock",
    ),
    Mutation(
        3,
        "suggestion",
        "a suggestion in the workspace is accepted unasked",
        (
            (
                "sandbox/session/assemble.py",
                "            if request.accept_suggestion:\n                profile = load.accept",
                "            if profile:\n                profile = load.accept",
            ),
        ),
        START,
        "invariant_3_a_suggestion",
    ),
    Mutation(
        3,
        "suggestion-plan",
        "a suggestion in the workspace is accepted unasked",
        (
            (
                "sandbox/session/assemble.py",
                "            if request.accept_suggestion:\n                profile = load.accept",
                "            if profile:\n                profile = load.accept",
            ),
        ),
        "test_cli_explain.py",
        "suggestion",
    ),
    Mutation(
        4,
        "deny-absent",
        "the mediator lets a denied name be",
        (
            (
                "sandbox/mediate/rules.py",
                "if kind == DENY:\n            return True",
                "if kind == DENY:\n            return False",
            ),
        ),
        "test_run_grants.py",
        "invariant_4_deny_holds_for_names",
    ),
    Mutation(
        4,
        "deny-rename",
        "the mediator does not ask what a rename carries away",
        (
            (
                "sandbox/mediate/rules.py",
                "        found = [\n            (literal[len(path)",
                "        return []\n        found = [\n            (literal[len(path)",
            ),
        ),
        "test_run_grants.py",
        "invariant_4_deny_holds_against",
    ),
    Mutation(
        5,
        "catalogue",
        "the catalogue of auto-executed files is empty",
        (
            (
                "sandbox/mediate/rules.py",
                "        for row in catalogue:\n",
                "        for row in ():\n",
            ),
        ),
        "test_run_work.py",
        "invariant_5",
    ),
    Mutation(
        5,
        "setuid",
        "the filter has no rows for setuid and setgid modes",
        (("sandbox/compile/syscalls.py", "for special in (S_ISUID, S_ISGID):", "for special in ():"),),
        "test_run_confinement.py",
        "invariant_5_setuid",
    ),
    Mutation(
        6,
        "own-files",
        "configuration, state and cache are ordinary directories",
        (("sandbox/session/assemble.py", "deny_paths_of_remit=secret", "deny_paths_of_remit=()"),),
        START,
        "invariant_6_remits_own_files or invariant_6_names",
    ),
    Mutation(
        6,
        "own-code",
        "the code that runs is an ordinary directory",
        (
            (
                "sandbox/session/assemble.py",
                "        own_code=code,\n        matches",
                "        own_code=(),\n        matches",
            ),
        ),
        START,
        "invariant_6_the_code",
        ROOT,
    ),
    Mutation(
        6,
        "not-isolated",
        "the interpreter is started without -I -S",
        (("cli/remit.sh", '"$python" -I -S -X utf8', '"$python" -X utf8'),),
        STDIO,
        "invariant_6_planted",
    ),
    Mutation(
        7,
        "stays-root",
        "started as root, the session stays root rather than become the workspace's owner",
        (
            (
                "sandbox/launch/identity.py",
                "return Identity(status.st_uid, _group_of(status.st_uid), self_map",
                "return Identity(0, 0, self_map",
            ),
        ),
        "test_run_root.py",
        "invariant_7_a_users_workspace",
        ROOT,
    ),
    Mutation(
        8,
        "memory",
        "the forked child keeps its copy of the caller's arguments and environment",
        ((GROUND, "        memory.forget_caller(request.stack_strings)\n", ""),),
        STDIO,
        "invariant_8_no_process_inside",
        ROOT,
    ),
    Mutation(
        8,
        "descriptors",
        "inherited descriptors stay open",
        (
            ("sandbox/launch/start.py", "        keep(request.control, *request.idmapped.values())\n", ""),
            ("sandbox/launch/early.py", "        keep(control, *descriptors)\n", ""),
        ),
        STDIO,
        "invariant_8_inherited",
    ),
    Mutation(
        8,
        "stdin",
        "a regular file as stdin is passed on as it is",
        (("sandbox/launch/stdio.py", "    if not S_ISREG(status.st_mode):\n", "    if status.st_mode:\n"),),
        STDIO,
        "invariant_8_a_regular_file",
    ),
    Mutation(
        9,
        "failed-as-exited",
        "a failure of Remit's is told as an end of the command's",
        (("sandbox/session/oneshot.py", '{"event": "failed", "phase"', '{"event": "exited", "phase"'),),
        STATUS,
        "invariant_9",
    ),
    Mutation(
        9,
        "status-lost",
        "why a command did not start does not reach the exit status",
        (
            (
                "sandbox/launch/start.py",
                "failure.phase, failure.exit_status = phase, status",
                "failure.phase, _ = phase, status",
            ),
        ),
        STATUS,
        "invariant_9",
    ),
    Mutation(
        10,
        "orphans-live",
        "nothing inside notices that the launcher died",
        (NO_PDEATHSIG, ("sandbox/launch/init.py", "        poll.register(self._control, select.POLLIN)\n", "")),
        "test_run_lifetime.py",
        "invariant_10_sigkill",
    ),
    Mutation(
        11,
        "no-proof",
        "the start proves nothing",
        (NO_PROOF,),
        START,
        "invariant_11",
    ),
    Mutation(
        11,
        "landlock-off",
        "the Landlock domains are made and never entered",
        (
            (STAGE, '            landlock.restrict_self(ground.rulesets["session"])\n', "            pass\n"),
            (STAGE, '            landlock.restrict_self(ground.rulesets["command"])\n', "            pass\n"),
        ),
        START,
        "invariant_11",
    ),
    Mutation(
        12,
        "unlogged",
        "denials are not written to the log",
        (("sandbox/session/oneshot.py", "            record.actions(actions)\n", "            del actions\n"),),
        START,
        "invariant_12",
    ),
    Mutation(
        12,
        "unheard",
        "the mediator tells nobody what it denied",
        (
            (
                "sandbox/mediate/observe.py",
                "        if self.level != OFF:\n            self._tell(source, pid, nr, path, right, DENIED,",
                "        if self.level == OFF:\n            self._tell(source, pid, nr, path, right, DENIED,",
            ),
        ),
        START,
        "invariant_12",
    ),
)


class Copy:
    """A copy of the checkout with an installation of its own, in ``base``."""

    def __init__(self, base: Path) -> None:
        self.tree, self.prefix = base / "checkout", base / "prefix"
        shutil.copytree(CHECKOUT, self.tree, symlinks=True, ignore=shutil.ignore_patterns(*_IGNORED))
        self.apply((_HANG,))

    def apply(self, edits: Sequence[Edit]) -> dict[Path, str]:
        """Make the edits; returns what the files held.

        Raises:
            ValueError: a text to replace is not there any more; SyntaxError: what stands there instead is no Python.
        """
        before: dict[Path, str] = {}
        for name, old, new in edits:
            path = self.tree / name
            text = path.read_text()
            if old not in text:
                raise ValueError(f"{name} has no {old!r}: the mutation is out of date")
            before.setdefault(path, text)
            text = text.replace(old, new)
            if path.suffix == ".py":
                compile(text, name, "exec")  # a mutant that is no Python breaks everything and shows nothing
            path.write_text(text)
        return before

    def install(self) -> None:
        """The ``remit`` command of the copy as it is now, with nothing kept of an earlier one: no bytecode, no bundle."""
        shutil.rmtree(self.prefix, ignore_errors=True)
        for directory in list(self.tree.rglob("__pycache__")):
            shutil.rmtree(directory)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = self.prefix / "lib" / version / "site-packages"
        packages.mkdir(parents=True)
        (self.prefix / "bin").mkdir()
        interpreter = Path(os.path.realpath(sys.executable))
        (self.prefix / "bin/python3").symlink_to(interpreter)
        (self.prefix / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n")
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(("remit", "_remit", "_editable")):
                (packages / path.name).symlink_to(path)
        (packages / "_remit.pth").write_text(f"{self.tree / 'src'}\n")
        shutil.copy(self.tree / "cli/remit.sh", self.prefix / "bin/remit")
        (self.prefix / "bin/remit").chmod(0o755)

    def test(self, mutation: Mutation, user: str) -> Run:
        """Run a mutation's tests, as ``user`` if one is named, and end whatever they leave behind."""
        self.install()
        place = "unit" if (self.tree / "tests/unit" / mutation.file).exists() else "kernel"
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
        argv += [f"tests/{place}/{mutation.file}", "-k", mutation.keyword]
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": pwd.getpwnam(user).pw_dir if user else os.path.expanduser("~"),
            "LANG": "C.UTF-8",
            "COLUMNS": "250",
            "PYTHONDONTWRITEBYTECODE": "1",
            "REMIT_COMMAND": str(self.prefix / "bin/remit"),
        }
        if user:
            argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *argv]
        try:
            done = subprocess.run(
                argv, cwd=self.tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return Run(-1, (), 0, "did not end")
        finally:
            end_children()
        failed = re.findall(r"^FAILED \S+?::(\w+(?:\[.*?\])?)(?: - (.*))?$", done.stdout, re.MULTILINE)
        passed = re.search(r"(\d+) passed", done.stdout)
        return Run(done.returncode, tuple(failed), int(passed[1]) if passed else 0, done.stdout + done.stderr)


def end_children() -> None:
    """End every process that the tests left: orphans are this process's, which is their subreaper."""
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children:
            return
        for child in children:
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)


def judged(copy: Copy, mutation: Mutation, sound: dict[tuple[str, str, str], Run]) -> tuple[str, str]:
    """(tests that failed, result) of one mutation. ``sound`` keeps the runs without any mutation."""
    user = ""
    if os.geteuid() == 0 and mutation.user == ORDINARY:
        user = os.environ.get("REMIT_TEST_USER", "")
        if not user:
            return "", "not run: REMIT_TEST_USER names nobody"
    elif os.geteuid() != 0 and mutation.user == ROOT:
        return "", "not run: for root only"
    selection = (mutation.file, mutation.keyword, user)
    if selection not in sound:
        sound[selection] = copy.test(mutation, user)
    if sound[selection].status != 0 or not sound[selection].passed:
        print(sound[selection].output, file=sys.stderr)
        return "", "not run: its tests do not pass without it"
    before = copy.apply(mutation.edits)
    try:
        run = copy.test(mutation, user)
    finally:
        for path, text in before.items():
            path.write_text(text)
    for name, why in run.failed:
        print(f"  {name}: {why}", file=sys.stderr)
    if run.status == 1 and run.failed:
        return ", ".join(f"`{name}`" for name, _ in run.failed), "noticed"
    if run.status == 0:
        return "", "**SURVIVED**"
    print(run.output, file=sys.stderr)
    return "", "not run: pytest did not say"


def main(names: Sequence[str]) -> int:
    """Run the mutations of these names, or all. 1: one survived or could not be run; 2: no such name."""
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        print(f"no such mutation: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    results: list[str] = []
    sound: dict[tuple[str, str, str], Run] = {}
    # Everybody may read it, whatever the caller's umask: some tests run as another user.
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="remit-mutate-", ignore_cleanup_errors=True) as base:
        os.chmod(base, 0o755)
        copy = Copy(Path(base))
        print("| invariant | name | what was broken | test that failed | result |\n|---|---|---|---|---|", flush=True)
        for mutation in MUTATIONS:
            if names and mutation.name not in names:
                continue
            failed, result = judged(copy, mutation, sound)
            results.append(result)
            print(f"| {mutation.invariant} | {mutation.name} | {mutation.what} | {failed} | {result} |", flush=True)
    return 0 if all(result == "noticed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
