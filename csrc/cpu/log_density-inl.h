// The tile loops, written once and compiled once per CPU target (target_*.cpp).
//
// One vector holds one coordinate of kLanes points; centers are broadcast from memory, so no
// packing of centers is needed and any row stride will do. Exponents are squared distances times
// scale = log2(e) / (2 noise_std^2), negated: base 2 inside, nats outside.
//
// Precision policy. Differences and squares in T, of the coordinates as given: near pairs
// lose nothing (the subtraction is exact there). Each lane keeps an offset, a squared distance
// close to the smallest met so far, from which accumulation starts: the terms that matter are then
// computed near zero. Terms are summed in T within a tile and in double across tiles. No running
// maximum is needed: only when some lane meets a term 2^kSlack above its offset is the sum rebased.
//
// Rules of target files: no standard containers or algorithms, no static initialisers, every
// function in the inner namespace, so that no code of one target can be linked into another.

#pragma once
#include <math.h>

#include "../core/exp2_poly.h"
#include "../core/log_sum.h"
#include "../core/views.h"
#include "dispatch.h"
#include "simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

constexpr double kSlack = 40;  // log2; 512 terms of 2^40 stay far below 2^127
constexpr int64_t kTileBytes =
    32768;                         // centers of one tile: they stay in L1 for all points of a task
constexpr int64_t kMaxTile = 512;  // float sums of more terms would lose digits

// The running sums of Q vectors of points: per lane an offset (squared distance) and a double.
template <class T, int Q>
struct LaneSums {
  T offset[Q * kLanes<T>];
  double sum[Q * kLanes<T>];

  void clear() {
    for (int l = 0; l < Q * kLanes<T>; ++l) {
      offset[l] = T(INFINITY);
      sum[l] = 0;
    }
  }

  bool all_met() const {
    for (int l = 0; l < Q * kLanes<T>; ++l)
      if (offset[l] == T(INFINITY)) return false;
    return true;
  }

  // Empties the tile's accumulator into the sums.
  void fold(int q, Vec<T>& acc) {
    for (int l = 0; l < kLanes<T>; ++l) sum[q * kLanes<T> + l] += double(acc[l]);
    acc = Vec<T>{};
  }

  // Lowers the offset of every lane of vector q that met a distance far below it.
  void rebase(int q, Vec<T> nearest, T scale) {
    const T slack = T(kSlack) / scale;
    for (int l = 0; l < kLanes<T>; ++l) {
      T& at = offset[q * kLanes<T> + l];
      if (!(nearest[l] < at - slack)) continue;  // also: inf < inf, nothing met yet
      LogSum moved{double(scale) * double(at), sum[q * kLanes<T> + l]};
      moved.rebase(double(scale) * double(nearest[l]));
      sum[q * kLanes<T> + l] = moved.sum;
      at = nearest[l];
    }
  }
};

// Squared distances minus base from Q vectors of points to C centers.
// points: d x Q vectors; centers: rows `stride` apart; shift: per center or null.
//
// The loop over dimensions stays a loop: with d known at compile time and everything unrolled,
// GCC 12 spills and is 15 % (d = 3) to 30 % (d = 10) slower (bench/README.md).
template <class T, int Q, int C, bool Weighted>
inline __attribute__((always_inline)) void distances(const T* points, const T* centers,
                                                     int64_t stride, const T* shift, int d,
                                                     const Vec<T>* base, Vec<T>* s) {
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) s[c * Q + q] = Weighted ? shift[c] - base[q] : -base[q];
#pragma GCC unroll 1
  for (int k = 0; k < d; ++k) {
    Vec<T> x[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) x[q] = load<T>(points + (k * Q + q) * kLanes<T>);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const T y = centers[c * stride + k];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const Vec<T> diff = x[q] - y;
        s[c * Q + q] += diff * diff;
      }
    }
  }
}

