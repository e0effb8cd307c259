// The bounds of cells and boxes, each by itself: a certificate over a tree would not notice one
// that is a little too optimistic. Truth is computed in long double, by other formulas. Prints what
// failed and returns 1. Compiled by tests/test_cpp.py once for every CPU target.

#define NOISYFLOW_TARGET tested
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <initializer_list>
#include <vector>

#include "../../csrc/cpu/tree_log_density-inl.h"
#include "../../csrc/spatial/polynomials.cpp"

using namespace noisyflow;
using Real = long double;

static int failures = 0;

static void check(bool condition, const char* claim, int d, int order, Real seen) {
  if (condition) return;
  if (++failures <= 40)
    printf("FAILED: %s (d = %d, order %d, seen %.17Lg)\n", claim, d, order, seen);
}

static double uniform() { return 2.0 * rand() / RAND_MAX - 1; }

static double normal() {
  double sum = 0;
  for (int i = 0; i < 12; ++i) sum += uniform() / 2;
  return sum;
}

static void random_direction(int d, double* e) {
  double square = 0;
  for (int k = 0; k < d; ++k) e[k] = normal() + 1e-9;
  for (int k = 0; k < d; ++k) square += e[k] * e[k];
  for (int k = 0; k < d; ++k) e[k] /= sqrt(square);
}

// -- cells
// -----------------------------------------------------------------------------------------

// Centers, and what cell_shape() says of them.
template <class T>
struct TestCell {
  int d;
  double noise_std;
  std::vector<T> rows, shifts, centroid;  // shifts: empty without weights
  Cell cell{};

  int count() const { return int(rows.size()) / d; }
  const T* weight_shift() const { return shifts.empty() ? nullptr : shifts.data(); }

  Real weight(int j) const {
    return shifts.empty() ? 1 : expl(-Real(shifts[size_t(j)]) / (2 * Real(noise_std) * noise_std));
  }

  Real total_weight() const {
    Real total = 0;
    for (int j = 0; j < count(); ++j) total += weight(j);
    return total;
  }

  Real from_centroid(int j, int k) const {
    return (Real(rows[size_t(j * d + k)]) - Real(centroid[size_t(k)])) / Real(noise_std);
  }

  void shape() {
    centroid.assign(size_t(d), T(0));
    cell_shape<T>(rows.data(), count(), d, noise_std, weight_shift(), centroid.data(), &cell);
  }

  Real exact_sum(const T* x, int stride) const {
    Real sum = 0;
    for (int j = 0; j < count(); ++j) {
      Real square = 0;
      for (int k = 0; k < d; ++k) {
        const Real diff = (Real(x[k * stride]) - Real(rows[size_t(j * d + k)])) / Real(noise_std);
        square += diff * diff;
      }
      sum += weight(j) * expl(-square / 2);
    }
    return sum;
  }
};

// The header's words for Cell, and for centroids off the mean, as formulas.
template <class T>
static void test_shape(const TestCell<T>& c, bool is_drifting) {
  const int d = c.d;
  Real most = 0, total = c.total_weight(), square_of_drift = 0;
  std::vector<Real> mean(size_t(d), 0), powers(kMaxOrder / 2, 0);
  for (int j = 0; j < c.count(); ++j) {
    Real square = 0;
    for (int k = 0; k < d; ++k) {
      const Real u = c.from_centroid(j, k);
      mean[size_t(k)] += c.weight(j) * u / total;
      square += u * u;
    }
    if (c.weight(j) > 0) most = fmaxl(most, square);
    Real power = c.weight(j) / total;
    for (int p = 0; p < kMaxOrder / 2; ++p) powers[size_t(p)] += power *= square;
  }
  for (Real m : mean) square_of_drift += m * m;
  const Real drift = sqrtl(square_of_drift);
  check(fabsl(c.cell.weight / total - 1) < 1e-13, "weights add up", d, 0, c.cell.weight / total);
  check(fabsl(c.cell.log2_weight - log2l(total)) < 1e-12, "log2 of the weight", d, 0,
        c.cell.log2_weight);
  check(c.cell.mean_square >= powers[0] + drift * (1 - 1e-6L), "mean square and drift", d, 0,
        c.cell.mean_square - powers[0] - drift);
  check(is_drifting == (c.cell.radius == INFINITY), "no cell where the centroid is far off", d, 0,
        drift);
  if (!is_drifting)
    check(c.cell.radius >= sqrtl(most) && c.cell.radius <= sqrtl(most) * 1.00001L,
          "the radius holds centers of any weight", d, 0, c.cell.radius - sqrtl(most));
  Real root = 1;  // sqrt(p!)
  for (int p = 2; p <= kMaxOrder; p += 2) {
    root *= sqrtl(Real(p - 1) * p);
    const Real bits = -log2l(1.0865L * powers[size_t(p / 2 - 1)] / root);
    const Real seen = Real(c.cell.bits[p / 2 - 1]) - bits;
    check(seen <= 0 && seen > -0.02L, "bits are those of mean |u|^p 1.0865 / sqrt(p!)", d, p, seen);
  }
}

