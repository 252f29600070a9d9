// Which row goes where in query routing, for CPU and CUDA alike. Rows are copied as bytes, so that one kernel serves
// every dtype.
#pragma once

#include <cstdint>

#include "../macros.h"

namespace detrx {

// The rows of a tensor (B, N, ...), each of contiguous bytes. Strides are in bytes. No data stands for rows of zeros.
struct Rows {
  const char* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0;

  DETRX_HOST_DEVICE const char* at(int64_t b, int64_t i) const {
    return data == nullptr ? nullptr : data + b * batch_stride + i * row_stride;
  }
};

// One tensor of a call: the rows of `output`, contiguous, are those of `queries` or of `packed`, or zeros.
struct RowCopy {
  Rows queries;  // (B, N, ...)
  Rows packed;   // (B, K, ...)
  char* output;
  int64_t bytes;  // of a row
};

constexpr int kNoSlot = -1;

// Where slot (b, k) of a packed output comes from; nullptr for zeros.
DETRX_HOST_DEVICE const char* gathered_row(const RowCopy& copy, int64_t b, int64_t query, bool valid) {
  return valid ? copy.queries.at(b, query) : nullptr;
}

// Where query n of a full output comes from, `slot` being its place in the packed rows if it has one.
DETRX_HOST_DEVICE const char* merged_row(const RowCopy& copy, int64_t b, int64_t n, int64_t slot) {
  return slot == kNoSlot ? copy.queries.at(b, n) : copy.packed.at(b, slot);
}

}  // namespace detrx
