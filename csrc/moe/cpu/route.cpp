// CPU implementation of detrx::moe_route.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../compute_type.h"
#include "../moe.h"
#include "../routing.h"
#include "grain.h"

namespace detrx::cpu {
namespace {

// The k first of the token's E experts, best first, by insertion.
template <typename T>
void choose(const T* logits, int num_experts, int k, int* experts) {
  Rank<T> ranks[kMaxTopK];
  int count = 0;
  for (int e = 0; e < num_experts; ++e) {
    const Rank<T> rank = rank_of(logits[e]);
    if (count == k && rank <= ranks[k - 1]) {
      continue;
    }
    int j = count < k ? count++ : k - 1;
    for (; j > 0 && rank > ranks[j - 1]; --j) {
      ranks[j] = ranks[j - 1];
      experts[j] = experts[j - 1];
    }
    ranks[j] = rank;
    experts[j] = e;
  }
}

template <typename T>
void route_range(
    const T* logits, int num_experts, int k, int64_t begin, int64_t end, T* weights, int64_t* chosen_experts) {
  int experts[kMaxTopK];
  T values[kMaxTopK], chosen[kMaxTopK];
  for (int64_t t = begin; t < end; ++t) {
    choose(logits + t * num_experts, num_experts, k, experts);
    for (int j = 0; j < k; ++j) {
      values[j] = logits[t * num_experts + experts[j]];
      chosen_experts[t * k + j] = experts[j];
    }
    chosen_weights(values, k, chosen);
    std::copy(chosen, chosen + k, weights + t * k);
  }
}

// A stable counting sort of the assignments by expert, in chunks: count, sum up, place.
void sort_by_expert(
    const int64_t* experts, int64_t assignments, int64_t num_experts, int64_t* counts, int* ends, int64_t* order,
    int64_t* place) {
  constexpr int64_t kChunk = 8192;
  const int64_t chunks = (assignments + kChunk - 1) / kChunk;
  std::vector<int64_t> next(chunks * num_experts);  // (chunks, E): first the count, then the next free row
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kChunk; i < std::min(end * kChunk, assignments); ++i) {
      ++next[i / kChunk * num_experts + experts[i]];
    }
  });
  int64_t row = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t first = row;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t count = next[chunk * num_experts + e];
      next[chunk * num_experts + e] = row;
      row += count;
    }
    counts[e] = row - first;
    ends[e] = static_cast<int>(row);
  }
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kChunk; i < std::min(end * kChunk, assignments); ++i) {
      place[i] = next[i / kChunk * num_experts + experts[i]]++;
      order[place[i]] = i;
    }
  });
}

Routing route(const at::Tensor& logits, int64_t k) {
  check_moe_route(logits, k);
  const int64_t tokens = logits.size(0), num_experts = logits.size(1);
  const at::Tensor l = logits.to(compute_type(logits)).contiguous();
  at::Tensor weights = at::empty({tokens, k}, l.options());
  at::Tensor experts = at::empty({tokens, k}, l.options().dtype(at::kLong));
  at::Tensor counts = at::empty({num_experts}, experts.options());
  at::Tensor ends = at::empty({num_experts}, l.options().dtype(at::kInt));
  at::Tensor order = at::empty({tokens * k}, experts.options());
  at::Tensor place = at::empty({tokens, k}, experts.options());
  AT_DISPATCH_FLOATING_TYPES(l.scalar_type(), "moe_route", [&] {
    const scalar_t* source = l.const_data_ptr<scalar_t>();
    scalar_t* w = weights.mutable_data_ptr<scalar_t>();
    int64_t* e = experts.mutable_data_ptr<int64_t>();
    at::parallel_for(0, tokens, grain(4 * num_experts), [&](int64_t begin, int64_t end) {
      route_range(source, static_cast<int>(num_experts), static_cast<int>(k), begin, end, w, e);
    });
  });
  sort_by_expert(
      experts.const_data_ptr<int64_t>(), tokens * k, num_experts, counts.mutable_data_ptr<int64_t>(),
      ends.mutable_data_ptr<int>(), order.mutable_data_ptr<int64_t>(), place.mutable_data_ptr<int64_t>());
  return {weights.to(logits.scalar_type()), experts, counts, ends, order, place};
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("moe_route", &detrx::cpu::route);
}