// What a center adds, divided into Hermite terms along the line through it and the centroid:
// exp(-|z - u|^2 / 2) = exp(-|z|^2 / 2) sum_k |u|^k / k! He_k(z . u / |u|).
struct Center {
  Real truncated;  // terms k < p
  Real rest;       // k >= p
  Real magnitude;  // terms k < p with all signs positive in all monomials, for rounding
};

static Center expand(const std::vector<Real>& u, const std::vector<Real>& z, int p) {
  Real square = 0, dot = 0, absolute = 0, r2 = 0;
  for (size_t k = 0; k < u.size(); ++k) {
    square += u[k] * u[k];
    dot += u[k] * z[k];
    absolute += fabsl(u[k] * z[k]);
    r2 += z[k] * z[k];
  }
  Center out{0, 0, 0};
  Real term = 1, before = 0, positive = 1, positive_before = 0;
  for (int k = 0; k < 400; ++k) {
    (k < p ? out.truncated : out.rest) += term;
    if (k < p) out.magnitude += positive;
    const Real next = (dot * term - square * before) / (k + 1);
    const Real positive_next = (absolute * positive + square * positive_before) / (k + 1);
    before = term;
    term = next;
    positive_before = positive;
    positive = positive_next;
  }
  const Real factor = expl(-r2 / 2);
  return {out.truncated * factor, out.rest * factor, out.magnitude * factor};
}

static int highest_order(int d) {
  int order = 2;
  while (order + 2 <= kMaxOrder && num_coefficients(d, order + 2) < kMaxCoefficients) order += 2;
  return order;
}

// The ladder of a cell's polynomials.
static std::vector<double> ladder(const TestCell<double>& c, const HermiteToMonomials& transform,
                                  int max_order) {
  const int64_t size = num_coefficients(c.d, max_order);
  std::vector<double> moments(size_t(size), 0.0);
  std::vector<double> out(size_t(num_ladder_coefficients(c.d, max_order)), 0.0);
  void* scratch = aligned_alloc(kVectorBytes, size_t(size) * kVectorBytes);
  cell_moments<double>(c.rows.data(), c.count(), c.d, c.noise_std, c.weight_shift(),
                       c.centroid.data(), max_order, moments.data(), scratch);
  free(scratch);
  transform.write_ladder<double>(moments.data(), out.data());
  return out;
}

// One vector of points at radius r from the centroid, in random directions; the first one in the
// direction of the first axis.
static void points_around(const TestCell<double>& c, double r, double* points) {
  double e[kMaxCellDims];
  for (int l = 0; l < kLanes<double>; ++l) {
    random_direction(c.d, e);
    for (int k = 0; k < c.d; ++k)
      points[k * kLanes<double> + l] =
          c.centroid[size_t(k)] + c.noise_std * r * (l == 0 ? k == 0 : e[k]);
  }
}

static std::vector<Real> from_centroid(const TestCell<double>& c, const double* points, int l) {
  std::vector<Real> z(size_t(c.d), 0);
  for (int k = 0; k < c.d; ++k)
    z[size_t(k)] =
        (Real(points[k * kLanes<double> + l]) - Real(c.centroid[size_t(k)])) / Real(c.noise_std);
  return z;
}

