// The sums of log_density-inl.h over a tree of centers, for points in blocks that lie close
// together: far leaves are skipped, tight cells are replaced by polynomials, the rest is summed.
//
// A center at squared distance D from a point adds 2^(-scale D) to its sum. A bound of the sum from
// below, and a share max_lost_mass / n of it per center (per unit of weight, if centers have
// weights), give a limit: centers beyond this squared distance are left out, and a polynomial may
// be off by as much. All centers together then change the sum by max_lost_mass of it at most.
// docs/numerics.md derives the bounds. Rules of target files: as in log_density-inl.h.

#pragma once
#include "cells-inl.h"
#include "log_density-inl.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

// -- boxes ---------------------------------------------------------------------------------------

// Along one dimension: how far something lies above or below an interval, squared; 0 inside.
template <class T>
inline __attribute__((always_inline)) Vec<T> squared_gap(Vec<T> above, Vec<T> below) {
  const Vec<T> larger = above > below ? above : below;
  const Vec<T> gap = larger > T(0) ? larger : Vec<T>{};
  return gap * gap;
}

// Rounding of the differences, of d squares and sums, and of chunks of no fewer than 4 dimensions,
// taken off so that a bound stays one.
template <class T>
T box_safety(int64_t d) {
  return 1 - T(d + d / 2 + 4) * kEpsilon<T>;
}

// Lower bounds of the squared distances between the box low .. high and a node's children.
template <class T>
inline void child_distances(const T* low, const T* high, const T* boxes, int64_t d, T* out) {
  for (int c = 0; c < kFanout; c += kLanes<T>) {
    Vec<T> sum = Vec<T>{};
    for (int64_t k = 0; k < d; ++k) {
      const Vec<T> above = load<T>(boxes + k * kFanout + c) - high[k];
      const Vec<T> below = low[k] - load<T>(boxes + (d + k) * kFanout + c);
      sum += squared_gap<T>(above, below);
    }
    store<T>(out + c, sum * box_safety<T>(d));
  }
}

// Whether some point of a group may need the box: a lower bound of its squared distance is below
// its limit.
template <class T, int Q>
bool is_needed(const T* points, const T* box, int64_t d, const T* limits) {
  Int<T> needed = Int<T>{};
  for (int q = 0; q < Q; ++q) {
    Vec<T> sum = Vec<T>{};
    for (int64_t k = 0; k < d; ++k) {
      const Vec<T> x = load<T>(points + (k * Q + q) * kLanes<T>);
      sum += squared_gap<T>(box[k] - x, x - box[d + k]);
    }
    needed |= sum * box_safety<T>(d) < load<T>(limits + q * kLanes<T>);
  }
  return any<T>(needed);
}

// std::sqrt(float) would be shared between targets.
inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// log2 from below, off by less than 1: the exponent.
inline double log2_floor(double x) {
  int64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return x > 0 ? double((bits >> 52) - 1023) : -INFINITY;
}

// What is the same for all points of a task.
template <class T>
struct TreeScale {
  double exponent, constant, log2_allowed;
  T scale;

  explicit TreeScale(const TreeTask<T>& task)
      : exponent(1 / (2 * task.noise_std * task.noise_std)), scale(T(exponent * M_LOG2E)) {
    const double log_n = task.tree.weight_shift ? 0 : log(double(task.tree.n));
    constant = -0.5 * double(task.tree.d) * log(M_PI / exponent) - log_n;
    // 1 + max_lost_mass: so that log(1 + max_lost_mass) bounds the change on either side; 0.01: the
    // rounding of the sum.
    log2_allowed = log_n * M_LOG2E - log2(task.max_lost_mass) + log2(1 + task.max_lost_mass) + 0.01;
  }

  // The squared distance beyond which centers may be left out of a sum.
  T limit(double offset, double sum) const {
    const double at = offset + (log2_allowed - log2_floor(sum)) / double(scale);
    return T(at * (at > 0 ? 1 + 2 * double(kEpsilon<T>) : 1));
  }
};

// Nodes still to be looked at, the nearest of each family on top.
template <class T>
struct TreeStack {
  struct Entry {
    int32_t child;
    T distance;
  };
  Entry* entries;
  int64_t size;

  void start() {
    entries[0] = {0, T(0)};
    size = 1;
  }

