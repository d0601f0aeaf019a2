"""When a member of a group is out, and when it is probed."""

from __future__ import annotations

import pytest

from wspool._group.health import MAX_LOSSES, Health, may_go_out


def test_a_new_member_is_in() -> None:
    health = Health()
    assert health.is_in
    assert health.out_until is None


def test_it_is_out_for_ten_seconds_and_for_as_many_times_that_as_probes_have_failed() -> None:
    health = Health()
    now, pauses = 100.0, []
    for _ in range(5):
        health.go_out(now, "down")
        assert health.out_until is not None
        pauses.append(health.out_until - now)
        now = health.out_until
    assert pauses == [10.0, 10.0, 20.0, 30.0, 40.0]
    for _ in range(40):
        health.go_out(now, "down")
    assert health.out_until == now + 300.0


def test_a_probe_that_has_lived_forgets_all() -> None:
    health = Health()
    for _ in range(5):
        health.go_out(0.0, "down")
    health.come_back()
    assert health.is_in
    assert health.why == ""
    health.go_out(0.0, "down")
    assert health.out_until == 10.0


def test_only_losses_in_a_row_count_up_to_the_fifth() -> None:
    health = Health()
    assert [health.lost() for _ in range(MAX_LOSSES)] == [False] * 4 + [True]


@pytest.mark.parametrize(("members", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)])
def test_at_most_half_of_the_members_are_out(members: int, most: int) -> None:
    out = 0
    while may_go_out(out, members):
        out += 1
    assert out == most
