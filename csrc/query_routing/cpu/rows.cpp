// CPU implementation of detrx::query_gather, query_scatter, query_unpack and query_clear: rows are copied whole, shared
// among threads by output row.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../query_routing.h"

namespace detrx::cpu {
namespace {

// Output rows that are worth a thread.
int64_t grain(const RowCopy& copy) {
  return std::max<int64_t>((int64_t(1) << 16) / copy.bytes, 1);
}

void write_row(const RowCopy& copy, int64_t row, const char* source) {
  char* output = copy.output + row * copy.bytes;
  if (source != nullptr) {
    std::memcpy(output, source, copy.bytes);
  } else {
    std::memset(output, 0, copy.bytes);
  }
}

void check_query(const RoutedCall& call, int64_t b, int64_t k, int64_t query) {
  TORCH_CHECK_VALUE(
      query >= 0 && query < call.sizes.N,
      call.op, ": index[", b, ", ", k, "] is ", query, ", expected 0 to ", call.sizes.N - 1);
}

std::vector<at::Tensor> gather(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  const int64_t* index = call.index.const_data_ptr<int64_t>();
  const bool* valid = call.valid.const_data_ptr<bool>();
  for (int64_t row = 0; row < n.B * n.K; ++row) {
    if (valid[row]) {
      check_query(call, row / n.K, row % n.K, index[row]);
    }
  }
  for (const RowCopy& copy : call.copies) {
    at::parallel_for(0, n.B * n.K, grain(copy), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        write_row(copy, row, gathered_row(copy, row / n.K, index[row], valid[row]));
      }
    });
  }
  return call.outputs;
}

// For each query (B, N) its slot in the packed rows, or kNoSlot.
std::vector<int64_t> find_slots(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  const int64_t* index = call.index.const_data_ptr<int64_t>();
  const bool* valid = call.valid.const_data_ptr<bool>();
  std::vector<int64_t> slots(n.B * n.N, kNoSlot);
  for (int64_t b = 0; b < n.B; ++b) {
    for (int64_t k = 0; k < n.K; ++k) {
      if (valid[b * n.K + k]) {
        const int64_t query = index[b * n.K + k];
        check_query(call, b, k, query);
        int64_t& slot = slots[b * n.N + query];
        TORCH_CHECK_VALUE(slot == kNoSlot, call.op, ": index[", b, "] has query ", query, " at ", slot, " and at ", k);
        slot = k;
      }
    }
  }
  return slots;
}

std::vector<at::Tensor> merge(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  const std::vector<int64_t> slots = find_slots(call);
  for (const RowCopy& copy : call.copies) {
    at::parallel_for(0, n.B * n.N, grain(copy), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        write_row(copy, row, merged_row(copy, row / n.N, row % n.N, slots[row]));
      }
    });
  }
  return call.outputs;
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  detrx::RowOperators<&detrx::cpu::gather, &detrx::cpu::merge>::register_in(m);
}
