"""What the intrinsic functions give (kernels/intrinsics.cu): results of warps, of atomics, and roundings to 16 bits."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.cuda_on_cpu.build import unavailable
from tests.cuda_on_cpu.emulation import Emulation

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def signed(x: int) -> int:
    """The 32 bits of a number as a signed one."""
    return (x & 0xFFFFFFFF) - (1 << 32 if x & 0x80000000 else 0)


def unsigned(x: int) -> int:
    return x & 0xFFFFFFFF


def half_of(lane: int) -> range:
    return range(lane // 16 * 16, lane // 16 * 16 + 16)


def bits(lanes: list[int]) -> int:
    return sum(1 << lane for lane in lanes)


def over_half(function: Callable[[list[int]], int], convert: Callable[[int], int] = unsigned) -> Callable:
    return lambda x, i: function([convert(x[j]) for j in half_of(i)])


def fold(function: Callable[[int, int], int]) -> Callable[[list[int]], int]:
    def result(numbers: list[int]) -> int:
        total = numbers[0]
        for number in numbers[1:]:
            total = function(total, number)
        return total

    return result


# In the order of the kernel: the result of lane i for the numbers x.
WARP_OPERATIONS: list[Callable[[list[int], int], int]] = [
    lambda x, i: x[i ^ 5],
    lambda x, i: x[i ^ 11] if i ^ 11 <= i | 7 else x[i],
    lambda x, i: x[7 * i % 32],
    lambda x, i: x[i // 16 * 16 + (i + 3) % 16],
    lambda x, i: x[i - 3] if i >= 3 else x[i],
    lambda x, i: x[i - 3] if i % 8 >= 3 else x[i],
    lambda x, i: x[i + 5] if i + 5 < 32 else x[i],
    lambda x, i: x[i + 5] if i % 16 + 5 < 16 else x[i],
    lambda x, i: bits([j for j in range(32) if x[j] > 0]),
    lambda x, i: bits([j for j in half_of(i) if x[j] > 0]),
    lambda x, i: any(x[j] == x[3] for j in half_of(i)),
    lambda x, i: all(x[j] != x[3] for j in half_of(i)),
    lambda x, i: bits([j for j in range(32) if abs(x[j]) % 3 * (x[j] > 0 or -1) == abs(x[i]) % 3 * (x[i] > 0 or -1)]),
    lambda x, i: sum(x),
    over_half(sum),
    over_half(min, signed),
    over_half(max, signed),
    over_half(min),
    over_half(max),
    over_half(fold(lambda a, b: a & b)),
    over_half(fold(lambda a, b: a | b)),
    over_half(fold(lambda a, b: a ^ b)),
    lambda x, i: unsigned(x[i]).bit_count(),
    lambda x, i: 32 - unsigned(x[i]).bit_length(),
    lambda x, i: (unsigned(x[i]) & -unsigned(x[i])).bit_length(),
    lambda x, i: int(f"{unsigned(x[i]):032b}"[::-1], 2),
    lambda x, i: unsigned(x[i]) * 0x87654321 >> 32,
    lambda x, i: x[i] * signed(0x87654321) >> 32,
]


def test_warp_operations():
    numbers = torch.randint(-(2**31), 2**31, (32,), dtype=torch.int64).to(torch.int32)
    numbers[5], numbers[20] = 0, numbers[3]
    with Emulation(0):
        results = torch.ops.detrx_emulated._run_warp_operations(numbers.clone(), len(WARP_OPERATIONS))
    x = numbers.tolist()
    for row, (ours, expected) in enumerate(zip(results.tolist(), WARP_OPERATIONS, strict=True)):
        assert ours == [signed(expected(x, lane)) for lane in range(32)], row


@pytest.mark.parametrize("seed", range(3))
def test_atomic_operations(seed):
    numbers = torch.randint(1, 2**25, (32,), dtype=torch.int32)
    with Emulation(seed):
        results = torch.zeros(13, dtype=torch.int32)
        torch.ops.detrx_emulated._run_atomic_operations(numbers.clone(), results)
    x = numbers.tolist()
    expected = [sum(x), -sum(x), max(x), 0, fold(lambda a, b: a | b)(x), fold(lambda a, b: a ^ b)(x)]
    assert results[:6].tolist() == expected
    assert results[6:8].tolist() == [32 % 7, -32 % 7]
    assert results[8].view(torch.float32).item() == sum(number % 1000 for number in x)
    assert results[9].item() == sum((number % 100) ** 2 for number in x)
    odd = sum(number % 2 for number in x)
    assert results[10:11].view(torch.float16).tolist() == [32, odd]
    assert results[11:12].view(torch.bfloat16).tolist() == [32, odd]
    assert results[12].item() == -1


def round_exactly(x: Fraction, dtype: torch.dtype) -> float:
    """To the nearest number of `dtype`, ties to even: as one rounding of the exact result."""
    if x == 0:
        return 0.0
    info = torch.finfo(dtype)
    power = Fraction(2) ** (abs(x.numerator).bit_length() - x.denominator.bit_length())
    power = max(power if power <= abs(x) else power / 2, Fraction(info.tiny))
    unit = power * Fraction(info.eps)
    rounded = round(x / unit) * unit  # Python rounds halves to even, too
    return float(rounded) if abs(rounded) <= Fraction(info.max) else float("inf") * (1 if x > 0 else -1)


def any_bits(dtype: torch.dtype, count: int) -> Tensor:
    """Numbers of all sizes, subnormal ones too, and some that meet in the same digits."""
    random = torch.randint(-(2**15), 2**15, (count,), dtype=torch.int64).to(torch.int16).view(dtype)
    near = torch.randn(count).to(dtype)
    return torch.where(torch.rand(count) < 0.5, random, near)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_arithmetic_rounds_once(dtype):
    a, b, c = (any_bits(dtype, 3000) for _ in range(3))
    # a * b lies half way between two numbers, and c, however small, decides.
    eps = torch.finfo(dtype).eps
    tiny = torch.finfo(dtype).tiny
    for i, sign in enumerate((1, -1)):
        a[i], b[i], c[i] = 1 + eps, 1 + eps * (0.5 / eps), sign * tiny
    with Emulation(0):
        arguments = [x.clone().view(-1, 2) for x in (a, b, c)]
        results = torch.ops.detrx_emulated._run_reduced_arithmetic(*arguments).transpose(1, 2).reshape(-1, 4).double()
    with_doubles = [x.double().tolist() for x in (a, b, c)]
    for (x, y, z), row in zip(zip(*with_doubles, strict=True), results.tolist(), strict=True):
        finite = all(abs(number) < float("inf") for number in (x, y, z))
        if finite:
            p, q, r = Fraction(x), Fraction(y), Fraction(z)
            assert row == [round_exactly(exact, dtype) for exact in (p + q, p - q, p * q, p * q + r)], (x, y, z)
        else:  # the same specials as in double precision, in which finite ones do not overflow
            special = [x + y, x - y, x * y, x * y + z]
            for ours, expected in zip(row, special, strict=True):
                if abs(expected) == float("inf") or expected != expected:
                    assert ours == expected or (ours != ours and expected != expected), (x, y, z)


def test_conversions_round_to_nearest():
    x = torch.randint(-(2**31), 2**31, (20000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    x = torch.cat([x, torch.randn(20000), torch.tensor([0.0, -0.0, float("inf"), 65519.0, 65520.0, 1e-8, 3e-8])])
    with Emulation(0, check=False):
        bits, back = torch.ops.detrx_emulated._run_conversions(x.clone())
    number = ~x.isnan()
    for column, dtype in enumerate((torch.float16, torch.bfloat16)):
        expected = x.to(dtype)
        assert torch.equal(bits[:, column].view(dtype)[number], expected[number])
        assert torch.equal(back[:, column][number], expected.float()[number])
        assert (bits[:, column].to(torch.int32)[~number] == 0x7FFF).all() and back[:, column][~number].isnan().all()
