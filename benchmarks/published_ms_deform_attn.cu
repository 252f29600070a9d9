// The algorithm of the published CUDA operator of Deformable DETR, written anew as a baseline: float32, a thread per
// output channel forward, a block of D threads per query and head backward, whose gradients of location and weight are
// summed in shared memory by one thread.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

#include <tuple>

namespace {

struct Arguments {
  const float* value;
  const int64_t* shapes;
  const int64_t* starts;
  const float* locations;
  const float* weights;
  int B, S, M, D, Q, L, P;
};

struct Corners {
  int x, y;
  float dx, dy;
  bool inside;
};

__device__ Corners corners_of(float location_x, float location_y, int height, int width) {
  const float x = location_x * width - 0.5f, y = location_y * height - 0.5f;
  const bool inside = x > -1 && y > -1 && x < width && y < height;
  const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
  return {left, top, x - left, y - top, inside};
}

__device__ bool in_map(int x, int y, int height, int width) {
  return x >= 0 && y >= 0 && x < width && y < height;
}

__global__ void forward_kernel(Arguments a, float* output, int count) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) {
    return;
  }
  const int d = index % a.D, item = index / a.D, m = item % a.M, b = item / a.M / a.Q;
  float sum = 0;
  for (int l = 0; l < a.L; ++l) {
    const int height = a.shapes[2 * l], width = a.shapes[2 * l + 1];
    const float* map = a.value + ((int64_t(b) * a.S + a.starts[l]) * a.M + m) * a.D + d;
    for (int p = 0; p < a.P; ++p) {
      const int64_t point = (int64_t(item) * a.L + l) * a.P + p;
      const Corners c = corners_of(a.locations[2 * point], a.locations[2 * point + 1], height, width);
      if (c.inside) {
        float sample = 0;
        for (int k = 0; k < 4; ++k) {
          const int x = c.x + k % 2, y = c.y + k / 2;
          if (in_map(x, y, height, width)) {
            sample += (k % 2 ? c.dx : 1 - c.dx) * (k / 2 ? c.dy : 1 - c.dy) * map[(y * width + x) * a.M * a.D];
          }
        }
        sum += a.weights[point] * sample;
      }
    }
  }
  output[index] = sum;
}

__global__ void backward_kernel(
    Arguments a, const float* grad_output, float* grad_value, float* grad_locations, float* grad_weights) {
  extern __shared__ float shared[];  // (3, D)
  const int d = threadIdx.x, item = blockIdx.x, m = item % a.M, b = item / a.M / a.Q;
  const float grad = grad_output[int64_t(item) * a.D + d];
  for (int l = 0; l < a.L; ++l) {
    const int height = a.shapes[2 * l], width = a.shapes[2 * l + 1];
    const int64_t map = ((int64_t(b) * a.S + a.starts[l]) * a.M + m) * a.D + d;
    for (int p = 0; p < a.P; ++p) {
      const int64_t point = (int64_t(item) * a.L + l) * a.P + p;
      const Corners c = corners_of(a.locations[2 * point], a.locations[2 * point + 1], height, width);
      float grad_x = 0, grad_y = 0, sample = 0;
      if (c.inside) {
        for (int k = 0; k < 4; ++k) {
          const int x = c.x + k % 2, y = c.y + k / 2;
          if (in_map(x, y, height, width)) {
            const int64_t offset = map + int64_t(y * width + x) * a.M * a.D;
            const float across = k % 2 ? c.dx : 1 - c.dx, down = k / 2 ? c.dy : 1 - c.dy;
            const float corner = a.value[offset];
            sample += across * down * corner;
            grad_x += (k % 2 ? 1 : -1) * down * corner;
            grad_y += (k / 2 ? 1 : -1) * across * corner;
            atomicAdd(grad_value + offset, across * down * a.weights[point] * grad);
          }
        }
      }
      shared[d] = grad * sample;
      shared[a.D + d] = grad * a.weights[point] * width * grad_x;
      shared[2 * a.D + d] = grad * a.weights[point] * height * grad_y;
      __syncthreads();
      if (d == 0) {
        float sums[3] = {0, 0, 0};
        for (int i = 0; i < a.D; ++i) {
          for (int k = 0; k < 3; ++k) {
            sums[k] += shared[k * a.D + i];
          }
        }
        grad_weights[point] = sums[0];
        grad_locations[2 * point] = sums[1];
        grad_locations[2 * point + 1] = sums[2];
      }
      __syncthreads();
    }
  }
}

Arguments arguments(
    const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts, const at::Tensor& locations,
    const at::Tensor& weights) {
  TORCH_CHECK(
      value.is_contiguous() && locations.is_contiguous() && weights.is_contiguous(), "expected contiguous tensors");
  const auto size = [](const at::Tensor& tensor, int dim) { return static_cast<int>(tensor.size(dim)); };
  return {value.const_data_ptr<float>(), shapes.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
          locations.const_data_ptr<float>(), weights.const_data_ptr<float>(),
          size(value, 0), size(value, 1), size(value, 2), size(value, 3),
          size(locations, 1), size(locations, 3), size(locations, 4)};
}

at::Tensor forward(
    const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts, const at::Tensor& locations,
    const at::Tensor& weights) {
  const Arguments a = arguments(value, shapes, starts, locations, weights);
  at::Tensor output = at::empty({a.B, a.Q, a.M * a.D}, value.options());
  const int count = static_cast<int>(output.numel()), threads = 1024;
  forward_kernel<<<(count + threads - 1) / threads, threads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      a, output.mutable_data_ptr<float>(), count);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts,
    const at::Tensor& locations, const at::Tensor& weights) {
  const Arguments a = arguments(value, shapes, starts, locations, weights);
  at::Tensor grad_value = at::zeros_like(value), grad_locations = at::empty_like(locations);
  at::Tensor grad_weights = at::empty_like(weights);
  backward_kernel<<<a.B * a.Q * a.M, a.D, 3 * a.D * sizeof(float), c10::cuda::getCurrentCUDAStream()>>>(
      a, grad_output.const_data_ptr<float>(), grad_value.mutable_data_ptr<float>(),
      grad_locations.mutable_data_ptr<float>(), grad_weights.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
}
