import pytest

from astraea_sglang.bench.policies import parse
from astraea_sglang.errors import ConfigError


def seen(text: str) -> list[tuple[str, str, dict[str, str]]]:
    return [(policy.label, policy.name, dict(policy.environment)) for policy in parse(text)]


def test_names_alone_are_policies_of_sglang_or_ours():
    assert seen("fcfs,lpm,astraea") == [("fcfs", "fcfs", {}), ("lpm", "lpm", {}), ("astraea", "astraea", {})]


def test_a_bare_word_after_astraea_is_the_order():
    assert seen("astraea:mlfq") == [("astraea:mlfq", "astraea", {"ASTRAEA_ORDER": "mlfq"})]


def test_settings_end_where_the_next_policy_begins():
    policies = seen("astraea:order=mlfq,queues=3,thresholds=100,200,lpm,astraea:mlfq,aging=5")
    assert policies == [
        (
            "astraea:order=mlfq,queues=3,thresholds=100,200",
            "astraea",
            {"ASTRAEA_ORDER": "mlfq", "ASTRAEA_QUEUES": "3", "ASTRAEA_THRESHOLDS": "100,200"},
        ),
        ("lpm", "lpm", {}),
        ("astraea:mlfq,aging=5", "astraea", {"ASTRAEA_ORDER": "mlfq", "ASTRAEA_AGING": "5"}),
    ]


def test_what_programs_tell_of_themselves_is_a_setting_of_the_run_not_of_the_server():
    (policy,) = parse("astraea:prediction=declared,hints=oracle")
    assert (policy.hints, dict(policy.environment)) == ("oracle", {"ASTRAEA_PREDICTION": "declared"})
    assert [p.hints for p in parse("fcfs,astraea")] == ["class", "class"]


def test_a_policy_named_twice_runs_once():
    assert len(parse("fcfs,astraea,fcfs")) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sjf", r"--policies 'sjf' is unknown; choose from: fcfs, lpm"),
        ("", r"--policies '' is unknown"),
        ("fcfs,,lpm", r"'fcfs,' is unknown"),
        ("fcfs:mlfq", r"only astraea takes settings; type fcfs, or astraea:mlfq"),
        ("astraea:", r"only astraea takes settings"),
        ("astraea:colour=red", r"no setting is called 'colour'; choose from: order, "),
        ("astraea:hints=all", r"hints=all is unknown; choose one of class, none, declared, oracle"),
        ("astraea:best", r"ASTRAEA_ORDER\) is 'best': choose one of"),
        ("astraea:queues=many", r"ASTRAEA_QUEUES\) is 'many': give a whole number"),
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


@pytest.mark.parametrize(
    ("text", "emulated", "words"),
    [
        ("astraea:host=2", True, "host=2 does nothing here"),
        ("astraea:hints=oracle", False, "hints=oracle does nothing here"),
        ("astraea:host=big", False, "host=big is no number"),
    ],
)
def test_what_means_nothing_to_the_engine_is_refused(text, emulated, words):
    with pytest.raises(ConfigError, match=words):
        parse(text, emulated=emulated)
