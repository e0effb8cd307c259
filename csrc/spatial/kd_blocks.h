// Orders points into blocks that lie close together, each with its bounding box.
//
// Yields a permutation and boxes, never an answer: whether a block may be skipped, and how much
// mass that can hide, is decided where the sums are (log_density-inl.h).

#pragma once
#include <cstdint>
#include <vector>

namespace noisyflow {

// Rows of (n, d) points in the order of a k-d tree, cut into blocks of at most `block` rows.
// Boxes are kept by dimension, low[k * stride + b], for blocks b; padding boxes are at infinity.
template <class T>
struct KdBlocks {
  int64_t n, d, num_blocks, stride;
  std::vector<int64_t> order;   // (n,): the original row of every row here
  std::vector<T> rows;          // (n, d): in that order
  std::vector<int64_t> begins;  // (num_blocks + 1,)
  std::vector<T> low, high;     // (d, stride)

  KdBlocks(const T* points, int64_t row_stride, int64_t n, int64_t d, int64_t block, int64_t pad);
};

}  // namespace noisyflow
