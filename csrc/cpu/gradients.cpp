// Gradients of the log-density: both passes, and in double what they leave: points so far from all
// centers that the saved log-density says little, and weights near zero.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../core/saturate.h"
#include "../spatial/center_tree.h"
#include "../spatial/kd_order.h"
#include "dispatch.h"
#include "parallel.h"
#include "scratch.h"

namespace noisyflow {
namespace {

// Exponents that a point's log-density may have, in bits: its rounding is then 2^-3 at most.
template <class T>
constexpr double kMostBits = sizeof(T) == 4 ? 1 << 20 : double(int64_t(1) << 49);
// Coordinates, alone and over noise_std: squares and products of them then stay in range.
template <class T>
constexpr double kMostCoordinate = sizeof(T) == 4 ? 1e17 : 1e150;
template <class T>
constexpr double kMostCoordinateOverNoise = sizeof(T) == 4 ? 1e12 : 1e140;
// Weights below: terms without them would be too large for the passes.
constexpr double kLeastWeight = 1.0 / (int64_t(1) << 60);

// A sum of numbers of either sign that may each be larger than any of double: a LogSum, whose
// value is a logarithm, has no sign.
class LargeSum {
 public:
  void add(double factor, double log_value) {
    if (factor == 0) return;
    if (log_value > unit_) {
      sum_ *= std::exp(unit_ - log_value);
      unit_ = log_value;
    }
    sum_ += factor * std::exp(log_value - unit_);
  }

  // The nearest number.
  double value() const { return sum_ == 0 ? 0 : saturate<double>(sum_ * std::exp(unit_)); }

 private:
  double sum_ = 0, unit_ = -std::numeric_limits<double>::infinity();  // sum_ e^unit_
};

// Rows of one of the two kinds, as they are given or relative to an origin and with norms: see
// GradientPass.
template <class T>
struct Side {
  const T* rows;
  int64_t stride, count;
  std::vector<T> moved, norms;
};

// Columns in a tree's leaves, each filled up to whole blocks.
template <class T>
struct Leaves {
  CenterTree<T> tree;
  std::vector<T> rows;
  std::vector<int64_t> begins;
  std::vector<T> leaf_limits, node_limits;

  Leaves(const Side<T>& side, int64_t d, double noise_std, int64_t together,
         const KernelTable& table, int num_threads)
      : tree({side.rows, side.stride, side.count, d, noise_std, nullptr}, {false, 0}, table,
             num_threads) {
    const TreeView<T> view = tree.view();
    begins.push_back(0);
    for (int64_t leaf = 0; leaf < view.num_leaves; ++leaf) {
      const int64_t count = view.begins[leaf + 1] - view.begins[leaf];
      begins.push_back(begins.back() + (count + together - 1) / together * together);
      const T* first = view.rows + view.begins[leaf] * d;
      rows.insert(rows.end(), first, first + count * d);
      for (int64_t j = count; j < begins.back() - begins[size_t(leaf)]; ++j)
        rows.insert(rows.end(), first + (count - 1) * d, first + count * d);
    }
  }

  // Numbers of the columns, where the columns are.
  std::vector<T> in_leaves(const std::vector<T>& values, T padding) const {
    const TreeView<T> view = tree.view();
    std::vector<T> out(size_t(begins.back()), padding);
    for (int64_t leaf = 0; leaf < view.num_leaves; ++leaf)
      for (int64_t j = view.begins[leaf]; j < view.begins[leaf + 1]; ++j)
        out[size_t(begins[size_t(leaf)] + j - view.begins[leaf])] = values[size_t(view.order[j])];
    return out;
  }

