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

// The sampling points of one block, a structure of arrays so that the compiler vectorises over points. Corners outside
// the map refer to a row of zeros, so that no branch depends on the data.
constexpr int kBlock = 64;

template <typename T>
struct Points {
  int64_t offset[4][kBlock];  // of each corner's channels, in elements from the first token of the head
  T bilinear[4][kBlock];      // weight of each corner, without the attention weight
  T dx[kBlock], dy[kBlock];
};

template <typename T>
DETRX_TARGET DETRX_INLINE void locate_points(
    int count, const T* __restrict locations, const LevelTable& levels, int64_t first, int64_t row_stride,
    int64_t zeros, Points<T>& __restrict points) {
  const int32_t* __restrict heights = levels.height + first;
  const int32_t* __restrict widths = levels.width + first;
  const int32_t* __restrict starts = levels.start + first;
  for (int i = 0; i < count; ++i) {
    const BilinearPoint<T> point = locate(locations[2 * i], locations[2 * i + 1], heights[i], widths[i]);
    const CornerWeights<T> weight = corner_weights(point.dx, point.dy);
    const int64_t row = starts[i] + point.y * widths[i] + point.x;
    for (int k = 0; k < 4; ++k) {
      const int64_t offset = (row + (k / 2) * widths[i] + k % 2) * row_stride;
      points.offset[k][i] = point.corners >> k & 1 ? offset : zeros;
      points.bilinear[k][i] = weight.w[k];
    }
    points.dx[i] = point.dx;
    points.dy[i] = point.dy;
  }
}

// output += the weighted sum of the tile's channels at the points.
template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void forward_tile(
    int count, const Points<T>& points, const T* attention, const T* value, T* output) {
  typedef Tile<T, kTile> Tile;
  typename Tile::Vector sum[Tile::kCount];
  for (int c = 0; c < Tile::kCount; ++c) {
    sum[c] = Tile::load(output + c * Tile::kLanes);
  }
  for (int i = 0; i < count; ++i) {
    const T* corner[4];
    T weight[4];
    for (int k = 0; k < 4; ++k) {
      corner[k] = value + points.offset[k][i];
      weight[k] = points.bilinear[k][i] * attention[i];
    }
    for (int c = 0; c < Tile::kCount; ++c) {
      const int d = c * Tile::kLanes;
      sum[c] += (weight[0] * Tile::load(corner[0] + d) + weight[1] * Tile::load(corner[1] + d)) +
                (weight[2] * Tile::load(corner[2] + d) + weight[3] * Tile::load(corner[3] + d));
    }
  }
  for (int c = 0; c < Tile::kCount; ++c) {
    Tile::store(output + c * Tile::kLanes, sum[c]);
  }
}

template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void forward_tiles(
    int64_t channels, int count, const Points<T>& points, const T* attention, const T* value, T* output) {
  int64_t d = 0;
  for (; d + kTile <= channels; d += kTile) {
    forward_tile<T, kTile>(count, points, attention, value + d, output + d);
  }
  if constexpr (kTile > 1) {
    forward_tiles<T, kTile / 2>(channels - d, count, points, attention, value + d, output + d);
  }
}

// Items [begin, end) of the B * Q * M pairs of query and head. `output` is zero, `zeros` is a row of D zeros.
template <typename T>
DETRX_TARGET void forward_range(
    const DeformAttnForward<T>& args, const LevelTable& levels, const T* zeros, int64_t begin, int64_t end) {
  const DeformAttnSizes& n = args.sizes;
  const int64_t points_per_item = n.L * n.P;
  Points<T> points;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t m = item % n.M, b = item / n.M / n.Q;
    const T* value = args.value + (b * n.S * n.M + m) * n.D;
    for (int64_t first = 0; first < points_per_item; first += kBlock) {
      const int count = points_per_item - first < kBlock ? points_per_item - first : kBlock;
      const int64_t point = item * points_per_item + first;
      locate_points(count, args.locations + 2 * point, levels, first, n.M * n.D, zeros - value, points);
      forward_tiles<T, 64>(n.D, count, points, args.attention + point, value, args.output + item * n.D);
    }
  }
}

