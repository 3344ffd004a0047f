"""The task of every client here: two tools that really run, one after the other, and earlier turns that show how.

SmolLM2-135M calls no tool of its own accord; three examples in the conversation are enough for it.
"""

import json
from typing import Any, NamedTuple

ORDERS = {"Ada": "A17", "Bob": "B42", "Sam": "S55", "Max": "M31", "Zoe": "Z68", "Eve": "E93"}
DAYS = {"A17": "Monday", "B42": "Friday", "S55": "Tuesday", "M31": "Thursday", "Z68": "Saturday", "E93": "Sunday"}
QUESTION = "When does the order of Eve arrive?"
MAX_TOKENS, MAX_TURNS = 60, 6
ran: list[str] = []  # names of the tools that were executed, in order


def find_order(customer: str) -> str:
    """Find the number of a customer's order.

    Args:
        customer: The customer's name.
    """
    ran.append("find_order")
    return ORDERS[customer]


def track(order: str) -> str:
    """Find the day on which an order arrives.

    Args:
        order: The order's number.
    """
    ran.append("track")
    return DAYS[order]


TOOLS = {"find_order": find_order, "track": track}


def schema(name: str, argument: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"name": name, "description": (TOOLS[name].__doc__ or "").split("\n")[0], "parameters": parameters}


FUNCTIONS = [schema("find_order", "customer"), schema("track", "order")]  # for clients that make none themselves


class Turn(NamedTuple):
    """What was asked, which calls (id, tool, arguments, result) followed, what was answered."""

    question: str
    calls: tuple[tuple[str, str, dict[str, str], str], ...]
    answer: str


def _turn(customer: str) -> Turn:
    order, day = ORDERS[customer], DAYS[ORDERS[customer]]
    find = (f"find-{customer}", "find_order", {"customer": customer}, order)
    return Turn(
        f"When does the order of {customer} arrive?",
        (find, (f"track-{customer}", "track", {"order": order}, day)),
        f"The order of {customer} arrives on {day}.",
    )


EXAMPLES = [_turn(customer) for customer in ("Ada", "Bob", "Sam", "Max", "Zoe")]


def chat() -> list[dict[str, Any]]:
    """Which messages, in OpenAI's form, show the examples and ask the question?"""
    messages: list[dict[str, Any]] = []
    for turn in EXAMPLES:
        messages.append({"role": "user", "content": turn.question})
        for call, tool, arguments, result in turn.calls:
            function = {"name": tool, "arguments": json.dumps(arguments)}
            messages.append(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": call, "type": "function", "function": function}],
                }
            )
            messages.append({"role": "tool", "tool_call_id": call, "content": result})
        messages.append({"role": "assistant", "content": turn.answer})
    return [*messages, {"role": "user", "content": QUESTION}]