  // The largest limits of leaves and nodes.
  void set_limits(const std::vector<T>& limits) {
    const TreeView<T> view = tree.view();
    for (int64_t leaf = 0; leaf < view.num_leaves; ++leaf) {
      T most = T(-1);
      for (int64_t j = view.begins[leaf]; j < view.begins[leaf + 1]; ++j)
        most = std::max(most, limits[size_t(view.order[j])]);
      leaf_limits.push_back(most);
    }
    int64_t num_nodes = 1;
    for (int64_t node = 0; node < num_nodes; ++node)
      for (int c = 0; c < kFanout; ++c)
        num_nodes = std::max(num_nodes, int64_t(view.children[node * kFanout + c]) + 1);
    node_limits.assign(size_t(num_nodes * kFanout), T(-1));
    for (int64_t at = num_nodes * kFanout - 1; at >= 0; --at) {  // children after their parents
      const int32_t child = view.children[at];
      if (child == kNoChild) continue;
      const T* of_child = node_limits.data() + int64_t(child) * kFanout;
      node_limits[size_t(at)] =
          child < 0 ? leaf_limits[size_t(~child)] : *std::max_element(of_child, of_child + kFanout);
    }
  }
};

// A pass over a tree, and what it points to.
template <class T>
struct TreePass {
  KdOrder<T> order;
  std::vector<int64_t> blocks;
  Leaves<T> leaves;
  GradientTree<T> tree;
  GradientPass<T> pass;
};

// Of a task whose grad_output are finite numbers, none of them zero, and of at least one point.
template <class T>
class Gradients {
 public:
  Gradients(const GradientTask<T>& task, const KernelTable& table, int num_threads)
      : task_(task),
        mixture_(task.mixture),
        table_(table),
        m_(task.points.m),
        n_(task.mixture.n),
        d_(task.mixture.d),
        variance_(mixture_.noise_std * mixture_.noise_std),
        exponent_(1 / (2 * variance_)),
        kernel_([&table] {
          if constexpr (sizeof(T) == 4)
            return table.gradient_f32;
          else
            return table.gradient_f64;
        }()),
        num_threads_(worthwhile_threads(double(m_) * double(n_) * double(2 * d_ + 4), num_threads)),
        points_(given_points()),
        centers_(given_centers()),
        base_(size_t(m_)),
        mass_(size_t(m_)) {}

  int64_t run() {
    double largest = 0;
    for (int64_t i = 0; i < m_; ++i)
      largest = std::max(largest, std::abs(double(task_.grad_output[i])));
    unit_bits_ = std::ilogb(largest);
    start_from_log_density();
    if (task_.grad_noise_std) squares_.resize(size_t(m_));
    if (task_.grad_weights) {
      sums_.resize(size_t(n_));
      extra_.resize(size_t(n_));
    }
    const bool is_passed = !is_huge();
    if (is_passed) {
      expand();
      find_limits();
      pass_points();
    }
    for (int64_t i = 0; i < m_; ++i) {
      const bool has_cut_off = is_promising_;  // the pass was over a tree
      const bool is_short = has_cut_off && mass_[size_t(i)] < least_mass_[size_t(i)];
      if (is_far_[size_t(i)] || is_short || !is_passed) mass_[size_t(i)] = 0;
      if (mass_[size_t(i)] == 0) far_.push_back(i);
    }
    evaluate_far_points();
    if (task_.grad_centers || task_.grad_weights) {
      if (is_passed)
        pass_centers();
      else if (task_.grad_centers)
        std::fill_n(task_.grad_centers, n_ * d_, T(0));
      add_far_to_centers();
    }
    if (task_.grad_weights) write_weights();
    if (task_.grad_noise_std) write_noise_std();
    return pairs_;
  }

 private:
  Side<T> given_points() const { return {task_.points.points, task_.points.stride, m_, {}, {}}; }
  Side<T> given_centers() const { return {mixture_.centers, mixture_.stride, n_, {}, {}}; }
  const T* point(int64_t i) const { return task_.points.points + i * task_.points.stride; }
  const T* center(int64_t j) const { return mixture_.centers + j * mixture_.stride; }
  double weight(int64_t j) const {
    return task_.weights ? double(task_.weights[j]) : 1 / double(n_);
  }
  // The gradient that comes in, over 2^unit_bits: less than 2.
  double unit_gain(int64_t i) const {
    return std::ldexp(double(task_.grad_output[i]), -unit_bits_);
  }

