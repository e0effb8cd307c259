// Sums of 2^-(scaled squared distance) from differences of coordinates, every pair: the forward
// kernels, in as few instructions per pair as they can be (2 d + 3).
//
// Shapes. A thread owns R rows (points), with all their coordinates in registers; the block walks
// over tiles of 128 columns (centers) in shared memory, whose loads are broadcast. Columns are also
// split over blockIdx.y where there are few rows. What is left of a row is a LogTerm: (ref, sum)
// for sum * 2^ref; merge_kernel adds those of the splits and turns them into nats.
//
// Precision policy: as core/log_sum.h and the CPU's tile loops. Differences and squares in T, of
// the coordinates as given; a column's weight shift is where the sum of squares starts. One FMA
// scales and subtracts the row's reference, so the exponents that matter are computed near zero.
// A reference is stale: it moves only when the sum of a batch of 64 terms exceeds 2^12
// (kSettled): then that row does its batch again, after a look for the largest. Terms of a batch
// are summed in T, batches by Kahan's rule.

#pragma once
#include "device_math.cuh"

namespace noisyflow {
namespace cuda {

constexpr int kThreads = 128;
constexpr int kTile = 128;  // columns in shared memory
constexpr int kBatch = 64;  // terms between two looks at the reference
// A larger one would let exponents far from zero matter: t - ref of 100 is rounded to 2^-18.
constexpr float kSettled = 4096;

constexpr int kDoneRows = 128;  // of a flag in PartRanges::done

// The reference of a row that has met nothing, below any other. Exponents below it count as -inf.
template <class T>
constexpr T kLowest = T(-0.875) * std::numeric_limits<T>::max();

// An exponent relative to the largest. One FMA keeps the rounding of the largest, a part of its
// last bit, of either sign: it belongs to the sum. So far from zero that this rounding is worth
// powers of two, it is taken off instead: the largest term must be there, and none may overflow.
template <class T>
__device__ __forceinline__ T below_top(T fused_exponent, T rounded_exponent, T top) {
  constexpr T kCoarse = T(8) / kEpsilon<T>;
  return top > -kCoarse ? fused_exponent : rounded_exponent - top;
}

// sum * 2^ref.
template <class T>
struct LogTerm {
  T ref, sum;
};

// Columns of rows: which part of the mixture a row wants (views.h). own null: all centers.
struct PartRanges {
  const int64_t* own;
  const Membership* membership;
  int part;
  // Of each kDoneRows rows, in device memory: 1 if others have written their output. Null: nobody
  // has. For the tiled kernel.
  const int* done = nullptr;

  // Columns [begin, end) without [hole_begin, hole_end).
  struct Range {
    int begin, end, hole_begin, hole_end;
    __device__ bool has(int j) const {
      return j >= begin && j < end && !(j >= hole_begin && j < hole_end);
    }
  };

  __device__ static Range all() { return {0, INT32_MAX, INT32_MAX, INT32_MAX}; }

