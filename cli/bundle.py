"""The modules of a plain ``remit run`` in one file: a ``.pyc`` for forty sources at once, without what a start never reads.

Importing them one by one costs four milliseconds, a fifth of a cold start. Whoever may write beside this module makes the
bundle, on a start that had to do without; for everybody else the ordinary imports serve. ``remit.cli.loader`` says when it
is used.
"""

import _ctypes
import ast
import marshal
import posix
import sys

from remit.cli import loader
from remit.cli.fast import BUNDLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from types import CodeType

    from remit.cli.loader import Entry, Source

EARLY, STAGE, LAUNCHER = "remit.sandbox.launch.early", "remit.sandbox.launch.stage", "remit.sandbox.session.oneshot"


class _Lean(ast.NodeTransformer):
    """Without annotations, what only type checkers read, and ``__future__``, whose one use here is those annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._with_body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._with_body(node)

    def _with_body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        if not node.body:
            node.body.append(ast.Pass())
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return ast.Assign(targets=[node.target], value=node.value)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse:
            return None
        self.generic_visit(node)
        return node


def lean(text: str, source: str) -> "CodeType":
    """The code of a module, less everything that is for readers: docstrings, annotations, assertions, line numbers."""
    tree = ast.fix_missing_locations(_Lean().visit(ast.parse(text, source)))
    return _without_lines(compile(tree, source, "exec", dont_inherit=True, optimize=2))


def _without_lines(code: "CodeType") -> "CodeType":
    inner = tuple([_without_lines(item) if isinstance(item, type(code)) else item for item in code.co_consts])
    return code.replace(co_linetable=b"", co_consts=inner)


def _imports(text: str, names: "Collection[str]") -> list[str]:
    """Which of ``names`` a module imports when it is itself imported."""
    found: list[str] = []
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Import):
            found += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            found += [statement.module, *[f"{statement.module}.{alias.name}" for alias in statement.names]]
    return [name for name in found if name in names]


def ordered(texts: dict[str, str], roots: "Iterable[str]", without: "Iterable[str]" = ()) -> list[str]:
    """``roots`` and what they import of the modules (name: source text), but for ``without``: each after its imports."""
    order: list[str] = []
    entered: set[str] = set(without)

    def enter(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        parent = name.rpartition(".")[0]
        for needed in [*([parent] if parent else []), *_imports(texts[name], texts)]:
            enter(needed)
        order.append(name)

    for name in roots:
        if name in texts:
            enter(name)
    return order


def parts(texts: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """The modules that start the session's first process, that run in it, and that run in the launcher."""
    first = ordered(texts, [EARLY])
    stage = ordered(texts, [STAGE], first)
    launcher = ordered(texts, [LAUNCHER, *[name for name in texts if name not in stage]], first)
    return first, stage, launcher


def write(names: list[str]) -> None:
    """Make the bundle of ``names``, which are imported. Where that is not possible there is none, and no error."""
    texts: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    sources: list[Source] = []
    for name in names:
        source: str | None = getattr(sys.modules[name], "__file__", None)
        if source is None:
            return
        status = posix.stat(source)
        sources.append((source, status.st_mtime_ns, status.st_size))
        texts[name] = _text(source)
        entries[name] = (name, source, hasattr(sys.modules[name], "__path__"), lean(texts[name], source))
    marshalled: list[bytes] = []
    for part in parts(texts):
        within = {name: None for module in part for name in _imports(texts[module], sys.builtin_module_names)}
        marshalled.append(marshal.dumps((tuple(within), tuple([entries[name] for name in part]))))
    first, stage, launcher = marshalled
    installer = lean(_text(loader.__file__), loader.__file__)
    head = marshal.dumps((installer, (str(_ctypes.__file__), tuple(sources), first, len(stage), len(launcher))))
    if len(head) > loader.HEAD:
        return
    temporary = f"{BUNDLE}.{posix.getpid()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        opened = posix.open(temporary, flags, 0o644)
    except OSError:
        return
    try:
        data = head + stage + launcher
        while data:
            data = data[posix.write(opened, data) :]
        posix.fchmod(opened, 0o644)
        posix.rename(temporary, BUNDLE)
    except OSError:
        posix.unlink(temporary)
    finally:
        posix.close(opened)


def _text(source: str) -> str:
    with open(source, encoding="utf-8") as file:
        return file.read()
