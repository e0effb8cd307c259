// Gradients of log-densities, recomputed from the saved values: sums over columns of the posterior
// q_ij = 2^(t_ij - offset_i) times differences of coordinates, where t_ij is the exponent of
// direct.cuh and offset_i comes from the saved log-density, so that terms are at most about 1.
//
// The passes. Rows are points first: mass_i = sum_j q_ij, with moments sum_j q_ij (y_j - x_i) and
// the spread sum_j q_ij |x_i - y_j|^2. The saved value is rounded, and the mass is what that
// leaves of 1: everything is divided by it. Then rows are centers, columns points with the factor
// g_i / mass_i: the same operations in the same order, so that every q_ij is the same to the bit.
//
// No atomics: a thread owns its rows' sums, in T over 512 columns (kFold tiles), then in double in
// the workspace. So results do not depend on what runs first, and long sums lose no digits.
//
// Exponents beyond kCoarsest, whose rounding may be worth many powers of two, are left out by the
// passes (their offset is +inf) and done row by row by rare_*_kernel: slowly, and without overflow.

#pragma once
#include "direct.cuh"

namespace noisyflow {
namespace cuda {

// What a pass sums. kSwapped: rows are centers.
enum Moments { kMass = 0, kMoments = 1, kSpread = 2, kSwapped = 3 };

constexpr int kFold = 4;  // tiles

// Rounding a saved exponent as large leaves it right to one power of two.
template <class T>
constexpr T kCoarsest = T(2) / kEpsilon<T>;

// Sums of a row: mass, moments (d), spread. Component by component, each for all rows.
inline __host__ __device__ int64_t num_sums(int64_t d) { return d + 2; }

// What both passes read; `offsets` and `factors` are of points.
template <class T>
struct Pass {
  MatrixView<T> rows, columns;
  int64_t d;
  const T* weight_shift;  // of centers; null: none
  const T* offsets;
  const T* factors;
  T minus_scale;
};

template <class T>
__device__ __forceinline__ T shift_of(const T* weight_shift, int64_t j) {
  return weight_shift ? weight_shift[j] : T(0);
}

// For a product with a posterior, which is zero where a square is infinite, or NaN in its place. In
// double, where this would take 6 % more instructions, coordinates of 1e154 are left to themselves.
__device__ __forceinline__ float finite_square(float square) {
  return smaller(square, kLargest<float>);
}
__device__ __forceinline__ double finite_square(double square) { return square; }

// -- before and after the passes -----------------------------------------------------------------

// Offsets of m rows; is_rare[0] becomes 1 where one is left to the rare kernels.
template <class T>
__global__ void offsets_kernel(const T* log_density, int64_t m, Nats nats, T* offsets,
                               int* is_rare) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= m) return;
  const T offset = T((double(log_density[i]) - nats.constant) / nats.unit);
  const bool is_fine = offset > -kCoarsest<T> && offset < kCoarsest<T>;
  offsets[i] = is_fine ? offset : T(INFINITY);
  if (!is_fine) atomicMax(is_rare, 1);
}

template <class T>
__device__ __forceinline__ T to_finite(double value) {
  constexpr double kMost = double(kLargest<T>);
  value = value > kMost ? kMost : value;
  return T(value < -kMost ? -kMost : value);
}

__device__ inline double sum_of_splits(const double* sums, int64_t d, int splits, int64_t rows,
                                       int64_t component, int64_t row) {
  double sum = 0;
  for (int s = 0; s < splits; ++s) sum += sums[(s * num_sums(d) + component) * rows + row];
  return sum;
}

// Of points: gradients (null: not wanted), noise terms (likewise), factors g_i / mass_i.
template <class T>
__global__ void finish_points_kernel(const double* sums, int splits, int64_t m, int64_t d,
                                     double noise_std, const T* grad_output, T* factors,
                                     T* grad_points, double* noise_terms) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= m) return;
  const double mass = sum_of_splits(sums, d, splits, m, 0, i);
  // One that is no number, or infinite, shows in all that depends on it: to_finite() leaves NaN.
  const double given = double(grad_output[i]), g = given - given == 0 ? given : double(NAN);
  const double factor = mass > 0 ? g / mass : g * 0;
  factors[i] = to_finite<T>(factor);
  for (int64_t k = 0; grad_points && k < d; ++k) {
    const double moment = -sum_of_splits(sums, d, splits, m, 1 + k, i);
    grad_points[i * d + k] = to_finite<T>(factor * moment / (noise_std * noise_std));
  }
  if (!noise_terms) return;
  const double spread = sum_of_splits(sums, d, splits, m, 1 + d, i) * (mass > 0 ? 1 / mass : 0);
  noise_terms[i] =
      mass > 0 ? g * (spread / (noise_std * noise_std) - double(d)) / noise_std : g * 0;
}

