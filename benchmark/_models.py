"""Large models to load: files of random blocks, and the engine's own model to load them into."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ascend_gguf import load_config, open_gguf
from ascend_gguf.architectures import architecture_of

sys.path.append(str(Path(__file__).parents[1] / "test"))
from random_model import Spec, write_blocks  # noqa: E402, F401


@contextlib.contextmanager
def engine_model(
    path: Path, layers: int
) -> Iterator[tuple[torch.nn.Module, dict[str, tuple[str, ...]]]]:
    """The engine's model for a file, bfloat16 on the CPU, and the file's names in it.

    The model has ``layers`` layers, and the file's layers share them: so a file can be loaded whose
    dense weights would not fit in memory.  Weights are loaded dense.
    """
    from sglang.srt.layers.quantization.gguf import GGUFConfig
    from sglang.srt.model_loader.utils import set_default_torch_dtype
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import get_context, get_parallel

    from ascend_gguf.srt.layers.quantization.kernels import Choice

    load_plugins()
    get_context().override_server_args(device="cpu").install()
    config = load_config(path)
    file = open_gguf(path)

    def folded(name: str) -> str:
        return re.sub(r"\.layers\.(\d+)\.", lambda m: f".layers.{int(m[1]) % layers}.", name)

    names = {
        name: tuple(map(folded, np.atleast_1d(hf)))
        for name, hf in architecture_of(file).name_map(file, config).items()
    }
    config.num_hidden_layers = layers
    one = {
        f"{group}_{what}": int(what == "size")
        for group in ("tp", "attn_tp", "attn_dp", "attn_cp", "moe_ep", "moe_tp", "pp")
        for what in ("size", "rank")
    }
    pp_group = SimpleNamespace(is_first_rank=True, is_last_rank=True, rank_in_group=0, world_size=1)
    with get_parallel().override(**one, pp_group=pp_group):
        with set_default_torch_dtype(torch.bfloat16):
            module = import_module(f"sglang.srt.models.{config.model_type}")
            quant_config = GGUFConfig()
            quant_config.choice = Choice("dense")
            yield module.EntryClass(config, quant_config=quant_config), names
