"""Options of the engine that do not go together with a GGUF file, in one table."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from typing import Any

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.utils import is_npu
from sglang.srt.utils.hf_transformers.common import check_gguf_file

from ascend_gguf.errors import GGUFError
from ascend_gguf.srt.device import uses_ascend_methods

_CPU, _NPU = "cpu", "npu"
_IS_QUANTIZED = "the weights of a GGUF file are quantized already"
_LOADS_GGUF = "a GGUF file is read by a loader of its own"
_EXPERTS_STAY = "experts of a GGUF file stay on the rank, and in the order, they were loaded in"
#: How the engine refuses options.
_REFUSALS_OF_THE_ENGINE = (AssertionError, NotImplementedError, ValueError)
_FIELD = re.compile(r"\b[a-z]+(?:_[a-z0-9]+)+\b")
_NO_SAVER = "released memory is given back by CUDA's virtual memory alone"


@dataclass(frozen=True)
class Refusal:
    """Values of an option that are refused.

    Attributes:
        option: as it is typed.
        reason: why, as a clause.
        instead: what else to do than to leave the option out, as the end of a sentence.
        allowed: values that are not refused; those of an option that was not given always are.
        devices: where.
    """

    option: str
    reason: str
    instead: str = ""
    allowed: tuple[Any, ...] = ()
    devices: tuple[str, ...] = (_CPU, _NPU)

    @property
    def field(self) -> str:
        """The attribute of the engine's options."""
        return self.option.removeprefix("--").replace("-", "_")

    def refuses(self, value: Any) -> bool:
        """Whether the option cannot have this value."""
        return value not in (None, False, 0, []) and value not in self.allowed


REFUSALS = (
    # Weights
    Refusal(
        "--quantization",
        _IS_QUANTIZED,
        ", or serve the model's original files",
        allowed=("gguf",),
    ),
    Refusal("--load-format", _LOADS_GGUF, allowed=("auto", "gguf", "dummy")),
    *(
        Refusal(option, _IS_QUANTIZED)
        for option in (
            *("--modelopt-quant", "--quantize-and-serve", "--rl-quant-profile"),
            *("--modelopt-checkpoint-restore-path", "--modelopt-checkpoint-save-path"),
            "--modelopt-export-path",
        )
    ),
    *(
        Refusal(
            option,
            "the configuration of a GGUF model is in its file",
            ", and put a config.json that replaces it beside the file",
        )
        for option in ("--decrypted-config-file", "--decrypted-draft-config-file")
    ),
    Refusal(
        "--remote-instance-weight-loader-start-seed-via-transfer-engine",
        "packed weights are not sent to other servers",
    ),
    Refusal(
        "--quantization-param-path", "it scales a KV cache in FP8, which this device does not have"
    ),
    Refusal(
        "--cpu-offload-gb",
        "a packed weight cannot be moved to the device for a step",
        ", and choose a smaller quantization or more ranks (--tp-size)",
        devices=(_NPU,),
    ),
    Refusal(
        "--offload-group-size",
        "a packed weight cannot be moved to the device for a step",
        ", and choose a smaller quantization or more ranks (--tp-size)",
        allowed=(-1,),
    ),
    Refusal("--weight-cache-mode", "weights are shared over CUDA alone", allowed=("off",)),
    Refusal("--startup-weight-load-mode", _LOADS_GGUF, allowed=("serial",)),
    Refusal("--delete-ckpt-after-loading", "the loader of GGUF files keeps them"),
    Refusal(
        "--model-checksum",
        "checksums are those of a repository's safetensors files",
        ", and compare the file itself (sha256sum)",
    ),
    *(
        Refusal(
            option,
            "packed weights take no dense tensors",
            ", and replace the weights by a GGUF file (/update_weights_from_disk)",
        )
        for option in ("--custom-weight-loader", "--checkpoint-engine-wait-weights-before-ready")
    ),
    *(
        Refusal(option, _NO_SAVER)
        for option in (
            *("--enable-memory-saver", "--enable-weights-cpu-backup"),
            "--enable-draft-weights-cpu-backup",
        )
    ),
    # Experts
    *(
        Refusal(option, _EXPERTS_STAY)
        for option in (
            *("--enable-eplb", "--ep-num-redundant-experts", "--elastic-ep-backend"),
            *("--enable-elastic-expert-backup", "--enable-paged-experts", "--kt-weight-path"),
            *("--ep-dispatch-algorithm", "--enable-waterfill"),
        )
    ),
    Refusal("--dwdp-size", "weights are shared over CUDA alone", allowed=(1,)),
    Refusal("--init-expert-location", _EXPERTS_STAY, allowed=("trivial",)),
    Refusal(
        "--moe-runner-backend",
        "experts of a GGUF file are multiplied by kernels of their own",
        allowed=("auto",),
    ),
    Refusal(
        "--moe-a2a-backend",
        "tokens are exchanged between ranks by CUDA kernels",
        allowed=("none",),
        devices=(_CPU,),
    ),
    Refusal(
        "--moe-a2a-backend",
        "experts of a GGUF file are multiplied by kernels of their own",
        ", or give deepep",
        allowed=("none", "deepep", "mooncake"),
        devices=(_NPU,),
    ),
    *(
        Refusal(option, "batches are halved around an exchange of tokens that GGUF experts lack")
        for option in ("--enable-two-batch-overlap", "--enable-single-batch-overlap")
    ),
    Refusal(
        "--enable-fp32-lm-head",
        "a packed output matrix is multiplied in the model's dtype on an NPU",
        devices=(_NPU,),
    ),
    # Adapters
    *(
        Refusal(
            option,
            "the engine's LoRA adapters need an accelerator, and this is the CPU",
            ", and merge the adapter into the model before converting it to GGUF",
            devices=(_CPU,),
        )
        for option in ("--enable-lora", "--lora-paths", "--enable-lora-overlap-loading")
    ),
    # Layers, attention and the KV cache
    Refusal(
        "--kv-cache-dtype",
        "attention reads keys and values in the model's dtype or bfloat16",
        ", or give bfloat16",
        allowed=("auto", "bf16", "bfloat16"),
    ),
    *(
        Refusal(
            option,
            "attention on the CPU is that of torch_native",
            ", or give torch_native",
            allowed=("torch_native", "intel_amx"),
            devices=(_CPU,),
        )
        for option in (
            "--attention-backend",
            "--decode-attention-backend",
            "--prefill-attention-backend",
        )
    ),
    *(
        Refusal(
            option,
            "attention on an NPU is that of ascend",
            ", or give ascend",
            allowed=("ascend",),
            devices=(_NPU,),
        )
        for option in (
            "--attention-backend",
            "--decode-attention-backend",
            "--prefill-attention-backend",
        )
    ),
    Refusal(
        "--cuda-graph-backend-prefill",
        "prompts are not captured in graphs on an NPU",
        allowed=("disabled",),
        devices=(_NPU,),
    ),
    Refusal(
        "--page-size",
        "attention on an NPU reads keys and values in blocks of 128 tokens",
        ", or give 128",
        allowed=(128,),
        devices=(_NPU,),
    ),
    Refusal(
        "--enable-torch-compile",
        "packed weights are multiplied by compiled kernels, which torch.compile cannot trace",
        ": decode steps are captured and replayed without it",
    ),
    Refusal(
        "--enable-deterministic-inference",
        "products with packed weights depend on how many tokens there are",
        ": a request's seed is obeyed without it",
    ),
    Refusal("--enable-layerwise-nvtx-marker", "it is of CUDA"),
    *(
        Refusal(
            option,
            "keys and values are in the host's memory anyway, and this is the CPU",
            allowed=("null",),
            devices=(_CPU,),
        )
        for option in (
            *("--enable-hierarchical-cache", "--enable-unified-cache-external-linker"),
            *("--enable-lmcache", "--enable-flexkv", "--disaggregation-mode"),
        )
    ),
    *(
        Refusal(option, "the engine has it for accelerators alone", devices=(_CPU,))
        for option in (
            *("--enable-return-routed-experts", "--expert-distribution-recorder-mode"),
            "--moe-dense-tp-size",
        )
    ),
    *(
        Refusal(
            option,
            "the engine has it for accelerators alone",
            allowed=(allowed,),
            devices=(_CPU,),
        )
        for option, allowed in (("--dcp-size", 1), ("--kv-canary", "none"))
    ),
    Refusal(
        "--enable-prefill-delayer",
        "it belongs to the overlap of steps, which only slows the CPU down",
        devices=(_CPU,),
    ),
    Refusal("--rl-on-policy-target", "it asks for operators that packed weights do not have"),
    Refusal(
        "--attn-dp-size",
        "the engine has data parallel attention (--enable-dp-attention) for accelerators alone",
        ", or use --tp-size",
        allowed=(1,),
        devices=(_CPU,),
    ),
)