  // Children nearer than most. Room: (kFanout - 1) * depth + 1 entries.
  void push(const TreeView<T>& tree, int32_t node, const T* low, const T* high, T most) {
    T distances[kFanout];
    child_distances<T>(low, high, tree.node_boxes + int64_t(node) * 2 * tree.d * kFanout, tree.d,
                       distances);
    const int32_t* children = tree.children + int64_t(node) * kFanout;
    const int64_t begin = size;
    int64_t nearest = begin;
    T least = T(INFINITY);
    for (int c = 0; c < kFanout; ++c) {
      if (!(distances[c] < most)) continue;  // also missing children, at infinity
      if (distances[c] < least) {
        least = distances[c];
        nearest = size;
      }
      entries[size++] = {children[c], distances[c]};
    }
    if (size == begin) return;
    const Entry top = entries[nearest];
    entries[nearest] = entries[size - 1];
    entries[size - 1] = top;
  }
};

// -- one point -----------------------------------------------------------------------------------

// The running sum of one point over leaves by dimension, kLanes centers in a vector. As in
// LaneSums, distances are taken relative to a near center's, each chunk of dimensions apart.
template <class T>
struct PointSum {
  static int64_t num_parts(int64_t d) { return d > kChunk ? num_chunks<T>(d) : 1; }

  double offset, sum;
  T* parts;        // num_parts(), of the offset, but for its shift
  T shift = T(0);  // of the center that the offset is the distance to
  // As in LaneSums; the nearest center is every kFanout numbers.
  const T* nearest = nullptr;
  T nearest_shift = T(0), distance = T(INFINITY);
  double term = 0, alike = 0;
  Vec<T> terms = Vec<T>{};  // not yet in the sum

  void fold() {
    for (int l = 0; l < kLanes<T>; ++l) sum += double(terms[l]);
    terms = Vec<T>{};
  }

  // Squared distances of a vector of centers (columns y) minus the offset, plus `start`; false once
  // all are above the limit, with the dimensions done in k.
  bool relative_squares(const T* x, int64_t stride, const T* y, int64_t d, T limit, Vec<T> start,
                        Vec<T>& s, int64_t& k) const {
    const T safety = box_safety<T>(d);
    const int64_t length = chunk_dims<T>(d), part = part_dims<T>(d);
    T before = T(0);  // what the offset's parts took off so far
    Vec<T> done = Vec<T>{};
    s = start;
    // Leaves mostly lie beyond the limit in few dimensions.
    int64_t look = d > kFirstLook + 2 ? kFirstLook : d;
    for (k = 0; k < d;) {
      if (k % length == 0) {
        if (k > 0 && k % part == 0) {
          done += s;
          s = Vec<T>{};
        }
        s -= parts[k / length];
        before += parts[k / length];
      }
      const int64_t part_end = k - k % length + length;
      const int64_t stop = part_end < look ? part_end : look;
      for (; k < stop; ++k) {
        const Vec<T> diff = x[k * stride] - load<T>(y + k * kFanout);
        s += diff * diff;
      }
      if (k < look) continue;
      if (!any<T>((done + s + before) * safety < limit)) return false;
      look = look - look % kChunk + kChunk;
      look = look < d ? look : d;
    }
    s += done;
    return true;
  }

  // The offset becomes the squared distance to the center in lane l, with its shift; false if that
  // is no nearer after all: so far away that distances are rounded by more than their differences.
  bool move(const T* x, int64_t stride, const T* y, int64_t d, int l, T its_shift, T scale) {
    const int64_t length = chunk_dims<T>(d);
    auto part_at = [&](int64_t k) {
      const int64_t stop = k + length < d ? k + length : d;
      T part = T(0);
      for (; k < stop; ++k) {
        const T diff = x[k * stride] - y[k * kFanout + l];
        part += diff * diff;
      }
      return part;
    };
    double moved = double(its_shift), lost = 0;  // by Kahan's rule
    for (int64_t k = 0; k < d; k += length) {
      const double more = double(part_at(k)) - lost, next = moved + more;
      lost = (next - moved) - more;
      moved = next;
    }
    if (!(moved < offset)) return false;
    for (int64_t k = 0; k < d; k += length) parts[k / length] = part_at(k);
    fold();
    const double factor = exp2(double(scale) * (moved - offset));
    sum = factor > 0 ? sum * factor : 0;
    term = factor > 0 ? term * factor : 0;
    alike = factor > 0 ? alike * factor : 0;
    distance = T(double(distance) + (offset - moved));
    offset = moved;
    shift = its_shift;
    return true;
  }

