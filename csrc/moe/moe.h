// Mixture-of-experts routing: what the operators' CPU and CUDA sides share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace detrx {

// Letters: T tokens, E experts, k experts per token, C channels. An assignment is a pair of token and choice, numbered
// token * k + choice. Sorted by expert, the T * k assignments are the rows: `order` lists the assignment of each row,
// `place` (T, k) the row of each assignment. Each check throws an error that names the argument.
void check_moe_route(const at::Tensor& logits, int64_t k);
void check_moe_route_backward(const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts);
void check_moe_dispatch(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place);
void check_moe_dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place);
void check_moe_combine(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place);
void check_moe_combine_backward(const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights);

// moe_route returns weights (T, k), experts (T, k), counts (E), ends (E), order and place.
using Routing = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Which rows belong to which token.
struct MoePlaces {
  int64_t tokens;
  int k;
  const int64_t* order;
  const int64_t* place;
};

// Both contiguous; they have to stay alive.
MoePlaces places_of(const at::Tensor& order, const at::Tensor& place);

// output[t] = sum over j of weights[t, j] * y[place[t, j]]; all weights are one where `weights` is null.
template <typename T>
struct MoeCombine {
  MoePlaces places;
  int64_t channels;
  const T* y;
  const T* weights;
  T* output;
};

template <typename T>
struct MoeCombineBackward {
  MoePlaces places;
  int64_t channels;
  const T* grad_output;
  const T* y;
  const T* weights;
  T* grad_y;
  T* grad_weights;
};

}  // namespace detrx
