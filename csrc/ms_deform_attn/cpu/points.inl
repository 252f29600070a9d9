// Where the points of a query lie and how much they count. Part of the files that foreach_isa.inl includes.
//
// Two operators share everything but the source of a point's location and weight: given, or computed from reference,
// offsets and logits (see sampling.h).

// The sampling points of one block, a structure of arrays so that the compiler vectorises over points. Corners outside
// the map refer to a row of zeros, so that no branch depends on the data.
constexpr int kBlock = 64;

template <typename T>
struct Points {
  int64_t offset[4][kBlock];  // of each corner's channels, in elements from the first token of the head
  T weight[4][kBlock];        // of each corner, with the attention weight
  T dx[kBlock], dy[kBlock];
};

template <typename C>
DETRX_TARGET DETRX_INLINE void locate_points(
    int count, const C* __restrict locations, const C* __restrict attention, const LevelTable<C>& levels,
    int64_t first, int64_t row_stride, int64_t zeros, Points<C>& __restrict points) {
  const int32_t* __restrict heights = levels.height + first;
  const int32_t* __restrict widths = levels.width + first;
  const int32_t* __restrict starts = levels.start + first;
  for (int i = 0; i < count; ++i) {
    const BilinearPoint<C> point = locate(locations[2 * i], locations[2 * i + 1], heights[i], widths[i]);
    const CornerWeights<C> weight = corner_weights(point.dx, point.dy);
    const int64_t row = starts[i] + point.y * widths[i] + point.x;
    for (int k = 0; k < 4; ++k) {
      const int64_t offset = (row + (k / 2) * widths[i] + k % 2) * row_stride;
      points.offset[k][i] = point.corners >> k & 1 ? offset : zeros;
      points.weight[k][i] = weight.w[k] * attention[i];
    }
    points.dx[i] = point.dx;
    points.dy[i] = point.dy;
  }
}

// Softmax over `count` numbers in place, a multiple of the lanes of a vector; -infinity has no weight.
template <typename C>
DETRX_TARGET DETRX_INLINE void softmax(int64_t count, C* __restrict weights) {
  const C maximum = reduce<Maximum>(weights, count);
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = exp_not_positive(weights[i] - maximum);
  }
  const C scale = 1 / reduce<Sum>(weights, count);
  for (int64_t i = 0; i < count; ++i) {
    weights[i] *= scale;
  }
}

// Softmax over the logits of each of `heads` heads; work.weights has `padded(count)` elements per head.
template <typename T, typename C>
DETRX_TARGET DETRX_INLINE void softmax_of_heads(
    const T* __restrict logits, int64_t heads, int64_t count, C* __restrict weights) {
  const int64_t stride = padded(count);
  for (int64_t m = 0; m < heads; ++m) {
    for (int64_t i = 0; i < count; ++i) {
      weights[m * stride + i] = widen(logits[m * count + i]);
    }
    for (int64_t i = count; i < stride; ++i) {
      weights[m * stride + i] = -static_cast<C>(__builtin_inf());
    }
  }
  for (int64_t m = 0; m < heads && count > 0; ++m) {
    softmax(stride, weights + m * stride);
  }
}

// Spreads the reference of `query` = b * Q + q over the points of its levels.
template <typename T, typename C>
DETRX_TARGET DETRX_INLINE void spread_reference(
    const DeformAttnInputs<T, C>& args, int64_t query, const Workspace<T, C>& work) {
  const DeformAttnSizes& n = args.sizes;
  const int size = args.reference_size;
  for (int64_t l = 0; l < n.L; ++l) {
    const C* reference = args.reference + (query * n.L + l) * size;
    for (int64_t i = 2 * l * n.P; i < 2 * (l + 1) * n.P; i += 2) {
      work.centres[i] = reference[0];
      work.centres[i + 1] = reference[1];
      if (size == 4) {
        work.extents[i] = reference[2];
        work.extents[i + 1] = reference[3];
      }
    }
  }
}

// Locations and weights of the points of a query: those of each head one after the other.
template <typename C>
struct QueryPoints {
  const C* locations;
  const C* weights;
  int64_t stride;  // of weights, from one head to the next
};

// Those of heads [m0, m1) of `query` = b * Q + q.
template <typename T, typename C>
DETRX_TARGET DETRX_INLINE QueryPoints<C> query_points(
    const DeformAttnInputs<T, C>& args, const LevelTable<C>& levels, const Workspace<T, C>& work, int64_t query,
    int64_t m0, int64_t m1) {
  const DeformAttnSizes& n = args.sizes;
  const int64_t count = n.L * n.P, heads = m1 - m0, item = query * n.M + m0;
  const T* __restrict points = args.points + 2 * item * count;
  const T* __restrict weights = args.weights + item * count;
  C* __restrict locations = work.locations;
  if (!args.reference) {
    if constexpr (std::is_same_v<T, C>) {
      return {points, weights, count};
    } else {
      for (int64_t i = 0; i < 2 * heads * count; ++i) {
        locations[i] = widen(points[i]);
      }
      for (int64_t i = 0; i < heads * count; ++i) {
        work.weights[i] = widen(weights[i]);
      }
      return {locations, work.weights, count};
    }
  }
  spread_reference(args, query, work);
  softmax_of_heads(weights, heads, count, work.weights);
  const C* __restrict centres = work.centres;
  const C* __restrict extents = work.extents;
  const C* __restrict scales = levels.scale_xy;
  const C scale = box_scale<C>(n.P);
  for (int64_t m = 0; m < heads; ++m, points += 2 * count, locations += 2 * count) {
    if (args.reference_size == 2) {
      for (int64_t i = 0; i < 2 * count; ++i) {
        locations[i] = point_location<C>(centres[i], widen(points[i]), scales[i]);
      }
    } else {
      for (int64_t i = 0; i < 2 * count; ++i) {
        locations[i] = box_location<C>(centres[i], extents[i], widen(points[i]), scale);
      }
    }
  }
  return {work.locations, work.weights, padded(count)};
}
