"""What holds for every plan, over random sets of grants and denials in a small made-up tree."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from remit.sandbox.authority.errors import Unenforceable
from remit.sandbox.authority.model import PathPattern, PathRule
from remit.sandbox.compile import landlock
from remit.sandbox.compile.compiler import Compiled
from remit.sandbox.compile.paths import below, parents
from remit.sandbox.compile.plan import Bind, Copy, Cover, Dev, Directory, Landlock, Mediate, Proc, Symlink, Tmpfs
from remit.sandbox.kernel.facts import HostFacts
from tests.plan.world import World, authority, compiled, literal, only, rule

TOPS = ("/tmp", "/home/u", "/var", "/var/tmp", "/run", "/srv", "/opt")
PATHS = sorted(
    {*TOPS}
    | {f"{top}/{a}" for top in TOPS for a in "ab"}
    | {f"{top}/{a}/{b}" for top in TOPS for a in "ab" for b in "cd"}
)
FILES = {path for path in PATHS if path.endswith("d")}
LETTERS = st.sampled_from(["r", "rw", "rx", "rwx"])
GRANTS = st.lists(st.builds(rule, st.sampled_from(PATHS), LETTERS), max_size=6)
TAKEN = st.lists(st.builds(literal, st.sampled_from([*PATHS, "/home/u/a/new", "/srv/new"])), max_size=3)


def plan(grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern], abi: int = 7) -> Compiled:
    world = World()
    world.files |= FILES
    world.directories |= set(PATHS) - FILES
    granted = authority(*grants, deny=tuple(deny), protect=tuple(protect))
    return compiled(granted, world=world, facts=HostFacts(landlock_abi=abi), workspace="/srv/a", chdir="/opt/b/c")


def made(op: object) -> str | None:
    if isinstance(op, Dev):
        return "/dev"
    if isinstance(op, Proc):
        return "/proc"
    if isinstance(op, Bind | Copy | Tmpfs):
        return op.target
    if isinstance(op, Directory | Symlink | Cover):
        return op.path
    return None


def mounted(result: Compiled, path: str) -> object:
    """What shows at ``path`` in the end: the last operation at the deepest place at or above it."""
    best: object = None
    depth = -1
    for op in result.plan.operations:
        target = made(op)
        if target is not None and below(path, target) and target.count("/") >= depth:
            best, depth = op, target.count("/")
    return best


@settings(max_examples=300, deadline=None)
@given(GRANTS, TAKEN, TAKEN)
def test_parents_exist_before_their_children(
    grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern]
) -> None:
    there = {"/"}
    bound: set[str] = set()
    for op in plan(grants, deny, protect).plan.operations:
        path = made(op)
        if path is None:
            continue
        for above in parents(path):
            assert above in there or any(below(above, tree) for tree in bound), f"{path} before {above}"
        there.add(path)
        if isinstance(op, Bind):
            bound.add(path)


@settings(max_examples=300, deadline=None)
@given(GRANTS, TAKEN, TAKEN)
@example([rule("/tmp", "rw")], [literal("/tmp/a")], [literal("/tmp/a/c")])
def test_no_denied_object_shows(grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern]) -> None:
    result = plan(grants, deny, protect)
    for pattern in deny:
        path = str(pattern)
        if path in PATHS:
            for inside in [path, *(p for p in PATHS if below(p, path))]:
                assert not isinstance(mounted(result, inside), Bind | Copy), inside


@settings(max_examples=300, deadline=None)
@given(GRANTS, TAKEN, TAKEN)
def test_what_shows_is_granted_and_writable_only_if_granted_so(
    grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern]
) -> None:
    result = plan(grants, deny, protect)
    for path in PATHS:
        shown = mounted(result, path)
        if not isinstance(shown, Bind):
            continue
        above = [g for g in grants if g.path == path or (below(path, g.path) and g.path not in FILES)]
        assert above, path
        rights = {right for g in above for right in g.rights}
        assert shown.read_only or "write" in rights
        assert shown.no_exec or "exec" in rights
        protected = any(below(path, str(p)) for p in protect if str(p) in PATHS)
        assert shown.read_only or not protected


@settings(max_examples=300, deadline=None)
@given(GRANTS, TAKEN, TAKEN)
def test_every_grant_that_is_not_denied_shows_with_its_rights(
    grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern]
) -> None:
    result = plan(grants, deny, protect)
    for g in grants:
        if any(below(g.path, str(p)) for p in (*deny, *protect)):
            continue
        shown = mounted(result, g.path)
        assert isinstance(shown, Bind), g.path
        assert not shown.read_only or "write" not in g.rights
        assert not shown.no_exec or "exec" not in g.rights


@settings(max_examples=300, deadline=None)
@given(GRANTS, TAKEN, TAKEN, st.integers(2, 9))
def test_the_nested_domain_never_has_more_and_nothing_that_changes_below_a_root(
    grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern], abi: int
) -> None:
    result = plan(grants, deny, protect, abi)
    session, command = (op for op in only(result, Landlock))
    roots = only(result, Mediate)[0].roots

    def allowed(op: Landlock, path: str) -> int:
        bits = 0
        for at, mask in op.rules:
            bits |= mask if below(path, at) else 0
        return bits

    for path in [*PATHS, "/", "/home", "/home/u/a/new", "/dev/shm/x", "/etc/passwd", "/usr/bin"]:
        inner, outer = allowed(command, path), allowed(session, path)
        assert inner & ~outer == 0
        if any(below(path, root) for root in roots):
            assert not inner & landlock.CHANGE
    for g in grants:
        if "write" in g.rights and not any(below(g.path, str(p)) for p in (*deny, *protect)):
            assert any(below(g.path, root) for root in roots)


@settings(max_examples=200, deadline=None)
@given(GRANTS, TAKEN, TAKEN)
def test_landlock_never_grants_more_than_the_grants_do(
    grants: list[PathRule], deny: list[PathPattern], protect: list[PathPattern]
) -> None:
    """In host trees that no private place holds: there the mount is the one layer, and says so."""
    session = only(plan(grants, deny, protect), Landlock)[0]
    for at, mask in session.rules:
        if at not in PATHS or at in ("/tmp", "/run", "/var/tmp"):
            continue
        above = [g for g in grants if below(at, g.path)]
        rights = {right for g in above for right in g.rights}
        if mask & landlock.CHANGE:
            assert "write" in rights
        if mask & landlock.EXECUTE:
            assert "exec" in rights
        if mask & landlock.READ_FILE:
            assert above


@settings(max_examples=100, deadline=None)
@given(st.permutations([rule(p, "rw") for p in PATHS[:6]]), TAKEN)
def test_the_plan_does_not_depend_on_the_order_of_grants(grants: list[PathRule], deny: list[PathPattern]) -> None:
    try:
        one = plan(grants, deny, []).plan.digest
    except Unenforceable:
        return
    assert one == plan(sorted(grants, key=lambda g: g.path), deny, []).plan.digest
