"""openai: chat.completions, and a loop of one's own."""

import json
import sys

from openai import OpenAI
from task import FUNCTIONS, MAX_TOKENS, MAX_TURNS, TOOLS, chat, ran

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
tools = [{"type": "function", "function": function} for function in FUNCTIONS]
messages, requests = chat(), 0
while requests < MAX_TURNS:
    reply = client.chat.completions.create(
        model="smollm2", messages=messages, tools=tools, temperature=0, max_tokens=MAX_TOKENS
    )
    requests += 1
    message = reply.choices[0].message
    messages.append(message)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        result = TOOLS[call.function.name](**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
print(message.content)
print(json.dumps({"client": "openai", "requests": requests, "tools": ran}))
