// Log-densities for many dimensions in float32, by tensor cores: |x - y|^2 expanded on a grid.
//
// About an origin o, a coordinate is h (g + l): h = N / 2048 for the largest norm N of a point or
// center, g an integer of at most 2048, exact in fp16, and l in [-1/2, 1/2] in one fp16 (x4: four
// products g.g, g.l, l.g, l.l) or two (x6: and g.l2, l2.g). Then
//
//     |x - y|^2 / h^2 = (|g_x|^2 + |g_y|^2 - 2 g_x.g_y) + (small terms),
//
// and the first part, where everything cancels, is a sum of integers below 2^24, without any
// error. The norms are those of the rounded coordinates, or the rounding would return.
// The reference of a row is an integer, too: an exponent near it is computed near zero.
//
// Precision (docs/numerics.md): what is left are the rounding of l, sqrt(c |x-y|^2 c N^2) 2^-23
// sqrt(2) in an exponent, c = log2(e) / (2 noise_std^2), and that of the small terms' sum,
// proportional to c N^2. A block of 128 rows is evaluated by x4 where the first is at most
// kTensorToleranceBits for the pairs that count, else by x6 if the second is, else not at all: its
// flag stays 0, and that is the direct kernel's to do. Nothing of this needs the host.

#pragma once
#include "direct.cuh"