// A few hundred roundings, each relative to the terms' magnitude.
constexpr Real kRounding = 1e-13L;

// A truncated sum is what it should be, and off by no more than the bound; returns the largest
// share of its bound that the centers' mean error comes to.
static Real test_remainders(const TestCell<double>& c, const HermiteToMonomials& transform,
                            int max_order, double step, int only_order = 0) {
  const int d = c.d;
  const std::vector<double> coefficients = ladder(c, transform, max_order);
  const Real total = c.total_weight();
  Real attained = 0;
  std::vector<double> points(size_t(d * kLanes<double>), 0.0);
  for (double radius = 0; radius <= 8; radius += step) {
    points_around(c, radius, points.data());
    Vec<double> x[kMaxCellDims][1];
    for (int k = 0; k < d; ++k)
      x[k][0] = (load<double>(points.data() + k * kLanes<double>) - c.centroid[size_t(k)]) *
                (1 / c.noise_std);
    const double* polynomial = coefficients.data();
    for (int p = 2; p <= max_order; polynomial += num_coefficients(d, p), p += 2) {
      if (only_order && p != only_order) continue;
      Vec<double> value[1];
      if (p < graded_below(d))
        graded_sum<double, 1>(polynomial, x, d, p, value);
      else
        nested_horner<double, 1>(polynomial, x, d, p, value);
      for (int l = 0; l < kLanes<double>; ++l) {
        const std::vector<Real> z = from_centroid(c, points.data(), l);
        std::vector<Real> u(size_t(d), 0);
        Real truncated = 0, rest = 0, magnitude = 0, r2 = 0;
        for (int j = 0; j < c.count(); ++j) {
          for (int k = 0; k < d; ++k) u[size_t(k)] = c.from_centroid(j, k);
          const Center center = expand(u, z, p);
          truncated += c.weight(j) * center.truncated;
          rest += c.weight(j) * fabsl(center.rest);
          magnitude += c.weight(j) * center.magnitude;
        }
        for (Real coordinate : z) r2 += coordinate * coordinate;
        const Real gap = fmaxl(sqrtl(r2) - Real(c.cell.radius), 0);
        const Real bound = total * exp2l(-Real(c.cell.bits[p / 2 - 1])) * expl(-gap * gap / 4);
        const Real sum = Real(value[0][l]) * expl(-r2 / 2), tiny = kRounding * magnitude;
        check(fabsl(sum - truncated) <= tiny, "the polynomial is the truncated expansion", d, p,
              (sum - truncated) / magnitude);
        check(fabsl(sum - c.exact_sum(points.data() + l, kLanes<double>)) <= bound + tiny,
              "a cell's sum is within its bound", d, p, radius);
        check(rest <= bound, "the mean error of centers is within the bound", d, p, rest / bound);
        attained = fmaxl(attained, rest / bound);
      }
    }
  }
  return attained;
}

// A tree of one leaf and one vector of points.
template <class T>
struct OneLeaf {
  static constexpr int Q = 1, C = kVectorBytes == 64 ? 6 : 3, kGroup = Q * kLanes<T>;
  int64_t begins[2], column_begins[1] = {0};
  std::vector<T> columns;
  Cell cell;
  TreeTask<T> task{};

  explicit OneLeaf(const TestCell<T>& c) : cell(c.cell) {
    const int n = c.count(), d = c.d;
    begins[0] = 0;
    begins[1] = n;
    columns.assign(size_t((n + kFanout - 1) / kFanout * kFanout * d), T(0));
    for (int j = 0; j < n; ++j)
      for (int k = 0; k < d; ++k)
        columns[size_t((j / kFanout * d + k) * kFanout + j % kFanout)] = c.rows[size_t(j * d + k)];
    task.tree.n = n;
    task.tree.d = d;
    task.tree.num_leaves = 1;
    task.tree.rows = c.rows.data();
    task.tree.begins = begins;
    task.tree.columns = columns.data();
    task.tree.column_begins = column_begins;
    task.tree.cells = &cell;
    task.tree.centroids = c.centroid.data();
    task.tree.weight_shift = c.weight_shift();
    task.noise_std = c.noise_std;
    task.max_lost_mass = 1e-6;
  }