  __device__ Range of(int64_t i) const {
    if (!own) return all();
    const int center = int(own[i]);
    const Membership block = membership[center];
    if (part == kInner) return {block.inner_begin, block.inner_end, center, center + 1};
    if (part == kOuter)
      return {block.outer_begin, block.outer_end, block.inner_begin, block.inner_end};
    return {0, INT32_MAX, block.outer_begin, block.outer_end};
  }
};

// -- tiles ---------------------------------------------------------------------------------------

// A column in shared memory: D coordinates, E more numbers, padding to whole vectors.
template <class T, int D, int E>
constexpr int kColumnSize =
    sizeof(T) == 4 ? (D + E <= 2 ? 2 : (D + E + 3) / 4 * 4) : (D + E + 1) / 2 * 2;

template <int Size>
__device__ __forceinline__ void load_column(const float* at, float (&column)[Size]) {
  if constexpr (Size == 2) {
    const float2 v = *reinterpret_cast<const float2*>(at);
    column[0] = v.x, column[1] = v.y;
  } else {
#pragma unroll
    for (int q = 0; q < Size; q += 4) {
      const float4 v = *reinterpret_cast<const float4*>(at + q);
      column[q] = v.x, column[q + 1] = v.y, column[q + 2] = v.z, column[q + 3] = v.w;
    }
  }
}

template <int Size>
__device__ __forceinline__ void load_column(const double* at, double (&column)[Size]) {
#pragma unroll
  for (int q = 0; q < Size; q += 2) {
    const double2 v = *reinterpret_cast<const double2*>(at + q);
    column[q] = v.x, column[q + 1] = v.y;
  }
}

// Coordinates of rows [first, end) of a matrix, as columns of D; zeros beyond d and end.
template <class T, int D, int Size, int Threads>
__device__ __forceinline__ void copy_coordinates(const T* from, int64_t stride, int d,
                                                 int64_t first, int64_t end, T* tile) {
  for (int t = threadIdx.x; t < kTile * D; t += Threads) {
    const int j = t / D, k = t - j * D;
    const bool exists = first + j < end && (D == 1 || k < d);
    tile[j * Size + k] = exists ? from[(first + j) * stride + k] : T(0);
  }
}

// Centers [first, end) as columns with their shift; none beyond.
template <class T, int D, int Threads>
__device__ __forceinline__ void load_centers(const MixtureView<T>& mixture, int64_t first,
                                             int64_t end, T* tile) {
  constexpr int kSize = kColumnSize<T, D, 1>;
  copy_coordinates<T, D, kSize, Threads>(mixture.centers, mixture.stride, int(mixture.d), first,
                                         end, tile);
  for (int j = threadIdx.x; j < kTile; j += Threads) {
    T shift = kNever<T>;
    if (first + j < end) shift = mixture.weight_shift ? mixture.weight_shift[first + j] : T(0);
    tile[j * kSize + D] = shift;
  }
}

// The squared distance plus a shift, always in this order: gradients repeat it bit by bit.
template <class T, int D, int Size>
__device__ __forceinline__ T shifted_square(const T (&x)[D], const T (&y)[Size], T shift) {
  T square = shift;
#pragma unroll
  for (int k = 0; k < D; ++k) {
    const T difference = x[k] - y[k];
    square = fused(difference, difference, square);
  }
  return square;
}

// -- rows ----------------------------------------------------------------------------------------

// R rows of one thread and their sums.
template <class T, int D, int R>
struct RowSums {
  static constexpr int kSize = kColumnSize<T, D, 1>;
  T x[R][D];
  T ref[R], sum[R], lost[R];  // lost: what Kahan's rule takes off the next addend

  // Row r is first + r * step; rows beyond m are the last one again.
  __device__ __forceinline__ void start(const PointsView<T>& points, int d, int64_t first,
                                        int step) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      int64_t i = first + r * step;
      i = i < points.m ? i : points.m - 1;
#pragma unroll
      for (int k = 0; k < D; ++k)
        x[r][k] = D == 1 || k < d ? points.points[i * points.stride + k] : T(0);
      ref[r] = kLowest<T>;
      sum[r] = lost[r] = 0;
    }
  }

  __device__ __forceinline__ void add(int r, T addend) {
    const T corrected = addend - lost[r], next = sum[r] + corrected;
    lost[r] = (next - sum[r]) - corrected;
    sum[r] = next;
  }

