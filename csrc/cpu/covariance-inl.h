// The tile loop of mixtures whose components have their own covariance.
//
// Exponents are |A_j (x - mu_j)|^2 / 2, base 2 inside: components are packed once per call as
// their mean, the rows of B_j = A_j sqrt(log2(e) / 2), and w_j det A_j as a mantissa times a power
// of two. The mantissa multiplies the term; the power moves the exponent by a whole number. Offsets
// are whole numbers, too: their difference, from which accumulation starts, is exact however much
// the determinants differ.
//
// Lanes are points, components are broadcast, as in log_density-inl.h, whose sums, offsets and
// rules for target files hold here: differences, products and squares in T, near pairs lose
// nothing; terms summed in T within a tile and in double across tiles.

#pragma once
#include <math.h>

#include "../core/exp2_poly.h"
#include "../core/views.h"
#include "dispatch.h"
#include "log_density-inl.h"
#include "simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

constexpr int kTooNear = 20;  // log2; a term so far above its offset moves the offset
constexpr int kRows = 4;      // rows of B that share one load of the differences

// A packed component: mean (d), power, factor, B.
//
// B in blocks of rows, the first of d % kRows rows, all others of kRows: column after column, of
// each column the rows that reach it.
constexpr int64_t component_size(int64_t d) { return d + 2 + d * (d + 1) / 2; }

// The first block's rows: its products are a triangle.
constexpr int first_rows(int d) { return d % kRows ? d % kRows : kRows < d ? kRows : d; }

// t[i] += sum over columns k, k <= i, of a square block's lower triangle.
template <class T, int Q, int Rows>
inline __attribute__((always_inline)) const T* add_triangle(const T* b, const Vec<T>* diff,
                                                            Vec<T>* t) {
#pragma GCC unroll 4
  for (int k = 0; k < Rows; ++k)
#pragma GCC unroll 4
    for (int i = k; i < Rows; ++i, ++b)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) t[i * Q + q] += *b * diff[k * Q + q];
  return b;
}

// t[i] += column k of a block of rows times the differences of dimension k.
template <class T, int Q, int Rows>
inline __attribute__((always_inline)) void add_column(const T* b, const Vec<T>* diff, Vec<T>* t) {
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) t[i * Q + q] += b[i] * diff[q];
}

// v -= the squares of one block of rows: `before` columns in all of them, then a triangle.
template <class T, int Q, int Rows, bool Unroll>
inline __attribute__((always_inline)) const T* subtract_rows(const T* b, const Vec<T>* diff,
                                                             int before, Vec<T>* v) {
  Vec<T> t[Rows * Q];
#pragma GCC unroll 16
  for (int i = 0; i < Rows * Q; ++i) t[i] = Vec<T>{};
  if constexpr (Unroll) {
#pragma GCC unroll 32
    for (int k = 0; k < before; ++k) add_column<T, Q, Rows>(b + k * Rows, diff + k * Q, t);
  } else {
#pragma GCC unroll 1
    for (int k = 0; k < before; ++k) add_column<T, Q, Rows>(b + k * Rows, diff + k * Q, t);
  }
  b = add_triangle<T, Q, Rows>(b + before * Rows, diff + before * Q, t);
  // Many squares: a block's are summed first, so that fewer roundings are of the size of the offset
  // (largest error at d = 32: 9.5e-6 nats instead of 1.9e-5, for 1 % more time).
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    Vec<T> squares = Unroll ? -v[q] : Vec<T>{};
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) squares += t[i * Q + q] * t[i * Q + q];
    v[q] = Unroll ? -squares : v[q] - squares;
  }
  return b;
}

