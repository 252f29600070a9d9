// What the kernels of moe_dispatch and moe_combine have in common: one warp works on a token, which it reads or writes
// once, and on the k rows of its assignments.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>
#include <type_traits>

#include "../../cuda/warps.cuh"
#include "../moe.h"
#include "../routing.h"

namespace detrx::cuda {

// Blocks that a multiprocessor is to hold: five of them keep more bytes on their way than the memory's latency asks for.
// Where k is large, fewer do, as every warp has more loads on their way.
template <int kTopK>
constexpr int kBlocks = kTopK <= 2 ? 5 : 1;

// The rows of one token: lane j reads that of its assignment j, and tells the other lanes. What does not depend on the
// rows is best loaded between construction and share().
template <int kTopK>
struct TokenRows {
  unsigned at[kTopK];  // rows and assignments fit into 31 bits
  unsigned assignment;
  int64_t own, inverse;

  __device__ __forceinline__ TokenRows(const MoePlaces& places, unsigned token)
      : assignment(token * places.k + lane()), own(lane() < places.k ? places.place[assignment] : 0) {}

  __device__ __forceinline__ void share(const MoePlaces& places) {
    const bool exists = own >= 0 && own < places.tokens * places.k;
    own = exists ? own : 0;
    inverse = exists && lane() < places.k ? places.order[own] : -1;
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      at[j] = __shfl_sync(kAllLanes, static_cast<unsigned>(own), j);
    }
  }

  // Where this holds for all tokens, no row is there twice, and none is missing. Called last: an assertion costs
  // registers where much is in use, and nothing has to wait for the inverse.
  __device__ __forceinline__ void check(const MoePlaces& places) const {
    CUDA_KERNEL_ASSERT(
        (lane() >= places.k || inverse == assignment) && "order and place are no inverse permutations");
  }
};

// Calls function(top_k) with the least number of assignments that kernels are specialised for and k does not exceed.
template <typename Function>
auto for_top_k(int k, const Function& function) {
  return k == 1   ? function(std::integral_constant<int, 1>())
         : k == 2 ? function(std::integral_constant<int, 2>())
         : k <= 4 ? function(std::integral_constant<int, 4>())
                  : function(std::integral_constant<int, kMaxTopK>());
}

}  // namespace detrx::cuda
