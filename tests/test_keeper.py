"""The keeper beside a tree that only writes down what it is asked; the real one is in tests/server."""

import pytest

from astraea_sglang.actions import KvAction
from astraea_sglang.keeper import Keeper
from astraea_sglang.obey import carry_out, obey
from astraea_sglang.program import Program
from astraea_sglang.tree import Memory
from tests.builders import arrive, run, table

POOL = 10_000
TIGHT, EASY = Memory(POOL, running=9000, waiting=9000), Memory(POOL)


class Notes:
    """Stands for a radix tree: one node per path, all of it private."""

    def __init__(self, copies=False, length=1000):
        self.copies, self.length, self.done = copies, length, []

    def pin(self, node, most):
        tokens = min(most, self.length)
        self.done.append(("pin", node, tokens))
        return (node, tokens) if tokens else (None, 0)

    def unpin(self, pin):
        self.done.append(("unpin", pin))

    def _note(self, what, program, node, kept):
        self.done.append((what, node))
        return self.length - kept

    def free(self, program, node, kept):
        return self._note("free", program, node, kept)

    def demote(self, program, node, kept):
        return self._note("demote", program, node, kept)

    def wanted(self, program):
        pass

    def load(self, node):
        self.done.append(("load", node))
        return self.length


class Noted(Keeper):
    _tree: Notes


def keeper(copies=False, length=1000, **settings) -> Noted:
    t = table(**settings)
    k = Noted(t.config, t, Notes(copies, length), POOL)
    t.gone = k.ended
    return k


def pause(k: Keeper, name="p", tool="search", tokens=1000, **hints) -> Program:
    t = k._table
    segment = t.arrive(f"{name}.{t.now}", hints_of(name, tool, **hints), tokens, 64)
    k.returned(segment.program)
    run(t, segment, 1)
    program = segment.program
    program.resident, program.shared, program.tails = tokens, 0, [ord(name[0])]
    k.paused(program)
    return program


def hints_of(name, tool, **more):
    from astraea_sglang.hints import Hints

    return Hints(program_id=name, program_class="react", next_tool=tool, **more)


def after(k: Keeper, seconds: float, memory: Memory) -> None:
    k._table.advance(k.now + seconds)
    k.tick(memory)


def asked(kind, ttl_s=None, tokens=None):
    return KvAction("a", kind, ttl_s, tokens)


def test_with_memory_to_spare_a_paused_program_is_preserved_and_nothing_is_locked():
    k = keeper()
    program = pause(k)
    assert [d.choice for d in k.decisions.ring] == ["preserve"] and k._tree.done == []
    assert program.back == k.now


def test_under_pressure_what_takes_long_is_given_up_but_not_freed_before_memory_is_wanted():
    k = keeper()
    pause(k, expected_tool_s=600.0)
    after(k, 5.0, TIGHT)
    assert [d.choice for d in k.decisions.ring] == ["preserve", "discard"] and k._tree.done == []


def test_a_long_tool_that_is_nearly_done_is_preserved_again():
    k = keeper()
    for _ in range(5):
        program = pause(k)
        k._table.advance(k.now + 60)
        arrive(k._table, f"r{k.now}", "p")
        k._table.finish(program.live[f"r{k.now}"])
    k.tick(TIGHT)
    pause(k)
    assert k.decisions.ring[-1].choice == "discard"
    for _ in range(200):
        after(k, 0.299, TIGHT)
    assert k.decisions.ring[-1].choice == "preserve"


@pytest.mark.parametrize(("retention", "does"), [("preserve", "pin"), ("discard", "free"), ("swap", "demote")])
def test_what_is_always_done_is_done_as_the_tool_begins(retention, does):
    k = keeper(copies=True, retention=retention)
    pause(k)
    assert [what for what, *_ in k._tree.done] == [does]


def test_lru_leaves_everything_to_sglang():
    k = keeper(retention="lru", end="keep")
    program = pause(k)
    after(k, 9.0, TIGHT)
    k._table.end(program.id)
    assert k._tree.done == [] and not k.decisions.ring


def test_locks_stay_within_the_share_of_the_pool_and_of_a_program():
    k = keeper(retention="preserve", preserve=0.25, quota=0.08)
    for name in "abcde":
        pause(k, name)
    assert k.leases.tokens == 2500
    assert [lease.tokens for lease in k.leases.held.values()] == [800, 800, 800, 100]


def test_every_lock_ends():
    k = keeper(retention="preserve", lease=30.0)
    program = pause(k)
    after(k, 29.0, EASY)
    assert program.pinned
    after(k, 2.0, EASY)
    assert not program.pinned and k._tree.done[-1] == ("unpin", ord("p")) and not k.leases.held


def test_a_lock_lasts_until_the_next_segment_runs():
    k = keeper(retention="preserve")
    program = pause(k)
    segment = arrive(k._table, "next", "p")
    k.returned(program)
    assert program.pinned
    k.resumed(program, segment.known, 90, 0.0)
    assert not program.pinned and not k.holdings


def test_locks_give_way_the_latest_return_first():
    k = keeper(retention="preserve", preserve=1.0)
    soon, late = pause(k, "a", expected_tool_s=1.0), pause(k, "b", expected_tool_s=100.0)
    assert k.give_way(500) == 1000
    assert soon.pinned and not late.pinned
    assert k.give_way(5000) == 1000 and not soon.pinned


