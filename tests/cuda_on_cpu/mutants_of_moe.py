"""Faults of the kernels of the mixture of experts."""

from tests.cuda_on_cpu.planted import Mutant

ROUTE, BIAS = "moe/cuda/route.cu", "moe/cuda/expert_bias.cu"
DISPATCH, TOKEN_ROWS, COMBINE = "moe/cuda/dispatch.cu", "moe/cuda/token_rows.cuh", "moe/cuda/combine.cu"
BARRIER = "    __syncthreads();\n"

MOE = [
    Mutant.without(
        "route: no barrier after the zeros",
        ROUTE,
        BARRIER,
        after="      counts[e] = 0;\n    }\n",
    ),
    Mutant.without(
        "route: no barrier before the counts are read",
        ROUTE,
        BARRIER,
        before="    for (int e = threadIdx.x; e < num_experts; e += kThreads) {\n      histogram",
    ),
    Mutant("route: of equal logits, the higher expert", ROUTE, "other_expert < expert", "other_expert > expert"),
    Mutant("route: an expert is chosen twice", ROUTE, "first + slot == expert ? 0 : ranks", "false ? 0 : ranks"),
    Mutant(
        "route: experts that do not exist are read", ROUTE, "first + slot < num_experts ? rank_of", "true ? rank_of"
    ),
    Mutant.without(
        "place: no barrier before the next chunk",
        ROUTE,
        BARRIER,
        before="    for (int e = threadIdx.x; e < num_experts; e += kThreads) {\n      totals",
    ),
    Mutant.without("place: no barrier after the zeros", ROUTE, BARRIER, before="\n    const int rows"),
    Mutant.without(
        "place: no barrier before the counts are read",
        ROUTE,
        BARRIER,
        before="\n    for (int e = threadIdx.x; e < num_experts; e += kThreads) {\n      int row",
    ),
    Mutant.without(
        "place: no barrier after the starts", ROUTE, BARRIER, before="\n    for (int64_t first = part_begin"
    ),
    Mutant.without(
        "place: no barrier between reading and adding",
        ROUTE,
        "      __syncwarp();\n",
        before="      if (i < part_end && rank == 0) {",
    ),
    Mutant.without(
        "place: no barrier before the next assignments",
        ROUTE,
        "      __syncwarp();\n",
        after="__popc(peers);\n      }\n",
    ),
    Mutant("place: chunks up to its own are counted", ROUTE, "earlier += other < chunk", "earlier += other <= chunk"),
    Mutant("place: parts of warps overlap", ROUTE, "part_begin = begin + warp * part", "part_begin = begin + warp"),
    Mutant("dispatch: rows that are not read", DISPATCH, "begin += kUnits * kWarp", "begin += 2 * kUnits * kWarp"),
    Mutant("combine: a row that does not exist is read", TOKEN_ROWS, "own = exists ? own : 0;", ""),
    Mutant("combine: order is not checked", TOKEN_ROWS, "inverse == assignment", "inverse >= 0"),
    Mutant("combine: the last lanes take no part in the sum", COMBINE, "offset = kWarp / 2", "offset = kWarp / 4"),
    Mutant("bias: NaN becomes zero", BIAS, "kRelu && sum < 0 ? 0.0f : sum", "kRelu && !(sum > 0) ? 0.0f : sum"),
    Mutant(
        "bias: the expert of the last row of the one before", BIAS, "experts.ends[e] <= row", "experts.ends[e] < row"
    ),
    Mutant.without(
        "bias: no barrier before the sums of the warps are read",
        BIAS,
        "      __syncthreads();\n",
        before="      if (column < channels) {\n        float total",
    ),
    Mutant.without(
        "bias: no barrier before the next expert", BIAS, "      __syncthreads();\n", before="      begin = end;"
    ),
    Mutant(
        "bias: tiles of experts share a place",
        BIAS,
        "sums[(tile + expert) * channels + column] = ",
        "sums[tile * channels + column] = ",
    ),
    Mutant("bias: experts without rows keep what is there", BIAS, "if (begin < end) {", "if (begin <= end) {"),
]
