"""What do others do? Named policies: rules of papers and projects, restated as settings of this scheduler."""

from typing import NamedTuple

OURS = "astraea"
UNLOADED = "unloaded"
CORRECTED = "hrrn-corrected"


class Baseline(NamedTuple):
    """A name for `--policies`: what it means, whose it is, the --schedule-policy it runs under and its settings.

    Settings are written as a user would; `lab` says that only virtual time has it, a real server does not.
    """

    meaning: str
    source: str
    settings: str = ""
    policy: str = OURS
    lab: bool = False


BASELINES: dict[str, Baseline] = {
    "mlfq": Baseline(
        "Stateful-MLFQ as the paper has it: no gate, SGLang's LRU",
        "Astraea, arXiv 2512.14142, Algorithm 1",
        "order=mlfq,admission=none,retention=lru,end=keep",
    ),
    "plas": Baseline(
        "least attained service of the program first; nothing is preempted",
        "Autellix, arXiv 2502.13965",
        "order=plas,admission=none,retention=lru,end=keep",
    ),
    "continuum": Baseline(
        "program by program, KV locked for a time to live that history says pays",
        "Continuum, arXiv 2511.02230",
        "order=continuum,admission=none,retention=ttl,end=keep",
    ),
    "infercept": Baseline(
        "program by program, KV kept, swapped or freed by the least waste; freed at the end, as its vLLM did",
        "InferCept, arXiv 2402.01869",
        "order=program-fcfs,admission=none,retention=infercept,end=free",
    ),
    "progress-ttl": Baseline(
        "programs are let in as capacity allows, for a tenure and for as long as a tool's pause pays",
        "AgentInfer, openJiuwen-ai/agent-infer; vllm-project/router, RFC 285 and PR 286",
        "order=progress,admission=capacity,retention=progress-ttl,theta=1,end=keep",
    ),
    CORRECTED: Baseline(
        "SGLang's hrrn, aged by prompt tokens only, where 0.5.23 counts decode steps, too",
        "SGLang, PR 32911, corrected here",
        policy="hrrn",
        lab=True,
    ),
    "oracle": Baseline(
        "astraea, every length and tool time declared: what more knowledge could give",
        "this package",
        "prediction=declared,hints=oracle",
        lab=True,
    ),
    UNLOADED: Baseline(
        "no scheduler at all: every program alone on the device, the lower bound",
        "this package",
        policy=UNLOADED,
        lab=True,
    ),
}