  // The twin of the function of this name. y: the centers of s.
  void note_nearest(const Vec<T>& s, const T* y, const T* shifts, int num_lanes, T scale) {
    int which = -1, count = 0;
    for (int l = 0; l < num_lanes; ++l) {
      if (s[l] > distance) continue;
      count = s[l] < distance ? 1 : count + 1;
      if (s[l] < distance) distance = s[which = l];
    }
    if (count == 0) return;
    const Vec<T> least = broadcast<T>(distance);
    Vec<T> power = Vec<T>{};
    add_exp2<T, 1, 1>(&least, scale, &power);
    alike = count * double(power[0]) + (which < 0 ? alike : 0);
    if (which < 0) return;
    term = double(power[0]);
    nearest = y + which;
    nearest_shift = shifts ? shifts[which] : T(0);
  }

  // The twin of the function of this name.
  void correct_nearest(const T* x, int64_t d, double scale) {
    if (!is_nearest_exact<T>(d) || !(term > 0)) return;
    double exact = double(nearest_shift);
    for (int64_t k = 0; k < d; ++k) {
      const double diff = double(x[k]) - double(nearest[k * kFanout]);
      exact += diff * diff;
    }
    sum += alike * missing_share(term, scale, exact, offset);
  }

  // The centers of a leaf within the limit but the own one, if any; returns whether there are any.
  // x: coordinates, `stride` apart.
  bool add_leaf(const TreeView<T>& tree, int32_t leaf, const T* x, int64_t stride, int64_t own,
                T limit, T scale, TreeCounts& counts) {
    const int64_t d = tree.d, begin = tree.begins[leaf], count = tree.begins[leaf + 1] - begin;
    const T* column = tree.columns + tree.column_begins[leaf] * kFanout * d;
    const T slack = T(kSlack) / scale;
    Int<T> lane;
    for (int l = 0; l < kLanes<T>; ++l) lane[l] = typename Simd<T>::Scalar(l);
    bool any_near = false;
    int64_t dims = 0;  // evaluated, of all vectors of centers
    for (int64_t j = 0; j < count; j += kLanes<T>) {
      const T* y = column + (j / kFanout * d * kFanout + j % kFanout);
      const int num_lanes = count - j < kLanes<T> ? int(count - j) : kLanes<T>;
      Vec<T> start = Vec<T>{};
      if (num_lanes < kLanes<T>)  // padding: farther than anything
        start =
            lane < Int<T>{} + typename Simd<T>::Scalar(num_lanes) ? start : broadcast<T>(kNever<T>);
      if (own >= begin + j && own < begin + j + num_lanes) start[own - begin - j] = kNever<T>;
      if (offset == INFINITY)
        for (int64_t c = 0; c < num_parts(d); ++c) parts[c] = T(0);
      Vec<T> s;
      int64_t k;
      const bool is_near = relative_squares(x, stride, y, d, limit, start, s, k);
      dims += k;
      if (!is_near) continue;
      any_near = true;
      const T* shifts = tree.weight_shift ? tree.weight_shift + begin + j : nullptr;
      if (shifts)  // only now: the limit is for distances, whatever the weight
        for (int l = 0; l < num_lanes; ++l) s[l] += shifts[l] - shift;
      // A nearer center becomes the reference. Distances from zero are rounded: seen from there,
      // another one may be nearer still.
      for (int tries = 0; tries < 4 && (offset == INFINITY || any<T>(s < -slack)); ++tries) {
        int next = 0;
        for (int l = 1; l < num_lanes; ++l) next = s[l] < s[next] ? l : next;
        if (s[next] >= kNever<T> / 2) break;  // none of any weight
        if (!move(x, stride, y, d, next, shifts ? shifts[next] : T(0), scale)) break;
        relative_squares(x, stride, y, d, T(INFINITY), start, s, k);
        if (shifts)
          for (int l = 0; l < num_lanes; ++l) s[l] += shifts[l] - shift;
        // Near zero, whatever rounding says.
        if (!(s[next] >= -T(1) / scale && s[next] <= T(1) / scale)) s[next] = T(0);
      }
      if (offset == INFINITY) continue;
      s = s < -slack ? Vec<T>{} : s;  // rounding of distances beyond any exponent
      if (is_nearest_exact<T>(d) && any<T>(s <= distance))
        note_nearest(s, y, shifts, num_lanes, scale);
      add_exp2<T, 1, 1>(&s, scale, &terms);
      if (j % (64 * kLanes<T>) == 0) fold();  // float sums of more terms would lose digits
    }
    counts.pairs += dims * kLanes<T> / d;
    return any_near;
  }
};