  // The terms of a batch relative to the references as they are: inf where one is far off.
  template <int U>
  __device__ __forceinline__ void batch_sums(const T* batch, T minus_scale, T (&sums)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) sums[r] = 0;
#pragma unroll 1
    for (int j = 0; j < kBatch; j += U) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        T y[kSize];
        load_column(batch + (j + u) * kSize, y);
#pragma unroll
        for (int r = 0; r < R; ++r)
          sums[r] += pow2(fused(shifted_square<T, D>(x[r], y, y[D]), minus_scale, -ref[r]));
      }
    }
  }

  // A batch of row r whose reference must move, or of which only some columns count; first: the
  // index of its first column.
  __device__ __forceinline__ void settle(const T* batch, T minus_scale, int r, int first,
                                         const PartRanges::Range& range) {
    T top = ref[r];
#pragma unroll 1
    for (int j = 0; j < kBatch; ++j) {
      T y[kSize];
      load_column(batch + j * kSize, y);
      const T square = shifted_square<T, D>(x[r], y, y[D]);
      if (square < kNever<T> && range.has(first + j))
        top = larger(top, rounded_product(square, minus_scale));
    }
    if (!(top > kLowest<T>)) return;
    const T factor = pow2(ref[r] - top);
    sum[r] *= factor;
    lost[r] *= factor;
    ref[r] = top;
    T terms = 0;
#pragma unroll 1
    for (int j = 0; j < kBatch; ++j) {
      T y[kSize];
      load_column(batch + j * kSize, y);
      const T square = shifted_square<T, D>(x[r], y, y[D]);
      const T t =
          below_top(fused(square, minus_scale, -top), rounded_product(square, minus_scale), top);
      if (range.has(first + j)) terms += pow2(t);
    }
    add(r, terms);
  }

  // A tile, first being the index of its first column. Where not all its columns count, or where
  // nothing was met before (is_first), no time is lost on batch_sums().
  template <int U, class RangeOf>
  __device__ __forceinline__ void add_tile(const T* tile, T minus_scale, int first, bool is_first,
                                           bool has_all, RangeOf range_of) {
#pragma unroll 1
    for (int b = 0; b < kTile; b += kBatch) {
      const T* batch = tile + b * kSize;
      T sums[R];
      bool is_settled = has_all && !(is_first && b == 0);
      if (is_settled) {
        batch_sums<U>(batch, minus_scale, sums);
#pragma unroll
        for (int r = 0; r < R; ++r) is_settled &= sums[r] < T(kSettled);
      } else {
#pragma unroll
        for (int r = 0; r < R; ++r) sums[r] = T(kSettled);
      }
      if (is_settled) {
#pragma unroll
        for (int r = 0; r < R; ++r) add(r, sums[r]);
      } else {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (sums[r] < T(kSettled))
            add(r, sums[r]);
          else
            settle(batch, minus_scale, r, first + b, range_of(r, has_all));
        }
      }
    }
  }
};

// The largest over the block.
template <int Threads>
__device__ __forceinline__ int block_max(int value, int* scratch) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const int other = __shfl_xor_sync(0xffffffffu, value, lanes);
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  for (int w = 0; w < Threads / 32; ++w) value = scratch[w] > value ? scratch[w] : value;
  return value;
}

// What the ranges of a block's rows have in common. In shared memory: registers are short.
struct CommonRange {
  int least_begin, most_begin, least_end, most_end;
  int least_hole_begin, most_hole_begin, least_hole_end, most_hole_end;

  __device__ bool has_none(int first, int end) const {
    return end <= least_begin || first >= most_end ||
           (first >= most_hole_begin && end <= least_hole_end);
  }
  __device__ bool has_all(int first, int end) const {
    return first >= most_begin && end <= least_end &&
           (end <= least_hole_begin || first >= most_hole_end);
  }
};

// Rows first + r * step of every thread. Ends with a barrier.
template <int R, int Threads>
__device__ __forceinline__ void find_common_range(const PartRanges& ranges, int64_t first, int step,
                                                  int64_t m, int* scratch, CommonRange& common) {
  constexpr int kLow = -INT32_MAX;
  int most[4] = {kLow, kLow, kLow, kLow}, minus_least[4] = {kLow, kLow, kLow, kLow};
  if (!ranges.own) {
    if (threadIdx.x == 0)
      common = {0, 0, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};
    __syncthreads();
    return;
  }
#pragma unroll 1
  for (int r = 0; r < R; ++r) {
    const int64_t i = first + r * step;
    const PartRanges::Range range = ranges.of(i < m ? i : m - 1);
    const int ends[4] = {range.begin, range.end, range.hole_begin, range.hole_end};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      most[e] = ends[e] > most[e] ? ends[e] : most[e];
      minus_least[e] = -ends[e] > minus_least[e] ? -ends[e] : minus_least[e];
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    most[e] = block_max<Threads>(most[e], scratch);
    minus_least[e] = block_max<Threads>(minus_least[e], scratch);
  }
  if (threadIdx.x == 0)
    common = {-minus_least[0], most[0], -minus_least[1], most[1],
              -minus_least[2], most[2], -minus_least[3], most[3]};
  __syncthreads();
}

