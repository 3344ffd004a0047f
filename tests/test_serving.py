import socket

import pytest

from astraea_sglang.errors import ServerError
from astraea_sglang.serving import added_environment, added_flags, check_port, flag_value, free_port, start


def test_a_users_flag_is_never_overridden():
    added = added_flags(["--max-total-tokens=9", "--schedule-policy", "lpm"], cpu=True, smollm2=True)
    assert "--max-total-tokens" not in added and "--schedule-policy" not in added


def test_policy_and_metrics_are_added_everywhere_the_rest_where_it_helps():
    everywhere = ["--schedule-policy", "astraea", "--enable-metrics", "--enable-cache-report", "--enable-mixed-chunk"]
    assert added_flags([], cpu=False, smollm2=False) == everywhere
    assert "--sleep-on-idle" in added_flags([], cpu=True, smollm2=False)
    assert "hermes" in added_flags([], cpu=False, smollm2=True)
    assert "--max-total-tokens" not in added_flags([], cpu=True, smollm2=False)


@pytest.mark.parametrize("flag", ["--speculative-algorithm=EAGLE", "--enable-hisparse", "--no-mixed-chunk"])
def test_chunks_are_not_mixed_where_sglang_refuses_to_or_a_user_does(flag):
    assert "--enable-mixed-chunk" not in added_flags([flag], cpu=False, smollm2=False)


@pytest.mark.parametrize("flag", ["--enable-hierarchical-cache", "--enable-hicache"])
def test_hicache_on_a_cpu_gets_the_only_copies_that_work_there(flag):
    added = added_flags([flag], cpu=True, smollm2=False)
    assert added[-4:] == ["--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first"]
    assert added_flags([flag], cpu=False, smollm2=False) == added_flags([], cpu=False, smollm2=False)
    assert not [part for part in added_flags([], cpu=True, smollm2=False) if "hicache" in part]
    assert "direct" not in added_flags([flag, "--hicache-io-backend=kernel"], cpu=True, smollm2=False)


def test_a_users_variable_is_kept():
    assert "OMP_NUM_THREADS" not in added_environment({"OMP_NUM_THREADS": "2"}, cpu=True, smollm2=False)
    assert added_environment({}, cpu=False, smollm2=False) == {}


@pytest.mark.parametrize(
    ("flags", "value"), [([], "d"), (["--p", "1"], "1"), (["--p=2"], "2"), (["--p", "1", "--p=3"], "3")]
)
def test_a_flags_value_is_found_in_both_spellings(flags, value):
    assert flag_value(flags, "--p", "d") == value


def test_a_taken_port_is_named_with_the_flag_to_change_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerError, match=rf"port {taken.getsockname()[1]} on 127.0.0.1 is taken.*--port N"):
            check_port("127.0.0.1", taken.getsockname()[1])


def test_a_free_port_is_free():
    check_port("127.0.0.1", free_port())


def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path):
    with pytest.raises(ServerError) as caught, start("--no-model", [], tmp_path / "log"):
        pass
    assert "MODEL comes first" in str(caught.value) and "\n" not in str(caught.value)
