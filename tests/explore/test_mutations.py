"""The mutations fit the package as it is; `make soak` runs all of them."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from tests.explore import mutations
from tests.explore.mutations import (
    HOSTILITIES,
    LIMIT_MUTATIONS,
    MUTATIONS,
    READINESS,
    REDIS_MUTATIONS,
    Mutation,
)
from tests.pool import test_pathologies

pytestmark = pytest.mark.once

PATHOLOGIES = 29
LINES = 10

by_number = pytest.mark.parametrize(
    "mutation",
    [*MUTATIONS, *HOSTILITIES, *REDIS_MUTATIONS, *LIMIT_MUTATIONS, *READINESS],
    ids=lambda m: str(m.number),
)


def test_each_pathology_has_one_test_and_one_mutation() -> None:
    assert [mutation.number for mutation in MUTATIONS] == [*range(1, PATHOLOGIES + 1)]
    tests = [
        name
        for name, member in vars(test_pathologies).items()
        if name.startswith("test_") and inspect.isfunction(member)
    ]
    assert [mutation.test for mutation in MUTATIONS] == tests


@pytest.mark.parametrize("group", [HOSTILITIES, REDIS_MUTATIONS, LIMIT_MUTATIONS, READINESS])
def test_others_are_numbered_on(group: tuple[Mutation, ...]) -> None:
    first = group[0].number
    assert first > PATHOLOGIES
    assert [mutation.number for mutation in group] == [*range(first, first + len(group))]


@by_number
def test_a_mutation_is_small_and_fits(mutation: Mutation) -> None:
    """Its old text is in its file exactly once, and the patch is short."""
    assert 0 < mutation.changed_lines() <= LINES


@by_number
def test_a_mutation_neither_raises_nor_deletes_a_function(mutation: Mutation) -> None:
    assert mutation.new.count("raise") <= mutation.old.count("raise")
    assert mutation.new.count("def ") == mutation.old.count("def ")
    file = mutations.ROOT / "wspool" / mutation.file
    compile(mutation.applied_to(file.read_text()), mutation.file, "exec")


@pytest.mark.parametrize(
    "mutation", [MUTATIONS[1], MUTATIONS[24], MUTATIONS[28]], ids=lambda m: str(m.number)
)
async def test_a_mutation_is_caught(mutation: Mutation) -> None:
    """That its test passes without it, the suite itself shows."""
    verdict = await asyncio.to_thread(mutations.run, mutation.test, mutation)
    assert verdict in ("fails", "hangs")
