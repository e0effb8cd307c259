// Gradients of the log-density, in two passes of one kind over all pairs: rows in the lanes of
// vectors, columns broadcast. Points are the rows for their own gradients, and centers for theirs
// (GradientPass in views.h); what either needs is q_rc, whose exponent starts from the saved
// log-density, so that no term is larger than 1 and none that matters is far from it.
//
// Precision policy. The saved log-density is rounded, and as an exponent that is large far from all
// centers; so the terms of a point are divided by their own sum, and their rounding alone is left.
// Both passes compute a pair's term in the same order: what a point is pulled by is what its
// centers are pulled by. Differences are of the coordinates as given, and a term is multiplied by
// them: a sum of w y less x times a sum of w cancels at little noise. In many dimensions, where
// coordinates are so few noise_std that the expanded form of log_density-inl.h is exact enough for
// all pairs, it serves for squares and sums alike. Otherwise, in more than kFewDims, squares are
// summed by kChunk dimensions, and these added up with what each addition loses. Terms are summed
// in T over kMaxTile columns, and in double beyond. Rules of target files: log_density-inl.h.

#pragma once
#include <math.h>

#include "../core/exp2_poly.h"
#include "../core/saturate.h"
#include "../core/views.h"
#include "dispatch.h"
#include "log_density-inl.h"
#include "simd.h"
#include "tree_log_density-inl.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

// A sum of terms that are not even nearly 1 in all comes from a log-density that is rounded, or
// wrong, by many bits.
constexpr double kMassBits = 30;
constexpr double kClampBits = 60;            // exponents beyond are out of range
constexpr int64_t kGradientBytes = 1 << 20;  // of all blocks of rows of a task: they stay in L2
// Up to here a plain sum of squares is exact enough: of exponents of 20, it loses 1e-6 of a term.
constexpr int64_t kFewDims = 32;
constexpr int64_t kLeastGradientTile = 48;  // columns for which the rows are read again

// What a block of rows has met so far.
template <class T, int Q>
struct RowSums {
  static constexpr int kGroup = Q * kLanes<T>;
  double mass[kGroup], squares[kGroup];  // of terms, and of terms times exponents
  T base[kGroup];
  T limits[kGroup];            // squared distances
  T nearest[kGroup];           // smallest exponent over the scale, if the pass is light
  T* rows;                     // d x Q vectors: coordinates, or -2 times those from the origin
  T* norms;                    // num_steps() x Q vectors
  T* gradient;                 // d x Q vectors: not yet in the sums
  double* sums;                // d x Q x kLanes
  int64_t begin, end, folded;  // rows; columns in `gradient`

  void fold(int64_t d) {
    for (int64_t i = 0; i < d * kGroup; ++i) {
      sums[i] += double(gradient[i]);
      gradient[i] = T(0);
    }
    folded = 0;
  }
};

// Columns of one call.
template <class T>
struct ColumnRange {
  const T* columns;
  int64_t stride, count;  // count: whole blocks
  const T* shift;
  const T* multiplier;
  const T* norms;  // `steps` apart
  int64_t step, steps;
};

enum GradientFlags {
  kGradient = 1,
  kSquares = 2,
  kScaled = 4,
  kLight = 8,
  kManyDims = 16,
  kExpanded = 32
};

// What start() has rounded off. The base of a point is some d / 2 exponents large: beside a
// weight's shift it is rounded otherwise for every weight, by 8e-6 at d = 255 (bar 2e-5).
template <class T, int Q, int C>
inline __attribute__((always_inline)) void lost_at_start(const T* shift, const Vec<T>* base, int d,
                                                         const Vec<T>* s, Vec<T>* lost) {
#pragma GCC unroll 16
  for (int i = 0; i < C * Q; ++i) lost[i] = Vec<T>{};
  if (d < 256) return;
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const Vec<T> sum = s[c * Q + q], added = sum - shift[c];
      lost[c * Q + q] = (shift[c] - (sum - added)) - (base[q] + added);
    }
}

