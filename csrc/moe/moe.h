// Mixture-of-experts routing: what the operators' CPU and CUDA sides share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace detrx {

// Letters: T tokens, E experts, k experts per token, C channels. An assignment is a pair of token and choice, numbered
// token * k + choice; `order` lists the T * k assignments by expert. Each check throws an error that names the argument.
void check_moe_route(const at::Tensor& logits, int64_t k);
void check_moe_route_backward(const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts);
void check_moe_dispatch(const at::Tensor& x, const at::Tensor& order, int64_t k);
void check_moe_dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, int64_t k);
void check_moe_combine(const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order);
void check_moe_combine_backward(const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights);

// output[t] = sum over j of weights[t, j] * y[place[t * k + j]]; all weights are one where `weights` is null.
template <typename T>
struct MoeCombine {
  int64_t tokens, k, channels;
  const T* y;
  const T* weights;
  const int64_t* place;
  T* output;
};

template <typename T>
struct MoeCombineBackward {
  int64_t tokens, k, channels;
  const T* grad_output;
  const T* y;
  const T* weights;
  const int64_t* order;
  T* grad_y;
  T* grad_weights;
};

}  // namespace detrx
