// The tile loops, written once and compiled once per CPU target (target_*.cpp).
//
// One vector holds one coordinate of kLanes points; centers are broadcast from memory, so no
// packing of centers is needed and any row stride will do. Exponents are squared distances times
// scale = log2(e) / (2 noise_std^2), negated: base 2 inside, nats outside.
//
// Precision policy. Differences and squares in T, of the coordinates as given: near pairs
// lose nothing (the subtraction is exact there). Each lane keeps an offset, a squared distance
// close to the smallest met so far, from which accumulation starts: the terms that matter are then
// computed near zero. Where there are many dimensions, every few of them (chunk_dims) have an
// offset of their own, so that partial sums stay near zero, too. Terms are summed in T within a
// tile and in double across tiles; offsets are added up in double. No running maximum is needed: an
// offset moves only when some lane meets a term 2^kSlack above it.
//
// Three loops share the work. add_centers() is the fastest and does a block of centers again when
// an offset must move; add_panels() looks for the nearest before any exponential, for the time in
// which offsets move often; add_centers_chunked() is the one for many dimensions.
//
// Rules of target files: no standard containers or algorithms, no static initialisers, every
// function in the inner namespace, so that no code of one target can be linked into another.

#pragma once
#include <math.h>

#include "../core/exp2_poly.h"
#include "../core/log_poly.h"
#include "../core/log_sum.h"
#include "../core/views.h"
#include "dispatch.h"
#include "simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

constexpr double kSlack = 20;  // log2; a larger one would let distances far from zero matter
constexpr int kChunk = 16;     // dimensions whose sum starts near zero, at most
constexpr int kFirstLook = 8;  // dimensions: at little noise they say enough about most centers
constexpr int64_t kTileBytes =
    32768;                         // centers of one tile: they stay in L1 for all points of a task
constexpr int64_t kMaxTile = 512;  // float sums of more terms would lose digits

// Dimensions whose sum starts near zero, a divisor of kChunk. Exponents are rounded by this times
// sqrt(d), so that float32, which has no digits to spare, has shorter ones where there are many.
template <class T>
constexpr int chunk_dims(int64_t d) {
  return sizeof(T) == 8 || d <= 64 ? kChunk : d <= 1024 ? 8 : 4;
}

// Dimensions after which the sum is put aside, a multiple of kChunk: distances that are alike in
// the end may differ on the way, by some nats, and every addition to those is rounded.
template <class T>
constexpr int part_dims(int64_t d) {
  return chunk_dims<T>(d) == kChunk ? 1 << 30 : 32;
}

// Whether the nearest center's term is made exact in the end. In fewer dimensions, where it would
// take up to half as much time again, rounding is small enough without.
template <class T>
constexpr bool is_nearest_exact(int64_t d) {
  return sizeof(T) == 4 && d >= 128;
}

// Chunks whose offsets are kept apart; 0: so few dimensions that one offset does.
template <class T>
inline int64_t num_chunks(int64_t d) {
  return d > kChunk ? (d + chunk_dims<T>(d) - 1) / chunk_dims<T>(d) : 0;
}

// The running sums of Q vectors of points: per lane an offset (squared distance) and a double.
template <class T, int Q>
struct LaneSums {
  double offset[Q * kLanes<T>];
  double sum[Q * kLanes<T>];
  // num_chunks() x Q vectors, whose sum the offset is: squared distances to one and the same
  // center, the lane's nearest when the offset last moved. Null: the offset serves as a whole.
  T* chunks;
  // Where is_nearest_exact(): the nearest center of all, its squared distance less the
  // offset, its term in the sum, and that of all that are as near. See correct_nearest().
  int64_t nearest[Q * kLanes<T>];
  T distance[Q * kLanes<T>];
  double term[Q * kLanes<T>], alike[Q * kLanes<T>];
  bool is_moving;  // offsets moved lately, and may again

  void clear(T* chunk_memory = nullptr, int64_t d = 0) {
    chunks = chunk_memory;
    is_moving = true;
    for (int l = 0; l < Q * kLanes<T>; ++l) {
      offset[l] = INFINITY;
      sum[l] = 0;
    }
    if (!chunks) return;
    for (int l = 0; l < Q * kLanes<T>; ++l) {
      distance[l] = T(INFINITY);
      term[l] = alike[l] = 0;
    }
    for (int64_t i = 0; i < num_chunks<T>(d) * Q * kLanes<T>; ++i)
      chunks[i] = i < Q * kLanes<T> ? T(INFINITY) : T(0);
  }

  Vec<T> base(int q) const {
    Vec<T> v;
    for (int l = 0; l < kLanes<T>; ++l) v[l] = T(offset[q * kLanes<T> + l]);
    return v;
  }

  // Lowers the offsets of vector q to `least` where that is far lower; returns them.
  Vec<T> move(int q, Vec<T> least, T scale) {
    constexpr T kMove = T(4);  // log2: a smaller step is not worth a rounding
    const Vec<T> before = base(q);
    const Int<T> moves = least < before - kMove / scale;  // inf < inf: still nothing met
    if (!any<T>(moves)) return before;
    is_moving = true;
    const Vec<T> after = moves ? least : before, lowered = before - least;
    T lane[kLanes<T>];
    store<T>(lane, after);
    for (int l = 0; l < kLanes<T>; ++l) offset[q * kLanes<T> + l] = double(lane[l]);
    if (any<T>(before < T(INFINITY))) {
      Vec<T> power = Vec<T>{};
      add_exp2<T, 1, 1>(&lowered, scale, &power);
      store<T>(lane, moves ? power : broadcast<T>(T(1)));
      for (int l = 0; l < kLanes<T>; ++l) sum[q * kLanes<T> + l] *= double(lane[l]);
    }
    return after;
  }

  // Lowers the offset of a lane, where chunks are lowered alike.
  void lower(int l, double to, T scale) {
    if (offset[l] == INFINITY) {  // nothing met: what is in the sums, NaN maybe, counts for nothing
      sum[l] = term[l] = alike[l] = 0;
      distance[l] = T(INFINITY);
    } else {
      const double factor = exp2(double(scale) * (to - offset[l]));
      sum[l] *= factor;
      term[l] *= factor;
      alike[l] *= factor;
      distance[l] = T(double(distance[l]) + (offset[l] - to));
    }
    offset[l] = to;
  }

  // Empties the tile's accumulator into the sums.
  void fold(int q, Vec<T>& acc) {
    for (int l = 0; l < kLanes<T>; ++l) sum[q * kLanes<T> + l] += double(acc[l]);
    acc = Vec<T>{};
  }
};

// The centers that count for each lane: [begin, end) without [hole_begin, hole_end); where
// is_point, all but hole_begin. Centers out of [from, to) count, for all lanes.
template <class T, int Q>
struct LaneRanges {
  Int<T> begin[Q], end[Q], hole_begin[Q], hole_end[Q];
  int64_t from, to;
  bool is_point;
  T* own_distance;  // of each lane to hole_begin, where is_point: found on the way
};

// Moves those of centers first, first + 1, .. that do not count for a lane out of its sight.
template <class T, int Q, int C>
inline __attribute__((always_inline)) void hide(const LaneRanges<T, Q>& ranges, int64_t first,
                                                Vec<T>* s) {
  if (first + C <= ranges.from || first >= ranges.to) return;
  const Vec<T> nowhere = broadcast<T>(T(INFINITY));
  if (ranges.is_point) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const Int<T> j = Int<T>{} + typename Simd<T>::Scalar(first + c);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) s[c * Q + q] = j == ranges.hole_begin[q] ? nowhere : s[c * Q + q];
    }
    return;
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    const Int<T> j = Int<T>{} + typename Simd<T>::Scalar(first + c);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const Int<T> counts = (j >= ranges.begin[q]) & (j < ranges.end[q]) &
                            ((j < ranges.hole_begin[q]) | (j >= ranges.hole_end[q]));
      s[c * Q + q] = counts ? s[c * Q + q] : nowhere;
    }
  }
}

