"""Every symbol of SGLang we touch: one row each, checked against the installed SGLang before `astraea` is served.

A row with a hook is patched through SGLang's own HookRegistry; a row without is called or subclassed. To support a new
SGLang version: run the tests, mend the rows that drifted, add the version to KNOWN_GOOD.
"""

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

KNOWN_GOOD = ("0.5.23",)


@dataclass(frozen=True, slots=True)
class Seam:
    """One touched symbol. `parameters` are the leading parameter names we rely on; `hook` is ours, applied as `kind`."""

    target: str
    why: str
    parameters: tuple[str, ...] = ()
    kind: str = "call"
    hook: str | None = None

    def problem(self) -> str | None:
        """In which way does the installed SGLang differ? None when it does not."""
        try:
            found = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError):
            return "is gone"
        if not self.parameters:
            return None
        have = tuple(inspect.signature(found).parameters)
        return None if have[: len(self.parameters)] == self.parameters else f"takes ({', '.join(have)})"

    def hook_function(self) -> Callable[..., Any]:
        """Which function of ours does the hook name? Importing it may import sglang."""
        return pkgutil.resolve_name(f"astraea_sglang.patches.{self.hook}")


_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler."
_POLICY = "sglang.srt.managers.schedule_policy.SchedulePolicy"
_ARGS = "sglang.srt.server_args.ServerArgs."
_CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache."
_CORE = "sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore."
_FULL = "sglang.srt.mem_cache.unified_cache.components.full.FullComponent."