  void start_from_log_density() {
    const double constant = 0.5 * double(d_) * std::log(2 * M_PI * variance_) +
                            (task_.weights ? 0 : std::log(double(n_)));
    is_far_.resize(size_t(m_));
    for (int64_t i = 0; i < m_; ++i) {
      const double nats = -(double(task_.log_density[i]) + constant);
      const bool is_near = std::abs(nats) * M_LOG2E <= kMostBits<T>;  // NaN is not
      is_far_[size_t(i)] = !is_near;
      base_[size_t(i)] = is_near ? T(nats / exponent_) : T(0);
    }
  }

  // Or NaN: a tree cannot order those.
  bool is_huge() const {
    const double most =
        std::min(kMostCoordinate<T>, kMostCoordinateOverNoise<T> * mixture_.noise_std);
    auto is_beyond = [&](const T* row) {
      return !std::all_of(row, row + d_, [&](T x) { return std::abs(double(x)) <= most; });
    };
    for (int64_t i = 0; i < m_; ++i)
      if (is_beyond(point(i))) return true;
    for (int64_t j = 0; j < n_; ++j)
      if (is_beyond(center(j))) return true;
    return false;
  }

  // -- |x|^2 + |y|^2 - 2 x.y where it is exact enough -----------------------------------------

  // The middle of the centers, or 0 where that is as good: then coordinates are not rounded.
  std::vector<T> find_origin() const {
    std::vector<double> mean(static_cast<size_t>(d_)), square(static_cast<size_t>(d_));
    for (int64_t j = 0; j < n_; ++j)
      for (int64_t k = 0; k < d_; ++k) {
        const double y = double(center(j)[k]) / double(n_);
        mean[size_t(k)] += y;
        square[size_t(k)] += y * double(center(j)[k]);
      }
    std::vector<T> origin(static_cast<size_t>(d_));
    for (size_t k = 0; k < origin.size(); ++k)
      if (4 * mean[k] * mean[k] > square[k]) origin[k] = T(mean[k]);
    return origin;
  }

  // Squares of `least` dimensions in a row, in double. Moves the rows to the origin.
  std::vector<double> move(Side<T>& side, const std::vector<T>& origin, int64_t least) const {
    const int64_t parts = (d_ + least - 1) / least;
    std::vector<double> squares(static_cast<size_t>(side.count * parts));
    side.moved.resize(size_t(side.count * d_));
    constexpr int64_t kTogether = 256;
    parallel_for((side.count + kTogether - 1) / kTogether, num_threads_, [&](int, int64_t index) {
      const int64_t last = std::min(side.count, (index + 1) * kTogether);
      for (int64_t i = index * kTogether; i < last; ++i)
        for (int64_t k = 0; k < d_; ++k) {
          const T value = side.rows[i * side.stride + k] - origin[size_t(k)];
          side.moved[size_t(i * d_ + k)] = value;
          squares[size_t(i * parts + k / least)] += double(value) * double(value);
        }
    });
    return squares;
  }

  // Norms of steps, from those of `least` dimensions; returns the largest spread
  // (log_density-inl.h) of a row.
  double set_norms(Side<T>& side, const std::vector<double>& squares, int64_t least,
                   int64_t step) const {
    const int64_t parts = (d_ + least - 1) / least, steps = (d_ + step - 1) / step;
    side.norms = padded(side.count, T(0), T(0), steps);
    double largest = 0;
    for (int64_t i = 0; i < side.count; ++i) {
      double spread = 0;
      for (int64_t c = 0; c < steps; ++c) {
        double norm = 0;
        for (int64_t at = c * step / least; at < std::min((c + 1) * step / least, parts); ++at)
          norm += squares[size_t(i * parts + at)];
        side.norms[size_t(i * steps + c)] = T(norm);
        spread += norm * norm;
      }
      largest = std::max(largest, spread);
    }
    return std::sqrt(largest);
  }