// Distances of lanes to their own centers, if those are among first, first + 1, ..
template <class T, int Q, int C>
inline __attribute__((always_inline)) void keep_own(const LaneRanges<T, Q>& ranges, int64_t first,
                                                    const Vec<T>* s) {
  if (first + C <= ranges.from || first >= ranges.to) return;
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    Vec<T> own = load<T>(ranges.own_distance + q * kLanes<T>);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
      own = Int<T>{} + typename Simd<T>::Scalar(first + c) == ranges.hole_begin[q] ? s[c * Q + q]
                                                                                   : own;
    store<T>(ranges.own_distance + q * kLanes<T>, own);
  }
}

// Adds the squared distances along dimensions [from, to) of Q vectors of points to C centers.
// points: d x Q vectors; centers: rows `stride` apart. Ahead: dimensions whose points are asked for
// in advance; with 16, 5 % faster at d = 1024 and more, where they come from L2 or beyond.
//
// The loop over dimensions stays a loop: with d known at compile time and everything unrolled,
// GCC 12 spills and is 15 % (d = 3) to 30 % (d = 10) slower (bench/README.md).
template <class T, int Q, int C, int Ahead = 0>
inline __attribute__((always_inline)) void add_squares(const T* points, const T* centers,
                                                       int64_t stride, int from, int to,
                                                       Vec<T>* s) {
#pragma GCC unroll 1
  for (int k = from; k < to; ++k) {
    Vec<T> x[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      x[q] = load<T>(points + (k * Q + q) * kLanes<T>);
      if constexpr (Ahead) __builtin_prefetch(points + ((k + Ahead) * Q + q) * kLanes<T>);
    }
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

// Where accumulation starts: minus base, plus the centers' own shift.
template <class T, int Q, int C, bool Weighted>
inline __attribute__((always_inline)) void start(const T* shift, const Vec<T>* base, Vec<T>* s) {
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) s[c * Q + q] = Weighted ? shift[c] - base[q] : -base[q];
}

// Rows of centers beside Q vectors of points.
template <class T, int Q>
struct Block {
  const T* points;
  const T* centers;
  int64_t stride;
  const T* shift;                  // of the centers; null: none
  const LaneRanges<T, Q>* ranges;  // null: all centers count for all lanes
  int64_t first;                   // index of the first center
  int d;
};

// Squared distances from zero.
template <class T, int Q, int C>
void whole_distances(const Block<T, Q>& block, Vec<T>* s) {
  for (int c = 0; c < C; ++c)
    for (int q = 0; q < Q; ++q) s[c * Q + q] = broadcast<T>(block.shift ? block.shift[c] : T(0));
  add_squares<T, Q, C>(block.points, block.centers, block.stride, 0, block.d, s);
  if (block.ranges) hide<T, Q, C>(*block.ranges, block.first, s);
}

// 2^-(scale * s) added up, for s that may be anything: too near can only be rounding of distances
// that are larger than any exponent, NaN a lane that has met nothing yet.
template <class T, int Q, int C>
void add_exp2_safely(Vec<T>* s, T scale, Vec<T>* acc) {
  const Vec<T> nearest = broadcast<T>(-T(kSlack) / scale);
  for (int i = 0; i < C * Q; ++i) {
    const Vec<T> bounded = s[i] < nearest ? nearest : s[i];
    s[i] = s[i] == s[i] ? bounded : broadcast<T>(T(INFINITY));
  }
  add_exp2<T, C * Q, Q>(s, scale, acc);
}

// Adds a block in which some lane met a center far nearer than all before: moves such lanes'
// offsets to their nearest center in it. acc: what the tile added before, then the block's terms.
template <class T, int Q, int C>
__attribute__((noinline)) void settle(const Block<T, Q>& block, T scale, LaneSums<T, Q>& sums,
                                      Vec<T>* acc) {
  Vec<T> s[C * Q];
  whole_distances<T, Q, C>(block, s);
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    Vec<T> least = s[q];
#pragma GCC unroll 16
    for (int c = 1; c < C; ++c) least = vmin(s[c * Q + q], least);
    sums.fold(q, acc[q]);
    const Vec<T> base = sums.move(q, least, scale);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) s[c * Q + q] -= base;
  }
  add_exp2_safely<T, Q, C>(s, scale, acc);
}

// Adds the terms of `count` centers, a multiple of C, to the sums of Q vectors of points.
//
// Where too large an exponential is infinite (kExp2Overflows), a center far nearer than all before
// is noticed after the fact, by a sum out of range; elsewhere before, for an instruction per pair.
template <class T, int Q, int C, bool Weighted>
__attribute__((noinline)) void add_centers(const Block<T, Q>& all, int64_t count, T scale,
                                           LaneSums<T, Q>& sums) {
  const Vec<T> too_far_off = broadcast<T>(T(kSlack) / scale);
  const Vec<T> too_large = broadcast<T>(T(1 << int(kSlack)));
  sums.is_moving = false;
  Vec<T> base[Q], acc[Q];
  for (int q = 0; q < Q; ++q) {
    base[q] = sums.base(q);
    acc[q] = Vec<T>{};
  }
  for (int64_t j = 0; j < count; j += C) {
    Vec<T> s[C * Q], before[Q];
    start<T, Q, C, Weighted>(all.shift + (Weighted ? j : 0), base, s);
    add_squares<T, Q, C>(all.points, all.centers + j * all.stride, all.stride, 0, all.d, s);

    bool is_settled;
    for (int q = 0; q < Q; ++q) before[q] = acc[q];
    if constexpr (kExp2Overflows) {
      add_exp2<T, C * Q, Q>(s, scale, acc);
      is_settled = all_below<T, Q>(acc, too_large);
    } else {
      Vec<T> nearness[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        Vec<T> least = s[q];
#pragma GCC unroll 16
        for (int c = 1; c < C; ++c) least = vmin(s[c * Q + q], least);
        nearness[q] = -least;
      }
      is_settled = all_below<T, Q>(nearness, too_far_off);
      if (is_settled) add_exp2<T, C * Q, Q>(s, scale, acc);
    }
    if (__builtin_expect(!is_settled, 0)) {
      Block<T, Q> block = all;
      block.centers += j * all.stride;
      block.first += j;
      if constexpr (Weighted) block.shift += j;
      settle<T, Q, C>(block, scale, sums, before);
      for (int q = 0; q < Q; ++q) {
        acc[q] = before[q];
        base[q] = sums.base(q);
      }
    }
  }
  for (int q = 0; q < Q; ++q) sums.fold(q, acc[q]);
}

