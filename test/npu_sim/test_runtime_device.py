"""Devices, memory, copies, streams and events, and what is missing."""

import ctypes

import pytest
import torch

pytestmark = pytest.mark.npu_sim(soc="910B3", devices=2, memory_gb=1)

MIB = 1 << 20
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3


def acl():
    from npu_sim.runtime.start import runtime

    return runtime()


def memcpy(destination: int, source: int, size: int, kind: int) -> str:
    """The error of aclrtMemcpy, "" where there is none."""
    failed = acl().aclrtMemcpy(
        ctypes.c_void_p(destination), ctypes.c_size_t(size),
        ctypes.c_void_p(source), ctypes.c_size_t(size), kind,
    )  # fmt: skip
    return acl().aclGetRecentErrMsg().decode() if failed else ""


def test_devices():
    assert torch.npu.is_available()
    assert torch.npu.device_count() == 2
    assert torch.npu.get_device_name(0) == "Ascend910B3"
    assert torch.ones(2, device="npu:1").device == torch.device("npu:1")
    with pytest.raises(RuntimeError):
        torch.ones(2, device="npu:2")


def test_memory_is_limited_and_accounted_for():
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    assert total == 1 << 30
    block = torch.empty(600 * MIB, dtype=torch.uint8, device="npu")
    assert free - torch.npu.mem_get_info()[0] >= 600 * MIB
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(600 * MIB, dtype=torch.uint8, device="npu")
    other = torch.empty(600 * MIB, dtype=torch.uint8, device="npu:1")
    del block, other
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info()[0] == free


def test_zeros_are_zero_also_in_memory_that_was_used():
    for size in (5, 4 * MIB + 3):
        used = torch.full((size,), 7, dtype=torch.uint8, device="npu")
        address = used.data_ptr()
        del used
        fresh = torch.zeros(size, dtype=torch.uint8, device="npu")
        assert fresh.data_ptr() == address
        assert not fresh.cpu().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_copies_there_and_back(dtype):
    host = torch.randint(0, 2, (7, 5)).to(dtype)
    device = host.to("npu")
    assert device.device.type == "npu"
    assert torch.equal(device.cpu(), host)
    assert torch.equal(device.t().cpu(), host.t())
    assert torch.equal(device[1:, ::2].contiguous().cpu(), host[1:, ::2])
    pinned = host.pin_memory()
    assert pinned.is_pinned()
    assert torch.equal(pinned.to("npu", non_blocking=True).cpu(), host)


def test_a_copy_in_the_wrong_direction_is_refused():
    device, host = torch.zeros(16, device="npu"), torch.zeros(16)
    d, h = device.data_ptr(), host.data_ptr()
    assert memcpy(d, h, 64, HOST_TO_DEVICE) == ""
    assert "source" in memcpy(d, h, 64, DEVICE_TO_DEVICE)
    assert "destination" in memcpy(h, d, 64, HOST_TO_DEVICE)
    assert "destination" in memcpy(d, h, 64, DEVICE_TO_HOST)


def test_a_copy_that_leaves_its_allocation_is_refused():
    block = torch.empty(32 * MIB, dtype=torch.uint8, device="npu")
    host = torch.empty(64 * MIB, dtype=torch.uint8)
    assert "live device" in memcpy(block.data_ptr(), host.data_ptr(), 64 * MIB, HOST_TO_DEVICE)


def test_host_and_device_tensors_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="npu") + torch.ones(3)


def test_aclnn_operators_without_a_model_refuse_with_their_names():
    from npu_sim.operators import OPERATORS
    from npu_sim.runtime.start import operator_names, symbol

    missing = [name for name in operator_names() if name not in OPERATORS]
    assert len(missing) > 500 and "aclnnAscendQuantV3" in missing
    for name in ("aclnnAscendQuantV3", missing[0], missing[-1]):
        assert symbol(f"{name}GetWorkspaceSize")() != 0
        message = acl().aclGetRecentErrMsg().decode()
        assert message.endswith(f"{name}: the simulation has no model of this operator")


def test_an_aten_operator_that_the_device_lacks_raises_with_its_name():
    from npu_sim.runtime.start import LACKING

    assert "geqrf" in LACKING
    with pytest.raises(NotImplementedError, match="aten::geqrf"):
        torch.geqrf(torch.ones(2, 2, device="npu"))


def test_fractal_nz_is_a_tag():
    import torch_npu

    torch.npu.config.allow_internal_format = True  # as the engine sets it
    weight = torch.randn(32, 64).half().npu()
    assert torch_npu.get_npu_format(weight) == 2
    cast = torch_npu.npu_format_cast(weight, 29)
    assert torch_npu.get_npu_format(cast) == 29
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(cast, 2)) == 2
    assert torch.equal(torch_npu.npu_format_cast(cast, 2).cpu(), weight.cpu())
    torch_npu.npu_format_cast_(weight, 29)
    assert torch_npu.get_npu_format(weight) == 29
    x = torch.randn(4, 32).half().npu()
    assert torch.allclose((x @ weight).cpu(), x.cpu() @ weight.cpu(), atol=1e-2)


def test_streams_and_events():
    side = torch.npu.Stream()
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    with torch.npu.stream(side):
        x = torch.ones(4, device="npu") + 1
        end.record()
    torch.npu.current_stream().wait_event(end)
    end.synchronize()
    assert end.query() and start.elapsed_time(end) >= 0
    assert x.tolist() == [2.0] * 4


def test_random_numbers_follow_the_seed():
    def draw():
        torch.npu.manual_seed(5)
        return torch.rand(8, device="npu").cpu()

    assert torch.equal(draw(), draw())
    first = torch.Generator(device="npu").manual_seed(1)
    again = torch.Generator(device="npu").manual_seed(1)
    a = torch.rand(8, generator=first, device="npu")
    assert torch.equal(a.cpu(), torch.rand(8, generator=again, device="npu").cpu())
    assert not torch.equal(a.cpu(), torch.rand(8, generator=first, device="npu").cpu())


def test_a_triton_kernel_works_on_device_memory():
    import triton
    import triton.language as tl

    from npu_sim.recorder import record

    @triton.jit
    def double(x, n, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)

    x = torch.arange(10, device="npu", dtype=torch.float32)
    with record() as region:
        double[(3,)](x, 10, BLOCK=4)
    assert x.tolist() == [2.0 * i for i in range(10)]
    assert region.operators == {"triton::double": 1} and not region.copies