namespace noisyflow {
namespace cuda {

constexpr int kTensorRows = kDoneRows;            // of a block, 32 for each warp
constexpr int kRowTiles = 2;                      // 16 rows each, of a warp
constexpr int kColumnTiles = 4;                   // 8 columns each, whose sums are in registers
constexpr int kTensorColumns = 8 * kColumnTiles;  // of a step
constexpr int kDepth = 4;                         // 16 dimensions each, of columns in shared memory
constexpr int kGridBits = 11;                     // integers up to 2^11 are exact in fp16
constexpr float kNeverUnits = 1e30f;              // squared distance of a column that is not there
constexpr double kTensorToleranceBits = 2e-5 * 1.4426950408889634;  // as the CPU's expansion
constexpr int kMostOriginRows = 4096;

struct TensorScalars {
  unsigned long long norm_bits;   // of the largest squared norm, a double
  unsigned long long shift_bits;  // of the largest weight shift of a center that is there
};

// What the kernels share, one in device memory.
struct TensorPlan {
  double inverse_step;   // 1 / h
  double scale;          // c h^2, exactly a float
  double most_exponent;  // c |x - y|^2 of the nearest center, for x4
  double sum_error;      // of the small terms' sum, log2 units
};

// Where everything is. Points are padded to 128 rows, centers to 32, dimensions to 16.
struct TensorView {
  TensorScalars* scalars;
  TensorPlan* plan;
  double* origin;      // (d,)
  uint4* points;       // [row tile][step][part][lane]: -2 g, -2 l, -2 l2 as an A operand
  float4* point_sums;  // (m,): |g|^2, then what x4 and x6 add to it
  uint4* centers;      // [column tile][step][lane]: g and l as B operands
  uint2* centers_low;  // [column tile][step][lane]: l2
  float4* center_sums;
  double2* partial;  // [split][row]: reference, in units of h^2, and sum
  int* failed;       // [x4, x6][block of rows]
  int* done;         // [block of rows]: its output is written
  int64_t m, n, padded_m, padded_n;
  int steps, splits;  // 16 dimensions each; of the columns
};

// -- instructions --------------------------------------------------------------------------------

// The nearest fp16, as its bits, and back.
__device__ __forceinline__ unsigned to_half(float x) {
#if defined(NOISYFLOW_HOST_SHIM)
  return shim::to_half(x);
#else
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#endif
}

__device__ __forceinline__ float from_half(unsigned bits) {
#if defined(NOISYFLOW_HOST_SHIM)
  return shim::from_half(bits);
#else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<unsigned short>(bits)));
  return x;
#endif
}

// d += a b for a (16, 16) and b (16, 8) of fp16 over the warp, in float32. With g = lane / 4 and q
// = lane % 4, the lane holds rows g and g + 8 of a and d; a: columns 2 q, 2 q + 1 of both rows,
// then 2 q + 8, 2 q + 9; b: the same as rows, of column g; d: columns 2 q, 2 q + 1.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint4& a, unsigned b0,
                                             unsigned b1) {
#if defined(NOISYFLOW_HOST_SHIM)
  const unsigned fragment[6] = {a.x, a.y, a.z, a.w, b0, b1};
  shim::multiply_add_16x8x16(d, fragment);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}

// -- preparation ---------------------------------------------------------------------------------

// The mean of at most kMostOriginRows centers: any origin is right, one amid the data is good.
// Blocks of (32, 8) threads, a column of threads for each dimension.
__global__ void tensor_origin_kernel(MixtureView<float> mixture, double* origin) {
  __shared__ double sums[8][32];
  const int64_t k = blockIdx.x * 32 + threadIdx.x;
  const int64_t step = (mixture.n + kMostOriginRows - 1) / kMostOriginRows;
  double sum = 0;
  int64_t count = 0;
  for (int64_t j = threadIdx.y * step; j < mixture.n; j += 8 * step, ++count) {
    if (k < mixture.d) sum += double(mixture.centers[j * mixture.stride + k]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || k >= mixture.d) return;
  for (int r = 1; r < 8; ++r) sum += sums[r][threadIdx.x];
  origin[k] = sum / double((mixture.n + step - 1) / step);
}

// The largest squared norm about the origin; with shifts, the largest of those, too. A warp a row.
__global__ void tensor_norms_kernel(const float* rows, int64_t stride, int64_t count, int d,
                                    const double* origin, const float* shifts,
                                    TensorScalars* scalars) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t(gridDim.x) * (blockDim.x / 32);
  double largest = 0, largest_shift = 0;
  for (int64_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
    if (shifts && shifts[i] < kNever<float>) {
      largest_shift = larger(largest_shift, fabs(double(shifts[i])));
    } else if (shifts) {
      continue;  // of weight zero: wherever it is, it does not count
    }
    double square = 0;
    for (int k = lane; k < d; k += 32) {
      const double difference = double(rows[i * stride + k]) - origin[k];
      square += difference * difference;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
      square += __shfl_xor_sync(0xffffffffu, square, lanes);
    largest = larger(largest, square);
  }
  if (lane != 0) return;
  // Of numbers that are not negative, the bits are in the order of the values.
  atomicMax(&scalars->norm_bits, static_cast<unsigned long long>(__double_as_longlong(largest)));
  atomicMax(&scalars->shift_bits,
            static_cast<unsigned long long>(__double_as_longlong(largest_shift)));
}

// Error of the sum of small terms, per unit of c N^2: they are at most about 2^12 h^2, and each of
// the `steps` by 5 instructions is off by a unit in the last place of that, cut off or rounded.
inline __host__ __device__ double tensor_sum_error(int steps) {
  return 5.0 * steps / (2048.0 * 4194304.0);
}

// One thread. c: log2(e) / (2 noise_std^2).
__global__ void tensor_plan_kernel(const TensorScalars* scalars, double c, int steps,
                                   TensorPlan* plan) {
  const double norm = __longlong_as_double(static_cast<long long>(scalars->norm_bits));
  const double shift = __longlong_as_double(static_cast<long long>(scalars->shift_bits));
  constexpr double kUnits = double(1 << kGridBits) * double(1 << kGridBits);
  // Rounded up to a float, by a little more than that, so that no integer exceeds 2048; far from
  // subnormal, for points that coincide.
  double scale = c * norm / kUnits * (1 + 1e-6);
  scale = double(float(larger(scale, 1e-12)));
  TensorPlan result;
  result.scale = scale;
  result.inverse_step = sqrt(c / scale);
  const double norm_bits = scale * kUnits;  // c N^2
  // Two coordinates' l, each off by at most 2^-13 h: Hoeffding's scale of their sum is
  // 2 c |x - y| sqrt(2) 2^-13 h, as for the CPU's expansion.
  const double residual_error = 2 * sqrt(2.0) / 8192 * sqrt(norm_bits / kUnits);
  result.sum_error = tensor_sum_error(steps) * norm_bits;
  // Weights are integers of the exact sum, too, unless they are so small that it is rounded.
  if (c * shift > norm_bits) result.sum_error += steps * c * shift / 8388608.0;
  // residual_error sqrt(exponent) + sum_error is at most the tolerance up to 40 beyond the nearest.
  const double left = (kTensorToleranceBits - result.sum_error) / residual_error;
  result.most_exponent = left > 0 ? left * left - 40 : -1;
  *plan = result;
}

// A coordinate on the grid.
struct GridPart {
  int whole;
  unsigned low, lower;    // l and l2 as fp16
  double small4, small6;  // l, and l + l2, as rounded

  __device__ __forceinline__ GridPart(double x) {
    const double nearest = rint(x);
    whole = int(nearest);
    const double rest = x - nearest;
    low = to_half(float(rest));
    small4 = double(from_half(low));
    lower = to_half(float(rest - small4));
    small6 = small4 + double(from_half(lower));
  }
};

// Sums over dimensions: |g|^2, and what l and l2 add to the squared norm.
struct GridSums {
  double whole = 0, small4 = 0, small6 = 0;

  __device__ __forceinline__ void add(const GridPart& p) {
    whole += double(p.whole) * p.whole;
    small4 += (2 * p.whole + p.small4) * p.small4;
    small6 += (2 * p.whole + p.small6) * p.small6;
  }
  __device__ __forceinline__ void add_quad() {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      whole += __shfl_xor_sync(0xffffffffu, whole, lanes);
      small4 += __shfl_xor_sync(0xffffffffu, small4, lanes);
      small6 += __shfl_xor_sync(0xffffffffu, small6, lanes);
    }
  }
};

// Coordinate k of row i, in grid units; 0 beyond d and count, and where the row does not count.
__device__ __forceinline__ double grid_coordinate(const float* rows, int64_t stride, int64_t count,
                                                  int d, const double* origin, double inverse_step,
                                                  int64_t i, int k) {
  if (i >= count || k >= d) return 0;
  return (double(rows[i * stride + k]) - origin[k]) * inverse_step;
}

__device__ __forceinline__ unsigned pack(unsigned low, unsigned high) { return low | high << 16; }

// Points as A operands: a warp makes 16 rows.
__global__ void tensor_points_kernel(PointsView<float> points, int d, TensorView view) {
  const int lane = threadIdx.x % 32, row = lane / 4;
  const int64_t tile = blockIdx.x * int64_t(blockDim.x / 32) + threadIdx.x / 32;
  if (tile * 16 >= view.padded_m) return;
  const double inverse_step = view.plan->inverse_step;
  GridSums sums[2];
  for (int s = 0; s < view.steps; ++s) {
    unsigned words[3][4];  // of part and register
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      unsigned halves[3][2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = s * 16 + lane % 4 * 2 + w / 2 * 8 + e;
        const GridPart part(grid_coordinate(points.points, points.stride, points.m, d, view.origin,
                                            inverse_step, tile * 16 + row + w % 2 * 8, k));
        sums[w % 2].add(part);
        halves[0][e] = to_half(-2.0f * float(part.whole));
        halves[1][e] = to_half(-2.0f * from_half(part.low));
        halves[2][e] = to_half(-2.0f * from_half(part.lower));
      }
#pragma unroll
      for (int p = 0; p < 3; ++p) words[p][w] = pack(halves[p][0], halves[p][1]);
    }
#pragma unroll
    for (int p = 0; p < 3; ++p)
      view.points[((tile * view.steps + s) * 3 + p) * 32 + lane] =
          make_uint4(words[p][0], words[p][1], words[p][2], words[p][3]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums[half].add_quad();
    if (lane % 4 == 0)
      view.point_sums[tile * 16 + row + half * 8] = make_float4(
          float(sums[half].whole), float(sums[half].small4), float(sums[half].small6), 0);
  }
}

// Centers as B operands: a warp makes 8 columns. What a weight adds to the squared distance is
// split like everything else, an integer and the rest.
__global__ void tensor_centers_kernel(MixtureView<float> mixture, TensorView view) {
  const int lane = threadIdx.x % 32;
  const int64_t tile = blockIdx.x * int64_t(blockDim.x / 32) + threadIdx.x / 32;
  if (tile * 8 >= view.padded_n) return;
  const double inverse_step = view.plan->inverse_step;
  const int64_t j = tile * 8 + lane / 4;
  float shift = j < mixture.n ? 0 : kNever<float>;
  if (j < mixture.n && mixture.weight_shift) shift = mixture.weight_shift[j];
  const bool counts = shift < kNever<float>;
  GridSums sums;
  for (int s = 0; s < view.steps; ++s) {
    unsigned words[3][2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      unsigned halves[3][2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = s * 16 + lane % 4 * 2 + w * 8 + e;
        const GridPart part(grid_coordinate(mixture.centers, mixture.stride, counts ? mixture.n : 0,
                                            int(mixture.d), view.origin, inverse_step, j, k));
        sums.add(part);
        halves[0][e] = to_half(float(part.whole));
        halves[1][e] = part.low;
        halves[2][e] = part.lower;
      }
#pragma unroll
      for (int p = 0; p < 3; ++p) words[p][w] = pack(halves[p][0], halves[p][1]);
    }
    const int64_t at = (tile * view.steps + s) * 32 + lane;
    view.centers[at] = make_uint4(words[0][0], words[0][1], words[1][0], words[1][1]);
    view.centers_low[at] = make_uint2(words[2][0], words[2][1]);
  }
  sums.add_quad();
  if (lane % 4 != 0) return;
  if (!counts) {
    view.center_sums[j] = make_float4(kNeverUnits, 0, 0, 0);
    return;
  }
  const double units = double(shift) * inverse_step * inverse_step;
  const float whole = float(sums.whole + rint(units));
  const double rest = sums.whole + units - double(whole);
  view.center_sums[j] = make_float4(whole, float(sums.small4 + rest), float(sums.small6 + rest), 0);
}

// -- the sums ------------------------------------------------------------------------------------

// Rows of one lane and their sums: two of each row tile, whose four lanes share a reference.
struct TensorRows {
  float norm[kRowTiles][2];       // |g|^2 of the point
  float reference[kRowTiles][2];  // an integer, in units of h^2
  double sum[kRowTiles][2];