// -- few dimensions ------------------------------------------------------------------------------

// Blocks of a multiprocessor, so that the compiler may use 128 or 168 registers.
template <int D>
constexpr int kResident = D <= 5 ? 4 : 3;

// terms[split * m + i]: the sum of row i over the centers of a split, `per_split` each (a multiple
// of kTile). Rows blockIdx.x * kThreads * R + r * kThreads + thread; d <= D.
template <class T, int D, int R, int U>
__global__ void __launch_bounds__(kThreads, kResident<D>)
    log_sums_kernel(PointsView<T> points, MixtureView<T> mixture, T minus_scale, int64_t per_split,
                    PartRanges ranges, LogTerm<T>* terms) {
  using Sums = RowSums<T, D, R>;
  __shared__ __align__(16) T tile[kTile * Sums::kSize];
  __shared__ int scratch[kThreads / 32];
  __shared__ CommonRange common;
  const int64_t first = int64_t(blockIdx.x) * (kThreads * R) + threadIdx.x;
  Sums rows;
  rows.start(points, int(mixture.d), first, kThreads);
  find_common_range<R, kThreads>(ranges, first, kThreads, points.m, scratch, common);

  int64_t begin = blockIdx.y * per_split;
  const int64_t end = begin + per_split < mixture.n ? begin + per_split : mixture.n;
  bool is_first = true;
  if (common.least_begin > begin) begin += (common.least_begin - begin) / kTile * kTile;
#pragma unroll 1
  for (int64_t j = begin; j < end && j < common.most_end; j += kTile) {
    const int tile_end = int(j + kTile < end ? j + kTile : end);
    if (common.has_none(int(j), tile_end)) continue;
    __syncthreads();
    load_centers<T, D, kThreads>(mixture, j, end, tile);
    __syncthreads();
    rows.template add_tile<U>(tile, minus_scale, int(j), is_first, common.has_all(int(j), tile_end),
                              [&](int r, bool has_all) {
                                const int64_t i = first + r * kThreads;
                                return has_all ? PartRanges::all()
                                               : ranges.of(i < points.m ? i : points.m - 1);
                              });
    is_first = false;
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t i = first + r * kThreads;
    if (i < points.m) terms[blockIdx.y * points.m + i] = {rows.ref[r], rows.sum[r]};
  }
}

// -- many dimensions, or double ------------------------------------------------------------------

// 128 threads are 8 x 16; a thread has RM rows beside CN columns. Coordinates come through shared
// memory, kChunk dimensions at a time, by dimension.
//
// A sum of d squares passes values as large as d / 2 exponents, each addition being rounded
// accordingly: in float, chunks are summed by themselves, from zero, and added up by Kahan's rule.
constexpr int kChunk = 16;

template <class T>
struct TileShape {
  static constexpr bool kIsFloat = sizeof(T) == 4;
  static constexpr int kRowsEach = kIsFloat ? 8 : 4, kColumnsEach = 4;
  static constexpr int kRows = 8 * kRowsEach, kColumns = 16 * kColumnsEach;
  static constexpr int kPad = 16 / int(sizeof(T));  // spreads a transposed row over the banks
  static constexpr int kRowStride = kRows + kPad, kColumnStride = kColumns + kPad;
  static constexpr int kShared = kChunk * (kRowStride + kColumnStride);
};

// A matrix of rows; as many as there are.
template <class T>
struct MatrixView {
  const T* rows;
  int64_t stride, count;
};