// v = base - power - |B (x - mu)|^2 for Q vectors of points: the exponents of one component.
// D: the dimension, everything unrolled; 0: d at run time.
template <class T, int D, int Q>
inline __attribute__((always_inline)) void exponents(const T* points, const T* component, int d,
                                                     const Vec<T>* base, Vec<T>* v) {
  constexpr int kSpace = D ? D : int(kMaxCovarianceDim);
  const int dim = D ? D : d;
  Vec<T> diff[kSpace * Q];
#pragma GCC unroll 32
  for (int k = 0; k < dim; ++k)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
      diff[k * Q + q] = load<T>(points + (k * Q + q) * kLanes<T>) - component[k];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) v[q] = base[q] - component[dim];
  const T* b = component + dim + 2;
  if constexpr (D) {
    constexpr int kFirst = first_rows(D);
    b = subtract_rows<T, Q, kFirst, true>(b, diff, 0, v);
#pragma GCC unroll 8
    for (int row = kFirst; row < D; row += kRows)
      b = subtract_rows<T, Q, kRows, true>(b, diff, row, v);
  } else {
    const int first = first_rows(d);
    if (first == 1) b = subtract_rows<T, Q, 1, false>(b, diff, 0, v);
    if (first == 2) b = subtract_rows<T, Q, 2, false>(b, diff, 0, v);
    if (first == 3) b = subtract_rows<T, Q, 3, false>(b, diff, 0, v);
    if (first == 4) b = subtract_rows<T, Q, 4, false>(b, diff, 0, v);
    for (int row = first; row < d; row += kRows)
      b = subtract_rows<T, Q, kRows, false>(b, diff, row, v);
  }
}

// The running sums of Q vectors of points: per lane an offset, a whole number, and a double.
template <class T, int Q>
struct CovarianceSums {
  T offset[Q * kLanes<T>];
  double sum[Q * kLanes<T>];

  void clear() {
    for (int l = 0; l < Q * kLanes<T>; ++l) {
      offset[l] = T(INFINITY);
      sum[l] = 0;
    }
  }

  // Empties the tile's accumulator into the sums.
  void fold(int q, Vec<T>& acc) {
    for (int l = 0; l < kLanes<T>; ++l) sum[q * kLanes<T> + l] += double(acc[l]);
    acc = Vec<T>{};
  }

  // Lowers the offset of every lane of vector q to `least`, a whole number, where that is below.
  void lower(int q, Vec<T> least) {
    for (int l = 0; l < kLanes<T>; ++l) {
      T& at = offset[q * kLanes<T> + l];
      double& total = sum[q * kLanes<T> + l];
      if (!(least[l] < at)) continue;  // also: inf < inf, nothing met yet
      const double below = double(least[l]) - double(at);
      const int64_t bits = (below > -1023 ? int64_t(below) + 1023 : 0) << 52;  // of 2^below
      double power;
      memcpy(&power, &bits, sizeof power);
      total = at == T(INFINITY) ? 0 : total * power;  // infinite or NaN while nothing was met
      at = least[l];
    }
  }
};

// Adds the terms of C components after lowering the offsets to the nearest of them.
//
// Squares are summed from zero here. Where they are so large that another order of summation
// changes them by more than a few units, the offset is subtracted last: the nearest's term is then
// at least 1/2. Elsewhere the power is subtracted from the offset first, which is exact.
template <class T, int Q, int C>
__attribute__((noinline)) void add_lowering(const T* points, const T* components, int d,
                                            Vec<T>* acc, CovarianceSums<T, Q>& sums) {
  constexpr T kLarge = 1 << 20;  // float: 32 roundings of up to 1/16
  const int64_t size = component_size(d);
  Vec<T> s[C * Q], terms[C * Q];
  for (int c = 0; c < C; ++c) {
    const T* component = components + c * size;
    Vec<T> power[Q];
    for (int q = 0; q < Q; ++q) power[q] = broadcast<T>(component[d]);
    exponents<T, 0, Q>(points, component, d, power, s + c * Q);
    for (int q = 0; q < Q; ++q) s[c * Q + q] = -s[c * Q + q];
  }
  for (int q = 0; q < Q; ++q) {
    Vec<T> least = broadcast<T>(T(INFINITY));
    for (int c = 0; c < C; ++c) least = vmin(s[c * Q + q] + components[c * size + d], least);
    for (int l = 0; l < kLanes<T>; ++l) least[l] = T(floor(double(least[l])));
    sums.fold(q, acc[q]);
    sums.lower(q, least);
    const Vec<T> base = load<T>(sums.offset + q * kLanes<T>);
    for (int c = 0; c < C; ++c) {
      const T power = components[c * size + d];
      Vec<T>& from_zero = s[c * Q + q];
      from_zero = base > kLarge ? (from_zero + power) - base : from_zero - (base - power);
    }
  }
  exp2_terms<T, C * Q>(s, T(1), terms);
  for (int c = 0; c < C; ++c)
    for (int q = 0; q < Q; ++q) acc[q] += terms[c * Q + q] * components[c * size + d + 1];
}