  // What `add` adds for every lane, divided by 2^(-scale offset), and these offsets.
  template <class Add>
  void sums(const T* points, T* limits, Add add, Real* out) {
    TreeCounts counts;
    const TreeScale<T> scale(task);
    const MixtureView<T> mixture{task.tree.rows, task.tree.d,    task.tree.n,
                                 task.tree.d,    task.noise_std, task.tree.weight_shift};
    LaneSums<T, Q> sums;
    sums.clear(nullptr, task.tree.d);
    TreeBlock<T, Q, C> block{task,   scale,   mixture, counts, sums,
                             points, nullptr, kGroup,  limits, T(INFINITY)};
    add(block, sums);
    const Real exponent = 1 / (2 * Real(task.noise_std) * task.noise_std);
    for (int l = 0; l < kGroup; ++l)
      out[l] = sums.sum[l] == 0 ? 0 : Real(sums.sum[l]) * expl(-exponent * Real(sums.offset[l]));
  }
};

// Jensen's bound is below the sum. Rounding: of the exponent, less than 50, and its exponential.
template <class T>
static void test_jensen(const TestCell<T>& c, const T* points) {
  OneLeaf<T> leaf(c);
  T limits[kLanes<T>];
  Real bound[kLanes<T>];
  for (T& limit : limits) limit = T(INFINITY);
  leaf.sums(points, limits, [](auto& block, auto& sums) { block.add_bound(0, sums); }, bound);
  for (int l = 0; l < kLanes<T>; ++l) {
    const Real share = bound[l] / c.exact_sum(points + l, kLanes<T>);
    check(share <= 1 + 100 * Real(kEpsilon<T>), "Jensen's bound is below the sum", c.d, 0, share);
    check(share > 0, "Jensen's bound is not empty", c.d, 0, share);
  }
}

// Whatever order add_cell() takes for a limit, a lane's sum is off by the cell's weight times
// 2^(-scale limit) at most.
static void test_limits_of_cells(const TestCell<double>& c, const HermiteToMonomials& transform,
                                 int max_order) {
  const std::vector<double> coefficients = ladder(c, transform, max_order);
  OneLeaf<double> leaf(c);
  leaf.cell.graded_below = graded_below(c.d);
  leaf.cell.polynomials = 0;
  for (float& work : leaf.cell.work) work = 1;  // taken whenever it is good enough
  leaf.task.tree.polynomials = coefficients.data();
  const double scale = TreeScale<double>(leaf.task).scale;
  std::vector<double> points(size_t(c.d * kLanes<double>), 0.0);
  double limits[kLanes<double>];
  Real sums[kLanes<double>];
  for (double radius = 0; radius <= 8; radius += 0.5) {
    points_around(c, radius, points.data());
    Real exact[kLanes<double>], magnitude[kLanes<double>];
    for (int l = 0; l < kLanes<double>; ++l) {
      exact[l] = c.exact_sum(points.data() + l, kLanes<double>);
      magnitude[l] = 0;
      std::vector<Real> u(size_t(c.d), 0);
      for (int j = 0; j < c.count(); ++j) {
        for (int k = 0; k < c.d; ++k) u[size_t(k)] = c.from_centroid(j, k);
        magnitude[l] +=
            c.weight(j) * expand(u, from_centroid(c, points.data(), l), max_order).magnitude;
      }
    }
    for (double bits = 0; bits < 40; bits += 0.25) {
      // Every other time short polynomials, good enough for some of the lanes.
      const bool is_short = int(4 * bits) % 2;
      leaf.cell.max_order = is_short ? 4 : max_order;
      auto bits_at = [&](int l) { return bits + (is_short ? 2 * l : 0); };
      for (int l = 0; l < kLanes<double>; ++l) limits[l] = bits_at(l) / scale;
      leaf.sums(points.data(), limits, [](auto& block, auto&) { block.add_cell(0); }, sums);
      for (int l = 0; l < kLanes<double>; ++l) {
        const Real allowed = c.total_weight() * exp2l(-Real(bits_at(l)));
        const Real tiny = kRounding * magnitude[l] + 1e-12L * exact[l];
        check(fabsl(sums[l] - exact[l]) <= allowed + tiny, "add_cell keeps to the limit", c.d,
              int(bits), (sums[l] - exact[l]) / allowed);
      }
    }
  }
}

