"""LoRA adapters in their usual format on a model from a GGUF file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from random_model import PROMPT
from serving import CPU, NPU_ONE, mean_error

DATA = Path(__file__).parents[2] / "data"
RANK, ALPHA = 8, 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(folder: Path, model: torch.nn.Module) -> torch.nn.Module:
    """A random adapter of every projection, and the model with the adapter in its weights."""
    torch.manual_seed(1)
    adapted, tensors = copy.deepcopy(model), {}
    for name, module in adapted.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            rows, columns = module.weight.shape
            # As they are held on the device.
            a = (torch.randn(RANK, columns) * columns**-0.5).half().float()
            b = (torch.randn(rows, RANK) * 0.3).half().float()
            module.weight.data += ALPHA / RANK * b @ a
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": PROJECTIONS}
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


def test_refused_on_the_cpu(resolver, tmp_path):
    model = DATA / "qwen3-dense-Q4_K_M.gguf"
    kind, message = resolver("--model-path", str(model), "--lora-paths", f"a={tmp_path}", *CPU)
    assert kind == "GGUFError" and "LoRA" in message and model.name in message


def test_adapter_is_not_read_as_gguf():
    from sglang.srt.configs.load_config import LoadConfig, LoadFormat
    from sglang.srt.model_loader.loader import DefaultModelLoader

    from ascend_gguf.srt.model_executor.model_runner import init_lora_manager

    options = {"modules_to_not_convert": []}  # the engine's loader would refuse it
    runner = SimpleNamespace(
        load_config=LoadConfig(load_format="gguf", model_loader_extra_config=options)
    )
    loaders = []
    init_lora_manager(lambda self: loaders.append(DefaultModelLoader(self.load_config)), runner)
    assert runner.load_config.load_format == LoadFormat.GGUF
    assert loaders[0].load_config.load_format == LoadFormat.AUTO
