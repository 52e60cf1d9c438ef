"""Collectives between 2 and 4 processes, through torch.distributed and torch_npu's own code."""

import os

import pytest
from hccl_ranks import collectives, errors, recorded, run

pytestmark = pytest.mark.npu_sim(soc="910B3", devices=4, memory_gb=1)


@pytest.mark.parametrize("world", [2, 4])
def test_collectives(world):
    run(world, collectives)
    assert not [n for n in os.listdir("/dev/shm") if n.startswith(f"npu_sim_{os.getpid()}_")]


def test_errors():
    run(2, errors)


def test_collectives_are_recorded_and_captured():
    run(2, recorded)