  // Whether x4 serves all these rows. The exponents that count are at most 40 more than the
  // smallest, and that is at most the smallest so far.
  __device__ __forceinline__ bool are_good_by_four(const TensorView& view,
                                                   int64_t first_tile) const {
    float most = 0;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool exists = (first_tile + r) * 16 + threadIdx.x % 32 / 4 + half * 8 < view.m;
        if (exists) most = fmaxf(most, reference[r][half]);
      }
    }
    return double(most) * view.plan->scale <= view.plan->most_exponent;
  }
};

// Adds a step's columns, given squared distances less |g|^2 of the point as exact + small.
__device__ __forceinline__ void add_columns(const float (&exact)[kRowTiles][kColumnTiles][4],
                                            const float (&small)[kRowTiles][kColumnTiles][4],
                                            float minus_scale, bool is_first, TensorRows& rows) {
  float sums[kRowTiles][2];
  bool is_settled = !is_first;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float base = rows.norm[r][half] - rows.reference[r][half];
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float units = (exact[r][c][half * 2 + e] + base) + small[r][c][half * 2 + e];
          sum += pow2(units * minus_scale);
        }
      }
      sums[r][half] = sum;
      is_settled &= sum < 4096.0f;  // as in direct.cuh; false for NaN
    }
  }
  if (!__all_sync(0xffffffffu, is_settled)) {
    // The references move to the nearest column met so far.
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float nearest = rows.reference[r][half];
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float units =
                (exact[r][c][half * 2 + e] + rows.norm[r][half]) + small[r][c][half * 2 + e];
            nearest = fminf(nearest, rintf(units));
          }
        }
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2)
          nearest = fminf(nearest, __shfl_xor_sync(0xffffffffu, nearest, lanes));
        const float moved = nearest - rows.reference[r][half];  // at most 0
        rows.sum[r][half] *= double(pow2(-moved * minus_scale));
        rows.reference[r][half] = nearest;
        const float base = rows.norm[r][half] - nearest;
        float sum = 0;
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float units = (exact[r][c][half * 2 + e] + base) + small[r][c][half * 2 + e];
            sum += pow2(units * minus_scale);
          }
        }
        sums[r][half] = sum;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) rows.sum[r][half] += double(sums[r][half]);
  }
}

