"""For each pathology a small change to the package that puts the fault in, and its test catches.

`HOSTILITIES` are what a hostile server, or an error nobody expects, could do before;
`REDIS_MUTATIONS` are against the rules of the quota in Redis, `LIMIT_MUTATIONS` against those of a
limit that is learned, `READINESS` against those of what is ready, replaced and repeated.

`python -m tests.explore.mutations [number ...]` runs each test on a copy of the package, without
and with the change, prints the table, and exits with 1 if a change goes unnoticed. Tests that hang
under a change have caught it, too.

Loaded by pytest as a plugin, this file also makes sure that it is the copy that is tested.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests import ROOT

TESTS: Final = "tests/pool/test_pathologies.py"

LIMIT: Final = 120.0
"""Seconds for a test; one that takes longer hangs."""

WORKERS: Final = 2


@dataclass(frozen=True)
class Mutation:
    """Which pathology, its test, and the text in which file that is replaced by which.

    The test is one of `TESTS`, or else named with its file.
    """

    number: int
    pathology: str
    test: str
    file: str
    old: str
    new: str

    def applied_to(self, text: str) -> str:
        """Return the file's text with the fault in it."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.number}: {self.old!r} is {count} times in {self.file}")
        return text.replace(self.old, self.new)

    def changed_lines(self) -> int:
        """Return how many lines a patch takes out and puts in."""
        text = (ROOT / "wspool" / self.file).read_text()
        patch = difflib.unified_diff(
            text.splitlines(), self.applied_to(text).splitlines(), n=0, lineterm=""
        )
        return sum(line[0] in "+-" for line in list(patch)[2:])