  // As the log-density does, but for all pairs or none: the bound of an exponent's error is the
  // same, and the differences' of a sum of w y less x times one of w far below it.
  void expand() {
    constexpr int64_t kLeastDims = 17, kLeastStep = 8;
    if (d_ < kLeastDims || mixture_.noise_std < kLeastExpandedNoise) return;
    const std::vector<T> origin = find_origin();
    const std::vector<double> of_points = move(points_, origin, kLeastStep);
    const std::vector<double> of_centers = move(centers_, origin, kLeastStep);
    for (const int64_t step : {32, 16, 8}) {
      const double spread = set_norms(points_, of_points, kLeastStep, step) +
                            set_norms(centers_, of_centers, kLeastStep, step);
      const double error =
          double(kEpsilon<T>) / 2 * std::sqrt(double(step) + 6) * spread / (2 * variance_);
      if (!(error <= kernel_.most_error)) continue;
      step_ = step;
      for (Side<T>* side : {&points_, &centers_}) {
        side->rows = side->moved.data();
        side->stride = d_;
      }
      return;
    }
    for (Side<T>* side : {&points_, &centers_}) {
      std::vector<T>().swap(side->moved);
      std::vector<T>().swap(side->norms);
    }
  }

  // `count` times `width` numbers, and as many as make whole blocks.
  std::vector<T> padded(int64_t count, T value, T padding, int64_t width = 1) const {
    std::vector<T> out(size_t(count * width), value);
    const int64_t together = kernel_.together;
    out.resize(size_t((count + together - 1) / together * together * width), padding);
    return out;
  }

  void run_pass(const GradientPass<T>& pass) {
    const int64_t most = kernel_.most_blocks(d_);
    const int64_t step =
        std::clamp<int64_t>(pass.num_blocks / (4 * int64_t(num_threads_)), 1, most);
    const int64_t num_tasks = (pass.num_blocks + step - 1) / step;
    const int num_threads = int(std::min<int64_t>(num_threads_, num_tasks));
    std::vector<Scratch> scratch;
    for (int thread = 0; thread < num_threads; ++thread)
      scratch.push_back(allocate(kernel_.scratch_bytes(pass)));
    std::vector<int64_t> pairs(size_t(num_threads), 0);
    parallel_for(num_tasks, num_threads, [&](int thread, int64_t index) {
      const int64_t last = std::min(pass.num_blocks, (index + 1) * step);
      pairs[size_t(thread)] +=
          kernel_.evaluate(pass, index * step, last, scratch[size_t(thread)].get());
    });
    for (int64_t of_thread : pairs) pairs_ += of_thread;
  }

  // -- leaving out far pairs ---------------------------------------------------------------------

  // The squared distances beyond which a point needs no center, docs/numerics.md: u variances with
  // exp(-u / 2) max(1, u) <= max_lost_mass / 2 times the point's density over that of a center at
  // it. Newton's method from above stays above. least_mass_: where less than that is found, the
  // point's density is too small for its limit.
  void find_limits() {
    constexpr double kMoreDoubt = 0.1;
    if (task_.max_lost_mass == 0) return;
    limits_.resize(size_t(m_));
    least_mass_.resize(size_t(m_));
    const double log_n = task_.weights ? 0 : std::log(double(n_));
    for (size_t i = 0; i < size_t(m_); ++i) {
      const double nats = double(base_[i]) * exponent_;
      const double log_mass = -nats - log_n;
      // The saved log-density's own rounding, what its sum may lack, and some more, so that the
      // rounding of the mass does not count.
      const double doubt =
          kMoreDoubt +
          4 * double(kEpsilon<T>) *
              (std::abs(double(task_.log_density[i])) + std::abs(nats) + double(d_)) -
          std::log1p(-task_.max_lost_mass);
      least_mass_[i] = std::exp(-doubt);
      const double least = 2 * (doubt - log_mass - std::log(task_.max_lost_mass / 2));
      const double b = std::max(least, 2 - 2 * M_LN2);
      double u = b + 2 * std::log(b + 2) + 2;
      for (int step = 0; step < 2; ++step)
        u = std::max(2.01, u - (u - 2 * std::log(u) - b) / (1 - 2 / u));
      limits_[i] = T(!is_far_[i] ? u * variance_ * (1 + 4 * double(kEpsilon<T>)) : -1.0);
    }
  }

