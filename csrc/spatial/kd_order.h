// Orders points so that neighbours in space are neighbours in memory, as a k-d tree does.
//
// Yields a permutation and ranges, never an answer: what may be skipped, and how much mass that
// can hide, is decided where the sums are (cpu/tree_log_density-inl.h).

#pragma once
#include <cstdint>
#include <vector>

namespace noisyflow {

// A range of rows; a leaf has no children.
struct KdNode {
  int64_t begin, end;
  int32_t left = -1, right = -1;

  bool is_leaf() const { return left < 0; }
};

// (n, d) points split along their widest dimension, at a gap where there is one, else near the
// median, until at most `leaf` are left; then in multiples of `leaf`, so that leaves are full.
template <class T>
struct KdOrder {
  std::vector<int32_t> order;  // (n,): the original row of every row here
  std::vector<T> rows;         // (n, d)
  std::vector<KdNode> nodes;   // node 0 is the root; children come after their parents

  // The number of threads changes nothing but the time.
  KdOrder(const T* points, int64_t row_stride, int64_t n, int64_t d, int64_t leaf, int num_threads);

  // The first rows of the leaves, in order, and n.
  std::vector<int64_t> leaf_begins() const;
};

}  // namespace noisyflow