// The same while offsets move: distances of a panel of centers first, then the offsets, once, then
// the exponentials. Two instructions per pair more, but nothing is done twice. count >= C.
template <class T, int Q, int C, bool Weighted, bool Ranged>
__attribute__((noinline)) void add_panels(const Block<T, Q>& all, int64_t count, T scale,
                                          LaneSums<T, Q>& sums) {
  constexpr int64_t kPanel = 16 * C;
  alignas(64) T panel[(kPanel + C) * Q * kLanes<T>];  // distances
  const Vec<T> nowhere = broadcast<T>(T(INFINITY));
  sums.is_moving = false;
  for (int64_t begin = 0, n; begin < count; begin += n) {
    n = count - begin < kPanel + C ? count - begin : kPanel;  // at least C
    Vec<T> least[Q], base[Q], acc[Q];
    for (int q = 0; q < Q; ++q) least[q] = nowhere;
    for (int64_t j = 0; j < n; j += C) {
      const int64_t at = j + C <= n ? j : n - C;  // some of the last twice: the same distances
      const int64_t first = begin + at;
      Vec<T> s[C * Q];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q)
          s[c * Q + q] = Weighted ? broadcast<T>(all.shift[first + c]) : Vec<T>{};
      add_squares<T, Q, C>(all.points, all.centers + first * all.stride, all.stride, 0, all.d, s);
      if constexpr (Ranged) {
        if (all.ranges->is_point) keep_own<T, Q, C>(*all.ranges, all.first + first, s);
        hide<T, Q, C>(*all.ranges, all.first + first, s);
      }
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        Vec<T> nearest = s[q];
#pragma GCC unroll 16
        for (int c = 1; c < C; ++c) nearest = vmin(s[c * Q + q], nearest);
        least[q] = vmin(nearest, least[q]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < C * Q; ++i) store<T>(panel + (at * Q + i) * kLanes<T>, s[i]);
    }
    const int64_t end = (n + C - 1) / C * C;
    for (int64_t i = n * Q; i < end * Q; ++i) store<T>(panel + i * kLanes<T>, nowhere);
    for (int q = 0; q < Q; ++q) {
      base[q] = sums.move(q, least[q], scale);
      base[q] = base[q] < nowhere ? base[q] : Vec<T>{};  // nothing met: not inf - inf
      acc[q] = Vec<T>{};
    }
    for (int64_t j = 0; j < end; j += C) {
      Vec<T> s[C * Q];
#pragma GCC unroll 16
      for (int i = 0; i < C * Q; ++i) s[i] = load<T>(panel + (j * Q + i) * kLanes<T>) - base[i % Q];
      add_exp2<T, C * Q, Q>(s, scale, acc);
    }
    for (int q = 0; q < Q; ++q) sums.fold(q, acc[q]);
  }
}

// -- many dimensions -----------------------------------------------------------------------------
//
// A running sum of d squares passes values as large as d / 2 exponents, and each addition is
// rounded accordingly. With an offset for every chunk of dimensions it stays near zero for every
// center about as near, dimension by dimension, as the lane's reference.

// Squared distances of a block minus the offsets. Limited: false as soon as the dimensions so far
// say that every center is farther from every lane than its limit.
template <class T, int Q, int C, bool Weighted, bool Limited>
inline __attribute__((always_inline)) bool relative_distances(const Block<T, Q>& block,
                                                              const T* chunk, const Vec<T>* limit,
                                                              Vec<T>* s) {
  constexpr int kGroup = Q * kLanes<T>;
  const int d = block.d, length = chunk_dims<T>(d), part = part_dims<T>(d);
  Vec<T> offset[Q], left[Q], done[C * Q];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    offset[q] = load<T>(chunk + q * kLanes<T>);
    if constexpr (Limited) left[q] = limit[q] - offset[q];
  }
  start<T, Q, C, Weighted>(block.shift, offset, s);
  auto is_beyond = [&](bool is_first_part) __attribute__((always_inline)) {
    Vec<T> within[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      Vec<T> least = is_first_part ? s[q] : done[q] + s[q];
#pragma GCC unroll 16
      for (int c = 1; c < C; ++c)
        least = vmin(is_first_part ? s[c * Q + q] : done[c * Q + q] + s[c * Q + q], least);
      within[q] = left[q] - least;
    }
    return all_below<T, Q>(within, Vec<T>{});
  };

  int k = 0, look = kFirstLook, part_end = part;
  if constexpr (Limited)
    if (length > look) {
      add_squares<T, Q, C>(block.points, block.centers, block.stride, 0, look, s);
      if (is_beyond(true)) return false;
      k = look;
      look = kChunk;
    }
  for (int end = length; end < d; end += length) {
    add_squares<T, Q, C, kChunk>(block.points, block.centers, block.stride, k, end, s);
    k = end;
    if constexpr (Limited)
      if (end >= look) {
        if (is_beyond(part_end == part)) return false;
        look = end + kChunk;
      }
    chunk += kGroup;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      offset[q] = load<T>(chunk + q * kLanes<T>);
      if constexpr (Limited) left[q] -= offset[q];
    }
    if (end < part_end) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) s[c * Q + q] -= offset[q];
      continue;
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const int i = c * Q + q;
        done[i] = part_end == part ? s[i] : done[i] + s[i];
        s[i] = -offset[q];
      }
    part_end += part;
  }
  add_squares<T, Q, C>(block.points, block.centers, block.stride, k, d, s);
  if (part_end > part)
#pragma GCC unroll 16
    for (int i = 0; i < C * Q; ++i) s[i] += done[i];
  if constexpr (Limited) return !is_beyond(true);
  return true;
}

// Remembers the nearest of C centers, `first` and on, and the term of all that are as near: the
// same center many times, mostly. s: distances minus the offsets.
template <class T, int Q, int C>
__attribute__((noinline)) void note_nearest(const Vec<T>* s, int64_t first, T scale,
                                            LaneSums<T, Q>& sums) {
  const Vec<T> bound = broadcast<T>(-T(kSlack) / scale);
  for (int q = 0; q < Q; ++q) {
    T* const kept = sums.distance + q * kLanes<T>;
    Vec<T> least = load<T>(kept);
    Int<T> which = Int<T>{} - 1, count = Int<T>{};
    for (int c = 0; c < C; ++c) {
      const Vec<T> at = s[c * Q + q];
      const Int<T> is_nearer = at < least, is_as_near = at == least;
      count = is_nearer ? Int<T>{} + 1 : count - is_as_near;
      which = is_nearer ? Int<T>{} + c : which;
      least = is_nearer ? at : least;
    }
    if (!any<T>(count > Int<T>{})) continue;
    store<T>(kept, least);
    const Vec<T> bounded = least < bound ? bound : least;
    Vec<T> power = Vec<T>{};
    add_exp2<T, 1, 1>(&bounded, scale, &power);
    for (int l = 0; l < kLanes<T>; ++l) {
      const int at = q * kLanes<T> + l;
      const double added = double(count[l]) * double(power[l]);
      sums.alike[at] = which[l] < 0 ? sums.alike[at] + added : added;
      if (which[l] < 0) continue;
      sums.term[at] = double(power[l]);
      sums.nearest[at] = first + which[l];
    }
  }
}

// Whether some lane has a center as near as the nearest, or nearer.
template <class T, int Q>
inline __attribute__((always_inline)) bool has_nearer(const Vec<T>* nearness,
                                                      const LaneSums<T, Q>& sums) {
  Int<T> some = Int<T>{};
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) some |= -nearness[q] <= load<T>(sums.distance + q * kLanes<T>);
  return any<T>(some);
}

