// How threads share the work of the CPU implementations.
#pragma once

#include <algorithm>
#include <cstdint>

namespace detrx::cpu {

// Items that are worth a thread, of `per_item` elements each.
inline int64_t grain(int64_t per_item) {
  return std::max<int64_t>(32768 / std::max<int64_t>(per_item, 1), 1);
}

}  // namespace detrx::cpu