// -- blocks of points ----------------------------------------------------------------------------

// One block of points, and what is known of it so far.
template <class T, int Q, int C>
struct TreeBlock {
  static constexpr int kGroup = Q * kLanes<T>;

  const TreeTask<T>& task;
  const TreeScale<T>& scale;
  const MixtureView<T>& mixture;
  TreeCounts& counts;
  LaneSums<T, Q>& sums;
  const T* points;     // d x Q vectors
  const int32_t* own;  // (kGroup,) rows of the tree to leave out; null: none
  int num_points;      // of the lanes; the others repeat the last
  T* limits;           // (kGroup,)
  T most;              // the largest of them

  void start() {
    for (int l = 0; l < kGroup; ++l) limits[l] = T(INFINITY);
    most = T(INFINITY);
  }

  // The sums at least, not all of which may be known yet: limits only fall.
  void lower_limits(const LaneSums<T, Q>& at_least) {
    most = -T(INFINITY);
    for (int l = 0; l < kGroup; ++l) {
      const T limit = scale.limit(at_least.offset[l], at_least.sum[l]);
      limits[l] = limit < limits[l] ? limit : limits[l];
      most = limits[l] > most ? limits[l] : most;
    }
  }

  void add_leaf(int32_t leaf) {
    const int64_t begin = task.tree.begins[leaf], end = task.tree.begins[leaf + 1];
    LaneRanges<T, Q> ranges;
    T own_distance[kGroup];
    if (own && find_own(begin, end, own_distance, ranges))
      add_range<T, Q, C>(points, mixture, begin, end, scale.scale, &ranges, nullptr, sums);
    // Weights would be part of the limit, which is for distances.
    else if (task.tree.d > kChunk && !task.tree.weight_shift)
      add_tile_limited<T, Q, C>(points, mixture, begin, end, scale.scale, limits, sums);
    else
      add_tile<T, Q, C>(points, mixture, begin, end, scale.scale, sums);
    counts.pairs += num_points * (end - begin);
  }

  // The lanes' own centers among rows [begin, end), as holes of the dense kernel's ranges.
  bool find_own(int64_t begin, int64_t end, T* own_distance, LaneRanges<T, Q>& ranges) const {
    using Scalar = typename Simd<T>::Scalar;
    ranges.from = end;
    ranges.to = begin;
    for (int l = 0; l < kGroup; ++l) {
      if (own[l] < begin || own[l] >= end) continue;
      ranges.from = own[l] < ranges.from ? own[l] : ranges.from;
      ranges.to = own[l] + 1 > ranges.to ? own[l] + 1 : ranges.to;
    }
    if (ranges.from >= ranges.to) return false;
    ranges.is_point = true;
    ranges.own_distance = own_distance;
    for (int l = 0; l < kGroup; ++l) {
      const int q = l / kLanes<T>, at = l % kLanes<T>;
      ranges.hole_begin[q][at] = Scalar(own[l]);
      ranges.hole_end[q][at] = Scalar(own[l] + 1);
      ranges.begin[q][at] = Scalar(0);
      ranges.end[q][at] = Scalar(task.tree.n);
      own_distance[l] = T(0);
    }
    return true;
  }

  bool is_own_in(int l, int32_t leaf) const {
    return own && own[l] >= task.tree.begins[leaf] && own[l] < task.tree.begins[leaf + 1];
  }

  double own_weight(int l) const {
    return task.tree.weight_shift
               ? exp2(-double(scale.scale) * double(task.tree.weight_shift[own[l]]))
               : 1;
  }

  bool has_polynomial(int32_t leaf) const {
    return task.tree.cells && task.tree.cells[leaf].max_order > 0;
  }

  Vec<T> squared_distance(const T* y, int q) const {
    Vec<T> s = Vec<T>{};
    for (int64_t k = 0; k < task.tree.d; ++k) {
      const Vec<T> diff = load<T>(points + (k * Q + q) * kLanes<T>) - y[k];
      s += diff * diff;
    }
    return s;
  }