// The chunked twin of settle(). s: the block's distances minus the offsets.
template <class T, int Q, int C>
__attribute__((noinline)) void settle_chunks(const Block<T, Q>& block, T scale, Vec<T>* s,
                                             LaneSums<T, Q>& sums, Vec<T>* acc) {
  constexpr int kGroup = Q * kLanes<T>;
  const T step = -T(4) / scale, too_far_off = -T(1 << 18) / scale;
  const int d = block.d, length = chunk_dims<T>(d);
  Vec<T> whole[C * Q], least[Q];
  const Int<T> none = Int<T>{} - 1;
  Int<T> reference[Q], met[Q], is_rounded[Q], some_rounded = Int<T>{};
  for (int q = 0; q < Q; ++q) {
    met[q] = sums.base(q) < T(INFINITY);
    least[q] = s[q];
    for (int c = 1; c < C; ++c) least[q] = vmin(s[c * Q + q], least[q]);
    // From an offset farther off than this (a center of weight zero is), s cannot tell which
    // center is nearest.
    is_rounded[q] = ~met[q] | (least[q] < too_far_off);
    some_rounded |= is_rounded[q];
  }
  if (any<T>(some_rounded)) whole_distances<T, Q, C>(block, whole);
  for (int q = 0; q < Q; ++q) {
    Vec<T> nearest = broadcast<T>(T(INFINITY));
    reference[q] = none;
    for (int c = 0; c < C; ++c) {
      const Vec<T> at =
          any<T>(is_rounded[q]) ? is_rounded[q] ? whole[c * Q + q] : s[c * Q + q] : s[c * Q + q];
      const Int<T> nearer = at < nearest;
      nearest = nearer ? at : nearest;
      reference[q] = nearer ? Int<T>{} + c : reference[q];
    }
    reference[q] = (least[q] < step) | ~met[q] ? reference[q] : none;
    sums.fold(q, acc[q]);
  }

  // -- new offsets, one center at a time ---------------------------------------------------------
  for (int c = 0; c < C; ++c) {
    Int<T> moves[Q], some = Int<T>{};
    for (int q = 0; q < Q; ++q) some |= moves[q] = reference[q] == c;
    if (!any<T>(some)) continue;
    // Calls visit(chunk, sums of its squares) for every chunk of the center.
    auto for_chunks = [&](auto visit) {
      T* chunk = sums.chunks;
      for (int k = 0; k < d; k += length, chunk += kGroup) {
        Vec<T> sum[Q];
        for (int q = 0; q < Q; ++q)
          sum[q] = broadcast<T>(k == 0 && block.shift ? block.shift[c] : T(0));
        add_squares<T, Q, 1>(block.points, block.centers + c * block.stride, 0, k,
                             k + length < d ? k + length : d, sum);
        visit(chunk, sum);
      }
    };
    constexpr int kWide = kLanes<double>;
    typedef T Narrow __attribute__((vector_size(kWide * sizeof(T))));
    // By Kahan's rule: of so many additions each would be off by as much as the result.
    Vec<double> total[kGroup / kWide] = {}, lost[kGroup / kWide] = {};
    for_chunks([&](T*, const Vec<T>* sum) {
      Narrow part[kGroup / kWide];
      memcpy(part, sum, sizeof part);
      for (int i = 0; i < kGroup / kWide; ++i) {
        const Vec<double> more = __builtin_convertvector(part[i], Vec<double>) - lost[i];
        const Vec<double> next = total[i] + more;
        lost[i] = (next - total[i]) - more;
        total[i] = next;
      }
    });
    double offset[kGroup];
    memcpy(offset, total, sizeof offset);
    for (int l = 0; l < kGroup; ++l) {
      const int q = l / kLanes<T>, at = l % kLanes<T>;
      // Where distances are so large that their rounding is many exponents, it may seem nearer
      // and not be.
      if (moves[q][at] && !(offset[l] < sums.offset[l])) moves[q][at] = 0;
      if (!moves[q][at]) continue;
      sums.lower(l, offset[l], scale);
    }
    for_chunks([&](T* chunk, const Vec<T>* sum) {
      for (int q = 0; q < Q; ++q) {
        T* at = chunk + q * kLanes<T>;
        store<T>(at, moves[q] ? sum[q] : load<T>(at));
      }
    });
    for (int q = 0; q < Q; ++q)
      reference[q] = (reference[q] == c) & ~moves[q] ? none : reference[q];
  }

  // -- the block's terms at the new offsets ------------------------------------------------------
  if (block.shift)
    relative_distances<T, Q, C, true, false>(block, sums.chunks, nullptr, s);
  else
    relative_distances<T, Q, C, false, false>(block, sums.chunks, nullptr, s);
  if (block.ranges) hide<T, Q, C>(*block.ranges, block.first, s);
  // A lane's reference is near its offset, whatever rounding says: no sum is ever zero.
  const T most = T(1) / scale;
  for (int c = 0; c < C; ++c)
    for (int q = 0; q < Q; ++q) {
      const Vec<T> at = s[c * Q + q];
      s[c * Q + q] = (reference[q] == c) & ~((at >= -most) & (at <= most)) ? Vec<T>{} : at;
    }
  if (is_nearest_exact<T>(d)) note_nearest<T, Q, C>(s, block.first, scale, sums);
  add_exp2_safely<T, Q, C>(s, scale, acc);
}

// The chunked twin of add_centers(). Limited: a block of which every center is farther from every
// lane than its limit, a squared distance, is left out as soon as the dimensions so far say so.
template <class T, int Q, int C, bool Weighted, bool Ranged, bool Limited>
__attribute__((noinline)) void add_centers_chunked(const Block<T, Q>& all, int64_t count, T scale,
                                                   const T* limits, LaneSums<T, Q>& sums) {
  const Vec<T> too_far_off = broadcast<T>(T(kSlack) / scale);
  const int64_t d = all.d;
  Vec<T> acc[Q], limit[Q];
  for (int q = 0; q < Q; ++q) acc[q] = Vec<T>{};
  auto set_limits = [&] {
    // The running sum s of the dimensions so far less their offsets, and the limit less these,
    // have 2 roundings for every dimension, 2 more for every chunk and 1 for every part, none of
    // more than limit + offset, unless s is beyond the limit by more than that.
    const T rounding = T(d + 2 * num_chunks<T>(d) + d / part_dims<T>(d) + 8) * kEpsilon<T>;
    for (int q = 0; q < Q; ++q) {
      const Vec<T> given = load<T>(limits + q * kLanes<T>);
      limit[q] = given + rounding * (given + sums.base(q));
    }
  };
  if constexpr (Limited) set_limits();

  for (int64_t j = 0; j < count; j += C) {
    Block<T, Q> block = all;
    block.centers += j * all.stride;
    block.first += j;
    if constexpr (Weighted) block.shift += j;
    Vec<T> s[C * Q], nearness[Q];
    if (!relative_distances<T, Q, C, Weighted, Limited>(block, sums.chunks, limit, s)) continue;
    if constexpr (Ranged) hide<T, Q, C>(*all.ranges, block.first, s);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      Vec<T> least = s[q];
#pragma GCC unroll 16
      for (int c = 1; c < C; ++c) least = vmin(s[c * Q + q], least);
      nearness[q] = -least;
    }
    if (__builtin_expect(all_below<T, Q>(nearness, too_far_off), 1)) {
      if constexpr (sizeof(T) == 4)
        if (is_nearest_exact<T>(d) && __builtin_expect(has_nearer<T, Q>(nearness, sums), 0)) {
          Vec<T> distances[C * Q];
          for (int i = 0; i < C * Q; ++i) distances[i] = s[i];
          note_nearest<T, Q, C>(distances, block.first, scale, sums);
        }
      add_exp2<T, C * Q, Q>(s, scale, acc);
    } else {
      Vec<T> distances[C * Q], added[Q];
      for (int i = 0; i < C * Q; ++i) distances[i] = s[i];
      for (int q = 0; q < Q; ++q) added[q] = acc[q];
      settle_chunks<T, Q, C>(block, scale, distances, sums, added);
      for (int q = 0; q < Q; ++q) acc[q] = added[q];
      if constexpr (Limited) set_limits();
    }
  }
  for (int q = 0; q < Q; ++q) sums.fold(q, acc[q]);
}

// -- one FMA per dimension ------------------------------------------------------------------------
//
// |x - y|^2 = |x - o|^2 + |y - o|^2 - 2 (x - o).(y - o): half the instructions, and rounding as
// large as the squares on the right. Every `step` dimensions the running sum takes in those of
// the next ones, less the offset: s += (|x - o|^2 - B) + |y - o|^2, so that it comes back to about
// zero wherever the direct form does. Within a step it is at most about |x - o|^2 + |y - o|^2 over
// these dimensions. Written X_c and Y_c, an exponent has, to first order, step + 6 roundings in
// every step c, none larger than u (X_c + Y_c) / (2 noise_std^2): one per dimension, four for the
// constants and their sums, two for coordinates relative to o. Their signs being as good as
// independent, so that all but one pair in exp(lambda^2 / 2) / 2 have (Hoeffding)
//
//   error <= lambda u sqrt(step + 6) (|X| + |Y|) / (2 noise_std^2),  |X|^2 = sum_c X_c^2.
//
// |X| is the point's spread, |Y| the center's. Where the factor of lambda is beyond
// kExpansionError, the direct form serves: group by group of points, block by block of centers.
// Measured, the error is a quarter of that factor in the root mean square, as much as the factor
// at most (docs/numerics.md).

