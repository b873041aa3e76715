"""Loading the bundle: the modules of a plain ``remit run``, from one file (``remit.cli.bundle`` makes it).

A bundle lies where Python keeps compiled code and deserves the same trust: it is used only if its owner is root or the
user, nobody else can write it, and every source in it is still the one it was made from. What it holds is complete and in
the order of its imports, so no finder is asked for anything, which is most of what importing costs.

The code of this module is in the bundle too: the stub (``remit.sh``) checks the file's owner and mode as ``read`` does, and
runs ``install`` from it before a single module has been imported.
"""

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    Entry = tuple[str, str, bool, int, int, CodeType]
    """(module name, source, whether it is a package, the source's mtime in ns and size, its code)."""
    Content = tuple[str, tuple[Entry, ...]]
    """(the file of Python's ``_ctypes``, the modules in the order of their imports)."""

_WRITABLE_BY_OTHERS = 0o022


def read(path: str) -> "Content | None":
    """The content of the bundle at ``path``; none where it is not there or not to be trusted."""
    try:
        opened = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = posix.fstat(opened)
        if status.st_uid not in (0, posix.geteuid()) or status.st_mode & _WRITABLE_BY_OTHERS:
            return None
        content: Content = marshal.loads(posix.read(opened, status.st_size))[1]
    except (OSError, ValueError, EOFError, TypeError, LookupError):
        return None
    finally:
        posix.close(opened)
    return content


def install(content: "Content | None") -> bool:
    """Import the modules, but for those that are there already. False, and none is, where a source is another one now."""
    if content is None or b"REMIT_DEBUG" in posix.environ:
        return False  # a traceback wants the line numbers, which a bundle lacks
    extension, entries = content
    stat = posix.stat
    try:
        for _, source, _, modified, size, _ in entries:
            status = stat(source)
            if status.st_mtime_ns != modified or status.st_size != size:
                return False
    except OSError:
        return False
    modules = sys.modules
    new = modules["sys"].__class__
    made: list[str] = []
    try:
        if "_ctypes" not in modules:
            _load_extension("_ctypes", extension)
        for name, source, package, _, _, code in entries:
            if name in modules:
                continue
            module = modules[name] = new(name)
            made.append(name)
            space = module.__dict__
            space["__file__"] = source
            if package:
                space["__path__"] = [source.rpartition("/")[0]]
            exec(code, space)
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(modules[parent], last, module)
    except Exception:
        # What it is, the ordinary import will say, where it is reported as what it is.
        for name in made:
            del modules[name]
        return False
    return True


def _load_extension(name: str, path: str) -> None:
    """Import a module of Python's own that is a shared object, from where it was: looking for it costs half as much again."""
    from _frozen_importlib import ModuleSpec, module_from_spec
    from _frozen_importlib_external import ExtensionFileLoader

    loader = ExtensionFileLoader(name, path)
    module = module_from_spec(ModuleSpec(name, loader, origin=path))
    loader.exec_module(module)
    sys.modules[name] = module