// partial[split][row]: the sum of a row over the columns of a split. Block blockIdx.x has rows 128
// blockIdx.x to + 127, a warp 32 of them. x4 for Parts = 2; for Parts = 3 x6, where x4 failed.
template <int Parts>
__global__ void __launch_bounds__(128, 3) tensor_kernel(TensorView view) {
  __shared__ uint4 columns[kColumnTiles][kDepth][32];
  __shared__ uint2 columns_low[Parts == 3 ? kColumnTiles : 1][kDepth][32];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, quad = lane % 4;
  const int64_t blocks = view.padded_m / kTensorRows;
  int* const failed = view.failed + (Parts - 2) * blocks + blockIdx.x;
  if (Parts == 3 && view.failed[blockIdx.x] == 0) return;

  const float minus_scale = -float(view.plan->scale);
  if (!(view.plan->sum_error <= kTensorToleranceBits)) {
    if (tid == 0) *failed = 1;
    return;
  }

  const int64_t first_tile =
      int64_t(blockIdx.x) * (kTensorRows / 16) + warp * kRowTiles;  // of this warp
  const int64_t tile_stride = view.steps * (3 * 32);
  const uint4* const own_points = view.points + first_tile * tile_stride + lane;
  TensorRows rows;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.norm[r][half] = view.point_sums[(first_tile + r) * 16 + lane / 4 + half * 8].x;
      rows.reference[r][half] = kNeverUnits;
      rows.sum[r][half] = 0;
    }
  }

  const int64_t column_steps = view.padded_n / kTensorColumns;
  const int64_t begin = column_steps * blockIdx.y / view.splits;
  const int64_t end = column_steps * (blockIdx.y + 1) / view.splits;
  const int64_t checked = begin + 3 < end ? begin + 3 : end - 1;  // after 128 columns
  bool is_good = true;
