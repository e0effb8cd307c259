// Log-densities that leave out far tiles of centers, for points and centers in a spatial order
// (neighbours one after another).
//
// One warp owns 32 R rows and walks over boxes of 128 centers each, 32 boxes at a time. The tile
// whose box is nearest comes first, so that references and sums are good before anything else; then
// tiles outward from there. A box is left out if no term in it can be as large as max_lost_mass / n
// of any row's sum so far: sums only grow, and all that is left out then adds up to less than
// max_lost_mass of the sum (docs/numerics.md, section 6; csrc/cpu/tree_log_density-inl.h).

#pragma once
#include "direct.cuh"

namespace noisyflow {
namespace cuda {

constexpr int kWarp = 32;

// Corners of the boxes of all tiles: component (2 k + side) of tile t at [component * tiles + t].
template <class T>
__global__ void boxes_kernel(MixtureView<T> mixture, int64_t tiles, T* boxes) {
  const int64_t tile = blockIdx.x;
  const int64_t end = (tile + 1) * kTile < mixture.n ? (tile + 1) * kTile : mixture.n;
  for (int64_t k = 0; k < mixture.d; ++k) {
    T low = kNever<T>, high = -kNever<T>;
    for (int64_t j = tile * kTile + threadIdx.x; j < end; j += kWarp) {
      const T y = mixture.centers[j * mixture.stride + k];
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
    boxes[2 * k * tiles + tile] = low;
    boxes[(2 * k + 1) * tiles + tile] = high;
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

}  // namespace cuda
}  // namespace noisyflow