// A center so light that the posterior may underflow where the gradient of its weight does not.
template <class T>
__device__ __forceinline__ bool is_light(T shift, T minus_scale) {
  return shift * minus_scale < T(-60);
}

// Of centers: gradients and weight_mass (null: not wanted). uniform: n, where there are no weights.
template <class T>
__global__ void finish_centers_kernel(const double* sums, int splits, int64_t n, int64_t d,
                                      double noise_std, const T* weight_shift, T minus_scale,
                                      T* grad_centers, T* weight_mass) {
  const int64_t j = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (j >= n) return;
  for (int64_t k = 0; grad_centers && k < d; ++k) {
    const double moment = -sum_of_splits(sums, d, splits, n, 1 + k, j);
    grad_centers[j * d + k] = to_finite<T>(moment / (noise_std * noise_std));
  }
  if (!weight_mass) return;
  double per_weight = double(n);
  if (weight_shift) {
    const T shift = weight_shift[j];
    per_weight = is_light(shift, minus_scale) ? 1 : exp2(-double(shift) * double(minus_scale));
  }
  weight_mass[j] = to_finite<T>(sum_of_splits(sums, d, splits, n, 0, j) * per_weight);
}

// -- few dimensions ------------------------------------------------------------------------------

// sums[split][component][row]; rows blockIdx.x * kThreads * R + r * kThreads + thread.
template <class T, int D, int R, int U, int What>
__global__ void __launch_bounds__(kThreads, D <= 5           ? 4
                                            : sizeof(T) == 4 ? 3
                                                             : 2)
    moments_kernel(Pass<T> pass, int64_t per_split, double* sums) {
  constexpr bool kIsSwapped = What == kSwapped;
  constexpr int kExtra = kIsSwapped ? 2 : 1, kSize = kColumnSize<T, D, kExtra>;
  __shared__ __align__(16) T tile[kTile * kSize];
  const int64_t first = int64_t(blockIdx.x) * (kThreads * R) + threadIdx.x;
  const int d = int(pass.d);

  T x[R][D], number[R], mass[R], moment[R][D], spread[R];  // number: offset or shift
#pragma unroll
  for (int r = 0; r < R; ++r) {
    int64_t i = first + r * kThreads;
    i = i < pass.rows.count ? i : pass.rows.count - 1;
#pragma unroll
    for (int k = 0; k < D; ++k) {
      x[r][k] = D == 1 || k < d ? pass.rows.rows[i * pass.rows.stride + k] : T(0);
      moment[r][k] = 0;
    }
    number[r] = kIsSwapped ? shift_of(pass.weight_shift, i) : pass.offsets[i];
    mass[r] = spread[r] = 0;
  }

  const int64_t begin = blockIdx.y * per_split;
  const int64_t end =
      begin + per_split < pass.columns.count ? begin + per_split : pass.columns.count;
  int tiles = 0;
#pragma unroll 1
  for (int64_t j = begin; j < end; j += kTile) {
    __syncthreads();
    copy_coordinates<T, D, kSize, kThreads>(pass.columns.rows, pass.columns.stride, d, j, end,
                                            tile);
    {
      T* const column = tile + threadIdx.x * kSize;
      const int64_t at = j + threadIdx.x;
      const bool exists = at < end;
      if constexpr (kIsSwapped) {
        column[D] = exists ? pass.offsets[at] : T(INFINITY);
        column[D + 1] = exists ? pass.factors[at] : T(0);
      } else {
        column[D] = exists ? shift_of(pass.weight_shift, at) : kNever<T>;
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < kTile; c += U) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        T y[kSize];
        load_column(tile + (c + u) * kSize, y);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          T difference[D];
          T square = kIsSwapped ? number[r] : y[D];  // as shifted_square()
#pragma unroll
          for (int k = 0; k < D; ++k) {
            difference[k] = x[r][k] - y[k];
            square = fused(difference[k], difference[k], square);
          }
          T q = pow2(fused(square, pass.minus_scale, kIsSwapped ? -y[D] : -number[r]));
          if constexpr (kIsSwapped) q *= y[D + 1];
          mass[r] += q;
          if constexpr (What != kMass) {
#pragma unroll
            for (int k = 0; k < D; ++k) moment[r][k] = fused(q, difference[k], moment[r][k]);
          }
          if constexpr (What == kSpread)
            spread[r] = fused(q, finite_square(square - y[D]), spread[r]);
        }
      }
    }

    // -- to the workspace ------------------------------------------------------------------------
    ++tiles;
    if (tiles % kFold != 0 && j + kTile < end) continue;
    const bool is_first = tiles <= kFold;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t i = first + r * kThreads, rows = pass.rows.count;
      double* const at = sums + blockIdx.y * num_sums(d) * rows + i;
      if (i < rows) {
        at[0] = (is_first ? 0 : at[0]) + double(mass[r]);
        if constexpr (What != kMass) {
#pragma unroll
          for (int k = 0; k < D; ++k)
            if (D == 1 || k < d)
              at[(1 + k) * rows] = (is_first ? 0 : at[(1 + k) * rows]) + double(moment[r][k]);
        }
        if constexpr (What == kSpread)
          at[(1 + d) * rows] = (is_first ? 0 : at[(1 + d) * rows]) + double(spread[r]);
      }
      mass[r] = spread[r] = 0;
