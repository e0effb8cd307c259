// The posterior of a point's center, for mixtures with one noise_std: its mass, mean and
// covariance.
//
// One vector holds one coordinate of kLanes points; centers are broadcast. Blocks of centers that
// matter to some point are collected in a buffer as differences e = p - y from a pivot p. Then come
// their terms w = r^2, and each row (1, e) is multiplied by r: the sum of its outer products holds
// the mass, the first and the second moments in one symmetric matrix, d + 1 wide. Blocks of centers
// whose terms are all below 2^-kLeastBits of what was met are not collected.
//
// Precision policy. The pivot is the point itself where centers are near: then differences are
// exact and second moments, about a variance each, cancel little. A point farther than
// kFarVariances from all centers met has the nearest of them as pivot: the covariance is then a
// difference of numbers as large as itself, and squared distances are formed relative to the
// pivot's, e.(e + 2 (x - p)), so that weights are right where a distance is not. Terms are summed
// in T over kFolded centers, and in double beyond. Rules of target files: log_density-inl.h.

#pragma once
#include <math.h>

#include "../core/exp2_poly.h"
#include "../core/views.h"
#include "dispatch.h"
#include "log_density-inl.h"
#include "simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

constexpr int kBlock = 8;  // centers whose distances are found, and which are skipped, together
constexpr int kNearerBits = 10;        // a term so far above the offset moves offset and pivot
constexpr double kFarVariances = 128;  // float: what it leaves is 1e-5 noise_std^2
constexpr int64_t kFolded = 512;       // centers; float sums of more terms would lose digits
// Beside the sums, in L1: at d = 32, which has 36 KB of these, one block is 14 % faster than two
// and 40 % faster than four; at d = 10, four are 10 % faster than one.
constexpr int64_t kBufferBytes = 24576;
constexpr int64_t kMaxBlocks = 8;

// Less than rounding, for a million such terms, times squared distances that grow as their bits.
template <class T>
constexpr int kLeastBits = sizeof(T) == 4 ? 50 : 80;

// Rows and columns of the matrix whose sums are in registers at once.
constexpr int kRegisterRows = kExp2Overflows ? 4 : 3;

// Blocks of centers in the buffer.
template <class T>
int64_t buffer_blocks(int64_t d) {
  const int64_t blocks = kBufferBytes / (kBlock * (d + 1) * kVectorBytes);
  return blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks;
}

constexpr int64_t triangle_size(int64_t rows) { return rows * (rows + 1) / 2; }

// Where a block's centers are.
template <class T>
struct CenterBlock {
  const T* rows;
  int64_t stride;
  const T* shift;  // null: none
};

// -- sums of outer products ---------------------------------------------------------------------

// sums[i, k] += sum over centers of row i times row k, for i in [i0, i0 + R), k in [k0, k0 + C),
// or with IsTriangle k <= i. rows: per block of centers, d + 1 rows of kBlock vectors.
template <class T, int R, int C, bool IsTriangle>
inline __attribute__((always_inline)) void add_outer(const T* rows, int64_t num_blocks, int64_t d,
                                                     int64_t i0, int64_t k0, T* sums) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[R * C];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < (IsTriangle ? i + 1 : C); ++k)
      acc[i * C + k] = load<T>(sums + (triangle_size(i0 + i) + k0 + k) * L);
