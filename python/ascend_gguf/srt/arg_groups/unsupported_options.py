"""Options of the engine that do not go together with a GGUF file, in one table."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.utils import is_npu
from sglang.srt.utils.hf_transformers.common import check_gguf_file

from ascend_gguf.errors import GGUFError
from ascend_gguf.srt.device import uses_ascend_methods

_CPU, _NPU = "cpu", "npu"
#: How the engine refuses options.
_REFUSALS_OF_THE_ENGINE = (AssertionError, NotImplementedError, ValueError)
_FIELD = re.compile(r"\b[a-z]+(?:_[a-z0-9]+)+\b")


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


_IS_QUANTIZED = "the weights of a GGUF file are quantized already"
_LOADS_GGUF = "a GGUF file is read by a loader of its own"
_STAYS = "a packed weight cannot be moved to the device for a step"
_SMALLER = ", and choose a smaller quantization or more ranks (--tp-size)"
_OF_CUDA = "weights are shared over CUDA alone"
_EXPERTS_STAY = "experts of a GGUF file stay on the rank, and in the order, they were loaded in"
_OWN_KERNELS = "experts of a GGUF file are multiplied by kernels of their own"
_FOR_ACCELERATORS = "the engine has it for accelerators alone"
_ATTENTION = "--attention-backend --decode-attention-backend --prefill-attention-backend"


def _of(devices: tuple[str, ...], *rows: tuple[Any, ...]) -> Iterator[Refusal]:
    """Refusals on some devices, from rows of options, reason and perhaps instead and allowed."""
    for options, *rest in rows:
        for option in options.split():
            yield Refusal(option, *rest, devices=devices)


REFUSALS = (
    *_of(
        (_CPU, _NPU),
        # Weights
        ("--quantization", _IS_QUANTIZED, ", or serve the model's original files", ("gguf",)),
        ("--load-format", _LOADS_GGUF, "", ("auto", "gguf", "dummy")),
        (
            "--modelopt-quant --quantize-and-serve --rl-quant-profile --modelopt-export-path "
            "--modelopt-checkpoint-restore-path --modelopt-checkpoint-save-path",
            _IS_QUANTIZED,
        ),
        (
            "--decrypted-config-file --decrypted-draft-config-file",
            "the configuration of a GGUF model is in its file",
            ", and put a config.json that replaces it beside the file",
        ),
        (
            "--remote-instance-weight-loader-start-seed-via-transfer-engine",
            "packed weights are not sent to other servers",
        ),
        (
            "--quantization-param-path",
            "it scales a KV cache in FP8, which this device does not have",
        ),
        ("--offload-group-size", _STAYS, _SMALLER, (-1,)),
        ("--weight-cache-mode", _OF_CUDA, "", ("off",)),
        ("--startup-weight-load-mode", _LOADS_GGUF, "", ("serial",)),
        ("--delete-ckpt-after-loading", "the loader of GGUF files keeps them"),
        (
            "--model-checksum",
            "checksums are those of a repository's safetensors files",
            ", and compare the file itself (sha256sum)",
        ),
        (
            "--custom-weight-loader --checkpoint-engine-wait-weights-before-ready",
            "packed weights take no dense tensors",
            ", and replace the weights by a GGUF file (/update_weights_from_disk)",
        ),
        (
            "--enable-memory-saver --enable-weights-cpu-backup --enable-draft-weights-cpu-backup",
            "released memory is given back by CUDA's virtual memory alone",
        ),
        # Experts
        (
            "--enable-eplb --ep-num-redundant-experts --elastic-ep-backend --enable-waterfill "
            "--enable-elastic-expert-backup --enable-paged-experts --kt-weight-path "
            "--ep-dispatch-algorithm",
            _EXPERTS_STAY,
        ),
        ("--dwdp-size", _OF_CUDA, "", (1,)),
        ("--moe-dp-size", "experts of all ranks are summed, and copies count twice", "", (1,)),
        ("--init-expert-location", _EXPERTS_STAY, "", ("trivial",)),
        ("--moe-runner-backend", _OWN_KERNELS, "", ("auto",)),
        (
            "--enable-two-batch-overlap --enable-single-batch-overlap",
            "batches are halved around an exchange of tokens that GGUF experts lack",
        ),
        # Layers, attention and the KV cache
        (
            "--kv-cache-dtype",
            "attention reads keys and values in the model's dtype or bfloat16",
            ", or give bfloat16",
            ("auto", "bf16", "bfloat16"),
        ),
        (
            "--enable-torch-compile",
            "packed weights are multiplied by compiled kernels, which torch.compile cannot trace",
            ": decode steps are captured and replayed without it",
        ),
        (
            "--enable-deterministic-inference",
            "products with packed weights depend on how many tokens there are",
            ": a request's seed is obeyed without it",
        ),
        ("--enable-layerwise-nvtx-marker", "it is of CUDA"),
        ("--rl-on-policy-target", "it asks for operators that packed weights do not have"),
    ),
    *_of(
        (_CPU,),
        ("--moe-a2a-backend", "tokens are exchanged between ranks by CUDA kernels", "", ("none",)),
        (
            "--enable-lora --lora-paths --enable-lora-overlap-loading",
            "the engine's LoRA adapters need an accelerator, and this is the CPU",
            ", and merge the adapter into the model before converting it to GGUF",
        ),
        (
            _ATTENTION,
            "attention on the CPU is that of torch_native",
            ", or give torch_native",
            ("torch_native", "intel_amx"),
        ),
        (
            "--enable-hierarchical-cache --enable-unified-cache-external-linker --enable-lmcache "
            "--enable-flexkv --disaggregation-mode",
            "keys and values are in the host's memory anyway, and this is the CPU",
            "",
            ("null",),
        ),
        (
            "--enable-return-routed-experts --expert-distribution-recorder-mode "
            "--moe-dense-tp-size",
            _FOR_ACCELERATORS,
        ),
        ("--dcp-size", _FOR_ACCELERATORS, "", (1,)),
        ("--attn-cp-size", "a prompt is not shared among ranks of the CPU", "", (1,)),
        ("--kv-canary", _FOR_ACCELERATORS, "", ("none",)),
        (
            "--enable-prefill-delayer",
            "it belongs to the overlap of steps, which only slows the CPU down",
        ),
        (
            "--attn-dp-size",
            "the engine has data parallel attention (--enable-dp-attention) for accelerators alone",
            ", or use --tp-size",
            (1,),
        ),
    ),
    *_of(
        (_NPU,),
        ("--cpu-offload-gb", _STAYS, _SMALLER),
        ("--moe-a2a-backend", _OWN_KERNELS, ", or give deepep", ("none", "deepep", "mooncake")),
        (
            "--enable-fp32-lm-head",
            "a packed output matrix is multiplied in the model's dtype on an NPU",
        ),
        (_ATTENTION, "attention on an NPU is that of ascend", ", or give ascend", ("ascend",)),
        (
            "--cuda-graph-backend-prefill",
            "prompts are not captured in graphs on an NPU",
            "",
            ("disabled",),
        ),
        (
            "--page-size",
            "attention on an NPU reads keys and values in blocks of 128 tokens",
            ", or give 128",
            (128,),
        ),
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
