// The order in which an image's queries are processed, and how many of them are worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../inputs.h"

namespace detrx::cpu {

// Queries first + y * stride + x of an image, for x < width and y < height.
struct QueryTile {
  int64_t first, width, height, stride;
};

// Queries that are worth a thread.
inline int64_t grain(const DeformAttnSizes& n) {
  return 32768 / std::max<int64_t>(n.M * n.L * n.P * n.D, 1) + 1;
}

// Where there are as many queries as tokens, each likely samples around its own place: those of a square share more of
// what they read, while it is in the cache, than those of a row.
inline std::vector<QueryTile> query_tiles(const DeformAttnSizes& n, const int64_t* spatial_shapes) {
  std::vector<QueryTile> tiles;
  if (n.Q != n.S) {
    const int64_t chunk = grain(n);
    for (int64_t first = 0; first < n.Q; first += chunk) {
      tiles.push_back({first, std::min(chunk, n.Q - first), 1, 0});
    }
    return tiles;
  }
  constexpr int64_t side = 8;
  int64_t start = 0;
  for (int64_t l = 0; l < n.L; ++l) {
    const int64_t height = spatial_shapes[2 * l], width = spatial_shapes[2 * l + 1];
    for (int64_t y = 0; y < height; y += side) {
      for (int64_t x = 0; x < width; x += side) {
        tiles.push_back({start + y * width + x, std::min(side, width - x), std::min(side, height - y), width});
      }
    }
    start += height * width;
  }
  return tiles;
}

}  // namespace detrx::cpu