template <int Count>
__device__ __forceinline__ void load_vector(const float* at, float (&out)[Count]) {
#pragma unroll
  for (int q = 0; q < Count; q += 4) {
    const float4 v = *reinterpret_cast<const float4*>(at + q);
    out[q] = v.x, out[q + 1] = v.y, out[q + 2] = v.z, out[q + 3] = v.w;
  }
}

template <int Count>
__device__ __forceinline__ void load_vector(const double* at, double (&out)[Count]) {
#pragma unroll
  for (int q = 0; q < Count; q += 2) {
    const double2 v = *reinterpret_cast<const double2*>(at + q);
    out[q] = v.x, out[q + 1] = v.y;
  }
}

// Dimensions [from, from + kChunk) of `Rows` rows of a matrix, transposed; zeros where none are.
template <int Rows, class T>
__device__ __forceinline__ void load_chunk(const MatrixView<T>& matrix, int64_t first, int64_t d,
                                           int64_t from, T* chunk) {
  constexpr int kStride = Rows + TileShape<T>::kPad, kStep = kThreads / kChunk;
  const int k = threadIdx.x % kChunk, row = threadIdx.x / kChunk;
  const int left = matrix.count - first < Rows ? int(matrix.count - first) : Rows;
  const int existing = from + k < d ? left : 0;
  const T* at = matrix.rows + (first + row) * matrix.stride + from + k;
#pragma unroll
  for (int s = 0; s < Rows; s += kStep) {
    chunk[k * kStride + row + s] = row + s < existing ? *at : T(0);
    at += kStep * matrix.stride;
  }
}

// Squared distances of a thread's rows and columns: high - low, on top of what they are before
// (high; low starts at zero). Called by the whole block; shared: TileShape::kShared numbers.
template <class T>
__device__ __forceinline__ void add_squares(
    const MatrixView<T>& rows, int64_t first_row, const MatrixView<T>& columns,
    int64_t first_column, int64_t d, T* shared,
    T (&high)[TileShape<T>::kRowsEach][TileShape<T>::kColumnsEach],
    T (&low)[TileShape<T>::kRowsEach][TileShape<T>::kColumnsEach]) {
  using Shape = TileShape<T>;
  constexpr int RM = Shape::kRowsEach, CN = Shape::kColumnsEach;
  T* const x_chunk = shared;
  T* const y_chunk = shared + kChunk * Shape::kRowStride;
  const T* const x_at = x_chunk + threadIdx.x / 16 * RM;
  const T* const y_at = y_chunk + threadIdx.x % 16 * CN;
#pragma unroll 1
  for (int64_t from = 0; from < d; from += kChunk) {
    __syncthreads();
    load_chunk<Shape::kRows>(rows, first_row, d, from, x_chunk);
    load_chunk<Shape::kColumns>(columns, first_column, d, from, y_chunk);
    __syncthreads();
    const int count = d - from < kChunk ? int(d - from + 1) / 2 * 2 : kChunk;
    T part[RM][CN];
    if constexpr (Shape::kIsFloat) {
#pragma unroll
      for (int r = 0; r < RM; ++r)
#pragma unroll
        for (int c = 0; c < CN; ++c) part[r][c] = 0;
    }
#pragma unroll 2
    for (int k = 0; k < count; ++k) {
      T x[RM], y[CN];
      load_vector(x_at + k * Shape::kRowStride, x);
      load_vector(y_at + k * Shape::kColumnStride, y);
#pragma unroll
      for (int r = 0; r < RM; ++r)
#pragma unroll
        for (int c = 0; c < CN; ++c) {
          const T difference = x[r] - y[c];
          T& sum = Shape::kIsFloat ? part[r][c] : high[r][c];
          sum = fused(difference, difference, sum);
        }
    }
    if constexpr (Shape::kIsFloat) {
#pragma unroll
      for (int r = 0; r < RM; ++r)
#pragma unroll
        for (int c = 0; c < CN; ++c) {
          const T corrected = part[r][c] - low[r][c], next = high[r][c] + corrected;
          low[r][c] = (next - high[r][c]) - corrected;
          high[r][c] = next;
        }
    }
  }
}