#pragma unroll
      for (int k = 0; k < D; ++k) moment[r][k] = 0;
    }
  }
}

// -- many dimensions -----------------------------------------------------------------------------

// As moments_kernel, any d: a block of TileShape::kRows rows beside 64 columns. Posteriors first,
// to shared memory; then their sums, 64 dimensions at a time: RM rows beside CN dimensions of a
// thread.
template <class T, int What>
__global__ void __launch_bounds__(kThreads, 3)
    tiled_moments_kernel(Pass<T> pass, int64_t per_split, double* sums) {
  using Shape = TileShape<T>;
  constexpr bool kIsSwapped = What == kSwapped;
  constexpr int RM = Shape::kRowsEach, CN = Shape::kColumnsEach;
  constexpr int kColumns = Shape::kColumns, kStride = Shape::kRowStride;
  constexpr int kDims = 16 * CN, kTogether = 16;  // dimensions, and columns at a time, of sums
  static_assert(kDims * kTogether <= Shape::kShared, "columns of sums fit in");
  __shared__ __align__(16) T shared[Shape::kShared];
  __shared__ __align__(16) T posterior[What == kMass ? 1 : kColumns * kStride];
  const int64_t first_row = int64_t(blockIdx.x) * Shape::kRows, rows = pass.rows.count;
  const int row = threadIdx.x / 16 * RM, across = threadIdx.x % 16;
  double* const own_sums = sums + blockIdx.y * num_sums(pass.d) * rows + first_row + row;

  // Below 2^31, and 32 bits each: registers are short.
  const unsigned begin = unsigned(blockIdx.y * per_split);
  const unsigned end =
      unsigned(begin + per_split < pass.columns.count ? begin + per_split : pass.columns.count);
  const MatrixView<T> columns{pass.columns.rows, pass.columns.stride, end};
#pragma unroll 1
  for (unsigned j = begin; j < end; j += kColumns) {
    const bool is_first = j == begin;
    {
      T high[RM][CN], low[RM][CN];
#pragma unroll
      for (int r = 0; r < RM; ++r)
#pragma unroll
        for (int c = 0; c < CN; ++c) {
          const int64_t center = kIsSwapped ? first_row + row + r : j + across * CN + c;
          high[r][c] =
              center < (kIsSwapped ? rows : end) ? shift_of(pass.weight_shift, center) : T(0);
          low[r][c] = 0;
        }
      add_squares<T>(pass.rows, first_row, columns, j, pass.d, shared, high, low);

      const int left = int(end - j) - across * CN;  // of the thread's columns
      T column_offset[CN], factor[CN], shifts[CN];
#pragma unroll
      for (int c = 0; c < CN; ++c) {
        column_offset[c] = kIsSwapped && c < left ? pass.offsets[j + across * CN + c] : T(0);
        factor[c] = kIsSwapped && c < left ? pass.factors[j + across * CN + c] : T(0);
        shifts[c] =
            What == kSpread && c < left ? shift_of(pass.weight_shift, j + across * CN + c) : T(0);
      }
#pragma unroll
      for (int r = 0; r < RM; ++r) {
        const bool exists = first_row + row + r < rows;
        T offset = T(0), mass = T(0), spread = T(0);
        if (!kIsSwapped && exists) offset = pass.offsets[first_row + row + r];
#pragma unroll
        for (int c = 0; c < CN; ++c) {
          T q = pow2(exponent(high[r][c], low[r][c], pass.minus_scale,
                              kIsSwapped ? column_offset[c] : offset));
          if constexpr (kIsSwapped) q *= factor[c];
          q = c < left ? q : T(0);
          mass += q;
          if constexpr (What == kSpread)
            spread = fused(q, finite_square((high[r][c] - shifts[c]) - low[r][c]), spread);
          if constexpr (What != kMass) posterior[(across * CN + c) * kStride + row + r] = q;
        }
#pragma unroll
        for (int lanes = 8; lanes > 0; lanes /= 2) {
          mass += __shfl_xor_sync(0xffffffffu, mass, lanes);
          if constexpr (What == kSpread) spread += __shfl_xor_sync(0xffffffffu, spread, lanes);
        }
        if (across != 0 || !exists) continue;
        own_sums[r] = (is_first ? 0 : own_sums[r]) + double(mass);
        if constexpr (What == kSpread) {
          double& total = own_sums[(1 + pass.d) * rows + r];
          total = (is_first ? 0 : total) + double(spread);
        }
      }
    }

    // -- sums of differences ---------------------------------------------------------------------
#pragma unroll 1
    for (int from = 0; from < (What == kMass ? 0 : int(pass.d)); from += kDims) {
      T x[RM][CN], moment[RM][CN];
#pragma unroll
      for (int r = 0; r < RM; ++r) {
        const int64_t i = first_row + row + r;
#pragma unroll
        for (int c = 0; c < CN; ++c) {
          const int k = from + across * CN + c;
          x[r][c] = i < rows && k < pass.d ? pass.rows.rows[i * pass.rows.stride + k] : T(0);
          moment[r][c] = 0;
        }
      }
#pragma unroll 1
      for (int piece = 0; piece < kColumns; piece += kTogether) {
        __syncthreads();
#pragma unroll
        for (int t = threadIdx.x; t < kTogether * kDims; t += kThreads) {
          const int64_t at = j + piece + t / kDims, k = from + t % kDims;
          shared[t] = at < end && k < pass.d ? columns.rows[at * columns.stride + k] : T(0);
        }
        __syncthreads();
#pragma unroll 2
        for (int c = 0; c < kTogether; ++c) {
          T q[RM], y[CN];
          load_vector(posterior + (piece + c) * kStride + row, q);
          load_vector(shared + c * kDims + across * CN, y);
#pragma unroll
          for (int r = 0; r < RM; ++r)
#pragma unroll
            for (int k = 0; k < CN; ++k) moment[r][k] = fused(q[r], x[r][k] - y[k], moment[r][k]);
        }
      }
#pragma unroll
      for (int c = 0; c < CN; ++c) {
        const int k = from + across * CN + c;
#pragma unroll
        for (int r = 0; r < RM; ++r) {
          if (k >= pass.d || first_row + row + r >= rows) continue;
          double& total = own_sums[(1 + k) * rows + r];
          total = (is_first ? 0 : total) + double(moment[r][c]);
        }
      }
    }
  }
}

