"""The modules of a plain ``remit run`` in one file: a ``.pyc`` for forty sources at once.

Importing them one by one costs two milliseconds more, a tenth of a cold start. The bundle lies where Python keeps compiled
code, beside this module, and deserves the same trust: it is used only if its owner is root or the user, nobody else can
write it, and every source in it is still the one it was made from. Whoever may write there makes it, on a start that had
to do without; for everybody else the ordinary imports serve.
"""

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

    Entry = tuple[str, str, bool, int, int, CodeType]
    """(module name, source, whether it is a package, the source's mtime in ns and size, code)."""

_PREFIX = "remit.sandbox"
_DIRECTORY = __file__.rpartition("/")[0] + "/__pycache__"
_PATH = f"{_DIRECTORY}/run.{sys.implementation.cache_tag}.bundle"
_MAXIMUM = 1 << 23
_WRITABLE_BY_OTHERS = 0o022


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
        # The class of any specification; importing importlib.machinery for it costs what this module saves.
        spec: ModuleSpec = type(sys.__spec__)(name, self, origin=source, is_package=entry[2])  # type: ignore[arg-type]
        spec.has_location = True  # type: ignore[misc]
        if entry[2]:
            spec.submodule_search_locations = [source.rpartition("/")[0]]
        return spec

    def create_module(self, spec: "ModuleSpec") -> None:
        """The default module."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's code."""
        exec(self._entries[module.__name__][5], module.__dict__)


def use() -> bool:
    """Find the hot path's modules in the bundle from now on. False where there is none that can be trusted."""
    try:
        opened = posix.open(_PATH, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
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
    sys.meta_path.insert(0, Bundle(entries))  # type: ignore[arg-type]  # the protocol's own types are importlib's
    return True


def loaded() -> list[str]:
    """The modules that a bundle made now would hold, in the order in which they were imported."""
    return [name for name in sys.modules if name == _PREFIX or name.startswith(_PREFIX + ".")]


def write(names: list[str]) -> None:
    """Make the bundle of modules that are imported. Where that is not possible there is none, and no error."""
    entries: list[Entry] = []
    for name in names:
        module = sys.modules[name]
        spec = module.__spec__
        code = getattr(spec.loader, "get_code", None) if spec is not None else None
        source = module.__file__
        if code is None or source is None:
            return
        status = posix.stat(source)
        entries.append((name, source, hasattr(module, "__path__"), status.st_mtime_ns, status.st_size, code(name)))
    temporary = f"{_PATH}.{posix.getpid()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        opened = posix.open(temporary, flags, 0o644)
    except OSError:
        return
    try:
        data = marshal.dumps(entries)
        while data:
            data = data[posix.write(opened, data) :]
        posix.fchmod(opened, 0o644)
        posix.rename(temporary, _PATH)
    except OSError:
        posix.unlink(temporary)
    finally:
        posix.close(opened)
