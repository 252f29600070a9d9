// The gradients: how threads share them.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../bilinear.h"
#include "../sampling.h"
#include "kernels.h"
#include "query_tiles.h"
#include "workspace.h"

#define DETRX_ISA_FILE "../ms_deform_attn/cpu/backward.inl"
#include "../../cpu/foreach_isa.inl"

namespace detrx::cpu {

// Every element of grad_value belongs to one image, head and level. Threads share the work by these, so that they never
// collide, and every element sums its terms in the same order whatever the number of threads. Few large parts are
// better than many: a part reads the points of all queries.
template <typename T>
void backward(const DeformAttnInputs<T, Compute<T>>& inputs, const DeformAttnGradients<T, Compute<T>>& gradients) {
  typedef Compute<T> C;
  const DeformAttnSizes& n = inputs.sizes;
  const LevelTableStorage<C> levels(n, inputs.spatial_shapes, inputs.level_start_index);
  const int64_t threads = at::get_num_threads();
  const auto balanced = [threads](int64_t parts) { return parts % threads == 0 || parts >= 4 * threads; };
  int64_t head_parts = 1;
  while (head_parts < n.M && !(n.M % head_parts == 0 && balanced(n.B * head_parts))) {
    ++head_parts;
  }
  const int64_t level_parts = balanced(n.B * head_parts) ? 1 : n.L;
  const int64_t heads = n.M / std::max<int64_t>(head_parts, 1), level_count = n.L / std::max<int64_t>(level_parts, 1);
  // The gradients of logits take all levels of a query: in a second pass, where threads share the levels.
  const bool two_passes = inputs.reference && level_parts > 1;
  std::vector<C> grad_weights(two_passes ? n.B * n.Q * n.M * n.L * n.P : 0);
  const std::vector<QueryTile> tiles = query_tiles(n, inputs.spatial_shapes);
  const auto kernel = DETRX_SELECT_ISA(backward_queries<T, C>);
  at::parallel_for(0, n.B * head_parts * level_parts, 1, [&](int64_t begin, int64_t end) {
    const WorkspaceStorage<T, C> work(n);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t l = part % level_parts * level_count, m = part / level_parts % head_parts * heads;
      for (const QueryTile& tile : tiles) {
        kernel(
            inputs, gradients, two_passes ? grad_weights.data() : nullptr, levels.table(), work.get(),
            part / level_parts / head_parts, tile, m, m + heads, l, l + level_count);
      }
    }
  });
  if (two_passes) {
    const auto softmax_kernel = DETRX_SELECT_ISA(softmax_backward_queries<T, C>);
    at::parallel_for(0, n.B * n.Q, grain(n), [&](int64_t begin, int64_t end) {
      const WorkspaceStorage<T, C> work(n);
      softmax_kernel(inputs, grad_weights.data(), gradients.grad_weights, work.get(), begin, end);
    });
  }
}

#define DETRX_INSTANTIATE(T) \
  template void backward<T>(const DeformAttnInputs<T, Compute<T>>&, const DeformAttnGradients<T, Compute<T>>&);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx::cpu
