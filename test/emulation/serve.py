"""Small models served on a whole emulated aarch64 environment: ``make arm-serve``.

SGLang, torch and this package run there as on a Kunpeng or Graviton host; the kernels are compiled
there too.  The answers are compared with transformers'.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import serving
from emulation import root

DATA = Path(__file__).parents[1] / "data"
MODELS = ("qwen3-dense-Q4_K_M", "qwen3-moe-Q4_K_M")

#: Mean absolute error of the log-probabilities of a prompt's tokens, in float32.
LIMIT = 1e-4
#: The engine is imported in two minutes where it takes ten seconds on this machine.
PATIENCE = 1800.0


def main() -> int:
    root.ensure()
    serving.START_TIMEOUT = PATIENCE
    started = time.monotonic()
    root.log().write_text("")
    options = (*serving.CPU, "--dtype", "float32", "--skip-tokenizer-init")
    log = root.FOLDER / "server.log"
    errors = []
    with contextlib.closing(serving.Zygote(root.environment(), root.command())) as zygote:
        for name in MODELS:
            model = DATA / f"{name}.gguf"
            reference = json.loads(model.with_suffix(".ref.json").read_text())
            prompt, expected = reference["input_ids"], reference["token_logprobs"]
            print(f"{name} on aarch64, emulated:", flush=True)
            with zygote.serve(model, log, *options) as server:
                errors.append(server.mean_error(prompt, expected))
                tokens, decoded = server.continued(prompt[:9], 8)
                errors.append(serving.printed_error(decoded, server.prompt_logprobs(tokens)))
    print(f"{time.monotonic() - started:.0f} s")
    return int(not all(error <= LIMIT for error in errors))


if __name__ == "__main__":
    sys.exit(main())