SEAMS = (
    Seam(_ARGS + "add_cli_args", "add `astraea` to --schedule-policy, and our flags", ("parser",), "after", "args:add_flags"),
    Seam(_ARGS + "resolve_once", "check settings and seams once, before any process is spawned", ("self",), "before", "args:check"),
    Seam(_POLICY, "order the waiting queue by program", (
        "policy", "tree_cache", "enable_hierarchical_cache", "enable_priority_scheduling", "schedule_low_priority_values_first",
    ), "replace", "waiting:AstraeaSchedulePolicy"),
    Seam(_POLICY + "._validate_and_adjust_policy", "accept the policy's name", ("self", "policy", "tree_cache")),
    Seam(_POLICY + ".calc_priority", "our order instead", ("self", "waiting_queue", "running_batch", "processed_tokens")),
    Seam(_POLICY + "._touch_waiting_prefixes", "keep SGLang's refresh of waiting prefixes", ("self", "policy", "waiting_queue")),
    Seam(_SCHEDULER + "init_schedule_policy", "give the scheduler its program table", ("self",), "after", "lifecycle:attach"),
    Seam(_SCHEDULER + "init_request_dispatcher", "receive ticks and control messages", ("self",), "after", "control:dispatch"),
    Seam(_SCHEDULER + "_add_request_to_queue", "a segment arrives, or is retracted", ("self", "req", "is_retracted"), "after", "lifecycle:queued"),
    Seam(_SCHEDULER + "_get_new_batch_prefill_raw", "a segment is admitted", ("self", "prefill_delayer_single_pass", "running_batch"), "after", "lifecycle:admitted"),
    Seam(_SCHEDULER + "get_prefill_adder_class", "hold cold segments back", ("self",), "around", "waiting:gated_adder"),
    Seam(_SCHEDULER + "get_output_streamer_class", "answer orders for KV", ("self",), "around", "answers:answering_streamer"),
    *(Seam("sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer." + name, why, ("self", *parameters)) for name, why, parameters in (
        ("is_request_level_customized_info_key", "answers go with a request, not with its tokens", ("key",)),
        ("should_build_additional_customized_info", "see what was sent", ()),
        ("build_additional_customized_info", "so that none goes twice", ("reqs",)),
    )),
    Seam("sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info", "answers reach meta_info", ("self", "meta_info", "state", "customized_info", "index")),
    Seam("sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req", "where a segment is admitted", ("self", "req")),
    Seam(_SCHEDULER + "run_batch", "when a step was launched", ("self", "batch"), "before", "lifecycle:launched"),
    Seam(_SCHEDULER + "process_batch_result", "a step is over: tokens attained, segments finished", ("self", "batch", "result"), "after", "lifecycle:stepped"),
    Seam(_SCHEDULER + "send_abort_output", "a segment ends outside the output stream", ("self", "abort_req", "req"), "after", "lifecycle:dropped"),
    Seam("sglang.srt.mem_cache.registry.create_unified_radix_cache", "our radix cache with our policy", ("ctx", "cache_class"), "around", "radix:chosen"),
    Seam("sglang.srt.mem_cache.registry.register_radix_cache_backend", "the same by name", ("name", "factory")),
    Seam("sglang.srt.mem_cache.unified_cache.tree_core_registry.register_tree_core_backend", "its tree core", ("name", "factory")),
    *(Seam(_CORE + name, why, ("self", *parameters)) for name, why, parameters in (
        ("_unregister_node", "a node goes, and with it KV of a program", ("node",)),
        ("_split_node", "keep a part of a node", ("key", "child", "split_len")),
        ("_evict_host_leaf", "free a path's host copy", ("node", "tracker", "device_frees", "host_frees", "cache_actions")),
    )),
    *(Seam(_FULL + name, why, ("self", *parameters)) for name, why, parameters in (
        ("_evict_device_start", "a walk over the leaves begins", ("request_cnt",)),
        ("_evict_device_next_node", "which leaf is evicted next", ("tracker", "device_frees", "host_frees", "cache_actions")),
        ("_evict_device_end", "the walk ends", ()),
        ("_ensure_eviction_strategy", "the order of leaves", ()),
    )),
    *(Seam(_CACHE + name, why, ("self", *parameters)) for name, why, parameters in (
        ("reset", "all programs lose their KV", ()),
        ("evict_for_alloc", "locks yield to what runs", ("params",)),
        ("lock", "preserve a path", ("node_id",)),
        ("unlock", "no longer", ("lock",)),
        ("_evict_device_leaf", "free a path on the device", ("node_id", "tracker")),
        ("_drop_subtree_no_host", "the same without a copy", ("node_id", "tracker")),
        ("_execute_and_commit_kv_backup", "swap a path out", ("action", "write_back")),
        ("flush_pending_backups", "now", ()),
        ("check_hicache_events", "see which copies are made", ()),
        ("load_back", "swap it in", ("node_id",)),
        ("has_free_load_back_slot", "if a copy may start", ()),
        ("ready_to_load_host_cache", "now", ()),
        ("_apply_eviction_result", "give back what was freed", ("result",)),
        ("_log_write_ack_metrics", "how long a copy took", ("ack",)),
    )),
    Seam(_SCHEDULER + "_poll_timeout_aborts", "rank 0's clock rides the request broadcast", ("self",), "after", "ticks:poll"),
    Seam("sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request", "read program hints of every request, and say which were taken", ("self", "obj", "request"), "around", "taken:watched"),
    Seam("sglang.srt.entrypoints.http_server._setup_and_run_http_server", "add the /astraea routes", ("server_args", "tokenizer_manager"), "before", "control:add_routes"),
    Seam("sglang.srt.arg_groups.hicache_hook.handle_hicache", "on our CPU platform refuse copies that need a kernel", ("server_args",), "after", "hicache_cpu:check"),
    Seam("sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.init_hicache", "there, make the host pool work", ("self", "server_args", "params"), "before", "hicache_cpu:prepare"),
    Seam("sglang.srt.mem_cache.pool_host.common.ALLOC_MEMORY_FUNCS", "allocate it unpinned"),
    Seam("sglang.srt.mem_cache.pool_host.common.alloc_with_host_register", "by SGLang's own allocator", ("dims", "dtype", "device", "pin_memory", "allocator", "registration_granularity_bytes")),
    Seam("sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.backup_from_device_all_layer", "copies by the name transfer_kv_direct, to the host", ("self", "device_pool", "host_indices", "device_indices", "io_backend")),
    Seam("sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.load_to_device_per_layer", "and back", ("self", "device_pool", "host_indices", "device_indices", "layer_id", "io_backend")),
    Seam("sglang.srt.arg_groups.overrides.resolving_view", "the settings SGLang goes by", ("server_args",)),
    Seam("sglang.srt.platforms.current_platform", "whether it is ours"),
    Seam("sglang.srt.mem_cache.common.match_kv_cache", "how much of a prompt the radix tree holds", ("req", "tree_cache")),
    Seam("sglang.srt.managers.kv_hints.decode_kv_hints_envelope", "the carrier of hints", ("value",)),
    Seam("sglang.srt.managers.kv_hints.KvHintAction", "one hint, or one order for KV"),
    Seam("sglang.srt.entrypoints.http_server.ORJSONRequest.json", "a request keeps its parsed body as `_json`", ("self",)),
    Seam("sglang.srt.function_call.function_call_parser.FunctionCallParser", "which tools an output calls", ("tools", "tool_call_parser", "tokenizer", "tool_choice")),
    Seam("sglang.srt.entrypoints.openai.protocol.Tool", "of these"),
    Seam("sglang.srt.entrypoints.openai.protocol.Function", "by name"),
    Seam("sglang.srt.managers.schedule_batch.FINISH_MATCHED_TOKEN", "an output ends with a token that is not part of it"),
    Seam("sglang.srt.managers.io_struct.BaseReq", "base of our messages"),
    Seam("sglang.srt.managers.io_struct.hook_custom_types", "register our messages"),
    Seam("sglang.srt.managers.tokenizer_control_mixin._COMMUNICATOR_SPECS", "ask the scheduler and await its answer"),
    Seam("sglang.srt.utils.auth.auth_level", "the auth rules of SGLang's own admin routes", ("level",)),
    Seam("sglang.utils.TypeBasedDispatcher", "add handlers to the scheduler", ("mapping",)),
    Seam("sglang.launch_server.run_server", "SGLang's own launcher", ("server_args",)),
    Seam("sglang.srt.plugins.hook_registry.HookRegistry._patched", "see that our hooks are in"),
)  # fmt: skip


def drift(seams: Sequence[Seam] = SEAMS) -> str | None:
    """How does the installed SGLang differ from the one these seams were cut for? One line, or None."""
    problems = [f"{seam.target} {problem}" for seam in seams if (problem := seam.problem())]
    if not problems:
        return None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (
        f"SGLang {version('sglang')} differs from {', '.join(KNOWN_GOOD)}, which this package hooks into: {problems[0]}{more}; "
        f"type: pip install sglang=={KNOWN_GOOD[-1]}, or choose another --schedule-policy"
    )