// Adds the terms of `count` centers, a multiple of C, to the sums of Q vectors of points.
//
// Search: offsets move whenever a center is far nearer than all before. Without, they stay, which
// saves an instruction per pair; where that lets a term pass 2^kSlack nothing is added and the
// result is false. Only where exponentials that are too large are infinite (kExp2Overflows).
template <class T, int Q, int C, bool Weighted, bool Search>
__attribute__((noinline)) bool add_centers(const T* points, const T* centers, int64_t stride,
                                           const T* shift, int64_t count, int d, T scale,
                                           LaneSums<T, Q>& sums) {
  constexpr int kNumAccumulators = C % 4 == 0 ? 4 : 1;  // per point vector: hides FMA latency
  Vec<T> base[Q], acc[Q][kNumAccumulators];
  for (int q = 0; q < Q; ++q) {
    base[q] = load<T>(sums.offset + q * kLanes<T>);
    for (int a = 0; a < kNumAccumulators; ++a) acc[q][a] = Vec<T>{};
  }
  const T too_near = -T(kSlack) / scale;

  for (int64_t j = 0; j < count; j += C) {
    Vec<T> s[C * Q];
    distances<T, Q, C, Weighted>(points, centers + j * stride, stride, shift + (Weighted ? j : 0),
                                 d, base, s);

    // -- a term far above the offset: move the offset -------------------------------------------
    if constexpr (Search) {
      Vec<T> nearest = s[0];
#pragma GCC unroll 16
      for (int i = 1; i < C * Q; ++i) nearest = vmin(s[i], nearest);
      if (__builtin_expect(any<T>(nearest < too_near), 0)) {
        Vec<T> zero[Q];
        for (int q = 0; q < Q; ++q) zero[q] = Vec<T>{};
        distances<T, Q, C, Weighted>(points, centers + j * stride, stride,
                                     shift + (Weighted ? j : 0), d, zero, s);
        for (int q = 0; q < Q; ++q) {
          Vec<T> least = s[q];
          for (int c = 1; c < C; ++c) least = vmin(s[c * Q + q], least);
          for (int a = 0; a < kNumAccumulators; ++a) sums.fold(q, acc[q][a]);
          sums.rebase(q, least, scale);
          base[q] = load<T>(sums.offset + q * kLanes<T>);
          for (int c = 0; c < C; ++c) s[c * Q + q] -= base[q];
        }
      }
    }

    // -- exponentials ------------------------------------------------------------------------
    if constexpr (Q == 1) {
      add_exp2<T, C, kNumAccumulators>(s, scale, acc[0]);
    } else {
      // s is ordered center-major: accumulator index alternates over the point vectors.
      Vec<T> sum[Q];
      for (int q = 0; q < Q; ++q) sum[q] = acc[q][0];
      add_exp2<T, C * Q, Q>(s, scale, sum);
      for (int q = 0; q < Q; ++q) acc[q][0] = sum[q];
    }
  }
  if constexpr (!Search) {
    // 2^kSlack in one term, or NaN and infinity from far beyond: not (sum < limit).
    const Vec<T> limit = broadcast<T>(T(1099511627776.0));
    Int<T> passed = Int<T>{};
    for (int q = 0; q < Q; ++q)
      for (int a = 0; a < kNumAccumulators; ++a) passed |= ~(acc[q][a] < limit);
    if (any<T>(passed)) return false;
  }
  for (int q = 0; q < Q; ++q)
    for (int a = 0; a < kNumAccumulators; ++a) sums.fold(q, acc[q][a]);
  return true;
}

// Offsets are searched for where some lane has none yet or the quick way fails, which happens
// in few tiles: each time the nearest distance falls by kSlack.
template <class T, int Q, int C, bool Weighted>
void add_block(const T* points, const MixtureView<T>& mixture, int64_t begin, int64_t count,
               T scale, LaneSums<T, Q>& sums) {
  const T* centers = mixture.centers + begin * mixture.stride;
  const T* shift = Weighted ? mixture.weight_shift + begin : nullptr;
  const int d = int(mixture.d);
  if constexpr (kExp2Overflows)
    if (sums.all_met() && add_centers<T, Q, C, Weighted, false>(points, centers, mixture.stride,
                                                                shift, count, d, scale, sums))
      return;
  add_centers<T, Q, C, Weighted, true>(points, centers, mixture.stride, shift, count, d, scale,
                                       sums);
}