template <class T>
constexpr double kExpansionError = sizeof(T) == 4 ? 2e-5 : 3e-13;  // nats

constexpr int kLeastStep = 8;

inline int64_t num_steps(int64_t d, int64_t step) { return (d + step - 1) / step; }

// Centers of a block: 2 x 12 sums (2 x 6) leave room for points and a center. The more centers, the
// less often the points are read, which counts where they come from L2.
template <class T>
constexpr int kExpandedTogether = kVectorBytes == 64 ? 12 : 6;

template <class T>
void expand_centers(const MixtureView<T>& mixture, const ExpandedCenters<T>& form, int64_t first,
                    int64_t last, T* rows, T* norms, T* spread) {
  constexpr int C = kExpandedTogether<T>, kWide = kLanes<double>;
  typedef T Narrow __attribute__((vector_size(kWide * sizeof(T))));
  const int64_t d = mixture.d, step = form.step;
  T* norm_out = norms + first * C * num_steps(d, step);
  for (int64_t block = first; block < last; ++block) {
    double largest = 0;
    bool is_number = true;
    for (int64_t j = block * C; j < (block + 1) * C; ++j) {
      const T* row = mixture.centers + j * mixture.stride;
      T* out = rows ? rows + j * d : nullptr;
      double squares = 0;
      for (int64_t k = 0; k < d; k += step) {
        const int64_t end = k + step < d ? k + step : d;
        Vec<double> sums = Vec<double>{};
        int64_t i = k;
        for (; i + kWide <= end; i += kWide) {
          Narrow y, o;
          memcpy(&y, row + i, sizeof y);
          if (out) {
            memcpy(&o, form.origin + i, sizeof o);
            y -= o;
            memcpy(out + i, &y, sizeof y);
          }
          const Vec<double> wide = __builtin_convertvector(y, Vec<double>);
          sums += wide * wide;
        }
        double norm = 0;
        for (; i < end; ++i) {
          const T y = out ? row[i] - form.origin[i] : row[i];
          if (out) out[i] = y;
          norm += double(y) * double(y);
        }
        for (int l = 0; l < kWide; ++l) norm += sums[l];
        squares += norm * norm;
        *norm_out++ =
            T(k == 0 && mixture.weight_shift ? norm + double(mixture.weight_shift[j]) : norm);
      }
      is_number &= squares < INFINITY;
      largest = squares > largest ? squares : largest;
    }
    spread[block] = T(is_number ? sqrt(largest) * (1 + double(kEpsilon<T>)) : INFINITY);
  }
}

// A group of points for the expanded form.
template <class T, int Q>
struct ExpandedGroup {
  T* points;      // -2 (x - o): d x Q vectors
  double* norms;  // |x - o|^2: num_steps() x Q vectors
  T* constants;   // norms less the offsets, rounded
  double room;    // for the spread of a center; negative: the direct form
};

// points: d x Q vectors.
template <class T, int Q>
void expand_points(const T* points, const ExpandedCenters<T>& form, int64_t d,
                   ExpandedGroup<T, Q>& group) {
  constexpr int kGroup = Q * kLanes<T>;
  double squares[kGroup] = {};
  double* norms = group.norms;
  for (int64_t k = 0; k < d; k += form.step, norms += kGroup) {
    const int64_t end = k + form.step < d ? k + form.step : d;
    double sums[kGroup] = {};
    for (int64_t i = k; i < end; ++i) {
      T x[kGroup];
      memcpy(x, points + i * kGroup, sizeof x);
      for (int l = 0; l < kGroup; ++l) x[l] -= form.origin[i];
      for (int l = 0; l < kGroup; ++l) sums[l] += double(x[l]) * double(x[l]);
      for (int l = 0; l < kGroup; ++l) x[l] *= T(-2);
      memcpy(group.points + i * kGroup, x, sizeof x);
    }
    for (int l = 0; l < kGroup; ++l) squares[l] += sums[l] * sums[l];
    memcpy(norms, sums, sizeof sums);
  }
  double largest = 0;
  bool is_number = true;
  for (int l = 0; l < kGroup; ++l) {
    is_number &= squares[l] < INFINITY;
    largest = squares[l] > largest ? squares[l] : largest;
  }
  group.room = is_number ? form.most - sqrt(largest) : -1;
}

// The constants for the offsets as they are. An offset is shared by the steps in its chunk, or
// added to the others of a step.
template <class T, int Q>
void set_constants(const LaneSums<T, Q>& sums, int64_t d, int64_t step,
                   ExpandedGroup<T, Q>& group) {
  constexpr int kGroup = Q * kLanes<T>;
  const int64_t length = chunk_dims<T>(d);
  const double* norms = group.norms;
  T* constants = group.constants;
  for (int64_t k = 0; k < d; k += step, norms += kGroup, constants += kGroup) {
    double offset[kGroup] = {};
    const int64_t end = k + step < d ? k + step : d;
    for (int64_t i = k / length; i * length < end; ++i) {
      const int64_t rest = d - i * length < length ? d - i * length : length;
      const double share = step < length ? 1 / double(num_steps(rest, step)) : 1;
      for (int l = 0; l < kGroup; ++l) offset[l] += share * double(sums.chunks[i * kGroup + l]);
    }
    for (int l = 0; l < kGroup; ++l) constants[l] = T(norms[l] - offset[l]);
  }
}

// The twin of add_centers_chunked() for blocks of E centers in expanded form; a block in which some
// lane's offset must move, or rounding counts, is added in differences, C by C. E divides count.
template <class T, int Q, int C, int E, bool Weighted>
__attribute__((noinline)) void add_centers_expanded(const Block<T, Q>& all, int64_t count, T scale,
                                                    const ExpandedCenters<T>& form,
                                                    ExpandedGroup<T, Q>& group,
                                                    LaneSums<T, Q>& sums) {
  constexpr int kGroup = Q * kLanes<T>;
  static_assert(E % C == 0, "blocks in differences");
  const Vec<T> too_far_off = broadcast<T>(T(kSlack) / scale);
  const Vec<T> too_large = broadcast<T>(T(1 << int(kSlack)));
  const int d = all.d, step = form.step;
  const int64_t steps = num_steps(d, step), stride = form.stride;
  const T* spread = form.spread + all.first / E;
  const T* rows = form.rows + all.first * stride;
  const T* norms = form.norms + all.first * steps;
  Vec<T> acc[Q];
  for (int q = 0; q < Q; ++q) acc[q] = Vec<T>{};
  for (int64_t j = 0; j < count; j += E, ++spread, rows += E * stride, norms += E * steps) {
    Vec<T> before[Q];
    for (int q = 0; q < Q; ++q) before[q] = acc[q];
    bool is_settled = double(*spread) <= group.room;
    if (__builtin_expect(is_settled, 1)) {
      Vec<T> s[E * Q];
#pragma GCC unroll 32
      for (int i = 0; i < E * Q; ++i) s[i] = Vec<T>{};
      const T* constants = group.constants;
      const T* x = group.points;
      const T* norm = norms;
      int k = 0;
      do {
        Vec<T> own[Q];
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) own[q] = load<T>(constants + q * kLanes<T>);
#pragma GCC unroll 16
        for (int c = 0; c < E; ++c)
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) s[c * Q + q] += own[q] + norm[c * steps];
        ++norm;
        constants += kGroup;
        const int end = k + step < d ? k + step : d;
#pragma GCC unroll 1
        for (; k < end; ++k, x += kGroup) {
          Vec<T> v[Q];
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) {
            v[q] = load<T>(x + q * kLanes<T>);
            __builtin_prefetch(x + kChunk * kGroup + q * kLanes<T>);
          }
#pragma GCC unroll 16
          for (int c = 0; c < E; ++c)
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) s[c * Q + q] += v[q] * rows[c * stride + k];
        }
      } while (k < d);

      if (kExp2Overflows && !is_nearest_exact<T>(d)) {
#pragma GCC unroll 16
        for (int c = 0; c < E; c += C) add_exp2<T, C * Q, Q>(s + c * Q, scale, acc);
        is_settled = all_below<T, Q>(acc, too_large);
      } else {
        Vec<T> nearness[Q];
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          Vec<T> least = s[q];
#pragma GCC unroll 16
          for (int c = 1; c < E; ++c) least = vmin(s[c * Q + q], least);
          nearness[q] = -least;
        }
        is_settled = all_below<T, Q>(nearness, too_far_off);
        if constexpr (sizeof(T) == 4)
          if (is_settled && is_nearest_exact<T>(d) &&
              __builtin_expect(has_nearer<T, Q>(nearness, sums), 0)) {
            Vec<T> distances[E * Q];
            for (int i = 0; i < E * Q; ++i) distances[i] = s[i];
            note_nearest<T, Q, E>(distances, all.first + j, scale, sums);
          }
        if (is_settled)