// Squared distances in many dimensions, added to s. What an addition to s loses is kept; where the
// part is larger than s, it is right but for the rounding of a part.
template <class T, int Q, int C>
inline __attribute__((always_inline)) void add_squares_chunked(const T* rows, const T* columns,
                                                               int64_t stride, int d, Vec<T>* s,
                                                               Vec<T>* lost) {
#pragma GCC unroll 1
  for (int k = 0; k < d; k += kChunk) {
    Vec<T> part[C * Q];
#pragma GCC unroll 16
    for (int i = 0; i < C * Q; ++i) part[i] = Vec<T>{};
    add_squares<T, Q, C, kChunk>(rows, columns, stride, k, k + kChunk < d ? k + kChunk : d, part);
#pragma GCC unroll 16
    for (int i = 0; i < C * Q; ++i) {
      const Vec<T> sum = s[i] + part[i];
      lost[i] += part[i] - (sum - s[i]);
      s[i] = sum;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < C * Q; ++i) s[i] += lost[i];
}

// The same as |x|^2 + |y|^2 - 2 x.y of `step` dimensions at a time, for coordinates from an origin.
template <class T, int Q, int C>
inline __attribute__((always_inline)) void add_squares_expanded(const RowSums<T, Q>& sums,
                                                                const ColumnRange<T>& range,
                                                                const T* columns, const T* norms,
                                                                int d, Vec<T>* s, Vec<T>* lost) {
  const int step = int(range.step);
  const T* x = sums.rows;
  const T* row_norms = sums.norms;
  Vec<T> part[C * Q];
  for (int k = 0; k < d; row_norms += Q * kLanes<T>, ++norms) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q)
        part[c * Q + q] = load<T>(row_norms + q * kLanes<T>) + norms[c * range.steps];
    const int end = k + step < d ? k + step : d;
#pragma GCC unroll 1
    for (; k < end; ++k, x += Q * kLanes<T>) {
      Vec<T> v[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        v[q] = load<T>(x + q * kLanes<T>);
        __builtin_prefetch(x + (kChunk * Q + q) * kLanes<T>);
      }
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) part[c * Q + q] += v[q] * columns[c * range.stride + k];
    }
    if (range.steps == 1) break;
#pragma GCC unroll 16
    for (int i = 0; i < C * Q; ++i) {
      const Vec<T> sum = s[i] + part[i];
      lost[i] += part[i] - (sum - s[i]);
      s[i] = sum;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < C * Q; ++i) s[i] += range.steps == 1 ? part[i] : lost[i];
}

// Kahan's sum: `lost` is what `sum` has too much.
template <class T>
inline __attribute__((always_inline)) void add_exactly(Vec<T> part, Vec<T>& sum, Vec<T>& lost) {
  part -= lost;
  const Vec<T> next = sum + part;
  lost = (next - sum) - part;
  sum = next;
}

