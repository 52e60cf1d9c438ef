"""LoRA adapters in their usual format on a model from a GGUF file."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from safetensors.torch import save_file

from engine_process import EngineFailed, EngineProcess
from random_model import PROMPT
from serving import CPU, NPU_ONE, mean_error, told

DATA = Path(__file__).parents[2] / "data"
RANK, ALPHA = 8, 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: torch.nn.Module,
    renamed: tuple[str, str] = ("", ""),
    projections: Sequence[str] = PROJECTIONS,
) -> torch.nn.Module:
    """A random adapter of every projection, and the model with the adapter in its weights.

    Args:
        renamed: a part of the names of weights, and what it is in the file.
    """
    torch.manual_seed(1)
    adapted, tensors = copy.deepcopy(model), {}
    for name, module in adapted.named_modules():
        if name.rpartition(".")[2] in projections:
            rows, columns = module.weight.shape
            # As they are held on the device.
            a = (torch.randn(RANK, columns) * columns**-0.5).half().float()
            b = (torch.randn(rows, RANK) * 0.3).half().float()
            module.weight.data += ALPHA / RANK * b @ a
            name = name.replace(*renamed)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": projections}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return adapted


def test_on_the_simulated_npu(npu_zygote, log, tiny_model, tmp_path):
    model = tiny_model("mistral")  # whose file holds rows of q and k in another order
    adapted = write_adapter(tmp_path / "adapter", model.reference)
    arguments = (
        *NPU_ONE,
        "--dtype",
        "float16",
        "--skip-tokenizer-init",
        "--lora-backend",
        "ascend",
    )
    adapters = ("--lora-paths", f"loud={tmp_path / 'adapter'}", "--max-loras-per-batch", "2")
    with npu_zygote.serve(model.path, log, *arguments, *adapters) as server:
        for reference, options in ((adapted, {"lora_path": "loud"}), (model.reference, {})):
            tokens, found = server.continued(PROMPT, 8, **options)
            assert mean_error(found, model.logprobs(tokens, reference)) <= 0.005
        # Loaded later: what the model has no place for is refused, and the server goes on.
        write_adapter(tmp_path / "other", model.reference, ("self_attn.o_proj", "attention.dense"))
        body = {"lora_name": "other", "lora_path": str(tmp_path / "other")}
        reply = requests.post(f"{server.url}/load_lora_adapter", json=body, timeout=60)
        assert reply.status_code == 400 and "attention.dense" in reply.text
        tokens, found = server.continued(PROMPT, 8, lora_path="loud")
        assert mean_error(found, model.logprobs(tokens, adapted)) <= 0.005


def load(engine: EngineProcess, path: Path, dtype: str, folder: Path):
    """A model with one adapter, which is called "loud"."""
    paths = {"lora_paths": f"loud={folder}", "max_loras_per_batch": 2}
    return engine.load(path, dtype=dtype, lora_backend="ascend", **paths)


def test_a_mixture_whose_first_layer_is_dense(npu_engine, tiny_model, tmp_path):
    """Attention, the dense layer and shared experts take the adapter; experts stay packed."""
    model = tiny_model("glm4moe")
    adapted = write_adapter(tmp_path / "adapter", model.reference)
    with load(npu_engine, model.path, "float16", tmp_path / "adapter") as loaded:
        answer = loaded.generate(
            input_ids=PROMPT,
            sampling_params={"max_new_tokens": 8, "ignore_eos": True, "temperature": 0},
            return_logprob=True,
            lora_path="loud",
        )
    found = told(answer)
    expected = model.logprobs(PROMPT + answer["output_ids"], adapted)[-len(found) :]
    assert mean_error(found, expected) <= 0.005


@pytest.mark.parametrize(
    "name, problem",
    [
        ("apertus", "the model has no such module"),  # up_proj alone, without a gate
        ("muse-glimmer", "the layer has no modules qkv_proj"),
        ("decilm-7b", "it is 256 wide, the model 384"),  # heads that differ by layer
        ("gemma3n", "SGLang cannot add LoRA adapters"),  # layers without keys and values
    ],
)
def test_what_has_no_place_is_refused(npu_engine, tiny_model, tmp_path, name, problem):
    """The engine would leave it out, or end at the first request."""
    model, folder = tiny_model(name), tmp_path / "adapter"
    write_adapter(folder, model.reference)
    with pytest.raises(EngineFailed) as failed, load(npu_engine, model.path, "float16", folder):
        pass
    assert problem in failed.value.log and "Traceback" not in failed.value.log


def test_a_packed_vocabulary_is_refused(npu_engine, tiny_model, tmp_path):
    model, folder = tiny_model("mistral"), tmp_path / "adapter"
    write_adapter(folder, model.reference, projections=("lm_head",))
    with pytest.raises(EngineFailed) as failed, load(npu_engine, model.path, "float16", folder):
        pass
    assert "embedding and output matrix are packed" in failed.value.log
    assert "Traceback" not in failed.value.log


def test_refused_on_the_cpu(resolver, tmp_path):
    model = DATA / "qwen3-dense-Q4_K_M.gguf"
    kind, message = resolver("--model-path", str(model), "--lora-paths", f"a={tmp_path}", *CPU)
    assert kind == "GGUFError" and "LoRA" in message and model.name in message


def test_adapter_is_not_read_as_gguf():
    from sglang.srt.configs.load_config import LoadConfig, LoadFormat
    from sglang.srt.lora.lora_manager import LoRAManager
    from sglang.srt.model_loader.loader import DefaultModelLoader

    from ascend_gguf.srt.model_executor.model_runner import init_lora_manager

    options = {"modules_to_not_convert": []}  # the engine's loader would refuse it
    manager = LoRAManager.__new__(LoRAManager)
    manager.loras = {}
    runner = SimpleNamespace(
        load_config=LoadConfig(load_format="gguf", model_loader_extra_config=options),
        model=torch.nn.Module(),
        model_config=SimpleNamespace(model_path="m.gguf"),
        lora_manager=manager,
    )
    loaders = []
    init_lora_manager(lambda self: loaders.append(DefaultModelLoader(self.load_config)), runner)
    assert runner.load_config.load_format == LoadFormat.GGUF
    assert loaders[0].load_config.load_format == LoadFormat.AUTO
