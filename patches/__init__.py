"""The only code that imports sglang. SGLang's loader calls `install()` in every process it starts."""

if __name__ != "astraea_sglang.patches":
    raise ImportError(f"imported as {__name__!r}: a second copy would hook SGLang twice; import astraea_sglang.patches")


def install() -> None:
    """Entry point `sglang.srt.plugins`: register every hook of `seams.SEAMS`; they act only under our policy.

    The loader logs ordinary exceptions and goes on unpatched. So where the seams that announce the policy have drifted
    nothing is registered: SGLang then does not know `astraea` and refuses it, and if it is asked for on this command
    line, SystemExit says why.
    """
    import os
    import sys

    from astraea_sglang.patches.seams import SEAMS, drift

    if os.environ.get("ASTRAEA_EMULATE"):
        from astraea_sglang.patches import emulate

        emulate.install()
    if (problem := drift([seam for seam in SEAMS if seam.hook])) is not None:
        if "--schedule-policy=astraea" in sys.argv or ("--schedule-policy", "astraea") in zip(
            sys.argv, sys.argv[1:], strict=False
        ):
            raise SystemExit(f"astraea: {problem}")
        raise ImportError(f"astraea is not available: {problem}")

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from astraea_sglang.patches import messages, radix

    messages.register()
    radix.register()
    for seam in SEAMS:
        if seam.hook:
            HookRegistry.register(seam.target, seam.hook_function(), HookType(seam.kind))


def cpu_platform() -> str | None:
    """Which SGLang platform serves this machine? Ours where torch sees no accelerator, else None (SGLang's own).

    SGLANG_USE_CPU_ENGINE asks for SGLang's own CPU build, so it gets None, too.
    """
    import os

    import torch

    own_cpu_build = os.environ.get("SGLANG_USE_CPU_ENGINE", "0").lower() in ("1", "true")
    elsewhere = own_cpu_build or torch.accelerator.is_available()
    return None if elsewhere else "astraea_sglang.patches.platform_cpu:TorchCpu"