enum Kind { kBall, kStray, kNumKinds };

template <class T>
static TestCell<T> random_cell(int d, int n, Kind kind, double size, bool is_weighted) {
  TestCell<T> c{d, 0.3, {}, {}, {}};
  double e[kMaxCellDims];
  for (int j = 0; j < n; ++j) {
    random_direction(d, e);
    const double r = kind == kBall ? size * pow(fabs(uniform()), 1.0 / d)
                     : j == 0      ? 5
                                   : size * normal() / 3;
    for (int k = 0; k < d; ++k) c.rows.push_back(T(0.7 * k - 1 + c.noise_std * r * e[k]));
    // The last one has no weight, and is far away.
    if (is_weighted) c.shifts.push_back(j + 1 < n ? T(0.1 * (1 + uniform())) : kNever<T>);
    if (is_weighted && j + 1 == n) c.rows.back() += T(100);
  }
  c.shape();
  return c;
}

static void test_cells(int d) {
  const int max_order = highest_order(d);
  const HermiteToMonomials transform(d, max_order);
  std::vector<double> points(size_t(d * kLanes<double>), 0.0);
  for (Kind kind : {kBall, kStray})
    for (bool is_weighted : {false, true})
      for (double size : {0.2, 1.5}) {
        const TestCell<double> c = random_cell<double>(d, 19, kind, size, is_weighted);
        test_shape(c, false);
        test_remainders(c, transform, max_order, 1);
        if (kind == kBall) test_limits_of_cells(c, transform, max_order);
        for (double radius = 0; radius <= 8; radius += 0.5) {
          points_around(c, radius, points.data());
          test_jensen(c, points.data());
        }
      }
}

// Centers at +-a in one dimension, where the bounds are nearly attained.
static void test_sharp_cells() {
  const HermiteToMonomials transform(1, kMaxOrder);
  for (double a : {0.01, 2.0}) {
    TestCell<double> c{1, 1.0, {-a, a}, {}, {}};
    c.shape();
    test_shape(c, false);
    test_limits_of_cells(c, transform, kMaxOrder);
    for (int p = 2; p <= kMaxOrder; p += 2) {
      const Real attained = test_remainders(c, transform, kMaxOrder, 0.125, p);
      if (a < 1 && p <= 16)  // the largest |He_p| lies within reach
        check(attained > 0.55L, "the test comes near the bound", 1, p, attained);
    }
  }
}

// Neighbouring floats, whose mean lies halfway between them.
static void test_rounded_centroids(int d) {
  const float base = 1000, next = nextafterf(base, 2000);
  const double half = (double(next) - base) / 2 * sqrt(double(d));
  for (double drift : {2e-4, 9.5e-4, 1.1e-3}) {
    TestCell<float> c{d, half / drift, {}, {}, {}};
    for (float y : {base, next})
      for (int k = 0; k < d; ++k) c.rows.push_back(y);
    c.shape();
    test_shape(c, drift > 1e-3);
    if (drift > 1e-3) continue;
    std::vector<float> points(size_t(d * kLanes<float>), 0.0f);
    for (double r = 0; r <= 8; r += 0.25) {
      for (int l = 0; l < kLanes<float>; ++l)
        for (int k = 0; k < d; ++k)  // half of them to either side
          points[size_t(k * kLanes<float> + l)] =
              float(c.centroid[size_t(k)] +
                    (l % 2 ? 1 : -1) * (r + 0.01 * l) * c.noise_std / sqrt(double(d)));
      test_jensen(c, points.data());
    }
  }
}

// -- both forms of a polynomial
// --------------------------------------------------------------------

// As polynomials.h words it: for each power of the first variable, a polynomial in the others.
static Real nested_value(const double*& c, const Real* x, int dims, int order) {
  if (dims == 0) return *c++;
  Real sum = 0, power = 1;
  for (int a = 0; a < order; ++a, power *= x[0])
    sum += power * nested_value(c, x + 1, dims - 1, order - a);
  return sum;
}

