"""smolagents: a ToolCallingAgent, which calls a tool in every step; the last is `final_answer`."""

import json
import sys

from smolagents import ActionStep, OpenAIModel, TaskStep, Timing, ToolCallingAgent, tool
from task import EXAMPLES, MAX_TOKENS, MAX_TURNS, QUESTION, TOOLS, ran


def written(name, arguments):
    return f'<tool_call>{{"name":"{name}", "arguments":{json.dumps(arguments)}}}</tool_call>'


def remember(step):
    """Keep a call as the model writes calls: a model this small is lost in smolagents' own words for them."""
    if step.tool_calls:
        step.model_output = written(step.tool_calls[0].name, step.tool_calls[0].arguments)
        step.tool_calls = None


model = OpenAIModel("smollm2", api_base=sys.argv[1] + "/v1", api_key="none", temperature=0, max_tokens=MAX_TOKENS)
agent = ToolCallingAgent(
    [tool(function) for function in TOOLS.values()], model,
    max_steps=MAX_TURNS, verbosity_level=0, step_callbacks=[remember],
)  # fmt: skip
agent.prompt_templates["system_prompt"] = "Answer by calling tools, final_answer last."
for turn in EXAMPLES:
    agent.memory.steps.append(TaskStep(turn.question))
    final = ("final", "final_answer", {"answer": turn.answer}, turn.answer)
    for number, (_, name, arguments, result) in enumerate([*turn.calls, final], 1):
        step = ActionStep(number, Timing(0, 0), model_output=written(name, arguments), observations=result)
        agent.memory.steps.append(step)

shown = len(agent.memory.steps)
print(agent.run(QUESTION, reset=False))
requests = sum(isinstance(step, ActionStep) for step in agent.memory.steps[shown:])
print(json.dumps({"client": "smolagents", "requests": requests, "tools": ran}))