// At most kMaxTile columns.
template <class T, int Q, int C, int Flags>
__attribute__((noinline)) void add_columns(const ColumnRange<T>& range, int64_t dims, T scale,
                                           RowSums<T, Q>& sums) {
  constexpr bool kIsClamped = (Flags & kLight) || !kExp2Overflows;
  const int d = int(dims);
  const Vec<T> least = broadcast<T>(-T(kClampBits) / scale);
  // Exponents start from L: those of n equal terms are log n nats each, and what their mean differs
  // by is wanted. So its two sums keep what additions lose.
  constexpr bool kIsExact = Flags & kSquares;
  Vec<T> base[Q], nearest[Q], mass[Q], mass_lost[Q], squares[Q], squares_lost[Q];
  for (int q = 0; q < Q; ++q) {
    base[q] = load<T>(sums.base + q * kLanes<T>);
    nearest[q] = mass[q] = mass_lost[q] = squares[q] = squares_lost[q] = Vec<T>{};
  }
  for (int64_t j = 0; j < range.count; j += C) {
    const T* columns = range.columns + j * range.stride;
    Vec<T> s[C * Q], t[C * Q], lost[C * Q];
    start<T, Q, C, true>(range.shift + j, base, s);
    if constexpr (Flags & (kExpanded | kManyDims))
      lost_at_start<T, Q, C>(range.shift + j, base, d, s, lost);
    if constexpr (Flags & kExpanded)
      add_squares_expanded<T, Q, C>(sums, range, columns, range.norms + j * range.steps, d, s,
                                    lost);
    else if constexpr (Flags & kManyDims)
      add_squares_chunked<T, Q, C>(sums.rows, columns, range.stride, d, s, lost);
    else
      add_squares<T, Q, C>(sums.rows, columns, range.stride, 0, d, s);
    if constexpr (Flags & kLight)
#pragma GCC unroll 16
      for (int i = 0; i < C * Q; ++i) nearest[i % Q] = vmin(s[i], nearest[i % Q]);
    if constexpr (kIsClamped)
#pragma GCC unroll 16
      for (int i = 0; i < C * Q; ++i) s[i] = s[i] < least ? least : s[i];
    exp2_terms<T, C * Q>(s, scale, t);
    Vec<T> mass_part[Q], squares_part[Q];
    for (int q = 0; q < Q; ++q) mass_part[q] = squares_part[q] = Vec<T>{};
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        Vec<T>& term = t[c * Q + q];
        if constexpr (Flags & kScaled) term *= range.multiplier[j + c];
        (kIsExact ? mass_part : mass)[q] += term;
        if constexpr (Flags & kSquares) {
          // No term is zero on some targets, but centers of weight zero are at kNever.
          const Vec<T> square = s[c * Q + q] - range.shift[j + c];
          const T never = kNever<T> / 2;
          if (kExp2Overflows || range.shift[j + c] < never) squares_part[q] += term * square;
        }
      }
    if constexpr (kIsExact)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        add_exactly<T>(mass_part[q], mass[q], mass_lost[q]);
        add_exactly<T>(squares_part[q], squares[q], squares_lost[q]);
      }
    if constexpr (Flags & kGradient) {
      T* gradient = sums.gradient;
      const T* rows = sums.rows;
#pragma GCC unroll 1
      for (int k = 0; k < d; ++k, gradient += Q * kLanes<T>, rows += Q * kLanes<T>) {
        Vec<T> x[Q], g[Q];
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          if constexpr (!(Flags & kExpanded)) x[q] = load<T>(rows + q * kLanes<T>);
          g[q] = load<T>(gradient + q * kLanes<T>);
        }
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
          const T y = columns[c * range.stride + k];
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) {
            if constexpr (Flags & kExpanded) {
              g[q] += t[c * Q + q] * y;
            } else {
              const Vec<T> diff = y - x[q];
              g[q] += t[c * Q + q] * diff;
            }
          }
        }
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) store<T>(gradient + q * kLanes<T>, g[q]);
      }
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int l = 0; l < kLanes<T>; ++l) {
      const int at = q * kLanes<T> + l;
      sums.mass[at] += double(mass[q][l]) - double(mass_lost[q][l]);
      if constexpr (Flags & kSquares)
        sums.squares[at] += double(squares[q][l]) - double(squares_lost[q][l]);
      if constexpr (Flags & kLight)
        sums.nearest[at] = nearest[q][l] < sums.nearest[at] ? nearest[q][l] : sums.nearest[at];
    }
  if constexpr (Flags & kGradient) {
    sums.folded += range.count;
    if (sums.folded >= kMaxTile) sums.fold(dims);
  }
}

template <class T, int Q>
using AddColumns = void (*)(const ColumnRange<T>&, int64_t, T, RowSums<T, Q>&);

template <class T, int Q, int C, int Flags>
AddColumns<T, Q> choose_form(const GradientPass<T>& pass) {
  if (pass.step) return &add_columns<T, Q, C, Flags | kExpanded>;
  return pass.d > kFewDims ? &add_columns<T, Q, C, Flags | kManyDims>
                           : &add_columns<T, Q, C, Flags>;
}

