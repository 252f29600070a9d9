"""How long the CUDA kernels should take: a model of the bytes they move and the instructions they issue.

For each operator and shape, the model counts bytes from and to HBM, bytes between L2 and the SMs, bytes through L1,
bytes that atomics add up in L2, and instructions of warps, and divides each by what the GPU can do in a second. The
largest of these times is the bound; launches are added. Instructions per corner are those that
benchmarks/kernel_resources.py counted in the machine code. Everything here is estimated; nothing is measured.

benchmarks/kernel_tables.py prints the table.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from attention import CHANNELS, HEADS, LEVELS, POINTS, QUERIES

ROOT = Path(__file__).resolve().parents[1]
RESOURCES = ROOT / "benchmarks" / "results" / "kernel_resources_sm90.json"
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
LAUNCH_US = 2.0
"""From the end of one small kernel to the end of the next, empty one."""
ACCESS_US = 0.6
"""From a load that misses L2 to its value."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do in a second.

    Attributes:
        hbm, l2: bytes between memory and L2, and between L2 and the SMs.
        sms, clock: number of SMs, and Hz.
    """

    name: str
    hbm: float
    l2: float = 5.5e12
    sms: int = 132
    clock: float = 1.755e9

    @property
    def l1(self) -> float:
        """Bytes: 128 of each SM in a clock."""
        return 128 * self.sms * self.clock

    @property
    def reductions(self) -> float:
        """Bytes that atomics add up in L2: it reads and writes each."""
        return self.l2 / 2

    @property
    def instructions(self) -> float:
        """Instructions of warps: four of each SM in a clock."""
        return 4 * self.sms * self.clock


GPUS = (Gpu("H100", hbm=3.35e12), Gpu("H200", hbm=4.8e12))


def gpu_named(name: str) -> Gpu:
    """The one whose name is in `name`, such as "NVIDIA H200"; an H100 where there is none."""
    return next((gpu for gpu in GPUS if gpu.name in name), GPUS[0])


@dataclass(frozen=True)
class Estimate:
    """Milliseconds, and what binds: a key of `Cost.microseconds`, or "launches" where these cost more."""

    ms: float
    bound: str


@dataclass(frozen=True)
class Cost:
    """What kernels do.

    Attributes:
        hbm, l2, l1: bytes of memory, between L2 and the SMs, and through L1.
        reductions: bytes that atomics add up in L2.
        instructions: of warps.
        launches: of kernels.
        latency_us: of the longest chain of accesses, each of which needs the one before.
    """

    hbm: float = 0
    l2: float = 0
    l1: float = 0
    reductions: float = 0
    instructions: float = 0
    launches: int = 0
    latency_us: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)))

    def microseconds(self, gpu: Gpu) -> dict[str, float]:
        """By bound."""
        return {
            "HBM": 1e6 * self.hbm / gpu.hbm,
            "L2": 1e6 * (self.l2 / gpu.l2 + self.reductions / gpu.reductions),
            "L1": 1e6 * self.l1 / gpu.l1,
            "instructions": 1e6 * self.instructions / gpu.instructions,
            "latency": self.latency_us,
        }

    def estimate(self, gpu: Gpu) -> Estimate:
        times = self.microseconds(gpu)
        bound = max(times, key=times.__getitem__)
        overhead = LAUNCH_US * self.launches
        return Estimate((times[bound] + overhead) / 1e3, bound if times[bound] > overhead else "launches")


def total(*costs: Cost, gpu: Gpu) -> Estimate:
    """Of kernels that run one after the other, each with a bound of its own."""
    estimates = [cost.estimate(gpu) for cost in costs]
    return Estimate(sum(each.ms for each in estimates), max(estimates, key=lambda each: each.ms).bound)


def streamed(count: float) -> Cost:
    """Bytes that are read or written once, in order."""
    return Cost(hbm=count, l2=count, l1=count)


def fill(count: float) -> Cost:
    """A kernel that writes so many bytes."""
    return streamed(count) + Cost(instructions=count / 512 * 4, launches=1)


# ---- deformable attention ----

SQUARE = 8
"""Side of the squares of tokens whose queries are worked on together, where every token has a query."""
THREADS = 256
VALUE_GRADIENT_ITEMS = 64
"""Items whose contributions to the gradient of the values are sorted together."""


@functools.cache
def _resources() -> dict[tuple[str, ...], dict]:
    """Entries of kernel_resources_sm90.json by family, kernel and template arguments."""
    kernels = json.loads(RESOURCES.read_text(encoding="utf-8"))["kernels"]
    return {(each["family"], each["kernel"], *each["arguments"]): each for each in kernels}


@dataclass(frozen=True)
class Code:
    """Instructions of a kernel: of its hottest loop for each of the wide loads in it, and all that are outside."""

    per_load: float
    outside: int


@functools.cache
def code_of(kernel: str, *arguments: str) -> Code:
    entry = _resources()[("ms_deform_attn", kernel, *arguments)]
    loop = entry["loop"]
    loads = loop["global_loads"]
    return Code(loop["instructions"] / loads[max(loads, key=int)], entry["instructions"] - loop["instructions"])


@functools.cache
def distinct_share(levels: Sequence[tuple[int, int]], tile: tuple[int, int], spread: float = 2.0) -> float:
    """Of the corners that the queries of a tile of the encoder read: how many of them are different ones.

    Simulated, with points that lie normally distributed, `spread` pixels wide, around their query.
    """
    generator = np.random.default_rng(0)
    found, read = 0.0, 0.0
    for height, width in levels:
        rows, columns = min(tile[0], height), min(tile[1], width)
        for _ in range(max(1, min(60, height * width // (rows * columns)))):
            top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
            y, x = (part.ravel() for part in np.mgrid[top : top + rows, left : left + columns])
            corners = []
            for level, (level_height, level_width) in enumerate(levels):
                shape = (len(y), POINTS)
                py = ((y + 0.5) / height * level_height - 0.5)[:, None] + spread * generator.standard_normal(shape)
                px = ((x + 0.5) / width * level_width - 0.5)[:, None] + spread * generator.standard_normal(shape)
                for dy in (0, 1):
                    for dx in (0, 1):
                        cy, cx = np.floor(py).astype(int) + dy, np.floor(px).astype(int) + dx
                        inside = (cy >= 0) & (cy < level_height) & (cx >= 0) & (cx < level_width)
                        corners.append(level * 10**8 + (cy * level_width + cx)[inside])
            tokens = np.concatenate(corners)
            weight = height * width / (rows * columns)
            found, read = found + weight * len(np.unique(tokens)), read + weight * len(tokens)
    return found / read


@dataclass(frozen=True)
class Attention:
    """A call of an operator: sizes, bytes of what it gets and gives, and what its kernels do."""

    form: str
    shape: str
    batch: int
    dtype: str
    levels: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return SIZES[self.dtype]

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def queries(self) -> int:
        return QUERIES[self.shape] or self.tokens

    @property
    def is_encoder(self) -> bool:
        return QUERIES[self.shape] is None

    @property
    def items(self) -> int:
        return self.batch * self.queries * HEADS

    @property
    def points(self) -> int:
        return self.items * len(self.levels) * POINTS

    @property
    def corner_bytes(self) -> int:
        return self.points * 4 * CHANNELS * self.size

    @property
    def value_bytes(self) -> int:
        return self.batch * self.tokens * HEADS * CHANNELS * self.size

    @property
    def gradient_bytes(self) -> int:
        """Of the gradient of the values, which is summed in float32."""
        return self.value_bytes // self.size * 4

    @property
    def point_bytes(self) -> int:
        """Of locations and weights, or of offsets, logits and reference points."""
        reference = self.batch * self.queries * len(self.levels) * 2 * 4 if self.form == "fused" else 0
        return 3 * self.points * self.size + reference

    @property
    def output_bytes(self) -> int:
        return self.items * CHANNELS * self.size

    def corners(self) -> Cost:
        """Reading all corners once. L1 keeps what the items of a block share."""
        share = 1.0
        if self.is_encoder:
            items = THREADS * 16 // (CHANNELS * self.size)
            share = distinct_share(self.levels, (items // SQUARE, SQUARE))
        return Cost(hbm=min(self.value_bytes, self.corner_bytes), l2=share * self.corner_bytes, l1=self.corner_bytes)

    def walk(self, kernel: str, *arguments: str) -> Cost:
        """Instructions of a kernel that visits all corners of the items of a warp."""
        code = code_of(kernel, self.dtype, "float32", str(CHANNELS), *arguments)
        warps = self.items * CHANNELS * self.size / (32 * 16)
        points = len(self.levels) * POINTS
        chain = 3 + points / 2  # levels, points and logits, references; then two points at a time
        return Cost(
            instructions=warps * (4 * points * code.per_load + code.outside), launches=1, latency_us=chain * ACCESS_US
        )

    def forward(self) -> Cost:
        return self.corners() + streamed(self.point_bytes + self.output_bytes) + self.walk("forward_kernel")

    def backward(self) -> list[Cost]:
        """The kernels of the backward pass, one after the other."""
        points = self.corners() + streamed(2 * self.point_bytes + self.output_bytes)
        if self.is_encoder:
            kernels = [points + self.walk("backward_kernel", "false"), self.value_gradient()]
        else:
            sums = Cost(hbm=min(self.gradient_bytes, 2 * self.corner_bytes), reductions=self.points * 4 * CHANNELS * 4)
            kernels = [points + sums + self.walk("backward_kernel", "true")]
        kernels.insert(0, fill(self.gradient_bytes))
        if self.size == 2:  # from float32 to the dtype of the values
            kernels.append(streamed(self.gradient_bytes + self.value_bytes) + Cost(launches=1))
        return kernels

    def value_gradient(self) -> Cost:
        """The kernel that sorts contributions by token: a term for each two corners side by side, which costs a read of
        the output's gradient, and an addition for each token of a block of items."""
        code = code_of("grad_value_kernel", self.dtype, str(CHANNELS))
        lanes = CHANNELS // 4
        terms = 2 * self.points
        warps = self.items / VALUE_GRADIENT_ITEMS * THREADS / 32
        share = distinct_share(self.levels, (SQUARE, SQUARE))
        read = Cost(l1=terms * CHANNELS * self.size) + streamed(self.point_bytes + self.output_bytes)
        instructions = terms * lanes / 32 * code.per_load + warps * code.outside
        sums = Cost(hbm=self.gradient_bytes, reductions=share * self.points * 4 * CHANNELS * 4)
        return read + sums + Cost(instructions=instructions, launches=1)


