"""What becomes of a paused program's KV on a real server: kept, moved, given up, and the same tokens come out."""

import shlex
import threading
import time
from collections.abc import Iterator
from itertools import count

import httpx
import pytest

from astraea_sglang.serving import start
from tests.server.test_programs import hinted

pytestmark = pytest.mark.server
POOL = 640  # tokens: a program of these tests takes a third of it
FLAGS = shlex.split(
    f"--max-total-tokens {POOL} --max-running-requests 4 --chunked-prefill-size 64 --enable-hierarchical-cache "
    "--hicache-ratio 2 --astraea-quota 0.4 --astraea-lease 60 --astraea-reap-after 30 --astraea-tenant-header x-tenant"
)
SERVERS = {
    "page 1, write back": ["--hicache-write-policy", "write_back", "--disable-overlap-schedule"],
    "page 16, write through, overlap": ["--page-size", "16", "--hicache-write-policy", "write_through"],
}
STORY = list(range(1000, 1160))  # token ids: what a program is asked
NEWS = list(range(2000, 2020))  # what its tool answers
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
numbers = count()


@pytest.fixture(scope="module", params=SERVERS, ids=list(SERVERS))
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with little memory, a host pool, and prefills in chunks."""
    log = tmp_path_factory.mktemp("retention") / "server.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "2")
        with start("smollm2", [*FLAGS, *SERVERS[request.param]], log) as server:
            yield server.url
            assert "Traceback" not in log.read_text()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120) as client:
        flush(client)
        yield client


def flush(client: httpx.Client) -> None:
    """Empty the tree as soon as nothing runs; an answer comes a moment before its request is over."""
    deadline = time.monotonic() + 10
    while client.post("/flush_cache").is_error:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def program() -> str:
    return f"program-{next(numbers)}"


def ask(client: httpx.Client, ids: list[int], name: str | None = None, *, actions=(), headers=None, **hints) -> dict:
    """One segment of program `name`, or a request of nobody's."""
    body = {"input_ids": ids, "sampling_params": GREEDY}
    if name is not None:
        envelope = hinted(name, **hints)
        for i, (kind, payload) in enumerate(actions):
            about = {"action_id": str(i), "action_version": "1", "action_type": kind, "payload": payload}
            envelope["actions"].append(about)
        body["kv_hints"] = envelope
    reply = client.post("/generate", json=body, headers=headers)
    reply.raise_for_status()
    return reply.json()


def event(client: httpx.Client, kind: str, name: str, **more) -> dict:
    reply = client.post("/astraea/events", json={"event": kind, "program_id": name, **more})
    reply.raise_for_status()
    return reply.json()


def cached(answer: dict) -> tuple[int, int]:
    """Tokens found on the device and on the host."""
    details = answer["meta_info"].get("cached_tokens_details") or {}
    return details.get("device", 0), details.get("host", 0)


def flood(client: httpx.Client, times: int = 5) -> None:
    """Requests of nobody's that want all the memory there is."""
    for _ in range(times):
        start = 3000 + 200 * next(numbers) % 40_000
        ask(client, list(range(start, start + 180)))


def retention(client: httpx.Client) -> dict:
    return client.get("/astraea/decisions").json()["ranks"][0]


def row(client: httpx.Client, name: str) -> dict | None:
    programs = client.get("/astraea/programs").json()["ranks"][0]["programs"]
    return next((each for each in programs if each["id"] == name), None)


def two_segments(client: httpx.Client, name: str, between, **first) -> tuple[dict, dict]:
    """A program's first segment, what happens in its pause, and its second."""
    one = ask(client, STORY, name, next_tool="search", **first)
    between()
    return one, ask(client, [*STORY, *one["output_ids"], *NEWS], name, final=True)


@pytest.fixture
def reference(client: httpx.Client) -> tuple[list[int], list[int]]:
    """What the two segments say when nothing of them was computed before."""
    one = ask(client, STORY)["output_ids"]
    flush(client)
    two = ask(client, [*STORY, *one, *NEWS])
    assert cached(two) == (0, 0)
    flush(client)
    return one, two["output_ids"]


def said(answers: tuple[dict, dict]) -> tuple[list[int], list[int]]:
    return answers[0]["output_ids"], answers[1]["output_ids"]