template <class T, int Q, int C>
AddColumns<T, Q> choose_add_columns(const GradientPass<T>& pass) {
  if (pass.is_light) return choose_form<T, Q, C, kLight | kScaled>(pass);
  if (pass.multiplier)
    return pass.gradient ? choose_form<T, Q, C, kScaled | kGradient>(pass)
                         : choose_form<T, Q, C, kScaled>(pass);
  if (pass.squares)
    return pass.gradient ? choose_form<T, Q, C, kSquares | kGradient>(pass)
                         : choose_form<T, Q, C, kSquares>(pass);
  return pass.gradient ? choose_form<T, Q, C, kGradient>(pass) : choose_form<T, Q, C, 0>(pass);
}

template <class T, int Q>
void write_rows(const GradientPass<T>& pass, RowSums<T, Q>& sums, T scale) {
  constexpr int kGroup = Q * kLanes<T>;
  if (pass.gradient) sums.fold(pass.d);
  const double per_variance = 1 / (pass.noise_std * pass.noise_std);
  const double least = exp2(-kMassBits), most = exp2(kMassBits);
  for (int l = 0; l < int(sums.end - sums.begin); ++l) {
    const int64_t row = sums.begin + l, i = pass.order ? pass.order[row] : row;
    double mass = sums.mass[l];
    if (pass.is_light) {
      pass.mass[i] = sums.nearest[l] < -T(kClampBits) / scale ? double(NAN) : mass;
      continue;
    }
    const bool is_row_of_points = !pass.multiplier;
    if (is_row_of_points && !(mass >= least && mass <= most)) mass = 0;
    pass.mass[i] = mass;
    if (is_row_of_points && mass == 0) continue;
    if (pass.squares) pass.squares[i] = double(sums.base[l]) + sums.squares[l] / mass;
    if (!pass.gradient) continue;
    const double gain = pass.gains ? double(pass.gains[i]) / mass : pass.gain;
    T* out = pass.gradient + i * pass.d;
    for (int64_t k = 0; k < pass.d; ++k) {
      double sum = sums.sums[k * kGroup + l];
      if (pass.step) sum += 0.5 * double(sums.rows[k * kGroup + l]) * sums.mass[l];
      out[k] = T(saturate<T>(gain * saturate<double>(sum * per_variance)));
    }
  }
}

// Bytes of a block of rows.
template <class T, int Q>
int64_t row_bytes(int64_t d) {
  constexpr int kGroup = Q * kLanes<T>;
  return int64_t(sizeof(RowSums<T, Q>)) + kGroup * d * int64_t(2 * sizeof(T) + sizeof(double)) +
         kGroup * num_steps(d, kLeastStep) * int64_t(sizeof(T));
}

template <class T, int Q>
int64_t most_row_blocks(int64_t d) {
  const int64_t most = kGradientBytes / row_bytes<T, Q>(d);
  return most < 1 ? 1 : most > kGroupsPerTask ? kGroupsPerTask : most;
}

template <class T, int Q, int C>
int64_t gradient_scratch_bytes(const GradientPass<T>& pass) {
  const int64_t d = pass.d;
  const int64_t stack = pass.tree ? (kFanout - 1) * pass.tree->tree.depth + 1 : 0;
  return most_row_blocks<T, Q>(d) * row_bytes<T, Q>(d) + (C + 2) * d * int64_t(sizeof(T)) +
         stack * int64_t(sizeof(int32_t)) + 256;
}

// Blocks of rows in one thread's memory.
template <class T, int Q, int C>
struct RowBlocks {
  static constexpr int kGroup = Q * kLanes<T>;

  const GradientPass<T>& pass;
  RowSums<T, Q>* blocks;
  int num_blocks;
  T* rest;     // (C, d)
  T* corners;  // (2, d)
  int32_t* stack;

