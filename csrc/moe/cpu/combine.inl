// Row kernels of moe_combine for one instruction set. combine.cpp includes this file once per set, in a namespace of
// its own, with
//   DETRX_TARGET  the function attribute that selects the instruction set
//   kVectorBytes  its vector width
// Nothing here may call inline functions of other headers, except always_inline ones: the linker could keep a copy
// that was compiled for the wrong processor.

template <typename T>
struct Lanes {
  static constexpr int kCount = kVectorBytes / int(sizeof(T));
  typedef T Vector __attribute__((vector_size(kVectorBytes)));

  DETRX_TARGET DETRX_INLINE static Vector load(const T* source) {
    Vector vector;
    __builtin_memcpy(&vector, source, sizeof(vector));
    return vector;
  }
  DETRX_TARGET DETRX_INLINE static void store(T* target, Vector vector) {
    __builtin_memcpy(target, &vector, sizeof(vector));
  }
};

// The output of tokens [begin, end).
template <typename T>
DETRX_TARGET void combine_range(const MoeCombine<T>& args, int64_t begin, int64_t end) {
  typedef Lanes<T> Lanes;
  const T* row[kMaxTopK];
  T weight[kMaxTopK];
  const int k = args.places.k;
  for (int64_t t = begin; t < end; ++t) {
    for (int j = 0; j < k; ++j) {
      row[j] = args.y + args.places.place[t * k + j] * args.channels;
      weight[j] = args.weights ? args.weights[t * k + j] : T(1);
    }
    T* output = args.output + t * args.channels;
    int64_t c = 0;
    for (; c + Lanes::kCount <= args.channels; c += Lanes::kCount) {
      typename Lanes::Vector sum = weight[0] * Lanes::load(row[0] + c);
      for (int j = 1; j < k; ++j) {
        sum += weight[j] * Lanes::load(row[j] + c);
      }
      Lanes::store(output + c, sum);
    }
    for (; c < args.channels; ++c) {
      T sum = weight[0] * row[0][c];
      for (int j = 1; j < k; ++j) {
        sum += weight[j] * row[j][c];
      }
      output[c] = sum;
    }
  }
}

// The gradients of the rows of tokens [begin, end), and of their weights.
template <typename T>
DETRX_TARGET void combine_backward_range(const MoeCombineBackward<T>& args, int64_t begin, int64_t end) {
  typedef Lanes<T> Lanes;
  const int k = args.places.k;
  for (int64_t assignment = begin * k; assignment < end * k; ++assignment) {
    const T weight = args.weights[assignment];
    const T* grad = args.grad_output + assignment / k * args.channels;
    const T* y = args.y + args.places.place[assignment] * args.channels;
    T* grad_y = args.grad_y + args.places.place[assignment] * args.channels;
    typename Lanes::Vector sums = {};
    int64_t c = 0;
    for (; c + Lanes::kCount <= args.channels; c += Lanes::kCount) {
      const typename Lanes::Vector g = Lanes::load(grad + c);
      sums += g * Lanes::load(y + c);
      Lanes::store(grad_y + c, weight * g);
    }
    T dot = 0;
    for (int lane = 0; lane < Lanes::kCount; ++lane) {
      dot += sums[lane];
    }
    for (; c < args.channels; ++c) {
      dot += grad[c] * y[c];
      grad_y[c] = weight * grad[c];
    }
    args.grad_weights[assignment] = dot;
  }
}