#pragma unroll 1
  for (int64_t j = begin; j < end; ++j) {
    float exact[kRowTiles][kColumnTiles][4], small[kRowTiles][kColumnTiles][4];
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const float4* sums = view.center_sums + j * kTensorColumns + c * 8 + quad * 2;
      const float4 left = sums[0], right = sums[1];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        exact[r][c][0] = exact[r][c][2] = left.x;
        exact[r][c][1] = exact[r][c][3] = right.x;
        small[r][c][0] = small[r][c][2] = Parts == 2 ? left.y : left.z;
        small[r][c][1] = small[r][c][3] = Parts == 2 ? right.y : right.z;
      }
    }
#pragma unroll 1
    for (int first = 0; first < view.steps; first += kDepth) {
      const int depth = view.steps - first < kDepth ? view.steps - first : kDepth;
      // A warp copies the columns of one tile.
      const int64_t from = ((j * kColumnTiles + warp) * view.steps + first) * 32 + lane;
      __syncthreads();
#pragma unroll
      for (int s = 0; s < kDepth; ++s) {
        if (s >= depth) break;
        columns[warp][s][lane] = view.centers[from + s * 32];
        if (Parts == 3) columns_low[warp][s][lane] = view.centers_low[from + s * 32];
      }
      __syncthreads();
      const uint4* own = own_points + first * 3 * 32;
#pragma unroll 1
      for (int s = 0; s < depth; ++s, own += 3 * 32) {
        uint4 a[kRowTiles][Parts], b[kColumnTiles];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
          for (int p = 0; p < Parts; ++p) a[r][p] = own[r * tile_stride + p * 32];
        }
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) b[c] = columns[c][s][lane];
        // One kind of product after the other: the next sum into a register is far away.
        const auto add_products = [&](float (&sums)[kRowTiles][kColumnTiles][4], int part,
                                      bool is_low) {
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r)
              multiply_add(sums[r][c], a[r][part], is_low ? b[c].z : b[c].x,
                           is_low ? b[c].w : b[c].y);
          }
        };
        add_products(exact, 0, false);
        add_products(small, 0, true);
        add_products(small, 1, false);
        add_products(small, 1, true);
        if (Parts == 3) {
          add_products(small, Parts - 1, false);
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
            const uint2 low = columns_low[c][s][lane];
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) multiply_add(small[r][c], a[r][0], low.x, low.y);
          }
        }
      }
    }
    add_columns(exact, small, minus_scale, j == begin, rows);

    if (Parts == 2 && j == checked && __syncthreads_or(!rows.are_good_by_four(view, first_tile))) {
      is_good = false;
      break;
    }
  }
  if (!is_good) {
    if (tid == 0) *failed = 1;
    return;
  }

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      double sum = rows.sum[r][half];
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      if (quad == 0)
        view.partial[blockIdx.y * view.padded_m + (first_tile + r) * 16 + lane / 4 + half * 8] =
            make_double2(double(rows.reference[r][half]), sum);
    }
  }
}