// -- what the passes leave out -------------------------------------------------------------------
//
// One block per row; almost all return at once. sums: those of the first split.

template <class T>
__device__ __forceinline__ double block_sum(double value, double* scratch) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  for (int t = 0; t < kThreads; ++t) sum += scratch[t];
  return sum;
}

template <class T>
__device__ inline T square_between(const MatrixView<T>& a, int64_t i, const MatrixView<T>& b,
                                   int64_t j, int64_t d, T shift) {
  T square = shift;
  for (int64_t k = 0; k < d; ++k) {
    const T difference = a.rows[i * a.stride + k] - b.rows[j * b.stride + k];
    square = fused(difference, difference, square);
  }
  return square;
}

// Adds terms[c] times the difference of row i and column first + c to row i's moments.
template <class T>
__device__ inline void add_moments(const Pass<T>& pass, int64_t i, int64_t first, int64_t end,
                                   const double* terms, double* sums) {
  for (int64_t k = threadIdx.x; k < pass.d; k += kThreads) {
    const double x = double(pass.rows.rows[i * pass.rows.stride + k]);
    double moment = 0;
    for (int64_t j = first; j < end && j < first + kThreads; ++j)
      moment += terms[j - first] * (x - double(pass.columns.rows[j * pass.columns.stride + k]));
    sums[(1 + k) * pass.rows.count + i] += moment;
  }
}

