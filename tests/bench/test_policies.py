import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.bench.baselines import BASELINES
from astraea_sglang.bench.policies import ENGINE, NAMES, SGLANG, Policy, parse
from astraea_sglang.config import Config
from astraea_sglang.errors import ConfigError


def seen(text: str) -> list[tuple[str, str, dict[str, str]]]:
    return [(policy.label, policy.name, dict(policy.environment)) for policy in parse(text)]


def one(text: str) -> Policy:
    (policy,) = parse(text)
    return policy


def config(text: str) -> Config:
    return Config.from_environment(dict(one(text).environment))


def test_names_alone_are_policies_of_sglang_or_ours():
    assert seen("fcfs,lpm,astraea") == [("fcfs", "fcfs", {}), ("lpm", "lpm", {}), ("astraea", "astraea", {})]


def test_a_bare_word_after_astraea_is_the_order():
    assert seen("astraea:mlfq") == [("astraea:mlfq", "astraea", {"ASTRAEA_ORDER": "mlfq"})]


def test_settings_end_where_the_next_policy_begins():
    policies = seen(
        "astraea:order=mlfq,queues=3,thresholds=100,200,lpm,astraea:mlfq,aging=5,plas:host=2,hrrn-corrected"
    )
    assert policies[:3] == [
        (
            "astraea:order=mlfq,queues=3,thresholds=100,200",
            "astraea",
            {"ASTRAEA_ORDER": "mlfq", "ASTRAEA_QUEUES": "3", "ASTRAEA_THRESHOLDS": "100,200"},
        ),
        ("lpm", "lpm", {}),
        ("astraea:mlfq,aging=5", "astraea", {"ASTRAEA_ORDER": "mlfq", "ASTRAEA_AGING": "5"}),
    ]
    assert [label for label, *_ in policies[3:]] == ["plas:host=2", "hrrn-corrected"]


def test_what_programs_tell_of_themselves_is_a_setting_of_the_run_not_of_the_server():
    policy = one("astraea:prediction=declared,hints=oracle")
    assert (policy.hints, dict(policy.environment)) == ("oracle", {"ASTRAEA_PREDICTION": "declared"})
    assert [p.hints for p in parse("fcfs,astraea")] == ["class", "class"]


def test_a_policy_named_twice_runs_once():
    assert len(parse("fcfs,astraea,fcfs")) == 2


@pytest.mark.parametrize(
    ("name", "levers"),
    [
        ("mlfq", ("mlfq", "none", "lru", "keep")),
        ("plas", ("plas", "none", "lru", "keep")),
        ("continuum", ("continuum", "none", "ttl", "keep")),
        ("infercept", ("program-fcfs", "none", "infercept", "free")),
        ("progress-ttl", ("progress", "capacity", "progress-ttl", "keep")),
        ("oracle", ("hrrn", "working-set", "adaptive", "free")),
    ],
)
def test_a_baseline_is_our_scheduler_with_its_settings(name, levers):
    got = config(name)
    assert (got.order, got.admission, got.retention, got.end) == levers
    assert (one(name).label, one(name).name) == (name, "astraea")


def test_the_oracle_is_told_everything_and_believes_nothing_else():
    assert (one("oracle").hints, config("oracle").prediction) == ("oracle", "declared")


def test_what_only_the_lab_has_keeps_its_name():
    corrected, unloaded = parse("hrrn-corrected,unloaded")
    assert (corrected.name, corrected.schedule_policy) == ("hrrn-corrected", "hrrn")
    assert unloaded.name == "unloaded"


def test_a_baseline_takes_further_settings_and_the_last_word_counts():
    assert config("continuum:end=free,lease=9") == Config("continuum", "none", retention="ttl", end="free", lease=9.0)
    assert config("mlfq:queues=3,thresholds=100,200").thresholds == (100, 200)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_says_what_it_is_and_whose(name):
    baseline = BASELINES[name]
    assert baseline.meaning and baseline.source and parse(name)


