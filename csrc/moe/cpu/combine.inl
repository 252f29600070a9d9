// Row kernels of moe_combine for one instruction set; see foreach_isa.inl.

#include "../../cpu/vectors.inl"

// The output of tokens [begin, end).
template <typename T>
DETRX_TARGET void combine_range(const MoeCombine<T>& args, int64_t begin, int64_t end) {
  typedef Tile<T, kVectorBytes / int(sizeof(T))> Tile;  // one vector
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
    for (; c + Tile::kLanes <= args.channels; c += Tile::kLanes) {
      typename Tile::Vector sum = weight[0] * Tile::load(row[0] + c);
      for (int j = 1; j < k; ++j) {
        sum += weight[j] * Tile::load(row[j] + c);
      }
      Tile::store(output + c, sum);
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
  typedef Tile<T, kVectorBytes / int(sizeof(T))> Tile;  // one vector
  const int k = args.places.k;
  for (int64_t assignment = begin * k; assignment < end * k; ++assignment) {
    const T weight = args.weights[assignment];
    const T* grad = args.grad_output + assignment / k * args.channels;
    const T* y = args.y + args.places.place[assignment] * args.channels;
    T* grad_y = args.grad_y + args.places.place[assignment] * args.channels;
    typename Tile::Vector sums = {};
    int64_t c = 0;
    for (; c + Tile::kLanes <= args.channels; c += Tile::kLanes) {
      const typename Tile::Vector g = Tile::load(grad + c);
      sums += g * Tile::load(y + c);
      Tile::store(grad_y + c, weight * g);
    }
    T dot = 0;
    for (int lane = 0; lane < Tile::kLanes; ++lane) {
      dot += sums[lane];
    }
    for (; c < args.channels; ++c) {
      dot += grad[c] * y[c];
      grad_y[c] = weight * grad[c];
    }
    args.grad_weights[assignment] = dot;
  }
}