def test_a_locked_path_outlives_a_flood_and_says_the_same(client, reference):
    answers = two_segments(client, program(), lambda: flood(client), actions=[("kv.pin", {"ttl_s": 50})])
    assert answers[0]["meta_info"]["astraea"][0]["status"] == "accepted"
    device, host = cached(answers[1])
    assert device >= len(STORY) and host == 0
    assert said(answers) == reference


def test_a_swapped_path_is_fetched_before_it_is_needed_and_says_the_same(client, reference):
    name = program()

    def between() -> None:
        flood(client)
        fetched = event(client, "kv.prefetch", name)["outcome"]
        assert fetched["status"] == "accepted" and fetched["tokens"] > 100
        time.sleep(0.3)

    answers = two_segments(client, name, between, actions=[("kv.demote", {})])
    assert answers[0]["meta_info"]["astraea"][0]["status"] == "accepted"
    device, host = cached(answers[1])
    assert device >= len(STORY) and host == 0
    assert said(answers) == reference


def test_a_swapped_path_that_nobody_fetched_comes_back_from_the_host_and_says_the_same(client, reference):
    answers = two_segments(client, program(), lambda: time.sleep(1.5), actions=[("kv.demote", {})])
    device, host = cached(answers[1])
    assert device == 0 and host >= len(STORY)
    assert said(answers) == reference


def test_a_path_given_up_is_computed_again_and_says_the_same(client, reference):
    answers = two_segments(client, program(), lambda: flush(client))
    assert cached(answers[1]) == (0, 0)
    assert said(answers) == reference


def test_a_tool_that_is_back_announces_it_and_the_path_is_loaded(client):
    name = program()
    one = ask(client, STORY, name, actions=[("kv.demote", {})])
    time.sleep(1.5)  # an idle scheduler looks once a second whether a copy is made
    assert event(client, "tool_finished", name)["loaded_tokens"] > 100
    time.sleep(0.3)
    assert cached(ask(client, [*STORY, *one["output_ids"], *NEWS], name, final=True))[1] == 0


def test_a_tool_that_takes_no_time_finds_everything(client, reference):
    answers = two_segments(client, program(), lambda: None, actions=[("kv.demote", {})])
    assert sum(cached(answers[1])) >= len(STORY)
    assert said(answers) == reference


def test_at_its_end_a_programs_own_kv_is_gone_and_what_it_shared_stays(client):
    first, second = program(), program()
    ask(client, [*STORY, *range(4000, 4050)], first, final=False)
    ask(client, [*STORY, *range(5000, 5050)], second, final=True)
    assert sum(cached(ask(client, [*STORY, *range(5000, 5050)]))) < len(STORY) + 16
    assert sum(cached(ask(client, [*STORY, *range(4000, 4050)]))) >= len(STORY) + 32
    event(client, "program_end", first)


def test_a_fork_returns_to_part_of_its_path(client):
    name = program()
    one = ask(client, STORY, name)
    other = ask(client, [*STORY[:96], *range(6000, 6040)], name)
    again = ask(client, [*STORY, *one["output_ids"], *NEWS], name, final=True)
    assert sum(cached(other)) >= 80 and sum(cached(again)) >= len(STORY)


