"""SGLang's own launcher, run in this process, once it is certain that our hooks are in."""

import os
from collections.abc import Sequence

from astraea_sglang.errors import SeamError
from astraea_sglang.serving import check_port, flag_value


def launch(argv: Sequence[str]) -> None:
    """Run the server `sglang serve ARGV` would run, with `--schedule-policy astraea` unless another is asked for.

    Blocks until the server stops. Raises SeamError when the plugin is switched off, ServerError when the port is taken.
    """
    argv = list(argv)
    if not any(flag.split("=", 1)[0] == "--schedule-policy" for flag in argv):
        argv += ["--schedule-policy", "astraea"]
    port = flag_value(argv, "--port", "30000")
    if port.isdigit() and not {"-h", "--help"} & set(argv):
        check_port(flag_value(argv, "--host", "127.0.0.1"), int(port))

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    if "sglang.srt.server_args.ServerArgs.add_cli_args" not in HookRegistry._patched:
        raise SeamError(
            f"SGLang did not load the astraea plugin (SGLANG_PLUGINS={os.environ.get('SGLANG_PLUGINS', '')!r}); "
            "unset SGLANG_PLUGINS or add astraea to it, and check `pip show astraea-sglang`"
        )
    server_args = prepare_server_args(argv)
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
