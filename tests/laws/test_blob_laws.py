"""Any sequence of calls on any kind of blob store leaves what it leaves in a dict; the same for its gc."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from blob_kit import KINDS, Lab, lab_of, s3  # noqa: F401 - fixtures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from efface.registry import BrokenRegistry, Digest, digest_bytes
from efface.registry.blobs import relative
from efface.registry.gc import execute, plan

CONTENTS = st.sampled_from([b"", b"a", b"bytes", bytes(range(256)), b"\0" * 3000]) | st.binary(max_size=20)
EXAMPLES = {"folder": 40, "memory": 60, "s3": 8}
FOREIGN = ("notes.txt", "sha256/readme", "sha256/ab/" + "c" * 64, "sha256/cc/" + "c" * 63, "sha256/.tmp-/x")


def as_in_a_dict(make: Callable[[], Lab]) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.lab = make()
            self.store = self.lab.store
            self.model: dict[str, bytes] = {}

        @rule(data=CONTENTS, repair=st.booleans())
        def put(self, data: bytes, repair: bool) -> None:
            digest = digest_bytes(data)
            if self.model.get(digest, data) != data and not repair:
                with pytest.raises(BrokenRegistry, match=digest):
                    self.store.put(data, repair=False)
            else:
                assert self.store.put(data, repair=repair) == digest
                self.model[digest] = data

        @rule(data=CONTENTS)
        def read(self, data: bytes) -> None:
            digest = digest_bytes(data)
            if self.model.get(digest) == data:
                assert self.store.read(digest) == data
            else:
                with pytest.raises(BrokenRegistry, match=digest):
                    self.store.read(digest)

        @rule(data=CONTENTS)
        def look(self, data: bytes) -> None:
            digest = digest_bytes(data)
            found = self.model.get(digest)
            actual = self.store.digest_of(digest)
            assert actual.startswith("unreadable: ") if found is None else actual == digest_bytes(found)
            assert self.store.size(digest) == (None if found is None else len(found))
            assert self.store.intact(digest) == (found == data)

        @rule(data=CONTENTS)
        def delete(self, data: bytes) -> None:
            self.store.delete(digest_bytes(data))
            self.model.pop(digest_bytes(data), None)

        @rule(data=CONTENTS, damage=st.sampled_from([bytes.upper, lambda b: b[:-1], lambda b: b + b"!"]))
        def damage(self, data: bytes, damage: Callable[[bytes], bytes]) -> None:
            digest = digest_bytes(data)
            if digest in self.model:
                self.model[digest] = damage(self.model[digest])
                self.lab.write(relative(digest), self.model[digest])

        @rule(name=st.sampled_from(FOREIGN))
        def litter(self, name: str) -> None:
            self.lab.write(name, b"foreign")

        @invariant()
        def lists_what_is_there(self) -> None:
            assert list(self.store) == sorted(self.model)
            listed = {found.digest: found.size for found in self.store.stored()}
            assert listed == {digest: len(data) for digest, data in self.model.items()}
            assert self.store.leftovers() == []

    return Machine


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_is_a_dict_of_digests(kind: str, lab_of: Callable[[str], Lab]) -> None:  # noqa: F811
    quick = settings(max_examples=EXAMPLES[kind], stateful_step_count=20, deadline=None)
    run_state_machine_as_test(as_in_a_dict(lambda: lab_of(kind)), settings=quick)


BLOB = st.fixed_dictionaries(
    {
        "old": st.booleans(),
        "reachable": st.booleans(),
        "purgeable": st.booleans(),
        "reachable_later": st.booleans(),
        "put_again": st.booleans(),
    }
)


@pytest.mark.parametrize("kind", KINDS)
def test_gc_deletes_exactly_what_it_planned_and_nothing_still_needs(
    kind: str,
    lab_of: Callable[[str], Lab],  # noqa: F811
) -> None:
    @settings(max_examples=EXAMPLES[kind], deadline=None, suppress_health_check=list(HealthCheck))
    @given(blobs=st.lists(BLOB, max_size=6))
    def law(blobs: list[dict[str, bool]]) -> None:
        lab = lab_of(kind)
        put = {lab.store.put(str(number).encode()): blob for number, blob in enumerate(blobs)}
        for digest, blob in put.items():
            if blob["old"]:
                lab.age(digest, timedelta(hours=2))

        def those(flag: str) -> set[Digest]:
            return {digest for digest, blob in put.items() if blob[flag]}

        planned = plan(lab.store, those("reachable"), those("purgeable"))
        assert {item.name for item in planned.items} == {
            digest
            for digest, blob in put.items()
            if not blob["reachable"] and (blob["purgeable"] or blob["old"])
        }
        assert set(lab.store) == put.keys()  # a plan deletes nothing
        for number, blob in enumerate(blobs):
            if blob["put_again"]:
                lab.store.put(str(number).encode())
        done = execute(lab.store, planned, those("reachable_later"))
        gone = {
            item.name
            for item in planned.items
            if not put[Digest(item.name)]["reachable_later"]
            and not (put[Digest(item.name)]["put_again"] and put[Digest(item.name)]["old"])
        }
        assert {item.name for item in done.deleted} == gone
        assert set(lab.store) == put.keys() - gone
        again = execute(lab.store, planned, those("reachable_later"))
        assert again.deleted == ()
        assert set(again.left) == set(planned.items)
        assert set(lab.store) == put.keys() - gone

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_ages_are_those_of_the_last_put(kind: str, lab_of: Callable[[str], Lab]) -> None:  # noqa: F811
    lab = lab_of(kind)
    digest = lab.store.put(b"bytes")

    def age() -> timedelta:
        found, (listed,) = lab.store.stat(digest), lab.store.stored()
        assert found is not None
        assert found.written_at is not None
        assert listed.written_at is not None
        assert abs(found.written_at - listed.written_at) < timedelta(seconds=1)
        return datetime.now(UTC) - found.written_at

    assert age() < timedelta(seconds=30)
    lab.age(digest, timedelta(days=3))
    assert abs(age() - timedelta(days=3)) < timedelta(seconds=30)
    assert lab.store.put(b"bytes") == digest
    assert age() < timedelta(seconds=30)
    assert lab.store.read(digest) == b"bytes"
