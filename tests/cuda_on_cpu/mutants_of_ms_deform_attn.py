"""Faults of the kernels of deformable attention."""

from tests.cuda_on_cpu.planted import Mutant

FOLDER = "ms_deform_attn/cuda"
TILE, FORWARD, BACKWARD = f"{FOLDER}/tile.cuh", f"{FOLDER}/forward.cu", f"{FOLDER}/backward.cu"
GRAD_VALUE, DETERMINISTIC = f"{FOLDER}/grad_value.cu", f"{FOLDER}/deterministic.cu"
POINTS, ATOMICS = f"{FOLDER}/points.cuh", f"{FOLDER}/atomics.cuh"
BACKWARD_POINTS, DOT_PRODUCTS = f"{FOLDER}/backward_points.cuh", f"{FOLDER}/dot_products.cuh"
WARP_BARRIER, BLOCK_BARRIER = "        __syncwarp();\n", "    __syncthreads();\n"

MS_DEFORM_ATTN = [
    Mutant.without(
        "tile: no barrier before it is filled", TILE, "  __syncthreads();  // the tile before has been read\n"
    ),
    Mutant.without(
        "tile: no barrier after it is filled", TILE, "  __syncthreads();\n", after="    }\n  }\n", before="}\n\n}"
    ),
    Mutant.without("tile: no barrier after the levels", TILE, "    __syncwarp();\n"),
    Mutant(
        "tile: squares beside the last column are as wide as others",
        TILE,
        "min(kSide, width - square * kSide)",
        "kSide",
    ),
    Mutant(
        "tile: squares below the last row are as high as others", TILE, "min(kSide, height - strip * kSide)", "kSide"
    ),
    Mutant("tile: items beyond the end", TILE, "min(first + i, problem.items - 1)", "first + i"),
    Mutant("points: a column before the first is read", POINTS, "low = max(before, 0);", "low = before;"),
    Mutant(
        "points: a column behind the last is read", POINTS, "high = min(before + 1, size - 1);", "high = before + 1;"
    ),
    Mutant(
        "points: pixels outside of the map have a weight",
        POINTS,
        "return has_low ? 1 - distance : 0;",
        "return 1 - distance;",
    ),
    Mutant(
        "points: corners that do not exist have zero times the attention",
        POINTS,
        "has_right ? top * along_x.distance : 0",
        "top * (has_right ? along_x.distance : 0)",
    ),
    Mutant(
        "points: a lane's largest logit for that of all",
        POINTS,
        "inputs.maximum = group_maximum<kLanes>(inputs.maximum);",
        "inputs.maximum += 0;",
    ),
    Mutant.without(
        "forward: no barrier before the next points",
        FORWARD,
        "          __syncwarp();  // the points before have been read\n",
    ),
    Mutant.without(
        "forward: no barrier after the points",
        FORWARD,
        "          __syncwarp();\n",
        before="        }\n        if (has_channels)",
    ),
    Mutant(
        "forward: lanes beyond the channels read and write",
        FORWARD,
        "const bool has_channels = kChannels || channel + place.lane < channels;",
        "const bool has_channels = true;",
    ),
    Mutant(
        "forward: items beyond the end are written",
        FORWARD,
        "if (active && has_channels) {",
        "if (has_channels) {",
    ),
    Mutant(
        "forward: points outside of their maps count",
        FORWARD,
        "const bool inside = valid && pixel.contributes;",
        "const bool inside = valid;",
    ),
    Mutant(
        "forward: a lane's part of the softmax for the whole",
        FORWARD,
        "factor = inputs.factor(group_sum<kGroup>(numerators));",
        "factor = inputs.factor(numerators);",
    ),
    Mutant.without(
        "backward: no barrier after the points",
        BACKWARD,
        WARP_BARRIER,
        before="        const T* grad_output = grads.grad_output + index * n.D;",
    ),
    Mutant.without("backward: no barrier after the dot products", BACKWARD, WARP_BARRIER, before="        products +="),
    Mutant.without(
        "backward: no barrier before gradients are stored", BACKWARD, WARP_BARRIER, before="        if (store) {"
    ),
    Mutant(
        "backward: corners outside of the map count",
        BACKWARD_POINTS,
        "dots[k] = point.has(k) ? sums.dots[k] : 0;",
        "dots[k] = sums.dots[k];",
    ),
    Mutant(
        "backward: half of a product of tensor cores",
        DOT_PRODUCTS,
        "sums.value[k] += __shfl_xor_sync(kAllLanes, sums.value[k], 4);",
        "__shfl_xor_sync(kAllLanes, sums.value[k], 4);",
    ),
    Mutant(
        "backward: parts of the points with sums of their own",
        BACKWARD,
        "const bool in_parts = points_at_once < problem.points;",
        "const bool in_parts = false;",
    ),
    Mutant(
        "backward: items beyond the end are added",
        BACKWARD,
        "const bool store = active && pass == 1;",
        "const bool store = pass == 1;",
    ),
    Mutant(
        "backward: the first pass stores, too",
        BACKWARD,
        "const bool store = active && pass == 1;",
        "const bool store = active;",
    ),
    Mutant.without(
        "gradient of values: no barrier after the counts",
        GRAD_VALUE,
        BLOCK_BARRIER,
        before="    const int count = sums_before",
    ),
    Mutant.without("gradient of values: no barrier after the sums", GRAD_VALUE, BLOCK_BARRIER, before="    sort_terms"),
    Mutant.without("gradient of values: no barrier after the sort", GRAD_VALUE, BLOCK_BARRIER, before="    add_sums"),
    Mutant.without(
        "gradient of values: no barrier for the sums of warps",
        GRAD_VALUE,
        "  __syncthreads();\n",
        before="  int before = up_to_here - sum, all = 0;",
    ),
    Mutant(
        "gradient of values: what slides is added twice",
        GRAD_VALUE,
        "if (!slides && right_row < end_) {",
        "if (right_row < end_) {",
    ),
    Mutant(
        "gradient of values: rows behind the last one are written",
        GRAD_VALUE,
        "if (!slides && right_row < end_) {",
        "if (!slides) {",
    ),
    Mutant(
        "gradient of values: the last term counts twice",
        GRAD_VALUE,
        "const bool counts = i + j < end;",
        "const bool counts = true;",
    ),
    Mutant(
        "atomics: a plain addition",
        ATOMICS,
        "  atomicAdd(target, x[0]);",
        "  *target += x[0];",
    ),
    Mutant(
        "deterministic: tokens of the row above as those to the left",
        DETERMINISTIC,
        "in_level % width < right || in_level / width < down",
        "in_level < right || in_level / width < down",
    ),
    Mutant(
        "deterministic: the end of a row's points is that of the next row's",
        DETERMINISTIC,
        "starts[first_corner + 1];",
        "starts[min(first_corner + 2, rows)];",
    ),
]
