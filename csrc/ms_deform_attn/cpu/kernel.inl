// CPU kernels of multi-scale deformable attention for one instruction set. operators.cpp includes this file
// once per set, in a namespace of its own, with
//   DETRX_TARGET  the function attribute that selects the instruction set
//   kVectorBytes  its vector width
//   DETRX_F16C    defined where the set has float16 conversions
// Nothing here may call inline functions of other headers, except always_inline ones: the linker could keep a copy
// that was compiled for the wrong processor.
//
// T is the type of the tensors, C = Compute<T> that of the arithmetic. Two operators share everything but the source of
// a point's location and weight: given, or computed from reference, offsets and logits (see sampling.h).
//
// The D channels of a head are processed in tiles of 64, 32, 16, 8, 4, 2 or 1, so any D is a short sum of them and the
// usual ones are a single tile, held in registers.

template <typename T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <int kBytes>
struct IntOf;
template <>
struct IntOf<4> {
  typedef int32_t type;
};
template <>
struct IntOf<8> {
  typedef int64_t type;
};

template <int kLanes>
DETRX_TARGET DETRX_INLINE typename VectorOf<float, kLanes>::type widen_lanes(const BFloat16* source) {
  typename VectorOf<uint16_t, kLanes>::type narrow;
  __builtin_memcpy(&narrow, source, sizeof(narrow));
  typedef typename VectorOf<uint32_t, kLanes>::type Bits;
  return (typename VectorOf<float, kLanes>::type)(__builtin_convertvector(narrow, Bits) << 16);
}

template <int kLanes>
DETRX_TARGET DETRX_INLINE typename VectorOf<float, kLanes>::type widen_lanes(const Float16* source) {
  typedef typename VectorOf<float, kLanes>::type Vector;
#if defined(DETRX_F16C)
  if constexpr (kLanes == 16) {
    return (Vector)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  } else if constexpr (kLanes == 8) {
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  }
#endif
  typedef typename VectorOf<uint32_t, kLanes>::type Bits;
  typename VectorOf<uint16_t, kLanes>::type narrow;
  __builtin_memcpy(&narrow, source, sizeof(narrow));
  const Bits bits = __builtin_convertvector(narrow, Bits);  // as in widen(Float16)
  const Bits magnitude = (bits & 0x7fff) << 13;
  const Bits special = (Bits)(magnitude >= 0x0f800000u) & 0x7f800000u;
  return (Vector)((Bits)((Vector)magnitude * 0x1p112f) | special | (bits & 0x8000) << 16);
}

// A tile of kTile channels: kCount vectors of kLanes channels.
template <typename C, int kTile>
struct Tile {
  static constexpr int kLanes = kTile * int(sizeof(C)) < kVectorBytes ? kTile : kVectorBytes / int(sizeof(C));
  static constexpr int kCount = kTile / kLanes;
  typedef typename VectorOf<C, kLanes>::type Vector;

  DETRX_TARGET DETRX_INLINE static Vector load(const C* source) {
    Vector vector;
    __builtin_memcpy(&vector, source, sizeof(vector));
    return vector;
  }
  template <typename T>
  DETRX_TARGET DETRX_INLINE static Vector load(const T* source) {
    return widen_lanes<kLanes>(source);
  }
  DETRX_TARGET DETRX_INLINE static void store(C* target, Vector vector) {
    __builtin_memcpy(target, &vector, sizeof(vector));
  }
};

// Lane i of the result is lane Pattern::lane(i) of the concatenation of a and b.
template <typename Pattern, typename Vector, int... kIndex>
DETRX_TARGET DETRX_INLINE Vector shuffle(Vector a, Vector b, std::integer_sequence<int, kIndex...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Pattern::lane(kIndex)...);
#else
  typedef typename VectorOf<typename IntOf<sizeof(a[0])>::type, sizeof...(kIndex)>::type Index;
  return __builtin_shuffle(a, b, Index{Pattern::lane(kIndex)...});
#endif
}

// The first or the second half of every group of 2 * kSize lanes, those of a before those of b.
template <int kLanes, int kSize, bool kSecond>
struct HalvesOfGroups {
  static constexpr int lane(int i) {
    return 2 * kSize * (i / kSize) + (kSecond ? kSize : 0) + i % kSize;
  }
};

template <int kStep>
struct SwapNeighbours {
  static constexpr int lane(int i) {
    return i ^ kStep;
  }
};

