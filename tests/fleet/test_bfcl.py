import pytest

from astraea_sglang.fleet.bfcl import Task, Toolbox, parse_call, tasks


def task(number: int) -> Task:
    return tasks()[number]


def test_every_reference_call_of_every_task_really_runs():
    answers = [(call, box.call(call)) for t in tasks() for box in [Toolbox(t)] for turn in t.calls for call in turn]
    assert len(answers) == 1142
    assert [pair for pair in answers if pair[1].startswith("Error during execution")] == []


def test_a_call_changes_what_the_next_call_of_the_same_agent_sees_and_of_no_other():
    mine, other = Toolbox(task(0)), Toolbox(task(0))
    mine.call("cd(folder='document')")
    mine.call("mkdir(dir_name='temp')")
    assert "temp" in mine.call("ls()")
    assert "temp" not in other.call("ls()")


def test_a_prompt_names_every_tool_that_its_task_needs():
    for t in tasks():
        offered = {line.partition("(")[0] for line in Toolbox(t).signatures().splitlines()}
        assert {call.partition("(")[0].strip() for turn in t.calls for call in turn} <= offered


def test_a_signature_has_types_and_a_purpose():
    assert (
        "cd(folder: string): Change the current working directory to the specified folder"
        in Toolbox(task(0)).signatures().splitlines()
    )


def test_agents_with_the_same_tools_share_their_signatures_to_the_letter():
    prompts = {}
    for t in tasks():
        prompts.setdefault(frozenset(t.tools), set()).add(Toolbox(t).signatures())
    assert {len(texts) for texts in prompts.values()} == {1}


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("pwd()", ("pwd", [], {})),
        ("sort('a.txt')", ("sort", ["a.txt"], {})),
        ("f(1, x=-2.5, y=['a', {'b': None}], z=True)", ("f", [1], {"x": -2.5, "y": ["a", {"b": None}], "z": True})),
    ],
)
def test_a_call_with_literals_is_read(source, call):
    assert parse_call(source) == call


@pytest.mark.parametrize(
    "source",
    ["", "pwd", "1 + 1", "pwd(); pwd()", "x = 1", "os.system('ls')", "__import__('os').system('ls')", "f(g())",
     "f(name)", "f(*['a'])", "f(**{'a': 1})", "f(a=lambda: 1)", "f(a", "(lambda: 1)()"],
)  # fmt: skip
def test_anything_else_that_a_model_may_write_is_refused_unrun(source):
    with pytest.raises((SyntaxError, ValueError)):
        parse_call(source)
    assert Toolbox(task(0)).call(source).startswith("Error during execution: ")


@pytest.mark.parametrize(
    "source", ["rmdir()", "nothing_like_this()", "_load_scenario({})", "__init__()", "cd(folder=3)"]
)
def test_a_call_that_fails_answers_with_its_error(source):
    assert "rror" in Toolbox(task(0)).call(source)