@pytest.mark.parametrize("name", [*SGLANG, "astraea", "mlfq", "hrrn-corrected"])
def test_any_scheduler_takes_settings_of_the_engine(name):
    policy = one(f"{name}:host=4,mixed-chunk=on")
    assert dict(policy.engine) == {
        "enable_hierarchical_cache": True,
        "hicache_ratio": 4.0,
        "hicache_write_policy": "write_back",
        "enable_mixed_chunk": True,
    }
    assert policy.environment == one(name).environment


def test_the_engines_settings_are_fields_of_server_args():
    assert one("fcfs:session-radix=on").engine == (("enable_session_radix_cache", True),)
    assert dict(one("fcfs:write=write_through,host=0.5").engine)["hicache_write_policy"] == "write_through"
    assert one("fcfs:mixed-chunk=off,host=0").engine == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sjf", r"--policies 'sjf' is unknown; choose from: fcfs, lpm"),
        ("", r"--policies '' is unknown"),
        ("fcfs,,lpm", r"'fcfs,' is unknown"),
        ("fcfs:mlfq", r"only astraea takes an order; type astraea:mlfq"),
        ("fcfs:hints=oracle", r"no setting is called 'hints'; choose from: host, write"),
        ("hrrn:order=plas", r"no setting is called 'order'; choose from: host, write"),
        ("astraea:", r"nothing is set; type astraea"),
        ("unloaded:host=2", r"unloaded takes no settings; type unloaded"),
        ("astraea:colour=red", r"no setting is called 'colour'; choose from: order, "),
        ("astraea:hints=all", r"hints=all is unknown; choose one of class, none, declared, oracle"),
        ("astraea:best", r"ASTRAEA_ORDER\) is 'best': choose one of"),
        ("astraea:queues=many", r"ASTRAEA_QUEUES\) is 'many': give a whole number"),
        ("astraea:host=big", r"host=big is no number; give how many times"),
        ("fcfs:host=2,write=later", r"write=later is unknown; choose one of write_back, "),
        ("fcfs:write=write_back", r"write does nothing without a host pool; add host=2"),
        ("fcfs:mixed-chunk=yes", r"mixed-chunk=yes is unknown; choose one of on, off"),
        ("astraea:session-radix=on", r"session-radix=on does nothing beside retention=adaptive; add retention=lru"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_policy_says_with_which_flags_a_server_runs_under_it():
    (policy,) = parse("astraea:retention=swap,host=2", emulated=False)
    assert policy.flags[:3] == ["--schedule-policy", "astraea", "--astraea-retention=swap"]
    assert policy.flags[3:] == [
        "--enable-hierarchical-cache",
        "--hicache-ratio=2",
        "--hicache-write-policy=write_back",
    ]
    assert parse("fcfs")[0].flags == ["--schedule-policy", "fcfs"]
    assert one("lpm:session-radix=on").flags[2:] == ["--enable-session-radix-cache"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("astraea:hints=oracle", "hints=oracle does nothing here"),
        ("oracle", "a real server has no oracle"),
        ("unloaded", "a real server has no unloaded"),
        ("hrrn-corrected:host=2", "a real server has no hrrn-corrected"),
    ],
)
def test_what_a_real_server_does_not_have_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse(text, emulated=False)


@given(st.lists(st.sampled_from([*NAMES, "astraea:mlfq,aging=5", "plas:host=2", "fcfs:mixed-chunk=on"]), min_size=1))
def test_a_list_of_labels_comes_back_as_those_labels(labels):
    assert [policy.label for policy in parse(",".join(labels))] == list(dict.fromkeys(labels))


@given(st.sampled_from(NAMES), st.text(string.ascii_lowercase + "=:,-.0123456789", max_size=30))
def test_any_text_gives_a_policy_or_one_line(name, text):
    try:
        parse(f"{name}:{text}")
    except ConfigError as error:
        assert re.fullmatch(r".+", str(error))


def test_every_setting_of_the_engine_is_known_to_the_installed_sglang():
    names = {name for key, value in (("host", "2"), ("write", "write_back")) for name, _ in ENGINE[key](value)}
    names |= {name for key in ("session-radix", "mixed-chunk") for name, _ in ENGINE[key]("on")}
    fields = pytest.importorskip("sglang.srt.arg_groups.field_order")
    assert names <= set(re.findall(r"\w+", Path(str(fields.__file__)).read_text()))