  // Whether few enough of a sample of pairs are within the limits for a tree to be worth building.
  bool is_promising() const {
    constexpr int64_t kSampledPoints = 64, kSampledCenters = 256, kLeastPairs = 1 << 20;
    if (limits_.empty() || double(m_) * double(n_) < double(kLeastPairs)) return false;
    const int64_t num_x = std::min(m_, kSampledPoints), num_y = std::min(n_, kSampledCenters);
    int64_t needed = 0;
    for (int64_t a = 0; a < num_x; ++a)
      for (int64_t b = 0; b < num_y; ++b)
        needed += square(a * m_ / num_x, b * n_ / num_y) < double(limits_[size_t(a * m_ / num_x)]);
    return double(needed) < most_share() * double(num_x * num_y);
  }

  // Of pairs that a tree may leave, with its boxes and without the expanded form.
  double most_share() const { return step_ ? 0.35 : 0.7; }

  // The pass over a tree of its columns; null where that is no less work.
  std::unique_ptr<TreePass<T>> plant(const GradientPass<T>& like, const Side<T>& rows,
                                     const Side<T>& columns, bool rows_have_limits) const {
    constexpr int64_t kSampledBlocks = 24;
    if (!is_promising_) return nullptr;
    const double noise_std = mixture_.noise_std;
    auto planted = std::unique_ptr<TreePass<T>>(new TreePass<T>{
        KdOrder<T>(rows.rows, rows.stride, rows.count, d_, kernel_.group, num_threads_),
        {},
        Leaves<T>(columns, d_, noise_std, kernel_.together, table_, num_threads_),
        {},
        like});
    Leaves<T>& leaves = planted->leaves;
    if (!rows_have_limits) leaves.set_limits(limits_);
    planted->blocks = planted->order.leaf_begins();
    planted->tree = {leaves.tree.view(), leaves.begins.data(),
                     rows_have_limits ? limits_.data() : nullptr,
                     rows_have_limits ? nullptr : leaves.leaf_limits.data(),
                     rows_have_limits ? nullptr : leaves.node_limits.data()};
    GradientPass<T>& pass = planted->pass;
    pass.rows = {planted->order.rows.data(), d_, rows.count};
    pass.order = planted->order.order.data();
    pass.blocks = planted->blocks.data();
    pass.num_blocks = int64_t(planted->blocks.size()) - 1;
    pass.columns = leaves.rows.data();
    pass.stride = d_;
    pass.num_columns = leaves.begins.back();
    pass.step = 0;
    pass.tree = &planted->tree;

    const Scratch scratch = allocate(kernel_.scratch_bytes(pass));
    const int64_t sampled = std::min(kSampledBlocks, pass.num_blocks);
    int64_t needed = 0;
    for (int64_t b = 0; b < sampled; ++b)
      needed += kernel_.count_columns(pass, b * pass.num_blocks / sampled, scratch.get());
    const double share = double(needed) * double(pass.num_blocks * kernel_.group) /
                         (double(sampled) * double(rows.count) * double(columns.count));
    return share < most_share() ? std::move(planted) : nullptr;
  }

  GradientPass<T> new_pass(const Side<T>& rows, const Side<T>& columns, const T* base) const {
    GradientPass<T> pass{};
    pass.rows = {rows.rows, rows.stride, rows.count};
    pass.row_norms = rows.norms.data();
    pass.columns = columns.rows;
    pass.stride = columns.stride;
    pass.num_columns = columns.count;
    pass.column_norms = columns.norms.data();
    pass.step = step_;
    pass.num_blocks = (rows.count + kernel_.group - 1) / kernel_.group;
    pass.d = d_;
    pass.noise_std = mixture_.noise_std;
    pass.base = base;
    return pass;
  }

