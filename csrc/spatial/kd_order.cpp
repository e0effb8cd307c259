#include "kd_order.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "../cpu/parallel.h"

namespace noisyflow {
namespace {

constexpr int64_t kMovedDims = 32;  // wider rows stay where they are until the order is known
constexpr int64_t kSample = 256;    // rows, at most, that stand for a range when it is split
constexpr int64_t kSubtrees = 32;   // built side by side
constexpr double kGapShare = 0.1;   // of the largest extent: a gap worth splitting at

// A range that is not yet split, and the buffer that holds it.
struct Pending {
  int32_t node;
  int buffer;
};

// Rows and their indices lie in one of two buffers; a split moves a range into the other one.
template <class T>
class Splitter {
 public:
  Splitter(const T* points, int64_t row_stride, int64_t d, int64_t leaf, int32_t* order0,
           int32_t* order1, T* rows0, T* rows1)
      : points_(points),
        row_stride_(row_stride),
        d_(d),
        width_(d <= kMovedDims ? d : 0),
        leaf_(leaf),
        order_{order0, order1},
        rows_{rows0, rows1} {}

  // Splits the range and what comes of it. Ranges below `stop` rows are left to `unfinished`,
  // if that is not null.
  void grow(std::vector<KdNode>& nodes, Pending root, int64_t stop,
            std::vector<Pending>* unfinished) {
    std::vector<Pending> stack{root};
    while (!stack.empty()) {
      const Pending at = stack.back();
      stack.pop_back();
      const int64_t begin = nodes[size_t(at.node)].begin, end = nodes[size_t(at.node)].end;
      if (end - begin <= leaf_) {
        if (at.buffer == 1) copy(begin, end);
        continue;
      }
      if (unfinished && end - begin < stop) {
        unfinished->push_back(at);
        continue;
      }
      const int64_t middle = split(begin, end, at.buffer);
      const int32_t left = int32_t(nodes.size());
      nodes[size_t(at.node)].left = left;
      nodes[size_t(at.node)].right = left + 1;
      nodes.push_back({begin, middle});
      nodes.push_back({middle, end});
      stack.push_back({left + 1, 1 - at.buffer});
      stack.push_back({left, 1 - at.buffer});
    }
  }

 private:
  T key(int buffer, int64_t i, int64_t axis) const {
    return width_ ? rows_[buffer][i * width_ + axis]
                  : points_[int64_t(order_[buffer][i]) * row_stride_ + axis];
  }

  void move(int from, int64_t i, int64_t to) {
    order_[1 - from][to] = order_[from][i];
    const T* source = rows_[from] + i * width_;
    T* target = rows_[1 - from] + to * width_;
    for (int64_t k = 0; k < width_; ++k) target[k] = source[k];
  }

  void copy(int64_t begin, int64_t end) {
    std::memcpy(order_[0] + begin, order_[1] + begin, size_t(end - begin) * sizeof(int32_t));
    if (width_)
      std::memcpy(rows_[0] + begin * width_, rows_[1] + begin * width_,
                  size_t((end - begin) * width_) * sizeof(T));
  }

  // A place to split at: rows with key < limit on this axis first.
  struct Cut {
    int64_t axis;
    T limit, gap;
  };

  // Moves the range into the other buffer, in two parts; returns where the second begins.
  int64_t split(int64_t begin, int64_t end, int from) {
    const int64_t count = end - begin;
    const bool is_large = count > 64 * leaf_;
    const Widest widest = find_widest(begin, end, from);
    Cut best = cut(begin, end, from, widest.axis);
    if (is_large && d_ <= kMovedDims) {  // worth a look at all axes: clusters should stay whole
      for (int64_t k = 0; k < d_; ++k) {
        if (k == widest.axis) continue;
        const Cut other = cut(begin, end, from, k);
        if (other.gap > best.gap) best = other;
      }
    }
    const bool is_small = sample_.size() < kSample;  // more of its gaps are wide by chance
    if (!(best.gap > T(is_small ? 3 * kGapShare : kGapShare) * widest.extent))
      best = is_large ? cut(begin, end, from, widest.axis, true) : Cut{widest.axis, T(0), T(-1)};
    if (best.gap >= 0) {
      const int64_t middle = partition(begin, end, from, best.axis, best.limit);
      if (std::min(middle - begin, end - middle) >= std::max<int64_t>(1, count / 32)) return middle;
    }
    return halve(begin, end, from, widest.axis);
  }

  // At the widest gap of a sample that is not too far from the middle, or at its median.
  Cut cut(int64_t begin, int64_t end, int from, int64_t axis, bool at_median = false) {
    const int64_t count = end - begin;
    const int64_t size = std::min(count, std::clamp<int64_t>(count / 16, kSample / 8, kSample));
    sample_.resize(size_t(size));
    for (int64_t i = 0; i < size; ++i)
      sample_[size_t(i)] = key(from, begin + i * count / size, axis);
    if (at_median) {
      std::nth_element(sample_.begin(), sample_.begin() + size / 2, sample_.end());
      return {axis, sample_[size_t(size / 2)], T(0)};
    }
    std::sort(sample_.begin(), sample_.end());
    Cut best{axis, T(0), T(-1)};
    for (int64_t i = size / 16 + 1; i < size - size / 16; ++i) {
      const T below = sample_[size_t(i - 1)], above = sample_[size_t(i)];
      if (above - below > best.gap) best = {axis, below + (above - below) / 2, above - below};
    }
    return best;
  }

