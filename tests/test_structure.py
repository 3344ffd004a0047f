import math

import pytest

from astraea_sglang.errors import HintError
from astraea_sglang.graph import MAX_LOOPS, MAX_WAYS
from astraea_sglang.structure import MAX_NODES, MAX_TOKENS, digest, parse

SEARCHER = {
    "nodes": [
        {"id": "think", "kind": "segment", "max_tokens": 256, "expected_tokens": 80, "next": ["search"]},
        {"id": "search", "kind": "tool", "tool": "web", "expected_s": 0.5, "next": ["again"]},
        {"id": "again", "kind": "loop", "body": "think", "most": 8, "expected": 3, "next": ["fan"]},
        {"id": "fan", "kind": "fork", "next": ["left", "right"]},
        {"id": "left", "kind": "segment", "next": ["meet"]},
        {"id": "right", "kind": "segment", "next": ["meet"]},
        {"id": "meet", "kind": "join", "next": ["answer"]},
        {"id": "answer", "kind": "segment", "max_tokens": 512, "new_tokens": 40},
    ]
}


def segment(name, *then, **more):
    return {"id": name, "kind": "segment", "next": list(then), **more}


def tool(name, *then, **more):
    return {"id": name, "kind": "tool", "next": list(then), **more}


def loop(name, body, most, *then, **more):
    return {"id": name, "kind": "loop", "body": body, "most": most, "next": list(then), **more}


def fork(name, *then):
    return {"id": name, "kind": "fork", "next": list(then)}


def join(name, *then):
    return {"id": name, "kind": "join", "next": list(then)}


def structure(*nodes):
    return parse({"nodes": list(nodes)})


def usual(futures):
    return pytest.approx(futures.segments), pytest.approx(futures.most_segments)


def test_a_chain_shrinks_by_one_node_a_step():
    chain = structure(segment("a", "b", max_tokens=10), tool("t", "c"), segment("b", "t"), segment("c", max_tokens=30))
    assert usual(chain.start()) == (3, 3)
    assert usual(chain.after("a")) == (2, 2) and chain.after("a").tools == ("t",)
    assert usual(chain.after("t")) == (1, 1) and chain.after("t").tools == ()
    assert usual(chain.after("c")) == (0, 0) and chain.after("c").width == 0


def test_a_segment_that_declares_no_tokens_counts_the_caller_s_and_at_most_the_bound():
    chain = structure(segment("a", "b", max_tokens=10), segment("b", expected_tokens=50))
    assert chain.start(unknown_tokens=7).expected_tokens == 57
    assert chain.start(unknown_tokens=99).expected_tokens == 60
    assert chain.start().most_tokens == 10 + MAX_TOKENS


def test_tools_and_prompt_tokens_are_summed():
    chain = structure(
        tool("a", "b", expected_s=2), segment("b", "c", new_tokens=30), tool("c", expected_s=3, tool="ls")
    )
    futures = chain.start()
    assert (futures.tool_s, futures.new_tokens, futures.tools) == (5, 30, ("a", "ls"))


def test_alternatives_share_the_visits_until_one_is_taken():
    branch = structure(segment("a", "b", "c"), segment("b", "d"), segment("d", "e"), segment("c", "e"), segment("e"))
    assert usual(branch.start()) == (1 + 0.5 + 0.5 + 0.5 + 1, 5)
    assert usual(branch.after("a")) == (2.5, 4)
    assert usual(branch.after("b")) == (2, 2)
    assert usual(branch.after("c")) == (1, 1)
    assert branch.start().width == 1


def a_loop(**more):
    return structure(loop("l", "a", 4, "z", **more), segment("a", "b"), tool("b", "l"), segment("z"))


def test_a_loop_is_entered_and_comes_back_at_most_most_times():
    assert usual(a_loop(expected=3).start()) == (3 + 1, 4 + 1)
    assert usual(a_loop().start()) == (2 + 1, 4 + 1)


def test_each_visit_uses_up_a_round():
    after = [usual(a_loop(expected=2).after("a", visits)) for visits in range(1, 7)]
    assert after == [(1 + 1, 3 + 1), (1, 2 + 1), (1, 1 + 1), (1, 1), (1, 1), (1, 1)]
    assert usual(a_loop(expected=2).after("l", 1)) == (2 + 1, 4 + 1)