// Points: tops[i] is the exponent of the nearest center of point i.
template <class T>
__global__ void rare_points_kernel(Pass<T> pass, const int* is_rare, T* tops, double* sums) {
  __shared__ double scratch[kThreads];
  __shared__ T largest[kThreads];
  const int64_t i = blockIdx.x, n = pass.columns.count, rows = pass.rows.count;
  if (*is_rare == 0 || !(pass.offsets[i] == T(INFINITY))) return;
  T top = kLowest<T>;
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    const T square =
        square_between(pass.rows, i, pass.columns, j, pass.d, shift_of(pass.weight_shift, j));
    if (square < kNever<T>) top = larger(top, rounded_product(square, pass.minus_scale));
  }
  largest[threadIdx.x] = top;
  __syncthreads();
  for (int t = 0; t < kThreads; ++t) top = larger(top, largest[t]);
  if (threadIdx.x == 0) tops[i] = top;
  double mass = 0, spread = 0;
  for (int64_t first = 0; first < n; first += kThreads) {
    const int64_t j = first + threadIdx.x;
    double q = 0;
    if (j < n) {
      const T shift = shift_of(pass.weight_shift, j);
      const T square = square_between(pass.rows, i, pass.columns, j, pass.d, shift);
      if (square < kNever<T> && top > kLowest<T>)
        q = double(pow2(rounded_product(square, pass.minus_scale) - top));
      if (q > 0) spread += q * double(square - shift);
    }
    mass += q;
    __syncthreads();
    scratch[threadIdx.x] = q;
    __syncthreads();
    add_moments(pass, i, first, n, scratch, sums);
  }
  mass = block_sum<T>(mass, scratch);
  spread = block_sum<T>(spread, scratch);
  if (threadIdx.x != 0) return;
  sums[i] += mass;
  sums[(1 + pass.d) * rows + i] = spread;
}

// Centers (rows) beside those points.
template <class T>
__global__ void rare_centers_kernel(Pass<T> pass, const int* is_rare, const T* tops, double* sums) {
  __shared__ double scratch[kThreads];
  if (*is_rare == 0) return;
  const int64_t j = blockIdx.x, m = pass.columns.count;
  double mass = 0;
  for (int64_t first = 0; first < m; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    double q = 0;
    if (i < m && pass.offsets[i] == T(INFINITY)) {
      const T square =
          square_between(pass.rows, j, pass.columns, i, pass.d, shift_of(pass.weight_shift, j));
      if (square < kNever<T> && tops[i] > kLowest<T>)
        q = double(pow2(rounded_product(square, pass.minus_scale) - tops[i])) *
            double(pass.factors[i]);
    }
    mass += q;
    __syncthreads();
    scratch[threadIdx.x] = q;
    __syncthreads();
    add_moments(pass, j, first, m, scratch, sums);
  }
  mass = block_sum<T>(mass, scratch);
  if (threadIdx.x == 0) sums[j] += mass;
}

// Of N(x_i; y_j) over the density of x_i.
template <class T>
__device__ inline double weightless_exponent(const Pass<T>& pass, const T* tops, int64_t j,
                                             int64_t i) {
  const T square = square_between(pass.rows, j, pass.columns, i, pass.d, T(0));
  const T offset = pass.offsets[i] == T(INFINITY) ? tops[i] : pass.offsets[i];
  return double(square) * double(pass.minus_scale) - double(offset);
}

// The weight mass of light centers: the posterior without the weight, in double. A term of a center
// of no weight may be as large as any number, so the largest exponent is taken out of the sum.
template <class T>
__global__ void light_centers_kernel(Pass<T> pass, const T* tops, int splits, double* sums) {
  __shared__ double scratch[kThreads];
  const int64_t j = blockIdx.x, m = pass.columns.count;
  if (!is_light(pass.weight_shift[j], pass.minus_scale)) return;
  double top = -1e300;
  for (int64_t i = threadIdx.x; i < m; i += kThreads)
    if (pass.factors[i] != 0) top = larger(top, weightless_exponent(pass, tops, j, i));
  scratch[threadIdx.x] = top;
  __syncthreads();
  for (int t = 0; t < kThreads; ++t) top = larger(top, scratch[t]);
  double mass = 0;
  for (int64_t i = threadIdx.x; i < m; i += kThreads)
    if (pass.factors[i] != 0)
      mass += double(pass.factors[i]) * exp2(weightless_exponent(pass, tops, j, i) - top);
  mass = block_sum<T>(mass, scratch);
  if (threadIdx.x != 0) return;
  mass = mass != 0 ? mass * exp2(top) : 0;  // beyond 2^1024 infinite: to_finite() takes that
  for (int s = 0; s < splits; ++s)
    sums[s * num_sums(pass.d) * pass.rows.count + j] = s == 0 ? mass : 0;
}

}  // namespace cuda
}  // namespace noisyflow
