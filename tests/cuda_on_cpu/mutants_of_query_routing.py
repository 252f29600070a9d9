"""Faults of the kernels of query routing."""

from tests.cuda_on_cpu.planted import Mutant

FILE = "query_routing/query_routing_cuda.cu"

QUERY_ROUTING = [
    Mutant(
        "merge: no barrier before the next tile",
        FILE,
        "    __syncthreads();\n    if (threadIdx.x < kTileRows) {",
        "    if (threadIdx.x < kTileRows) {",
    ),
    Mutant(
        "merge: no barrier after the slots are empty",
        FILE,
        "    __syncthreads();\n    for (int64_t k = threadIdx.x",
        "    for (int64_t k = threadIdx.x",
    ),
    Mutant(
        "merge: no barrier before the slots are read",
        FILE,
        "    __syncthreads();\n    for (int i = threadIdx.x / copy.lanes",
        "    for (int i = threadIdx.x / copy.lanes",
    ),
    Mutant(
        "route: no barrier before the counts of the warps are read",
        FILE,
        "      __syncthreads();\n      int64_t slot",
        "      int64_t slot",
    ),
    Mutant(
        "route: no barrier before the next stretch",
        FILE,
        "      __syncthreads();\n    }\n    for (int64_t slot",
        "    }\n    for (int64_t slot",
    ),
]
