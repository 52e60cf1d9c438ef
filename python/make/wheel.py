"""Build the package in ``dist``, and serve a model with the wheel: ``make wheel``.

The wheel is built from the source distribution, and installed into a copy of ``.venv`` that uses
nothing of this checkout but the stand-ins.  So a file that either lacks is noticed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import demo
import serve
import setup_env

_DIST = setup_env.CHECKOUT / "dist"
_BUILD_SDIST = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
_WHERE = "import ascend_gguf as package; print(package.__version__, package.__file__)"


def build() -> Path:
    """Build the source distribution, and the wheel from it; the wheel's path."""
    output = _run(sys.executable, "-c", _BUILD_SDIST, cwd=setup_env.CHECKOUT)
    source = _DIST / output.splitlines()[-1]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", _DIST]
    _run(sys.executable, "-m", "pip", "wheel", *options, source)
    return _DIST / f"{source.name.removesuffix('.tar.gz')}-py3-none-any.whl"


def install(wheel: Path, environment: Path) -> Path:
    """Copy ``.venv`` with ``wheel`` in place of the checkout; the copy's interpreter."""
    # Hard links are safe: pip replaces files and does not write into them.
    shutil.copytree(setup_env.ENVIRONMENT, environment, symlinks=True, copy_function=os.link)
    python = environment / "bin" / "python"
    _run(python, "-m", "pip", "uninstall", "--yes", "ascend-gguf")
    _run(python, "-m", "pip", "install", "--no-deps", wheel)
    version, file = _run(python, "-c", _WHERE).split()
    if not Path(file).is_relative_to(environment):
        raise demo.DemoError(f"the checkout is imported, not the wheel: {file}")
    if not wheel.name.startswith(f"ascend_gguf-{version}-"):
        raise demo.DemoError(f"{wheel.name} holds version {version}")
    return python


def _run(*command: str | os.PathLike, cwd: Path | None = None) -> str:
    # Not in the checkout: its folders would be importable.
    cwd = cwd or setup_env.ENVIRONMENT
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if finished.returncode:
        shown = " ".join(map(str, command[1:4]))
        raise demo.DemoError(f"{shown} ... failed:\n{finished.stdout}{finished.stderr}")
    return finished.stdout


def main() -> int:
    signal.signal(signal.SIGTERM, demo.raise_on_sigterm)
    try:
        wheel = build()
        print(f"built dist/{wheel.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=setup_env.CHECKOUT, prefix=".venv-") as folder:
            python = install(wheel, Path(folder) / "environment")
            port = demo.free_port()
            command = serve.engine_command(python, demo.BUNDLED_MODEL, "cpu", port)
            print("serving a model with the wheel", flush=True)
            os.chdir(folder)
            demo.run([*command, *demo.ENGINE_ARGUMENTS], os.environ, f"http://127.0.0.1:{port}")
    except demo.DemoError as error:
        print(f"make wheel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake wheel: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