#pragma GCC unroll 1
  for (int64_t b = 0; b < num_blocks; ++b, rows += (d + 1) * kBlock * L) {
    const T* a = rows + i0 * kBlock * L;
    const T* z = rows + k0 * kBlock * L;
#pragma GCC unroll 1
    for (int c = 0; c < kBlock; ++c, a += L, z += L) {
      Vec<T> left[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) left[i] = load<T>(a + i * kBlock * L);
#pragma GCC unroll 8
      for (int k = 0; k < C; ++k) {
        const Vec<T> right = IsTriangle ? left[k] : load<T>(z + k * kBlock * L);
#pragma GCC unroll 8
        for (int i = IsTriangle ? k : 0; i < R; ++i) acc[i * C + k] += left[i] * right;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < (IsTriangle ? i + 1 : C); ++k)
      store<T>(sums + (triangle_size(i0 + i) + k0 + k) * L, acc[i * C + k]);
}

// The whole lower triangle, whose first block of rows has First, all others kRegisterRows.
template <class T, int First>
__attribute__((noinline)) void add_triangle_of(const T* rows, int64_t num_blocks, int64_t d,
                                               T* sums) {
  constexpr int R = kRegisterRows;
  add_outer<T, First, First, true>(rows, num_blocks, d, 0, 0, sums);
  for (int64_t i = First; i <= d; i += R) {
    add_outer<T, R, First, false>(rows, num_blocks, d, i, 0, sums);
    for (int64_t k = First; k < i; k += R)
      add_outer<T, R, R, false>(rows, num_blocks, d, i, k, sums);
    add_outer<T, R, R, true>(rows, num_blocks, d, i, i, sums);
  }
}

template <class T>
void add_outer_products(const T* rows, int64_t num_blocks, int64_t d, T* sums) {
  switch ((d + 1) % kRegisterRows) {
    case 1:
      return add_triangle_of<T, 1>(rows, num_blocks, d, sums);
    case 2:
      return add_triangle_of<T, 2>(rows, num_blocks, d, sums);
    case 3:
      return add_triangle_of<T, 3>(rows, num_blocks, d, sums);
    default:
      return add_triangle_of<T, kRegisterRows>(rows, num_blocks, d, sums);
  }
}

// -- a vector of points ---------------------------------------------------------------------------

// Differences of a block of centers from the pivots, kept behind a row left free for r, and squared
// distances relative to those of the pivots: s[c] += e.(e + twice), e = pivot - y, twice = 2 (x -
// p), which is zero for all lanes unless HasPivots.
template <class T, bool HasPivots>
inline __attribute__((always_inline)) void find_differences(const T* pivot, const T* twice,
                                                            const CenterBlock<T>& centers, int d,
                                                            T* rows, Vec<T>* s) {
  constexpr int L = kLanes<T>;
  const T* y = centers.rows;
  const int64_t stride = centers.stride;
  Vec<T> sum[kBlock];
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) sum[c] = s[c];
#pragma GCC unroll 1
  for (int k = 0; k < d; ++k, ++y) {
    const Vec<T> p = load<T>(pivot + k * L);
    const Vec<T> t = HasPivots ? load<T>(twice + k * L) : Vec<T>{};
    rows += kBlock * L;
#pragma GCC unroll 8
    for (int c = 0; c < kBlock; ++c) {
      const Vec<T> e = p - y[c * stride];
      store<T>(rows + c * L, e);
      sum[c] += HasPivots ? e * (e + t) : e * e;
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) s[c] = sum[c];
}

// kLanes points on their way through all centers.
template <class T>
class PosteriorSums {
 public:
  static constexpr int L = kLanes<T>;

  static int64_t bytes(int64_t d) {
    const int64_t size = triangle_size(d + 1) * L;
    return int64_t(sizeof(T)) * (size + buffer_blocks<T>(d) * kBlock * (d + 2) * L + 3 * d * L) +
           int64_t(sizeof(double)) * (size + d * L);
  }

  // memory: bytes(d), aligned.
  PosteriorSums(const MixtureView<T>& mixture, T* memory)
      : d_(int(mixture.d)),
        capacity_(buffer_blocks<T>(mixture.d)),
        size_(triangle_size(mixture.d + 1)),
        variance_(mixture.noise_std * mixture.noise_std),
        scale_(T(0.5 * M_LOG2E / variance_)),
        acc_(memory),
        rows_(acc_ + size_ * L),
        squares_(rows_ + capacity_ * kBlock * (d_ + 1) * L),
        x_(squares_ + capacity_ * kBlock * L),
        pivot_(x_ + d_ * L),
        twice_(pivot_ + d_ * L),
        sums_(reinterpret_cast<double*>(twice_ + d_ * L)),
        moved_by_(sums_ + size_ * L) {}

  // Points [first, last) of the view, at most kLanes; the last fills the lanes beyond.
  void clear(const PointsView<T>& view, int64_t first, int64_t last) {
    pack_points<T, 1>(view, first, last, d_, x_);
    memcpy(pivot_, x_, size_t(d_ * L) * sizeof(T));
    for (int64_t i = 0; i < d_ * L; ++i) twice_[i] = 0;
    for (int64_t i = 0; i < size_ * L; ++i) acc_[i] = T(sums_[i] = 0);
    for (int l = 0; l < L; ++l) {
      base_[l] = 0;
      offset_[l] = INFINITY;
      // Nothing met yet: any center counts, and moves the offset.
      farthest_[l] = nearest_[l] = kNever<T>;
      least_[l] = T(INFINITY);
    }
    has_pivots_ = false;
    filled_ = folded_ = 0;
  }

  void add(const CenterBlock<T>& centers) {
    Vec<T> s[kBlock];
    measure(centers, filled_, s);
    Vec<T> least = s[0];
#pragma GCC unroll 8
    for (int c = 1; c < kBlock; ++c) least = vmin(s[c], least);
    const Vec<T> farthest = load<T>(farthest_);
    if (all_below<T, 1>(&farthest, least)) return;
#pragma GCC unroll 8
    for (int c = 0; c < kBlock; ++c) store<T>(squares_ + (filled_ * kBlock + c) * L, s[c]);
    store<T>(least_, vmin(least, load<T>(least_)));
    sources_[filled_] = centers;
    if (++filled_ == capacity_) flush();
  }

  // Adds what is in the buffer.
  __attribute__((noinline)) void flush() {
    if (filled_ == 0) return;
    // From a point far away, the nearest center is found to within the rounding of its distance;
    // from that center, the others' distances are better known, and one may be far nearer still.
    // A move leaves some u of the distance it began with, so that two or three come to the digits
    // of the coordinates themselves; 4 bounds the time where roundings send it back and forth.
    constexpr int kMostMoves = 4;
    Vec<T> least = load<T>(least_);
    for (int k = 0; k < kMostMoves && any<T>(least < load<T>(nearest_)); ++k) least = move(least);
    store<T>(least_, broadcast<T>(T(INFINITY)));
    weigh();
    add_outer_products<T>(rows_, filled_, d_, acc_);
    folded_ += filled_ * kBlock;
    filled_ = 0;
    if (folded_ >= kFolded) fold();
  }

  void write(const PosteriorTask<T>& task, int64_t first, int64_t last) {
    fold();
    const double per_unit = 1 / task.unit;
    const double normaliser = 0.5 * d_ * log(2 * M_PI * variance_) +
                              (task.mixture.weight_shift ? 0 : log(double(task.mixture.n)));
    for (int l = 0; l < L && first + l < last; ++l) {
      const int64_t i = first + l;
      const double mass = sums_[l], per_mass = 1 / mass;
      task.log_density[i] = offset_[l] == INFINITY
                                ? T(-INFINITY)
                                : T(log(mass) - 0.5 * offset_[l] / variance_ - normaliser);
      T* mean = task.mean + i * d_;
      T* covariance = task.covariance + i * d_ * d_;
      for (int r = 0; r < d_; ++r) {
        const double of_r = sum(r + 1, 0, l) * per_mass;
        const double pivot = double(pivot_[r * L + l]) - double(x_[r * L + l]);
        mean[r] = T((pivot - of_r) * per_unit);
        for (int k = 0; k <= r; ++k) {
          const double product = of_r * (sum(k + 1, 0, l) * per_mass);
          double value = sum(r + 1, k + 1, l) * per_mass - product;
          if (r == k && value < 0) value = 0;  // by rounding
          covariance[r * d_ + k] = covariance[k * d_ + r] = T(value * per_unit * per_unit);
        }
      }
    }
  }

 private:
  double& sum(int64_t i, int64_t k, int64_t l) { return sums_[(triangle_size(i) + k) * L + l]; }

  // Differences and squared distances of block `at` of the buffer.
  inline __attribute__((always_inline)) void measure(const CenterBlock<T>& centers, int64_t at,
                                                     Vec<T>* s) {
    const Vec<T> base = load<T>(base_);
#pragma GCC unroll 8
    for (int c = 0; c < kBlock; ++c) s[c] = (centers.shift ? centers.shift[c] : T(0)) - base;
    T* rows = rows_ + at * kBlock * (d_ + 1) * L;
    if (has_pivots_)
      find_differences<T, true>(pivot_, twice_, centers, d_, rows, s);
    else
      find_differences<T, false>(pivot_, twice_, centers, d_, rows, s);
  }

  // Roots r of the terms, and r times (1, e).
  void weigh() {
    for (int64_t b = 0; b < filled_; ++b) {
      Vec<T> s[kBlock], r[kBlock];
      T* row = rows_ + b * kBlock * (d_ + 1) * L;
      for (int c = 0; c < kBlock; ++c) s[c] = load<T>(squares_ + (b * kBlock + c) * L);
      exp2_terms<T, kBlock>(s, scale_ / 2, r);
      if constexpr (!kExp2Overflows) {  // no term is zero there: (e r)^2 might be anything
        const Vec<T> farthest = broadcast<T>(T(kLeastBits<T>) / scale_);
#pragma GCC unroll 8
        for (int c = 0; c < kBlock; ++c) r[c] = s[c] < farthest ? r[c] : Vec<T>{};
      }
#pragma GCC unroll 8
      for (int c = 0; c < kBlock; ++c) store<T>(row + c * L, r[c]);
#pragma GCC unroll 1
      for (int k = 0; k < d_; ++k) {
        row += kBlock * L;
#pragma GCC unroll 8
        for (int c = 0; c < kBlock; ++c) store<T>(row + c * L, load<T>(row + c * L) * r[c]);
      }
    }
  }

  void fold() {
    for (int64_t i = 0; i < size_ * L; ++i) {
      sums_[i] += double(acc_[i]);
      acc_[i] = 0;
    }
    folded_ = 0;
  }

  // Lets lanes with a center far nearer than their offsets start from it, and measures again.
  // Returns the smallest distances in the buffer.
  __attribute__((noinline)) Vec<T> move(Vec<T> least) {
    fold();
    double factor[L];
    for (int l = 0; l < L; ++l) factor[l] = 1;
    for (int64_t i = 0; i < d_ * L; ++i) moved_by_[i] = 0;
    bool has_met = false;
    for (int l = 0; l < L; ++l)
      if (least[l] < nearest_[l]) {
        has_met |= offset_[l] < INFINITY;
        factor[l] = move_lane(l, least[l]);
      }
    if (has_met) shift_sums(factor);
    has_pivots_ = false;
    for (int64_t i = 0; i < d_ * L; ++i) has_pivots_ |= twice_[i] != 0;
    Vec<T> found = broadcast<T>(T(INFINITY));
    for (int64_t b = 0; b < filled_; ++b) {
      Vec<T> s[kBlock];
      measure(sources_[b], b, s);
      for (int c = 0; c < kBlock; ++c) store<T>(squares_ + (b * kBlock + c) * L, s[c]);
      for (int c = 0; c < kBlock; ++c) found = vmin(s[c], found);
    }
    return found;
  }

  // Offset and pivot of lane l, for the center in the buffer at this distance. Returns what the
  // sums are to be multiplied by.
  double move_lane(int l, T least) {
    int64_t at = 0;
    while (squares_[at * L + l] != least) ++at;
    const CenterBlock<T>& block = sources_[at / kBlock];
    const T* y = block.rows + at % kBlock * block.stride;
    const double shift = block.shift ? double(block.shift[at % kBlock]) : 0;
    double square = 0;
    for (int k = 0; k < d_; ++k) {
      const double e = double(x_[k * L + l]) - double(y[k]);
      square += e * e;
    }
    const bool is_far = square > kFarVariances * variance_;
    for (int k = 0; k < d_; ++k) {
      const T x = x_[k * L + l], pivot = is_far ? y[k] : x;
      moved_by_[k * L + l] = double(pivot) - double(pivot_[k * L + l]);
      pivot_[k * L + l] = pivot;
      twice_[k * L + l] = 2 * (x - pivot);
    }
    const double before = offset_[l];
    base_[l] = T(is_far ? shift : square + shift);
    offset_[l] = double(base_[l]) + (is_far ? square : 0);
    farthest_[l] = T(kLeastBits<T>) / scale_;
    nearest_[l] = T(-kNearerBits) / scale_;
    return before == INFINITY ? 0 : exp2(0.5 * M_LOG2E / variance_ * (offset_[l] - before));
  }

  // Sums of differences from the new pivots, e + moved_by, and for the new offsets.
  void shift_sums(const double* factor) {
    for (int64_t i = d_; i >= 0; --i) {
      const double* by_i = moved_by_ + (i > 0 ? i - 1 : 0) * L;
      for (int64_t k = i; k >= 0; --k) {
        const double* by_k = moved_by_ + (k > 0 ? k - 1 : 0) * L;
        for (int l = 0; l < L; ++l) {
          double value = sum(i, k, l);
          if (i > 0) value += by_i[l] * sum(k, 0, l);
          if (k > 0) value += by_k[l] * (sum(i, 0, l) + by_i[l] * sum(0, 0, l));
          sum(i, k, l) = factor[l] * value;
        }
      }
    }
  }

  int d_;
  int64_t capacity_, size_;
  double variance_;
  T scale_;
  T* acc_;      // (size, L): the lower triangle, not yet in sums
  T* rows_;     // (capacity, d + 1, kBlock, L)
  T* squares_;  // (capacity, kBlock, L)
  T* x_;        // (d, L)
  T* pivot_;
  T* twice_;
  double* sums_;
  double* moved_by_;
  // Of each lane: what relative squared distances start from; the squared distance where they are
  // zero; those that count, those that move the offset, and the smallest in the buffer.
  T base_[L], farthest_[L], nearest_[L], least_[L];
  double offset_[L];
  bool has_pivots_;
  int64_t filled_, folded_;  // blocks in the buffer; centers in acc
  CenterBlock<T> sources_[kMaxBlocks];
};

// -- one call -------------------------------------------------------------------------------------

// Points [first, last), vector after vector.
template <class T>
void evaluate_posterior(const PosteriorTask<T>& task, int64_t first, int64_t last, void* scratch) {
  const FlushDenormals flush;
  const MixtureView<T>& mixture = task.mixture;
  const int64_t n = mixture.n, d = mixture.d, whole = n / kBlock * kBlock;
  PosteriorSums<T> sums(mixture, static_cast<T*>(scratch));

  // The last centers, and copies of the very last that count for nothing.
  T rows[kBlock * kMaxMomentDim], shifts[kBlock];
  for (int64_t c = 0; c < kBlock; ++c) {
    const int64_t j = whole + c < n ? whole + c : n - 1;
    for (int64_t k = 0; k < d; ++k) rows[c * d + k] = mixture.centers[j * mixture.stride + k];
    shifts[c] = whole + c < n ? (mixture.weight_shift ? mixture.weight_shift[j] : 0) : kNever<T>;
  }

  for (int64_t i = first; i < last; i += kLanes<T>) {
    sums.clear(task.points, i, last);
    for (int64_t j = 0; j < whole; j += kBlock)
      sums.add({mixture.centers + j * mixture.stride, mixture.stride,
                mixture.weight_shift ? mixture.weight_shift + j : nullptr});
    if (whole < n) sums.add({rows, d, shifts});
    sums.flush();
    sums.write(task, i, last);
  }
}

template <class T>
PosteriorKernel<T> posterior_kernel() {
  return {&evaluate_posterior<T>, &PosteriorSums<T>::bytes, kLanes<T>};
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