def test_the_rest_of_the_round_follows_even_in_the_last_one():
    assert [a_loop(expected=2).after("a", visits).tools for visits in (1, 4, 5)] == [("b",)] * 3
    assert a_loop(expected=2).after("b", 4).tools == ()


def test_a_loop_that_is_usually_skipped_still_has_a_round_once_it_is_in():
    skipped = structure(loop("l", "a", 4, "z", expected=0), segment("a", "b"), segment("b", "l"), segment("z"))
    assert usual(skipped.start()) == (1, 4 + 4 + 1)
    assert usual(skipped.after("a")) == (1 + 1, 3 + 4 + 1)


def test_a_loop_entered_at_its_body_counts_that_round():
    agent = parse(SEARCHER)
    assert usual(agent.start()) == (3 + 2 + 1, 8 + 2 + 1)
    assert usual(agent.after("think", 1)) == (2 + 3, 7 + 3)
    assert usual(agent.after("think", 8)) == (3, 3)
    assert agent.after("search", 1).tool_s == pytest.approx(2 * 0.5)
    assert usual(agent.after("again", 8)) == (1 + 3, 1 + 3)


def nested():
    return structure(
        loop("outer", "inner", 3, "z", expected=2),
        loop("inner", "a", 4, "c", expected=3),
        segment("a", "inner"),
        segment("c", "outer"),
        segment("z"),
    )


def test_nested_loops_multiply():
    assert usual(nested().start()) == (6 + 2 + 1, 12 + 3 + 1)


def test_inner_rounds_are_spread_over_the_outer_ones():
    assert usual(nested().after("a", 1)) == (5 + 2 + 1, 11 + 3 + 1)
    assert usual(nested().after("a", 6)) == (0 + 1 + 1, 6 + 2 + 1)
    assert usual(nested().after("a", 12)) == (0 + 1 + 1, 0 + 1 + 1)
    assert usual(nested().after("c", 1)) == (3 + 1 + 1, 8 + 2 + 1)
    assert usual(nested().after("c", 3)) == (1, 1)


def test_two_loops_may_share_their_body():
    shared = structure(
        segment("a", "inner"), loop("inner", "a", 2, "check"), segment("check", "outer"), loop("outer", "a", 5)
    )
    assert usual(shared.start()) == (3 * 1 + 3, 5 * 2 + 5)


def test_a_body_may_go_on_with_the_outer_loop():
    jobs = structure(
        loop("jobs", "tries", 3, "z", expected=1),
        loop("tries", "a", 2, "jobs", expected=1),
        segment("a", "tries", "jobs"),
        segment("z"),
    )
    assert usual(jobs.start()) == (1 + 1, 6 + 1)
    assert usual(jobs.after("a", 6)) == (1, 1)


def test_a_loop_whose_rounds_run_out_may_end_the_program():
    tries = structure(
        loop("jobs", "tries", 3, "z"),
        loop("tries", "a", 2),
        segment("a", "b", "fix"),
        segment("b", "jobs"),
        segment("fix", "tries"),
        segment("z"),
    )
    assert tries.start().most_segments == 6 + 3 + 6 + 1  # b breaks out of tries


def test_a_break_leaves_at_most_once_an_entry():
    broken = structure(
        loop("l", "a", 8, "z", expected=6), segment("a", "l", "quit"), segment("quit", "z"), segment("z")
    )
    assert usual(broken.start()) == (6 + 1 + 1, 8 + 1 + 1)
    assert usual(broken.after("a", 8)) == (2, 2)
    assert usual(broken.after("quit")) == (1, 1)


def test_a_loop_behind_a_branch_counts_in_full_once_it_is_reached():
    router = structure(segment("a", "l", "z"), loop("l", "b", 9, "z", expected=5), segment("b", "l"), segment("z"))
    assert usual(router.after("a")) == (2.5 + 1, 9 + 1)
    assert usual(router.after("b", 1)) == (4 + 1, 8 + 1)