  RowBlocks(const GradientPass<T>& for_pass, int64_t first, int64_t last, void* scratch)
      : pass(for_pass), num_blocks(int(last - first)) {
    const int64_t d = pass.d, steps = pass.step ? num_steps(d, pass.step) : 0;
    double* doubles = static_cast<double*>(scratch);
    T* numbers = reinterpret_cast<T*>(doubles + num_blocks * kGroup * d);
    const int64_t block_size = kGroup * (2 * d + steps);
    blocks = reinterpret_cast<RowSums<T, Q>*>(numbers + num_blocks * block_size);
    rest = reinterpret_cast<T*>(blocks + num_blocks);
    corners = rest + C * d;
    stack = reinterpret_cast<int32_t*>(corners + 2 * d);
    for (int b = 0; b < num_blocks; ++b) {
      RowSums<T, Q>& sums = blocks[b];
      const int64_t at = first + b;
      sums.begin = pass.blocks ? pass.blocks[at] : at * kGroup;
      sums.end = pass.blocks ? pass.blocks[at + 1] : sums.begin + kGroup;
      if (sums.end > pass.rows.m) sums.end = pass.rows.m;
      sums.rows = numbers + b * block_size;
      sums.gradient = sums.rows + kGroup * d;
      sums.norms = sums.gradient + kGroup * d;
      sums.sums = doubles + b * kGroup * d;
      start(sums);
    }
  }

  void start(RowSums<T, Q>& sums) {
    const int64_t d = pass.d, steps = pass.step ? num_steps(d, pass.step) : 0;
    sums.folded = 0;
    pack_points<T, Q>(pass.rows, sums.begin, sums.end, d, sums.rows);
    if (pass.step) {
      for (int64_t i = 0; i < kGroup * d; ++i) sums.rows[i] *= T(-2);
      pack_points<T, Q>({pass.row_norms, steps, pass.rows.m}, sums.begin, sums.end, steps,
                        sums.norms);
    }
    for (int64_t i = 0; pass.gradient && i < d * kGroup; ++i)
      sums.gradient[i] = T(sums.sums[i] = 0);
    for (int l = 0; l < kGroup; ++l) {
      const int64_t row = sums.begin + l < sums.end ? sums.begin + l : sums.end - 1;
      const int64_t i = pass.order ? pass.order[row] : row;
      sums.base[l] = pass.base[i];
      sums.limits[l] = pass.tree && pass.tree->row_limits ? pass.tree->row_limits[i] : T(INFINITY);
      sums.mass[l] = sums.squares[l] = 0;
      sums.nearest[l] = T(0);
    }
  }

  // Calls visit(begin, end) for the runs of columns that some row of a block needs, in order.
  template <class Visit>
  void visit_columns(const RowSums<T, Q>& sums, Visit visit) {
    const GradientTree<T>& tree = *pass.tree;
    const int64_t d = pass.d;
    T *low = corners, *high = corners + d;
    for (int64_t k = 0; k < d; ++k) {
      const T* x = sums.rows + k * kGroup;
      low[k] = high[k] = x[0];
      for (int l = 1; l < kGroup; ++l) {
        low[k] = x[l] < low[k] ? x[l] : low[k];
        high[k] = x[l] > high[k] ? x[l] : high[k];
      }
    }
    T most = sums.limits[0];
    for (int l = 1; l < kGroup; ++l) most = sums.limits[l] > most ? sums.limits[l] : most;
    int64_t size = 0, begin = 0, end = 0;
    stack[size++] = 0;
    while (size > 0) {
      const int32_t node = stack[--size];
      if (node >= 0) {
        T distances[kFanout];
        child_distances<T>(low, high, tree.tree.node_boxes + int64_t(node) * 2 * d * kFanout, d,
                           distances);
        const int32_t* children = tree.tree.children + int64_t(node) * kFanout;
        const T* limits = tree.node_limits ? tree.node_limits + int64_t(node) * kFanout : nullptr;
        for (int c = kFanout - 1; c >= 0; --c)
          if (distances[c] < most && (!limits || distances[c] < limits[c]))
            stack[size++] = children[c];
        continue;
      }
      const int32_t leaf = ~node;
      T of_leaf[kGroup];
      if (tree.leaf_limits)
        for (T& limit : of_leaf) limit = tree.leaf_limits[leaf];
      if (!is_needed<T, Q>(sums.rows, tree.tree.leaf_boxes + int64_t(leaf) * 2 * d, d,
                           tree.leaf_limits ? of_leaf : sums.limits))
        continue;
      if (tree.begins[leaf] != end || tree.begins[leaf + 1] - begin > kMaxTile) {
        if (begin < end) visit(begin, end);
        begin = tree.begins[leaf];
      }
      end = tree.begins[leaf + 1];
    }
    if (begin < end) visit(begin, end);
  }
};

