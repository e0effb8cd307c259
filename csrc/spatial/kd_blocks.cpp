#include "kd_blocks.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace noisyflow {
namespace {

// Splits order[begin, end) at the multiple of `block` nearest its middle, along the widest
// dimension, until a range fits into a block. All blocks but the last are full.
template <class T>
struct Builder {
  const T* points;
  int64_t row_stride, d, block;
  int64_t* order;
  std::vector<int64_t>& begins;

  void split(int64_t begin, int64_t end) {
    if (end - begin <= block) {
      begins.push_back(begin);
      return;
    }
    const int64_t blocks = (end - begin + block - 1) / block;
    const int64_t middle = begin + blocks / 2 * block;
    const int64_t axis = widest(begin, end);
    std::nth_element(order + begin, order + middle, order + end, [&](int64_t a, int64_t b) {
      return points[a * row_stride + axis] < points[b * row_stride + axis];
    });
    split(begin, middle);
    split(middle, end);
  }

  // By a sample of the range: the choice of axis matters for speed alone.
  int64_t widest(int64_t begin, int64_t end) const {
    const int64_t step = std::max<int64_t>(1, (end - begin) / 256);
    int64_t best = 0;
    T best_width = -1;
    for (int64_t k = 0; k < d; ++k) {
      T low = std::numeric_limits<T>::infinity(), high = -low;
      for (int64_t i = begin; i < end; i += step) {
        const T x = points[order[i] * row_stride + k];
        low = std::min(low, x);
        high = std::max(high, x);
      }
      if (high - low > best_width) {
        best_width = high - low;
        best = k;
      }
    }
    return best;
  }
};

}  // namespace

template <class T>
KdBlocks<T>::KdBlocks(const T* points, int64_t row_stride, int64_t n, int64_t d, int64_t block,
                      int64_t pad)
    : n(n), d(d), order(size_t(n)), rows(size_t(n * d)) {
  std::iota(order.begin(), order.end(), int64_t(0));
  Builder<T>{points, row_stride, d, block, order.data(), begins}.split(0, n);
  num_blocks = int64_t(begins.size());
  begins.push_back(n);
  stride = (num_blocks + pad - 1) / pad * pad;
  const T infinity = std::numeric_limits<T>::infinity();
  low.assign(size_t(d * stride), infinity);
  high.assign(size_t(d * stride), infinity);
  for (int64_t b = 0; b < num_blocks; ++b)
    for (int64_t i = begins[size_t(b)]; i < begins[size_t(b + 1)]; ++i)
      for (int64_t k = 0; k < d; ++k) {
        const T x = points[order[size_t(i)] * row_stride + k];
        rows[size_t(i * d + k)] = x;
        T& lower = low[size_t(k * stride + b)];
        T& upper = high[size_t(k * stride + b)];
        if (i == begins[size_t(b)]) upper = x;
        lower = std::min(lower, x);
        upper = std::max(upper, x);
      }
}

template struct KdBlocks<float>;
template struct KdBlocks<double>;

}  // namespace noisyflow