// Any number of centers: whole blocks of C, then one by one.
template <class T, int Q, int C>
void add_tile(const T* points, const MixtureView<T>& mixture, int64_t begin, int64_t end, T scale,
              LaneSums<T, Q>& sums) {
  const int64_t whole = (end - begin) / C * C, rest = end - begin - whole;
  if (mixture.weight_shift) {
    if (whole) add_block<T, Q, C, true>(points, mixture, begin, whole, scale, sums);
    if (rest) add_block<T, Q, 1, true>(points, mixture, begin + whole, rest, scale, sums);
  } else {
    if (whole) add_block<T, Q, C, false>(points, mixture, begin, whole, scale, sums);
    if (rest) add_block<T, Q, 1, false>(points, mixture, begin + whole, rest, scale, sums);
  }
}

// Centers that are not in the same part of the mixture for every lane: one at a time, masked.
// memberships: one per lane. Adds to parts[kInner], [kOuter], [kRest] and to own, each Q vectors.
template <class T, int Q>
void add_mixed(const T* points, const MixtureView<T>& mixture, int64_t begin, int64_t end, T scale,
               const Membership* membership, bool include_rest, LaneSums<T, Q>* parts) {
  using Scalar = typename Simd<T>::Scalar;
  for (int q = 0; q < Q; ++q) {
    Int<T> own, inner_begin, inner_end, outer_begin, outer_end;
    for (int l = 0; l < kLanes<T>; ++l) {
      const Membership& lane = membership[q * kLanes<T> + l];
      own[l] = Scalar(lane.own);
      inner_begin[l] = Scalar(lane.inner_begin);
      inner_end[l] = Scalar(lane.inner_end);
      outer_begin[l] = Scalar(lane.outer_begin);
      outer_end[l] = Scalar(lane.outer_end);
    }
    for (int64_t j = begin; j < end; ++j) {
      const T* y = mixture.centers + j * mixture.stride;
      Vec<T> s = broadcast<T>(mixture.weight_shift ? mixture.weight_shift[j] : T(0));
      for (int64_t k = 0; k < mixture.d; ++k) {
        const Vec<T> diff = load<T>(points + (k * Q + q) * kLanes<T>) - y[k];
        s += diff * diff;
      }
      const Int<T> index = Int<T>{} + Scalar(j);
      const Int<T> is_own = index == own;
      const Int<T> is_inner = (index >= inner_begin) & (index < inner_end);
      const Int<T> is_outer = (index >= outer_begin) & (index < outer_end);
      const Int<T> chosen[kNumParts] = {is_inner & ~is_own, is_outer & ~is_inner, ~is_outer,
                                        is_own};
      for (int part = 0; part < kNumParts; ++part) {
        const bool beyond = part == kOuter || part == kRest;
        if ((beyond && !include_rest) || !any<T>(chosen[part])) continue;
        LaneSums<T, Q>& sums = parts[part];
        const Vec<T> distance = chosen[part] ? s : broadcast<T>(T(INFINITY));
        Vec<T> base = load<T>(sums.offset + q * kLanes<T>);
        if (any<T>(distance < base - T(kSlack) / scale)) {
          sums.rebase(q, distance, scale);
          base = load<T>(sums.offset + q * kLanes<T>);
        }
        const Vec<T> relative = distance - base;  // NaN where nothing was met: not chosen
        Vec<T> term = Vec<T>{};
        add_exp2<T, 1, 1>(&relative, scale, &term);
        for (int l = 0; l < kLanes<T>; ++l)
          if (chosen[part][l]) sums.sum[q * kLanes<T> + l] += double(term[l]);
      }
    }
  }
}