// -s (high - low) - ref. A square beyond all numbers leaves NaN, infinity less infinity, in Kahan's
// rule: its exponent is -inf.
template <class T>
__device__ __forceinline__ T exponent(T high, T low, T minus_scale, T ref) {
  const T t = fused(high, minus_scale, -ref);
  return TileShape<T>::kIsFloat ? larger(fused(low, -minus_scale, t), -T(INFINITY)) : t;
}

// The sums of a thread's rows over its columns of tiles.
template <class T>
struct TiledSums {
  using Shape = TileShape<T>;
  static constexpr int RM = Shape::kRowsEach, CN = Shape::kColumnsEach;
  T ref[RM], sum[RM], lost[RM];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < RM; ++r) {
      ref[r] = kLowest<T>;
      sum[r] = lost[r] = 0;
    }
  }

  // Columns [j, j + kColumns), none from `end` on. range_of(r) where not all of them count.
  template <class RangeOf>
  __device__ __forceinline__ void add_tile(const PointsView<T>& points,
                                           const MixtureView<T>& mixture, int64_t first_row,
                                           int64_t j, int64_t end, T minus_scale, bool has_all,
                                           T* shared, RangeOf range_of) {
    const int own_column = threadIdx.x % 16 * CN;
    T high[RM][CN], low[RM][CN];
#pragma unroll
    for (int c = 0; c < CN; ++c) {
      const int64_t column = j + own_column + c;
      T shift = kNever<T>;
      if (column < end) shift = mixture.weight_shift ? mixture.weight_shift[column] : T(0);
#pragma unroll
      for (int r = 0; r < RM; ++r) {
        high[r][c] = shift;
        low[r][c] = 0;
      }
    }
    add_squares<T>({points.points, points.stride, points.m}, first_row,
                   {mixture.centers, mixture.stride, end}, j, mixture.d, shared, high, low);

#pragma unroll
    for (int r = 0; r < RM; ++r) {
      T terms_sum = 0;
#pragma unroll
      for (int c = 0; c < CN; ++c)
        terms_sum += pow2(exponent(high[r][c], low[r][c], minus_scale, ref[r]));
      if (!(has_all && terms_sum < T(kSettled))) {  // as RowSums::settle
        const PartRanges::Range range = has_all ? PartRanges::all() : range_of(r);
        T top = ref[r];
#pragma unroll
        for (int c = 0; c < CN; ++c)
          if (high[r][c] < kNever<T> && range.has(int(j) + own_column + c))
            top = larger(top, exponent(high[r][c], low[r][c], minus_scale, T(0)));
        if (!(top > kLowest<T>)) continue;
        const T factor = pow2(ref[r] - top);
        sum[r] *= factor;
        lost[r] *= factor;
        ref[r] = top;
        terms_sum = 0;
#pragma unroll
        for (int c = 0; c < CN; ++c) {
          const T t = below_top(exponent(high[r][c], low[r][c], minus_scale, top),
                                exponent(high[r][c], low[r][c], minus_scale, T(0)), top);
          if (range.has(int(j) + own_column + c)) terms_sum += pow2(t);
        }
      }
      const T corrected = terms_sum - lost[r], next = sum[r] + corrected;
      lost[r] = (next - sum[r]) - corrected;
      sum[r] = next;
    }
  }

  // Adds up the 16 threads that share a row; the first of them writes it.
  __device__ __forceinline__ void write(int64_t own_row, int64_t m, LogTerm<T>* terms) {
#pragma unroll
    for (int r = 0; r < RM; ++r) {
#pragma unroll
      for (int lanes = 8; lanes > 0; lanes /= 2) {
        const T other_ref = __shfl_xor_sync(0xffffffffu, ref[r], lanes);
        const T other_sum = __shfl_xor_sync(0xffffffffu, sum[r], lanes);
        const T top = larger(ref[r], other_ref);
        sum[r] = sum[r] * pow2(ref[r] - top) + other_sum * pow2(other_ref - top);
        ref[r] = top;
      }
      if (threadIdx.x % 16 == 0 && own_row + r < m)
        terms[blockIdx.y * m + own_row + r] = {ref[r], sum[r]};
    }
  }
};

