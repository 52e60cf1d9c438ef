"""Graphs: what was captured runs again on new data, with torch_npu's own code above."""

import pytest
import torch

pytestmark = pytest.mark.npu_sim(soc="910B3", devices=1, memory_gb=2)


def captured(function, **options):
    """A graph of ``function()``, and what it returned."""
    function()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, **options):
        result = function()
    return graph, result


def test_a_replay_computes_with_new_inputs():
    import torch_npu

    x = torch.zeros(4, 64, device="npu").half()
    weight = torch.randn(64, 32).half().npu()
    gamma = torch.ones(64, device="npu").half()
    total = torch.zeros(4, 32, device="npu").half()

    def work():
        normed = torch_npu.npu_rms_norm(x, gamma, 1e-6)[0]  # aclnn
        y = normed @ weight  # aten
        total.add_(y)  # in place
        return torch.cat([y, y * 2], -1)

    graph, y = captured(work)
    for seed in (1, 2):
        torch.manual_seed(seed)
        fresh = torch.randn(4, 64).half()
        x.copy_(fresh)
        total.zero_()
        graph.replay()
        expected = work().cpu()
        torch.npu.synchronize()
        assert torch.equal(y.cpu(), expected)
        assert torch.equal(total.cpu(), expected[:, :32] * 2)


def test_side_streams_that_wait_belong_to_the_capture():
    x = torch.zeros(4, device="npu")
    side = torch.npu.Stream()

    def work():
        here = torch.npu.current_stream()
        side.wait_stream(here)
        with torch.npu.stream(side):
            y = x + 1
        here.wait_stream(side)
        return y * 2

    graph, y = captured(work)
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [8.0] * 4


def test_waiting_for_the_device_is_refused_in_a_capture():
    x = torch.ones(4, device="npu")
    graph = torch.npu.NPUGraph()
    with pytest.raises(RuntimeError, match="captur"):
        with torch.npu.graph(graph):
            x.sum().item()


def test_results_of_a_changing_shape_are_refused():
    x = torch.ones(4, device="npu")
    graph, _ = captured(lambda: torch.masked_select(x, x > 0))
    x[0] = -1
    with pytest.raises(RuntimeError, match="shape depends on the data"):
        graph.replay()


def test_a_graph_keeps_addresses_and_not_tensors():
    import torch_npu  # noqa: F401

    before = torch.npu.memory_allocated()
    x = torch.zeros(1 << 20, device="npu")
    graph, y = captured(lambda: ((x + 1) * 2).sum())
    assert torch.npu.memory_allocated() - before < 3 * x.nbytes
    x.fill_(1)
    graph.replay()
    assert y.item() == 4 * (1 << 20)


def attention():
    """Paged attention of one query, as the engine captures it: the lengths are host arguments."""
    import torch_npu

    torch.manual_seed(0)
    query = torch.randn(1, 1, 2 * 128).half().npu()
    cache = torch.randn(2, 128, 128).half().npu()
    table = torch.tensor([[0, 1]], dtype=torch.int32).npu()

    def work(length=200):
        return torch_npu.npu_fused_infer_attention_score(
            query, cache, cache, num_heads=2, num_key_value_heads=1, input_layout="BSH",
            scale=128**-0.5, block_table=table, block_size=128, actual_seq_lengths_kv=[length],
        )[0]  # fmt: skip

    return work


def test_an_update_gives_an_operator_new_host_arguments():
    work = attention()
    graph, y = captured(work, auto_dispatch_capture=True)
    for length in (200, 7, 255):
        expected = work(length).cpu()
        graph.replay()  # waits on the device for the update that follows
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [length]}])
        assert torch.equal(y.cpu(), expected)


def test_a_replay_without_its_update_is_an_error(monkeypatch):
    from npu_sim.runtime.start import runtime

    work = attention()
    graph, _ = captured(work, auto_dispatch_capture=True)
    runtime().npu_sim_set_wait_limit(1)
    try:
        graph.replay()
        with pytest.raises(RuntimeError, match="waited 1 s for an event that nobody recorded"):
            torch.npu.synchronize()
    finally:
        runtime().npu_sim_set_wait_limit(300)


def test_triton_kernels_are_captured():
    import triton
    import triton.language as tl

    @triton.jit
    def double(x, y, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at) * 2)

    x = torch.ones(4, device="npu")

    def work():
        y = torch.empty_like(x)
        double[(1,)](x, y, BLOCK=4)
        return y

    graph, y = captured(work)
    x.fill_(4)
    graph.replay()
    assert y.tolist() == [8.0] * 4
