from astraea_sglang.bench.clock import START, Clock, Event
from astraea_sglang.bench.figures import Samples


def test_a_pass_that_is_waited_for_moves_the_clock():
    clock = Clock(0.001)
    assert clock.run(2.0, loads=False, wait=True) == START
    assert clock.now == START + 2


def test_who_does_not_wait_hands_over_the_next_pass_which_begins_when_the_first_is_done():
    clock = Clock(0.001)
    clock.run(2.0, loads=False, wait=False)
    first = Event(clock)
    first.record()
    assert clock.run(3.0, loads=False, wait=False) == START + 2
    assert clock.now == START and not first.query()
    first.synchronize()
    assert clock.now == START + 2 and first.query()
    assert clock.device_free == START + 5


def test_copies_go_one_after_another_beside_the_device():
    clock = Clock(0.001)
    assert clock.to_host.copy(1000, clock.now) == (START, START + 1)
    assert clock.to_host.copy(500, clock.now) == (START + 1, START + 1.5)
    assert clock.to_device.free == START  # a direction of its own
    assert (clock.now, clock.to_host.tokens) == (START, 1500)


def test_a_pass_that_reads_what_is_loaded_ends_no_earlier_than_the_load():
    clock = Clock(0.001)
    clock.to_device.copy(3000, clock.now)
    clock.run(2.0, loads=False, wait=True)
    assert clock.elapsed == 2
    clock.run(0.5, loads=True, wait=True)
    assert clock.elapsed == 3


def test_samples_stay_few_and_span_the_whole_time():
    samples = Samples(most=16)
    for tick in range(10_000):
        if samples.due(tick * 0.1):
            samples.add(tick * 0.1, tick)
    assert 8 <= len(samples.rows) <= 17
    assert samples.rows[0] == (0.0, 0) and samples.rows[-1][0] > 800
