"""Which grants mean the same, and may so share what was found out for one of them."""

from __future__ import annotations

import gc
import weakref

from remit import Grant
from remit.sandbox.authority.model import Authority


class Held(Authority):
    """One that can be seen going."""

    __slots__ = ("__weakref__",)


def out_of_a_file(held: Authority) -> Grant:
    """As ``from_options`` makes it, where the options say no more than which file."""
    grant = Grant(read=["a"])
    object.__setattr__(grant, "given", held)
    return grant


def test_grants_that_say_the_same_mean_the_same() -> None:
    assert Grant(read=["a"], task="one").meant == Grant(read=["a"], expires=5, uses=1).meant
    assert Grant(read=["a"]).meant != Grant(write=["a"]).meant
    assert hash(Grant(read=["a"]).meant) == hash(Grant(read=["a"]).meant)


def test_what_a_grant_out_of_a_file_means_is_the_files_content_for_as_long_as_it_is_remembered() -> None:
    """Two files may have had one name: where the first content goes, the second one may get its place in memory."""
    held = Held()
    one, same, other = out_of_a_file(held), out_of_a_file(held), out_of_a_file(Held())
    assert one.meant == same.meant
    assert hash(one.meant) == hash(same.meant)
    assert one.meant != other.meant != Grant(read=["a"]).meant
    remembered, seen = one.meant, weakref.ref(held)
    del held, one, same
    gc.collect()
    assert seen() is not None
    del remembered
    gc.collect()
    assert seen() is None
