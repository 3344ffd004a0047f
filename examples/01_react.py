"""A ReAct agent: thought, action, observation, until it chooses to finish. Its tools really run.

python examples/01_react.py [http://127.0.0.1:30000]
"""

import ast
import operator
import sys

from rich.console import Console
from rich.panel import Panel

from astraea_sglang.frontend import sgl

FACTS = {"France": "68 million", "Japan": "124 million", "Kenya": "55 million", "Peru": "34 million"}
SHOT = """\
Question: How many people live in Kenya and Peru together?
Thought: I need to know how many people live in Kenya.
Action: Lookup Kenya
Observation: 55 million
Thought: I need to know how many people live in Peru.
Action: Lookup Peru
Observation: 34 million
Thought: I need to add the two numbers.
Action: Calculate 55 + 34
Observation: 89
Thought: I know the answer.
Action: Finish
Answer: 89 million

"""
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> float:
    match ast.parse(expression, mode="eval").body:
        case ast.BinOp(ast.Constant(left), op, ast.Constant(right)):
            return OPERATORS[type(op)](left, right)
    raise ValueError(f"cannot calculate {expression!r}")


@sgl.function
def react(s, question):
    s += SHOT + f"Question: {question}\n"
    actions = ["Lookup", "Calculate"]
    for _ in range(5):
        s += "Thought:" + sgl.gen("thought", max_tokens=24, stop="\n")
        s += "\nAction: " + sgl.gen("action", choices=actions)
        if s["action"] == "Finish":
            break
        if s["action"] == "Lookup":
            argument = sgl.gen("argument", choices=list(FACTS))
            observation = sgl.tool("lookup", FACTS.__getitem__, sgl.variable("argument"), expects=0.001)
        else:
            argument = sgl.gen("argument", regex=r"[1-9][0-9]{0,2} [-+*/] [1-9][0-9]{0,2}")
            observation = sgl.tool("calculate", calculate, sgl.variable("argument"), expects=0.001)
        # In one expression, so that the server knows which tool follows while it generates the argument.
        s += " " + argument + "\nObservation: " + observation + "\n"
        actions = ["Lookup", "Calculate", "Finish"]
    s += "\nAnswer:" + sgl.gen("answer", max_tokens=16, stop="\n")


if __name__ == "__main__":
    server = sgl.AstraeaEndpoint(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
    state = react.run("How many people live in France and Japan together?", backend=server, temperature=0)
    Console().print(Panel(state.text().removeprefix(SHOT), title="ReAct agent"))