#pragma GCC unroll 16
          for (int c = 0; c < E; c += C) add_exp2<T, C * Q, Q>(s + c * Q, scale, acc);
      }
    }
    if (__builtin_expect(!is_settled, 0)) {
      Block<T, Q> block = all;
      block.centers += j * all.stride;
      block.first += j;
      if constexpr (Weighted) block.shift += j;
      for (int q = 0; q < Q; ++q) {
        acc[q] = before[q];
        sums.fold(q, acc[q]);
      }
      add_centers_chunked<T, Q, C, Weighted, false, false>(block, E, scale, nullptr, sums);
      set_constants<T, Q>(sums, d, step, group);
    }
  }
  for (int q = 0; q < Q; ++q) sums.fold(q, acc[q]);
}

// Whole blocks of centers [begin, end); begin starts one. Returns the end of the last.
template <class T, int Q, int C>
int64_t add_tile_expanded(const MixtureView<T>& mixture, const T* points,
                          const ExpandedCenters<T>& form, int64_t begin, int64_t end, T scale,
                          ExpandedGroup<T, Q>& group, LaneSums<T, Q>& sums) {
  constexpr int E = kExpandedTogether<T>;
  const int64_t whole = (end - begin) / E * E;
  const T* shift = mixture.weight_shift;
  const Block<T, Q> block{points,         mixture.centers + begin * mixture.stride,
                          mixture.stride, shift ? shift + begin : nullptr,
                          nullptr,        begin,
                          int(mixture.d)};
  if (shift)
    add_centers_expanded<T, Q, C, E, true>(block, whole, scale, form, group, sums);
  else
    add_centers_expanded<T, Q, C, E, false>(block, whole, scale, form, group, sums);
  return begin + whole;
}

template <class T>
ExpansionKernel<T> expansion_kernel() {
  return {kExpandedTogether<T>, kLeastStep, kExpansionError<T>, &expand_centers<T>};
}

// -- any number of centers -----------------------------------------------------------------------

template <class T, int Q, int C, bool Weighted>
void add_blocks(const Block<T, Q>& block, int64_t count, T scale, const T* limits,
                LaneSums<T, Q>& sums) {
  if (sums.chunks && limits)
    add_centers_chunked<T, Q, C, Weighted, false, true>(block, count, scale, limits, sums);
  else if (sums.chunks && block.ranges)
    add_centers_chunked<T, Q, C, Weighted, true, false>(block, count, scale, nullptr, sums);
  else if (sums.chunks)
    add_centers_chunked<T, Q, C, Weighted, false, false>(block, count, scale, nullptr, sums);
  else if (block.ranges)
    add_panels<T, Q, C, Weighted, true>(block, count, scale, sums);
  else if (sums.is_moving)
    add_panels<T, Q, C, Weighted, false>(block, count, scale, sums);
  else
    add_centers<T, Q, C, Weighted>(block, count, scale, sums);
}

// Centers [begin, end): whole blocks of C, then a block of which the last centers are the rest and
// the others are out of sight.
template <class T, int Q, int C>
void add_range(const T* points, const MixtureView<T>& mixture, int64_t begin, int64_t end, T scale,
               const LaneRanges<T, Q>* ranges, const T* limits, LaneSums<T, Q>& sums) {
  const T* shift = mixture.weight_shift;
  Block<T, Q> block{points,         mixture.centers + begin * mixture.stride,
                    mixture.stride, shift ? shift + begin : nullptr,
                    ranges,         begin,
                    int(mixture.d)};
  const bool is_panels = !sums.chunks && (sums.is_moving || ranges) && end - begin >= C;
  const int64_t whole = is_panels ? end - begin : (end - begin) / C * C;
  if (whole && shift) add_blocks<T, Q, C, true>(block, whole, scale, limits, sums);
  if (whole && !shift) add_blocks<T, Q, C, false>(block, whole, scale, limits, sums);
  // Fewer than C centers in all: one by one, as C times the same row.
  const bool is_tiny = mixture.n < C;
  block.stride = is_tiny ? 0 : mixture.stride;
  for (int64_t j = begin + whole; j < end; ++j) {
    const int64_t first = is_tiny ? j : end < C ? 0 : end - C;
    T shifts[C];
    for (int c = 0; c < C; ++c) {
      const bool counts = is_tiny ? c == 0 : first + c >= j && first + c < end;
      shifts[c] = !counts ? T(INFINITY) : shift ? shift[first + c] : T(0);
    }
    block.centers = mixture.centers + first * mixture.stride;
    block.shift = shifts;
    block.first = first;
    add_blocks<T, Q, C, true>(block, C, scale, limits, sums);
    if (!is_tiny) break;
  }
}

template <class T, int Q, int C>
void add_tile(const T* points, const MixtureView<T>& mixture, int64_t begin, int64_t end, T scale,
              LaneSums<T, Q>& sums) {
  add_range<T, Q, C>(points, mixture, begin, end, scale, nullptr, nullptr, sums);
}

// add_tile, but a center farther from a lane than the lane's limit, a squared distance (with the
// center's weight_shift), may or may not be added. limits: Q vectors. Pays where d > kChunk.
template <class T, int Q, int C>
void add_tile_limited(const T* points, const MixtureView<T>& mixture, int64_t begin, int64_t end,
                      T scale, const T* limits, LaneSums<T, Q>& sums) {
  add_range<T, Q, C>(points, mixture, begin, end, scale, nullptr, limits, sums);
}

// -- the parts of a mixture ----------------------------------------------------------------------

// A range of centers and the part of the mixture that it is for all lanes; kNumParts: mixed.
struct Segment {
  int64_t begin, end;
  int part;
};
constexpr int kMaxSegments = 5;

// The points of a group in the lanes; the last lanes repeat the last point.
template <class T, int Q>
struct Members {
  typename Simd<T>::Scalar own[Q * kLanes<T>];
  T own_distance[Q * kLanes<T>];  // with the center's shift; negative: not known yet
  Membership common;              // of all lanes, or what encloses all
  int64_t first_own, last_own;
  bool is_uniform, has_one_outer;
};