def attention_times(
    form: str, shape: str, batch: int, dtype: str, gpu: Gpu, levels: Sequence[tuple[int, int]] = LEVELS
) -> tuple[Estimate, Estimate]:
    """Of the forward pass, and of forward and backward pass. Arguments as of `attention.make_inputs`."""
    call = Attention(form, shape, batch, dtype, tuple(levels))
    return call.forward().estimate(gpu), total(call.forward(), *call.backward(), gpu=gpu)


# ---- mixture of experts, query routing ----


def moe_times(tokens: int, experts: int, k: int, channels: int, dtype: str, gpu: Gpu) -> dict[str, Estimate]:
    """Of "route", "dispatch" and "combine", forward."""
    size, assignments = SIZES[dtype], tokens * k
    rows, indices = assignments * channels * size, 8 * assignments
    blocks = min(-(-tokens // THREADS), 1024)
    choose = streamed(tokens * experts * size + assignments * size + indices)
    choose += Cost(launches=1, latency_us=3 * ACCESS_US)
    # Every block reads the counts of all.
    place = streamed(3 * indices) + Cost(l2=4 * experts * blocks**2, launches=1, latency_us=5 * ACCESS_US)
    dispatch = streamed(tokens * channels * size + rows + 2 * indices) + Cost(launches=1, latency_us=3 * ACCESS_US)
    combine = streamed(rows + tokens * channels * size + 2 * indices + assignments * size)
    combine += Cost(launches=1, latency_us=3 * ACCESS_US)
    return {
        "route": total(choose, place, gpu=gpu),
        "dispatch": dispatch.estimate(gpu),
        "combine": combine.estimate(gpu),
    }


def routing_times(batch: int, queries: int, channels: int, dtype: str, gpu: Gpu, share: float = 0.5) -> Estimate:
    """Of `query_route`, `query_gather` and `query_scatter` of one tensor, where this share of the queries is kept."""
    row = channels * SIZES[dtype]
    slots, indices = batch * queries * share, 9 * batch * queries * share
    # The host reads the largest count: some 10 us in which the device has nothing to do.
    count = streamed(batch * queries) + Cost(launches=1, latency_us=10)
    route = streamed(batch * queries + indices) + Cost(launches=1, latency_us=2 * ACCESS_US)
    gather = streamed(2 * slots * row + indices) + Cost(launches=1, latency_us=2 * ACCESS_US)
    merge = streamed(2 * batch * queries * row) + Cost(launches=1, latency_us=3 * ACCESS_US)
    scanned = indices * -(
        -queries // 16
    )  # by a block for each 16 queries; where that is too much, they are listed first
    if scanned <= 16 * 2**20:
        kernels = [merge + Cost(l2=scanned)]
    else:
        kernels = [streamed(indices + 4 * batch * queries) + Cost(launches=1, latency_us=3 * ACCESS_US), merge]
    return total(count, route, gather, *kernels, gpu=gpu)
