// What the operations among the lanes of a warp give.
#pragma once

#include <cstdint>
#include <optional>

#include "cuda_on_cpu/execution.h"

namespace cuda_on_cpu {

struct WarpArgument {
  uint64_t value;
  int argument, width;
};

// The lane that a shuffle of `lane` reads.
int source_lane(WarpOperation operation, int lane, int argument, int width);
bool is_shuffle(WarpOperation operation);

// The result of `lane`; all lanes of `mask` have given their arguments.
uint64_t warp_result(WarpOperation operation, unsigned mask, int lane, const WarpArgument (&lanes)[kWarp]);

}  // namespace cuda_on_cpu