// A range of centers and the part of the mixture that it is for all lanes; kNumParts: mixed.
struct Segment {
  int64_t begin, end;
  int part;
};
constexpr int kMaxSegments = 7;

// Cuts [0, n) for one group of lanes. Blocks of neighbouring points are mostly the same, so that
// almost all centers are in an unmixed segment.
inline int cut_segments(const Membership* lanes, int num_lanes, int64_t n, bool include_rest,
                        Segment* out) {
  Membership low = lanes[0], high = lanes[0];
  for (int l = 1; l < num_lanes; ++l) {
    const Membership& lane = lanes[l];
    low.own = lane.own < low.own ? lane.own : low.own;
    high.own = lane.own > high.own ? lane.own : high.own;
    low.inner_begin = lane.inner_begin < low.inner_begin ? lane.inner_begin : low.inner_begin;
    high.inner_end = lane.inner_end > high.inner_end ? lane.inner_end : high.inner_end;
    low.outer_begin = lane.outer_begin < low.outer_begin ? lane.outer_begin : low.outer_begin;
    high.outer_end = lane.outer_end > high.outer_end ? lane.outer_end : high.outer_end;
  }
  bool same_inner = true, same_outer = true;
  for (int l = 0; l < num_lanes; ++l) {
    same_inner &= lanes[l].inner_begin == low.inner_begin && lanes[l].inner_end == high.inner_end;
    same_outer &= lanes[l].outer_begin == low.outer_begin && lanes[l].outer_end == high.outer_end;
  }
  int count = 0;
  auto push = [&](int64_t begin, int64_t end, int part) {
    if (begin < end) out[count++] = {begin, end, part};
  };
  if (include_rest) push(0, low.outer_begin, kRest);
  if (same_outer && same_inner) {
    if (include_rest) push(low.outer_begin, low.inner_begin, kOuter);
    push(low.inner_begin, low.own, kInner);
    push(low.own, high.own + 1, kNumParts);
    push(high.own + 1, high.inner_end, kInner);
    if (include_rest) push(high.inner_end, high.outer_end, kOuter);
  } else if (same_outer) {
    if (include_rest) push(low.outer_begin, low.inner_begin, kOuter);
    push(low.inner_begin, high.inner_end, kNumParts);
    if (include_rest) push(high.inner_end, high.outer_end, kOuter);
  } else if (include_rest) {
    push(low.outer_begin, high.outer_end, kNumParts);
  } else {
    push(low.inner_begin, high.inner_end, kNumParts);
  }
  if (include_rest) push(high.outer_end, n, kRest);
  return count;
}

// Points of a task as Q vectors per coordinate; the last lanes repeat the last point.
template <class T, int Q>
void pack_points(const PointsView<T>& view, int64_t first, int64_t last, int64_t d, T* packed) {
  constexpr int kGroup = Q * kLanes<T>;
  for (int l = 0; l < kGroup; ++l) {
    const int64_t i = first + l < last ? first + l : last - 1;
    const T* row = view.points + i * view.stride;
    for (int64_t k = 0; k < d; ++k) packed[k * kGroup + l] = row[k];
  }
}