  // Keys below the limit to the front, all others to the back.
  int64_t partition(int64_t begin, int64_t end, int from, int64_t axis, T limit) {
    int64_t front = begin, back = end;
    for (int64_t i = begin; i < end; ++i) {
      const bool is_front = key(from, i, axis) < limit;
      back -= !is_front;
      move(from, i, is_front ? front : back);
      front += is_front;
    }
    return front;
  }

  // At the multiple of the leaf's size nearest the median.
  int64_t halve(int64_t begin, int64_t end, int from, int64_t axis) {
    const int64_t count = end - begin;
    const int64_t half = (count + leaf_ - 1) / leaf_ / 2 * leaf_;
    keys_.resize(size_t(count));
    for (int64_t i = 0; i < count; ++i) keys_[size_t(i)] = {key(from, begin + i, axis), int32_t(i)};
    std::nth_element(keys_.begin(), keys_.begin() + half, keys_.end());
    for (int64_t i = 0; i < count; ++i) move(from, begin + keys_[size_t(i)].second, begin + i);
    return begin + half;
  }

  struct Widest {
    int64_t axis;
    T extent;
  };

  // By a sample of the range: the choice of axis matters for speed alone.
  Widest find_widest(int64_t begin, int64_t end, int buffer) const {
    const int64_t count = end - begin;
    const int64_t most = d_ > kMovedDims ? kSample / 8 : kSample / 2;
    const int64_t size = std::min(count, std::clamp<int64_t>(count / 16, kSample / 8, most));
    Widest best{0, T(-1)};
    for (int64_t k = 0; k < d_; ++k) {
      T low = key(buffer, begin, k), high = low;
      for (int64_t i = 1; i < size; ++i) {
        const T x = key(buffer, begin + i * count / size, k);
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      if (high - low > best.extent) best = {k, high - low};
    }
    return best;
  }

  const T* points_;
  int64_t row_stride_, d_, width_, leaf_;
  int32_t* order_[2];
  T* rows_[2];
  std::vector<T> sample_;
  std::vector<std::pair<T, int32_t>> keys_;
};

}  // namespace

template <class T>
KdOrder<T>::KdOrder(const T* points, int64_t row_stride, int64_t n, int64_t d, int64_t leaf,
                    int num_threads)
    : order(size_t(n)), rows(size_t(n * d)), nodes{{0, n}} {
  const bool is_moved = d <= kMovedDims;
  std::vector<int32_t> other_order(size_t(n), 0);
  std::vector<T> other_rows(is_moved ? size_t(n * d) : 0);
  std::iota(order.begin(), order.end(), 0);
  if (is_moved)
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(rows.data() + i * d, points + i * row_stride, size_t(d) * sizeof(T));
  const Splitter<T> splitter(points, row_stride, d, leaf, order.data(), other_order.data(),
                             rows.data(), other_rows.data());

  // -- from the root to kSubtrees ranges, then those side by side -------------------------------
  std::vector<Pending> subtrees;
  Splitter<T>(splitter).grow(nodes, {0, 0}, std::max(leaf + 1, n / kSubtrees), &subtrees);
  std::vector<std::vector<KdNode>> grown(subtrees.size());
  parallel_for(int64_t(subtrees.size()), num_threads, [&](int, int64_t s) {
    std::vector<KdNode>& own = grown[size_t(s)];
    own.push_back(nodes[size_t(subtrees[size_t(s)].node)]);
    Splitter<T>(splitter).grow(own, {0, subtrees[size_t(s)].buffer}, 0, nullptr);
  });
  for (size_t s = 0; s < subtrees.size(); ++s) {
    const int32_t shift = int32_t(nodes.size()) - 1;  // its root is in place already
    for (size_t i = 0; i < grown[s].size(); ++i) {
      KdNode node = grown[s][i];
      if (!node.is_leaf()) {
        node.left += shift;
        node.right += shift;
      }
      if (i == 0)
        nodes[size_t(subtrees[s].node)] = node;
      else
        nodes.push_back(node);
    }
  }
  if (!is_moved)
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(rows.data() + i * d, points + int64_t(order[size_t(i)]) * row_stride,
                  size_t(d) * sizeof(T));
}

template <class T>
std::vector<int64_t> KdOrder<T>::leaf_begins() const {
  std::vector<int64_t> begins;
  for (const KdNode& node : nodes)
    if (node.is_leaf()) begins.push_back(node.begin);
  std::sort(begins.begin(), begins.end());
  begins.push_back(nodes[0].end);
  return begins;
}

template struct KdOrder<float>;
template struct KdOrder<double>;

}  // namespace noisyflow
