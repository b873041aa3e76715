"""The modules of a plain ``remit run`` in one file: a ``.pyc`` for forty sources at once.

Importing them one by one costs two milliseconds more, a tenth of a cold start. The bundle lies where Python keeps compiled
code, beside this module, and deserves the same trust: it is used only if its owner is root or the user, nobody else can
write it, and every source in it is still the one it was made from. Whoever may write there makes it, on a start that had
to do without; for everybody else the ordinary imports serve.
"""

import marshal
import posix
import sys

from remit.cli.fast import BUNDLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from remit.cli.fast import Entry

_PREFIX = "remit.sandbox"


def loaded() -> list[str]:
    """The modules that a bundle made now would hold, in the order in which they were imported."""
    return [name for name in sys.modules if name == _PREFIX or name.startswith(_PREFIX + ".")]


def _lean(code: "CodeType") -> "CodeType":
    """Without line numbers, a quarter of the bytes: a traceback of Remit's own (``REMIT_DEBUG``) is made without a bundle."""
    inner = tuple([_lean(item) if isinstance(item, type(code)) else item for item in code.co_consts])
    return code.replace(co_linetable=b"", co_consts=inner)


def write(names: list[str]) -> None:
    """Make the bundle of modules that are imported. Where that is not possible there is none, and no error."""
    entries: list[Entry] = []
    for name in names:
        module = sys.modules[name]
        source: str | None = getattr(module, "__file__", None)
        if source is None:
            return
        status = posix.stat(source)
        with open(source, encoding="utf-8") as file:
            code = compile(file.read(), source, "exec", dont_inherit=True, optimize=2)
        data = marshal.dumps(_lean(code))
        entries.append((name, source, hasattr(module, "__path__"), status.st_mtime_ns, status.st_size, data))
    temporary = f"{BUNDLE}.{posix.getpid()}"
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
        posix.rename(temporary, BUNDLE)
    except OSError:
        posix.unlink(temporary)
    finally:
        posix.close(opened)
