// What the CPU implementations check of `order` and `place`, which they have at hand.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

#include "../moe.h"

namespace detrx::cpu {

// Where order[place[i]] is i for every assignment i, no row is there twice, and none is missing.
inline void check_inverse(const char* op, const MoePlaces& places) {
  const int64_t count = places.tokens * places.k;
  at::parallel_for(0, count, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = places.place[i];
      TORCH_CHECK_VALUE(
          row >= 0 && row < count,
          op, ": place[", i / places.k, ", ", i % places.k, "] is ", row, ", expected 0 to ", count - 1);
      TORCH_CHECK_VALUE(
          places.order[row] == i,
          op, ": order and place are no inverse permutations: place[", i / places.k, ", ", i % places.k, "] is ", row,
          ", order[", row, "] is ", places.order[row], ", expected ", i);
    }
  });
}

}  // namespace detrx::cpu
