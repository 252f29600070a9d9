// Vectors of one instruction set: loads that widen, shuffles, and sums over lanes. Part of a file that foreach_isa.inl
// includes; what it may not call is said there.

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
