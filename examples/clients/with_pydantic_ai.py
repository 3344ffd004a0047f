"""pydantic-ai: an Agent with plain functions as tools."""

import json
import sys

from pydantic_ai import Agent, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits
from task import EXAMPLES, MAX_TOKENS, MAX_TURNS, QUESTION, TOOLS, ran

history = []
for turn in EXAMPLES:
    history.append(ModelRequest([UserPromptPart(turn.question)]))
    for call, tool, arguments, result in turn.calls:
        history.append(ModelResponse([ToolCallPart(tool, arguments, call)]))
        history.append(ModelRequest([ToolReturnPart(tool, result, call)]))
    history.append(ModelResponse([TextPart(turn.answer)]))

agent = Agent(
    OpenAIChatModel("smollm2", provider=OpenAIProvider(base_url=sys.argv[1] + "/v1", api_key="none")),
    tools=list(TOOLS.values()),
    model_settings={"temperature": 0, "max_tokens": MAX_TOKENS},
)
done = agent.run_sync(QUESTION, message_history=history, usage_limits=UsageLimits(request_limit=MAX_TURNS))
print(done.output)
print(json.dumps({"client": "pydantic_ai", "requests": done.usage.requests, "tools": ran}))