  // Jensen's bound from below of what the cell adds, to `bounds`; its distances to their offsets.
  void add_bound(int32_t leaf, LaneSums<T, Q>& bounds) {
    const Cell& cell = task.tree.cells[leaf];
    const T* centroid = task.tree.centroids + int64_t(leaf) * task.tree.d;
    // 1e-3: a centroid that is rounded, see cell_shape(). Without the own center, the mean square
    // of distances to the point is larger by the weights' ratio at most.
    T factor[kGroup], shift[kGroup];
    bool has_own = false;
    for (int l = 0; own && l < kGroup; ++l) has_own |= is_own_in(l, leaf);
    for (int l = 0; has_own && l < kGroup; ++l) {
      const double weight = cell.weight - (is_own_in(l, leaf) ? own_weight(l) * (1 + 1e-6) : 0);
      const double ratio = cell.weight / weight;
      const double bits = double(M_LOG2E) * 0.5 * cell.mean_square * ratio - log2(weight);
      factor[l] = weight > 0 ? T((1 + 1e-3) * ratio) : T(1);
      shift[l] = weight > 0 ? T(bits) / scale.scale : T(INFINITY);
    }
    const double bits = double(M_LOG2E) * 0.5 * cell.mean_square - cell.log2_weight;
    for (int q = 0; q < Q; ++q) {
      const int at = q * kLanes<T>;
      const Vec<T> square = squared_distance(centroid, q);
      const Vec<T> s = has_own ? square * load<T>(factor + at) + load<T>(shift + at)
                               : square * T(1 + 1e-3) + T(bits) / scale.scale;
      const Vec<T> relative = s - bounds.move(q, s, scale.scale);
      Vec<T> term = Vec<T>{};
      add_exp2<T, 1, 1>(&relative, scale.scale, &term);
      if (has_own) term = s < T(INFINITY) ? term : Vec<T>{};
      bounds.fold(q, term);
    }
    ++counts.boxes;
  }

  // Takes own centers in the cell off its sum; where little is left of that, nothing is added and
  // the lane is for its centers one by one.
  void subtract_own(int32_t leaf, int q, const T* needed, Vec<T>& term, bool* is_alone) const {
    constexpr double kLeast = 0.05;  // of the own term: a digit or two of it are rounding
    const int64_t d = task.tree.d;
    for (int at = 0; at < kLanes<T>; ++at) {
      const int l = q * kLanes<T> + at;
      if (is_alone[l] || !is_own_in(l, leaf) || !(needed[l] > -T(INFINITY))) continue;
      const T* y = task.tree.rows + own[l] * d;
      double square = 0;
      for (int64_t k = 0; k < d; ++k) {
        const double diff = double(points[k * kGroup + l]) - double(y[k]);
        square += diff * diff;
      }
      const double own_term =
          own_weight(l) * exp2(-double(scale.scale) * (square - sums.offset[l]));
      const double others = double(term[at]) - own_term;
      is_alone[l] = !(others > kLeast * own_term);
      term[at] = is_alone[l] ? T(0) : T(others);
    }
  }

