"""Faults that are planted into small kernels (kernels/faults.cu) are found, and told where they are."""

import re

import pytest
import torch

from tests.cuda_on_cpu.build import HERE, unavailable
from tests.cuda_on_cpu.emulation import Emulation, EmulationError

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

RACE = r"race: thread \d+ of block \d+ .* at {here}.*, and no barrier orders that after what thread \d+ of block \d+ .*"
FAULTS = {
    "race_between_lanes": RACE,
    "race_between_warps": RACE,
    "race_across_a_shuffle": RACE,
    "race_with_another_mask": RACE,
    "race_with_the_next_item": RACE,
    "race_between_blocks": RACE,
    "race_with_an_atomic": RACE,
    "race_in_global_memory": RACE,
    "race_of_bytes": RACE,
    "read_beyond_a_tensor": "read out of bounds: 4 bytes at offset 512 of 512 bytes of global memory .* at {here}",
    "write_beyond_a_tensor": "write out of bounds: 4 bytes at offset 512 of 512 bytes of global memory .* at {here}",
    "read_before_a_tensor": "read (of 4 bytes outside of all tensors|out of bounds).* by thread 0 .* at {here}",
    "atomic_beyond_a_tensor": "atomic operation out of bounds: 4 bytes at offset 512 of 512 bytes .* at {here}",
    "copy_beyond_a_tensor": "read out of bounds: 64 bytes at offset 452 of 512 bytes of global memory .* at {here}",
    "null_pointer": "read of 4 bytes outside of all tensors by thread .* at {here}",
    "beyond_a_shared_array": "write out of bounds: 4 bytes at offset 256 of 256 bytes of shared memory .* at {here}",
    "beyond_dynamic_shared_memory": "write out of bounds: .* offset 256 of 256 bytes of shared memory .* at {here}",
    "beyond_a_local_array": "index out of the bounds of an array by thread 63 of block 0 at {here}",
    "uninitialised_shared_memory": "uninitialised shared memory: thread 7 of block 0 reads .* at {here}",
    "uninitialised_sum": "uninitialised shared memory: thread .* atomically changes 4 bytes at offset 0 at {here}",
    "misaligned_vector": "misaligned access by thread .* at {here}",
    "misaligned_number": "misaligned access to 8 bytes by thread .* at {here}",
    "misaligned_atomic": "misaligned access to 16 bytes by thread .* at {here}",
    "vector_atomic_in_shared_memory": "atomic operation that shared memory does not have by thread .* at {here}",
    "barriers_in_both_branches": "threads of a block meet at different places: .* waits at __syncthreads in {here}",
    "barrier_after_an_exit": "threads of a block meet at different places: .* thread 63 has exited",
    "warp_barriers_in_both_branches": "lanes of a warp meet at different places: .* waits at __syncwarp in {here}",
    "lanes_that_never_come": "no thread can go on: thread 0 waits at __syncthreads in {here}; thread 1 waits at __sync",
    "mask_without_the_caller": "calls __syncwarp with a mask that does not contain it, {here}",
    "shuffle_from_outside_of_the_mask": r"lane \d+ reads lane \d+, which takes no part or has exited: .* {here}",
    "shuffle_from_an_exited_lane": r"lane \d+ reads lane 3, which takes no part or has exited: .* {here}",
    "more_threads_than_bounds": "a launch of 64 threads where __launch_bounds__ says 32",
    "too_much_static_shared_memory": "too much shared memory: 49156 bytes of variables",
    "too_much_dynamic_shared_memory": "invalid launch of .* 49153 bytes of shared memory where it may have 49152",
    "too_much_shared_memory_of_both_kinds": "too much shared memory: 49152 bytes of variables, 256 bytes given by the",
    "no_blocks": r"invalid launch of .* \(0, 1, 1\) blocks of \(64, 1, 1\) threads",
    "integer_overflow": "overflow of signed integers by thread .* at {here}",
    "assertion": 'assertion failed: .*"numbers are NaN", {here}',
}


def lines_of(kernel: str) -> tuple[int, int]:
    """First and last line of a kernel in faults.cu."""
    source = (HERE / "kernels" / "faults.cu").read_text()
    begin = source.index(f" {kernel}(float* x, int count) {{")
    return source.count("\n", 0, begin) + 1, source.count("\n", 0, source.index("\n}\n", begin)) + 2


def run(name: str, seed: int = 0, check: bool = True) -> None:
    with Emulation(seed, check=check):
        torch.ops.detrx_emulated._run_fault(torch.zeros(128), name, 2 if "block" in name else 1)


@pytest.mark.parametrize("name", list(FAULTS))
@pytest.mark.parametrize("seed", range(3))
def test_fault_is_found(name, seed):
    with pytest.raises(EmulationError) as caught:
        run(name, seed)
    message = str(caught.value)
    place = r"cuda_on_cpu/kernels/faults\.cu:(\d+)"
    found = re.search(FAULTS[name].replace("{here}", place), message)
    assert found, message
    assert re.search(rf"\b{name}\(float\*, int\)", message), message
    first, last = lines_of(name)
    assert all(first <= int(line) <= last for line in found.groups() if line and line.isdecimal()), message


def test_block_that_waits_for_another():
    """Some order of the blocks does without waiting; another one never ends, and is stopped."""
    messages = []
    for seed in range(4):
        try:
            run("wait_for_another_block", seed, check=False)
        except EmulationError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 4
    assert all("it may wait for another block" in message for message in messages)
