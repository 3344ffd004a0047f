"""A coding agent with sub-agents: one writes code, a test really runs on it, one reviews. Each is a program.

The code that the model writes is run in a directory of its own, and not otherwise confined.

python examples/03_coding_agent.py [http://127.0.0.1:30000]
"""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from astraea_sglang import frontend as astraea

TASK = "Write a Python function add(a, b) that returns the sum of a and b."
TEST = "from solution import add\nassert add(2, 3) == 5, add(2, 3)\nprint('the test passes')\n"


async def code(url: str, work: Path, console: Console) -> None:
    solution = work / "solution.py"

    @astraea.tool(expects=0.001)
    def write_file(name: str, text: str) -> str:
        """Write a file into the working directory."""
        (work / Path(name).name).write_text(text)
        return f"wrote {len(text)} characters to {name}"

    @astraea.tool(expects=0.1, timeout=20)
    def run_test() -> str:
        """Run the test of solution.py, and see what it says."""
        (work / "test_solution.py").write_text(TEST)  # every time: the coder may have written another
        command = [sys.executable, "test_solution.py"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=10)
        return (done.stdout + done.stderr)[-600:]

    async with astraea.program("lead", base_url=url, temperature=0, max_tokens=160) as lead:
        plan = await lead.chat(f"{TASK} How will you do that, in one sentence?", max_tokens=40)
        console.print(Panel(Text(plan.text), title="plan"))
        async with lead.child("coder", [write_file, run_test], system="You write short Python code.") as coder:
            said = ""
            for attempt in (1, 2):
                solution.unlink(missing_ok=True)
                reply = await coder.run(f"{TASK} Write it into solution.py.{said}", most_turns=3)
                if not solution.exists():  # it has called no tool: take the code out of its words
                    fenced = re.search(r"```(?:python)?\n(.*?)(?:```|$)", reply.text, re.DOTALL)
                    await coder.call(write_file, "solution.py", fenced[1] if fenced else reply.text)
                said = f" The test says:\n{(await lead.call(run_test)).text}"
                console.print(Panel(Text(solution.read_text()), title=f"solution.py, attempt {attempt}"), Text(said))
                if "passes" in said:
                    break
        async with lead.child("reviewer") as reviewer:
            console.rule("review")
            async for piece in reviewer.stream(f"Is this code right?\n{solution.read_text()}{said}", max_tokens=60):
                console.print(piece, end="", markup=False)
        console.print(f"\n{lead.name} {lead.id} has sent out {coder.name} {coder.id} and {reviewer.name} {reviewer.id}")


if __name__ == "__main__":
    with TemporaryDirectory() as directory:
        url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
        asyncio.run(code(url, Path(directory), Console()))
