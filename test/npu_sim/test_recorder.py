"""The recorder counts what the device does."""

import json

import pytest
import torch

pytestmark = pytest.mark.npu_sim(soc="910B3", devices=1, memory_gb=2)


def test_operators_and_weights():
    import torch_npu

    from npu_sim.recorder import record

    linear = torch.nn.Linear(64, 32, bias=False).half().npu()
    x = torch.randn(2, 64).half().npu()
    with record(weights=linear) as region, torch.inference_mode():
        torch_npu.npu_swiglu(linear(x))
    assert region.operators == {"aten::matmul": 1, "aclnnSwiGlu": 1}
    assert region.weights_read == {"aten::matmul": 64 * 32 * 2}
    assert region.weight_bytes == 64 * 32 * 2 and not region.weights_written
    assert region.bytes_read["aclnnSwiGlu"] == 2 * 32 * 2
    assert region.bytes_written["aclnnSwiGlu"] == 2 * 16 * 2
    assert not region.copies and not region.collectives
    assert region.order == ["aten::matmul", "aclnnSwiGlu"]


def test_weights_that_are_written():
    from npu_sim.recorder import record

    weight = torch.zeros(8, 8, device="npu")
    with record(weights=[weight]) as region:
        weight.mul_(2)
    assert region.weights_written["aten::mul_.Tensor"] == 256


def test_views_are_no_launches():
    from npu_sim.recorder import record

    x = torch.zeros(8, 8, device="npu")
    with record() as region:
        x.t().unsqueeze(0).view(1, 8, 8)[0, 2:].squeeze()
    assert region.launches == 0


def test_an_embedding_reads_its_rows():
    from npu_sim.recorder import record

    table = torch.nn.Embedding(100, 16).half().npu()
    with record(weights=table) as region, torch.inference_mode():
        table(torch.tensor([3, 5, 7], device="npu"))
    assert region.weight_bytes == 3 * 16 * 2


def test_a_grouped_matmul_reads_the_experts_that_have_rows():
    import torch_npu

    from npu_sim.recorder import record

    weight = torch.randn(8, 64, 32).half().npu()
    x = torch.randn(3, 64).half().npu()
    rows = torch.tensor([0, 2, 0, 0, 0, 1, 0, 0], device="npu")
    for kind, group_list in ((1, rows), (0, rows.cumsum(0))):
        with record(weights=[weight]) as region:
            torch_npu.npu_grouped_matmul(
                [x], [weight], group_list=group_list, group_list_type=kind,
                group_type=0, split_item=2,
            )  # fmt: skip
        assert region.weight_bytes == 2 * 64 * 32 * 2


def test_copies_by_direction():
    from npu_sim.recorder import record

    host = torch.zeros(10)
    with record() as region:
        device = host.npu()
        device.cpu()
        device.clone()
        device[0].item()
    assert region.copies["host_to_device"] == (1, 40)
    assert region.copies["device_to_host"] == (2, 44)


def test_a_replay_counts_what_the_graph_holds():
    from npu_sim.recorder import record

    linear = torch.nn.Linear(16, 16, bias=False).half().npu()
    x = torch.ones(1, 16, device="npu").half()
    graph = torch.npu.NPUGraph()
    with torch.inference_mode():
        linear(x)
        with record(weights=linear) as capture, torch.npu.graph(graph):
            linear(x)
    with record(weights=linear) as region:
        graph.replay()
        graph.replay()
    assert "aten::matmul" not in capture.operators
    assert region.graph_replays == 2
    assert region.operators == {"aten::matmul": 2} and region.weight_bytes == 2 * 512


def test_a_region_is_json():
    from npu_sim.recorder import record

    with record() as region:
        torch.ones(2, device="npu")
    assert json.loads(json.dumps(region.summary()))["launches"] == region.launches