def refuse_options(options: Any) -> None:
    """Look at the options for a GGUF file before anything is started.

    Args:
        options: the engine's, as they were typed.

    Raises:
        GGUFError: one of them cannot be obeyed: names it, why, and what to do instead.
    """
    device = _NPU if is_npu() else _CPU
    for refusal in REFUSALS:
        value = getattr(options, refusal.field, None)
        if device in refusal.devices and refusal.refuses(value):
            shown = refusal.option if value is True else f"{refusal.option} {value}"
            raise GGUFError(
                f"{shown} is not supported: {refusal.reason}",
                file=options.model_path,
                hint=f"Leave out {refusal.option}{refusal.instead}.",
            )


def error_in_one_line(error: BaseException) -> GGUFError | None:
    """The error that ends the command, if one line says it all.

    Returns:
        Ours as it is; what the engine refuses while it looks at the options for a GGUF model, with
        the options that its message names; nothing if the error is about something else.
    """
    if isinstance(error, GGUFError):
        return error
    is_refusal = isinstance(error, _REFUSALS_OF_THE_ENGINE) and str(error)
    if not is_refusal or not uses_ascend_methods():
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        server_args = frame.f_locals.get("server_args")
        within = frame.f_globals.get("__name__", "").startswith("sglang.srt.arg_groups.")
        if within and server_args is not None:
            options = resolving_view(server_args)
            if not check_gguf_file(options.model_path):
                return None
            named = dict.fromkeys(_FIELD.findall(str(error)))
            values = (
                f"--{field.replace('_', '-')} {getattr(options, field)}"
                for field in named
                if hasattr(options, field)
            )
            found = ", ".join(values) or None
            return GGUFError(str(error).rstrip("."), file=options.model_path, found=found)
    return None
