"""Options that do not go together with a GGUF file: one line before anything is started."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.server_args import ServerArgs

from ascend_gguf import GGUFError
from ascend_gguf.srt.arg_groups import unsupported_options
from ascend_gguf.srt.arg_groups.model_path_hook import settle_float16
from ascend_gguf.srt.arg_groups.unsupported_options import REFUSALS, refuse_options
from serving import CPU

MODEL = Path(__file__).parents[2] / "data" / "qwen3-moe-Q4_K_M.gguf"

#: Options as they are typed, and the one that the message names if there are several.
ON_THE_CPU = (
    "--quantization fp8",
    "--quantization w8a8_int8",
    "--quantization unquant",
    "--load-format safetensors",
    "--load-format flash_rl",
    "--modelopt-quant fp8",
    "--offload-group-size 2",
    "--weight-cache-mode client",
    "--delete-ckpt-after-loading",
    "--model-checksum",
    "--custom-weight-loader module.function",
    "--checkpoint-engine-wait-weights-before-ready",
    "--enable-memory-saver",
    "--enable-weights-cpu-backup",
    "--enable-eplb",
    "--ep-num-redundant-experts 2",
    "--init-expert-location placement.json",
    "--moe-runner-backend triton_kernel",
    "--moe-a2a-backend deepep",
    "--enable-two-batch-overlap",
    "--kv-cache-dtype fp8_e5m2",
    "--kv-cache-dtype fp8_e4m3",
    "--kv-cache-dtype nvfp4",
    "--attention-backend triton",
    "--enable-torch-compile",
    "--enable-deterministic-inference",
    "--enable-dp-attention --dp-size 2 --tp-size 2",
    "--enable-lora",
    "--modelopt-export-path folder",
    "--decrypted-config-file file.json",
    "--ep-dispatch-algorithm fake",
    "--enable-waterfill",
    "--enable-hierarchical-cache",
    "--enable-lmcache",
    "--disaggregation-mode prefill",
    "--enable-return-routed-experts",
    "--expert-distribution-recorder-mode stat",
    "--moe-dense-tp-size 1",
    "--attn-cp-size 2 --tp-size 2",
    "--moe-dp-size 2 --tp-size 2",
    "--kv-canary log",
    "--enable-prefill-delayer",
    "--enable-layerwise-nvtx-marker",
)
SERVED = (
    "",
    "--quantization gguf",
    "--load-format gguf",
    "--cpu-offload-gb 1",
    "--kv-cache-dtype bfloat16",
    "--disable-radix-cache",
    "--enable-mixed-chunk",
    "--sampling-backend pytorch",
    "--enable-fp32-lm-head",
    "--model-impl transformers",
    "--enable-return-hidden-states",
    "--page-size 16",
)


@pytest.mark.parametrize("typed", ON_THE_CPU)
def test_refused_on_the_cpu(resolver, typed):
    kind, message = resolver("--model-path", str(MODEL), *CPU, *typed.split())
    assert kind == "GGUFError" and message.startswith(f"{MODEL}: "), (kind, message)
    assert " is not supported: " in message and typed.split()[0] in message
    assert "\n" not in message and "Leave out --" in message


@pytest.mark.parametrize("typed", SERVED)
def test_not_refused_on_the_cpu(resolver, typed):
    assert resolver("--model-path", str(MODEL), *CPU, *typed.split()) == ("", "")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            "--page-size 16 --chunked-prefill-size 24",
            "must be divisible by page_size (found --chunked-prefill-size 24, --page-size 16).",
        ),
        (
            "--schedule-conservativeness -1",
            "must be non-negative (found --schedule-conservativeness -1.0).",
        ),
    ],
)
def test_refused_by_the_engine(resolver, typed, told):
    kind, message = resolver("--model-path", str(MODEL), *CPU, *typed.split())
    assert kind == "GGUFError" and message.startswith(f"{MODEL}: "), (kind, message)
    assert "\n" not in message and told in message


NPU_DEFAULTS = {"model_path": "m.gguf", "attention_backend": "ascend", "load_format": "auto"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu_offload_gb", 4),
        ("kv_cache_dtype", "fp8_e4m3"),
        ("enable_torch_compile", True),
        ("enable_two_batch_overlap", True),
        ("enable_eplb", True),
        ("attention_backend", "triton"),
        ("quantization", "modelslim"),
        ("enable_fp32_lm_head", True),
        ("dwdp_size", 2),
        ("page_size", 16),
        ("cuda_graph_backend_prefill", "full"),
        ("moe_a2a_backend", "ascend_fuseep"),
    ],
)
def test_refused_on_an_npu(monkeypatch, field, value):
    monkeypatch.setattr(unsupported_options, "is_npu", lambda: True)
    refuse_options(SimpleNamespace(**NPU_DEFAULTS))
    option = "--" + field.replace("_", "-")
    with pytest.raises(GGUFError, match=rf"^m\.gguf: {option}.* is not supported: .*\."):
        refuse_options(SimpleNamespace(**NPU_DEFAULTS | {field: value}))


def test_not_refused_on_an_npu(monkeypatch):
    monkeypatch.setattr(unsupported_options, "is_npu", lambda: True)
    allowed = {"enable_dp_attention": True, "enable_lora": True, "moe_a2a_backend": "deepep"}
    refuse_options(SimpleNamespace(**NPU_DEFAULTS | allowed))


@pytest.mark.parametrize(("typed", "settled"), [("auto", "float16"), ("float16", "float16")])
def test_dtype_of_a_chip_without_bfloat16(typed, settled):
    options = ServerArgs(model_path=str(MODEL), dtype=typed)
    settle_float16(options)
    assert resolving_view(options).dtype == settled


def test_bfloat16_on_a_chip_without_it():
    with pytest.raises(GGUFError, match="this chip does not compute in bfloat16"):
        settle_float16(ServerArgs(model_path=str(MODEL), dtype="bfloat16"))


def test_every_option_is_the_engines():
    from sglang.srt.server_args import ServerArgs

    parser = ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = {option: action.dest for option, action in parser._option_string_actions.items()}
    assert [r.option for r in REFUSALS if known.get(r.option) != r.field] == []
