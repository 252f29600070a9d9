// The gradient of the values where many points share their corners, as in an encoder. A block sorts what its items have
// to add by token, sums what belongs to one token, and has only the sums added atomically. Four such operations for
// every point would take longer than all else.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "atomics.cuh"
#include "kernels.h"
#include "launch.h"
#include "points.cuh"

namespace detrx::cuda {
namespace {

constexpr int kLanes = 16;  // that share the points of an item
constexpr int kItemsAtOnce = kThreads / kLanes;
constexpr int kPointsOfThread = 4;
constexpr int kMaxPoints = kPointsOfThread * kLanes;  // of an item
constexpr int kMaxItems = kPointsOfThread * kItemsAtOnce;
constexpr int kChannelsOfLane = 8;

// What a point adds to two tokens side by side: grad_output of its item times two weights. Both rows are told by the
// number of vectors of kChannelsOfLane channels before them.
struct alignas(16) Term {
  unsigned row;         // of the left token in grad_value
  unsigned grad_output;
  float left, right;
};
constexpr int kMaxTerms = 2 * kPointsOfThread * kThreads;

// Terms for the same tokens get the same bucket, and those for the next tokens to the right the next one. Tokens far
// from each other may share one, which costs more atomic operations and does no harm. The factor 23 keeps rows of the
// map apart as far as the points of neighbouring queries usually spread.
constexpr unsigned kBuckets = 2048, kBucketsOfLevel = 512;

__device__ __forceinline__ unsigned bucket_of(unsigned level, unsigned y, unsigned x) {
  return level * kBucketsOfLevel % kBuckets + (23 * y + x) % kBucketsOfLevel;
}

struct SharedTerms {
  int *counts, *warp_sums;
  Term* terms;

  static constexpr int kTileBytes = Tile<float>::bytes(kMaxPoints, kMaxItems);
  static constexpr int kBytes = kTileBytes + (kBuckets + kWarp) * sizeof(int) + kMaxTerms * sizeof(Term);
  __device__ __forceinline__ explicit SharedTerms(char* memory)
      : counts(reinterpret_cast<int*>(memory + kTileBytes)),
        warp_sums(counts + kBuckets),
        terms(reinterpret_cast<Term*>(warp_sums + kWarp)) {}
};
static_assert(SharedTerms::kBytes <= kSharedMemory);

// The two terms of a point: for its upper and for its lower corners.
struct PointTerms {
  unsigned row[2];
  float weight[4];
  unsigned bucket[2];  // plus kBuckets times the number of terms before in the bucket

  __device__ __forceinline__ bool has(int k) const {
    return weight[2 * k] != 0 || weight[2 * k + 1] != 0;
  }
};

template <int kChannels, typename T>
__device__ __forceinline__ PointTerms terms_of(
    const Problem<T, float>& problem, const Tile<float>& tile, const Item& item, const ItemInputs<T, float>& inputs,
    float factor, int i) {
  constexpr unsigned kVectors = kChannels / kChannelsOfLane;
  const unsigned heads = problem.args.sizes.M, tokens = problem.args.sizes.S;
  const Pixel<float> pixel = pixel_of_point(problem, tile.levels, inputs, i);
  const Level<float>& level = tile.levels[pixel.level];
  const Footprint<float> footprint(pixel, level, inputs.numerator(i) * factor);
  const unsigned token = level.start + footprint.y * level.width + footprint.x;
  const unsigned row = ((item.image * tokens + token) * heads + item.head) * kVectors;
  return {{row, row + level.width * heads * kVectors},
          {footprint.weight[0], footprint.weight[1], footprint.weight[2], footprint.weight[3]},
          {bucket_of(pixel.level, footprint.y, footprint.x), bucket_of(pixel.level, footprint.y + 1, footprint.x)}};
}

// The item and the point of it that a thread has as its j-th. The lanes of an item take `steps` points each.
struct Slot {
  int item, point;
  bool first;  // of the item

