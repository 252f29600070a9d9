"""Faults of the kernels of the mixture of experts."""

from tests.cuda_on_cpu.planted import Mutant

FILE = "moe/moe_cuda.cu"

MOE = [
    Mutant(
        "count: no barrier after the zeros",
        FILE,
        "      counts[e] = 0;\n    }\n    __syncwarp();",
        "      counts[e] = 0;\n    }",
    ),
    Mutant(
        "count: no barrier before the counts are read",
        FILE,
        "    __syncwarp();\n    for (int e = lane(); e < num_experts; e += kWarp) {\n      histogram",
        "    for (int e = lane(); e < num_experts; e += kWarp) {\n      histogram",
    ),
    Mutant(
        "count: no barrier before the next chunk",
        FILE,
        "= counts[e];\n    }\n    __syncwarp();",
        "= counts[e];\n    }",
    ),
    Mutant(
        "place: no barrier after the starts",
        FILE,
        "histogram[chunk * num_experts + e];\n    }\n    __syncwarp();",
        "histogram[chunk * num_experts + e];\n    }",
    ),
    Mutant(
        "place: no barrier between reading and adding",
        FILE,
        "+ rank] = i;\n      }\n      __syncwarp();",
        "+ rank] = i;\n      }",
    ),
    Mutant(
        "place: no barrier before the next assignments",
        FILE,
        "__popc(peers);\n      }\n      __syncwarp();",
        "__popc(peers);\n      }",
    ),
    Mutant(
        "sum: no barrier before reading",
        FILE,
        "    __syncthreads();\n    const int64_t before",
        "    const int64_t before",
    ),
    Mutant(
        "sum: no barrier before adding", FILE, "    __syncthreads();\n    sums[e] += before;", "    sums[e] += before;"
    ),
]
