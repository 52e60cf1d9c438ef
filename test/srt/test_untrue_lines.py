"""What the engine says of GGUF that is not true where the patch serves it."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

from ascend_gguf.srt import plugin


def test_untrue_lines_are_not_printed(monkeypatch, caplog):
    """Nor in processes that are started; what is said of other kinds of quantization stays."""
    monkeypatch.setattr(sys, "warnoptions", [])
    engine = logging.getLogger("sglang.srt.configs.model_config")
    kept, text = list(engine.filters), "%s quantization is not fully optimized yet. The speed ..."
    try:
        with warnings.catch_warnings(record=True) as caught:
            plugin._silence_untrue_lines()
            for said in ("MUSA and NPU support GGUF quantization", "HIP and XPU support AWQ"):
                warnings.warn(f"Only CUDA, {said} currently.", stacklevel=1)
        engine.warning(text, "gguf")
        engine.warning(text, "awq")
    finally:
        engine.filters[:] = kept
    assert [str(one.message) for one in caught] == ["Only CUDA, HIP and XPU support AWQ currently."]
    assert [record.args for record in caplog.records] == [("awq",)]
    code = "import warnings; warnings.warn('Only CUDA, MUSA and NPU support GGUF, they say')"
    options = [f"-W{option}" for option in sys.warnoptions]
    started = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert options and started.returncode == 0 and started.stderr == ""