  __device__ __forceinline__ Slot(int j, int steps, const Place<kLanes>& place)
      : item(j / steps * kItemsAtOnce + place.group),
        point(j % steps * kLanes + place.lane),
        first(j % steps == 0) {}
};

// The terms of a thread's points, counted in the buckets.
template <int kChannels, typename T>
__device__ __forceinline__ void count_terms(
    const Problem<T, float>& problem, const Tile<float>& tile, int items, int steps, int* counts,
    PointTerms (&terms)[kPointsOfThread]) {
  const Place<kLanes> place;
  ItemInputs<T, float> inputs;
  float factor;
#pragma unroll
  for (int j = 0; j < kPointsOfThread; ++j) {
    const Slot slot(j, steps, place);
    const Item item = tile.items[min(slot.item, items - 1)];
    if (slot.first) {
      inputs = inputs_of<kLanes>(problem, item, place.lane);
      factor = attention_factor<kLanes>(inputs, problem.points, place.lane);
    }
    terms[j] = PointTerms{};
    if (slot.item < items && slot.point < problem.points) {
      terms[j] = terms_of<kChannels>(problem, tile, item, inputs, factor, slot.point);
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (terms[j].has(k)) {
        terms[j].bucket[k] += kBuckets * atomicAdd(counts + terms[j].bucket[k], 1);
      }
    }
  }
}

// Replaces the counts of the buckets by their sums over the buckets before, and returns the sum of all.
__device__ __forceinline__ int sums_before(int* all_counts, int* warp_sums) {
  constexpr int kCounts = kBuckets / kThreads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  auto& shared_counts = reinterpret_cast<Pack<int, kCounts>*>(all_counts)[threadIdx.x];
  Pack<int, kCounts> counts = shared_counts;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kCounts; ++i) {
    sum += counts.value[i];
  }
  int up_to_here = sum;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int lower = __shfl_up_sync(kAllLanes, up_to_here, offset);
    up_to_here += lane >= offset ? lower : 0;
  }
  if (lane == kWarp - 1) {
    warp_sums[warp] = up_to_here;
  }
  __syncthreads();
  int before = up_to_here - sum, all = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) {
    before += i < warp ? warp_sums[i] : 0;
    all += warp_sums[i];
  }
#pragma unroll
  for (int i = 0; i < kCounts; ++i) {
    before += counts.value[i];
    counts.value[i] = before - counts.value[i];
  }
  shared_counts = counts;
  return all;
}

// Puts a thread's terms behind those of the buckets before.
template <int kChannels, typename T>
__device__ __forceinline__ void sort_terms(
    const Problem<T, float>& problem, const Tile<float>& tile, int steps, const SharedTerms& shared,
    const PointTerms (&terms)[kPointsOfThread]) {
  const Place<kLanes> place;
#pragma unroll
  for (int j = 0; j < kPointsOfThread; ++j) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (terms[j].has(k)) {
        const Item item = tile.items[Slot(j, steps, place).item];
        const unsigned row = static_cast<unsigned>(item.query * problem.args.sizes.M + item.head);
        const int first = shared.counts[terms[j].bucket[k] % kBuckets];
        shared.terms[first + terms[j].bucket[k] / kBuckets] = {
            terms[j].row[k], row * (kChannels / kChannelsOfLane), terms[j].weight[2 * k], terms[j].weight[2 * k + 1]};
      }
    }
  }
}

// The sums for two tokens side by side, as one lane of a group has them.
template <int kChannels>
class PairSum {
 public:
  static constexpr int kGroup = kChannels / kChannelsOfLane;
  typedef RowSums<float, kGroup, kChannelsOfLane> Sums;

  // `grad_value` begins with the lane's first channel. Rows of neighbouring tokens are `step` apart, all below `end`.
  __device__ __forceinline__ PairSum(float* grad_value, unsigned end, unsigned step, unsigned row)
      : grad_value_(grad_value), end_(end), step_(step), row_(row) {}

  __device__ __forceinline__ unsigned row() const {
    return row_;
  }
  __device__ __forceinline__ void add(float left, float right, const float (&grad)[kChannelsOfLane]) {
#pragma unroll
    for (int c = 0; c < kChannelsOfLane; ++c) {
      left_[c] += left * grad[c];
    }
    if (right != 0) {  // else there may be no such token, for which even infinity times zero must not count
#pragma unroll
      for (int c = 0; c < kChannelsOfLane; ++c) {
        right_[c] += right * grad[c];
      }
    }
  }
  // Adds the sums to grad_value, except what the next pair has in common with this one. Where there is no token to the
  // right, that means zeros for the one that comes next in memory.
  __device__ __forceinline__ void move_to(unsigned row) {
    const unsigned right_row = row_ + step_;
    const bool slides = row == right_row;
    Sums::add(behind<kChannelsOfLane>(grad_value_, row_), left_);
    if (!slides && right_row < end_) {
      Sums::add(behind<kChannelsOfLane>(grad_value_, right_row), right_);
    }
#pragma unroll
    for (int c = 0; c < kChannelsOfLane; ++c) {
      left_[c] = slides ? right_[c] : 0;
      right_[c] = 0;
    }
    row_ = row;
  }