template <class T, int Q>
void find_members(const Task<T>& task, const PointGroup& group, Members<T, Q>& members) {
  constexpr int kGroup = Q * kLanes<T>;
  using Scalar = typename Simd<T>::Scalar;
  const int count = int(group.end - group.begin);
  for (int l = 0; l < count; ++l) members.own[l] = Scalar(task.own[group.begin + l]);
  for (int l = count; l < kGroup; ++l) members.own[l] = members.own[count - 1];
  for (T& distance : members.own_distance) distance = T(-1);
  Int<T> low_own, high_own;
  memcpy(&low_own, members.own, sizeof low_own);
  high_own = low_own;
  for (int q = 1; q < Q; ++q) {
    Int<T> more;
    memcpy(&more, members.own + q * kLanes<T>, sizeof more);
    low_own = more < low_own ? more : low_own;
    high_own = more > high_own ? more : high_own;
  }
  Scalar least = low_own[0], most = high_own[0];
  for (int l = 0; l < kLanes<T>; ++l) {
    least = low_own[l] < least ? low_own[l] : least;
    most = high_own[l] > most ? high_own[l] : most;
  }
  // Blocks are ordered like centers.
  const Membership &low = task.membership[least], &high = task.membership[most];
  members.common = {low.inner_begin, high.inner_end, low.outer_begin, high.outer_end};
  members.first_own = least;
  members.last_own = most;
  members.is_uniform = low.inner_begin == high.inner_begin;
  members.has_one_outer = low.outer_begin == high.outer_begin;
}

// Cuts [0, n) for one group of lanes. Blocks of neighbouring points are mostly the same, so that
// almost all centers are in an unmixed segment.
template <class T, int Q>
int cut_segments(const Members<T, Q>& members, int64_t n, bool include_rest, Segment* out) {
  const Membership& block = members.common;
  int count = 0;
  auto push = [&](int64_t begin, int64_t end, int part) {
    if (begin < end) out[count++] = {begin, end, part};
  };
  if (include_rest) push(0, block.outer_begin, kRest);
  if (members.has_one_outer) {
    if (include_rest) push(block.outer_begin, block.inner_begin, kOuter);
    push(block.inner_begin, block.inner_end, members.is_uniform ? kInner : kNumParts);
    if (include_rest) push(block.inner_end, block.outer_end, kOuter);
  } else if (include_rest) {
    push(block.outer_begin, block.outer_end, kNumParts);
  } else {
    push(block.inner_begin, block.inner_end, kNumParts);
  }
  if (include_rest) push(block.outer_end, n, kRest);
  return count;
}

// The centers that each lane counts to a part.
template <class T, int Q>
LaneRanges<T, Q> part_ranges(Members<T, Q>& members, const MixtureView<T>& mixture,
                             const Membership* membership, int part) {
  using Scalar = typename Simd<T>::Scalar;
  LaneRanges<T, Q> ranges;
  ranges.is_point = members.is_uniform && part == kInner;
  if (ranges.is_point) {
    memcpy(ranges.hole_begin, members.own, sizeof ranges.hole_begin);
    ranges.own_distance = members.own_distance;
    ranges.from = members.first_own;
    ranges.to = members.last_own + 1;
    return ranges;
  }
  for (int l = 0; l < Q * kLanes<T>; ++l) {
    const int64_t own = members.own[l];
    const Membership& block = membership[own];
    const int64_t range[kOwn][4] = {
        {block.inner_begin, block.inner_end, own, own + 1},
        {block.outer_begin, block.outer_end, block.inner_begin, block.inner_end},
        {0, mixture.n, block.outer_begin, block.outer_end}};
    const int q = l / kLanes<T>, at = l % kLanes<T>;
    ranges.begin[q][at] = Scalar(range[part][0]);
    ranges.end[q][at] = Scalar(range[part][1]);
    ranges.hole_begin[q][at] = Scalar(range[part][2]);
    ranges.hole_end[q][at] = Scalar(range[part][3]);
  }
  ranges.from = 0;
  ranges.to = mixture.n;
  return ranges;
}

// Centers [begin, end) of a segment. Where lanes differ: once for every part, with the centers of
// others hidden.
template <class T, int Q, int C>
void add_segment(const T* points, const Task<T>& task, Members<T, Q>& members, int part,
                 int64_t begin, int64_t end, T scale, LaneSums<T, Q>* parts) {
  const bool is_mixed = part == kNumParts;
  if (!is_mixed && (part != kInner || end <= members.first_own || begin > members.last_own)) {
    add_tile<T, Q, C>(points, task.mixture, begin, end, scale, parts[part]);
    return;
  }
  for (int i = kInner; i <= (is_mixed && task.include_rest ? kRest : kInner); ++i) {
    const LaneRanges<T, Q> ranges = part_ranges<T, Q>(members, task.mixture, task.membership, i);
    add_range<T, Q, C>(points, task.mixture, begin, end, scale, &ranges, nullptr, parts[i]);
  }
}

// The squared distance of two rows, in double.
template <class T>
inline double squared_distance(const T* x, const T* y, int64_t d) {
  constexpr int kWide = kLanes<double>;
  typedef T Narrow __attribute__((vector_size(kWide * sizeof(T))));
  Vec<double> sums = Vec<double>{};
  int64_t k = 0;
  for (; k + kWide <= d; k += kWide) {
    Narrow a, b;
    memcpy(&a, x + k, sizeof a);
    memcpy(&b, y + k, sizeof b);
    const Vec<double> diff =
        __builtin_convertvector(a, Vec<double>) - __builtin_convertvector(b, Vec<double>);
    sums += diff * diff;
  }
  double total = 0;
  for (; k < d; ++k) {
    const double diff = double(x[k]) - double(y[k]);
    total += diff * diff;
  }
  for (int l = 0; l < kWide; ++l) total += sums[l];
  return total;
}

// By how much a term is too small, as a share: its exact distance is known now. The kernel's has
// rounding in it; where that is more than a factor of 2, far away, there are no digits to save.
inline double missing_share(double term, double scale, double distance, double offset) {
  const double wrong = -scale * (distance - offset) - log2(term);
  return exp2(wrong < -1 ? -1 : wrong < 1 ? wrong : 1) - 1;
}

// The exponent of a lane's nearest center has the rounding of d squares, and most of the sum is
// mostly its term: here it becomes exact. rows: the lanes' points.
template <class T, int Q>
void correct_nearest(const MixtureView<T>& mixture, const T* rows, int64_t stride, int count,
                     LaneSums<T, Q>& sums) {
  if (!sums.chunks || !is_nearest_exact<T>(mixture.d)) return;
  const double scale = M_LOG2E / (2 * mixture.noise_std * mixture.noise_std);
  for (int l = 0; l < count; ++l) {
    if (!(sums.term[l] > 0)) continue;  // nothing met
    const int64_t j = sums.nearest[l];
    const double distance =
        squared_distance(rows + l * stride, mixture.centers + j * mixture.stride, mixture.d) +
        (mixture.weight_shift ? double(mixture.weight_shift[j]) : 0);
    sums.sum[l] += sums.alike[l] * missing_share(sums.term[l], scale, distance, sums.offset[l]);
  }
}

// Points of a group as Q vectors per coordinate; the last lanes repeat the last point.
template <class T, int Q>
void pack_points(const PointsView<T>& view, int64_t first, int64_t last, int64_t d, T* packed) {
  constexpr int kGroup = Q * kLanes<T>;
  const T* rows = view.points + first * view.stride;
  const int64_t most = last - first - 1;
  if (most + 1 >= kGroup && d <= kChunk && view.stride < (1 << 24)) {
    for (int64_t k = 0; k < d; ++k)
      for (int q = 0; q < Q; ++q)
        store<T>(packed + (k * Q + q) * kLanes<T>,
                 load_strided<T>(rows + q * kLanes<T> * view.stride + k, int(view.stride)));
  } else {
    for (int l = 0; l < kGroup; ++l) {
      const T* row = rows + (l < most ? l : most) * view.stride;
      for (int64_t k = 0; k < d; ++k) packed[k * kGroup + l] = row[k];
    }
  }
}

