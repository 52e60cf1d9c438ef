"""Stand-in for CANN's pyACL, of which the engine asks one thing: the properties of a device."""

from types import SimpleNamespace

from npu_sim.boot.missing import missing_in

missing_in(__name__)


def _get_device_info(device: int, attribute: int) -> tuple[int, int]:
    """(value, error code) of a device property, as pyACL returns them."""
    import ctypes

    from npu_sim.runtime.start import runtime

    value = ctypes.c_int64()
    error = runtime().aclrtGetDeviceInfo(
        ctypes.c_uint32(device), ctypes.c_int(attribute), ctypes.byref(value)
    )
    return value.value, error


rt = SimpleNamespace(get_device_info=_get_device_info)
