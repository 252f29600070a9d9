"""Kernels without faults (kernels/sound.cu) run as on a GPU, in any order of threads, and nothing is found in them."""

import pytest
import torch
from torch import Tensor

from tests.cuda_on_cpu.build import unavailable
from tests.cuda_on_cpu.emulation import Emulation

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
I = torch.arange(128)
LANE, THREAD = I % 32, I % 64


def expected_votes(x: Tensor) -> Tensor:
    blocks = x.view(2, 64)
    votes = 4 * (blocks > 0).sum(1) + 2 * (blocks == x[0]).any(1) + (blocks > -1000).all(1)
    return votes.repeat_interleave(64)


EXPECTED = {
    "reversed_in_a_loop": lambda x: x[I - LANE + 31 - LANE],
    "neighbours_in_warps": lambda x: x[I ^ 1],
    "chain_of_masks": lambda x: x[I - LANE],
    "exits_before_a_warp_barrier": lambda x: torch.where(LANE < 30, x[(I - LANE + 29 - LANE) % 128], 0),
    "histogram": lambda x: torch.cat([(x & 7).bincount(minlength=8), x.new_zeros(120)]),
    "shared_memory_of_all_kinds": lambda x: sum(x[I - THREAD + (THREAD ^ mask)] for mask in (33, 34, 35)) + 2,
    "votes_of_blocks": expected_votes,
    "bytes_in_turns": lambda x: I % 4 + 1,
}


@pytest.mark.parametrize("name", list(EXPECTED))
@pytest.mark.parametrize("check", [False, True])
def test_result(name, check):
    numbers = torch.randint(-900, 900, (128,), dtype=torch.int32)
    expected = EXPECTED[name](numbers).to(torch.int32)
    for seed in range(5):
        with Emulation(seed, check=check):
            result = torch.ops.detrx_emulated._run_sound(numbers.clone(), name)
        assert torch.equal(result, expected), seed
