"""Loading a model from a GGUF file."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any

import psutil
import torch
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader import loader as engine
from sglang.srt.model_loader.utils import set_default_torch_dtype
from sglang.srt.model_loader.weight_utils import RUNAI_STREAMER_TENSOR_ATTR
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import is_npu
from torch import nn
from tqdm.auto import tqdm

from ascend_gguf.architectures import Placement, Target, architecture_of
from ascend_gguf.config import load_config
from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.memory.huge_pages import use_huge_pages
from ascend_gguf.npu.choice import choose
from ascend_gguf.npu.products import this_product
from ascend_gguf.reader import open_gguf
from ascend_gguf.srt import metrics, tune
from ascend_gguf.srt.device import serve_gguf
from ascend_gguf.srt.layers.linear import pack_linears
from ascend_gguf.srt.layers.moe.token_dispatcher.ascend_tp import deal_experts
from ascend_gguf.srt.layers.moe.topk import choose_routes
from ascend_gguf.srt.layers.pooler import apply_pooling
from ascend_gguf.srt.layers.quantization.unquant import keep_float32
from ascend_gguf.srt.layers.vocab_parallel_embedding import (
    no_initialization,
    pack_embeddings,
    tie_output,
)
from ascend_gguf.srt.model_loader import layouts
from ascend_gguf.srt.model_loader.biases import fit_biases
from ascend_gguf.srt.model_loader.source import Source
from ascend_gguf.srt.model_loader.unused import Offered
from ascend_gguf.srt.model_loader.weight_utils import gguf_quant_weights_iterator
from ascend_gguf.srt.models import nextn, pipeline
from ascend_gguf.srt.models.repairs import repair, repair_config, replaced
from ascend_gguf.srt.overrides import override
from ascend_gguf.srt.utils.hf_transformers.config import reads_config_from
from ascend_gguf.weights.block_tensor import BlockTensor, as_blocks
from ascend_gguf.weights.load_stream import Stream
from ascend_gguf.weights.pending import PendingWeight

logger = logging.getLogger(__name__)

#: What ``--model-loader-extra-config`` may hold: the type of each option, or its values.
_OPTIONS: dict[str, type | tuple[str, ...]] = {
    "modules_to_not_convert": list,
    "weights": ("auto", "packed", "int8", "dense"),
    "on_mismatch": ("dense", "stop"),
    "float16": ("refuse", "allow"),
    "tune": ("auto", "off"),
}


def __init__(original: Callable, self: engine.GGUFModelLoader, load_config: LoadConfig) -> None:
    """AROUND ``GGUFModelLoader.__init__``: take the options the engine's loader refuses."""
    engine.BaseModelLoader.__init__(self, load_config)
    self.options = checked_options(load_config.model_loader_extra_config)
    override(self)


def checked_options(options: dict[str, Any] | str | None) -> dict[str, Any]:
    """The options of ``--model-loader-extra-config``, given as JSON or parsed.

    Raises:
        GGUFError: not JSON, or an option or value that there is not.
    """
    if isinstance(options, str):
        try:
            options = json.loads(options or "{}")
        except ValueError as error:
            raise GGUFError(f"--model-loader-extra-config: not JSON: {error}") from None
    for name, value in (options or {}).items():
        allowed = _OPTIONS.get(name, ())
        if value not in allowed if isinstance(allowed, tuple) else not isinstance(value, allowed):
            raise GGUFError(
                "--model-loader-extra-config: no such option or value",
                found=f"{name}={value!r}",
                expected=", ".join(
                    f"{name}: {' or '.join(a) if isinstance(a, tuple) else a.__name__}"
                    for name, a in _OPTIONS.items()
                ),
            )
    return options or {}