  // Adds the cell, by a polynomial where that is good enough and to the other points center by
  // center; the order that makes the least work of both.
  void add_cell(int32_t leaf) {
    const TreeView<T>& tree = task.tree;
    const Cell& cell = tree.cells[leaf];
    const T* centroid = tree.centroids + int64_t(leaf) * tree.d;
    const int64_t d = tree.d, count = tree.begins[leaf + 1] - tree.begins[leaf];
    const T per_noise = T(1 / task.noise_std), radius = T(cell.radius);
    Vec<T> squares[Q];
    T needed[kGroup];  // bits
    for (int q = 0; q < Q; ++q) {
      squares[q] = squared_distance(centroid, q);
      store<T>(needed + q * kLanes<T>, squares[q]);
    }
    for (int l = 0; l < kGroup; ++l) {
      const T gap = root(needed[l]) * per_noise * box_safety<T>(d) - radius;
      const T bits = limits[l] * scale.scale, square = gap > 0 ? gap * gap : T(0);
      // Beyond its limit a lane takes nothing: a polynomial far away may overflow.
      needed[l] =
          T(0.5 * M_LOG2E) * square >= bits ? -T(INFINITY) : bits - T(0.25 * M_LOG2E) * square;
    }
    // The first order that is good enough for all, if its polynomial is short; else the least work,
    // points for which it is not good enough included.
    constexpr float kShort = 2000;  // instructions: less than choosing may save
    auto is_enough = [&](float bits) {
      Int<T> poor = Int<T>{};
      for (int q = 0; q < Q; ++q) poor |= ~(load<T>(needed + q * kLanes<T>) < T(bits));
      return !any<T>(poor);
    };
    const int64_t per_lane = count * (2 * d + 12) / kLanes<T>;
    int order = 0;
    int64_t at = cell.polynomials, begin = at;
    for (int p = 2; p <= cell.max_order && cell.work[p / 2 - 1] <= kShort; p += 2) {
      if (is_enough(cell.bits[p / 2 - 1])) {
        order = p;
        begin = at;
        break;
      }
      at += kCoefficientCounts.at[d][p];
    }
    int64_t least = kGroup * per_lane;
    if (order > 0 && Q * int64_t(cell.work[order / 2 - 1]) > least) order = 0;
    if (order == 0) {
      at = cell.polynomials;
      for (int p = 2; p <= cell.max_order && Q * int64_t(cell.work[p / 2 - 1]) < least; p += 2) {
        int poor = 0;
        for (int l = 0; l < kGroup; ++l) poor += !(needed[l] < T(cell.bits[p / 2 - 1]));
        const int64_t work = Q * int64_t(cell.work[p / 2 - 1]) + poor * per_lane;
        if (work < least) {
          least = work;
          order = p;
          begin = at;
        }
        at += kCoefficientCounts.at[d][p];
      }
    }
    const T* polynomial = tree.polynomials + begin;
    if (order == 0) return add_leaf(leaf);

    Vec<T> x[kMaxCellDims][Q], value[Q];
    for (int64_t k = 0; k < d; ++k)
      for (int q = 0; q < Q; ++q)
        x[k][q] = (load<T>(points + (k * Q + q) * kLanes<T>) - centroid[k]) * per_noise;
    if (order < cell.graded_below)
      graded_sum<T, Q>(polynomial, x, int(d), order, value);
    else
      nested_horner<T, Q>(polynomial, x, int(d), order, value);
    const T reached = T(cell.bits[order / 2 - 1]);
    bool is_alone[kGroup] = {};  // center by center instead
    const bool has_poor = !is_enough(cell.bits[order / 2 - 1]);
    for (int l = 0; has_poor && l < kGroup; ++l) is_alone[l] = !(needed[l] < reached);
    for (int q = 0; q < Q; ++q) {
      const Vec<T> bits = load<T>(needed + q * kLanes<T>);
      const auto is_good = (bits < reached) & (bits > -T(INFINITY));
      const Vec<T> distance = is_good ? squares[q] : broadcast<T>(T(INFINITY));
      const Vec<T> relative = distance - sums.move(q, distance, scale.scale);
      Vec<T> factor = Vec<T>{};
      add_exp2<T, 1, 1>(&relative, scale.scale, &factor);
      factor = is_good ? factor * value[q] : Vec<T>{};
      if (own) subtract_own(leaf, q, needed, factor, is_alone);
      sums.fold(q, factor);
    }
    for (int l = 0; (has_poor || own) && l < kGroup; ++l) {
      if (!is_alone[l]) continue;
      T parts[kMaxCellDims / kChunk] = {T(sums.offset[l])};
      PointSum<T> point{sums.offset[l], sums.sum[l], parts};
      point.add_leaf(tree, leaf, points + l, kGroup, own ? own[l] : -1, limits[l], scale.scale,
                     counts);
      point.fold();
      // Lanes subtract their offset in T: the sum moves to what it is there.
      const double offset = double(T(point.offset));
      if (offset < INFINITY) {
        // By a factor of 2 at most: where rounding is more, far away, there are no digits to save.
        const double by = double(scale.scale) * (offset - point.offset);
        point.sum *= exp2(by < -1 ? -1 : by < 1 ? by : 1);
      }
      sums.offset[l] = offset;
      sums.sum[l] = point.sum;
    }
    counts.terms += kGroup * kCoefficientCounts.at[d][order];
    counts.term_work += Q * int64_t(cell.work[order / 2 - 1]);
    for (int l = 0; l < num_points; ++l) counts.aggregated += is_alone[l] ? 0 : count;
  }
};