// Adds the terms of `count` components, a multiple of C, to the sums of Q vectors of points.
//
// Where a term far above its offset is seen, add_lowering() takes over for the block. Exponentials
// that are infinite when too large (kExp2Overflows) show it in the sum; otherwise the exponents are
// searched, which costs an instruction per pair more.
template <class T, int D, int Q, int C>
__attribute__((noinline)) void add_components(const T* points, const T* components, int64_t count,
                                              int64_t run_time_d, CovarianceSums<T, Q>& sums) {
  const int d = D ? D : int(run_time_d);
  const int64_t size = component_size(d);
  const Vec<T> limit = broadcast<T>(T(1 << kTooNear));
  Vec<T> base[Q], acc[Q];
  for (int q = 0; q < Q; ++q) {
    base[q] = load<T>(sums.offset + q * kLanes<T>);
    acc[q] = Vec<T>{};
  }
  for (int64_t j = 0; j < count; j += C, components += C * size) {
    Vec<T> v[C * Q];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      exponents<T, D, Q>(points, components + c * size, d, base, v + c * Q);
#pragma GCC unroll 16
    for (int i = 0; i < C * Q; ++i) v[i] = -v[i];
    bool is_too_near = false;
    if constexpr (!kExp2Overflows) {
      Vec<T> nearest = broadcast<T>(T(INFINITY));  // not v[0], which may be inf - inf = NaN
#pragma GCC unroll 16
      for (int i = 0; i < C * Q; ++i) nearest = vmin(v[i], nearest);
      is_too_near = any<T>(nearest < T(-kTooNear));
    }

    // -- exponentials ------------------------------------------------------------------------
    Vec<T> terms[C * Q], sum[Q];
    exp2_terms<T, C * Q>(v, T(1), terms);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) sum[q] = acc[q];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[q] += terms[c * Q + q] * components[c * size + d + 1];

    // Not below: also infinite or NaN.
    if constexpr (kExp2Overflows) is_too_near = !all_below<T, Q>(sum, limit);
    if (__builtin_expect(is_too_near, 0)) {
      add_lowering<T, Q, C>(points, components, d, acc, sums);
      for (int q = 0; q < Q; ++q) base[q] = load<T>(sums.offset + q * kLanes<T>);
    } else {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[q] = sum[q];
    }
  }
  for (int q = 0; q < Q; ++q) sums.fold(q, acc[q]);
}

// -- one call ------------------------------------------------------------------------------------

constexpr int kCovarianceVectors = 2,
              kComponentsTogether = 4;  // 6 % faster than 2 x 2 at d = 5, 10

// Component j as described at component_size(); beyond n, one that adds nothing.
template <class T>
void pack_component(const CovarianceTask<T>& task, int64_t j, T* packed) {
  const int64_t n = task.centers.m, d = task.d, size = component_size(d);
  const double weight = j >= n ? 0 : task.weights ? double(task.weights[j]) : 1 / double(n);
  if (!(weight > 0)) {
    for (int64_t i = 0; i < size; ++i) packed[i] = 0;
    packed[d] = kNever<T>;
    return;
  }
  const T* a = task.whitening + j * d * d;
  const double scale = sqrt(0.5 * M_LOG2E);
  double factor = weight;  // w_j det A_j = factor 2^-power, factor in [1/2, 1)
  int power = 0;
  for (int64_t k = 0; k < d; ++k) {
    int exponent;
    factor = frexp(factor * double(a[k * d + k]), &exponent);
    power -= exponent;
    packed[k] = task.centers.points[j * task.centers.stride + k];
  }
  packed[d] = T(power);
  packed[d + 1] = T(factor);
  T* b = packed + d + 2;
  for (int64_t row = 0, rows = first_rows(int(d)); row < d; row += rows, rows = kRows)
    for (int64_t k = 0; k < row + rows; ++k)
      for (int64_t r = k > row ? k : row; r < row + rows; ++r) *b++ = T(scale * a[r * d + k]);
}

