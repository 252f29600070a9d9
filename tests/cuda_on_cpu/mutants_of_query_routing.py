"""Faults of the kernels of query routing."""

from tests.cuda_on_cpu.planted import Mutant

ROUTE, ROWS = "query_routing/cuda/route.cu", "query_routing/cuda/rows.cu"
BARRIER = "    __syncthreads();\n"

QUERY_ROUTING = [
    Mutant.without(
        "count: no barrier before the next stretch",
        ROUTE,
        BARRIER,
        before="    if (lane() == 0) {\n      of_warps",
    ),
    Mutant.without(
        "count: no barrier before the counts are read",
        ROUTE,
        BARRIER,
        before="    if (threadIdx.x == 0) {",
    ),
    Mutant.without(
        "route: no barrier before the next stretch",
        ROUTE,
        BARRIER,
        before="    if (lane() == 0) {\n      before",
    ),
    Mutant.without(
        "route: no barrier before the counts are read",
        ROUTE,
        BARRIER,
        before="    int slot = 0, total = 0;",
    ),
    Mutant("route: earlier stretches do not count", ROUTE, "earlier += count(votes);", "earlier += 0;"),
    Mutant("route: queries behind the image count", ROUTE, "i * kWarp < rest && keep", "keep"),
    Mutant(
        "route: capacity is not heeded", ROUTE, "(votes[i] >> lane() & 1) && place < capacity", "votes[i] >> lane() & 1"
    ),
    Mutant("route: slots that are left over are not filled", ROUTE, "stretch == mask.stretches - 1", "stretch > 0"),
    Mutant.without(
        "slots: no barrier before the next tile",
        ROWS,
        "  __syncthreads();\n",
        before="  for (int i = threadIdx.x; i < count; i += kThreads) {\n    slots",
    ),
    Mutant.without(
        "slots: no barrier after they are empty", ROWS, "  __syncthreads();\n", before="  bool exist = true"
    ),
    Mutant.without(
        "slots: no barrier before they are read", ROWS, "  __syncthreads();\n", after='has a query twice");\n'
    ),
    Mutant(
        "slots: the same for all images",
        ROWS,
        "kept[i] = k < n.K && valid[b * n.K + k];",
        "kept[i] = k < n.K && valid[k];",
    ),
    Mutant(
        "slots: of the last range are not written",
        ROWS,
        "i < kRange && first + i < n.N",
        "first + kRange <= n.N && i < kRange",
    ),
    Mutant(
        "rows: too many vectors are written",
        ROWS,
        "if (first + i * lanes < count) {\n        out",
        "if (first < count) {\n        out",
    ),
    Mutant("rows: too many vectors are read", ROWS, "in != nullptr && first + i * lanes < count ?", "in != nullptr ?"),
    Mutant("gather: a query that does not exist is read", ROWS, "kept && exists), threadIdx", "kept), threadIdx"),
]
