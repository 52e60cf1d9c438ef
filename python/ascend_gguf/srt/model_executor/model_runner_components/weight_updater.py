"""Another GGUF file's weights in place of those that are served."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
from sglang.srt.model_loader.utils import set_default_torch_dtype
from sglang.srt.platforms import current_platform
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import is_npu
from sglang.srt.utils.hf_transformers.common import check_gguf_file
from torch import nn

from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.choice import choose
from ascend_gguf.srt import metrics, tune
from ascend_gguf.srt.arg_groups.model_path_hook import find_model
from ascend_gguf.srt.device import set_lost_weights
from ascend_gguf.srt.layers.quantization.gguf import PackedWeights
from ascend_gguf.srt.model_loader import layouts
from ascend_gguf.srt.model_loader.loader import load_weights, name_map_of
from ascend_gguf.srt.model_loader.source import Source, check_finite

logger = logging.getLogger(__name__)

_UNTOUCHED = "The weights are as they were."


def update_weights_from_disk(
    original: Callable,
    self: WeightUpdater,
    model_path: str,
    load_format: str,
    weight_name_filter: Callable[[str], bool] | None = None,
    recapture_cuda_graph: bool = False,
) -> tuple[bool, str]:
    """Overrides ``WeightUpdater.update_weights_from_disk``: from a GGUF file, if that fits.

    All ranks check all there is to check before one of them touches a weight.  Then the old
    weights are given up, before the new ones take their memory; if those cannot be loaded after
    all, the old file is loaded again.
    """
    old = getattr(self.get_model(), "gguf_source", None)
    if old is None:  # a draft model of another format
        if check_gguf_file(model_path):
            return True, "The draft model keeps its weights."
        return original(self, model_path, load_format, weight_name_filter, recapture_cuda_graph)
    start = time.perf_counter()
    found: list[Source] = []
    problem = _of_any_rank(lambda: found.append(_checked(self, old, model_path, load_format)))
    if problem is not None:
        if self.get_model_runner().is_draft_worker:
            return True, "The draft model keeps its weights."
        return False, f"{problem} {_UNTOUCHED}"
    new = found[0]
    checked = time.perf_counter()
    problem = _replace(self, new)
    if problem is not None:
        return False, f"{problem} {_roll_back(self, old)}"
    _recapture(self)
    self.update_model_fields(
        self.get_model(),
        model_path=new.path,
        load_format="gguf",
        load_config=LoadConfig(load_format="gguf"),
    )
    logger.info(
        "Replaced the weights by those of %s: %.2f s to check them, %.2f s to load them",
        new.path,
        checked - start,
        time.perf_counter() - checked,
    )
    message = "Succeeded to update model weights."
    if kept := old.other_settings(new):
        message += f" The server keeps the tokenizer it was started with: {', '.join(kept)} differ."
    return True, message


def _of_any_rank(work: Callable[[], Any], problem: str | None = None) -> str | None:
    """Do ``work`` on every rank; what went wrong on the first on which something did."""
    try:
        work()
    except Exception as error:  # whatever it is, the others must not wait for this rank
        if not isinstance(error, GGUFError):
            logger.exception("The weights were not updated")
        problem = str(error) or type(error).__name__
    group = get_parallel().tp_group
    problems: list[str | None] = [problem]
    if group.world_size > 1:
        problems *= group.world_size
        torch.distributed.all_gather_object(problems, problem, group=group.cpu_group)
    return next((found for found in problems if found is not None), None)


def _checked(self: WeightUpdater, old: Source, model_path: str, load_format: str) -> Source:
    """The file at ``model_path``, which may replace ``old``.

    Raises:
        GGUFError: why not.
    """
    parallel = get_parallel()
    if parallel.pp_size > 1:
        raise GGUFError(
            "the weights of a GGUF model are not replaced with --pp-size above 1",
            hint="Start a server on the new file.",
        )
    if load_format not in ("auto", "gguf"):
        raise GGUFError(
            "the weights of a GGUF model are replaced by those of a GGUF file",
            file=model_path,
            found=f"load_format {load_format}",
            hint="Leave out load_format, and give the path of a GGUF file.",
        )
    path = find_model(model_path, None, required=True)
    new = Source.of(
        path, name_map_of(path, self.model_config.hf_config), old.options, old.quant_config
    )
    old.check_replacement(new)
    is_dense = old.options.get("weights") == "dense"
    growth = 0 if is_dense else (new.nbytes - old.nbytes) // parallel.tp_size
    free = torch.npu.mem_get_info()[0] if is_npu() else psutil.virtual_memory().available
    if growth > free:
        raise GGUFError(
            "the weights of this file do not fit the memory that is free",
            file=path,
            found=f"{growth >> 20} MB more than now",
            expected=f"at most {free >> 20} MB more",
            hint="Start a server on this file, or choose a smaller quantization.",
        )
    check_finite(path, parallel.tp_rank, parallel.tp_size)
    return new


def _replace(self: WeightUpdater, new: Source) -> str | None:
    """Put the weights of a file in place of those there are; what went wrong, if something did."""
    model, device = self.get_model(), torch.device(self.device)
    runner = self.get_model_runner()
    runner.decode_cuda_graph_runner = None  # it holds the old weights
    name_map = name_map_of(new.path, self.model_config.hf_config)

    def load() -> None:
        dtype = self.model_config.dtype
        new.quant_config.choice = choose(new.options, new.path, layouts.serves_few())
        new.quant_config.preferences = tune.preferences(new.options, new.path, dtype)
        with set_default_torch_dtype(dtype), device:
            _give_up(model)
            metrics.forget(model.gguf_source.path)
            load_weights(model, new.path, name_map, new.options, device)
        layouts.report(model, new.path, dtype)

    problem = _of_any_rank(load)
    if problem is None:
        model.gguf_source = new
        set_lost_weights(None)
        self.model_config.model_path = new.path
    return problem


def _give_up(model: nn.Module) -> None:
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, PackedWeights):
            method.release_weights(module)
    gc.collect()
    if is_npu():
        current_platform.empty_cache()


def _recapture(self: WeightUpdater) -> None:
    self.get_model_runner().recapture_decode_cuda_graph()


def _roll_back(self: WeightUpdater, old: Source) -> str:
    """Load the old file again, and say how that went."""
    problem = "the file has changed since" if not old.is_unchanged() else None
    problem = _of_any_rank(lambda: None, problem) or _replace(self, old)
    if problem is None:
        _recapture(self)
        return "The old weights were loaded again, and are served."
    lost = (
        f"There are no weights to compute with: those of {old.path} could not be loaded again "
        f"({problem}). Replace them by another file (/update_weights_from_disk), or start the "
        f"server again."
    )
    set_lost_weights(lost)
    return lost
