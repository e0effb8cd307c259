// Log-densities that leave out far tiles of centers, for points and centers in a spatial order
// (neighbours one after another).
//
// In few dimensions one warp owns 32 R rows and walks over boxes of 128 centers each, 32 boxes at a
// time. The tile whose box is nearest comes first, so that references and sums are good before
// anything else; then tiles outward from there. A box is left out if no term in it can be as large
// as max_lost_mass / n of any row's sum so far: sums only grow, and all that is left out then adds
// up to less than max_lost_mass of the sum (docs/numerics.md, section 6;
// csrc/cpu/tree_log_density-inl.h).

#pragma once
#include "direct.cuh"

namespace noisyflow {
namespace cuda {

constexpr int kWarp = 32;

// Corners of the boxes of `size` rows each: component (2 k + side) of box t at [component * count
// + t].
template <class T>
__global__ void boxes_kernel(MatrixView<T> matrix, int64_t d, int size, int64_t count, T* boxes) {
  const int64_t box = blockIdx.x;
  const int64_t end = (box + 1) * size < matrix.count ? (box + 1) * size : matrix.count;
  for (int64_t k = 0; k < d; ++k) {
    T low = kNever<T>, high = -kNever<T>;
    for (int64_t j = box * size + threadIdx.x; j < end; j += kWarp) {
      const T y = matrix.rows[j * matrix.stride + k];
      low = y < low ? y : low;
      high = y > high ? y : high;
    }
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const T other_low = __shfl_xor_sync(0xffffffffu, low, lanes);
      const T other_high = __shfl_xor_sync(0xffffffffu, high, lanes);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    if (threadIdx.x != 0) continue;
    boxes[2 * k * count + box] = low;
    boxes[(2 * k + 1) * count + box] = high;
  }
}

// log2 from below, off by less than 1: the exponent of a positive number.
__device__ __forceinline__ float log2_floor(float x) {
  return float((__float_as_int(x) >> 23) - 127);
}
__device__ __forceinline__ double log2_floor(double x) {
  return double((__double_as_longlong(x) >> 52) - 1023);
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = larger(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  return value;
}

// The largest exponent (scaled squared distance) that some row of the warp may still need.
// Rounded up: log2_allowed is log2(n / max_lost_mass), or log2(1 / max_lost_mass) with weights.
template <class T, int D, int R>
__device__ __forceinline__ T needed_exponent(const RowSums<T, D, R>& rows, T log2_allowed) {
  T most = -T(INFINITY);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const T limit =
        rows.sum[r] > 0 ? (log2_allowed - log2_floor(rows.sum[r])) - rows.ref[r] : T(INFINITY);
    most = larger(most, limit);
  }
  return warp_max(most * (most > 0 ? 1 + 4 * kEpsilon<T> : 1));
}

// terms[split * m + i] as in log_sums_kernel; per_split is a multiple of 32 tiles.
template <class T, int D, int R, int U>
__global__ void __launch_bounds__(kWarp, 12)
    skipping_kernel(PointsView<T> points, MixtureView<T> mixture, T minus_scale, T log2_allowed,
                    const T* boxes, int tiles, int tiles_per_split, LogTerm<T>* terms) {
  using Sums = RowSums<T, D, R>;
  __shared__ __align__(16) T tile[kTile * Sums::kSize];
  __shared__ T low[D], high[D];
  const int lane = threadIdx.x, d = int(mixture.d);
  const int64_t first = int64_t(blockIdx.x) * (kWarp * R) + lane;
  Sums rows;
  rows.start(points, d, first, kWarp);

  // -- the box of the rows -----------------------------------------------------------------------
#pragma unroll
  for (int k = 0; k < D; ++k) {
    T least = rows.x[0][k], most = rows.x[0][k];
#pragma unroll
    for (int r = 1; r < R; ++r) {
      least = rows.x[r][k] < least ? rows.x[r][k] : least;
      most = larger(most, rows.x[r][k]);
    }
    least = -warp_max(-least);
    most = warp_max(most);
    if (lane == 0) {
      low[k] = least;
      high[k] = most;
    }
  }
  __syncthreads();

  // -- the nearest tile --------------------------------------------------------------------------
  T least = T(INFINITY);
  int nearest = 0;
#pragma unroll 1
  for (int t = lane; t < tiles; t += kWarp) {
    T square = 0;  // between the middles of boxes, times 4
#pragma unroll 1
    for (int k = 0; k < d; ++k) {
      const T apart = (boxes[int64_t(2 * k) * tiles + t] - high[k]) +
                      (boxes[int64_t(2 * k + 1) * tiles + t] - low[k]);
      square = fused(apart, apart, square);
    }
    if (square < least) {
      least = square;
      nearest = t;
    }
  }
  const T least_of_all = -warp_max(-least);
  const unsigned holders = __ballot_sync(0xffffffffu, least == least_of_all);
  nearest = __shfl_sync(0xffffffffu, nearest, holders ? __ffs(int(holders)) - 1 : 0);

  const PartRanges::Range everything = PartRanges::all();
  auto add = [&](int t, bool is_first) {
    __syncthreads();
    load_centers<T, D, kWarp>(mixture, int64_t(t) * kTile, mixture.n, tile);
    __syncthreads();
    rows.template add_tile<U>(tile, minus_scale, 0, is_first, true,
                              [&](int, bool) { return everything; });
  };
  add(nearest, true);
  T needed = needed_exponent(rows, log2_allowed);

  const int begin = blockIdx.y * tiles_per_split;
  const int end = begin + tiles_per_split < tiles ? begin + tiles_per_split : tiles;
  if (nearest < begin || nearest >= end) {  // another split's: only its bound is of use
#pragma unroll
    for (int r = 0; r < R; ++r) {
      rows.ref[r] = kLowest<T>;
      rows.sum[r] = rows.lost[r] = 0;
    }
  }

  // -- all others, 32 at a time, outward from the nearest ----------------------------------------
  // Rounding of differences, squares, sums and the scale, taken off so that a bound stays one.
  const T scale = -minus_scale * (1 - T(d + 6) * kEpsilon<T>);
  const int batches = (end - begin + kWarp - 1) / kWarp;
  int start = (nearest - begin) / kWarp;
  start = nearest < begin ? 0 : start < batches ? start : batches - 1;
#pragma unroll 1
  for (int step = 0; step < 2 * batches; ++step) {
    const int batch = step % 2 == 0 ? start + step / 2 : start - (step + 1) / 2;
    if (batch < 0 || batch >= batches) continue;
    const int t = begin + batch * kWarp + lane;
    T exponent = T(INFINITY);
    if (t < end && t != nearest) {
      T square = 0;
#pragma unroll 1
      for (int k = 0; k < d; ++k) {
        const T above = boxes[int64_t(2 * k) * tiles + t] - high[k];
        const T below = low[k] - boxes[int64_t(2 * k + 1) * tiles + t];
        const T gap = larger(larger(above, below), T(0));
        square = fused(gap, gap, square);
      }
      exponent = square * scale;
    }
    // The nearest of those needed, until none is.
#pragma unroll 1
    while (true) {
      const T nearest_exponent = -warp_max(-exponent);
      if (!(nearest_exponent < needed)) break;
      const unsigned candidates = __ballot_sync(0xffffffffu, exponent == nearest_exponent);
      const int chosen = __ffs(int(candidates)) - 1;
      if (lane == chosen) exponent = T(INFINITY);
      add(begin + batch * kWarp + chosen, false);
      const T now = needed_exponent(rows, log2_allowed);
      needed = now < needed ? now : needed;
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t i = first + r * kWarp;
    if (i < points.m) terms[blockIdx.y * points.m + i] = {rows.ref[r], rows.sum[r]};
  }
}

// -- many dimensions, or double ------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T block_largest(T value, T* scratch) {
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int w = 0; w < kThreads / kWarp; ++w) value = larger(value, scratch[w]);
  return value;
}

// The first thread that has the least value, and that value.
template <class T>
__device__ __forceinline__ int block_nearest(T value, T* scratch, int* chosen, T& least) {
  if (threadIdx.x == 0) *chosen = kThreads;
  least = -block_largest(-value, scratch);
  if (value == least) atomicMin(chosen, int(threadIdx.x));
  __syncthreads();
  const int thread = *chosen;
  __syncthreads();
  return thread;
}

// As skipping_kernel, for tiles of TileShape: a block looks at 128 boxes at a time. Boxes of rows
// are computed before, too. A row's sum is at least that of any of its 16 threads.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    tiled_skipping_kernel(PointsView<T> points, MixtureView<T> mixture, T minus_scale,
                          T log2_allowed, const T* row_boxes, int row_tiles, const T* boxes,
                          int tiles, int tiles_per_split, LogTerm<T>* terms) {
  using Shape = TileShape<T>;
  constexpr int RM = Shape::kRowsEach;
  __shared__ __align__(16) T shared[Shape::kShared];
  __shared__ T scratch[kThreads / kWarp];
  __shared__ int chosen;
  __shared__ T exponents[kThreads];  // of a batch of boxes; registers are short
  const int64_t d = mixture.d, first_row = int64_t(blockIdx.x) * Shape::kRows;
  const int64_t own_row = first_row + threadIdx.x / 16 * RM;
  const T* const low = row_boxes + blockIdx.x;  // of dimension k: [2 k row_tiles], then the high
  TiledSums<T> sums;
  sums.clear();

  auto add = [&](int t) {
    sums.add_tile(points, mixture, first_row, int64_t(t) * Shape::kColumns, mixture.n, minus_scale,
                  true, shared, [](int) { return PartRanges::all(); });
  };
  auto needed_by_rows = [&] {
    T most = -T(INFINITY);
#pragma unroll
    for (int r = 0; r < RM; ++r) {
      T limit =
          sums.sum[r] > 0 ? (log2_allowed - log2_floor(sums.sum[r])) - sums.ref[r] : T(INFINITY);
#pragma unroll
      for (int lanes = 8; lanes > 0; lanes /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, limit, lanes);
        limit = other < limit ? other : limit;
      }
      if (own_row + r < points.m) most = larger(most, limit);
    }
    return block_largest(most * (most > 0 ? 1 + 4 * kEpsilon<T> : 1), scratch);
  };

  // -- the nearest tile --------------------------------------------------------------------------
  T least = T(INFINITY);
  int nearest = 0;
