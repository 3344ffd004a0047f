"""What is in a batch of SGLang's that an emulated device is given, and what such a device answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult

from astraea_sglang.patches.seams import Seam

_BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"
SEAMS = (
    Seam(_BATCH, "what a pass works on"),
    Seam("sglang.srt.layers.logits_processor.LogitsProcessorOutput", "logits nobody reads", ("next_token_logits",)),
    Seam("sglang.srt.managers.utils.GenerationBatchResult", "the result of a pass"),
)


class Work(NamedTuple):
    """The arguments of Device.step; `prefills` are those of the first requests of the batch, in its order."""

    prefills: list[tuple[int, int]]  # tokens computed, context they end at
    rows: int
    kv_tokens: int


def work(batch: Any) -> Work:
    """What does a forward pass over `batch` compute? In a mixed batch the decoding rows come last."""
    requests = len(batch.reqs)
    prefills, rows = [], requests
    if batch.forward_mode.is_extend():
        rows = len(batch.decoding_reqs or ())
        lengths = zip(batch.prefix_lens, batch.extend_lens, strict=True)
        prefills = [(tokens, cached + tokens) for cached, tokens in lengths][: requests - rows]
    return Work(prefills, rows, int(batch.seq_lens_cpu[requests - rows :].sum()) if rows else 0)


def result(tokens: Sequence[int]) -> GenerationBatchResult:
    """The result of a pass that made these tokens, one for each request, and no logits."""
    return GenerationBatchResult(
        logits_output=LogitsProcessorOutput(next_token_logits=None),
        next_token_ids=torch.tensor(tokens, dtype=torch.int64),
        can_run_cuda_graph=False,
    )