  void pass_points() {
    is_promising_ = is_promising();
    std::vector<T> shift = padded(n_, T(0), kNever<T>);
    if (mixture_.weight_shift) std::copy_n(mixture_.weight_shift, n_, shift.begin());
    GradientPass<T> pass = new_pass(points_, centers_, base_.data());
    pass.gains = task_.grad_output;
    pass.shift = shift.data();
    pass.mass = mass_.data();
    pass.gradient = task_.grad_points;
    pass.squares = task_.grad_noise_std ? squares_.data() : nullptr;
    const auto planted = plant(pass, given_points(), given_centers(), true);
    if (!planted) {
      is_promising_ = false;
      return run_pass(pass);
    }
    shift = planted->leaves.in_leaves(shift, kNever<T>);
    planted->pass.shift = shift.data();
    run_pass(planted->pass);
  }

  void pass_centers() {
    // A far point's terms are not to be infinite: zero times that is no zero.
    std::vector<T> shift = padded(m_, T(0), kNever<T>), multiplier = padded(m_, T(0), T(0));
    for (size_t i = 0; i < size_t(m_); ++i) {
      if (mass_[i] == 0) continue;
      shift[i] = -base_[i];
      multiplier[i] = T(unit_gain(int64_t(i)) / mass_[i]);
    }
    std::vector<T> base(size_t(n_), T(0));
    if (mixture_.weight_shift)
      for (size_t j = 0; j < size_t(n_); ++j) base[j] = -mixture_.weight_shift[j];
    std::vector<double> mass(static_cast<size_t>(n_));
    GradientPass<T> pass = new_pass(centers_, points_, base.data());
    pass.gain = std::ldexp(1, unit_bits_);
    pass.shift = shift.data();
    pass.multiplier = multiplier.data();
    pass.mass = mass.data();
    pass.gradient = task_.grad_centers;
    const auto planted = plant(pass, given_centers(), given_points(), false);
    if (planted) {
      shift = planted->leaves.in_leaves(shift, kNever<T>);
      multiplier = planted->leaves.in_leaves(multiplier, T(0));
      pass = planted->pass;
      pass.shift = shift.data();
      pass.multiplier = multiplier.data();
    }
    run_pass(pass);
    // On some targets no term is zero.
    for (int64_t j = 0; task_.grad_centers && task_.weights && j < n_; ++j)
      if (task_.weights[j] == 0) std::fill_n(task_.grad_centers + j * d_, d_, T(0));
    if (!task_.grad_weights) return;
    std::vector<int32_t> light;
    for (int64_t row = 0; row < n_; ++row) {
      const int64_t j = pass.order ? pass.order[row] : row;  // neighbours side by side
      if (weight(j) >= kLeastWeight)
        sums_[size_t(j)] = mass[size_t(j)] / weight(j);
      else
        light.push_back(int32_t(j));
    }
    if (!light.empty()) pass_light_centers(pass, light);
  }

  // Terms without weights, of centers whose weight is zero or nearly so.
  void pass_light_centers(const GradientPass<T>& like, const std::vector<int32_t>& light) {
    const auto count = int64_t(light.size());
    std::vector<T> rows, norms;
    const int64_t steps = like.step ? (d_ + like.step - 1) / like.step : 0;
    for (int32_t j : light) {
      const T* row = like.step ? centers_.rows + j * centers_.stride : center(j);
      rows.insert(rows.end(), row, row + d_);
      const T* norm = centers_.norms.data() + j * steps;
      norms.insert(norms.end(), norm, norm + steps);
    }
    const std::vector<T> base(size_t(n_), T(0));
    GradientPass<T> pass = like;
    pass.rows = {rows.data(), d_, count};
    pass.row_norms = norms.data();
    pass.order = light.data();
    pass.blocks = nullptr;
    pass.num_blocks = (count + kernel_.group - 1) / kernel_.group;
    pass.base = base.data();
    pass.is_light = true;
    pass.mass = sums_.data();
    pass.gradient = nullptr;
    run_pass(pass);
    parallel_for(count, num_threads_, [&](int, int64_t at) {
      const int64_t j = light[size_t(at)];
      if (!std::isnan(sums_[size_t(j)])) return;
      sums_[size_t(j)] = 0;
      for (int64_t i = 0; i < m_; ++i)
        if (mass_[size_t(i)] != 0)
          extra_[size_t(j)].add(
              unit_gain(i),
              exponent_ * (double(base_[size_t(i)]) - square(i, j)) - std::log(mass_[size_t(i)]));
    });
  }