#pragma unroll 1
  for (int t = threadIdx.x; t < tiles; t += kThreads) {
    T square = 0;
#pragma unroll 1
    for (int64_t k = 0; k < d; ++k) {
      const T apart = (boxes[2 * k * tiles + t] - low[(2 * k + 1) * row_tiles]) +
                      (boxes[(2 * k + 1) * tiles + t] - low[2 * k * row_tiles]);
      square = fused(apart, apart, square);
    }
    if (square < least) {
      least = square;
      nearest = t;
    }
  }
  T least_of_all;
  const int holder = block_nearest(least, scratch, &chosen, least_of_all);
  if (int(threadIdx.x) == holder % kThreads) chosen = holder < kThreads ? nearest : 0;
  __syncthreads();
  nearest = chosen;
  add(nearest);
  T needed = needed_by_rows();
  const int begin = blockIdx.y * tiles_per_split;
  const int end = begin + tiles_per_split < tiles ? begin + tiles_per_split : tiles;
  if (nearest < begin || nearest >= end) sums.clear();  // another split's

  // -- all others, 128 at a time, outward from the nearest ---------------------------------------
  const T scale = -minus_scale * (1 - T(d + 6) * kEpsilon<T>);
  const int batches = (end - begin + kThreads - 1) / kThreads;
  int start = (nearest - begin) / kThreads;
  start = nearest < begin ? 0 : start < batches ? start : batches - 1;
