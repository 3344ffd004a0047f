"""openai-agents: an Agent, run by its Runner."""

import json
import sys

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from task import EXAMPLES, MAX_TOKENS, MAX_TURNS, QUESTION, TOOLS, ran

set_tracing_disabled(True)
history = []
for turn in EXAMPLES:
    history.append({"role": "user", "content": turn.question})
    for call, tool, arguments, result in turn.calls:
        history.append({"type": "function_call", "call_id": call, "name": tool, "arguments": json.dumps(arguments)})
        history.append({"type": "function_call_output", "call_id": call, "output": result})
    history.append({"role": "assistant", "content": turn.answer})

agent = Agent(
    name="orders",
    model=OpenAIChatCompletionsModel("smollm2", AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="none")),
    model_settings=ModelSettings(temperature=0, max_tokens=MAX_TOKENS),
    tools=[function_tool(tool) for tool in TOOLS.values()],
)
done = Runner.run_sync(agent, [*history, {"role": "user", "content": QUESTION}], max_turns=MAX_TURNS)
print(done.final_output)
print(json.dumps({"client": "openai_agents", "requests": done.context_wrapper.usage.requests, "tools": ran}))
