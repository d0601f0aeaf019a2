"""A loan that stands in several lines is served once, in whatever order things happen."""

from __future__ import annotations

from collections import Counter

import pytest

from tests import IS_WHOLE
from tests.explore.group_schedules import explore_group
from tests.explore.schedules import Violation
from tests.explore.test_schedules import Fault, compiled
from wspool._group import crowd, doors
from wspool._pool import routing, waiting

SCHEDULES = 2000 if IS_WHOLE else 60


def test_nothing_that_must_hold_is_broken_by_any_schedule() -> None:
    events: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        events += explore_group(seed)
    for what in ("loans", "streams", "cancelled", "ejected", "lost", "out"):
        assert events[what] > SCHEDULES / 10, f"the schedules have too few of these: {what}"


FAULTS = [
    Fault(
        1,
        "whoever is served stays in the lines of the others",
        waiting.Line.serve,
        "self.crowd.leave(loan)",
        "pass",
    ),
    Fault(
        2,
        "whoever leaves the crowd stays in its host's line",
        crowd.Crowd.leave,
        "standing.host.line.leave(loan)",
        "pass",
    ),
    Fault(
        3,
        "a member with an idle link looks at its own line only",
        routing.Router.route,
        "(waiting or beyond)",
        "waiting",
    ),
    Fault(
        4,
        "a link is lost that was served to one that was cancelled in that tick",
        doors.CommonDoor._leave,
        "self._pass_on(loan, loan._link)",
        "pass",
    ),
    Fault(
        5,
        "one is hosted twice",
        crowd.Crowd.join,
        "if standing.host is None",
        "if True",
    ),
    Fault(
        6,
        "one whom its host refuses is forgotten",
        crowd.Crowd.refuse,
        "self._settle(loan, standing)",
        "pass",
    ),
    Fault(
        7,
        "one whose host is out waits for it all the same",
        crowd.Crowd.abandon,
        "self._take_from(member, loan, standing)",
        "standing.host = None",
    ),
    Fault(
        8,
        "those without a host are adopted, and not dialled for",
        crowd.Crowd.let_host,
        "member.host(loan)",
        "pass",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.story)
def test_a_fault_put_back_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by one of 300 schedules."""
    monkeypatch.setattr(fault.function, "__code__", compiled(fault).__code__)
    for seed in range(300):
        try:
            explore_group(seed)
        except Violation:
            return
    pytest.fail(f"nobody notices that {fault.story}")