def forked():
    return structure(
        fork("f", "a", "b"),
        segment("a", "g"),
        fork("g", "c", "d"),
        segment("c", "inner"),
        segment("d", "inner"),
        join("inner", "meet"),
        segment("b", "e"),
        segment("e", "meet"),
        join("meet", "z"),
        segment("z"),
    )


def test_branches_of_a_fork_all_happen_and_meet_once():
    assert usual(forked().start()) == (6, 6)
    assert usual(forked().after("b")) == (2, 2)
    assert usual(forked().after("f")) == (6, 6)


def test_the_width_is_what_runs_in_parallel():
    widths = {name: forked().after(name).width for name in ("f", "a", "g", "b", "meet", "z")}
    assert forked().start().width == 3 and widths == {"f": 3, "a": 2, "g": 2, "b": 1, "meet": 1, "z": 0}


def test_a_join_waits_for_its_fork_not_for_each_alternative():
    split = structure(
        segment("s", "f", "end"),
        fork("f", "a", "b"),
        segment("a", "a1", "a2"),
        segment("a1", "meet"),
        segment("a2", "meet"),
        segment("b", "meet"),
        join("meet", "z"),
        segment("z"),
        segment("end"),
    )
    assert usual(split.after("f")) == (1 + 1 + 1 + 1, 5)
    assert usual(split.start()) == (1 + 0.5 * 4 + 0.5, 7)


def test_the_limits_of_a_segment_are_read():
    think = parse(SEARCHER).segment("think")
    assert (think.max_tokens, think.expected_tokens, think.new_tokens) == (256, 80, 0)


@pytest.mark.parametrize("name", ["nobody", "search"])
def test_only_segments_have_limits(name):
    with pytest.raises(KeyError):
        parse(SEARCHER).segment(name)


def test_an_unknown_node_is_a_key_error():
    with pytest.raises(KeyError):
        parse(SEARCHER).after("nobody")


def test_numbers_out_of_range_are_clipped_and_named():
    clipped = structure(
        loop("l", "a", 10**400, "t", expected=10**5),
        segment("a", "l", max_tokens=10**7, expected_tokens=10**400, new_tokens=1e300),
        tool("t", expected_s=1e9),
    )
    names = "l.most l.expected a.max_tokens a.expected_tokens a.new_tokens t.expected_s"
    assert clipped.clipped == tuple(names.split())
    assert clipped.nodes[0].most == clipped.nodes[0].expected == 10_000
    assert clipped.segment("a").expected_tokens == clipped.segment("a").max_tokens == MAX_TOKENS


def test_a_usual_beyond_the_most_is_clipped():
    assert a_loop(expected=9).clipped == ("l.expected",) and a_loop(expected=9) == a_loop(expected=4)
    assert structure(segment("a", max_tokens=5, expected_tokens=6)).segment("a").expected_tokens == 5


def test_unknown_keys_are_listed_within_bounds():
    assert parse({"v": 2, "nodes": [segment("a", colour=1, most=3)]}).ignored == ("a.colour", "a.most", "v")
    assert len(parse({"nodes": [segment("a", **{f"k{i}": 1 for i in range(999)})]}).ignored) == 32


def test_one_digest_for_every_spelling():
    plain = {"nodes": [loop("l", "a", 3), {"kind": "tool", "id": "a", "next": ["l"]}]}
    spelled = {"nodes": [loop("l", "a", 3, expected=2.0), tool("a", "l", tool="a", expected_s=None)], "more": 1}
    assert digest(plain) == digest(spelled) == digest(parse(plain)) and len(digest(plain)) == 32
    assert digest({"nodes": [loop("l", "a", 3, expected=1), tool("a", "l")]}) != digest(plain)