  // -- in double, pair by pair -------------------------------------------------------------------

  double difference(int64_t i, int64_t j, int64_t k) const {
    constexpr double kMost = 1e150;  // its square is a number
    return std::clamp(double(center(j)[k]) - double(point(i)[k]), -kMost, kMost);
  }

  double square(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < d_; ++k) sum += difference(i, j, k) * difference(i, j, k);
    return sum;
  }

  double shift(int64_t j) const {
    return task_.weights ? -2 * variance_ * std::log(double(task_.weights[j])) : 0;
  }

  // A point that is far from all centers, or whose log-density is none.
  struct Far {
    double nearest = std::numeric_limits<double>::infinity();  // squared distance with the shift
    double mass = 0;  // sum of terms over that of the nearest
  };

  double term(const Far& far, int64_t i, int64_t j) const {
    return std::exp(exponent_ * (far.nearest - square(i, j) - shift(j))) / far.mass;
  }

  void evaluate_far_points() {
    found_.resize(far_.size());
    parallel_for(int64_t(far_.size()), num_threads_, [&](int, int64_t at) {
      const int64_t i = far_[size_t(at)];
      Far& far = found_[size_t(at)];
      for (int64_t j = 0; j < n_; ++j)
        if (weight(j) > 0) far.nearest = std::min(far.nearest, square(i, j) + shift(j));
      for (int64_t j = 0; j < n_; ++j)
        if (weight(j) > 0)
          far.mass += std::exp(exponent_ * (far.nearest - square(i, j) - shift(j)));
      std::vector<double> sums(static_cast<size_t>(d_));
      double squares = 0;
      for (int64_t j = 0; j < n_; ++j) {
        const double p = weight(j) > 0 ? term(far, i, j) : 0;
        if (p == 0) continue;
        squares += p * square(i, j);
        for (int64_t k = 0; k < d_; ++k) sums[size_t(k)] += p * difference(i, j, k);
      }
      if (task_.grad_noise_std) squares_[size_t(i)] = squares;
      for (int64_t k = 0; task_.grad_points && k < d_; ++k)
        task_.grad_points[i * d_ + k] = T(saturate<T>(
            double(task_.grad_output[i]) * saturate<double>(sums[size_t(k)] / variance_)));
    });
  }

  void add_far_to_centers() {
    if (far_.empty()) return;
    const double unit_weight = task_.weights ? 1 : 1 / double(n_);  // uniform ones are in no term
    parallel_for(n_, num_threads_, [&](int, int64_t j) {
      std::vector<double> sums(static_cast<size_t>(d_));
      for (size_t at = 0; at < far_.size(); ++at) {
        const int64_t i = far_[at];
        const Far& far = found_[at];
        const double gain = unit_gain(i);
        if (task_.grad_weights)
          extra_[size_t(j)].add(
              gain, exponent_ * (far.nearest - square(i, j)) - std::log(far.mass * unit_weight));
        if (!(weight(j) > 0)) continue;
        const double p = gain * term(far, i, j);
        for (int64_t k = 0; p != 0 && k < d_; ++k) sums[size_t(k)] -= p * difference(i, j, k);
      }
      for (int64_t k = 0; task_.grad_centers && k < d_; ++k) {
        T& out = task_.grad_centers[j * d_ + k];
        const double value = std::ldexp(saturate<double>(sums[size_t(k)] / variance_), unit_bits_);
        out = T(saturate<T>(double(out) + saturate<double>(value)));
      }
    });
  }

  void write_weights() {
    for (size_t j = 0; j < size_t(n_); ++j) {
      const double sum = saturate<double>(sums_[j] + extra_[j].value());
      task_.grad_weights[j] = T(saturate<T>(std::ldexp(sum, unit_bits_)));
    }
  }

