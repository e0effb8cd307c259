#include "center_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "../cpu/parallel.h"
#include "polynomials.h"

namespace noisyflow {
namespace {

// Centers in a leaf, at most: whole vectors by dimension, whole tiles of 3 and 6 by row.
constexpr int64_t kLeaf = 48;
// In noise_std: beyond, polynomials are too long to pay, and in float their terms cancel.
constexpr double kLargestRadius = 2, kLargestMeanSquare = 0.3;
// The sum at the last of a block of points is smaller than is typical by about this, in bits.
constexpr double kTailBits = 6;

// The smallest order whose truncation error is below 2^-bits, or the largest there is, if that is
// good for most points; 0 if it is not.
int order_for(const Cell& cell, double bits, int64_t d) {
  int p = 2;
  while (double(cell.bits[p / 2 - 1]) < bits && p + 2 <= kMaxOrder &&
         num_coefficients(d, p + 2) < kMaxCoefficients)
    p += 2;
  return double(cell.bits[p / 2 - 1]) < bits - kTailBits / 2 ? 0 : p;
}

// Instructions for a vector of points: a center, a box, and a polynomial with its Gaussian.
double center_cost(int64_t d) { return 2.0 * double(d) + 9; }
double box_cost(int64_t d) { return 5.0 * double(d) + 10; }
// Summing the moments costs about as much as reading the polynomial.
double cell_cost(int64_t d, int order) {
  return polynomial_work(d, order) + double(num_coefficients(d, order)) + 3.0 * double(d) + 60;
}

// How small an error has to be, in bits below one center's peak, for a point drawn from the
// mixture: max_lost_mass times the mean kernel, by a sample of pairs.
template <class T>
double typical_bits(const std::vector<T>& rows, int64_t n, int64_t d, double noise_std,
                    double max_lost_mass) {
  const int64_t points = std::min<int64_t>(n, 32), others = std::min<int64_t>(n, 2048);
  const double factor = 1 / (4 * noise_std * noise_std);  // the point has noise of its own
  std::vector<double> bits;
  for (int64_t i = 0; i < points; ++i) {
    const T* x = rows.data() + (i * n / points) * d;
    double sum = 0;
    for (int64_t j = 0; j < others; ++j) {
      const T* y = rows.data() + (j * n / others) * d;
      double square = 0;
      for (int64_t k = 0; k < d; ++k) square += (double(x[k]) - y[k]) * (double(x[k]) - y[k]);
      sum += std::exp(-square * factor);
    }
    const double mean = std::max(sum / double(others), 1 / double(n)) * std::exp2(-0.5 * double(d));
    bits.push_back(-std::log2(max_lost_mass * mean));
  }
  std::sort(bits.begin(), bits.end());
  return bits[bits.size() * 3 / 4];
}

}  // namespace

template <class T>
CenterTree<T>::CenterTree(const MixtureView<T>& mixture, const TreeOptions& options,
                          const KernelTable& kernels, int num_threads)
    : n_(mixture.n), d_(mixture.d) {
  KdOrder<T> kd(mixture.centers, mixture.stride, n_, d_, kLeaf, num_threads);
  order_.swap(kd.order);
  rows_.swap(kd.rows);
  if (mixture.weight_shift) {
    shifts_.resize(size_t(n_));
    for (int64_t i = 0; i < n_; ++i) shifts_[size_t(i)] = mixture.weight_shift[order_[size_t(i)]];
  }

  kd_boxes_.resize(kd.nodes.size() * size_t(2 * d_));
  for (size_t a = kd.nodes.size(); a-- > 0;) {  // children before parents
    const KdNode& node = kd.nodes[a];
    T* box = kd_boxes_.data() + int64_t(a) * 2 * d_;
    if (node.is_leaf()) {
      set_leaf_box(node, box);
      continue;
    }
    const T* left = kd_boxes_.data() + int64_t(node.left) * 2 * d_;
    const T* right = kd_boxes_.data() + int64_t(node.right) * 2 * d_;
    for (int64_t k = 0; k < d_; ++k) {
      box[k] = std::min(left[k], right[k]);
      box[d_ + k] = std::max(left[d_ + k], right[d_ + k]);
    }
  }

  is_leaf_.resize(kd.nodes.size());
  for (size_t a = 0; a < kd.nodes.size(); ++a) is_leaf_[a] = kd.nodes[a].is_leaf();
  if (options.has_cells) add_cells(kd, mixture, options, kernels, num_threads);
  collect(kd);
  add_columns();
}

template <class T>
void CenterTree<T>::set_leaf_box(const KdNode& node, T* box) const {
  const T* row = rows_.data() + node.begin * d_;
  std::copy_n(row, d_, box);
  std::copy_n(row, d_, box + d_);
  for (int64_t i = node.begin + 1; i < node.end; ++i) {
    row += d_;
    for (int64_t k = 0; k < d_; ++k) {
      box[k] = row[k] < box[k] ? row[k] : box[k];
      box[d_ + k] = row[k] > box[d_ + k] ? row[k] : box[d_ + k];
    }
  }
}

// Rows of a range, the `last` farthest from the centroid behind the others.
template <class T>
std::vector<int32_t> CenterTree<T>::by_distance(const T* rows, int64_t count, const T* centroid,
                                                int64_t last) const {
  std::vector<std::pair<double, int32_t>> keys(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    double square = 0;
    for (int64_t k = 0; k < d_; ++k) {
      const double u = double(rows[i * d_ + k]) - double(centroid[k]);
      square += u * u;
    }
    keys[size_t(i)] = {square, int32_t(i)};
  }
  std::nth_element(keys.begin(), keys.begin() + (count - last), keys.end());
  std::vector<int32_t> order;
  for (const auto& key : keys) order.push_back(key.second);
  return order;
}

// Puts rows begin + by[0], begin + by[1], .. at begin, begin + 1, ..
template <class T>
void CenterTree<T>::reorder(int64_t begin, const std::vector<int32_t>& by) {
  const size_t count = by.size();
  std::vector<T> rows(count * size_t(d_)), shifts;
  std::vector<int32_t> order;
  for (size_t i = 0; i < count; ++i) {
    const int64_t from = begin + by[i];
    std::copy_n(rows_.data() + from * d_, d_, rows.data() + int64_t(i) * d_);
    order.push_back(order_[size_t(from)]);
    if (!shifts_.empty()) shifts.push_back(shifts_[size_t(from)]);
  }
  std::copy(rows.begin(), rows.end(), rows_.begin() + begin * d_);
  std::copy(order.begin(), order.end(), order_.begin() + begin);
  std::copy(shifts.begin(), shifts.end(), shifts_.begin() + (shifts_.empty() ? 0 : begin));
}

// Which nodes become cells: bottom-up, a node does where its polynomial is less work than its
// children.
template <class T>
void CenterTree<T>::add_cells(KdOrder<T>& kd, const MixtureView<T>& mixture,
                              const TreeOptions& options, const KernelTable& kernels,
                              int num_threads) {
  const KernelChoice<T> kernel = choose_kernel<T>(kernels, d_);
  const size_t num_nodes = kd.nodes.size();
  const double noise_std = mixture.noise_std;
  const double bits = typical_bits(rows_, n_, d_, noise_std, options.max_lost_mass) + kTailBits;
  const double per_center = center_cost(d_), per_box = box_cost(d_);
  std::vector<Cell> cells(num_nodes, Cell{INFINITY, INFINITY, 0, 0, {}, {}, 0, 0, 0});
  std::vector<T> centroids(num_nodes * size_t(d_));
  std::vector<int64_t> num_strays(num_nodes);
  auto choose_order = [&](Cell& cell) {
    cell.max_order = cell.radius <= kLargestRadius && cell.mean_square <= kLargestMeanSquare
                         ? order_for(cell, bits, d_)
                         : 0;
  };

  // -- the cell of every node that is small enough, without a few strays if need be --------------
  parallel_for(int64_t(num_nodes), num_threads, [&](int, int64_t a) {
    const KdNode& node = kd.nodes[size_t(a)];
    const int64_t count = node.end - node.begin;
    Cell& cell = cells[size_t(a)];
    const T* low = kd_boxes_.data() + a * 2 * d_;
    double diagonal = 0;
    for (int64_t k = 0; k < d_; ++k)
      diagonal += (double(low[d_ + k]) - low[k]) * (double(low[d_ + k]) - low[k]);
    if (std::sqrt(diagonal) > 3 * std::sqrt(double(d_)) * kLargestRadius * noise_std) return;
    if (double(count) * per_center < 1.5 * cell_cost(d_, 2)) return;
    T* centroid = centroids.data() + a * d_;
    const T* rows = rows_.data() + node.begin * d_;
    const T* shifts = shifts_.empty() ? nullptr : shifts_.data() + node.begin;
    kernel.cell_shape(rows, count, d_, noise_std, shifts, centroid, &cell);
    if (!(cell.weight > 0)) return;
    choose_order(cell);
    if (cell.max_order > 0 || cell.mean_square > 3 * kLargestMeanSquare) return;
    if (double(count) * per_center < 4 * cell_cost(d_, 4)) return;
    std::vector<T> some_rows(size_t(count * d_)), some_shifts(shifts ? size_t(count) : 0);
    for (int64_t strays : {count / 256, count / 32}) {
      if (strays == 0) continue;
      const std::vector<int32_t> order = by_distance(rows, count, centroid, strays);
      for (int64_t i = 0; i < count - strays; ++i) {
        std::copy_n(rows + order[size_t(i)] * d_, d_, some_rows.data() + i * d_);
        if (shifts) some_shifts[size_t(i)] = shifts[order[size_t(i)]];
      }
      Cell core = cell;
      std::vector<T> core_centroid(static_cast<size_t>(d_));
      kernel.cell_shape(some_rows.data(), count - strays, d_, noise_std,
                        shifts ? some_shifts.data() : nullptr, core_centroid.data(), &core);
      if (core.weight > 0) choose_order(core);
      if (core.weight > 0 && core.max_order > 0) {
        cell = core;
        num_strays[size_t(a)] = strays;
        return;  // the centroid stays that of all: strays are found again by it
      }
    }
  });

  // -- the cheapest cut -------------------------------------------------------------------------
  std::vector<double> cost(num_nodes);
  for (size_t a = num_nodes; a-- > 0;) {
    const KdNode node = kd.nodes[a];
    cost[a] = per_box + (node.is_leaf() ? double(node.end - node.begin) * per_center
                                        : cost[size_t(node.left)] + cost[size_t(node.right)]);
    if (cells[a].max_order == 0) continue;
    const int64_t strays = num_strays[a];
    const double own = (strays ? 3 : 1) * per_box + cell_cost(d_, cells[a].max_order) +
                       double(strays) * per_center;
    if (own >= cost[a]) {
      cells[a].max_order = 0;
      continue;
    }
    cost[a] = own;
    is_leaf_[a] = strays == 0;
    if (strays == 0) continue;
    // Two new leaves: the cell, and its strays behind it.
    const T* centroid = centroids.data() + int64_t(a) * d_;
    reorder(node.begin,
            by_distance(rows_.data() + node.begin * d_, node.end - node.begin, centroid, strays));
    kd.nodes[a].left = int32_t(kd.nodes.size());
    kd.nodes[a].right = kd.nodes[a].left + 1;
    const int64_t middle = node.end - strays;
    Cell core = cells[a];
    cells[a].max_order = 0;
    for (const auto& [begin, end] : {std::pair(node.begin, middle), std::pair(middle, node.end)}) {
      kd.nodes.push_back({begin, end});
      is_leaf_.push_back(true);
      kd_boxes_.resize(kd_boxes_.size() + size_t(2 * d_));
      set_leaf_box(kd.nodes.back(), kd_boxes_.data() + kd_boxes_.size() - 2 * d_);
      centroids.resize(centroids.size() + size_t(d_));
      cells.push_back({INFINITY, INFINITY, 0, 0, {}, {}, 0, 0, 0});
    }
    const size_t first = kd.nodes.size() - 2;
    kernel.cell_shape(rows_.data() + node.begin * d_, middle - node.begin, d_, noise_std,
                      shifts_.empty() ? nullptr : shifts_.data() + node.begin,
                      centroids.data() + first * size_t(d_), &core);
    choose_order(core);
    cells[first] = core;
  }

  // -- polynomials of the cells that were chosen ------------------------------------------------
  std::vector<int64_t> chosen;
  std::vector<int64_t> stack{0};
  int64_t total = 0;
  int highest = 0;
  while (!stack.empty()) {
    const int64_t a = stack.back();
    stack.pop_back();
    const KdNode& node = kd.nodes[size_t(a)];
    if (!is_leaf_[size_t(a)]) {
      stack.push_back(node.right);
      stack.push_back(node.left);
      continue;
    }
    Cell& cell = cells[size_t(a)];
    if (cell.max_order == 0) continue;
    // Two more for points where the sum is smaller than is typical.
    if (cell.max_order + 2 <= kMaxOrder &&
        num_coefficients(d_, cell.max_order + 2) < kMaxCoefficients)
      cell.max_order += 2;
    cell.graded_below = graded_below(d_);
    for (int p = 2; p <= kMaxOrder; p += 2) cell.work[p / 2 - 1] = float(polynomial_work(d_, p));
    cell.polynomials = total;
    total += num_ladder_coefficients(d_, cell.max_order);
    highest = std::max(highest, cell.max_order);
    chosen.push_back(a);
  }
  if (chosen.empty()) return;
  polynomials_.resize(size_t(total));
  std::vector<std::unique_ptr<HermiteToMonomials>> transforms(size_t(highest / 2));
  for (int64_t a : chosen) {
    const int order = cells[size_t(a)].max_order;
    std::unique_ptr<HermiteToMonomials>& transform = transforms[size_t(order / 2 - 1)];
    if (!transform) transform = std::make_unique<HermiteToMonomials>(d_, order);
  }
  parallel_for(int64_t(chosen.size()), num_threads, [&](int, int64_t c) {
    const int64_t a = chosen[size_t(c)];
    const KdNode& node = kd.nodes[size_t(a)];
    const Cell& cell = cells[size_t(a)];
    const size_t size = size_t(num_coefficients(d_, cell.max_order));
    std::vector<double> moments(size), scratch(8 * size + 8);
    const auto address = reinterpret_cast<uintptr_t>(scratch.data());
    void* const aligned = reinterpret_cast<void*>((address + 63) / 64 * 64);
    kernel.cell_moments(rows_.data() + node.begin * d_, node.end - node.begin, d_, noise_std,
                        shifts_.empty() ? nullptr : shifts_.data() + node.begin,
                        centroids.data() + a * d_, cell.max_order, moments.data(), aligned);
    transforms[size_t(cell.max_order / 2 - 1)]->write_ladder(
        moments.data(), polynomials_.data() + cell.polynomials);
  });
  cells_.swap(cells);
  centroids_.swap(centroids);
}

// Leaves in their order, and nodes with kFanout children: of a node's children, the largest inner
// one is replaced by its own two until there are kFanout.
template <class T>
void CenterTree<T>::collect(const KdOrder<T>& kd) {
  std::vector<int32_t> leaf_of(kd.nodes.size(), -1), leaf_nodes;
  std::vector<int64_t> stack{0};
  while (!stack.empty()) {
    const int64_t a = stack.back();
    stack.pop_back();
    if (is_leaf_[size_t(a)]) {
      leaf_of[size_t(a)] = int32_t(leaf_nodes.size());
      leaf_nodes.push_back(int32_t(a));
      begins_.push_back(kd.nodes[size_t(a)].begin);
    } else {
      stack.push_back(kd.nodes[size_t(a)].right);
      stack.push_back(kd.nodes[size_t(a)].left);
    }
  }
  begins_.push_back(n_);
  for (int32_t a : leaf_nodes)
    leaf_boxes_.insert(leaf_boxes_.end(), kd_boxes_.begin() + int64_t(a) * 2 * d_,
                       kd_boxes_.begin() + (int64_t(a) + 1) * 2 * d_);
  if (!cells_.empty()) {
    std::vector<Cell> cells;
    std::vector<T> centroids;
    for (int32_t a : leaf_nodes) {
      cells.push_back(cells_[size_t(a)]);
      centroids.insert(centroids.end(), centroids_.begin() + int64_t(a) * d_,
                       centroids_.begin() + (int64_t(a) + 1) * d_);
    }
    cells_.swap(cells);
    centroids_.swap(centroids);
  }

  struct Wide {
    int32_t kd_node;
    int64_t depth;
  };
  std::vector<Wide> wide{{0, 1}};
  for (size_t w = 0; w < wide.size(); ++w) {
    depth_ = std::max(depth_, wide[w].depth);
    int32_t child[kFanout];
    int count = 0;
    child[count++] = wide[w].kd_node;
    for (;;) {
      int largest = -1;
      for (int c = 0; c < count; ++c) {
        if (is_leaf_[size_t(child[c])]) continue;
        auto size = [&](int i) {
          const KdNode& node = kd.nodes[size_t(child[i])];
          return node.end - node.begin;
        };
        if (largest < 0 || size(c) > size(largest)) largest = c;
      }
      if (largest < 0 || count == kFanout) break;
      const KdNode& node = kd.nodes[size_t(child[largest])];
      child[largest] = node.left;
      child[count++] = node.right;
    }
    for (int c = 0; c < kFanout; ++c) {
      if (c >= count) {
        children_.push_back(kNoChild);
      } else if (is_leaf_[size_t(child[c])]) {
        children_.push_back(~leaf_of[size_t(child[c])]);
      } else {
        children_.push_back(int32_t(wide.size()));
        wide.push_back({child[c], wide[w].depth + 1});
      }
    }
    const size_t at = node_boxes_.size();
    node_boxes_.resize(at + size_t(2 * d_ * kFanout), std::numeric_limits<T>::infinity());
    for (int c = 0; c < count; ++c)
      for (int64_t k = 0; k < 2 * d_; ++k)
        node_boxes_[at + size_t(k * kFanout + c)] =
            kd_boxes_[size_t(int64_t(child[c]) * 2 * d_ + k)];
  }
  // What only building needs.
  std::vector<T>().swap(kd_boxes_);
  std::vector<char>().swap(is_leaf_);
}

template <class T>
void CenterTree<T>::add_columns() {
  int64_t vectors = 0;
  for (size_t leaf = 0; leaf + 1 < begins_.size(); ++leaf) {
    column_begins_.push_back(vectors);
    vectors += (begins_[leaf + 1] - begins_[leaf] + kFanout - 1) / kFanout;
  }
  columns_.resize(size_t(vectors * kFanout * d_));
  for (size_t leaf = 0; leaf + 1 < begins_.size(); ++leaf) {
    const int64_t count = begins_[leaf + 1] - begins_[leaf];
    for (int64_t i = 0; i < (count + kFanout - 1) / kFanout * kFanout; ++i) {
      // Padding repeats the last center; who reads it knows the count.
      const T* row = rows_.data() + (begins_[leaf] + std::min(i, count - 1)) * d_;
      T* column = columns_.data() + (column_begins_[leaf] + i / kFanout) * kFanout * d_;
      for (int64_t k = 0; k < d_; ++k) column[k * kFanout + i % kFanout] = row[k];
    }
  }
}

template <class T>
int64_t CenterTree<T>::num_cells() const {
  return std::count_if(cells_.begin(), cells_.end(),
                       [](const Cell& cell) { return cell.max_order > 0; });
}

template <class T>
int64_t CenterTree<T>::num_bytes() const {
  return int64_t((rows_.size() + shifts_.size() + leaf_boxes_.size() + node_boxes_.size() +
                  columns_.size() + centroids_.size() + polynomials_.size()) *
                     sizeof(T) +
                 (order_.size() + children_.size()) * sizeof(int32_t) +
                 (begins_.size() + column_begins_.size()) * sizeof(int64_t) +
                 cells_.size() * sizeof(Cell));
}

template <class T>
TreeView<T> CenterTree<T>::view() const {
  return {n_,
          d_,
          int64_t(begins_.size()) - 1,
          depth_,
          rows_.data(),
          order_.data(),
          begins_.data(),
          leaf_boxes_.data(),
          node_boxes_.data(),
          children_.data(),
          columns_.empty() ? nullptr : columns_.data(),
          column_begins_.data(),
          polynomials_.empty() ? nullptr : cells_.data(),
          centroids_.data(),
          polynomials_.data(),
          shifts_.empty() ? nullptr : shifts_.data()};
}

template class CenterTree<float>;
template class CenterTree<double>;

}  // namespace noisyflow
