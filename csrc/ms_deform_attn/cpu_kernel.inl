// CPU kernels of multi-scale deformable attention for one instruction set. ms_deform_attn_cpu.cpp includes this file
// once per set, in a namespace of its own, with
//   DETRX_TARGET  the function attribute that selects the instruction set
//   kVectorBytes  its vector width
// Nothing here may call inline functions of other headers, except always_inline ones: the linker could keep a copy
// that was compiled for the wrong processor.
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

// A tile of kTile channels: kCount vectors of kLanes channels.
template <typename T, int kTile>
struct Tile {
  static constexpr int kLanes = kTile * int(sizeof(T)) < kVectorBytes ? kTile : kVectorBytes / int(sizeof(T));
  static constexpr int kCount = kTile / kLanes;
  typedef typename VectorOf<T, kLanes>::type Vector;

  DETRX_TARGET DETRX_INLINE static Vector load(const T* source) {
    Vector vector;
    __builtin_memcpy(&vector, source, sizeof(vector));
    return vector;
  }
  DETRX_TARGET DETRX_INLINE static void store(T* target, Vector vector) {
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

// The sampling points of one block, a structure of arrays so that the compiler vectorises over points.
constexpr int kBlock = 64;

template <typename T>
struct Points {
  int32_t row[kBlock];  // index of the top-left corner among the tokens; may be negative if that corner is outside
  int32_t width[kBlock];
  int32_t corners[kBlock];
  T dx[kBlock], dy[kBlock];
  T weight[4][kBlock];  // bilinear weight of each corner times the attention weight
};

template <typename T>
DETRX_TARGET DETRX_INLINE void locate_points(
    int count, const T* __restrict locations, const T* __restrict attention, const int32_t* __restrict heights,
    const int32_t* __restrict widths, const int32_t* __restrict starts, Points<T>& __restrict points) {
  for (int i = 0; i < count; ++i) {
    const BilinearPoint<T> point = locate(locations[2 * i], locations[2 * i + 1], heights[i], widths[i]);
    const CornerWeights<T> weight = corner_weights(point.dx, point.dy);
    points.row[i] = starts[i] + point.y * widths[i] + point.x;
    points.width[i] = widths[i];
    points.corners[i] = point.corners;
    points.dx[i] = point.dx;
    points.dy[i] = point.dy;
    for (int k = 0; k < 4; ++k) {
      points.weight[k][i] = weight.w[k] * attention[i];
    }
  }
}

// output += the weighted sum of the tile's channels at the points.
template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void forward_tile(
    int count, const Points<T>& points, const T* value, int64_t row_stride, T* output) {
  typedef Tile<T, kTile> Tile;
  typename Tile::Vector sum[Tile::kCount];
  for (int c = 0; c < Tile::kCount; ++c) {
    sum[c] = Tile::load(output + c * Tile::kLanes);
  }
  for (int i = 0; i < count; ++i) {
    const int corners = points.corners[i];
    const T* corner0 = value + points.row[i] * row_stride;
    const T* corner2 = corner0 + points.width[i] * row_stride;
    if (corners == kAllCorners) {
      const T* corner1 = corner0 + row_stride;
      const T* corner3 = corner2 + row_stride;
      const T w0 = points.weight[0][i], w1 = points.weight[1][i], w2 = points.weight[2][i], w3 = points.weight[3][i];
      for (int c = 0; c < Tile::kCount; ++c) {
        const int d = c * Tile::kLanes;
        sum[c] += (w0 * Tile::load(corner0 + d) + w1 * Tile::load(corner1 + d)) +
                  (w2 * Tile::load(corner2 + d) + w3 * Tile::load(corner3 + d));
      }
    } else {
      for (int k = 0; k < 4; ++k) {
        if (corners >> k & 1) {
          const T* corner = (k < 2 ? corner0 : corner2) + k % 2 * row_stride;
          for (int c = 0; c < Tile::kCount; ++c) {
            sum[c] += points.weight[k][i] * Tile::load(corner + c * Tile::kLanes);
          }
        }
      }
    }
  }
  for (int c = 0; c < Tile::kCount; ++c) {
    Tile::store(output + c * Tile::kLanes, sum[c]);
  }
}

template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void forward_tiles(
    int64_t channels, int count, const Points<T>& points, const T* value, int64_t row_stride, T* output) {
  int64_t d = 0;
  for (; d + kTile <= channels; d += kTile) {
    forward_tile<T, kTile>(count, points, value + d, row_stride, output + d);
  }
  if constexpr (kTile > 1) {
    forward_tiles<T, kTile / 2>(channels - d, count, points, value + d, row_stride, output + d);
  }
}

// Items [begin, end) of the B * M * Q pairs of head and query, heads outermost: neighbouring queries of one head read
// neighbouring tokens. `levels` holds heights, widths and starts, each per point (L * P of them). `output` is zero.
template <typename T>
DETRX_TARGET void forward_range(
    const DeformAttnForward<T>& args, const LevelTable& levels, int64_t begin, int64_t end) {
  const DeformAttnSizes& n = args.sizes;
  const int64_t points_per_query = n.L * n.P;
  const int64_t row_stride = n.M * n.D;
  Points<T> points;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t q = item % n.Q, m = item / n.Q % n.M, b = item / n.Q / n.M;
    const int64_t query = (b * n.Q + q) * n.M + m;
    const T* value = args.value + (b * n.S * n.M + m) * n.D;
    for (int64_t first = 0; first < points_per_query; first += kBlock) {
      const int count = points_per_query - first < kBlock ? points_per_query - first : kBlock;
      const int64_t point = query * points_per_query + first;
      locate_points(
          count, args.locations + 2 * point, args.attention + point, levels.height + first, levels.width + first,
          levels.start + first, points);
      forward_tiles<T, 64>(n.D, count, points, value, row_stride, args.output + query * n.D);
    }
  }
}

// Adds the tile's part of grad_value and of each point's four dot products with the output gradient.
template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void backward_tile(
    int count, const Points<T>& points, const T* const* grad_output, int64_t d0, const T* value, int64_t row_stride,
    T* grad_value, T (*dots)[4]) {
  typedef Tile<T, kTile> Tile;
  typedef typename Tile::Vector Vector;
  for (int i = 0; i < count; ++i) {
    const int corners = points.corners[i];
    if (corners == 0) {
      continue;
    }
    const T* grad = grad_output[i] + d0;
    const int64_t offset0 = points.row[i] * row_stride + d0;
    const int64_t offset2 = offset0 + points.width[i] * row_stride;
    Vector sum[4] = {};
    if (corners == kAllCorners) {
      const int64_t offset1 = offset0 + row_stride, offset3 = offset2 + row_stride;
      const T w0 = points.weight[0][i], w1 = points.weight[1][i], w2 = points.weight[2][i], w3 = points.weight[3][i];
      for (int c = 0; c < Tile::kCount; ++c) {
        const int d = c * Tile::kLanes;
        const Vector g = Tile::load(grad + d);
        sum[0] += g * Tile::load(value + offset0 + d);
        sum[1] += g * Tile::load(value + offset1 + d);
        sum[2] += g * Tile::load(value + offset2 + d);
        sum[3] += g * Tile::load(value + offset3 + d);
        Tile::store(grad_value + offset0 + d, Tile::load(grad_value + offset0 + d) + w0 * g);
        Tile::store(grad_value + offset1 + d, Tile::load(grad_value + offset1 + d) + w1 * g);
        Tile::store(grad_value + offset2 + d, Tile::load(grad_value + offset2 + d) + w2 * g);
        Tile::store(grad_value + offset3 + d, Tile::load(grad_value + offset3 + d) + w3 * g);
      }
    } else {
      for (int k = 0; k < 4; ++k) {
        if (corners >> k & 1) {
          const int64_t offset = (k < 2 ? offset0 : offset2) + k % 2 * row_stride;
          for (int c = 0; c < Tile::kCount; ++c) {
            const int d = c * Tile::kLanes;
            const Vector g = Tile::load(grad + d);
            sum[k] += g * Tile::load(value + offset + d);
            Tile::store(grad_value + offset + d, Tile::load(grad_value + offset + d) + points.weight[k][i] * g);
          }
        }
      }
    }
    add_lane_sums<T, Tile::kLanes>(sum[0], sum[1], sum[2], sum[3], dots[i]);
  }
}

template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void backward_tiles(
    int64_t channels, int count, const Points<T>& points, const T* const* grad_output, int64_t d0, const T* value,
    int64_t row_stride, T* grad_value, T (*dots)[4]) {
  for (; d0 + kTile <= channels; d0 += kTile) {
    backward_tile<T, kTile>(count, points, grad_output, d0, value, row_stride, grad_value, dots);
  }
  if constexpr (kTile > 1) {
    backward_tiles<T, kTile / 2>(channels, count, points, grad_output, d0, value, row_stride, grad_value, dots);
  }
}

// Items [begin, end) of the B * M * L triples of image, head and level. Each owns a part of every gradient, so threads
// never collide, and the points are summed in the same order whatever the number of threads.
template <typename T>
DETRX_TARGET void backward_range(const DeformAttnBackward<T>& args, int64_t begin, int64_t end) {
  const DeformAttnSizes& n = args.sizes;
  const int64_t row_stride = n.M * n.D;
  Points<T> points;
  int32_t heights[kBlock], widths[kBlock], starts[kBlock];
  T locations[2 * kBlock], attention[kBlock], dots[kBlock][4];
  const T* grad_output[kBlock];
  int64_t index[kBlock];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t l = item % n.L, m = item / n.L % n.M, b = item / n.L / n.M;
    const int32_t height = args.spatial_shapes[2 * l], width = args.spatial_shapes[2 * l + 1];
    for (int i = 0; i < kBlock; ++i) {
      heights[i] = height;
      widths[i] = width;
      starts[i] = args.level_start_index[l];
    }
    const int64_t value_offset = (b * n.S * n.M + m) * n.D;
    int64_t q = 0, p = 0;
    for (int64_t first = 0; first < n.Q * n.P; first += kBlock) {
      const int count = n.Q * n.P - first < kBlock ? n.Q * n.P - first : kBlock;
      for (int i = 0; i < count; ++i) {
        const int64_t query = (b * n.Q + q) * n.M + m;
        grad_output[i] = args.grad_output + query * n.D;
        index[i] = (query * n.L + l) * n.P + p;
        locations[2 * i] = args.locations[2 * index[i]];
        locations[2 * i + 1] = args.locations[2 * index[i] + 1];
        attention[i] = args.attention[index[i]];
        dots[i][0] = dots[i][1] = dots[i][2] = dots[i][3] = 0;
        if (++p == n.P) {
          p = 0;
          ++q;
        }
      }
      locate_points(count, locations, attention, heights, widths, starts, points);
      backward_tiles<T, 64>(
          n.D, count, points, grad_output, 0, args.value + value_offset, row_stride, args.grad_value + value_offset,
          dots);
      for (int i = 0; i < count; ++i) {
        const PointGradient<T> gradient = point_gradient(
            dots[i][0], dots[i][1], dots[i][2], dots[i][3], points.dx[i], points.dy[i], attention[i], height, width);
        args.grad_locations[2 * index[i]] = gradient.x;
        args.grad_locations[2 * index[i] + 1] = gradient.y;
        args.grad_attention[index[i]] = gradient.attention;
      }
    }
  }
}
