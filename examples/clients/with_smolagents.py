"""smolagents: a ToolCallingAgent. The model must call a tool in every step; after the last, it is asked to answer."""

import json
import sys

from smolagents import ActionStep, OpenAIModel, TaskStep, Timing, ToolCallingAgent, tool
from task import EXAMPLES, MAX_TOKENS, QUESTION, TOOLS, ran

model = OpenAIModel("smollm2", api_base=sys.argv[1] + "/v1", api_key="none", temperature=0, max_tokens=MAX_TOKENS)
agent = ToolCallingAgent([tool(function) for function in TOOLS.values()], model, max_steps=2, verbosity_level=0)
agent.prompt_templates["system_prompt"] = "Answer by calling tools, final_answer last."
for turn in EXAMPLES:
    agent.memory.steps.append(TaskStep(turn.question))
    final = ("final", "final_answer", {"answer": turn.answer}, turn.answer)
    for number, (_, name, arguments, result) in enumerate([*turn.calls, final], 1):
        call = f'<tool_call>{{"name":"{name}", "arguments":{json.dumps(arguments)}}}</tool_call>'
        agent.memory.steps.append(ActionStep(number, Timing(0, 0), model_output=call, observations=result))

shown = len(agent.memory.steps)
print(agent.run(QUESTION, reset=False))
requests = sum(isinstance(step, ActionStep) for step in agent.memory.steps[shown:])
print(json.dumps({"client": "smolagents", "requests": requests, "tools": ran}))