// x_k times the monomials of one degree less in x_k, x_k+1, ..
static Real graded_value(const double*& c, const Real* x, int dims, int first, int degree,
                         Real product) {
  if (degree == 0) return product * *c++;
  Real sum = 0;
  for (int k = first; k < dims; ++k) sum += graded_value(c, x, dims, k, degree - 1, product * x[k]);
  return sum;
}

template <class T>
static void test_forms(int d) {
  constexpr int Q = 2;
  for (int order = 1; order <= highest_order(d); ++order) {
    const int64_t size = num_coefficients(d, order);
    std::vector<T> coefficients(size_t(size), T(0));
    std::vector<double> doubles(size_t(size), 0.0), magnitudes(size_t(size), 0.0);
    for (int64_t i = 0; i < size; ++i) {
      coefficients[size_t(i)] = T(uniform());
      doubles[size_t(i)] = double(coefficients[size_t(i)]);
      magnitudes[size_t(i)] = fabs(doubles[size_t(i)]);
    }
    Vec<T> x[kMaxCellDims][Q], nested[Q], graded[Q];
    for (int k = 0; k < d; ++k)
      for (int q = 0; q < Q; ++q)
        for (int l = 0; l < kLanes<T>; ++l) x[k][q][l] = T(1.5 * uniform());
    // The last degree's monomials are not formed.
    const bool has_graded = order == 1 || num_coefficients(d, order - 1) <= kMaxMonomials;
    nested_horner<T, Q>(coefficients.data(), x, d, order, nested);
    if (has_graded) graded_sum<T, Q>(coefficients.data(), x, d, order, graded);
    for (int q = 0; q < Q; ++q)
      for (int l = 0; l < 2; ++l) {
        Real at[kMaxCellDims], absolute[kMaxCellDims];
        for (int k = 0; k < d; ++k) at[k] = x[k][q][l], absolute[k] = fabsl(at[k]);
        const double* c = doubles.data();
        const Real truth = nested_value(c, at, d, order);
        c = magnitudes.data();
        const Real tiny = nested_value(c, absolute, d, order) * 2 * (order + d) * kEpsilon<T>;
        check(fabsl(nested[q][l] - truth) <= tiny, "nested", d, order, nested[q][l] - truth);
        if (!has_graded) continue;
        Real sum = 0, magnitude = 0;
        c = doubles.data();
        for (int g = 0; g < order; ++g) sum += graded_value(c, at, d, 0, g, 1);
        c = magnitudes.data();
        for (int g = 0; g < order; ++g) magnitude += graded_value(c, absolute, d, 0, g, 1);
        // Sums of a degree's products, one after the other.
        const Real rounding = magnitude * sqrtl(Real(size)) * 4 * kEpsilon<T>;
        check(fabsl(graded[q][l] - sum) <= rounding, "graded", d, order, graded[q][l] - sum);
      }
  }
}

// -- boxes and limits
// ------------------------------------------------------------------------------

static Real exact_gap(Real low, Real high, Real box_low, Real box_high) {
  return fmaxl(fmaxl(box_low - high, low - box_high), 0);
}

// The largest relative distance of a lower bound from what it bounds.
template <class T>
static Real box_slack(int d) {
  return 2 * (d + 4) * Real(kEpsilon<T>);
}