// Components [begin, end) of the n rounded up to a multiple of kComponentsTogether.
template <class T>
void pack_components(const CovarianceTask<T>& task, int64_t begin, int64_t end, T* packed) {
  const int64_t size = component_size(task.d);
  for (int64_t j = begin; j < end; ++j) pack_component<T>(task, j, packed + j * size);
}

// Small dimensions unrolled: at d = 2, 5 and 10 8, 5 and 4 % faster than the loop, and not with
// AVX2, whose 16 registers hold too little.
template <class T, int Q, int C>
auto choose_add_components(int64_t d) {
  if constexpr (kExp2Overflows) {
    switch (d) {
      case 1:
        return &add_components<T, 1, Q, C>;
      case 2:
        return &add_components<T, 2, Q, C>;
      case 3:
        return &add_components<T, 3, Q, C>;
      case 4:
        return &add_components<T, 4, Q, C>;
      case 5:
        return &add_components<T, 5, Q, C>;
      case 6:
        return &add_components<T, 6, Q, C>;
      case 7:
        return &add_components<T, 7, Q, C>;
      case 8:
        return &add_components<T, 8, Q, C>;
      case 9:
        return &add_components<T, 9, Q, C>;
      case 10:
        return &add_components<T, 10, Q, C>;
    }
  }
  return &add_components<T, 0, Q, C>;
}

// Points [first, last), at most kGroupsPerTask groups of them, and all packed components.
template <class T>
void evaluate_covariance(const CovarianceTask<T>& task, const T* packed, int64_t first,
                         int64_t last, void* scratch) {
  constexpr int Q = kCovarianceVectors, C = kComponentsTogether, kGroup = Q * kLanes<T>;
  const FlushDenormals flush;
  const int64_t d = task.d, size = component_size(d);
  const int64_t n = (task.centers.m + C - 1) / C * C;
  const int num_groups = int((last - first + kGroup - 1) / kGroup);
  const auto add = choose_add_components<T, Q, C>(d);
  auto* sums = static_cast<CovarianceSums<T, Q>*>(scratch);
  T* points = reinterpret_cast<T*>(sums + kGroupsPerTask);
  for (int g = 0; g < num_groups; ++g) {
    pack_points<T, Q>(task.points, first + g * kGroup, last, d, points + g * kGroup * d);
    sums[g].clear();
  }

  // -- tiles of components outside, groups of points inside: a tile is read once per task ---------
  int64_t tile = kTileBytes / (int64_t(sizeof(T)) * size);
  tile = tile > kMaxTile ? kMaxTile : tile < 4 * C ? 4 * C : tile / C * C;
  for (int64_t begin = 0; begin < n; begin += tile) {
    const int64_t count = tile < n - begin ? tile : n - begin;
    for (int g = 0; g < num_groups; ++g)
      add(points + g * kGroup * d, packed + begin * size, count, d, sums[g]);
  }

  // -- to nats ---------------------------------------------------------------------------------
  const double constant = -0.5 * double(d) * log(2 * M_PI);
  for (int g = 0; g < num_groups; ++g)
    for (int l = 0; l < kGroup && first + g * kGroup + l < last; ++l) {
      const double offset = double(sums[g].offset[l]);
      task.out[first + g * kGroup + l] =  // infinite offset: every squared distance overflowed
          offset == INFINITY ? T(-INFINITY) : T(log(sums[g].sum[l]) - M_LN2 * offset + constant);
    }
}

template <class T>
CovarianceKernel<T> covariance_kernel() {
  constexpr int Q = kCovarianceVectors, kGroup = Q * kLanes<T>;
  return {&pack_components<T>,
          &evaluate_covariance<T>,
          &component_size,
          kGroupsPerTask * (int64_t(sizeof(CovarianceSums<T, Q>)) +
                            kGroup * kMaxCovarianceDim * int64_t(sizeof(T))),
          kGroup,
          kComponentsTogether};
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