def test_a_swapped_path_is_on_its_way_back_before_its_tool_is():
    k = keeper(copies=True, retention="swap")
    program = pause(k, expected_tool_s=10.0)
    after(k, 5.0, EASY)
    assert [what for what, *_ in k._tree.done] == ["demote"]
    for _ in range(60):
        after(k, 0.1, EASY)
    assert [what for what, *_ in k._tree.done] == ["demote", "load"]
    assert k.tool_finished(program) == 0


def test_an_announced_return_loads_a_swapped_path_at_once():
    k = keeper(copies=True, retention="swap")
    program = pause(k, expected_tool_s=100.0)
    assert k.tool_finished(program) == 1000 and k._tree.done[-1] == ("load", ord("p"))


def test_at_its_end_a_programs_private_kv_is_freed():
    k = keeper()
    pause(k)
    k._table.end("p")
    assert ("free", ord("p")) in k._tree.done and not k.holdings


def test_kept_ends_are_left_to_eviction():
    k = keeper(end="keep")
    pause(k)
    k._table.end("p")
    assert k._tree.done == []


def test_a_return_tells_what_the_choice_was_worth():
    k = keeper()
    program = pause(k)
    k._table.advance(k.now + 4)
    segment = arrive(k._table, "next", "p")
    k.returned(program)
    k.resumed(program, segment.known, 30, 0.5)
    row = k.decisions.ring[-1]
    assert (row.actual, row.lost) == (4.0, segment.known - 30)
    assert k.decisions.totals["preserved_token_seconds"] == 4.0 * 1000


def test_an_emptied_tree_drops_locks_without_touching_it():
    k = keeper(retention="preserve")
    program = pause(k)
    k.cleared()
    assert [what for what, *_ in k._tree.done] == ["pin"]
    assert not program.pinned and not k.holdings and not k.leases.tokens


def test_without_paused_programs_a_tick_does_nothing():
    k = keeper()
    k.tick(TIGHT)
    assert not k._reviews and not k.pressure


def test_a_client_may_lock_its_own_program_up_to_the_bounds():
    k = keeper(quota=0.05, lease=60.0)
    program = pause(k)
    outcome = obey(k, program, asked("kv.pin", ttl_s=600.0))
    assert (outcome.status, outcome.ttl_s, outcome.tokens) == ("clipped", 60.0, 500)
    assert program.pinned
    assert obey(k, pause(k, "q"), asked("kv.pin", ttl_s=10.0, tokens=200)).status == "accepted"


def test_a_clients_lock_outlives_our_own_choices():
    k = keeper()
    program = pause(k, expected_tool_s=600.0)
    obey(k, program, asked("kv.pin", ttl_s=100.0))
    after(k, 5.0, TIGHT)
    assert k.decisions.ring[-1].choice == "discard" and program.pinned


def test_a_lock_asked_for_by_a_running_segment_begins_when_it_ends():
    k = keeper()
    segment = arrive(k._table, "r", "p")
    outcome = obey(k, segment.program, asked("kv.pin", ttl_s=10.0))
    assert outcome.status == "accepted" and not segment.program.pinned
    program = pause(k)
    assert carry_out(k, program) == 1000 and program.pinned


def test_a_full_share_refuses_and_says_so():
    k = keeper(preserve=0.1, quota=0.1)
    obey(k, pause(k, "a"), asked("kv.pin"))
    outcome = obey(k, pause(k, "b"), asked("kv.pin"))
    assert outcome.status == "rejected" and "--astraea-preserve" in outcome.why


@pytest.mark.parametrize("kind", ["kv.demote", "kv.prefetch"])
def test_without_a_host_pool_copies_are_refused_with_the_flag_to_add(kind):
    outcome = obey(keeper(), pause(k := keeper()), asked(kind))
    assert outcome.status == "rejected" and "--enable-hierarchical-cache" in outcome.why and k._tree.done == []


def test_a_demoted_path_can_be_fetched_again():
    k = keeper(copies=True)
    program = pause(k)
    assert obey(k, program, asked("kv.prefetch")).tokens == 0
    assert obey(k, program, asked("kv.demote")).status == "accepted"
    assert obey(k, program, asked("kv.prefetch")).tokens == 1000
    assert [what for what, *_ in k._tree.done] == ["demote", "load"]


def test_what_is_retained_counts_as_wanted_at_once_until_its_time_is_over():
    k = keeper()
    program = pause(k, expected_tool_s=600.0)
    assert program.back > k.now + 500
    obey(k, program, asked("kv.retain", ttl_s=20.0))
    assert program.back == k.now
    for _ in range(30):
        after(k, 1.0, EASY)
    assert program.back > k.now + 500


def test_what_is_dereferenced_is_unlocked_and_wanted_by_nobody():
    k = keeper(retention="preserve")
    program = pause(k)
    assert obey(k, program, asked("kv.deref")).status == "accepted"
    assert not program.pinned
    after(k, 5.0, EASY)
    assert program.back == float("inf")


def test_room_for_a_program_is_not_made_of_its_own_lock():
    k = keeper(retention="preserve", preserve=1.0)
    own, other = pause(k, "a", expected_tool_s=100.0), pause(k, "b", expected_tool_s=1.0)
    assert k.give_way(500, own.key) == 1000
    assert own.pinned and not other.pinned