template <class T>
static void test_boxes(int d) {
  constexpr int Q = 2, kGroup = Q * kLanes<T>;
  std::vector<T> low(size_t(d), T(0)), high(size_t(d), T(0)), out(kFanout, T(0));
  std::vector<T> boxes(size_t(2 * d * kFanout), T(0)), box(size_t(2 * d), T(0));
  std::vector<T> points(size_t(d * kGroup), T(0)), limits(kGroup, T(0));
  for (int trial = 0; trial < 300; ++trial) {
    const double offset = trial % 3 == 0 ? 1000 : 0;
    auto interval = [&](T& from, T& to) {
      from = T(offset + uniform());
      to = T(double(from) + 0.3 * fabs(uniform()));
    };
    for (int k = 0; k < d; ++k) {
      interval(low[size_t(k)], high[size_t(k)]);
      for (int c = 0; c < kFanout; ++c)
        interval(boxes[size_t(k * kFanout + c)], boxes[size_t((d + k) * kFanout + c)]);
      boxes[size_t(k * kFanout + 3)] = T(INFINITY);  // a missing child
      boxes[size_t((d + k) * kFanout + 3)] = -T(INFINITY);
    }
    child_distances<T>(low.data(), high.data(), boxes.data(), d, out.data());
    for (int c = 0; c < kFanout; ++c) {
      const Real seen = out[size_t(c)];
      if (c == 3) {
        check(seen == INFINITY, "missing children are at infinity", d, 0, seen);
        continue;
      }
      Real exact = 0;
      for (int k = 0; k < d; ++k) {
        const Real gap = exact_gap(low[size_t(k)], high[size_t(k)], boxes[size_t(k * kFanout + c)],
                                   boxes[size_t((d + k) * kFanout + c)]);
        exact += gap * gap;
      }
      check(seen <= exact, "distances to children are lower bounds", d, 0, seen / exact - 1);
      check(seen >= exact * (1 - box_slack<T>(d)), "and near them", d, 0, seen / exact - 1);
    }

    for (int k = 0; k < d; ++k) interval(box[size_t(k)], box[size_t(d + k)]);
    for (T& x : points) x = T(offset + 1.5 * uniform());
    for (int l = 0; l < kGroup; ++l) {
      Real exact = 0;
      for (int k = 0; k < d; ++k) {
        const Real x = points[size_t(k * kGroup + l)];
        const Real gap = exact_gap(x, x, box[size_t(k)], box[size_t(d + k)]);
        exact += gap * gap;
      }
      T above = T(exact);
      if (Real(above) <= exact) above = nextafter(above, T(INFINITY));
      for (T& limit : limits) limit = T(0);
      limits[size_t(l)] = above;
      check(is_needed<T, Q>(points.data(), box.data(), d, limits.data()),
            "a box nearer than the limit is needed", d, 0, exact);
      limits[size_t(l)] = T(exact * (1 - box_slack<T>(d)));
      check(!is_needed<T, Q>(points.data(), box.data(), d, limits.data()),
            "a box beyond the limit is not", d, 0, exact);
    }
  }
}

template <class T>
static void test_limit_of_sums() {
  const T shift = T(0);
  for (int trial = 0; trial < 3000; ++trial) {
    TreeTask<T> task{};
    task.tree.n = 1 + rand() % 1000000;
    task.tree.d = 2;
    task.tree.weight_shift = trial % 2 ? &shift : nullptr;
    task.noise_std = exp(3 * uniform());
    task.max_lost_mass = trial % 3 ? 0.5 : pow(10, -1 - 12 * fabs(uniform()));
    const TreeScale<T> scale(task);
    const double variance = task.noise_std * task.noise_std;
    const double offset = variance * (trial % 5 ? 100 * fabs(uniform()) : 1e8 * fabs(uniform()));
    const double sum = trial % 7 ? exp2(trial % 30 - 10) : exp2(10 * uniform());
    const Real n = trial % 2 ? 1 : Real(task.tree.n), q = task.max_lost_mass;
    const Real width = 2 * Real(variance) * logl(2);  // squared distance of a bit
    const Real exact = offset + width * log2l(n * (1 + q) / (q * sum));
    const Real seen = scale.limit(offset, sum);
    if (exact <= 0) continue;  // nothing is needed, either way
    check(seen >= exact, "no limit is too low", 2, 0, (seen - exact) / exact);
    check(seen <= (exact + 1.02L * width) * (1 + 5 * Real(kEpsilon<T>)), "nor a bit too high", 2, 0,
          (seen - exact) / width);
    check(scale.limit(offset, 0) == T(INFINITY), "no limit without a sum", 2, 0, 0);
  }
}

int main() {
  test_sharp_cells();
  for (int d : {1, 2, 3, 5}) {
    test_cells(d);
    test_rounded_centroids(d);
    test_forms<float>(d);
    test_forms<double>(d);
  }
  for (int d : {1, 2, 3, 5, 20}) {
    test_boxes<float>(d);
    test_boxes<double>(d);
  }
  test_limit_of_sums<float>();
  test_limit_of_sums<double>();
  if (failures) printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
