"""The command's front door: ``remit run`` with plain options goes straight to the session; all else goes to click.

click alone costs more than a whole confined start, so this module imports nothing but the option table, and leaves by
``_exit``: finalising the interpreter costs as much as building the sandbox.
"""

import gc
import marshal
import posix
import sys

from remit.cli import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Entry = tuple[str, str, bool, int, int, bytes]
    """(module name, source, whether it is a package, the source's mtime in ns and size, marshalled code)."""

BUNDLE = f"{__file__.rpartition('/')[0]}/__pycache__/run.{sys.implementation.cache_tag}.bundle"
"""The hot path's modules in one file (``remit.cli.bundle`` makes it)."""

_SPECIFICATION: "Any" = getattr(sys.__spec__, "__class__")  # noqa: B009  # importing importlib.machinery for the class costs what a bundle saves
_MAXIMUM = 1 << 23
_WRITABLE_BY_OTHERS = 0o022


def parse(argv: list[str]) -> options.Invocation | None:
    """Parse the words after ``remit run``. ``None``: anything unusual (``--help``, any error), which click explains."""
    invocation, errors = options.parse("run", argv)
    return None if errors else invocation


def main(argv: list[str]) -> None:
    """Run the ``remit`` command with the words after its name, and end the process with its exit status."""
    status = 125
    try:
        invocation = parse(argv[1:]) if argv[:1] == ["run"] else None
        if invocation is not None:
            status = start(invocation)
        else:
            libraries()
            from remit.cli.main import run

            status = run(argv)
    except BaseException as error:
        from remit.cli import fail

        status = fail.report(error)
    _leave(status)


def use_bundle() -> bool:
    """Find the hot path's modules in the bundle from now on. False where there is none that can be trusted."""
    if b"REMIT_DEBUG" in posix.environ:
        return False
    try:
        opened = posix.open(BUNDLE, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = posix.fstat(opened)
        if status.st_uid not in (0, posix.geteuid()) or status.st_mode & _WRITABLE_BY_OTHERS:
            return False
        entries: list[Entry] = marshal.loads(posix.read(opened, _MAXIMUM))
        for _, source, _, modified, size, _ in entries:
            status = posix.stat(source)
            if status.st_mtime_ns != modified or status.st_size != size:
                return False
    except (OSError, ValueError, EOFError, TypeError):
        return False
    finally:
        posix.close(opened)
    sys.meta_path.insert(0, Bundle(entries))
    return True


class Bundle:
    """A finder and loader (``importlib.abc``) of the modules in a bundle."""

    def __init__(self, entries: "list[Entry]") -> None:
        self._entries = {entry[0]: entry for entry in entries}

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """The specification of a module in the bundle, or None: then the next finder is asked."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        source = entry[1]
        spec: ModuleSpec = _SPECIFICATION(name, self, origin=source, is_package=entry[2])
        spec.has_location = True
        if entry[2]:
            spec.submodule_search_locations = [source.rpartition("/")[0]]
        return spec

    def create_module(self, spec: "ModuleSpec") -> None:
        """The default module."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's code."""
        exec(marshal.loads(self._entries[module.__name__][5]), module.__dict__)


def start(invocation: options.Invocation) -> int:
    """Hand a parsed ``remit run`` to the session. The one place where the CLI enters it."""
    # Nothing of the launcher's makes cycles, and a collection touches every page that the fork would share.
    gc.disable()
    bundled = use_bundle()
    from remit.sandbox.session import oneshot

    if bundled:
        return oneshot.run(invocation, libraries)
    from remit.cli import bundle

    names = bundle.loaded()
    try:
        return oneshot.run(invocation, libraries)
    finally:
        bundle.write(names)


def libraries() -> None:
    """Make third-party packages importable: wanted where click is, and where a plan has to be compiled."""
    from remit.cli import boot

    boot.dependencies()


def _leave(status: int) -> None:
    """Flush and leave at once. What cannot be written (a closed pipe) is not a failure of the command's."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass
    posix._exit(status)  # pyright: ignore[reportPrivateUsage]  # os would be an import
