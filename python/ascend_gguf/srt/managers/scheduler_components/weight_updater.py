"""Ways to replace weights that packed ones do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers import io_struct
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

_REFUSED = (
    "The weights of a GGUF model take no tensors: write a GGUF file, and replace them by "
    "/update_weights_from_disk. The weights are as they were."
)


def _refusing(output: type) -> Callable:
    def refuse(original: Callable, self: SchedulerWeightUpdaterManager, recv_req: Any) -> Any:
        """Overrides the engine's: one line instead of weights that are half replaced."""
        return output(success=False, message=_REFUSED)

    return refuse


# Not in 0.5.20.
if hasattr(io_struct, "BeginWeightUpdateReqOutput"):
    begin_weight_update = _refusing(io_struct.BeginWeightUpdateReqOutput)
init_weights_update_group = _refusing(io_struct.InitWeightsUpdateGroupReqOutput)
update_weights_from_ipc = _refusing(io_struct.UpdateWeightsFromIPCReqOutput)