// Points [first, last), at most kGroupsPerTask groups of them. scratch: scratch_bytes() bytes.
template <class T, int Q, int C>
void evaluate(const Task<T>& task, int64_t first, int64_t last, void* scratch) {
  constexpr int kGroup = Q * kLanes<T>;
  const FlushDenormals flush;
  const MixtureView<T>& mixture = task.mixture;
  const int num_parts = task.membership ? kNumParts : 1;
  const int num_groups = int((last - first + kGroup - 1) / kGroup);
  const double exponent = 1 / (2 * mixture.noise_std * mixture.noise_std);
  const T scale = T(exponent * M_LOG2E);

  auto* sums = static_cast<LaneSums<T, Q>*>(scratch);
  auto* members = reinterpret_cast<Membership*>(sums + kGroupsPerTask * kNumParts);
  auto* segments = reinterpret_cast<Segment*>(members + kGroupsPerTask * kGroup);
  T* packed = reinterpret_cast<T*>(segments + kGroupsPerTask * kMaxSegments);
  int segment_count[kGroupsPerTask];

  int64_t range_begin = mixture.n, range_end = 0;
  for (int g = 0; g < num_groups; ++g) {
    const int64_t start = first + g * kGroup;
    pack_points<T, Q>(task.points, start, last, mixture.d, packed + g * kGroup * mixture.d);
    for (int part = 0; part < num_parts; ++part) sums[g * num_parts + part].clear();
    Segment* cuts = segments + g * kMaxSegments;
    if (task.membership) {
      for (int l = 0; l < kGroup; ++l)
        members[g * kGroup + l] = task.membership[start + l < last ? start + l : last - 1];
      segment_count[g] =
          cut_segments(members + g * kGroup, kGroup, mixture.n, task.include_rest, cuts);
    } else {
      cuts[0] = {0, mixture.n, kInner};
      segment_count[g] = 1;
    }
    if (cuts[0].begin < range_begin) range_begin = cuts[0].begin;
    if (cuts[segment_count[g] - 1].end > range_end) range_end = cuts[segment_count[g] - 1].end;
  }

  // -- tiles of centers outside, groups of points inside: a tile is read once per task ----------
  int64_t tile = kTileBytes / (int64_t(sizeof(T)) * mixture.d);
  tile = tile > kMaxTile ? kMaxTile : tile < 4 * C ? 4 * C : tile;
  tile = tile / C * C;
  for (int64_t begin = range_begin; begin < range_end; begin += tile) {
    const int64_t end = begin + tile < range_end ? begin + tile : range_end;
    for (int g = 0; g < num_groups; ++g) {
      const T* points = packed + g * kGroup * mixture.d;
      for (int i = 0; i < segment_count[g]; ++i) {
        const Segment& segment = segments[g * kMaxSegments + i];
        const int64_t from = segment.begin > begin ? segment.begin : begin;
        const int64_t to = segment.end < end ? segment.end : end;
        if (from >= to) continue;
        LaneSums<T, Q>* parts = sums + g * num_parts;
        if (segment.part == kNumParts)
          add_mixed<T, Q>(points, mixture, from, to, scale, members + g * kGroup, task.include_rest,
                          parts);
        else
          add_tile<T, Q, C>(points, mixture, from, to, scale, parts[segment.part]);
      }
    }
  }

  // -- to nats ---------------------------------------------------------------------------------
  const double constant = -0.5 * double(mixture.d) * log(M_PI / exponent) -
                          (mixture.weight_shift ? 0 : log(double(mixture.n)));
  for (int g = 0; g < num_groups; ++g)
    for (int part = 0; part < num_parts; ++part) {
      const LaneSums<T, Q>& part_sums = sums[g * num_parts + part];
      for (int l = 0; l < kGroup && first + g * kGroup + l < last; ++l) {
        const double offset = double(part_sums.offset[l]);
        // Nothing met, or nothing but centers of weight zero.
        const bool is_empty =
            offset == INFINITY || (mixture.weight_shift && offset >= double(kNever<T>));
        const double value =
            is_empty ? -INFINITY : log(part_sums.sum[l]) - exponent * offset + constant;
        task.out[part][first + g * kGroup + l] = T(value);
      }
    }
}

template <class T, int Q>
int64_t scratch_bytes(int64_t d) {
  constexpr int kGroup = Q * kLanes<T>;
  return kGroupsPerTask *
         (kNumParts * int64_t(sizeof(LaneSums<T, Q>)) + kGroup * int64_t(sizeof(Membership)) +
          kMaxSegments * int64_t(sizeof(Segment)) + kGroup * d * int64_t(sizeof(T)));
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