// What the points of one query and head read and write.
template <typename T>
struct BackwardItem {
  int64_t channels;
  const T* attention;    // of the block's points
  const T* grad_output;  // D channels
  const T* value;        // first token of the head
  T* grad_value;         // the same token
  int64_t zeros;         // offset of a row of zeros from `value`
  T* unused;             // (4, D), takes the gradient of corners outside the map
  T (*dots)[4];          // of the block's points: output gradient times value at each corner
};

// Adds the part of channels [d0, d0 + kTile) to grad_value and to the dot products.
template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void backward_tile(
    int count, const Points<T>& points, const BackwardItem<T>& item, int64_t d0) {
  typedef Tile<T, kTile> Tile;
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
      T* grad_corner = (offset == item.zeros ? item.unused + k * item.channels : item.grad_value + offset) + d0;
      const T weight = points.bilinear[k][i] * item.attention[i];
      for (int c = 0; c < Tile::kCount; ++c) {
        const int d = c * Tile::kLanes;
        sum[k] += grad[c] * Tile::load(corner + d);
        Tile::store(grad_corner + d, Tile::load(grad_corner + d) + weight * grad[c]);
      }
    }
    add_lane_sums<T, Tile::kLanes>(sum[0], sum[1], sum[2], sum[3], item.dots[i]);
  }
}

template <typename T, int kTile>
DETRX_TARGET DETRX_INLINE void backward_tiles(
    int count, const Points<T>& points, const BackwardItem<T>& item, int64_t d0) {
  for (; d0 + kTile <= item.channels; d0 += kTile) {
    backward_tile<T, kTile>(count, points, item, d0);
  }
  if constexpr (kTile > 1) {
    backward_tiles<T, kTile / 2>(count, points, item, d0);
  }
}

// All queries of image b, for heads [m0, m1) and levels [l0, l1). `zeros` is a row of D zeros, `unused`
// four of them to write to.
template <typename T>
DETRX_TARGET void backward_part(
    const DeformAttnBackward<T>& args, const LevelTable& levels, const T* zeros, T* unused, int64_t b, int64_t m0,
    int64_t m1, int64_t l0, int64_t l1) {
  const DeformAttnSizes& n = args.sizes;
  Points<T> points;
  T dots[kBlock][4];
  for (int64_t q = 0; q < n.Q; ++q) {
    for (int64_t m = m0; m < m1; ++m) {
      const int64_t item = (b * n.Q + q) * n.M + m;
      const int64_t head = (b * n.S * n.M + m) * n.D;
      const T* value = args.value + head;
      for (int64_t first = l0 * n.P; first < l1 * n.P; first += kBlock) {
        const int count = l1 * n.P - first < kBlock ? l1 * n.P - first : kBlock;
        const int64_t point = item * n.L * n.P + first;
        const T* attention = args.attention + point;
        locate_points(count, args.locations + 2 * point, levels, first, n.M * n.D, zeros - value, points);
        for (int i = 0; i < count; ++i) {
          dots[i][0] = dots[i][1] = dots[i][2] = dots[i][3] = 0;
        }
        const BackwardItem<T> block{
            n.D, attention, args.grad_output + item * n.D, value, args.grad_value + head, zeros - value, unused, dots};
        backward_tiles<T, 64>(count, points, block, 0);
        for (int i = 0; i < count; ++i) {
          const PointGradient<T> gradient = point_gradient(
              dots[i][0], dots[i][1], dots[i][2], dots[i][3], points.dx[i], points.dy[i], attention[i],
              levels.height[first + i], levels.width[first + i]);
          args.grad_locations[2 * (point + i)] = gradient.x;
          args.grad_locations[2 * (point + i) + 1] = gradient.y;
          args.grad_attention[point + i] = gradient.attention;
        }
      }
    }
  }
}
