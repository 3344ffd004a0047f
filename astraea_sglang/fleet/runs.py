"""What was measured, where: one fleet under one policy, as it is saved."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astraea_sglang.fleet.agents import ProgramRun


@dataclass(slots=True)
class Run:
    """One fleet under one policy. `settings` is what makes the figures mean something: machine, plan, server.

    `engine` holds the server's own counters over the run, by their Prometheus names without `sglang:`.
    """

    policy: str
    settings: dict[str, Any]
    engine: dict[str, float]
    programs: list[ProgramRun]

    def save(self, path: Path) -> None:
        """Write everything that was measured to `path`, as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Which machine is this? CPU model, cores, memory in GiB, accelerator (None without one), Python version."""
    from astraea_sglang.patches.machine import accelerator_name

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "accelerator": accelerator_name(),
        "python": platform.python_version(),
    }
