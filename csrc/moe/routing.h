// The arithmetic of top-k routing for one token, for CPU and CUDA alike.
//
// The k experts with the largest logits are chosen. Their softmax probabilities, renormalised to sum to one, are the
// softmax over the k logits alone: the logits of the others take no part in the weights, nor in the gradient.
#pragma once

#include <cmath>

#include "../macros.h"

namespace detrx {

constexpr int kMaxExperts = 256;
constexpr int kMaxTopK = 8;

template <typename T>
struct Candidate {
  T logit;
  int expert;
};

// A total order: the larger logit first, NaN before all numbers (so that it shows), then the lower expert.
template <typename T>
DETRX_HOST_DEVICE bool ranks_before(const Candidate<T>& a, const Candidate<T>& b) {
  const bool a_nan = a.logit != a.logit, b_nan = b.logit != b.logit;
  if (a_nan != b_nan) {
    return a_nan;
  }
  if (!a_nan && a.logit != b.logit) {
    return a.logit > b.logit;
  }
  return a.expert < b.expert;
}

// Softmax of the chosen logits, of which the first is the largest.
template <typename T>
DETRX_HOST_DEVICE void chosen_weights(const T* logits, int k, T* weights) {
  T sum = 0;
  for (int j = 0; j < k; ++j) {
    weights[j] = std::exp(logits[j] - logits[0]);
    sum += weights[j];
  }
  for (int j = 0; j < k; ++j) {
    weights[j] /= sum;
  }
}

// The gradient with respect to the chosen logits.
template <typename T>
DETRX_HOST_DEVICE void chosen_gradient(const T* weights, const T* grad_weights, int k, T* grad_logits) {
  T mean = 0;
  for (int j = 0; j < k; ++j) {
    mean += weights[j] * grad_weights[j];
  }
  for (int j = 0; j < k; ++j) {
    grad_logits[j] = weights[j] * (grad_weights[j] - mean);
  }
}

}  // namespace detrx