MUTATIONS: Final = (
    Mutation(
        1,
        "waiter cancelled at the hand-over: owned by nobody",
        "test_a_waiter_cancelled_at_the_hand_over_loses_no_connection",
        "_pool/routing.py",
        "self._pass_on(loan, loan._link)",
        "pass",
    ),
    Mutation(
        2,
        "cancellation lost",
        "test_a_task_cancelled_at_the_hand_over_ends_cancelled",
        "_pool/routing.py",
        "self._leave_line(loan)",
        "return waiter.result()",
    ),
    Mutation(
        3,
        "cancellation absorbed by a loop",
        "test_a_slow_hook_does_not_absorb_the_cancellation_of_acquire",
        "_pool/routing.py",
        "            await waiter\n",
        "            while not waiter.done():\n"
        "                try:\n"
        "                    await asyncio.wait({waiter})\n"
        "                except asyncio.CancelledError:\n"
        "                    continue\n"
        "            waiter.result()\n",
    ),
    Mutation(
        4,
        "`except Exception` misses CancelledError",
        "test_a_cancellation_at_any_await_costs_nothing",
        "_pool/routing.py",
        "except BaseException as error:\n            if waiter",
        "except Exception as error:\n            if waiter",
    ),
    Mutation(
        5,
        "wake-up lost on cancellation",
        "test_the_second_waiter_is_served_when_the_first_is_cancelled_in_that_tick",
        "_pool/routing.py",
        'self._check_in(link, "cancelled waiter")',
        'states.checkin(link, "cancelled waiter")',
    ),
    Mutation(
        6,
        "unfair queue",
        "test_who_waits_is_not_overtaken_by_who_comes",
        "_pool/routing.py",
        "        if self.line.loans or self.line.beyond:\n            self.route()",
        "        if self.line.loans or self.line.beyond:\n"
        "            self.tasks.loop.call_soon(self.route)",
    ),
    Mutation(
        7,
        "slot not freed when a dial fails",
        "test_a_failed_dial_frees_its_slot",
        "_pool/closing.py",
        "        self._link.free()\n",
        "        if self._link.wire is not None:\n            self._link.free()\n",
    ),
    Mutation(
        8,
        "waiter not woken when a bad connection is dropped",
        "test_a_waiter_gets_the_place_of_a_connection_that_is_dropped",
        "_pool/closing.py",
        "        self._on_gone()\n",
        "        pass\n",
    ),
    Mutation(
        9,
        "too many dials for the demand",
        "test_there_are_no_more_dials_than_are_needed",
        "_pool/supply.py",
        "line.links_for(line.loans) - promised - len(self._queues.connecting)",
        "line.links_for(line.loans)",
    ),
    Mutation(
        10,
        "more than max sockets at the server",
        "test_the_server_never_sees_more_sockets_than_the_maximum",
        "_pool/capacity.py",
        "self._limit.most - len(self._queues.all)",
        "self._limit.most - len(self._queues.all) + len(self._queues.closed)",
    ),
    Mutation(
        11,
        "count drifts from the truth",
        "test_every_count_is_the_truth_after_every_action",
        "_pool/pool.py",
        "return self._router.capacity.open",
        "return self.stats.dials - self.stats.dial_failures - self.stats.closes.total()",
    ),
    Mutation(
        12,
        "deadlock or leak when closing during a dial",
        "test_closing_during_a_dial_is_bounded_and_leaves_no_socket",
        "_pool/closing.py",
        "            task.cancel()",
        "            pass",
    ),
    Mutation(
        13,
        "close hangs on a borrower that never returns",
        "test_closing_does_not_wait_for_a_borrower_that_never_returns",
        "_pool/closing.py",
        "asyncio.wait({self._all_returned_waiter}, timeout=timeout)",
        "asyncio.wait({self._all_returned_waiter})",
    ),
    Mutation(
        14,
        "stale hand-out",
        "test_no_borrower_sees_a_connection_that_died_while_idle",
        "_pool/attending.py",
        "if has_news or link.is_flooding:",
        "if False:",
    ),
    Mutation(
        15,
        "dirty hand-out (off by one)",
        "test_a_late_reply_is_never_read_by_the_next_borrower",
        "_pool/routing.py",
        "loan._has_sent and (is_failed or loan._has_given_up)",
        "False",
    ),
    Mutation(
        16,
        "an old timer acts on the replacement",
        "test_the_expiry_of_a_connection_spares_its_replacement",
        "_pool/routing.py",
        "        if self.line.loans or self.line.beyond:\n            self.route()",
        "        if self.line.loans or self.line.beyond:\n            self.route()\n"
        "        self.tasks.loop.call_later(\n"
        "            self.options.idle_timeout,\n"
        "            lambda: [link.close(CloseReason.IDLE) for link in self.queues],\n"
        "        )",
    ),
    Mutation(
        17,
        "keepalive refreshes the idle age",
        "test_attending_does_not_make_a_connection_younger",
        "_pool/attending.py",
        "            self.dispose(link)\n        elif",
        "            self.dispose(link)\n            link.idle_since = link.clock()\n        elif",
    ),
    Mutation(
        18,
        "all expire in one second",
        "test_connections_of_one_age_do_not_go_in_one_moment",
        "_pool/retiring.py",
        "self._limits.max_lifetime * (1 - JITTER * link.jitter)",
        "self._limits.max_lifetime",
    ),
    Mutation(
        19,
        "drained to zero and never refilled",
        "test_a_pool_that_lost_everything_fills_up_again",
        "_pool/upkeep.py",
        "    router.supply.refill()",
        "    if router.capacity.open:\n        router.supply.refill()",
    ),
    Mutation(
        20,
        "busy loop against accept-then-close",
        "test_a_server_that_accepts_and_closes_is_not_dialled_in_a_loop",
        "_pool/supply.py",
        "        gate.refused(failure)\n",
        "",
    ),
    Mutation(
        21,
        "built outside the loop, used in another",
        "test_a_pool_made_without_a_loop_belongs_to_the_first_that_uses_it",
        "_pool/pool.py",
        "if self._loop is not None or loop is None:",
        "if loop is None:",
    ),
    Mutation(
        22,
        "I/O or create_task in __del__",
        "test_dropping_a_pool_warns_and_does_nothing_else",
        "_pool/pool.py",
        'if getattr(self, "_loop", None) is not None and not self.is_closed:',
        'if getattr(self, "_loop", None) is not None and not self.is_closed:\n'
        "            self._loop.create_task(self.close_all())",
    ),
    Mutation(
        23,
        "exceptions never retrieved",
        "test_no_error_is_left_unretrieved_and_no_task_is_lost",
        "_connection/wire.py",
        "            await writing\n",
        "            asyncio.ensure_future(writing)\n",
    ),
    Mutation(
        24,
        "concurrent start()",
        "test_starting_five_times_at_once_is_starting_once",
        "_pool/pool.py",
        "            return\n        self._enter()\n        connecting",
        "            return\n"
        "        if self.is_started and not self.total_connections:\n"
        "            self._router.start(self._enter(), self._session.open(1))\n"
        "        self._enter()\n        connecting",
    ),
    Mutation(
        25,
        "cancel pressure leaves a pile of dead waiters",
        "test_cancelled_waiters_leave_nothing_behind",
        "_pool/routing.py",
        "            self.line.leave(loan)\n",
        "",
    ),
    Mutation(
        26,
        "retries run past the deadline",
        "test_acquire_keeps_to_its_deadline_whatever_goes_on_inside",
        "_pool/routing.py",
        "call_later(loan._timeout,",
        "call_later(loan._timeout * self.options.max_retries,",
    ),
    Mutation(
        27,
        "a timed-out waiter is still served",
        "test_a_waiter_whose_time_is_up_is_not_served_any_more",
        "_pool/patience.py",
        "        self._line.fail(loan, error)\n\n    def turn_away_at",
        "        asyncio.get_running_loop().call_soon(self._line.fail, loan, error)\n\n"
        "    def turn_away_at",
    ),
    Mutation(
        28,
        "a user's hook raises",
        "test_a_hook_that_raises_costs_the_connection_and_no_slot",
        "_pool/draining.py",
        'with discarding(link, f"{name} raised; closing #{link.id}"):\n'
        "        loan = await lend_to_hook(link, hook, after)",
        "try:\n        loan = await lend_to_hook(link, hook, after)\n"
        "    except Exception:\n        loan = view_of(link)",
    ),
    Mutation(
        29,
        "illegal transition half done",
        "test_an_illegal_trigger_is_an_error_and_nothing_has_moved",
        "_connection/states.py",
        "        if found is None:\n",
        "        if found is None:\n            model.queues[model.state].pop(model, None)\n",
    ),
)


