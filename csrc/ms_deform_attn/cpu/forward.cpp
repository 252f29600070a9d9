// The output: how threads share its queries.

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "../bilinear.h"
#include "../sampling.h"
#include "kernels.h"
#include "query_tiles.h"
#include "workspace.h"

#define DETRX_ISA_FILE "../ms_deform_attn/cpu/forward.inl"
#include "../../cpu/foreach_isa.inl"

namespace detrx::cpu {

template <typename T>
void forward(const DeformAttnInputs<T, Compute<T>>& inputs, T* output) {
  typedef Compute<T> C;
  const DeformAttnSizes& n = inputs.sizes;
  const LevelTableStorage<C> levels(n, inputs.spatial_shapes, inputs.level_start_index);
  const std::vector<QueryTile> tiles = query_tiles(n, inputs.spatial_shapes);
  const auto kernel = DETRX_SELECT_ISA(forward_queries<T, C>);
  // Threads take tile after tile, so that none waits for one that shares its core with something else.
  const int64_t per_image = tiles.size(), count = n.B * per_image;
  const int64_t workers = std::min<int64_t>(at::get_num_threads(), count);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const WorkspaceStorage<T, C> work(n);
    for (int64_t i = next++; i < count; i = next++) {
      kernel(inputs, output, levels.table(), work.get(), i / per_image, tiles[i % per_image]);
    }
  });
}

#define DETRX_INSTANTIATE(T) template void forward<T>(const DeformAttnInputs<T, Compute<T>>&, T*);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx::cpu