def load_model(
    original: Callable,
    self: engine.GGUFModelLoader,
    *,
    model_config: ModelConfig,
    device_config: DeviceConfig,
) -> nn.Module:
    """Overrides ``GGUFModelLoader.load_model``: build the model, load every weight of the file.

    Raises:
        GGUFError: the file is damaged or does not fit the model, or a parameter was left
            uninitialised.
    """
    serve_gguf()
    path = model_config.model_path
    name_map = name_map_of(path, model_config.hf_config)
    # A file has no dtype of its own, and some models take the configuration's.
    model_config.hf_config.dtype = model_config.dtype
    target_device = torch.device(device_config.device)
    quant_config = engine._get_quantization_config(model_config, self.load_config)
    quant_config.modules_to_not_convert += self.options.get("modules_to_not_convert", [])
    quant_config.modules_to_not_convert += _dense_modules(name_map)
    quant_config.choice = choose(self.options, path, layouts.serves_few())
    quant_config.preferences = tune.preferences(self.options, path, model_config.dtype)
    pipeline.untie_on_last_stage(model_config.hf_config)
    if is_npu() and this_product().scatters_cache:
        # What the engine's KV cache asks when it is made: by default it calls ATB.
        os.environ.setdefault("ASCEND_USE_FIA", "1")
    with set_default_torch_dtype(model_config.dtype):
        with target_device, no_initialization():
            model = _built(model_config, self.load_config, quant_config)
            pack_embeddings(model, quant_config)
            pack_linears(model, quant_config)
        nextn.share(model, path)
        pipeline.run_all_layers(model)
        if is_npu():
            choose_routes(model)
            deal_experts(model)
        load_weights(model, path, name_map, self.options, target_device)
        tune.report(quant_config.preferences)
    if not model_config.is_generation:
        apply_pooling(model, open_gguf(path))
    layouts.report(model, path, model_config.dtype)
    model.gguf_source = Source.of(path, name_map, self.options, quant_config)
    return model


def load_weights(
    model: nn.Module,
    path: str,
    name_map: dict[str, Target],
    options: dict[str, Any],
    device: torch.device,
) -> None:
    """Load every weight of the file at ``path``, and run the self-check.

    Call with the model's dtype as the default one.

    Raises:
        GGUFError: as :func:`load_model`.
    """
    with device:
        fit_biases(model, name_map.values())
    _tie_output(model, name_map)
    _keep_routers_in_float32(model, path, name_map)
    start = time.perf_counter()
    _load_weights(model, path, _weights(model, path, name_map))
    for _, module in model.named_modules():
        quant_method = getattr(module, "quant_method", None)
        if quant_method is not None:
            with engine.device_loading_context(module, device):
                quant_method.process_weights_after_loading(module)
    loaded = time.perf_counter()
    checked = layouts.verify(model, path, options.get("on_mismatch", "dense"))
    seconds = {"weights": loaded - start, "self_check": time.perf_counter() - loaded}
    logger.info("Loaded the weights in %.2f s, self-check in %.2f s", *seconds.values())
    name = f"{path} (drafts)" if nextn.is_layer(model) else path
    metrics.record(name, layouts.holdings(model), seconds, checked)


def _built(
    model_config: ModelConfig, load_config: LoadConfig, quant_config: QuantizationConfig
) -> nn.Module:
    repair_config(model_config.hf_config)
    # The engine's class of Mixtral for other kinds of quantization has no packed experts.
    model_config = copy(model_config)
    model_config.quantization = None
    with replaced(pipeline.model_class_of(model_config)):
        model = engine._initialize_model(model_config, load_config, quant_config)
    repair(model, model_config.hf_config)
    return model


def name_map_of(path: str, config: Any) -> dict[str, Target]:
    """Where the tensors of the file at ``path`` go in a model of the engine's ``config``."""
    if nextn.is_draft(config):
        return nextn.name_map_of(path)
    if reads_config_from(path):
        # Anew: the engine pads the heads of its own copy to suit the number of ranks.
        config = load_config(path)
    file = open_gguf(path)
    return architecture_of(file).name_map(file, config)


def _dense_modules(name_map: dict[str, Target]) -> list[str]:
    """The modules whose weights the model computes with while it loads: they stay dense."""
    return [
        # A layer that drafts has another name where the engine looks this up on an NPU.
        name.removesuffix(".weight").removeprefix(nextn.BLOCK)
        for target in name_map.values()
        if isinstance(target, Placement) and target.dense
        for name in target.names
    ]


def _tie_output(model: nn.Module, name_map: dict[str, Target]) -> None:
    embedding = name_map.get("token_embd.weight")
    if "output.weight" not in name_map and isinstance(embedding, str):
        tie_output(model, embedding.removesuffix(".weight"))


def _weights(
    model: nn.Module, path: str, name_map: dict[str, Target]
) -> Iterator[tuple[str, torch.Tensor]]:
    weights = gguf_quant_weights_iterator(path, name_map)
    if "output.weight" not in name_map and _has_separate_lm_head(model):
        # The file shares one matrix between embedding and output; this model's class does not.
        tied = gguf_quant_weights_iterator(path, {"token_embd.weight": "lm_head.weight"})
        weights = itertools.chain(
            weights, (named for named in tied if named[0].startswith("lm_head."))
        )
    return weights