REDIS: Final = "tests/parts/test_redis.py::"
RECLAIMING: Final = "tests/parts/test_redis_reclaiming.py::"


def _in_redis(number: int, pathology: str, test: str, old: str, new: str) -> Mutation:
    return Mutation(number, pathology, f"{REDIS}{test}", "redis.py", old, new)


def _in_script(number: int, pathology: str, test: str, old: str, new: str) -> Mutation:
    return Mutation(number, pathology, f"{REDIS}{test}", "_redis/script.py", old, new)


def _reclaiming(number: int, pathology: str, test: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(number, pathology, f"{RECLAIMING}{test}", file, old, new)


REDIS_MUTATIONS: Final = (
    _in_script(
        101,
        "more leases than the limit",
        "test_in_any_order_of_steps_there_are_no_more_leases_than_the_limit",
        "if is_there or size(leases) < limit then",
        "if true then",
    ),
    _in_script(
        102,
        "a lease is given twice when an answer is lost",
        "test_a_lease_whose_answer_was_lost_is_given_once",
        "if redis.call('ZSCORE', leases, id) then",
        "if false then",
    ),
    _in_script(
        103,
        "one process takes all turns",
        "test_each_process_has_one_lease_in_its_turn",
        "if served then redis.call('ZADD', queue, now, worker) end",
        "",
    ),
    _in_script(
        104,
        "the line stops at a process that has died",
        "test_who_waits_and_does_not_ask_loses_its_turn",
        "'-inf', now)) do leave(who) end",
        "'-inf', now)) do end",
    ),
    _in_script(
        105,
        "dials in bursts",
        "test_dials_of_all_processes_are_spaced_evenly",
        "due, turn, served = due + interval,",
        "due, turn, served = due,",
    ),
    _in_script(
        106,
        "all leases end in an outage",
        "test_after_an_outage_nothing_expires_before_all_could_renew",
        "passed > 0.4 * lease and now + grace or had.kept",
        "had.kept",
    ),
    _in_script(
        107,
        "all leases end when the clock goes forward",
        "test_whatever_becomes_of_the_servers_clock_leases_last_as_long_as_before",
        "passed > 0.4 * lease and now + grace or had.kept",
        "had.kept",
    ),
    _in_script(
        108,
        "no lease ends when the clock goes back",
        "test_whatever_becomes_of_the_servers_clock_leases_last_as_long_as_before",
        "math.max(1, clock - had.clock)",
        "clock - had.clock",
    ),
    _in_script(
        109,
        "the loss of one key goes unnoticed",
        "test_after_a_loss_of_data_those_who_had_leases_come_first",
        "if is_torn or not epoch then",
        "is_torn = false\nif not epoch then",
    ),
    _in_script(
        110,
        "what others hold is given when data is lost",
        "test_who_waits_while_data_is_lost_does_not_get_what_others_hold",
        "if shut == 0 and (is_torn or",
        "if false and (is_torn or",
    ),
    _in_script(
        111,
        "each that learns of a loss stops the others",
        "test_who_comes_back_from_lost_data_again_and_again_does_not_stop_the_others",
        "if shut == 0 and (is_torn or",
        "if (is_torn or",
    ),
    _in_redis(
        112,
        "leases lost in Redis are entered late",
        "test_whoever_learns_that_data_was_lost_enters_its_leases_at_once",
        'if self._epoch not in ("", epoch) and not renewed:',
        "if False:",
    ),
    _in_redis(
        113,
        "nobody is told of leases lost in Redis",
        "test_who_waits_while_data_is_lost_does_not_get_what_others_hold",
        "        if gone:\n",
        "        if leases:\n",
    ),
    _in_script(
        114,
        "leases are evicted",
        "test_a_server_short_of_memory_that_evicts_what_can_expire_spares_the_quota",
        "  redis.call('PERSIST', state)",
        "  redis.call('EXPIRE', leases, 86400)\n  redis.call('PERSIST', state)",
    ),
    _in_script(
        115,
        "the state is evicted",
        "test_nothing_that_matters_has_a_time_to_live",
        "  redis.call('PERSIST', state)",
        "  ",
    ),
    _in_script(
        116,
        "a released lease lies idle until somebody asks",
        "test_a_released_lease_goes_to_the_next_in_line_at_once",
        "redis.pcall('PUBLISH', queue .. ':' .. who, '')",
        "redis.pcall('PUBLISH', queue, '')",
    ),
    _in_script(
        117,
        "everybody is told of each lease",
        "test_whoever_leaves_room_tells_those_whom_it_is_for",
        "if not told[who] then",
        "if true then",
    ),
    _in_script(
        118,
        "no right to channels: dials fail",
        "test_where_nothing_can_be_heard_who_waits_asks",
        "redis.pcall('PUBLISH', queue .. ':' .. who",
        "redis.call('PUBLISH', queue .. ':' .. who",
    ),
    Mutation(
        119,
        "to listen takes the last connection",
        f"{REDIS}test_where_nothing_can_be_heard_who_waits_asks",
        "_redis/listening.py",
        '"max_connections", 2) > 1',
        '"max_connections", 2) > 0',
    ),
    _in_redis(
        120,
        "a key whose parts are in different slots",
        "test_a_key_that_redis_would_not_keep_in_one_place_is_a_value_error",
        ' or key.startswith("}")',
        "",
    ),
    _reclaiming(
        121,
        "each process closes one for a single waiter",
        "test_no_more_is_taken_than_is_missing",
        "_redis/script.py",
        "math.min(#offered, missing())",
        "#offered",
    ),
    _reclaiming(
        122,
        "what was promised is taken once more",
        "test_no_more_is_taken_than_is_missing",
        "_redis/script.py",
        " - size(promises)",
        "",
    ),
    _reclaiming(
        123,
        "a promise stands that nobody keeps",
        "test_a_promise_that_was_withdrawn_or_not_kept_in_time_is_none",
        "_redis/script.py",
        "redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)",
        "",
    ),
    _reclaiming(
        124,
        "a promise stands that was withdrawn",
        "test_a_promise_that_was_withdrawn_or_not_kept_in_time_is_none",
        "_redis/script.py",
        "for _, id in ipairs(withdrawn) do redis.call('ZREM', promises, id) end",
        "",
    ),
    _reclaiming(
        125,
        "leases are missing for the dead",
        "test_nothing_is_missing_for_those_who_have_died_or_wait_no_more",
        "_redis/script.py",
        "  need(who, 0)\n",
        "",
    ),
    _reclaiming(
        126,
        "nobody is told that leases are missing",
        "test_who_waits_has_what_is_idle_in_another_process",
        "_redis/script.py",
        "queue .. ':needed', called",
        "queue, called",
    ),
    _reclaiming(
        127,
        "all are told with each question",
        "test_all_are_told_once_when_leases_are_missing_and_when_none_is",
        "_redis/script.py",
        "if called ~= had.called then",
        "if true then",
    ),
    _reclaiming(
        128,
        "one is closed for a dial that nobody waits for",
        "test_nobody_is_closed_for_a_dial_that_nobody_waits_for",
        "redis.py",
        "self._needed = self._need()",
        "self._needed = len(wanted)",
    ),
    _reclaiming(
        129,
        "who comes to wait for a dial is not told of",
        "test_nobody_is_closed_for_a_dial_that_nobody_waits_for",
        "redis.py",
        "if not self._needed and self._need():",
        "if False:",
    ),
    _reclaiming(
        130,
        "a call that was not heard is never noticed",
        "test_a_call_that_was_not_heard_is_noticed_at_the_renewal",
        "redis.py",
        "self._offers.hear(is_wanted=bool(is_wanted))",
        "pass",
    ),
    _reclaiming(
        131,
        "a call is forgotten by an older answer",
        "test_a_call_that_is_newer_than_an_answer_counts",
        "redis.py",
        "if calls == self._calls:",
        "if True:",
    ),
    _reclaiming(
        132,
        "what was said before it listens goes unnoticed",
        "test_a_subscription_that_was_cut_is_made_anew_and_what_was_said_meanwhile_is_asked_for",
        "redis.py",
        "if said is None:",
        "if False:",
    ),
    _reclaiming(
        133,
        "a promise is not withdrawn",
        "test_what_was_lent_in_the_meantime_is_not_closed_and_another_gives_its_own",
        "redis.py",
        "self._promises[len(self._leaving) :]",
        "[]",
    ),
    _reclaiming(
        134,
        "the one that is idle for longest is not the first",
        "test_the_one_that_is_idle_for_longer_goes_first",
        "_redis/offers.py",
        "max(0.0, HOLD_SECONDS - sooner)",
        "HOLD_SECONDS",
    ),
    _reclaiming(
        135,
        "what is busy at a call is not given afterwards",
        "test_what_is_busy_is_given_once_it_is_idle",
        "_redis/offers.py",
        "self._alarm = loop.call_at(max(following, now + SOONER_SECONDS), self._look)",
        "pass",
    ),
    _reclaiming(
        136,
        "a process that holds nothing heeds calls",
        "test_a_process_that_holds_nothing_heeds_no_call",
        "redis.py",
        "if self._is_in_use:  # else",
        "if True:  # else",
    ),
    _reclaiming(
        137,
        "who may not listen tries for ever",
        "test_where_nothing_may_be_heard_it_is_said_once_and_noticed_at_the_renewal",
        "_redis/listening.py",
        "self.is_able = False",
        "pass",
    ),
)


ATTACK: Final = (
    "tests/explore/test_hostile.py::test_an_attack_costs_no_pause_no_memory_and_no_place"
)
HOSTILE: Final = "tests/pool/test_hostile.py::"
INJECTION: Final = "tests/pool/test_injection.py::"

HOSTILITIES: Final = (
    Mutation(
        30,
        "pongs for a peer that does not read",
        f"{HOSTILE}test_no_pong_is_written_to_a_peer_that_does_not_read",
        "_connection/wire.py",
        "        if not aiohttp_internals.is_congested(self.websocket):\n",
        "        if True:\n",
    ),
    Mutation(
        31,
        "second await of a future that was given up",
        f"{HOSTILE}test_a_future_that_was_given_up_can_be_awaited_by_others",
        "_connection/aiohttp_internals.py",
        "awaited._asyncio_future_blocking = False",
        "pass",
    ),
    Mutation(
        32,
        "an error in a step ends the upkeep",
        f"{INJECTION}test_an_error_in_any_step_of_the_upkeep_is_logged_once_and_the_next_step_comes",
        "_pool/upkeep.py",
        '        except BaseException:\n            logger.exception("a step',
        '        except OSError:\n            logger.exception("a step',
    ),
    Mutation(
        33,
        "an error in a goodbye costs the place",
        f"{INJECTION}test_an_error_at_any_await_of_the_pools_tasks_costs_a_connection_at_most",
        "_pool/closing.py",
        '            logger.exception("the goodbye of #%d broke down", link.id)\n'
        "            self.abort()\n",
        '            logger.exception("the goodbye of #%d broke down", link.id)\n',
    ),
    Mutation(
        34,
        "no budget for what is read for nobody",
        f"{ATTACK}[bombs]",
        "_connection/wire.py",
        "            if (frames > MIN_FRAMES or self.is_flooded) and self.budget.is_spent:\n",
        "            if False:\n",
    ),
    Mutation(
        35,
        "a close reads a flood to its end",
        f"{HOSTILE}test_a_peer_that_answers_a_close_with_a_flood_is_cut_off",
        "_connection/aiohttp_internals.py",
        "        ours._reader = _LastReader(ours._reader, breathe, abort)",
        "        pass",
    ),
    Mutation(
        36,
        "a ping beside a flood keeps all of it",
        f"{HOSTILE}test_a_ping_beside_an_endless_flood_fails_and_what_is_kept_is_bounded",
        "_connection/link.py",
        "            elif wire.inbox_bytes >= MAX_INBOX_BYTES:\n",
        "            elif False:\n",
    ),
    Mutation(
        37,
        "a BaseException in a drain costs the place",
        f"{INJECTION}test_an_error_at_any_await_of_the_pools_tasks_costs_a_connection_at_most",
        "_pool/tasks.py",
        "    except BaseException:\n        # A fault of this package's, or",
        "    except Exception:\n        # A fault of this package's, or",
    ),
)
"""Numbered on from the pathologies."""

IDLE: Final = "tests/pool/test_min_idle.py::"
GRACE: Final = "tests/pool/test_replacing.py::"
REPEATING: Final = "tests/pool/test_repeating.py::"

READINESS: Final = (
    Mutation(
        301,
        "a checkout begins no dial",
        f"{IDLE}test_each_checkout_begins_the_next_dial_at_once",
        "_pool/routing.py",
        "            self.events.checked_out(link, 0.0)\n"
        "        if self.options.min_idle or self.replacing.outdated:\n",
        "            self.events.checked_out(link, 0.0)\n        if False:\n",
    ),
    Mutation(
        302,
        "idle_timeout takes the spares",
        f"{IDLE}test_start_opens_them_and_idle_timeout_spares_them",
        "_pool/attending.py",
        "and len(self._idle) > options.min_idle",
        "",
    ),
    Mutation(
        303,
        "a place that is free again is no spare's",
        f"{IDLE}test_a_place_that_is_free_is_refilled_without_a_look",
        "_pool/routing.py",
        "        if not self.gate.streak:\n            self._refill()\n",
        "",
    ),
    Mutation(
        304,
        "old ones close before their replacements are open",
        f"{GRACE}test_an_old_one_is_lent_until_its_replacement_is_open",
        "_pool/replacing.py",
        "self._retiring.expire(link, now + grace)",
        "self._retiring.expire(link, now)",
    ),
    Mutation(
        305,
        "two go for each replacement",
        f"{GRACE}test_what_is_kept_is_replaced_though_nobody_needs_it",
        "_pool/replacing.py",
        "        self.wanted.pop(old, None)\n",
        "        self.wanted.pop(old, None)\n        self.close_overdue(float('inf'))\n",
    ),
    Mutation(
        306,
        "at the limit all go at once",
        f"{GRACE}test_at_the_limit_an_idle_one_goes_first_one_at_a_time",
        "_pool/replacing.py",
        "and not (self._queues.connecting or self._queues.closed)",
        "",
    ),
    Mutation(
        307,
        "old ones are lent for ever",
        f"{GRACE}test_what_nobody_needs_is_not_replaced_and_closes_when_the_grace_is_over",
        "_pool/replacing.py",
        "if link.retire_at <= now and link.state is State.IDLE:",
        "if False:",
    ),
    Mutation(
        308,
        "one that made room is forgotten",
        f"{GRACE}test_at_the_limit_nobody_loses_what_it_waits_for",
        "_pool/replacing.py",
        "                    self.ahead[first] = None\n",
        "                    pass\n",
    ),
    Mutation(
        309,
        "what is kept is not replaced before it is too old",
        f"{GRACE}test_what_is_kept_and_grows_old_is_replaced_first",
        "_pool/replacing.py",
        "now >= link.retire_at - ahead:",
        "now >= link.retire_at:",
    ),
    Mutation(
        310,
        "work is repeated on a fresh connection",
        f"{REPEATING}test_a_fresh_connection_that_is_lost_is_no_reason_to_repeat",
        "_pool/repeating.py",
        "is_lost and self.loan.reused",
        "is_lost",
    ),
    Mutation(
        311,
        "work is repeated after a message",
        f"{REPEATING}test_after_a_message_nothing_is_repeated",
        "_pool/repeating.py",
        "wire.received_messages == self._received and",
        "True and",
    ),
    Mutation(
        312,
        "a message that came before the work is not counted",
        f"{REPEATING}test_a_message_that_came_before_the_work_began_counts",
        "_pool/repeating.py",
        "wire.received_messages - len(wire.inbox or ())",
        "wire.received_messages",
    ),
    Mutation(
        313,
        "work is repeated after a part of a message",
        f"{REPEATING}test_after_a_part_of_a_message_nothing_is_repeated",
        "_pool/repeating.py",
        "link.close_code == 1006 and has_heard",
        "False",
    ),
    Mutation(
        314,
        "an error of the work's own is repeated",
        f"{REPEATING}test_an_error_of_the_works_own_is_not_repeated",
        "_pool/repeating.py",
        "except ConnectionClosedError:",
        "except BaseException:",
    ),
    Mutation(
        315,
        "a server in trouble gets twice the load",
        f"{REPEATING}test_no_more_are_repeated_than_the_budget_allows",
        "_pool/repeating.py",
        "not attempt.was_in_vain() or not self.is_within_budget(now)",
        "not attempt.was_in_vain()",
    ),
)
"""Against the rules of what is ready, what is replaced and what is repeated."""


LEARNED: Final = "tests/pool/test_learned_limit.py::"

LIMIT_MUTATIONS: Final = (
    Mutation(
        201,
        "a refusal with nothing open is taken for a limit",
        f"{LEARNED}test_a_ban_is_the_gates_business",
        "_pool/supply.py",
        "if len(others) == len(new):",
        "if False:",
    ),
    Mutation(
        202,
        "a full server is dialled by all that wait",
        f"{LEARNED}test_the_first_refusal_calls_off_all_other_dials",
        "_pool/supply.py",
        "                other.close(CloseReason.DIAL)",
        "                pass",
    ),
    Mutation(
        203,
        "several probes at a time",
        f"{LEARNED}test_never_more_than_one_probe_is_under_way",
        "_pool/limit.py",
        "and not self.trials and",
        "and",
    ),
    Mutation(
        204,
        "a probe for nobody",
        f"{LEARNED}test_what_the_pool_keeps_ready_keeps_to_it_and_never_probes",
        "_pool/supply.py",
        "self._queues.connecting)), self._capacity.room))",
        "self._queues.connecting)), self._capacity.room + self._capacity.may_probe))",
    ),
    Mutation(
        205,
        "a full server closes the gate",
        f"{LEARNED}test_a_full_server_is_no_trouble_and_closes_no_gate",
        "_pool/dialing.py",
        "                self.was_full = True\n",
        "                self.was_full = True\n                gate.failed(in_round, failure)\n",
    ),
    Mutation(
        206,
        "a limit that was raised is not found",
        f"{LEARNED}test_a_limit_that_was_raised_is_found_one_by_one",
        "_pool/limit.py",
        'self._set(self.learned + 1, "one more was admitted")',
        'self._set(self.learned, "one more was admitted")',
    ),
    Mutation(
        207,
        "a limit is never forgotten",
        f"{LEARNED}test_it_is_forgotten_when_nobody_has_waited_for_long",
        "_pool/limit.py",
        'self._forget("nobody has waited for ten minutes")',
        "pass",
    ),
    Mutation(
        208,
        "a suspected server is asked by all at once",
        f"{LEARNED}test_after_a_refusal_with_nothing_open_a_success_wakes_one_other_dial",
        "_pool/supply.py",
        "wakes_one=limit.is_suspected",
        "wakes_one=False",
    ),
    Mutation(
        209,
        "those that close the oldest are dialled for ever",
        f"{LEARNED}test_one_that_closes_the_oldest_for_the_newest_is_left_in_peace",
        "_pool/supply.py",
        "            self._watch_evictions(link)",
        "            pass",
    ),
    Mutation(
        210,
        "the exhausted are not told why",
        f"{LEARNED}test_one_that_may_not_wait_is_told_what_the_server_said",
        "_pool/patience.py",
        'self._limit.refusal if self._limit.is_short else ""',
        '""',
    ),
)
"""Against learning what a server admits."""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test another wspool than the one beside the tests."""
    import wspool

    tested = Path(wspool.__file__).resolve().parent
    if tested != config.rootpath.resolve() / "wspool":
        raise pytest.UsageError(f"{tested} would be tested, not the copy in {config.rootpath}")


def run(test: str, mutation: Mutation | None = None) -> str:
    """Run a test on a copy of the package; return "passes", "fails" or "hangs".

    Raises RuntimeError when the test could not be run, as with a mutation that is no Python.
    """
    with tempfile.TemporaryDirectory(prefix="wspool-mutation-") as name:
        copy = Path(name)
        for part in ("wspool", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutation is not None:
            file = copy / "wspool" / mutation.file
            file.write_text(mutation.applied_to(file.read_text()))
        options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "tests.explore.mutations")
        named = test if "::" in test else f"{TESTS}::{test}"
        command = [sys.executable, "-X", "dev", "-m", "pytest", *options, named]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env=os.environ | {"PYTHONPATH": name},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return "hangs"
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test} could not be run:\n{done.stdout}\n{done.stderr}")
    return "fails" if done.returncode else "passes"


def verdicts(mutation: Mutation) -> tuple[str, str]:
    """Return how the mutation's test ends without and with it."""
    try:
        return run(mutation.test), run(mutation.test, mutation)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return "?", "?"


def main(numbers: Sequence[str]) -> int:
    """Print the table; return 1 unless every mutation is caught."""
    known = (*MUTATIONS, *HOSTILITIES, *REDIS_MUTATIONS, *LIMIT_MUTATIONS, *READINESS)
    chosen = [m for m in known if not numbers or str(m.number) in numbers]
    caught = 0
    print(f"{'#':>2}  {'pathology':<52}{'unpatched':<11}{'patched':<9}test")
    with ThreadPoolExecutor(WORKERS) as workers:
        for mutation, (before, after) in zip(chosen, workers.map(verdicts, chosen), strict=True):
            is_caught = before == "passes" and after in ("fails", "hangs")
            caught += is_caught
            print(
                f"{mutation.number:>2}  {mutation.pathology:<52}{before:<11}{after:<9}"
                f"{mutation.test}{'' if is_caught else '  <-- NOT CAUGHT'}",
                flush=True,
            )
    print(f"{caught}/{len(chosen)} caught")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
