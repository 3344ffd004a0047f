"""A research agent that fans out: three forks each write a query and search for it; one summary of what they found.

python examples/02_fan_out.py [http://127.0.0.1:30000]
"""

import re
import sys
import time

from rich.console import Console
from rich.panel import Panel

from astraea_sglang.frontend import sgl

ANGLES = ["history", "economy", "nature"]
LIBRARY = [
    "An earthquake in 1755 split the history of Lisbon: all was rebuilt to withstand the next one.",
    "The economy of Lisbon rests on its port, tourism, and a growing number of software companies.",
    "The Tagus estuary next to Lisbon is a nature reserve where flamingos spend the winter.",
]


def search(angle: str, question: str) -> str:
    """The text of the library that shares most words with the question, after the time a real search would take."""
    time.sleep(0.3)
    words = re.findall(r"\w{4,}", f"{angle} {question}".lower())
    return max(LIBRARY, key=lambda text: sum(word in text.lower() for word in words))


@sgl.function
def research(s, topic):
    s += sgl.system("You are a helpful research assistant.")
    forks = s.fork(len(ANGLES))
    for fork, angle in zip(forks.states, ANGLES, strict=True):
        fork += sgl.user(f"Write one question about the {angle} of {topic}.")
        question = sgl.gen("question", max_tokens=32, regex=r"(What|Which|How|Why) (is|does|are) [a-zA-Z ]{10,50}\?")
        found = sgl.tool("search", search, angle, sgl.variable("question"), expects=0.3, var="found")
        fork += sgl.assistant(question) + sgl.user(found)
    forks.join()
    s += sgl.user("Summarize in one sentence:\n" + "\n".join(f"- {found}" for found in s["found"]))
    s += sgl.assistant(sgl.gen("summary", max_tokens=64, stop="\n"))


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
    state = research.run("Lisbon", backend=sgl.AstraeaEndpoint(url, chat_template_name="chatml"), temperature=0)
    console = Console()
    for question, found in zip(state["question"], state["found"], strict=True):
        console.print(Panel(found, title=question.strip()))
    console.print(Panel(state["summary"].strip(), title="Summary"))