 private:
  float* grad_value_;
  unsigned end_, step_, row_;
  float left_[kChannelsOfLane] = {}, right_[kChannelsOfLane] = {};
};

// Every group of lanes sums a part of the sorted terms.
template <typename T, int kChannels>
__device__ __forceinline__ void add_sums(
    const DeformAttnSizes& n, const Term* terms, int count, const T* grad_output, float* grad_value) {
  constexpr int kTogether = 2;  // are loaded before the first is used
  constexpr int kVectors = kChannels / kChannelsOfLane;
  typedef PairSum<kChannels> Sum;
  typedef typename Sum::Sums Sums;
  const Place<Sum::kGroup> place;
  const int part = (count + place.groups - 1) / place.groups;
  const int first = place.group * part, end = min(first + part, count);
  if (first >= end) {
    return;
  }
  grad_output += place.lane * Sums::kWidth;
  Sum sum(grad_value + place.lane * Sums::kWidth, n.B * n.S * n.M * kVectors, n.M * kVectors, terms[first].row);
  for (int i = first; i < end; i += kTogether) {
    Term term[kTogether];
    float grad[kTogether][kChannelsOfLane];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      term[j] = terms[min(i + j, end - 1)];
      Sums::read(behind<kChannelsOfLane>(grad_output, term[j].grad_output), grad[j]);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const bool counts = i + j < end;
      if (term[j].row != sum.row()) {
        sum.move_to(term[j].row);
      }
      sum.add(counts ? term[j].left : 0, counts ? term[j].right : 0, grad[j]);
    }
  }
  sum.move_to(sum.row());
}

template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads, kBlocks<float>)
grad_value_kernel(const Problem<T, float> problem, const T* grad_output, float* grad_value, int steps) {
  extern __shared__ __align__(16) char memory[];
  const Tile<float> tile(memory, problem.args.sizes.L);
  const SharedTerms shared(memory);
  const int items = kPointsOfThread / steps * kItemsAtOnce;
  for (int64_t first = int64_t(blockIdx.x) * items; first < problem.items; first += int64_t(gridDim.x) * items) {
    for (int i = threadIdx.x; i < int(kBuckets); i += kThreads) {
      shared.counts[i] = 0;
    }
    fill_tile(problem, first, items, tile);
    const int left = static_cast<int>(min(int64_t(items), problem.items - first));
    PointTerms terms[kPointsOfThread];
    count_terms<kChannels>(problem, tile, left, steps, shared.counts, terms);
    __syncthreads();
    const int count = sums_before(shared.counts, shared.warp_sums);
    __syncthreads();
    sort_terms<kChannels>(problem, tile, steps, shared, terms);
    __syncthreads();
    add_sums<T, kChannels>(problem.args.sizes, shared.terms, count, grad_output, grad_value);
  }
}

}  // namespace

template <typename T>
bool sums_grad_value_in_blocks(const DeformAttnSizes& n) {
  constexpr int64_t kCornersOfToken = 16;  // from how many on, on average
  // Vectors of 16 bytes, as for_channels counts them: where it would choose no kernel for D, none is asked for.
  const int64_t rows = std::max(n.S, n.Q) * n.B * n.M, vectors = n.D / (16 / int64_t(sizeof(T)));
  return std::is_same_v<Compute<T>, float> && (n.D == 16 || n.D == 32 || n.D == 64) && n.L * n.P <= kMaxPoints &&
         rows * vectors <= std::numeric_limits<uint32_t>::max() && 4 * n.Q * n.L * n.P >= kCornersOfToken * n.S;
}

template <typename T>
void grad_value_in_blocks(const DeformAttnInputs<T, Compute<T>>& args, const T* grad_output, Compute<T>* grad_value) {
  if constexpr (std::is_same_v<Compute<T>, float>) {
    const Problem<T, float> problem(args);
    const int steps = (problem.points + kLanes - 1) / kLanes;
    const int count = blocks(problem.items, kPointsOfThread / steps * kItemsAtOnce);
    for_channels<T>(args.sizes, [&](auto channels) {
      constexpr int kChannels = decltype(channels)::value;
      if constexpr (kChannels) {
        grad_value_kernel<T, kChannels>
            <<<count, kThreads, SharedTerms::kBytes, c10::cuda::getCurrentCUDAStream()>>>(
                problem, grad_output, grad_value, steps);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      }
    });
  }
}

#define DETRX_INSTANTIATE(T)                                                                              \
  template bool sums_grad_value_in_blocks<T>(const DeformAttnSizes&);                                     \
  template void grad_value_in_blocks<T>(const DeformAttnInputs<T, Compute<T>>&, const T*, Compute<T>*);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx::cuda
