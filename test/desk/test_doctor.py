"""``ascend-gguf doctor`` on a CPU; on the simulated NPU: ``test/npu_sim/test_doctor.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ascend_gguf.desk import doctor
from ascend_gguf.desk.cli import main


def test_a_sound_installation(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = {finding["part"] for finding in found}
    assert parts >= {"package", "torch", "memory", "caches", "engine", "plugin", "kernels"}
    assert not [finding for finding in found if finding["state"] == "wrong"]
    assert "19 functions" in next(f["seen"] for f in found if f["part"] == "plugin")


def test_no_private_path_is_told(capsys, monkeypatch):
    def broken() -> str:
        raise OSError("/home/alice/cann/lib64/libhccl.so: cannot open\nin ~/secret/place/file.py")

    monkeypatch.setattr(doctor, "_torch", broken)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "wrong torch      OSError: .../libhccl.so: cannot open in .../file.py" in said
    assert "alice" not in said and "secret" not in said and str(Path.home()) not in said


@pytest.mark.parametrize(
    "only, state", [("other", "wrong"), ("other,ascend_gguf", "ok"), ("", "wrong")]
)
def test_a_plugin_that_is_left_out(monkeypatch, only, state):
    monkeypatch.setenv("SGLANG_PLUGINS", only)
    (finding,) = doctor._looked_at("plugin", doctor._plugin)
    assert finding.state == state and bool(finding.todo) == (state == "wrong")


def test_a_patch_that_does_not_fit(monkeypatch):
    from ascend_gguf.srt import plugin

    monkeypatch.setattr(plugin, "unknown_engine", lambda: "these functions differ")
    (finding,) = doctor._looked_at("plugin", doctor._plugin)
    assert finding.state == "wrong" and "these functions differ" in finding.seen


def test_a_kernel_that_is_wrong(monkeypatch):
    from ascend_gguf.srt import doctor as of_patch

    monkeypatch.setattr(of_patch, "operators", lambda: iter([("a", None), ("b", "error 0.5")]))
    good, bad = doctor._looked_at("kernels", doctor._operators)
    assert (good.state, bad.state) == ("ok", "wrong")
    assert bad.seen == "b: error 0.5" and "CANN" in bad.todo