  void write_noise_std() {
    double sum = 0;
    for (int64_t i = 0; i < m_; ++i)
      sum +=
          unit_gain(i) * std::min(squares_[size_t(i)] / variance_ - double(d_), 1e300 / double(m_));
    *task_.grad_noise_std =
        saturate<double>(std::ldexp(saturate<double>(sum / mixture_.noise_std), unit_bits_));
  }

  const GradientTask<T>& task_;
  const MixtureView<T>& mixture_;
  const KernelTable& table_;
  int64_t m_, n_, d_;
  double variance_, exponent_;
  GradientKernel<T> kernel_;
  int num_threads_;
  Side<T> points_, centers_;
  int64_t step_ = 0;  // 0: both as given
  int unit_bits_ = 0;
  bool is_promising_ = false;
  int64_t pairs_ = 0;
  std::vector<T> limits_;           // of each point: see find_limits(); empty: none
  std::vector<double> least_mass_;  // likewise
  std::vector<T> base_;  // of each point: the squared distance that its exponents start from
  std::vector<char> is_far_;
  std::vector<double> mass_;     // of each point's terms; 0: among the far ones
  std::vector<double> squares_;  // of each point: mean squared distance
  std::vector<double> sums_;     // of each center: gradient of its weight over 2^unit_bits
  std::vector<LargeSum> extra_;  // what is added to that
  std::vector<int64_t> far_;
  std::vector<Far> found_;
};

template <class T>
void fill(const GradientTask<T>& task, T value) {
  const int64_t n = task.mixture.n, d = task.mixture.d;
  if (task.grad_points) std::fill_n(task.grad_points, task.points.m * d, value);
  if (task.grad_centers) std::fill_n(task.grad_centers, n * d, value);
  if (task.grad_weights) std::fill_n(task.grad_weights, n, value);
  if (task.grad_noise_std) *task.grad_noise_std = double(value);
}

// The same with the points `kept` alone; the gradients of the others are zero.
template <class T>
int64_t run_part(const GradientTask<T>& task, const std::vector<int64_t>& kept,
                 const KernelTable& table, int num_threads) {
  const int64_t d = task.mixture.d, count = int64_t(kept.size());
  std::vector<T> points, log_density, grad_output;
  std::vector<T> grad_points(task.grad_points ? size_t(count * d) : 0);
  points.reserve(size_t(count * d));
  for (const int64_t i : kept) {
    const T* point = task.points.points + i * task.points.stride;
    points.insert(points.end(), point, point + d);
    log_density.push_back(task.log_density[i]);
    grad_output.push_back(task.grad_output[i]);
  }
  GradientTask<T> part = task;
  part.points = {points.data(), d, count};
  part.log_density = log_density.data();
  part.grad_output = grad_output.data();
  if (task.grad_points) part.grad_points = grad_points.data();
  const int64_t pairs = Gradients<T>(part, table, num_threads).run();
  if (!task.grad_points) return pairs;
  std::fill_n(task.grad_points, task.points.m * d, T(0));
  for (int64_t at = 0; at < count; ++at)
    std::copy_n(part.grad_points + at * d, d, task.grad_points + kept[size_t(at)] * d);
  return pairs;
}

}  // namespace

template <class T>
int64_t run_gradient_task(const GradientTask<T>& task, const KernelTable& table, int num_threads) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < task.points.m; ++i) {
    const T gain = task.grad_output[i];
    if (!std::isfinite(gain)) {  // a loss that has diverged is to be seen
      fill(task, std::numeric_limits<T>::quiet_NaN());
      return 0;
    }
    if (gain != 0) kept.push_back(i);
  }
  if (kept.empty()) {
    fill(task, T(0));
    return 0;
  }
  if (int64_t(kept.size()) < task.points.m) return run_part(task, kept, table, num_threads);
  return Gradients<T>(task, table, num_threads).run();
}

template int64_t run_gradient_task<float>(const GradientTask<float>&, const KernelTable&, int);
template int64_t run_gradient_task<double>(const GradientTask<double>&, const KernelTable&, int);

}  // namespace noisyflow
