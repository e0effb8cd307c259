// A tree over the centers of a mixture: boxes to skip by, and polynomials that stand for cells.
//
// Decides nothing that could change an answer by more than the caller allows: boxes contain their
// centers and a polynomial's error bound is kept with it; who uses them checks.

#pragma once
#include <cstdint>
#include <vector>

#include "../core/views.h"
#include "../cpu/dispatch.h"
#include "kd_order.h"

namespace noisyflow {

struct TreeOptions {
  bool has_cells;        // merge leaves into cells with polynomials where that is less work
  double max_lost_mass;  // what the polynomials should reach
};

template <class T>
class CenterTree {
 public:
  // mixture.weight_shift is in the order of mixture.centers.
  CenterTree(const MixtureView<T>& mixture, const TreeOptions& options, const KernelTable& kernels,
             int num_threads);

  TreeView<T> view() const;
  int64_t num_cells() const;  // leaves that a polynomial can stand for
  int64_t num_bytes() const;

 private:
  void set_leaf_box(const KdNode& node, T* box) const;
  std::vector<int32_t> by_distance(const T* rows, int64_t count, const T* centroid,
                                   int64_t last) const;
  void reorder(int64_t begin, const std::vector<int32_t>& by);
  void add_cells(KdOrder<T>& kd, const MixtureView<T>& mixture, const TreeOptions& options,
                 const KernelTable& kernels, int num_threads);
  void collect(const KdOrder<T>& kd);
  void add_columns();

  int64_t n_, d_, depth_ = 0;
  std::vector<int32_t> order_;
  std::vector<T> rows_, shifts_;
  std::vector<char> is_leaf_;  // per k-d node: a leaf of this tree
  std::vector<int64_t> begins_;
  std::vector<T> kd_boxes_;  // (k-d nodes, 2, d)
  std::vector<T> leaf_boxes_, node_boxes_;
  std::vector<int32_t> children_;
  std::vector<T> columns_;
  std::vector<int64_t> column_begins_;
  std::vector<Cell> cells_;
  std::vector<T> centroids_, polynomials_;
};

}  // namespace noisyflow