// out[i] and done, where one of the two kernels succeeded; one thread per row, 128 in a block.
__global__ void tensor_merge_kernel(TensorView view, double constant, float* out) {
  const int64_t blocks = view.padded_m / kTensorRows;
  const bool by_four = view.failed[blockIdx.x] == 0;
  const bool is_done = by_four || view.failed[blocks + blockIdx.x] == 0;
  if (threadIdx.x == 0) view.done[blockIdx.x] = is_done;
  const int64_t i = int64_t(blockIdx.x) * kTensorRows + threadIdx.x;
  if (!is_done || i >= view.m) return;
  double reference = double(kNeverUnits), sum = 0;
  for (int s = 0; s < view.splits; ++s)
    reference = fmin(reference, view.partial[s * view.padded_m + i].x);
  const double scale = view.plan->scale;
  for (int s = 0; s < view.splits; ++s) {
    const double2 part = view.partial[s * view.padded_m + i];
    sum += part.y * exp2((reference - part.x) * scale);
  }
  const float4 norms = view.point_sums[i];
  const double bits = log2(sum) - (reference + double(by_four ? norms.y : norms.z)) * scale;
  out[i] = float(bits * 0.69314718055994530942 + constant);
}

// -- launch --------------------------------------------------------------------------------------

// Splits of the columns, so that rows alone need not fill the device; the same on all.
inline int tensor_splits(int64_t padded_m, int64_t padded_n) {
  constexpr int64_t kWantedBlocks = 1024;  // 132 multiprocessors, 3 blocks each, 2 to 3 times
  const int64_t blocks = padded_m / kTensorRows;
  const int64_t most = (padded_n / kTensorColumns + 15) / 16;  // 512 columns each, at least
  const int64_t splits = (kWantedBlocks + blocks - 1) / blocks;
  return int(splits < most ? splits : most);
}

