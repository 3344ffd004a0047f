"""anthropic: /v1/messages, and the SDK's own tool runner, which would leave the history to Anthropic's servers."""

import json
import sys

from anthropic import Anthropic, beta_tool
from task import EXAMPLES, MAX_TOKENS, MAX_TURNS, QUESTION, TOOLS, ran

messages = []
for turn in EXAMPLES:
    messages.append({"role": "user", "content": turn.question})
    for call, tool, arguments, result in turn.calls:
        use = {"type": "tool_use", "id": call, "name": tool, "input": arguments}
        messages.append({"role": "assistant", "content": [use]})
        answer = {"type": "tool_result", "tool_use_id": call, "content": result}
        messages.append({"role": "user", "content": [answer]})
    messages.append({"role": "assistant", "content": turn.answer})

replies = list(
    Anthropic(base_url=sys.argv[1], api_key="none").beta.messages.tool_runner(
        model="smollm2",
        messages=[*messages, {"role": "user", "content": QUESTION}],
        tools=[beta_tool(tool) for tool in TOOLS.values()],
        max_tokens=MAX_TOKENS,
        max_iterations=MAX_TURNS,
        thread=False,
        extra_body={"temperature": 0},
    )
)
print(replies[-1].content[-1].text)
print(json.dumps({"client": "anthropic", "requests": len(replies), "tools": ran}))
