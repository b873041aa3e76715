"""The order, the forms, meet and join against the brute-force universe; and the decisions that people are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.sandbox.authority import codec
from remit.sandbox.authority.lattice import (
    Bound,
    Violation,
    allows_connect,
    allows_path,
    beyond,
    extent,
    join,
    leq,
    meet,
    normal,
    union,
    violations,
    whole,
)
from remit.sandbox.authority.model import Authority, AutoExec, Endpoint, PathPattern, PathRule, Right, Source
from tests.unit.authority_universe import (
    CONNECTIONS,
    PATHS,
    connects,
    denotes,
    filesystems,
    networks,
    others,
    path_atoms,
    pattern_regex,
)

READ, WRITE, EXEC = Right.READ, Right.WRITE, Right.EXEC

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
same_axes = st.sampled_from([filesystems, filesystems, networks, others])
pairs = same_axes.flatmap(lambda one: st.tuples(one, one))
triples = same_axes.flatmap(lambda one: st.tuples(one, one, one))
authorities = st.one_of(filesystems, networks, others)


def rule(path: str, *rights: Right) -> PathRule:
    return PathRule(path, frozenset(rights))


def anywhere(anchor: str, *tail: str) -> PathPattern:
    return PathPattern(anchor, tail, True)


def exactly(path: str) -> PathPattern:
    anchor, _, name = path.rpartition("/")
    return PathPattern(anchor or "/", (name,))


@relaxed
@given(triples)
def test_what_is_beyond_the_floor_and_the_floor_are_the_whole(three: tuple[Authority, Authority, Authority]) -> None:
    """Of a call's authority: its floor, a grant, and what its session takes away."""
    floor, grant, session = (normal(one) for one in three)
    held = union(floor, grant)
    held = normal(replace(held, deny=held.deny + session.deny, protect=held.protect + session.protect))
    rest = beyond(held, floor, session)
    assert whole(rest, floor, session) == held
    assert whole(codec.from_json(codec.to_json(rest)), floor, session) == held
    assert not {*rest.paths}.intersection(floor.paths)
    assert not {*rest.deny}.intersection(session.deny)


@relaxed
@given(pairs)
def test_what_carries_all_that_the_ceiling_takes_away_is_measured_as_if_it_said_so(
    pair: tuple[Authority, Authority],
) -> None:
    a, ceiling = pair
    said = replace(a, deny=a.deny + ceiling.deny, protect=a.protect + ceiling.protect)
    assert violations(a, Bound(ceiling), carries=True) == violations(said, ceiling)
    assert violations(a, Bound(ceiling)) == violations(a, ceiling)


@relaxed
@given(authorities)
def test_a_normal_form_is_its_own_and_known_as_such(a: Authority) -> None:
    made = normal(a)
    assert made.in_normal_form
    assert normal(made) is made
    changed = replace(made, deny=(*made.deny, exactly("/zz"), exactly("/aa")))
    assert not changed.in_normal_form
    assert normal(changed).deny == tuple(sorted({*made.deny, exactly("/zz"), exactly("/aa")}))