// The view and the bytes it takes in all; memory null: bytes alone.
inline TensorView tensor_view(void* memory, int64_t m, int64_t n, int64_t d, int64_t* bytes) {
  TensorView view{};
  view.m = m;
  view.n = n;
  view.padded_m = (m + kTensorRows - 1) / kTensorRows * kTensorRows;
  view.padded_n = (n + kTensorColumns - 1) / kTensorColumns * kTensorColumns;
  view.steps = int((d + 15) / 16);
  view.splits = tensor_splits(view.padded_m, view.padded_n);
  *bytes = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    if (memory) pointer = reinterpret_cast<decltype(+pointer)>(static_cast<char*>(memory) + *bytes);
    *bytes += (count * int64_t(sizeof(*pointer)) + 15) / 16 * 16;
  };
  const int64_t blocks = view.padded_m / kTensorRows;
  take(view.scalars, 1);
  take(view.failed, 2 * blocks);  // beside the scalars: both begin as zero
  take(view.done, blocks);
  take(view.plan, 1);
  take(view.origin, d);
  take(view.points, view.padded_m / 16 * view.steps * 3 * 32);
  take(view.point_sums, view.padded_m);
  take(view.centers, view.padded_n / 8 * view.steps * 32);
  take(view.centers_low, view.padded_n / 8 * view.steps * 32);
  take(view.center_sums, view.padded_n);
  take(view.partial, view.splits * view.padded_m);
  return view;
}

inline int64_t tensor_workspace_bytes(int64_t m, int64_t n, int64_t d) {
  int64_t bytes;
  tensor_view(nullptr, m, n, d, &bytes);
  return bytes;
}

// Launches all of it. constant: what is added to the log of the sum, nats. check is called with a
// kernel's name after its launch. Returns the flags of blocks of 128 rows, in device memory: out is
// written where they are 1, the rest is left to the caller.
template <class Check>
const int* launch_tensor_log_density(const PointsView<float>& points,
                                     const MixtureView<float>& mixture, double constant, float* out,
                                     void* memory, cudaStream_t stream, Check check) {
  int64_t bytes;
  const int d = int(mixture.d);
  const TensorView view = tensor_view(memory, points.m, mixture.n, mixture.d, &bytes);
  const double c = 0.5 / (mixture.noise_std * mixture.noise_std) * 1.4426950408889634074;
  const int64_t blocks = view.padded_m / kTensorRows;
  cudaMemsetAsync(
      view.scalars, 0,
      size_t(reinterpret_cast<char*>(view.done) - reinterpret_cast<char*>(view.scalars)), stream);
  LAUNCH(tensor_origin_kernel, dim3(unsigned((d + 31) / 32)), dim3(32, 8), 0, stream, mixture,
         view.origin);
  check("tensor_origin_kernel");
  constexpr int64_t most = 1024;  // blocks of 8 rows at a time
  const auto grid = [&](int64_t rows) {
    return dim3(unsigned(rows / 8 + 1 < most ? rows / 8 + 1 : most));
  };
  LAUNCH(tensor_norms_kernel, grid(points.m), dim3(256), 0, stream, points.points, points.stride,
         points.m, d, view.origin, static_cast<const float*>(nullptr), view.scalars);
  check("tensor_norms_kernel");
  LAUNCH(tensor_norms_kernel, grid(mixture.n), dim3(256), 0, stream, mixture.centers,
         mixture.stride, mixture.n, d, view.origin, mixture.weight_shift, view.scalars);
  check("tensor_norms_kernel");
  LAUNCH(tensor_plan_kernel, dim3(1), dim3(1), 0, stream, view.scalars, c, view.steps, view.plan);
  check("tensor_plan_kernel");
  LAUNCH(tensor_points_kernel, dim3(unsigned(blocks)), dim3(256), 0, stream, points, d, view);
  check("tensor_points_kernel");
  LAUNCH(tensor_centers_kernel, dim3(unsigned((view.padded_n / 8 + 3) / 4)), dim3(128), 0, stream,
         mixture, view);
  check("tensor_centers_kernel");
  const dim3 sums_grid(static_cast<unsigned>(blocks), static_cast<unsigned>(view.splits));
  LAUNCH(tensor_kernel<2>, sums_grid, dim3(128), 0, stream, view);
  check("tensor_kernel");
  LAUNCH(tensor_kernel<3>, sums_grid, dim3(128), 0, stream, view);
  check("tensor_kernel");
  LAUNCH(tensor_merge_kernel, dim3(unsigned(blocks)), dim3(kTensorRows), 0, stream, view, constant,
         out);
  check("tensor_merge_kernel");
  return view.done;
}

}  // namespace cuda
}  // namespace noisyflow
