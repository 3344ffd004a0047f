"""What our parts of SGLang's processes send each other. The class names are the tags on the wire: unique and stable."""

from sglang.srt.managers import tokenizer_control_mixin
from sglang.srt.managers.io_struct import BaseReq, hook_custom_types


class AstraeaTick(BaseReq, kw_only=True):
    """Rank 0's clock (seconds, monotonic) and measured costs (the fields of `Costs`, seconds), for all ranks alike."""

    now: float
    costs: list[float]


class AstraeaHistory(BaseReq, kw_only=True):
    """What earlier runs of this server learned, for all ranks alike: JSON text of `Predictor.dump`."""

    text: str


class AstraeaControlIn(BaseReq, kw_only=True):
    """A question from an HTTP route to the scheduler."""

    op: str
    argument: str = ""


class AstraeaControlOut(BaseReq, kw_only=True):
    """Its answer, one from each data-parallel rank: JSON text."""

    payload: str


def register() -> None:
    """Make the control messages known to this process; SGLang's decoder rejects others."""
    hook_custom_types(AstraeaControlIn, AstraeaControlOut)
    tokenizer_control_mixin._COMMUNICATOR_SPECS.append(("astraea", AstraeaControlOut))
