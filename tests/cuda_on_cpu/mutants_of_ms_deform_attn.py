"""Faults of the kernels of deformable attention."""

from tests.cuda_on_cpu.planted import Mutant

FILE = "ms_deform_attn/ms_deform_attn_cuda.cu"

MS_DEFORM_ATTN = [
    Mutant(
        "forward: no barrier before the weights of the next item",
        FILE,
        "    __syncwarp();\n    read_weights<T, C, kGroup>(args, item, points_per_item, lane, weights);",
        "    read_weights<T, C, kGroup>(args, item, points_per_item, lane, weights);",
    ),
    Mutant(
        "forward: no barrier before the next points",
        FILE,
        """        __syncwarp();
        if (first + lane < points_per_item) {
          const Location<C> location = point_of(args, item, points_per_item, first + lane);""",
        """        if (first + lane < points_per_item) {
          const Location<C> location = point_of(args, item, points_per_item, first + lane);""",
    ),
    Mutant(
        "forward: no barrier after the points",
        FILE,
        "        __syncwarp();\n        const int together = min(kGroup, points_per_item - first);\n#pragma unroll 4",
        "        const int together = min(kGroup, points_per_item - first);\n#pragma unroll 4",
    ),
    Mutant(
        "forward: lanes beyond the channels read",
        FILE,
        "const bool mine = kChannels || channel < channels;",
        "const bool mine = true;",
    ),
    Mutant(
        "forward: items beyond the end are read",
        FILE,
        "    const Item item = split(n, active ? first_item + group : count - 1);\n    __syncwarp();\n"
        "    read_weights<T, C, kGroup>(args, item, points_per_item, lane, weights);",
        "    const Item item = split(n, first_item + group);\n    __syncwarp();\n"
        "    read_weights<T, C, kGroup>(args, item, points_per_item, lane, weights);",
    ),
    Mutant(
        "forward: shared memory for half of the weights",
        FILE,
        "plan(count, Layout<scalar_t, kChannels>::kGroup, sizeof(SharedPoint<C>), n.L * n.P * sizeof(C));",
        "plan(count, Layout<scalar_t, kChannels>::kGroup, sizeof(SharedPoint<C>), n.L * n.P * sizeof(C) / 2);",
    ),
    Mutant(
        "backward: no barrier before the weights of the next item",
        FILE,
        "    __syncwarp();\n    read_weights<T, C, kGroup>(args, item, points_per_item, lane, shared.weights);",
        "    read_weights<T, C, kGroup>(args, item, points_per_item, lane, shared.weights);",
    ),
    Mutant(
        "backward: no barrier before the next points",
        FILE,
        "      Level level{};\n      __syncwarp();",
        "      Level level{};",
    ),
    Mutant(
        "backward: no barrier after the points",
        FILE,
        "      __syncwarp();\n      const int together = min(kGroup, points_per_item - first);\n#pragma unroll 2",
        "      const int together = min(kGroup, points_per_item - first);\n#pragma unroll 2",
    ),
    Mutant(
        "backward: no barrier before the dot products are read",
        FILE,
        "      __syncwarp();\n      if (has_point) {\n        const SharedDots<C> mine = dots[lane];",
        "      if (has_point) {\n        const SharedDots<C> mine = dots[lane];",
    ),
    Mutant(
        "backward: no barrier before the gradients are stored",
        FILE,
        "    __syncwarp();\n    store_gradients<",
        "    store_gradients<",
    ),
    Mutant(
        "backward: groups overlap in shared memory",
        FILE,
        "sizeof(SharedDots<C>), group, 4 * points_per_item",
        "sizeof(SharedDots<C>), group, 3 * points_per_item",
    ),
    Mutant(
        "backward: sums that are not atomic",
        FILE,
        "      atomicAdd(target + c, values[c]);\n    }\n#else",
        "      target[c] += values[c];\n    }\n#else",
    ),
    Mutant(
        "backward: sums that are not atomic, before Hopper",
        FILE,
        "    atomicAdd(target + c, values[c]);\n#endif",
        "    target[c] += values[c];\n#endif",
        reason="code for older GPUs, and the emulated one is a Hopper",
    ),
    Mutant(
        "backward: only active groups take part in the shuffles",
        FILE,
        "        group_sums<C, kGroup>(partial, lane, dots[j].at);",
        "        if (active) group_sums<C, kGroup>(partial, lane, dots[j].at);",
    ),
]