@relaxed
@given(pairs)
def test_leq_is_subset(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    assert leq(a, b) == (denotes(a) <= denotes(b))


@relaxed
@given(pairs, st.data())
def test_leq_is_subset_near_equality(pair: tuple[Authority, Authority], data: st.DataObject) -> None:
    """Independent pairs are seldom comparable: here the second is the first with one line more or less."""
    a, other = pair
    field = data.draw(st.sampled_from(["paths", "deny", "protect", "connect", "opened", "environment", "limits"]))
    lines = list(getattr(a, field))
    more = tuple(getattr(other, field))[:1]
    drop = data.draw(st.integers(0, len(lines)))
    changes: dict[str, Any] = {field: (*lines[:drop], *lines[drop + 1 :], *more)}
    b = replace(a, **changes)
    assert leq(a, b) == (denotes(a) <= denotes(b))
    assert leq(b, a) == (denotes(b) <= denotes(a))
    assert (extent(a) == extent(b)) == (denotes(a) == denotes(b))


@relaxed
@given(pairs)
def test_extent_is_the_one_form_of_the_set(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    assert denotes(extent(a)) == denotes(a)
    assert extent(extent(a)) == extent(a)
    assert (extent(a) == extent(b)) == (denotes(a) == denotes(b))


@relaxed
@given(filesystems, st.data())
def test_extent_does_not_depend_on_the_spelling(a: Authority, data: st.DataObject) -> None:
    shuffled = replace(
        a,
        paths=tuple(data.draw(st.permutations([*a.paths, *extent(a).paths]))),
        deny=tuple(data.draw(st.permutations([*a.deny, *extent(a).deny]))),
        protect=tuple(data.draw(st.permutations([*a.protect, *extent(a).protect, *a.deny]))),
    )
    assert extent(shuffled) == extent(a)
    assert leq(shuffled, a)
    assert leq(a, shuffled)


@relaxed
@given(networks, networks, st.data())
def test_extent_of_endpoints_does_not_depend_on_the_spelling(a: Authority, b: Authority, data: st.DataObject) -> None:
    """Parts of what is granted are added, and networks are cut in two."""
    cut = [
        replace(one, network=half)
        for one in a.connect
        for whole, halves in (
            ("10.0.0.0/29", ("10.0.0.0/30", "10.0.0.4/30")),
            ("0.0.0.0/0", ("0.0.0.0/1", "128.0.0.0/1")),
        )
        for half in halves
        if one.network == whole
    ]
    kept = [one for one in a.connect if one.network not in ("10.0.0.0/29", "0.0.0.0/0")]
    parts_of = meet(a, b).connect
    other = replace(a, connect=tuple(data.draw(st.permutations([*kept, *cut, *parts_of]))))
    assert extent(other) == extent(a)
    assert leq(a, other)
    assert leq(other, a)


@relaxed
@given(pairs)
def test_normal_keeps_the_set_and_every_deny(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    assert denotes(normal(a)) == denotes(a)
    assert normal(normal(a)) == normal(a)
    assert {pattern_regex(p).pattern for p in normal(a).deny} == {pattern_regex(p).pattern for p in a.deny}
    assert {pattern_regex(p).pattern for p in normal(a).protect} == {pattern_regex(p).pattern for p in a.protect}
    assert {r.path for r in normal(a).paths} == {r.path for r in a.paths if r.rights}
    if normal(a) == normal(b):
        assert denotes(a) == denotes(b)


@relaxed
@given(triples)
def test_partial_order_on_extents(triple: tuple[Authority, Authority, Authority]) -> None:
    a, b, c = map(extent, triple)
    assert leq(a, a)
    assert (leq(a, b) and leq(b, a)) == (a == b)
    if leq(a, b) and leq(b, c):
        assert leq(a, c)
    low, middle = meet(meet(a, b), c), meet(a, b)
    assert leq(low, middle)
    assert leq(middle, a)
    assert leq(low, a)


@relaxed
@given(triples)
def test_meet_is_the_greatest_lower_bound(triple: tuple[Authority, Authority, Authority]) -> None:
    a, b, c = triple
    both = meet(a, b)
    assert denotes(both) == denotes(a) & denotes(b)
    assert leq(both, a)
    assert leq(both, b)
    assert leq(c, both) == (leq(c, a) and leq(c, b))
    below = meet(c, both)
    assert leq(below, both)
    assert extent(below) == extent(meet(meet(c, a), b))
    assert extent(both) == extent(meet(b, a))
    assert extent(meet(a, a)) == extent(a)


@relaxed
@given(pairs)
def test_deny_and_protect_accumulate(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    for made in (meet(a, b), join(a, b)):
        for given_ in (a, b):
            assert set(normal(given_).deny) <= set(made.deny)
            assert set(normal(given_).protect) <= set(made.protect)
    taken = [pattern_regex(p) for p in (*a.deny, *b.deny)]
    kept = [pattern_regex(p) for p in (*a.protect, *b.protect)]
    for path in PATHS:
        if any(one.fullmatch(path) for one in taken):
            assert not allows_path(join(a, b), path, READ)[0]
        if any(one.fullmatch(path) for one in kept):
            assert not allows_path(join(a, b), path, WRITE)[0]


@relaxed
@given(pairs)
def test_join_denotes_what_it_says(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    made = join(a, b)
    assert made == normal(made)
    bare = [replace(one, deny=(), protect=()) for one in (a, b)]
    union = path_atoms(bare[0]) | path_atoms(bare[1])
    taken = [pattern_regex(p) for p in (*a.deny, *b.deny)]
    kept = [pattern_regex(p) for p in (*a.protect, *b.protect)]
    assert path_atoms(made) == {
        atom
        for atom in union
        if not any(r.fullmatch(str(atom[1])) for r in taken)
        and not (atom[2] == "write" and any(r.fullmatch(str(atom[1])) for r in kept))
    }
    added = {"connect", "opened", "auto", "listen", "publish", "unix", "syscalls", "devices"}
    assert {x for x in denotes(made) if x[0] in added} == {x for x in denotes(a) | denotes(b) if x[0] in added}
    assert made.loopback == (a.loopback and b.loopback)
    assert dict(made.environment) == dict(a.environment) | dict(b.environment)
    for name in ("memory", "pids"):
        chosen = [most for limited, most in b.limits if limited == name] or [
            most for limited, most in a.limits if limited == name
        ]
        assert dict(made.limits).get(name) == (min(chosen) if chosen else None)


@relaxed
@given(filesystems)
def test_allows_path_is_membership(a: Authority) -> None:
    atoms = denotes(a)
    for path in PATHS:
        for right in Right:
            allowed, line = allows_path(a, path, right)
            assert allowed == (("path", path, str(right)) in atoms)
            if allowed:
                assert line in a.paths
            elif line is not None:
                assert line in (*a.deny, *a.protect)


@relaxed
@given(networks)
def test_allows_connect_is_membership(a: Authority) -> None:
    for connection in CONNECTIONS:
        allowed, endpoint = allows_connect(a, *connection)
        assert allowed == any(connects(e, *connection) for e in a.connect)
        assert (endpoint in a.connect) == allowed


@relaxed
@given(pairs)
def test_violations_name_what_is_outside(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    for one in violations(a, b):
        assert one.reason
        if one.axis in ("filesystem", "exec") and one.object.startswith("/") and "**" not in one.object:
            right = Right(one.right)
            assert allows_path(a, one.object, right)[0] or one.object in a.opened
            assert not allows_path(b, one.object, right)[0]


@pytest.mark.parametrize("a", [True, False])
@pytest.mark.parametrize("b", [True, False])
def test_loopback_stays_closed(a: bool, b: bool) -> None:
    for made in (meet, join):
        assert made(Authority(loopback=a), Authority(loopback=b)).loopback == (a and b)


@pytest.mark.parametrize("a", list(AutoExec))
@pytest.mark.parametrize("b", list(AutoExec))
def test_auto_exec_protect_wins_in_meet_and_silence_opens_nothing_in_join(a: AutoExec, b: AutoExec) -> None:
    both, either = (made(Authority(auto_exec=a), Authority(auto_exec=b)).auto_exec for made in (meet, join))
    assert (both is AutoExec.ALLOW) == (a is b is AutoExec.ALLOW)
    assert (either is AutoExec.ALLOW) == (AutoExec.ALLOW in (a, b))


def test_the_catalogue_in_meet() -> None:
    one, other = Authority(opened=("g", "h")), Authority(opened=("h", "i"))
    assert meet(one, other).opened == ("h",)
    assert meet(one, Authority(auto_exec=AutoExec.ALLOW)).opened == ("g", "h")
    assert meet(Authority(auto_exec=AutoExec.ALLOW), one).opened == ("g", "h")


def test_limits_and_environment() -> None:
    a = Authority(limits=(("memory", 5), ("pids", 1)), environment=(("A", None), ("B", "1"), ("C", "1")))
    b = Authority(limits=(("memory", 9), ("files", 2)), environment=(("A", "1"), ("B", "1"), ("D", "1")))
    assert meet(a, b).limits == (("files", 2), ("memory", 5), ("pids", 1))
    assert join(a, b).limits == (("files", 2), ("memory", 9), ("pids", 1))
    assert meet(a, b).environment == (("B", "1"),)
    assert join(a, b).environment == (("A", "1"), ("B", "1"), ("C", "1"), ("D", "1"))


# What the brute force cannot show: which words people read.


def test_violation_names_the_deny_inside_a_grant() -> None:
    a = Authority(paths=(rule("/p/x", READ),))
    b = Authority(paths=(rule("/p", READ),), deny=(exactly("/p/x/secret"), anywhere("/", ".env")))
    assert violations(a, b) == (
        Violation("filesystem", "/p/x/**/.env", "read", "the ceiling denies /**/.env"),
        Violation("filesystem", "/p/x/secret", "read", "the ceiling denies /p/x/secret"),
    )
    assert leq(replace(a, deny=(exactly("/p/x/secret"), anywhere("/p", ".env"))), b)
    assert not leq(replace(a, deny=(exactly("/p/x/secret"), anywhere("/p/x/y", ".env"))), b)


def test_a_match_that_begins_above_the_grant_counts() -> None:
    ceiling = Authority(paths=(rule("/", READ),), deny=(anywhere("/", ".git", "hooks"),))
    inside = Authority(paths=(rule("/w/.git", READ),))
    assert [one.object for one in violations(inside, ceiling)] == ["/w/.git/**/.git/hooks", "/w/.git/hooks"]


def test_protect_takes_only_writing() -> None:
    a = Authority(paths=(rule("/w", READ, WRITE),), protect=(exactly("/w/.github"),))
    assert allows_path(a, "/w/.github/ci.yml", READ) == (True, a.paths[0])
    assert allows_path(a, "/w/.github/ci.yml", WRITE) == (False, a.protect[0])
    assert leq(Authority(paths=(rule("/w/.github", READ),)), a)
    assert [str(v) for v in violations(Authority(paths=(rule("/w/.github/x", WRITE),)), a)] == [
        "filesystem: write /w/.github/x: the ceiling protects /w/.github"
    ]


def test_a_rule_never_opens_a_deny() -> None:
    a = Authority(paths=(rule("/p", READ), rule("/p/.ssh/known_hosts", READ)), deny=(exactly("/p/.ssh"),))
    assert allows_path(a, "/p/.ssh/known_hosts", READ) == (False, a.deny[0])


def test_the_deepest_rule_is_the_reason() -> None:
    a = Authority(paths=(rule("/", READ), rule("/usr/lib", READ), rule("/usr", READ)))
    assert allows_path(a, "/usr/lib/x", READ)[1] == a.paths[1]
    assert allows_path(a, "/usr/lib/x", EXEC) == (False, None)


def test_a_sibling_with_the_same_beginning_is_outside() -> None:
    a = Authority(paths=(rule("/a/b", READ),), deny=())
    assert not allows_path(a, "/a/bc", READ)[0]
    assert not leq(Authority(paths=(rule("/a/b-c", READ),)), a)
    # "-" sorts before "/": the roots must still be found.
    wide = Authority(paths=(rule("/a", READ), rule("/a-b", READ), rule("/a/b", READ)))
    assert [r.path for r in extent(wide).paths] == ["/a", "/a-b"]


@pytest.mark.parametrize("path", ["", "a", "/a/../b", "/a/./b", "//a", "/a/", "/a//b", ".."])
def test_a_path_that_is_not_normal_is_never_decided_on(path: str) -> None:
    a = Authority(paths=(rule("/a", READ),))
    with pytest.raises(ValueError, match="normal"):
        allows_path(a, path, READ)
    for made in (Authority(paths=(rule(path, READ),)), Authority(deny=(PathPattern(path, ("x",)),))):
        with pytest.raises(ValueError, match="normal"):
            normal(made)
        with pytest.raises(ValueError, match="normal"):
            leq(made, a)


@pytest.mark.parametrize("tail", [(), ("",), ("..",), ("a/b",)])
def test_a_tail_is_made_of_components(tail: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not a pattern"):
        normal(Authority(deny=(PathPattern("/a", tail),)))


def test_normal_keeps_what_is_redundant_by_name() -> None:
    """``/p/link`` may lead elsewhere: the rule and the deny on it are about another object then."""
    a = Authority(
        paths=(rule("/p/link", READ), rule("/p", READ)),
        deny=(anywhere("/p", "key"), exactly("/p/link/key"), exactly("/q")),
    )
    assert [r.path for r in normal(a).paths] == ["/p", "/p/link"]
    assert set(normal(a).deny) == set(a.deny)
    assert extent(a) == Authority(paths=(rule("/p", READ),), deny=(anywhere("/p", "key"),))


def test_normal_merges_lines_and_keeps_the_source_that_decides() -> None:
    first, second = Source("base.toml", 3), Source("coding.toml", 9)
    a = Authority(
        paths=(
            PathRule("/p", frozenset({WRITE}), True, first),
            PathRule("/p", frozenset({EXEC}), False, second),
            rule("/q"),
        ),
        deny=(PathPattern("/", ("a", "b"), False, first), PathPattern("/a", ("b",), False, second)),
        connect=(Endpoint("x", source=first), Endpoint("x", source=second)),
        environment=(("A", "1"), ("A", None)),
        limits=(("pids", 5), ("pids", 3)),
    )
    made = normal(a)
    assert made.paths == (rule("/p", READ, WRITE, EXEC),)
    assert not made.paths[0].optional
    assert made.deny == (PathPattern("/a", ("b",)),)
    assert made.connect == (Endpoint("x"),)
    assert [made.paths[0].source, made.deny[0].source, made.connect[0].source] == [first, first, first]
    # Neither writing nor executing implies the other: each stands where it was granted.
    assert [made.paths[0].where(right) for right in (READ, WRITE, EXEC)] == [first, first, second]
    assert codec.from_json(codec.to_json(made), "a").paths[0].where(EXEC) == second
    executes = PathRule("/p", frozenset({EXEC}), False, first)
    for rules in ((executes, PathRule("/p", frozenset({WRITE}), False, second)), made.paths):
        (one,) = normal(Authority(paths=rules)).paths
        assert {one.where(WRITE), one.where(EXEC)} == {first, second}
    assert made.environment == (("A", None),)
    assert made.limits == (("pids", 3),)


def test_sources_and_optional_do_not_compare() -> None:
    a = Authority(paths=(PathRule("/p", frozenset({READ}), True, Source("x", 1)),))
    b = Authority(paths=(rule("/p", READ),))
    assert leq(a, b)
    assert leq(b, a)
    assert extent(a) == extent(b)
    assert [r.source for r in extent(a).paths] == [Source("")]


def test_meet_of_a_name_and_a_network_asks_for_both() -> None:
    a = Authority(connect=(Endpoint("example.com", True, port=443),))
    b = Authority(connect=(Endpoint(network="10.0.0.0/8"),))
    both = meet(a, b)
    assert both.connect == (Endpoint("example.com", True, "10.0.0.0/8", 443),)
    assert allows_connect(both, "a.example.com", "10.1.1.1", 443)[0]
    assert not allows_connect(both, "a.example.com", "11.1.1.1", 443)[0]
    assert not allows_connect(both, None, "10.1.1.1", 443)[0]
    assert not allows_connect(both, "a.example.com", None, 443)[0]
    assert meet(a, Authority(connect=(Endpoint("a.example.com"),))).connect == (Endpoint("a.example.com", port=443),)
    assert meet(a, Authority(connect=(Endpoint("example.com"),))).connect == ()


def test_networks_are_united_before_they_are_compared() -> None:
    halves = Authority(connect=(Endpoint(network="10.0.0.0/9"), Endpoint(network="10.128.0.0/9", port=0)))
    whole = Authority(connect=(Endpoint(network="10.0.0.0/8"),))
    assert leq(whole, halves)
    assert extent(halves) == extent(whole)
    assert not leq(whole, Authority(connect=(Endpoint(network="10.0.0.0/9"), Endpoint("x", network="10.128.0.0/9"))))


def test_ipv4_mapped_addresses_are_the_ipv4_address() -> None:
    a = Authority(connect=(Endpoint(network="10.0.0.0/8", port=80),))
    assert allows_connect(a, None, "::ffff:10.0.0.1", 80)[0]
    assert not allows_connect(Authority(connect=(Endpoint(network="::/0"),)), None, "::ffff:10.0.0.1", 80)[0]
    with pytest.raises(ValueError, match="0177"):
        allows_connect(a, None, "0177.0.0.1", 80)


def test_every_axis_reports() -> None:
    wide = Authority(
        paths=(rule("/x", EXEC),),
        auto_exec=AutoExec.ALLOW,
        connect=(Endpoint("x", port=1),),
        listen=(80,),
        publish=("127.0.0.1:8080:80",),
        unix=("/s",),
        syscalls=("bpf",),
        devices=("/dev/kvm",),
        environment=(("A", None), ("B", "1"), ("C", "1")),
        limits=(("pids", 9),),
    )
    narrow = Authority(loopback=False, environment=(("A", "1"), ("B", "2")), limits=(("pids", 5), ("memory", 4)))
    assert [str(v) for v in violations(wide, narrow)] == [
        "filesystem: read /x: not granted",
        "exec: exec /x: not granted",
        "filesystem: write auto_exec: auto-executed files are protected",
        "network: connect x:1/tcp: not granted",
        "network: listen 80: not granted",
        "network: publish 127.0.0.1:8080:80: not granted",
        "network: connect loopback: loopback is closed",
        "ipc: connect /s: not granted",
        "syscalls: call bpf: not granted",
        "devices: use /dev/kvm: not granted",
        "environment: pass A: only another value is granted",
        "environment: set B: only another value is granted",
        "environment: set C: not granted",
        "limits: use memory: unlimited, the maximum is 4",
        "limits: use pids: 9 is above the maximum of 5",
    ]
    assert violations(narrow, narrow) == ()


def test_violations_do_not_show_environment_values() -> None:
    shown = str(violations(Authority(environment=(("T", "hunter2"),)), Authority(environment=(("T", "hunter3"),))))
    assert "hunter" not in shown
