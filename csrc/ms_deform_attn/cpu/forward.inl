// The output of the queries of a tile, for one instruction set; see foreach_isa.inl.
//
// T is the type of the tensors, C = Compute<T> that of the arithmetic. The D channels of a head are processed in tiles
// of 64, 32, 16, 8, 4, 2 or 1, so any D is a short sum of them and the usual ones are a single tile, held in registers.

#include "../../cpu/vectors.inl"
#include "points.inl"

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
