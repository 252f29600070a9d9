#include "warp_results.h"

namespace cuda_on_cpu {

bool is_shuffle(WarpOperation operation) {
  return operation == WarpOperation::kShuffle || operation == WarpOperation::kShuffleUp ||
         operation == WarpOperation::kShuffleDown || operation == WarpOperation::kShuffleXor;
}

// As PTX defines shfl: lanes are divided into segments of `width`, and a lane outside gives the reading lane its own value.
int source_lane(WarpOperation operation, int lane, int argument, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1;
  int source = lane;
  switch (operation) {
    case WarpOperation::kShuffle:
      return first + (argument & (width - 1));
    case WarpOperation::kShuffleUp:
      source = lane - argument;
      return source >= first ? source : lane;
    case WarpOperation::kShuffleDown:
      source = lane + argument;
      return source <= last ? source : lane;
    default:
      source = lane ^ argument;
      return source <= last ? source : lane;
  }
}

uint64_t warp_result(WarpOperation operation, unsigned mask, int lane, const WarpArgument (&lanes)[kWarp]) {
  const WarpArgument& own = lanes[lane];
  if (operation == WarpOperation::kSync) {
    return 0;
  }
  if (is_shuffle(operation)) {
    return lanes[source_lane(operation, lane, own.argument, own.width)].value;
  }
  uint64_t result = 0;
  bool first = true;
  for (int other = 0; other < kWarp; ++other) {
    if (!(mask >> other & 1)) {
      continue;
    }
    const uint64_t value = lanes[other].value;
    const uint32_t a = static_cast<uint32_t>(result), b = static_cast<uint32_t>(value);
    const int32_t signed_a = static_cast<int32_t>(a), signed_b = static_cast<int32_t>(b);
    switch (operation) {
      case WarpOperation::kBallot:
        result |= uint64_t(value != 0) << other;
        continue;
      case WarpOperation::kMatchAny:
        result |= uint64_t(value == own.value) << other;
        continue;
      case WarpOperation::kAddUnsigned:
      case WarpOperation::kAddSigned:
        result = first ? b : a + b;
        break;
      case WarpOperation::kMinUnsigned:
        result = first || b < a ? b : a;
        break;
      case WarpOperation::kMaxUnsigned:
        result = first || b > a ? b : a;
        break;
      case WarpOperation::kMinSigned:
        result = first || signed_b < signed_a ? b : a;
        break;
      case WarpOperation::kMaxSigned:
        result = first || signed_b > signed_a ? b : a;
        break;
      case WarpOperation::kAnd:
        result = first ? b : a & b;
        break;
      case WarpOperation::kOr:
        result = a | b;
        break;
      default:
        result = a ^ b;
        break;
    }
    first = false;
  }
  return result;
}

}  // namespace cuda_on_cpu