// Lowers the limits by the leaf that each lane's point comes to when it goes down the tree to the
// nearest child each time. In many dimensions the leaves nearest to a block are not those.
template <class T, int Q, int C>
void lower_limits_by_point(TreeBlock<T, Q, C>& block, TreeStack<T>& stack, T* point, T* parts) {
  constexpr int kGroup = Q * kLanes<T>;
  const TreeView<T>& tree = block.task.tree;
  block.most = -T(INFINITY);
  for (int l = 0; l < kGroup; ++l) {
    for (int64_t k = 0; k < tree.d; ++k) point[k] = block.points[k * kGroup + l];
    int32_t child = 0;
    while (child >= 0) {
      stack.size = 0;
      stack.push(tree, child, point, point, T(INFINITY));
      if (stack.size == 0) break;  // distances overflow
      child = stack.entries[stack.size - 1].child;
      ++block.counts.boxes;
    }
    if (child >= 0) {
      block.most = T(INFINITY);
      continue;
    }
    PointSum<T> sum{INFINITY, 0, parts};
    sum.add_leaf(tree, ~child, point, 1, block.own ? block.own[l] : -1, T(INFINITY),
                 block.scale.scale, block.counts);
    sum.fold();
    block.limits[l] = block.scale.limit(sum.offset, sum.sum);
    block.most = block.limits[l] > block.most ? block.limits[l] : block.most;
  }
}

// Bytes per thread for either way over a tree.
template <class T, int Q>
int64_t tree_scratch_bytes(const TreeView<T>& tree) {
  constexpr int kGroup = Q * kLanes<T>;
  using Entry = typename TreeStack<T>::Entry;
  return int64_t(2 * sizeof(LaneSums<T, Q>)) +
         int64_t(sizeof(Entry)) * ((kFanout - 1) * tree.depth + 1) +
         (tree.cells ? int64_t(sizeof(int32_t)) * (tree.num_leaves + 1) : 0) +
         int64_t(sizeof(T)) *
             (kGroup + 4 * tree.d + 1 + kGroup * (tree.d + num_chunks<T>(tree.d))) +
         64;
}