// Squared distances of a group's points to their own centers, with the centers' shifts.
template <class T, int Q>
void own_distances(const Task<T>& task, const PointGroup& group, const Members<T, Q>& members,
                   double* out) {
  const MixtureView<T>& mixture = task.mixture;
  bool are_known = true;
  for (T known : members.own_distance) are_known &= known >= 0;
  for (int l = 0; l < int(group.end - group.begin); ++l) {
    const int64_t own = members.own[l];
    const T* row = task.points.points + (group.begin + l) * task.points.stride;
    out[l] = are_known ? double(members.own_distance[l])
                       : squared_distance(row, mixture.centers + own * mixture.stride, mixture.d) +
                             (mixture.weight_shift ? double(mixture.weight_shift[own]) : 0);
  }
}

// Log-densities of the lanes, in nats; -inf where nothing was met closer than `never`.
template <class T, int Q>
void log_values(const LaneSums<T, Q>& sums, double exponent, double constant, double never,
                double* out) {
  for (int l = 0; l < Q * kLanes<T>; l += kLanes<double>) {
    const Vec<double> offset = load<double>(sums.offset + l);
    const Vec<double> value = log_poly(load<double>(sums.sum + l)) + (constant - offset * exponent);
    store<double>(out + l, offset < never ? value : broadcast<double>(-INFINITY));
  }
}

// Memory of a group in expanded form, in numbers.
template <class T, int Q>
int64_t expanded_size(int64_t d) {
  constexpr int kGroup = Q * kLanes<T>;
  if (num_chunks<T>(d) == 0) return 0;
  return kGroup * (d + num_steps(d, kLeastStep) * int64_t(1 + sizeof(double) / sizeof(T)));
}

// Groups [first, last) of points, at most kGroupsPerTask. scratch: scratch_bytes() bytes.
template <class T, int Q, int C>
void evaluate(const Task<T>& task, int64_t first, int64_t last, void* scratch) {
  constexpr int kGroup = Q * kLanes<T>;
  const FlushDenormals flush;
  const MixtureView<T>& mixture = task.mixture;
  const int num_parts = task.own && task.include_rest ? kOwn : 1;
  const int num_groups = int(last - first);
  const int64_t chunk_size = num_chunks<T>(mixture.d) * kGroup;
  const double exponent = 1 / (2 * mixture.noise_std * mixture.noise_std);
  const T scale = T(exponent * M_LOG2E);

  auto* sums = static_cast<LaneSums<T, Q>*>(scratch);
  auto* members = reinterpret_cast<Members<T, Q>*>(sums + kGroupsPerTask * kOwn);
  auto* segments = reinterpret_cast<Segment*>(members + kGroupsPerTask);
  T* packed = reinterpret_cast<T*>(segments + kGroupsPerTask * kMaxSegments);
  T* chunks = packed + kGroupsPerTask * kGroup * mixture.d;
  ExpandedGroup<T, Q> expanded[kGroupsPerTask];
  PointGroup groups[kGroupsPerTask];
  int segment_count[kGroupsPerTask];

  int64_t range_begin = mixture.n, range_end = 0;
  for (int g = 0; g < num_groups; ++g) {
    const int64_t start = (first + g) * kGroup, end = start + kGroup;
    groups[g] = {start, end < task.points.m ? end : task.points.m};
    if (task.groups) groups[g] = task.groups[first + g];
    pack_points<T, Q>(task.points, groups[g].begin, groups[g].end, mixture.d,
                      packed + g * kGroup * mixture.d);
    for (int i = g * num_parts; i < (g + 1) * num_parts; ++i)
      sums[i].clear(chunk_size ? chunks + i * chunk_size : nullptr, mixture.d);
    if (task.expanded) {
      T* memory = chunks + num_groups * num_parts * chunk_size + g * expanded_size<T, Q>(mixture.d);
      const int64_t size = num_steps(mixture.d, kLeastStep) * kGroup;
      expanded[g].norms = reinterpret_cast<double*>(memory);
      expanded[g].constants = reinterpret_cast<T*>(expanded[g].norms + size);
      expanded[g].points = expanded[g].constants + size;
      expand_points<T, Q>(packed + g * kGroup * mixture.d, *task.expanded, mixture.d, expanded[g]);
      set_constants<T, Q>(sums[g], mixture.d, task.expanded->step, expanded[g]);
    }
    Segment* cuts = segments + g * kMaxSegments;
    if (task.own) {
      find_members<T, Q>(task, groups[g], members[g]);
      segment_count[g] = cut_segments<T, Q>(members[g], mixture.n, task.include_rest, cuts);
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
  constexpr int E = kExpandedTogether<T>;
  tile = task.expanded ? (tile < E ? E : tile / E * E) : tile / C * C;
  for (int64_t begin = range_begin; begin < range_end; begin += tile) {
    const int64_t end = begin + tile < range_end ? begin + tile : range_end;
    for (int g = 0; g < num_groups; ++g) {
      const T* points = packed + g * kGroup * mixture.d;
      LaneSums<T, Q>* parts = sums + g * num_parts;
      for (int i = 0; i < segment_count[g]; ++i) {
        const Segment& segment = segments[g * kMaxSegments + i];
        const int64_t from = segment.begin > begin ? segment.begin : begin;
        const int64_t to = segment.end < end ? segment.end : end;
        if (from >= to) continue;
        if (task.own) {
          add_segment<T, Q, C>(points, task, members[g], segment.part, from, to, scale, parts);
          continue;
        }
        int64_t direct_from = from;
        if (task.expanded && expanded[g].room >= 0)
          direct_from = add_tile_expanded<T, Q, C>(mixture, points, *task.expanded, from, to, scale,
                                                   expanded[g], parts[kInner]);
        if (direct_from < to)
          add_tile<T, Q, C>(points, mixture, direct_from, to, scale, parts[kInner]);
      }
    }
  }

  // -- to nats ---------------------------------------------------------------------------------
  const double constant = -0.5 * double(mixture.d) * log(M_PI / exponent) -
                          (mixture.weight_shift ? 0 : log(double(mixture.n)));
  const double never = mixture.weight_shift ? double(kNever<T>) : double(INFINITY);
  for (int g = 0; g < num_groups; ++g)
    for (int part = 0; part < num_parts; ++part) {
      double values[kGroup];
      correct_nearest<T, Q>(mixture, task.points.points + groups[g].begin * task.points.stride,
                            task.points.stride, int(groups[g].end - groups[g].begin),
                            sums[g * num_parts + part]);
      log_values<T, Q>(sums[g * num_parts + part], exponent, constant, never, values);
      T* out = task.out[part] + groups[g].begin;
      for (int l = 0; l < int(groups[g].end - groups[g].begin); ++l) out[l] = T(values[l]);
    }
  if (!task.own) return;
  for (int g = 0; g < num_groups; ++g) {
    double values[kGroup] = {};
    own_distances<T, Q>(task, groups[g], members[g], values);
    T* out = task.out[kOwn] + groups[g].begin;
    for (int l = 0; l < int(groups[g].end - groups[g].begin); ++l)
      out[l] = T(values[l] < never ? constant - exponent * values[l] : -INFINITY);
  }
}

template <class T, int Q>
int64_t scratch_bytes(int64_t d) {
  constexpr int kGroup = Q * kLanes<T>;
  return kGroupsPerTask * (kOwn * int64_t(sizeof(LaneSums<T, Q>)) + int64_t(sizeof(Members<T, Q>)) +
                           kMaxSegments * int64_t(sizeof(Segment)) +
                           kGroup * (d + kOwn * num_chunks<T>(d)) * int64_t(sizeof(T)) +
                           expanded_size<T, Q>(d) * int64_t(sizeof(T)));
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
