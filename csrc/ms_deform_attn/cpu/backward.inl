// The gradients of the queries of a tile, for one instruction set; see foreach_isa.inl.
//
// T is the type of the tensors, C = Compute<T> that of the arithmetic. The D channels of a head are processed in tiles
// of 64, 32, 16, 8, 4, 2 or 1, so any D is a short sum of them and the usual ones are a single tile, held in registers.

#include "../../cpu/vectors.inl"
#include "points.inl"

// What the points of one query and head read and write.
template <typename T, typename C>
struct BackwardItem {
  int64_t channels;
  const C* grad_output;  // D channels
  const T* value;        // first token of the head
  C* grad_value;         // the same token
  int64_t zeros;         // offset of a row of zeros from `value`
  C* unused;             // (4, D), takes the gradient of corners outside the map
  C (*dots)[4];          // of the block's points: output gradient times value at each corner
};

// Adds the part of channels [d0, d0 + kTile) to grad_value and to the dot products.
template <typename T, typename C, int kTile>
DETRX_TARGET DETRX_INLINE void backward_tile(
    int count, const Points<C>& points, const BackwardItem<T, C>& item, int64_t d0) {
  typedef Tile<C, kTile> Tile;
  typedef typename Tile::Vector Vector;
  Vector grad[Tile::kCount];
  for (int c = 0; c < Tile::kCount; ++c) {
    grad[c] = Tile::load(item.grad_output + d0 + c * Tile::kLanes);
  }
  for (int i = 0; i < count; ++i) {
    Vector sum[4] = {};
    for (int k = 0; k < 4; ++k) {
      const int64_t offset = points.offset[k][i];
      const T* corner = item.value + offset + d0;
      C* grad_corner = (offset == item.zeros ? item.unused + k * item.channels : item.grad_value + offset) + d0;
      const C weight = points.weight[k][i];
      for (int c = 0; c < Tile::kCount; ++c) {
        const int d = c * Tile::kLanes;
        sum[k] += grad[c] * Tile::load(corner + d);
        Tile::store(grad_corner + d, Tile::load(grad_corner + d) + weight * grad[c]);
      }
    }
    add_lane_sums<C, Tile::kLanes>(sum[0], sum[1], sum[2], sum[3], item.dots[i]);
  }
}

template <typename T, typename C, int kTile>
DETRX_TARGET DETRX_INLINE void backward_tiles(
    int count, const Points<C>& points, const BackwardItem<T, C>& item, int64_t d0) {
  for (; d0 + kTile <= item.channels; d0 += kTile) {
    backward_tile<T, C, kTile>(count, points, item, d0);
  }
  if constexpr (kTile > 1) {
    backward_tiles<T, C, kTile / 2>(count, points, item, d0);
  }
}

// The gradients of logits from those of the weights, over all points of an item.
template <typename T, typename C>
DETRX_TARGET DETRX_INLINE void store_logit_gradients(
    int64_t count, const C* __restrict weights, const C* __restrict grad_weights, T* __restrict grad_logits) {
  C mean = 0;
  for (int64_t i = 0; i < count; ++i) {
    mean += weights[i] * grad_weights[i];
  }
  for (int64_t i = 0; i < count; ++i) {
    narrow(logit_gradient(weights[i], grad_weights[i], mean), grad_logits[i]);
  }
}

// Gradients of offsets and reference from those of the locations of points [begin, end) of an item.
template <typename T, typename C>
DETRX_TARGET DETRX_INLINE void store_offset_gradients(
    const DeformAttnInputs<T, C>& args, const DeformAttnGradients<T, C>& grads, const LevelTable<C>& levels,
    const Workspace<T, C>& work, int64_t item, int64_t begin, int64_t end) {
  const DeformAttnSizes& n = args.sizes;
  const C* __restrict grad_locations = work.grad_locations;
  const C* __restrict extents = work.extents;
  const C* __restrict scales = levels.scale_xy;
  const T* offsets = args.points + 2 * item * n.L * n.P;
  T* __restrict grad_offsets = grads.grad_points + 2 * item * n.L * n.P;
  const bool boxes = args.reference_size == 4;
  const C scale = box_scale<C>(n.P);
  if (boxes) {
    for (int64_t i = 2 * begin; i < 2 * end; ++i) {
      narrow(box_offset_gradient(grad_locations[i], extents[i], scale), grad_offsets[i]);
    }
  } else {
    for (int64_t i = 2 * begin; i < 2 * end; ++i) {
      narrow(point_offset_gradient(grad_locations[i], scales[i]), grad_offsets[i]);
    }
  }
  if (!grads.grad_reference) {
    return;
  }
  for (int64_t l = n.P > 0 ? begin / n.P : n.L; l * n.P < end; ++l) {
    C sum[4] = {0, 0, 0, 0};
    for (int64_t i = 2 * l * n.P; i < 2 * (l + 1) * n.P; ++i) {
      sum[i % 2] += grad_locations[i];
      sum[2 + i % 2] += box_extent_gradient<C>(grad_locations[i], widen(offsets[i]), scale);
    }
    for (int k = 0; k < args.reference_size; ++k) {
      grads.grad_reference[(item * n.L + l) * args.reference_size + k] = sum[k];
    }
  }
}