// Blocks of points [first, last), each one group. scratch: tree_scratch_bytes() bytes.
template <class T, int Q, int C>
void evaluate_blocks(const TreeTask<T>& task, int64_t first, int64_t last, void* scratch,
                     TreeCounts& counts) {
  constexpr int kGroup = Q * kLanes<T>;
  constexpr int kLeavesBetweenLimits = 8;  // limits cost about as much as half a leaf
  const FlushDenormals flush;
  const TreeView<T>& tree = task.tree;
  const int64_t d = tree.d;
  const TreeScale<T> scale(task);
  const MixtureView<T> mixture{tree.rows, d, tree.n, d, task.noise_std, tree.weight_shift};

  const double never = tree.weight_shift ? double(kNever<T>) : double(INFINITY);

  auto* sums = static_cast<LaneSums<T, Q>*>(scratch);
  LaneSums<T, Q>* bounds = sums + 1;
  T* limits = reinterpret_cast<T*>(sums + 2);
  T* packed = limits + kGroup;
  T* box = packed + kGroup * d;
  T* point = box + 2 * d;
  T* parts = point + d;
  T* chunks = parts + PointSum<T>::num_parts(d);
  TreeStack<T> stack{
      reinterpret_cast<typename TreeStack<T>::Entry*>(chunks + num_chunks<T>(d) * kGroup), 0};
  auto* candidates = reinterpret_cast<int32_t*>(stack.entries + (kFanout - 1) * tree.depth + 1);

  for (int64_t g = first; g < last; ++g) {
    const int64_t begin = task.points.begins[g], end = task.points.begins[g + 1];
    pack_points<T, Q>({task.points.rows, d, end}, begin, end, d, packed);
    for (int64_t k = 0; k < d; ++k) {
      T low = packed[k * kGroup], high = low;
      for (int l = 1; l < kGroup; ++l) {
        const T x = packed[k * kGroup + l];
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      box[k] = low;
      box[d + k] = high;
    }
    const bool is_whole = tree.cells || num_chunks<T>(d) == 0;  // cells know no parts of an offset
    sums->clear(is_whole ? nullptr : chunks, d);
    bounds->clear();
    int32_t own[kGroup];
    for (int l = 0; task.own && l < kGroup; ++l)
      own[l] = task.own[begin + l < end ? begin + l : end - 1];
    TreeBlock<T, Q, C> block{task,
                             scale,
                             mixture,
                             counts,
                             *sums,
                             packed,
                             task.own ? own : nullptr,
                             int(end - begin),
                             limits,
                             T(INFINITY)};
    block.start();

    // -- leaves within reach, near ones first; those without polynomials are added at once --------
    int64_t num_candidates = 0, added = 0;
    if (d > kChunk) lower_limits_by_point(block, stack, point, parts);
    stack.start();
    while (stack.size > 0) {
      const auto at = stack.entries[--stack.size];
      if (!(at.distance < block.most)) continue;
      if (at.child >= 0) {
        stack.push(tree, at.child, box, box + d, block.most);
        ++counts.boxes;
        continue;
      }
      const int32_t leaf = ~at.child;
      ++counts.boxes;
      if (!is_needed<T, Q>(packed, tree.leaf_boxes + int64_t(leaf) * 2 * d, d, limits)) continue;
      if (block.has_polynomial(leaf)) {
        candidates[num_candidates] = leaf;
        block.add_bound(leaf, *bounds);
        if (num_candidates++ % kLeavesBetweenLimits == 0) block.lower_limits(*bounds);
      } else {
        block.add_leaf(leaf);
        if (added++ % kLeavesBetweenLimits == 0) block.lower_limits(*sums);
      }
    }

    // -- cells, with the limits that all of them give together
    // -------------------------------------
    if (num_candidates > 0) {
      block.lower_limits(*bounds);
      for (int64_t c = 0; c < num_candidates; ++c) {
        const int32_t leaf = candidates[c];
        if (is_needed<T, Q>(packed, tree.leaf_boxes + int64_t(leaf) * 2 * d, d, limits))
          block.add_cell(leaf);
      }
    }
    double values[kGroup];
    correct_nearest<T, Q>(mixture, task.points.rows + begin * d, d, int(end - begin), *sums);
    log_values<T, Q>(*sums, scale.exponent, scale.constant, never, values);
    for (int l = 0; l < int(end - begin); ++l)
      task.out[task.points.order[begin + l]] = T(values[l]);
  }
}

// Blocks of points [first, last), each point alone: for points whose neighbours need other leaves,
// as in ten dimensions. scratch: tree_scratch_bytes() bytes.
template <class T>
void evaluate_points(const TreeTask<T>& task, int64_t first, int64_t last, void* scratch,
                     TreeCounts& counts) {
  constexpr int kLeavesBetweenLimits = 4;
  const FlushDenormals flush;
  const TreeView<T>& tree = task.tree;
  const TreeScale<T> scale(task);
  T* parts = static_cast<T*>(scratch);
  TreeStack<T> stack{reinterpret_cast<typename TreeStack<T>::Entry*>(
                         parts + (PointSum<T>::num_parts(tree.d) + 1) / 2 * 2),
                     0};

  for (int64_t i = task.points.begins[first]; i < task.points.begins[last]; ++i) {
    const T* x = task.points.rows + i * tree.d;
    T limit = T(INFINITY);
    PointSum<T> sum{INFINITY, 0, parts};
    int64_t leaves = 0;
    stack.start();
    while (stack.size > 0) {
      const auto at = stack.entries[--stack.size];
      if (!(at.distance < limit)) continue;
      ++counts.boxes;
      if (at.child >= 0) {
        stack.push(tree, at.child, x, x, limit);
      } else if (sum.add_leaf(tree, ~at.child, x, 1, task.own ? task.own[i] : -1, limit,
                              scale.scale, counts) &&
                 leaves++ % kLeavesBetweenLimits == 0) {
        sum.fold();
        limit = scale.limit(sum.offset, sum.sum);
      }
    }
    sum.fold();
    sum.correct_nearest(x, tree.d, scale.exponent * M_LOG2E);
    const bool is_empty = sum.offset == INFINITY;  // nothing but the own center, or no weight
    task.out[task.points.order[i]] =
        is_empty ? -T(INFINITY) : T(log(sum.sum) - scale.exponent * sum.offset + scale.constant);
  }
}

// 2 x 6 fills 32 registers and 2 x 3 fills 16; 1 x 12, 2 x 8, 3 x 4 are up to 6 % slower, and
// anything larger spills (bench/README.md).
template <class T>
KernelChoice<T> choose_kernel(int64_t d) {
  constexpr int Q = 2, C = kVectorBytes == 64 ? 6 : 3;
  return {&evaluate<T, Q, C>,  scratch_bytes<T, Q>(d),    Q * kLanes<T>,  &evaluate_blocks<T, Q, C>,
          &evaluate_points<T>, &tree_scratch_bytes<T, Q>, &cell_shape<T>, &cell_moments<T>};
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