// As log_sums_kernel, any d; a block has TileShape::kRows rows.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    tiled_log_sums_kernel(PointsView<T> points, MixtureView<T> mixture, T minus_scale,
                          int64_t per_split, PartRanges ranges, LogTerm<T>* terms) {
  using Shape = TileShape<T>;
  constexpr int RM = Shape::kRowsEach;
  __shared__ __align__(16) T shared[Shape::kShared];
  __shared__ int scratch[kThreads / 32];
  __shared__ CommonRange common;
  const int64_t first_row = int64_t(blockIdx.x) * Shape::kRows;
  static_assert(kDoneRows % Shape::kRows == 0, "one flag for a block");
  if (ranges.done && ranges.done[first_row / kDoneRows]) return;
  const int64_t own_row = first_row + threadIdx.x / 16 * RM;  // the thread's first
  TiledSums<T> sums;
  sums.clear();
  find_common_range<RM, kThreads>(ranges, own_row, 1, points.m, scratch, common);

  int64_t begin = blockIdx.y * per_split;
  const int64_t end = begin + per_split < mixture.n ? begin + per_split : mixture.n;
  if (common.least_begin > begin)
    begin += (common.least_begin - begin) / Shape::kColumns * Shape::kColumns;
#pragma unroll 1
  for (int64_t j = begin; j < end && j < common.most_end; j += Shape::kColumns) {
    const int tile_end = int(j + Shape::kColumns < end ? j + Shape::kColumns : end);
    if (common.has_none(int(j), tile_end)) continue;
    sums.add_tile(
        points, mixture, first_row, j, end, minus_scale, common.has_all(int(j), tile_end), shared,
        [&](int r) { return ranges.of(own_row + r < points.m ? own_row + r : points.m - 1); });
  }
  sums.write(own_row, points.m, terms);
}

// -- to nats -------------------------------------------------------------------------------------

// From powers of two to nats: log2(e) / (2 noise_std^2) is rounded to T in kernels, and `unit`
// takes that back: a reference stands for a squared distance.
struct Nats {
  double unit, constant;
};

template <class T>
__device__ __forceinline__ T to_nats(double ref, double sum, const Nats& nats) {
  if (!(sum > 0)) return T(-INFINITY);
  return T(ref * nats.unit + log2(sum) * 0.69314718055994530942 + nats.constant);
}

// out[i]: the log of row i's terms over all splits, unless it is done; one thread per row.
template <class T>
__global__ void merge_kernel(const LogTerm<T>* terms, int64_t m, int splits, Nats nats,
                             const int* done, T* out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= m || (done && done[i / kDoneRows])) return;
  double ref = double(kLowest<T>), sum = 0;
  for (int s = 0; s < splits; ++s) {
    const LogTerm<T> term = terms[s * m + i];
    if (!(term.sum > 0)) continue;
    const double top = larger(ref, double(term.ref));
    sum = sum * exp2(ref - top) + double(term.sum) * exp2(double(term.ref) - top);
    ref = top;
  }
  out[i] = to_nats<T>(ref, sum, nats);
}

// out[i]: the log-density of row i's own center alone; one thread per row.
template <class T>
__global__ void own_kernel(PointsView<T> points, MixtureView<T> mixture, const int64_t* own,
                           Nats nats, T* out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= points.m) return;
  const T* x = points.points + i * points.stride;
  const T* y = mixture.centers + own[i] * mixture.stride;
  double square = mixture.weight_shift ? double(mixture.weight_shift[own[i]]) : 0;
  const bool has_weight = square < double(kNever<T>);
  for (int64_t k = 0; k < mixture.d; ++k) {
    const double difference = double(x[k]) - double(y[k]);
    square += difference * difference;
  }
  const double exponent = square / (2 * mixture.noise_std * mixture.noise_std);
  out[i] = has_weight ? T(nats.constant - exponent) : T(-INFINITY);
}

}  // namespace cuda
}  // namespace noisyflow
