"""The history file as rank 0 of a scheduler uses it; the real server's restart is in tests/server/test_history.py."""

import json
from types import SimpleNamespace

import pytest

from astraea_sglang.patches import memory, ticks
from tests.builders import arrive, run, table


def engine() -> SimpleNamespace:
    """What `memory` sees of an Engine."""
    return SimpleNamespace(table=table(), remembers=False, metrics=None, keeper=None, fault=pytest.fail)


@pytest.fixture
def kept(tmp_path):
    """A file that an earlier run left."""
    earlier = table()
    for i in range(9):
        run(earlier, arrive(earlier, str(i), program=str(i), final=True), 300)
    file = tmp_path / "history.json"
    file.write_text(json.dumps(earlier.predictor.dump()))
    return file


def test_what_was_kept_is_sent_until_it_has_arrived_and_never_overwritten_before(kept, monkeypatch):
    monkeypatch.setattr(memory, "EVERY", 0.0)
    text = kept.read_text()
    one, keeper = engine(), memory.Memory(str(kept))
    lost, sent = keeper.poll(one), keeper.poll(one)  # SGLang may drop what a pass adds
    assert len(lost) == len(sent) == 1 and kept.read_text() == text
    memory.apply(one, sent[0])
    assert one.table.predictor.dump() == json.loads(text) and keeper.poll(one) == []


def test_a_second_copy_is_not_taken_over_what_was_learned_since(kept):
    one, keeper = engine(), memory.Memory(str(kept))
    (message,) = keeper.poll(one)
    memory.apply(one, message)
    run(one.table, arrive(one.table, "a"), 7)
    now = one.table.predictor.dump()
    memory.apply(one, message)
    assert one.table.predictor.dump() == now


def test_what_is_learned_is_written_where_the_next_run_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "EVERY", 0.0)
    one, keeper = engine(), memory.Memory(str(tmp_path / "new.json"))
    run(one.table, arrive(one.table, "a", program_class="\N{GRINNING FACE}"), 7)
    keeper.poll(one)
    memory.check(str(tmp_path / "new.json"))
    assert list(json.loads((tmp_path / "new.json").read_text())["classes"]) == ["\N{GRINNING FACE}"]


def test_a_disk_that_is_full_costs_the_history_not_the_server(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(memory, "EVERY", 0.0)
    folder = tmp_path / "gone"
    folder.mkdir()
    keeper = memory.Memory(str(folder / "history.json"))
    folder.rmdir()
    assert keeper.poll(engine()) == [] and "not written" in caplog.text


def test_a_file_that_became_unreadable_costs_the_history_not_the_server(tmp_path):
    faults = []
    folder = tmp_path / "history.json"
    folder.mkdir()  # there, and no file
    one = SimpleNamespace(
        table=table(history=str(folder)), memory=None, remembers=False, metrics=None, fault=faults.append, ticked=0.0
    )
    assert ticks.poll([], SimpleNamespace(astraea=one)) is None
    assert faults == ["history"] and one.remembers