// Adds the second half of every group of lanes to the first: two vectors become one.
template <int kLanes, int kSize, typename Vector>
DETRX_TARGET DETRX_INLINE Vector fold(Vector a, Vector b) {
  constexpr std::make_integer_sequence<int, kLanes> lanes{};
  return shuffle<HalvesOfGroups<kLanes, kSize, false>>(a, b, lanes) +
         shuffle<HalvesOfGroups<kLanes, kSize, true>>(a, b, lanes);
}

// sums[k] += the sum of the lanes of vector k.
template <typename T, int kLanes, typename Vector>
DETRX_TARGET DETRX_INLINE void add_lane_sums(Vector v0, Vector v1, Vector v2, Vector v3, T* sums) {
  if constexpr (kLanes >= 4) {
    constexpr int quarter = kLanes / 4;
    constexpr std::make_integer_sequence<int, kLanes> lanes{};
    Vector sum = fold<kLanes, quarter>(
        fold<kLanes, 2 * quarter>(v0, v1), fold<kLanes, 2 * quarter>(v2, v3));
    if constexpr (quarter >= 4) {
      sum += shuffle<SwapNeighbours<2>>(sum, sum, lanes);
    }
    if constexpr (quarter >= 2) {
      sum += shuffle<SwapNeighbours<1>>(sum, sum, lanes);
    }
    for (int k = 0; k < 4; ++k) {
      sums[k] += sum[k * quarter];
    }
  } else {
    for (int i = 0; i < kLanes; ++i) {
      sums[0] += v0[i];
      sums[1] += v1[i];
      sums[2] += v2[i];
      sums[3] += v3[i];
    }
  }
}

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

struct Maximum {
  template <typename V>
  DETRX_TARGET DETRX_INLINE static V apply(V a, V b) {
    return a > b ? a : b;
  }
};

struct Sum {
  template <typename V>
  DETRX_TARGET DETRX_INLINE static V apply(V a, V b) {
    return a + b;
  }
};

template <typename Operation, typename C, int kLanes, int kStep>
DETRX_TARGET DETRX_INLINE C reduce_lanes(typename VectorOf<C, kLanes>::type vector) {
  if constexpr (kStep > 0) {
    constexpr std::make_integer_sequence<int, kLanes> lanes{};
    vector = Operation::apply(vector, shuffle<SwapNeighbours<kStep>>(vector, vector, lanes));
    return reduce_lanes<Operation, C, kLanes, kStep / 2>(vector);
  } else {
    return vector[0];
  }
}

// Maximum or sum of `count` elements, a multiple of the lanes of a vector.
template <typename Operation, typename C>
DETRX_TARGET DETRX_INLINE C reduce(const C* elements, int64_t count) {
  constexpr int kLanes = kVectorBytes / sizeof(C);
  typedef Tile<C, kLanes> Tile;
  typename Tile::Vector result = Tile::load(elements);
  for (int64_t i = kLanes; i < count; i += kLanes) {
    result = Operation::apply(result, Tile::load(elements + i));
  }
  return reduce_lanes<Operation, C, kLanes, kLanes / 2>(result);
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

// At most kBlock points of one query and head: an item.
template <typename T, typename C>
struct ForwardBlock {
  const T* value;      // first token of the head
  int64_t item;
  bool is_first, is_last;  // of the item
  int count;
  Points<C> points;
};

// Asks the cache for elements [begin, end) of an array.
template <typename T>
DETRX_TARGET DETRX_INLINE void prefetch(const T* array, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 64 / sizeof(T)) {
    __builtin_prefetch(array + i);
  }
}

// output += the weighted sum of channels [d, d + kTile) at the points. The same channels of the next block's points are
// on their way in the meantime.
template <typename T, typename C, int kTile>
DETRX_TARGET DETRX_INLINE void forward_tile(
    const ForwardBlock<T, C>& block, const ForwardBlock<T, C>& next, int64_t d, C* output) {
  typedef Tile<C, kTile> Tile;
  const T* value = block.value + d;
  const T* next_value = next.value + d;
  typename Tile::Vector sum[Tile::kCount];
  for (int c = 0; c < Tile::kCount; ++c) {
    sum[c] = Tile::load(output + d + c * Tile::kLanes);
  }
  for (int i = 0; i < block.count; ++i) {
    const T* corner[4];
    C weight[4];
    for (int k = 0; k < 4; ++k) {
      corner[k] = value + block.points.offset[k][i];
      weight[k] = block.points.weight[k][i];
      prefetch(next_value + next.points.offset[k][i], 0, kTile);
    }
    for (int c = 0; c < Tile::kCount; ++c) {
      const int lane = c * Tile::kLanes;
      sum[c] += (weight[0] * Tile::load(corner[0] + lane) + weight[1] * Tile::load(corner[1] + lane)) +
                (weight[2] * Tile::load(corner[2] + lane) + weight[3] * Tile::load(corner[3] + lane));
    }
  }
  for (int c = 0; c < Tile::kCount; ++c) {
    Tile::store(output + d + c * Tile::kLanes, sum[c]);
  }
}

