"""What the entry point does to the engine, seen in fresh processes.

Run as a script, this file is such a process: ``python test_plugin.py known`` prints a JSON object.
"""

from __future__ import annotations

import ast
import atexit
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

# --- the processes --------------------------------------------------------------------------


def known() -> dict[str, Any]:
    """The engine as it is, with the patch."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    default = sys.excepthook
    load_plugins()
    from ascend_gguf.srt import plugin

    hooks = HookRegistry._hooks.values()
    return {
        "patched": sorted(HookRegistry._patched),
        "registered": sorted(HookRegistry._hooks),
        "hooked": {target: _is_hooked(found, hook) for target, hook, found in _hooks(plugin)},
        "sources": sorted({source.plugin_name for each in hooks for _, _, source in each}),
        "excepthook": sys.excepthook is not default,
    }


def broken() -> dict[str, list[Any]]:
    """What is registered, and what the log says, where something is not as it should be."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.speculative import eagle_utils

    from ascend_gguf.srt import plugin

    backends, excepthook = dict(ATTENTION_BACKENDS), sys.excepthook
    found: dict[str, list[Any]] = {}
    for name, change in {
        "a method that the engine lacks": ("delattr", Req, "_check_vocab_boundary_finish"),
        "a class instead of a function": ("setattr", eagle_utils, "eagle_sample", dict),
        "a module that fails": ("setitem", sys.modules, "ascend_gguf.srt.not_finite", None),
    }.items():
        messages: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            for loaded in [m for m in sys.modules if m.startswith("ascend_gguf.srt.managers")]:
                patch.delitem(sys.modules, loaded)
            getattr(patch, change[0])(*change[1:])
            patch.setattr(plugin.logger, "warning", messages.append)
            patch.setenv(plugin.REFUSED, "")
            plugin.register()
        found[name] = [sorted(HookRegistry._hooks), messages]
        HookRegistry.reset()
    assert backends == ATTENTION_BACKENDS and sys.excepthook is excepthook
    return found


def unknown() -> dict[str, Any]:
    """An engine with a changed function; before that, one that lacks something."""
    problems = broken()
    _change_a_function()
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    default = sys.excepthook
    load_plugins()
    from sglang.srt.model_loader.loader import DefaultModelLoader, GGUFModelLoader

    from ascend_gguf.srt import plugin

    DefaultModelLoader(LoadConfig())  # other formats are not concerned
    try:
        GGUFModelLoader(LoadConfig())
        message = None
    except RuntimeError as error:
        message = str(error)
    return {
        "broken": problems,
        "patched": sorted(HookRegistry._patched),
        "hooked": [target for target, hook, found in _hooks(plugin) if _is_hooked(found, hook)],
        "message": message,
        "excepthook": sys.excepthook is not default,
    }


def _change_a_function() -> None:
    """Let the engine's files, as far as they are looked at, be others in one place."""
    from ascend_gguf.srt import fingerprints, plugin

    engine, folder = fingerprints.installed(), Path(tempfile.mkdtemp())
    for module in {module for module, _ in plugin.targets()}:
        path = Path(module.replace(".", "/") + ".py")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        source = (engine / path).read_text()
        (folder / path).write_text(source.replace("def eagle_sample(", "@cache\ndef eagle_sample("))
    fingerprints.installed = lambda: folder
    atexit.register(shutil.rmtree, folder)