// Blocks [first, last) of rows, at most most_row_blocks(d). scratch: gradient_scratch_bytes().
template <class T, int Q, int C>
int64_t evaluate_gradients(const GradientPass<T>& pass, int64_t first, int64_t last,
                           void* scratch) {
  const FlushDenormals flush;
  const int64_t d = pass.d, n = pass.num_columns;
  const int64_t steps = pass.step ? num_steps(d, pass.step) : 0;
  const T scale = T(0.5 * M_LOG2E / (pass.noise_std * pass.noise_std));
  const AddColumns<T, Q> add = choose_add_columns<T, Q, C>(pass);
  RowBlocks<T, Q, C> rows(pass, first, last, scratch);
  int64_t pairs = 0;
  auto range = [&](const T* columns, int64_t stride, int64_t begin, int64_t count) {
    return ColumnRange<T>{columns,
                          stride,
                          count,
                          pass.shift + begin,
                          pass.multiplier ? pass.multiplier + begin : nullptr,
                          pass.step ? pass.column_norms + begin * steps : nullptr,
                          pass.step,
                          steps};
  };

  if (pass.tree) {
    for (int b = 0; b < rows.num_blocks; ++b) {
      RowSums<T, Q>& sums = rows.blocks[b];
      rows.visit_columns(sums, [&](int64_t begin, int64_t end) {
        add(range(pass.columns + begin * pass.stride, pass.stride, begin, end - begin), d, scale,
            sums);
        pairs += (end - begin) * (sums.end - sums.begin);
      });
      write_rows<T, Q>(pass, sums, scale);
    }
    return pairs;
  }

  // -- tiles of columns outside, blocks of rows inside --------------------------------------------
  const int64_t whole = n / C * C;
  int64_t tile = kTileBytes / (int64_t(sizeof(T)) * d);
  tile = tile > kMaxTile ? kMaxTile : tile < kLeastGradientTile ? kLeastGradientTile : tile;
  tile = tile / C * C;
  auto add_all = [&](const ColumnRange<T>& columns) {
    for (int b = 0; b < rows.num_blocks; ++b) add(columns, d, scale, rows.blocks[b]);
  };
  for (int64_t begin = 0; begin < whole; begin += tile)
    add_all(range(pass.columns + begin * pass.stride, pass.stride, begin,
                  begin + tile < whole ? tile : whole - begin));
  if (whole < n) {  // the last columns, and copies of the very last that count for nothing
    for (int64_t c = 0; c < C; ++c) {
      const int64_t j = whole + c < n ? whole + c : n - 1;
      for (int64_t k = 0; k < d; ++k) rows.rest[c * d + k] = pass.columns[j * pass.stride + k];
    }
    add_all(range(rows.rest, d, whole, C));
  }
  for (int b = 0; b < rows.num_blocks; ++b) {
    write_rows<T, Q>(pass, rows.blocks[b], scale);
    pairs += n * (rows.blocks[b].end - rows.blocks[b].begin);
  }
  return pairs;
}

template <class T, int Q, int C>
int64_t count_columns(const GradientPass<T>& pass, int64_t block, void* scratch) {
  RowBlocks<T, Q, C> rows(pass, block, block + 1, scratch);
  int64_t count = 0;
  rows.visit_columns(rows.blocks[0], [&](int64_t begin, int64_t end) { count += end - begin; });
  return count;
}

template <class T>
GradientKernel<T> gradient_kernel() {
  constexpr int Q = 2, C = kVectorBytes == 64 ? 6 : 3;
  return {&evaluate_gradients<T, Q, C>,
          &count_columns<T, Q, C>,
          &gradient_scratch_bytes<T, Q, C>,
          &most_row_blocks<T, Q>,
          Q * kLanes<T>,
          C,
          kExpansionError<T>};
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
