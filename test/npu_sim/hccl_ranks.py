"""What each process of ``test_hccl`` does, and how they are started."""

import os
import socket
import sys

import pytest
import torch

#: Larger than the chunks in which HCCL's stand-in passes data (4 MiB, and 256 KiB of a message).
LARGE = (4 << 20) // 2 + 12345


def rank_value(rank: int, size: int = 5, dtype=torch.float32) -> torch.Tensor:
    return (torch.arange(size) % 100 + rank).to(dtype)


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(found.cpu(), expected), (found.cpu()[:8], expected[:8])


def collectives(rank: int, world: int) -> None:
    import torch.distributed as dist

    ranks = range(world)
    for size in (5, LARGE):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32):
            if size == LARGE and dtype != torch.bfloat16:
                continue
            mine = rank_value(rank, size, dtype).npu()
            everyone = [rank_value(r, size, dtype) for r in ranks]
            total = sum(v.float() for v in everyone)
            if dtype.is_floating_point:
                total = total.to(dtype)

            reduced = mine.clone()
            dist.all_reduce(reduced)
            check(reduced, total.to(dtype))

            largest = mine.clone()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            check(largest, everyone[-1])

            gathered = torch.empty(world * size, dtype=dtype, device="npu")
            dist.all_gather_into_tensor(gathered, mine)
            check(gathered, torch.cat(everyone))

            scattered = torch.empty(size, dtype=dtype, device="npu")
            dist.reduce_scatter_tensor(scattered, mine.repeat(world))
            check(scattered, total.to(dtype))

            spread = mine.clone()
            dist.broadcast(spread, src=world - 1)
            check(spread, everyone[-1])

    # Piece r of rank s is 10 s + r, and longer on later ranks.
    pieces = [torch.full((r + 1,), 10 * rank + r, dtype=torch.int32).npu() for r in ranks]
    received = [torch.empty(rank + 1, dtype=torch.int32, device="npu") for _ in ranks]
    dist.all_to_all(received, pieces)
    for s in ranks:
        check(received[s], torch.full((rank + 1,), 10 * s + rank, dtype=torch.int32))
    even = torch.arange(world, device="npu", dtype=torch.int32) + 10 * rank
    swapped = torch.empty_like(even)
    dist.all_to_all_single(swapped, even)
    check(swapped, torch.tensor([10 * s + rank for s in ranks], dtype=torch.int32))

    # Around the ring: even ranks send first.
    message, answer = rank_value(rank, LARGE).npu(), torch.empty(LARGE, device="npu")
    to, source = (rank + 1) % world, (rank - 1) % world
    if rank % 2 == 0:
        dist.send(message, to)
        dist.recv(answer, source)
    else:
        dist.recv(answer, source)
        dist.send(message, to)
    check(answer, rank_value(source, LARGE))
    dist.barrier()


def errors(rank: int, world: int) -> None:
    import torch.distributed as dist

    from npu_sim.runtime.start import runtime

    with pytest.raises(RuntimeError, match="has no product"):
        x = torch.ones(2, dtype=torch.bfloat16, device="npu")
        dist.all_reduce(x, op=dist.ReduceOp.PRODUCT)
    with pytest.raises(RuntimeError, match="HcclAllReduce of . elements .* on rank"):
        dist.all_reduce(torch.ones(2 + rank, device="npu"))
    if rank == 0:
        runtime().npu_sim_set_wait_limit(1)
        with pytest.raises(RuntimeError, match="the others did not come within 1 s"):
            dist.all_reduce(torch.ones(2, device="npu"))


def recorded(rank: int, world: int) -> None:
    import torch.distributed as dist

    from npu_sim.recorder import record

    x = torch.ones(6, device="npu").half()
    dist.all_reduce(x)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        dist.all_reduce(x)
    x.fill_(1)
    with record() as region:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(torch.empty(6 * world, device="npu").half(), x)
        graph.replay()
    assert region.collectives == [
        ("HcclAllReduce", 12), ("HcclAllGather", 12), ("HcclAllReduce", 12),
    ]  # fmt: skip
    assert x[0].item() == world * world


def in_process(rank: int, world: int, port: int, body) -> None:
    import torch.distributed as dist

    # Forked, as importing takes seconds: the simulated device is plain memory of this process.
    sys.modules["torch_npu.npu"]._is_internal_in_bad_fork = False
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=world)
    body(rank, world)
    dist.destroy_process_group()


def run(world: int, body) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (world, port, body)
    torch.multiprocessing.start_processes(in_process, arguments, world, start_method="fork")
