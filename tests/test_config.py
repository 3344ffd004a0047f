import pytest

from astraea_sglang.config import Config, flag, variable
from astraea_sglang.errors import ConfigError


def test_defaults_are_the_six_queues_of_128_tokens_more_each():
    assert Config().thresholds == (128, 256, 384, 512, 640)


def test_queue_count_alone_gives_its_thresholds():
    assert Config(queues=3).thresholds == (128, 256)


def test_variables_give_every_field():
    texts = dict(
        order="mlfq",
        admission="none",
        theta="0.5",
        prediction="learned",
        retention="ttl",
        end="keep",
        watermark="0.7",
        preserve="0.3",
        quota="0.2",
        lease="60",
        tenant_header="x-tenant",
        history="h.json",
        queues="3",
        thresholds="50,90",
        aging="2.5",
        patience="20",
        reap_after="7",
        max_programs="9",
    )
    config = Config.from_environment({variable(name): text for name, text in texts.items()})
    assert config == Config(
        order="mlfq",
        admission="none",
        theta=0.5,
        prediction="learned",
        retention="ttl",
        end="keep",
        watermark=0.7,
        preserve=0.3,
        quota=0.2,
        lease=60.0,
        tenant_header="x-tenant",
        history="h.json",
        queues=3,
        thresholds=(50, 90),
        aging=2.5,
        patience=20.0,
        reap_after=7.0,
        max_programs=9,
    )


def test_flags_and_variables_are_named_after_the_field():
    assert (flag("reap_after"), variable("reap_after")) == ("--astraea-reap-after", "ASTRAEA_REAP_AFTER")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("order", "fifo", "choose one of continuum, fcfs, hrrn, mlfq, plas, program-fcfs, progress, srpt"),
        ("prediction", "magic", "choose one of both, declared, learned, off"),
        ("admission", "all", "choose one of capacity, none, working-set"),
        ("theta", "1.5", "give a share above 0"),
        ("queues", "0", "give 1 or more"),
        ("queues", "three", "give a whole number"),
        ("thresholds", "1,2", "6 queues take 5 numbers"),
        ("thresholds", "5,4,3,2,1", "give rising numbers"),
        ("thresholds", "a,b", "whole numbers with commas"),
        ("aging", "1", "give more than 1"),
        ("aging", "nan", "give a finite number"),
        ("patience", "0", "give more than 0"),
        ("reap_after", "-1", "give more than 0 seconds"),
        ("max_programs", "0", "give 1 or more"),
    ],
)
def test_a_bad_value_is_one_line_with_flag_value_and_remedy(name, text, words):
    with pytest.raises(ConfigError) as caught:
        Config.from_environment({variable(name): text})
    line = str(caught.value)
    assert "\n" not in line and flag(name) in line and variable(name) in line and words in line


def test_retention_comes_with_shares_and_seconds_that_make_sense():
    for name, text, words in (
        ("retention", "lfu", "choose one of adaptive, discard"),
        ("end", "never", "choose one of free, keep"),
        ("watermark", "1.5", "a share above 0, at most 1"),
        ("quota", "0", "a share above 0, at most 1"),
        ("lease", "0", "more than 0 seconds"),
    ):
        with pytest.raises(ConfigError, match=words):
            Config.from_environment({variable(name): text})
