// The arithmetic of top-k routing for one token, for CPU and CUDA alike.
//
// The k experts with the largest logits are chosen. Their softmax probabilities, renormalised to sum to one, are the
// softmax over the k logits alone: the logits of the others take no part in the weights, nor in the gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../macros.h"

namespace detrx {

constexpr int kMaxExperts = 256;
constexpr int kMaxTopK = 8;

// An unsigned integer for every logit, in the same order. NaN comes above all numbers (so that it shows), -0 is 0, and
// no logit has the rank 0. Of equal ranks, the lower expert is chosen first.
template <typename T>
using Rank = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

template <typename T>
DETRX_HOST_DEVICE Rank<T> rank_of(T logit) {
  constexpr Rank<T> all = ~Rank<T>(0), sign = ~(all >> 1);
  if (logit != logit) {
    return all;
  }
  logit += T(0);  // -0 becomes 0
  Rank<T> bits;
  std::memcpy(&bits, &logit, sizeof(bits));
  return bits ^ (bits & sign ? all : sign);
}

template <typename T>
DETRX_HOST_DEVICE T logit_of(Rank<T> rank) {
  constexpr Rank<T> all = ~Rank<T>(0), sign = ~(all >> 1);
  const Rank<T> bits = rank ^ (rank & sign ? sign : all);
  T logit;
  std::memcpy(&logit, &bits, sizeof(logit));
  return logit;
}

// The arrays below have kSize elements, of which k are used.

// Softmax of the chosen logits, of which the first is the largest.
template <int kSize, typename T>
DETRX_HOST_DEVICE void chosen_weights(const T (&logits)[kSize], int k, T (&weights)[kSize]) {
  T sum = 0;
  DETRX_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < k) {
      weights[j] = std::exp(logits[j] - logits[0]);
      sum += weights[j];
    }
  }
  DETRX_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < k) {
      weights[j] /= sum;
    }
  }
}

// The gradient with respect to the chosen logits.
template <int kSize, typename T>
DETRX_HOST_DEVICE void chosen_gradient(
    const T (&weights)[kSize], const T (&grad_weights)[kSize], int k, T (&grad_logits)[kSize]) {
  T mean = 0;
  DETRX_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < k) {
      mean += weights[j] * grad_weights[j];
    }
  }
  DETRX_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < k) {
      grad_logits[j] = weights[j] * (grad_weights[j] - mean);
    }
  }
}

}  // namespace detrx