def _with_progress(
    weights: Iterable[tuple[str, torch.Tensor]], path: str, stream: Stream
) -> Iterator[tuple[str, torch.Tensor]]:
    """``weights`` with a progress bar on the first rank, where somebody is looking.

    A weight counts when ``stream`` has done everything that the model asked for on its account.
    """
    total = sum(tensor.nbytes for tensor in open_gguf(path).tensors.values())
    # None: only on a terminal.
    disable = None if get_parallel().tp_rank == 0 else True
    with tqdm(total=total, desc="Loading GGUF", unit="B", unit_scale=True, disable=disable) as bar:
        loading: deque[tuple[int, int]] = deque()  # slices of the stream up to a weight, its bytes
        tensors = 0

        def count() -> None:
            nonlocal tensors
            while loading and loading[0][0] <= stream.finished:
                tensors += 1
                bar.set_postfix_str(f"{tensors} tensors", refresh=False)
                bar.update(loading.popleft()[1])

        for name, data in weights:
            yield name, data
            stored = data.blocks if isinstance(data, BlockTensor) else data
            loading.append((stream.submitted, stored.nbytes))
            count()
        stream.wait()
        count()


def _keep_routers_in_float32(model: nn.Module, path: str, name_map: dict[str, Target]) -> None:
    tensors = open_gguf(path).tensors
    modules = dict(model.named_modules())
    for gguf_name, hf_name in name_map.items():
        tensor = tensors.get(gguf_name)
        if tensor is not None and isinstance(hf_name, str) and len(tensor.shape) == 2:
            module = modules.get(hf_name.removesuffix(".weight"))
            if module is not None and tensor.type.dtype is torch.float32:
                keep_float32(module)


def _has_separate_lm_head(model: nn.Module) -> bool:
    # named_parameters lists a shared parameter once, under the embedding's name.
    return any(name.startswith("lm_head.") for name, _ in model.named_parameters())


def _load_weights(model: nn.Module, path: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """``model.load_weights``, with every parameter required."""
    targets = _mark_uninitialised(model)
    current, offered = "", Offered()

    def named(stream: Stream) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal current
        for name, data in _with_progress(weights, path, stream):
            current = name
            data = as_blocks(data)
            # Some models load with threads of their own, which the stream does not see.  A tensor
            # with this mark they load at once.
            setattr(data, RUNAI_STREAMER_TENSOR_ATTR, True)
            offered.add(name, data)
            yield name, data

    try:
        with Stream(keep_cached=_fits_page_cache(path)) as stream:
            model.load_weights(named(stream))
    except GGUFError:
        raise
    except Exception as error:
        raise GGUFError(
            f"the model cannot load {current}: {error or type(error).__name__}",
            file=path,
            hint="The file and the model's configuration do not fit together.",
        ) from error
    _check_initialised(targets, path)
    offered.check(stream, path)


def _fits_page_cache(path: str) -> bool:
    """Whether to leave the file in memory for the next start, or for this node's other ranks."""
    nbytes = sum(os.path.getsize(file) for file in open_gguf(path).files)
    return get_parallel().tp_size > 1 or nbytes < psutil.virtual_memory().available // 2


def _first_column(parameter: torch.Tensor) -> torch.Tensor:
    # Loaders write whole rows, so the first weight of each row stands for it; marking all of a
    # model's weights would write the whole model once more.
    return parameter[..., 0] if parameter.dim() > 1 else parameter


def _mark_uninitialised(model: nn.Module) -> dict[str, torch.Tensor]:
    """Put NaN into every parameter; pending weights know by themselves what is missing.

    Returns the parameters by name.
    """
    targets = {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.numel()
    }
    for parameter in targets.values():
        if not isinstance(parameter, PendingWeight):
            use_huge_pages(parameter)
            _first_column(parameter).fill_(torch.nan)
    return targets


def _missing(name: str, parameter: torch.Tensor) -> str | None:
    """What of a parameter is uninitialised or NaN; None if nothing."""
    if isinstance(parameter, PendingWeight):
        weight = parameter.whole
        return f"{name}{weight.missing()}" if weight.loaded is None or weight.has_nan else None
    return name if _first_column(parameter).isnan().any() else None


def _check_initialised(targets: dict[str, torch.Tensor], path: str) -> None:
    missing = [what for what in itertools.starmap(_missing, targets.items()) if what is not None]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" * (len(missing) > 3))
        raise GGUFError(
            f"parameters are uninitialised, or NaN, after loading: {shown}",
            file=path,
            hint=DOWNLOAD_AGAIN,
        )