def test_a_client_that_vanishes_in_the_tool_is_forgotten_with_its_locks(client):
    name = program()
    ask(client, STORY, name, actions=[("kv.pin", {"ttl_s": 1.5})])
    assert retention(client)["leases"] == 1
    deadline = time.monotonic() + 20
    while retention(client)["leases"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert retention(client)["totals"]["expired_leases"] >= 1 and row(client, name)


def test_locks_give_way_to_a_request_that_needs_all_the_memory(client):
    names = [program() for _ in range(2)]
    for i, name in enumerate(names):
        ids = [7000 + 300 * i + n for n in range(150)]
        assert ask(client, ids, name, actions=[("kv.pin", {"ttl_s": 50})])["meta_info"]["astraea"][0]["status"]
    assert retention(client)["leased_tokens"] > POOL / 3
    huge = ask(client, list(range(9000, 9000 + POOL - 80)))
    assert huge["meta_info"]["completion_tokens"] == GREEDY["max_new_tokens"]
    assert retention(client)["totals"]["yielded_leases"] >= 1


def test_a_prompt_beyond_the_pool_is_refused_and_nothing_is_lost(client):
    name = program()
    one = ask(client, STORY, name)
    refused = client.post(
        "/generate", json={"input_ids": list(range(100, 100 + 2 * POOL)), "sampling_params": GREEDY, "session_id": name}
    )
    assert refused.status_code == 400
    again = ask(client, [*STORY, *one["output_ids"], *NEWS], name, final=True)
    assert sum(cached(again)) >= len(STORY) - 16


def test_more_than_a_quota_is_clipped_and_more_than_the_share_refused(client):
    outcomes = []
    for i in range(4):
        ids = [11_000 + 300 * i + n for n in range(120)]
        answer = ask(client, ids, program(), actions=[("kv.pin", {"ttl_s": 9999})], headers={"x-tenant": "acme"})
        outcomes.append(answer["meta_info"]["astraea"][0])
    assert outcomes[0]["status"] == "clipped" and outcomes[0]["ttl_s"] == 60
    assert outcomes[-1]["status"] == "rejected" and "--astraea-quota" in outcomes[-1]["why"]
    assert retention(client)["leased_tokens"] <= 0.4 * POOL


def test_many_programs_at_once_with_a_full_host_pool_lose_nothing(client, url, reference):
    failures: list[object] = []

    def agent(seed: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as own:
            ids, name = [12_000 + 400 * seed + n for n in range(100)], program()
            actions = [("kv.pin", {"ttl_s": 20}), ("kv.demote", {}), ("kv.retain", {"ttl": "1m"}), ("kv.deref", {})]
            for turn in range(4):
                answer = ask(own, ids, name, actions=[actions[(seed + turn) % 4]], final=turn == 3)
                if answer["meta_info"]["completion_tokens"] != GREEDY["max_new_tokens"]:
                    failures.append(answer)
                ids += [*answer["output_ids"], *range(seed, seed + 10)]

    agents = [threading.Thread(target=agent, args=(seed,)) for seed in range(10)]
    for thread in agents:
        thread.start()
    for thread in agents:
        thread.join()
    assert not failures
    answers = two_segments(client, program(), lambda: flood(client, 2))
    assert said(answers) == reference
    counts = client.get("/astraea/programs").json()["ranks"][0]["counts"]
    assert counts.get("faults", 0) == 0


def test_what_was_decided_can_be_read_and_measured(client):
    two_segments(client, program(), lambda: flood(client, 2))
    seen = retention(client)
    last = seen["decisions"][-1]
    assert last["choice"] in ("preserve", "swap", "discard") and set(last["wastes"]) == {"preserve", "swap", "discard"}
    assert last["actual"] is not None and last["regret"] >= 0 and last["lost"] >= 0
    assert 0 <= seen["totals"]["return_hit_rate"] <= 1
    time.sleep(1.5)
    metrics = client.get("/metrics").text
    for name in ("returns", "swapped_bytes", "recomputed_tokens", "preserved_token_seconds", "mispredictions"):
        assert f"astraea_{name}_total" in metrics
    assert "astraea_return_hit_rate" in metrics


def test_a_malformed_order_is_refused_and_says_what_to_send(client):
    envelope = hinted(program())
    envelope["actions"].append(
        {"action_id": "x", "action_version": "1", "action_type": "kv.pin", "payload": {"ttl_s": -1}}
    )
    refused = client.post("/generate", json={"input_ids": STORY, "sampling_params": GREEDY, "kv_hints": envelope})
    assert refused.status_code == 400 and "ttl_s" in refused.text
    assert client.post("/astraea/events", json={"event": "kv.pinn", "program_id": "a"}).status_code == 400
    assert event(client, "kv.pin", "nobody-knows-me") == {"unknown": "nobody-knows-me"}


def test_orders_on_the_openai_route_are_answered_there(client):
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "return_meta_info": True,
        "custom_params": {"astraea": {"program_id": program(), "kv": [{"type": "kv.pin", "ttl_s": 5}]}},
    }
    reply = client.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    assert reply.json()["choices"][0]["meta_info"]["astraea"][0]["status"] == "accepted"