def switched_off() -> dict[str, Any]:
    """SGLANG_PLUGINS names another plugin; the signatures of what is ours beside the engine's."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    default = sys.excepthook
    load_plugins()
    loaded = [name for name in sys.modules if name.startswith("ascend_gguf.")]
    excepthook = sys.excepthook is not default
    from ascend_gguf.srt import overrides, plugin

    return {
        "patched": sorted(HookRegistry._patched),
        "registered": sorted(HookRegistry._hooks),
        "loaded": loaded,
        "excepthook": excepthook,
        "signatures": {
            target: [_parameters(hook), _parameters(found)]
            for target, hook, found in chain(
                _hooks(plugin), ((row, ours, engines) for row, engines, ours in overrides.rows())
            )
        },
    }


def _hooks(plugin: Any) -> Iterator[tuple[str, Any, Any]]:
    """Target below ``sglang.srt``, our hook, and what the engine has at the target."""
    for module, target, name in plugin.HOOKS + plugin.SERVER_HOOKS:
        hook = getattr(
            import_module(f"ascend_gguf.srt.{module}"), name or target.rpartition(".")[2]
        )
        found: Any = import_module(f"sglang.srt.{module}")
        for part in target.split("."):
            found = getattr(found, part)
        yield target, hook, getattr(found, "__func__", found)  # of a class method


def _is_hooked(found: Any, hook: Any) -> bool:
    """Whether the engine has a wrapper that calls our function."""
    cells = getattr(found, "__closure__", None) or ()
    called = [getattr(c.cell_contents, "__wrapped__", c.cell_contents) for c in cells]
    return any(function is hook for function in called)


def _parameters(function: Callable) -> list[list[str]]:
    return [
        [p.name, p.kind.name, "" if p.default is p.empty else repr(p.default)]
        for p in inspect.signature(function).parameters.values()
    ]


# --- the tests ------------------------------------------------------------------------------


class Processes:
    """Started together: each imports the engine, which takes seconds."""

    def __init__(self) -> None:
        itself = str(Path(__file__).resolve())
        self._started = {
            "known": self._start(itself, "known"),
            "unknown": self._start(itself, "unknown"),
            "switched_off": self._start(itself, "switched_off", SGLANG_PLUGINS="none"),
        }
        self._ended: dict[str, tuple[int, str, str]] = {}

    @staticmethod
    def _start(*arguments: str, **environment: str) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if k != "SGLANG_PLUGINS"}
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | environment,
        )

    def ended(self, name: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        if name not in self._ended:
            process = self._started[name]
            out, err = process.communicate(timeout=300)
            self._ended[name] = process.returncode, out, err
        return self._ended[name]

    def answer(self, name: str) -> dict[str, Any]:
        _, out, err = self.ended(name)
        assert out, err
        return json.loads(out.splitlines()[-1])

    def close(self) -> None:
        for process in self._started.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.close()


def hooks() -> dict[str, str]:
    """Full name of each target to its name below the module."""
    from ascend_gguf.srt import plugin

    return {
        f"sglang.srt.{module}.{target}": target
        for module, target, _ in plugin.HOOKS + plugin.SERVER_HOOKS
    }


def test_every_hook_is_applied(processes):
    answer = processes.answer("known")
    assert answer["registered"] == answer["patched"] == sorted(hooks())
    assert answer["hooked"] == dict.fromkeys(hooks().values(), True)
    assert answer["sources"] == ["ascend_gguf"]
    assert answer["excepthook"]
    assert "Failed to" not in processes.ended("known")[2]


#: What refuses GGUF, before anything is started and while loading.
REFUSING = [
    "sglang.srt.arg_groups.model_path_hook.resolve_hf_gguf_model_path",
    "sglang.srt.model_loader.loader.GGUFModelLoader.__init__",
]


def test_a_patch_that_does_not_fit_refuses_gguf_alone(processes):
    found = processes.answer("unknown")["broken"]
    reasons = {
        "a method that the engine lacks": "AttributeError: type object 'Req' has no attribute",
        "a class instead of a function": "TypeError: eagle_sample is <class 'dict'>, no function",
        "a module that fails": "ModuleNotFoundError: import of ascend_gguf.srt.not_finite halted",
    }
    assert found.keys() == reasons.keys()
    for name, (registered, (message,)) in found.items():
        assert registered == REFUSING, name
        assert reasons[name] in message and "GGUF models are refused" in message
        assert "\n" not in message


def test_the_entry_point_imports_nothing_that_may_fail():
    """The engine goes on without a plugin that cannot be imported: nobody would refuse GGUF."""
    source = Path(__file__).parents[2] / "python" / "ascend_gguf" / "srt" / "plugin.py"
    imported = [
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    own = [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names]
    assert set(own) == {"sglang.srt.plugins.hook_registry"}


def test_an_engine_with_a_changed_function_refuses_gguf_alone(processes):
    answer = processes.answer("unknown")
    assert answer["patched"] == REFUSING
    assert not answer["excepthook"]
    for release in ("0.5.20", "0.5.21", "0.5.22", "0.5.23"):
        assert release in answer["message"]
    assert (
        "knows: speculative.eagle_utils.eagle_sample. GGUF models are refused" in answer["message"]
    )
    assert answer["message"] in processes.ended("unknown")[2]


def test_switched_off(processes):
    answer = processes.answer("switched_off")
    assert answer["patched"] == answer["registered"] == answer["loaded"] == []
    assert not answer["excepthook"]


def test_signatures_are_the_engines(processes):
    """An engine that changes what it passes must fail here, not while serving."""
    answer = processes.answer("switched_off")
    for target, ((first, *rest), theirs) in answer["signatures"].items():
        assert first[0] == "original"
        assert _takes(rest, theirs), target


def _takes(ours: list[list[str]], theirs: list[list[str]]) -> bool:
    """Whether parameters are the engine's, by name and place, but for those handed on unseen."""
    if ours == theirs:
        return True
    handed_on = [i for i, (_, kind, _) in enumerate(ours) if kind.startswith("VAR_")]
    return bool(handed_on) and ours[: handed_on[0]] == theirs[: handed_on[0]]


def test_errors_about_files_are_one_line(processes):
    status, _, err = processes.ended("known")
    assert status == 1
    assert err.splitlines()[-1] == "error: m.gguf: tensor 'a\\nb': it is bad."
    assert "Traceback" not in err
    assert err.count("it is bad") == 1


def test_other_errors_go_where_they_went(monkeypatch, capsys):
    from ascend_gguf import GGUFError
    from ascend_gguf.srt import plugin

    others = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: others.append(error))
    plugin._report_gguf_errors_in_one_line()
    sys.excepthook(GGUFError, GGUFError("it is bad"), None)
    assert capsys.readouterr() == ("", "error: it is bad.\n")
    assert others == []
    other = ValueError("it is a bug")
    sys.excepthook(ValueError, other, None)
    assert others == [(ValueError, other, None)]
    assert capsys.readouterr() == ("", "")


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
    if sys.argv[1] == "known":
        from ascend_gguf import GGUFError

        raise GGUFError("it is bad", file="m.gguf", tensor="a\nb")