template <typename T, typename C, int kTile>
DETRX_TARGET DETRX_INLINE void forward_tiles(
    int64_t channels, const ForwardBlock<T, C>& block, const ForwardBlock<T, C>& next, int64_t d, C* output) {
  for (; d + kTile <= channels; d += kTile) {
    forward_tile<T, C, kTile>(block, next, d, output);
  }
  if constexpr (kTile > 1) {
    forward_tiles<T, C, kTile / 2>(channels, block, next, d, output);
  }
}

// Goes through the blocks of a tile's queries.
template <typename T, typename C>
struct ForwardBlocks {
  const DeformAttnInputs<T, C>& args;
  const LevelTable<C>& levels;
  const Workspace<T, C>& work;
  const QueryTile& tile;
  int64_t b, query, next_query, x, m, first;
  QueryPoints<C> source;

  DETRX_TARGET DETRX_INLINE void next(ForwardBlock<T, C>& block) {
    const DeformAttnSizes& n = args.sizes;
    const int64_t points_per_item = n.L * n.P, left = points_per_item - first;
    if (m == 0 && first == 0) {
      source = query_points(args, levels, work, query, 0, n.M);
      x = x + 1 < tile.width ? x + 1 : 0;
      next_query = query + 1 + (x > 0 ? 0 : tile.stride - tile.width);
      const int64_t points_per_query = n.M * points_per_item;
      prefetch(args.points, 2 * next_query * points_per_query, 2 * (next_query + 1) * points_per_query);
      prefetch(args.weights, next_query * points_per_query, (next_query + 1) * points_per_query);
    }
    block.value = args.value + (b * n.S * n.M + m) * n.D;
    block.item = query * n.M + m;
    block.is_first = first == 0;
    block.is_last = left <= kBlock;
    block.count = left < kBlock ? left : kBlock;
    locate_points(
        block.count, source.locations + 2 * (m * points_per_item + first), source.weights + m * source.stride + first,
        levels, first, n.M * n.D, work.zeros - block.value, block.points);
    first += kBlock;
    if (block.is_last) {
      first = 0;
      m = m + 1 < n.M ? m + 1 : 0;
      query = m > 0 ? query : next_query;
    }
  }
};

// The queries of a tile of image b.
template <typename T, typename C>
DETRX_TARGET void forward_queries(
    const DeformAttnInputs<T, C>& args, T* all_outputs, const LevelTable<C>& levels, const Workspace<T, C>& work,
    int64_t b, const QueryTile& tile) {
  const DeformAttnSizes& n = args.sizes;
  const int64_t blocks_per_item = n.L * n.P > kBlock ? (n.L * n.P + kBlock - 1) / kBlock : 1;
  const int64_t count = tile.width * tile.height * n.M * blocks_per_item;
  ForwardBlocks<T, C> blocks{args, levels, work, tile, b, b * n.Q + tile.first, 0, 0, 0, 0, {}};
  ForwardBlock<T, C> pair[2] = {};
  if (count > 0) {
    blocks.next(pair[0]);
  }
  for (int64_t i = 0; i < count; ++i) {
    const ForwardBlock<T, C>& block = pair[i % 2];
    if (i + 1 < count) {
      blocks.next(pair[(i + 1) % 2]);
    }
    T* result = all_outputs + block.item * n.D;
    C* output = work.output;
    if constexpr (std::is_same_v<T, C>) {
      output = result;
    }
    for (int64_t d = 0; block.is_first && d < n.D; ++d) {
      output[d] = 0;
    }
    forward_tiles<T, C, 64>(n.D, block, pair[(i + 1) % 2], 0, output);
    if constexpr (!std::is_same_v<T, C>) {
      for (int64_t d = 0; block.is_last && d < n.D; ++d) {
        narrow(output[d], result[d]);
      }
    }
  }
}

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
