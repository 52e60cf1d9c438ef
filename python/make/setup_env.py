"""Make or repair ``.venv``, the CPU environment of a checkout: ``make setup``.

Needs only Python's standard library, and takes a fraction of a second if the environment is ready.
The environment is rebuilt if the interpreter or the checkout has moved, updated if the pinned
packages change, completed if an earlier run failed, and rebuilt if one was killed.

Variables: ``TORCH`` is the series of torch (:data:`TORCHES`) or a requirement for pip,
``TORCH_INDEX`` the index to use for it if the configured ones have no CPU build, ``ENGINE`` the
release of SGLang (:data:`ENGINES`).  pip's variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) apply.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ENVIRONMENT = CHECKOUT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
STANDINS = CHECKOUT / "python" / "standins"
STAMP = ENVIRONMENT / "ascend_gguf_setup.json"

#: zz: site handles .pth files by name, and the stand-ins must come last.
PTH_NAME = "zz_ascend_gguf_standins.pth"

#: The tested release of each series of torch.
TORCHES = {"2.10": "2.10.0", "2.11": "2.11.0", "2.12": "2.12.1", "2.13": "2.13.0"}
#: On Linux the plain release is a CUDA build; the CPU build carries a local version.
CPU_BUILD = "+cpu" if sys.platform == "linux" else ""
DEFAULT_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

_TRANSFORMERS_5_12 = (
    *("transformers==5.12.1", "tokenizers==0.22.2", "huggingface_hub==1.33.0"),
    *("httpx==0.28.1", "httpcore==1.0.9"),
)
#: The tested releases of SGLang, and what each is installed with in place of the pinned packages.
ENGINES: dict[str, tuple[str, ...]] = {
    "0.5.20": _TRANSFORMERS_5_12,
    "0.5.21": _TRANSFORMERS_5_12,
    "0.5.22": (),
    "0.5.23": (),
}

#: What a server imports before it reads a model: shows that nothing is missing.
IMPORT_CHECK = "import gguf, llvmlite, openai, torch, sglang.srt.server_args, ascend_gguf"


class SetupError(Exception):
    """Set-up failed; the message says what the user can do."""


def place() -> dict[str, str]:
    """What the environment was made for: if any of it changes, it is rebuilt."""
    return {
        "checkout": str(CHECKOUT),
        "interpreter": os.path.realpath(sys.executable),
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def contents() -> str:
    """A digest of everything that determines what is installed."""
    digest = hashlib.sha256(" ".join([torch_requirement(), *engine_requirements()]).encode())
    for path in (REQUIREMENTS, CHECKOUT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def torch_requirement() -> str:
    torch = os.environ.get("TORCH") or "2.13"
    if torch in TORCHES:
        return f"torch=={TORCHES[torch]}{CPU_BUILD}"
    if torch[0].isdigit():
        raise SetupError(f"TORCH={torch}: expected one of {', '.join(TORCHES)}, or torch==VERSION")
    return torch


def engine_requirements() -> list[str]:
    """Packages that replace pinned ones for the engine that ``ENGINE`` names."""
    engine = os.environ.get("ENGINE")
    if not engine:
        return []
    if engine not in ENGINES:
        raise SetupError(f"ENGINE={engine}: expected one of {', '.join(ENGINES)}")
    return [f"sglang=={engine}", *ENGINES[engine]]


def _read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def _is_ready() -> bool:
    wanted = {"place": place(), "contents": contents()}
    return _read_stamp() == wanted and os.access(PYTHON, os.X_OK)


def _works() -> bool:
    """Whether ``.venv`` was made for this checkout and interpreter, so that it can be completed."""
    stamp = _read_stamp()
    if stamp and (stamp.get("place") != place() or "contents" not in stamp):
        return False
    check = "import pip, sys; print(sys.prefix, sys.version_info[:3])"
    expected = f"{ENVIRONMENT} {sys.version_info[:3]}"
    try:
        answer = subprocess.run([PYTHON, "-c", check], capture_output=True, text=True)
        pip_script = (ENVIRONMENT / "bin" / "pip").read_text()
    except OSError:
        return False
    # The scripts of a copied or moved environment still contain the old path.
    return answer.stdout.strip() == expected and str(PYTHON) in pip_script


def _step(title: str):
    print(f"  {title}", flush=True)


def _run(*command: str | os.PathLike, failure: str, quiet: bool = False) -> None:
    output = subprocess.PIPE if quiet else None
    finished = subprocess.run(command, stdout=output, stderr=output, text=True)
    if finished.returncode != 0:
        raise SetupError(f"{failure}{_last_line(finished.stderr)}")


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def _pip(*arguments: str | os.PathLike, failure: str, quiet: bool = False) -> None:
    # Twice quiet: errors only.
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
    # Compile afterwards, on all cores.
    _run(*pip, "install", "--no-compile", *arguments, failure=failure, quiet=quiet)


def _create() -> None:
    if ENVIRONMENT.exists():
        _step("removing an unfinished environment, or one made for another place or interpreter")
        # Remove the marker first: a partial folder must not be taken for an environment.
        (ENVIRONMENT / "pyvenv.cfg").unlink(missing_ok=True)
        shutil.rmtree(ENVIRONMENT)
    _step(f"creating .venv with Python {place()['python']}")
    _run(
        place()["interpreter"], "-m", "venv", ENVIRONMENT, quiet=True,
        failure="python -m venv failed: install the venv module of this Python "
        "(Debian and Ubuntu: apt install python3-venv)",
    )  # fmt: skip


def _install_torch() -> None:
    requirement = torch_requirement()
    index = os.environ.get("TORCH_INDEX") or DEFAULT_TORCH_INDEX
    plain = requirement.removesuffix("+cpu")
    attempts = [
        (requirement, ["--no-deps", requirement]),
        (f"{requirement} from {index}", ["--no-deps", requirement, "--extra-index-url", index]),
        # Does not import without its libraries.
        (f"{plain}, perhaps a CUDA build with libraries of several GB", [plain]),
    ]
    for title, arguments in attempts:
        _step(f"installing {title}")
        try:
            return _pip(*arguments, failure="not there", quiet=True)
        except SetupError:
            continue
    raise SetupError(
        f"no {requirement} for this machine: set TORCH_INDEX to an index that has a CPU build, or "
        "TORCH to another requirement"
    )


def write_pth(site_packages: Path) -> None:
    """Add the stand-ins to the search path, behind everything in ``site_packages``."""
    (site_packages / PTH_NAME).write_text(
        f"{STANDINS}\n"
        # The engine takes the CPU path only if told so, in every process it starts.
        'import os; os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")\n'
        # Ranks on a CPU would use NCCL, which a CUDA build of torch has.
        'import os; os.environ.setdefault("SGLANG_NCCL_SO_PATH", "none")\n'
    )


def _install_packages() -> None:
    _install_torch()
    _step("installing SGLang and what it imports")
    _pip("--no-deps", "-r", REQUIREMENTS, failure="pip could not install the pinned packages")
    if engine := engine_requirements():
        _pip("--no-deps", *engine, failure=f"pip could not install {engine[0]}")
    _step("installing ascend-gguf from this checkout")
    own = ["--no-deps", "--no-build-isolation", "-e", CHECKOUT]
    _pip(*own, failure="pip could not install this checkout")
    (site_packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
    write_pth(site_packages)
    # A server is several processes that import thousands of files.  Compiled, they start in half
    # the time, also if PYTHONDONTWRITEBYTECODE is set.  Some packages ship templates that fail.
    _step("compiling what was installed")
    compile_all = [PYTHON, "-m", "compileall", "-qq", "-j", "0", site_packages]
    subprocess.run(compile_all, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _step("checking that the engine imports")
    _run(
        PYTHON, "-W", "ignore", "-c", IMPORT_CHECK, quiet=True,
        failure="the environment is incomplete; remove .venv and try again",
    )  # fmt: skip


def _install() -> None:
    started = time.monotonic()
    print(f"Setting up {ENVIRONMENT} (a few minutes the first time)", flush=True)
    if not _works():
        _create()
    # Without contents: after a killed run, packages may be half unpacked.
    STAMP.write_text(json.dumps({"place": place()}))
    try:
        _install_packages()
    except SetupError:
        STAMP.unlink()  # pip failed cleanly; the next run can complete this
        raise
    STAMP.write_text(json.dumps({"place": place(), "contents": contents()}))
    print(f"Ready after {time.monotonic() - started:.0f} s", flush=True)


def ensure() -> None:
    """Make ``.venv`` ready; does nothing if it is.  Raises SetupError."""
    if _is_ready():
        return
    with open(__file__) as lock:  # one set-up at a time per checkout
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_ready():
            _install()


def main() -> int:
    try:
        ensure()
    except SetupError as error:
        print(f"make setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake setup: interrupted; run it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