#pragma unroll 1
  for (int step = 0; step < 2 * batches; ++step) {
    const int batch = step % 2 == 0 ? start + step / 2 : start - (step + 1) / 2;
    if (batch < 0 || batch >= batches) continue;
    const int first = begin + batch * kThreads, t = first + int(threadIdx.x);
    exponents[threadIdx.x] = T(INFINITY);
    if (t < end && t != nearest) {
      T square = 0;
#pragma unroll 1
      for (int64_t k = 0; k < d; ++k) {
        const T above = boxes[2 * k * tiles + t] - low[(2 * k + 1) * row_tiles];
        const T below = low[2 * k * row_tiles] - boxes[(2 * k + 1) * tiles + t];
        const T gap = larger(larger(above, below), T(0));
        square = fused(gap, gap, square);
      }
      exponents[threadIdx.x] = square * scale;
    }
#pragma unroll 1
    while (true) {
      T nearest_exponent;
      const int thread = block_nearest(exponents[threadIdx.x], scratch, &chosen, nearest_exponent);
      if (!(nearest_exponent < needed)) break;
      if (int(threadIdx.x) == thread) exponents[thread] = T(INFINITY);
      add(first + thread);
      const T now = needed_by_rows();
      needed = now < needed ? now : needed;
    }
  }
  sums.write(own_row, points.m, terms);
}

}  // namespace cuda
}  // namespace noisyflow