def ring(*kinds):
    return [{"id": f"n{i}", "kind": kind, "next": [f"n{(i + 1) % len(kinds)}"]} for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("payload", [None, 5, [], "{}", {}, {"nodes": None}, {"nodes": []}, {"nodes": {"id": "a"}}])
def test_what_holds_no_nodes_is_refused(payload):
    with pytest.raises(HintError, match=r"the structure .*; send"):
        parse(payload)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([segment(f"n{i}") for i in range(MAX_NODES + 1)], "257 nodes"),
        ([7], r"nodes\[0\] is 7"),
        ([{"kind": "segment"}], r"nodes\[0\]: id is missing"),
        ([segment("")], r"nodes\[0\]: id is ''"),
        ([segment("x" * 129)], r"nodes\[0\]: id"),
        ([segment("a\nb")], r"nodes\[0\]: id is 'a\\nb'"),
        ([segment("a", "b"), segment("b"), segment("b")], "node 'b': two nodes have this id"),
        ([{"id": "a", "kind": "gate"}], "node 'a': kind is 'gate'"),
        ([{"id": "a", "kind": []}], "node 'a': kind is a list"),
        ([segment("a", "b")], "node 'a': next names 'b'"),
        ([segment("a", "b", "b"), segment("b")], "node 'a': next names an id twice"),
        ([{"id": "a", "kind": "segment", "next": "b"}], "node 'a': next is 'b'"),
        ([segment("a", 1)], "node 'a': next is a list"),
        ([fork("a", "b"), segment("b")], "node 'a': the fork has 1 branches"),
        ([fork("a", *(f"n{i}" for i in range(65))), *(segment(f"n{i}") for i in range(65))], "has 65 branches"),
        ([segment("a", "l"), loop("l", "a", None)], "node 'l': most is missing"),
        ([segment("a", "l"), loop("l", "a", 0)], "node 'l': most is 0"),
        ([segment("a", "l"), loop("l", "a", 1.5)], r"node 'l': most is 1\.5"),
        ([segment("a", "l"), loop("l", None, 1)], "node 'l': body is missing"),
        ([segment("a", "l"), loop("l", "b", 1)], "node 'l': body names 'b'"),
        ([loop("l", "a", 2), segment("a")], "node 'l': its body never comes back"),
        ([loop("l", "l", 2)], "node 'l': its body never comes back"),
        (ring("segment", "tool"), "cycle n[01] -> n[01] -> n[01]; put a loop node with `most` in it"),
        ([loop("l", "a", 2, "b"), segment("a", "l"), segment("b", "l")], "cycle (l -> b -> l|b -> l -> b); put a loop"),
        (ring(*["segment"] * 200), r"cycle n\d+ -> .* -> \.\.\. -> n\d+; put"),
        ([segment("a"), segment("b")], "node 'b': no way leads to it"),
        ([segment("a", max_tokens=-1)], "node 'a': max_tokens is -1"),
        ([segment("a", max_tokens=True)], "node 'a': max_tokens is True"),
        ([segment("a", max_tokens=1.5)], r"node 'a': max_tokens is 1\.5"),
        ([segment("a", max_tokens=-(10**5000))], "node 'a': max_tokens is a huge number"),
        ([segment("a", expected_tokens="9")], "node 'a': expected_tokens is '9'"),
        ([segment("a", new_tokens=math.nan)], "node 'a': new_tokens is nan"),
        ([tool("a", expected_s=math.inf)], "node 'a': expected_s is inf"),
        ([tool("a", tool="\0")], "node 'a': tool is"),
    ],
)
def test_a_malformed_node_is_named_in_one_line(nodes, said):
    with pytest.raises(HintError, match=said) as caught:
        parse({"nodes": nodes})
    assert (
        "send" in str(caught.value)
        or "; put" in str(caught.value)
        or "; name" in str(caught.value)
        or "; end" in str(caught.value)
    )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_too_many_ways_are_refused():
    names = [f"n{i}" for i in range(MAX_NODES)]
    with pytest.raises(HintError, match=f"send at most {MAX_WAYS}"):
        parse({"nodes": [segment(name, *names[i + 1 :]) for i, name in enumerate(names)]})


def tower(depth):
    """Loops in loops, as many rounds as can be said."""
    loops = [loop(f"l{i}", f"l{i + 1}", 10_000, f"l{i - 1}", expected=10_000) for i in range(depth)]
    loops[0]["next"] = []
    return structure(*loops, segment(f"l{depth}", f"l{depth - 1}", new_tokens=MAX_TOKENS))


def test_products_of_loops_stay_finite():
    high = tower(MAX_LOOPS)
    for futures in (high.start(), high.after(f"l{MAX_LOOPS}", 5), high.after(f"l{MAX_LOOPS // 2}", 10**9)):
        assert all(0 <= value <= 1e9 for value in futures if isinstance(value, int | float))