// Queries [begin, end): gradients of the logits, where those of the weights were left in `grad_weights`.
template <typename T, typename C>
DETRX_TARGET void softmax_backward_queries(
    const DeformAttnInputs<T, C>& args, const C* grad_weights, T* grad_logits, const Workspace<T, C>& work,
    int64_t begin, int64_t end) {
  const int64_t heads = args.sizes.M, count = args.sizes.L * args.sizes.P;
  for (int64_t query = begin; query < end; ++query) {
    softmax_of_heads(args.weights + query * heads * count, heads, count, work.weights);
    for (int64_t m = 0; m < heads; ++m) {
      const int64_t first = (query * heads + m) * count;
      store_logit_gradients(count, work.weights + m * padded(count), grad_weights + first, grad_logits + first);
    }
  }
}

// The queries of a tile of image b, for heads [m0, m1) and levels [l0, l1). Without all levels, it leaves the gradients
// of the fused operator's weights in `all_grad_weights`, for softmax_backward_queries.
template <typename T, typename C>
DETRX_TARGET void backward_queries(
    const DeformAttnInputs<T, C>& args, const DeformAttnGradients<T, C>& grads, C* all_grad_weights,
    const LevelTable<C>& levels, const Workspace<T, C>& work, int64_t b, const QueryTile& tile, int64_t m0, int64_t m1,
    int64_t l0, int64_t l1) {
  const DeformAttnSizes& n = args.sizes;
  const int64_t points_per_item = n.L * n.P, begin = l0 * n.P, end = l1 * n.P;
  Points<C> points;
  C dots[kBlock][4];
  for (int64_t i = 0; i < tile.height * tile.width; ++i) {
    const int64_t query = b * n.Q + tile.first + i / tile.width * tile.stride + i % tile.width;
    const QueryPoints<C> source = query_points(args, levels, work, query, m0, m1);
    for (int64_t m = m0; m < m1; ++m) {
      const int64_t item = query * n.M + m;
      const C* locations = source.locations + 2 * (m - m0) * points_per_item;
      const C* all_weights = source.weights + (m - m0) * source.stride;
      const int64_t head = (b * n.S * n.M + m) * n.D;
      const T* value = args.value + head;
      const T* stored_grad_output = grads.grad_output + item * n.D;
      const C* grad_output = work.output;
      if constexpr (std::is_same_v<T, C>) {
        grad_output = stored_grad_output;
      } else {
        for (int64_t d = 0; d < n.D; ++d) {
          work.output[d] = widen(stored_grad_output[d]);
        }
      }
      C* grad_weights = all_grad_weights ? all_grad_weights + item * points_per_item : work.grad_weights;
      for (int64_t first = begin; first < end; first += kBlock) {
        const int count = end - first < kBlock ? end - first : kBlock;
        const C* weights = all_weights + first;
        locate_points(
            count, locations + 2 * first, weights, levels, first, n.M * n.D, work.zeros - value, points);
        for (int i = 0; i < count; ++i) {
          dots[i][0] = dots[i][1] = dots[i][2] = dots[i][3] = 0;
        }
        const BackwardItem<T, C> block{n.D, grad_output, value, grads.grad_value + head, work.zeros - value,
                                       work.unused, dots};
        backward_tiles<T, C, 64>(count, points, block, 0);
        for (int i = 0; i < count; ++i) {
          const PointGradient<C> gradient = point_gradient(
              dots[i][0], dots[i][1], dots[i][2], dots[i][3], points.dx[i], points.dy[i], weights[i],
              levels.height[first + i], levels.width[first + i]);
          work.grad_locations[2 * (first + i)] = gradient.x;
          work.grad_locations[2 * (first + i) + 1] = gradient.y;
          grad_weights[first + i] = gradient.attention;
        }
      }
      if (args.reference) {
        store_offset_gradients(args, grads, levels, work, item, begin, end);
        if (!all_grad_weights) {
          store_logit_gradients(
              points_per_item, all_weights, grad_weights, grads.grad_weights + item * points_per_item);
        }
      } else {
        T* stored_points = grads.grad_points + 2 * item * points_per_item;
        T* stored_weights = grads.grad_weights + item * points_per_item;
        for (int64_t i = 2 * begin; i < 2 * end; ++i) {
          narrow(work.grad_locations[i], stored_points[i]);
        }
        for (int64_t i = begin; i < end; ++i) {
          narrow(work.grad_weights[i], stored_weights[i]);
        }
      }
    }
  }
}
