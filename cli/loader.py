"""Loading the bundle: the modules of a plain ``remit run``, from one file (``remit.cli.bundle`` makes it).

A bundle lies where Python keeps compiled code and deserves the same trust: it is used only if its owner is root or the
user, nobody else can write it, and every source in it is still the one it was made from. What it holds is complete and in
the order of its imports, so no finder is asked for anything, which is most of what importing costs.

It has three parts, each read where it is needed: what starts the session's first process (``launch.early``), what runs in
that process (``launch.stage``), and what runs in the launcher meanwhile (``session.oneshot``). The first one is in the head
of the file, the others lie at its end.

The code of this module is in the bundle too: the stub (``remit.sh``) checks the file's owner and mode as ``read`` does, and
runs ``begin`` from it before a single module has been imported.
"""

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType

    Source = tuple[str, int, int]
    """(path, mtime in ns, size)."""
    Entry = tuple[str, str, bool, CodeType]
    """(module name, source, whether it is a package, its code)."""
    Part = tuple[tuple[str, ...], tuple[Entry, ...]]
    """(the modules within the interpreter that they import, modules in the order of their imports)."""
    Content = tuple[str, tuple[Source, ...], bytes, int, int]
    """(the file of Python's ``_ctypes``, the sources of all modules, the first ``Part``, marshalled; the sizes of the second
    and the third, which have everything that their modules import but what the first has)."""

HEAD = 1 << 17
"""Bytes that hold the head of a bundle: the code of this module and its ``Content``."""
_WRITABLE_BY_OTHERS = 0o022


def read(path: str) -> "tuple[int, Content] | None":
    """The bundle at ``path``, open, and what its head says; none where it is not there or not to be trusted."""
    try:
        opened = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = posix.fstat(opened)
        if status.st_uid in (0, posix.geteuid()) and not status.st_mode & _WRITABLE_BY_OTHERS:
            content: Content = marshal.loads(posix.read(opened, HEAD))[1]
            return opened, content
    except (OSError, ValueError, EOFError, TypeError, LookupError):
        pass
    posix.close(opened)
    return None


def begin(bundle: int, content: "Content") -> bool:
    """``install``, with the session's first process started as soon as it can be (``launch.early``)."""
    if b"REMIT_DEBUG" in posix.environ:
        return False  # a traceback wants the line numbers, which a bundle lacks
    made: list[str] = []
    early = None
    try:
        # Nothing of the launcher's makes cycles, and a collection touches every page that the fork would share.
        _make_builtin("gc").disable()
        extension, sources, first, _, _ = content
        _load_extension("_ctypes", extension)
        _import(first, made)
        sys.modules["remit.sandbox.kernel.call"].keep_memory()
        early = sys.modules["remit.sandbox.launch.early"]
        if posix.geteuid():
            early.begin(lambda: _import(_stage(bundle, content), []), bundle)
        if _current(sources):
            if not posix.geteuid():
                # Root's first process may run as somebody else, who has to be found out first.
                stage = _stage(bundle, content)
                early.otherwise(lambda: _import(stage, []))
            _import(_launcher(bundle, content), made)
            return True
    except Exception:
        pass  # what it is, the ordinary import will say, where it is reported as what it is
    if early is not None:
        early.give_up()
    for name in made:
        del sys.modules[name]
    return False


def install(bundle: int, content: "Content") -> bool:
    """Import the modules, but for those that are there already. False, and none is, where a source is another one now."""
    if b"REMIT_DEBUG" in posix.environ or not _current(content[1]):
        return False
    made: list[str] = []
    try:
        _load_extension("_ctypes", content[0])
        for part in (content[2], _stage(bundle, content), _launcher(bundle, content)):
            _import(part, made)
    except Exception:
        for name in made:
            del sys.modules[name]
        return False
    return True


def _stage(bundle: int, content: "Content") -> bytes:
    _, _, _, stage, launcher = content
    return posix.pread(bundle, stage, posix.fstat(bundle).st_size - launcher - stage)


def _launcher(bundle: int, content: "Content") -> bytes:
    launcher = content[4]
    return posix.pread(bundle, launcher, posix.fstat(bundle).st_size - launcher)


def _current(sources: "tuple[Source, ...]") -> bool:
    stat = posix.stat
    try:
        for source, modified, size in sources:
            status = stat(source)
            if status.st_mtime_ns != modified or status.st_size != size:
                return False
    except (OSError, ValueError, TypeError):  # the latter two: a bundle of another version
        return False
    return True


def _import(part: bytes, made: list[str]) -> None:
    """Import the modules of a part, but for those that are there already, and name them in ``made``."""
    modules = sys.modules
    new = modules["sys"].__class__
    loaded: Part = marshal.loads(part)
    within, entries = loaded
    for name in within:
        if name not in modules:
            _make_builtin(name)
    for name, source, package, code in entries:
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


def _make_builtin(name: str) -> "ModuleType":
    """Import a module that is within the interpreter, at a tenth of what asking the finders costs."""
    import _imp
    from _frozen_importlib import BuiltinImporter, ModuleSpec

    spec = ModuleSpec(name, BuiltinImporter, origin="built-in")  # type: ignore[arg-type]  # a class, as the import system has it
    module = _imp.create_builtin(spec)
    _imp.exec_builtin(module)
    module.__spec__ = spec
    module.__loader__ = BuiltinImporter
    sys.modules[name] = module
    return module


def _load_extension(name: str, path: str) -> None:
    """Import a module of Python's own that is a shared object, from where it was: looking for it costs half as much again."""
    if name in sys.modules:
        return
    from _frozen_importlib import ModuleSpec, module_from_spec
    from _frozen_importlib_external import ExtensionFileLoader

    loader = ExtensionFileLoader(name, path)
    module = module_from_spec(ModuleSpec(name, loader, origin=path))
    loader.exec_module(module)
    sys.modules[name] = module
