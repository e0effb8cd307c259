// _core: arrays in, arrays out. Checks what would crash, releases the GIL, calls the kernels.
// Messages for people are written in Python (_arrays.py), which sees names and libraries.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../cpu/dispatch.h"
#include "../spatial/center_tree.h"
#include "../spatial/kd_order.h"
#include "released_gil.h"

namespace py = pybind11;

namespace noisyflow {
namespace {

// Of any strides; NumPy copies one whose numbers straddle their places in memory.
constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
template <class T>
using Array = py::array_t<T, kAligned>;
template <class T>
using Contiguous = py::array_t<T, kAligned | py::array::c_style>;
using Indices = Contiguous<int64_t>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void require_threads(int num_threads) { require(num_threads >= 1, "num_threads must be positive"); }

// Rows of a 2-d array whose rows are contiguous; any row stride.
template <class T>
PointsView<T> rows(const Array<T>& array) {
  require(array.ndim() == 2, "expected a 2-d array");
  require(array.size() == 0 || array.shape(1) == 1 || array.strides(1) == int64_t(sizeof(T)),
          "rows must be contiguous");
  require(array.shape(0) <= 1 || array.strides(0) % int64_t(sizeof(T)) == 0,
          "rows must be aligned");
  return {array.data(), array.strides(0) / int64_t(sizeof(T)), array.shape(0)};
}

// NaN in a sort or a median reads past their ends.
template <class T>
int64_t first_nonfinite(const Array<T>& array);
template <class T>
void require_finite(const Array<T>& array) {
  require(first_nonfinite(array) < 0, "rows must be finite");
}

// What _arrays.py lets through: beyond, squares over squares of the noise are no numbers.
template <class T>
void require_noise(double noise_std, const char* message = "noise_std must be positive, in range") {
  constexpr double kLeast = sizeof(T) == 4 ? 1e-15 : 1e-140;
  constexpr double kMost = sizeof(T) == 4 ? 1e15 : 1e140;
  require(noise_std >= kLeast && noise_std <= kMost, message);
}

// -2 noise_std^2 log w_j, see MixtureView.
template <class T>
std::vector<T> weight_shifts(const Array<T>& weights, double noise_std) {
  std::vector<T> shifts(size_t(weights.shape(0)));
  const auto w = weights.template unchecked<1>();
  for (py::ssize_t j = 0; j < w.shape(0); ++j)
    shifts[size_t(j)] =
        w(j) > 0 ? T(-2 * noise_std * noise_std * std::log(double(w(j)))) : kNever<T>;
  return shifts;
}

// Of each of n centers.
std::vector<Membership> memberships(const Indices& inner, const Indices& outer, int64_t n) {
  for (const Indices& offsets : {inner, outer}) {
    require(offsets.ndim() == 1 && offsets.shape(0) >= 2, "offsets need at least two entries");
    const int64_t* at = offsets.data();
    require(at[0] == 0 && at[offsets.shape(0) - 1] == n, "offsets must run from 0 to n");
    for (py::ssize_t b = 1; b < offsets.shape(0); ++b)
      require(at[b - 1] < at[b], "offsets must increase");
  }
  std::vector<Membership> out(static_cast<size_t>(n));
  const int64_t* outer_block = outer.data();
  for (const int64_t* block = inner.data(); block[0] < n; ++block) {
    if (outer_block[1] <= block[0]) ++outer_block;
    require(outer_block[0] <= block[0] && block[1] <= outer_block[1],
            "outer blocks must be unions of blocks");
    const Membership member{int32_t(block[0]), int32_t(block[1]), int32_t(outer_block[0]),
                            int32_t(outer_block[1])};
    std::fill(out.begin() + block[0], out.begin() + block[1], member);
  }
  return out;
}

template <class T>
struct Problem {
  Task<T> task;
  std::vector<T> shifts;

  Problem(const Array<T>& points, const Array<T>& centers, double noise_std,
          const std::optional<Array<T>>& weights)
      : task{} {
    const PointsView<T> y = rows(centers);
    require(points.ndim() == 2 && points.shape(1) == centers.shape(1), "dimensions differ");
    require(y.m >= 1 && y.m < INT32_MAX && centers.shape(1) >= 1, "too few or too many centers");
    require_noise<T>(noise_std);
    if (weights) {
      require(weights->ndim() == 1 && weights->shape(0) == y.m, "one weight per center");
      shifts = weight_shifts(*weights, noise_std);
    }
    task.points = rows(points);
    task.mixture = {y.points,         y.stride,  y.m,
                    centers.shape(1), noise_std, weights ? shifts.data() : nullptr};
  }
};

template <class T>
py::array_t<T> log_density(const Array<T>& points, const Array<T>& centers, double noise_std,
                           const std::optional<Array<T>>& weights, int num_threads) {
  require_threads(num_threads);
  Problem<T> problem(points, centers, noise_std, weights);
  py::array_t<T> result(problem.task.points.m);
  problem.task.out[kInner] = result.mutable_data();
  const KernelTable& table = active_target();  // reads the environment: needs the GIL
  {
    const ReleasedGil released;
    run_task(problem.task, table, num_threads);
  }
  return result;
}

// i * m / num, for any m.
int64_t sampled_row(int64_t i, int64_t m, int64_t num) { return m / num * i + m % num * i / num; }

// Squared distances between every so many-th of the points and of the centers, (num_x, num_y).
template <class T>
py::array_t<T> sampled_squares(const Array<T>& points, const Array<T>& centers, int64_t num_x,
                               int64_t num_y) {
  const PointsView<T> x = rows(points), y = rows(centers);
  require(points.shape(1) == centers.shape(1), "dimensions differ");
  require(num_x >= 0 && num_y >= 0, "samples of at least nothing");
  num_x = std::min(num_x, x.m);
  num_y = std::min(num_y, y.m);
  require(num_x < INT32_MAX && num_y < INT32_MAX, "too many samples");
  py::array_t<T> result({num_x, num_y});
  T* out = result.mutable_data();
  for (int64_t i = 0; i < num_x; ++i)
    for (int64_t j = 0; j < num_y; ++j) {
      const T* a = x.points + sampled_row(i, x.m, num_x) * x.stride;
      const T* b = y.points + sampled_row(j, y.m, num_y) * y.stride;
      T square = 0;
      for (int64_t k = 0; k < centers.shape(1); ++k) square += (a[k] - b[k]) * (a[k] - b[k]);
      *out++ = square;
    }
  return result;
}

// Centers in a tree, for one noise_std: built once, for many points.
template <class T>
class Prepared {
 public:
  Prepared(const Array<T>& centers, double noise_std, const std::optional<Array<T>>& weights,
           double max_lost_mass, bool has_cells, int num_threads)
      : d_(centers.ndim() == 2 ? centers.shape(1) : 0),
        noise_std_(noise_std),
        max_lost_mass_(max_lost_mass),
        table_(active_target()) {
    const Problem<T> problem(centers, centers, noise_std, weights);
    require(max_lost_mass > 0 && max_lost_mass < 1, "max_lost_mass must be in (0, 1)");
    require_threads(num_threads);
    require_finite(centers);
    const ReleasedGil released;
    const TreeOptions options{has_cells && d_ <= kMaxCellDims, max_lost_mass};
    tree_ = std::make_unique<CenterTree<T>>(problem.task.mixture, options, table_, num_threads);
  }

  // Log-densities (None where the path is kEveryPair), without the own center of each point if
  // those are given, the path taken, the sample of points that chose it with its counts and
  // seconds, and all counts: pairs, aggregated, terms, boxes.
  py::tuple log_density(const Array<T>& points, int path, int num_threads,
                        const std::optional<Indices>& own) const {
    require(points.ndim() == 2 && points.shape(1) == d_, "dimensions differ");
    require(points.shape(0) < INT32_MAX, "too many points");
    require(path >= int(TreePath::kChoose) && path <= int(TreePath::kPointByPoint), "no such path");
    require_threads(num_threads);
    const TreeView<T> tree = tree_->view();
    const int64_t* owns = own ? own->data() : nullptr;
    require(!own || (own->ndim() == 1 && own->shape(0) == points.shape(0)), "one own per point");
    for (int64_t i = 0; own && i < points.shape(0); ++i)
      require(owns[i] >= 0 && owns[i] < tree.n, "own must index centers");
    const PointsView<T> x = rows(points);
    require_finite(points);
    py::array_t<T> result(x.m);
    TreeCounts counts;
    TreePlan plan{TreePath(path), 0, {}, 0};
    if (x.m > 0) {
      T* out = result.mutable_data();
      const ReleasedGil released;
      TreeTask<T> task{tree, {}, nullptr, noise_std_, max_lost_mass_, out};
      if (plan.path == TreePath::kChoose && is_tree_hopeless(task, table_, x))
        plan.path = TreePath::kEveryPair;
      if (plan.path != TreePath::kEveryPair) {
        const int group = choose_kernel<T>(table_, d_).group;
        const KdOrder<T> order(x.points, x.stride, x.m, d_, group, num_threads);
        const std::vector<int64_t> begins = order.leaf_begins();
        task.points = {order.rows.data(), order.order.data(), begins.data(),
                       int64_t(begins.size()) - 1};
        std::vector<int32_t> own_rows;
        if (own) {
          std::vector<int32_t> row_of(size_t(tree.n));
          for (int64_t j = 0; j < tree.n; ++j) row_of[size_t(tree.order[j])] = int32_t(j);
          for (int32_t i : order.order) own_rows.push_back(row_of[size_t(owns[i])]);
          task.own = own_rows.data();
        }
        if (plan.path == TreePath::kChoose) plan = choose_path(task, table_);
        if (plan.path != TreePath::kEveryPair)
          counts =
              run_tree_task(task, table_, plan.path == TreePath::kPointByPoint, 1, num_threads);
      }
    }
    auto tuple = [](const TreeCounts& c) {
      return py::make_tuple(c.pairs, c.aggregated, c.terms, c.boxes);
    };
    py::object densities = py::none();
    if (plan.path != TreePath::kEveryPair) densities = std::move(result);
    return py::make_tuple(densities, int(plan.path), plan.num_sampled, tuple(plan.sample),
                          plan.seconds, tuple(counts));
  }

  int64_t num_leaves() const { return tree_->view().num_leaves; }
  int64_t num_cells() const { return tree_->num_cells(); }
  int64_t num_bytes() const { return tree_->num_bytes(); }

 private:
  int64_t d_;
  double noise_std_, max_lost_mass_;
  const KernelTable& table_;
  std::unique_ptr<CenterTree<T>> tree_;
};

// Of an object whose __init__ has not run, pybind11 would make one out of memory as it is.
template <class T>
const Prepared<T>& made(const py::object& self) {
  if (!py::isinstance<Prepared<T>>(self)) throw py::type_error("self is no prepared mixture");
  auto* const instance = reinterpret_cast<py::detail::instance*>(self.ptr());
  if (!instance->get_value_and_holder().holder_constructed())
    throw py::type_error("this mixture has not been prepared: __init__ has not run");
  return self.cast<const Prepared<T>&>();
}

template <class T>
void define_prepared(py::module_& m, const char* name) {
  py::class_<Prepared<T>>(m, name)
      .def(py::init<const Array<T>&, double, const std::optional<Array<T>>&, double, bool, int>(),
           py::arg("centers").noconvert(), py::arg("noise_std"),
           py::arg("weights").noconvert().none(true), py::arg("max_lost_mass"),
           py::arg("has_cells"), py::arg("num_threads"))
      .def(
          "log_density",
          [](const py::object& self, const Array<T>& points, int path, int num_threads,
             const std::optional<Indices>& own) {
            return made<T>(self).log_density(points, path, num_threads, own);
          },
          py::arg("points").noconvert(), py::arg("path"), py::arg("num_threads"),
          py::arg("own") = py::none())
      .def_property_readonly("num_leaves",
                             [](const py::object& self) { return made<T>(self).num_leaves(); })
      .def_property_readonly("num_cells",
                             [](const py::object& self) { return made<T>(self).num_cells(); })
      .def_property_readonly("num_bytes",
                             [](const py::object& self) { return made<T>(self).num_bytes(); });
}

template <class T>
py::tuple block_log_sums(const Array<T>& points, const Array<T>& centers, double noise_std,
                         const Indices& own, const Indices& offsets, const Indices& outer_offsets,
                         const std::optional<Array<T>>& weights, bool include_rest,
                         int num_threads) {
  require_threads(num_threads);
  Problem<T> problem(points, centers, noise_std, weights);
  require(own.ndim() == 1 && own.shape(0) == problem.task.points.m, "one own center per point");
  const int64_t m = problem.task.points.m, n = problem.task.mixture.n;
  for (int64_t i = 0; i < m; ++i)
    require(own.data()[i] >= 0 && own.data()[i] < n, "own must index centers");
  const auto members = memberships(offsets, outer_offsets, n);
  std::vector<py::array_t<T>> parts;
  for (int part = 0; part < kNumParts; ++part) {
    parts.emplace_back(m);
    problem.task.out[part] = parts.back().mutable_data();
    if (!include_rest && (part == kOuter || part == kRest))
      std::fill_n(parts.back().mutable_data(), m, -std::numeric_limits<T>::infinity());
  }
  problem.task.own = own.data();
  problem.task.membership = members.data();
  problem.task.include_rest = include_rest;
  const KernelTable& table = active_target();  // reads the environment: needs the GIL
  {
    const ReleasedGil released;
    run_task(problem.task, table, num_threads);
  }
  return py::make_tuple(parts[kOwn], parts[kInner], parts[kOuter], parts[kRest]);
}

// Log-densities (m,), and mean (m, d) relative to the point and covariance (m, d, d) of its center:
// see PosteriorTask.
template <class T>
py::tuple posterior_moments(const Array<T>& points, const Array<T>& centers, double noise_std,
                            const std::optional<Array<T>>& weights, double unit, int num_threads) {
  require_threads(num_threads);
  const Problem<T> problem(points, centers, noise_std, weights);
  const int64_t m = problem.task.points.m, d = problem.task.mixture.d;
  require(d <= kMaxMomentDim, "d <= 32");
  require_noise<T>(unit, "unit must be positive, in range");
  py::array_t<T> log_density(m), mean({m, d}), covariance({m, d, d});
  const PosteriorTask<T> task{
      problem.task.points,        problem.task.mixture, unit,
      log_density.mutable_data(), mean.mutable_data(),  covariance.mutable_data()};
  const KernelTable& table = active_target();  // reads the environment: needs the GIL
  {
    const ReleasedGil released;
    run_posterior_task(task, table, num_threads);
  }
  return py::make_tuple(log_density, mean, covariance);
}

// Gradients with respect to points (m, d), centers (n, d), weights (n,) and noise_std, None where
// not wanted: see GradientTask. CountsPairs: how many pairs they took instead.
template <class T, bool CountsPairs>
py::object log_density_gradients(const Array<T>& points, const Array<T>& centers, double noise_std,
                                 const std::optional<Array<T>>& weights,
                                 const Array<T>& log_density, const Array<T>& grad_output,
                                 bool want_points, bool want_centers, bool want_weights,
                                 bool want_noise_std, double max_lost_mass, int num_threads) {
  require_threads(num_threads);
  const Problem<T> problem(points, centers, noise_std, weights);
  const PointsView<T>& x = problem.task.points;
  const MixtureView<T>& mixture = problem.task.mixture;
  require(x.m < INT32_MAX, "too many points");
  require(max_lost_mass >= 0 && max_lost_mass < 1, "max_lost_mass must be in [0, 1)");
  auto values = [](const Array<T>& array, int64_t count, const char* message) {
    require(array.ndim() == 1 && array.shape(0) == count, message);
    std::vector<T> out(static_cast<size_t>(count));
    const auto from = array.template unchecked<1>();
    for (int64_t i = 0; i < count; ++i) out[size_t(i)] = from(i);
    return out;
  };
  const std::vector<T> w = weights ? values(*weights, mixture.n, "weights") : std::vector<T>();
  const std::vector<T> densities = values(log_density, x.m, "one log-density per point");
  const std::vector<T> gains = values(grad_output, x.m, "one grad_output per point");

  GradientTask<T> task{x,
                       mixture,
                       weights ? w.data() : nullptr,
                       densities.data(),
                       gains.data(),
                       max_lost_mass,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr};
  py::object of_points = py::none(), of_centers = py::none(), of_weights = py::none();
  auto make = [](py::object& object, std::vector<py::ssize_t> shape) {
    py::array_t<T> array(shape);
    T* data = array.mutable_data();
    object = std::move(array);
    return data;
  };
  double of_noise_std = 0;
  int64_t pairs = 0;
  if (want_points) task.grad_points = make(of_points, {x.m, mixture.d});
  if (want_centers) task.grad_centers = make(of_centers, {mixture.n, mixture.d});
  if (want_weights) task.grad_weights = make(of_weights, {mixture.n});
  if (want_noise_std) task.grad_noise_std = &of_noise_std;
  const KernelTable& table = active_target();  // reads the environment: needs the GIL
  {
    const ReleasedGil released;
    pairs = run_gradient_task(task, table, num_threads);
  }
  if (CountsPairs) return py::int_(pairs);
  const py::object noise = want_noise_std ? py::object(py::float_(of_noise_std)) : py::none();
  return py::make_tuple(of_points, of_centers, of_weights, noise);
}

// The rows of the centers, ordered so that neighbours in space are neighbours in the order; runs of
// `leaf` rows lie close together.
template <class T>
Indices kd_order(const Array<T>& centers, int64_t leaf, int num_threads) {
  const PointsView<T> y = rows(centers);
  const int64_t d = centers.shape(1);
  require(y.m < INT32_MAX && d >= 1, "too many centers, or no dimension");
  require(leaf >= 1, "leaf must be positive");
  require_threads(num_threads);
  require_finite(centers);
  leaf = std::min(leaf, std::max<int64_t>(y.m, 1));
  Indices result(y.m);
  int64_t* out = result.mutable_data();
  if (y.m > 0) {
    const ReleasedGil released;
    const KdOrder<T> order(y.points, y.stride, y.m, d, leaf, num_threads);
    std::copy(order.order.begin(), order.order.end(), out);
  }
  return result;
}

// (n, d, d): see CovarianceTask.
template <class T>
void require_factors(const Contiguous<T>& whitening) {
  require(whitening.ndim() == 3 && whitening.shape(1) == whitening.shape(2),
          "whitening must be (n, d, d)");
}

template <class T>
py::array_t<T> covariance_log_density(const Array<T>& points, const Array<T>& centers,
                                      const Contiguous<T>& whitening,
                                      const std::optional<Contiguous<T>>& weights,
                                      int num_threads) {
  require_threads(num_threads);
  CovarianceTask<T> task{};
  task.points = rows(points);
  task.centers = rows(centers);
  task.d = centers.shape(1);
  require(points.shape(1) == task.d, "dimensions differ");
  require(task.centers.m >= 1 && task.d >= 1 && task.d <= kMaxCovarianceDim, "n >= 1, d <= 32");
  require_factors(whitening);
  require(whitening.shape(0) == task.centers.m && whitening.shape(1) == task.d,
          "one factor per center");
  task.whitening = whitening.data();
  if (weights) {
    require(weights->ndim() == 1 && weights->shape(0) == task.centers.m, "one weight per center");
    task.weights = weights->data();
  }
  py::array_t<T> result(task.points.m);
  task.out = result.mutable_data();
  const KernelTable& table = active_target();  // reads the environment: needs the GIL
  {
    const ReleasedGil released;
    run_covariance_task(task, table, num_threads);
  }
  return result;
}

// Index, in C order, of the first element that no whitening factor has: above the diagonal one
// that is not zero, on it one that is not positive, anywhere one that is not finite; -1 if none.
template <class T>
int64_t first_unfit_factor(const Contiguous<T>& whitening) {
  require_factors(whitening);
  const int64_t n = whitening.shape(0), d = whitening.shape(1);
  if (whitening.size() == 0) return -1;  // of however many matrices
  const T* a = whitening.data();
  const ReleasedGil released;
  for (int64_t j = 0; j < n; ++j, a += d * d)
    for (int64_t r = 0; r < d; ++r)
      for (int64_t k = 0; k < d; ++k) {
        const T value = a[r * d + k];
        const bool is_fit = k > r ? value == 0 : k < r || value > 0;
        if (!is_fit || !std::isfinite(value)) return (j * d + r) * d + k;
      }
  return -1;
}

// Index, in C order, of the first element that is NaN or infinite; -1 if there is none.
template <class T>
int64_t first_nonfinite(const Array<T>& array) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Bits kExponent = sizeof(T) == 4 ? Bits(0x7f800000) : Bits(0x7ff0000000000000);
  const PointsView<T> view = rows(array);
  if (array.size() == 0) return -1;  // of however many rows
  int64_t d = array.shape(1), count = view.m;
  const ReleasedGil released;
  if (view.stride == d) {  // one long row
    d *= count;
    count = count > 0;
  }
  constexpr int64_t kBlock = 1024;  // looked at as a whole, without branches
  for (int64_t i = 0; i < count; ++i)
    for (int64_t begin = 0; begin < d; begin += kBlock) {
      const T* row = view.points + i * view.stride;
      const int64_t end = std::min(d, begin + kBlock);
      Bits bad = 0;
      for (int64_t k = begin; k < end; ++k) {
        Bits bits;
        std::memcpy(&bits, row + k, sizeof bits);
        bad |= Bits((bits & kExponent) == kExponent);
      }
      if (!bad) continue;
      for (int64_t k = begin; k < end; ++k)
        if (!std::isfinite(row[k])) return i * array.shape(1) + k;
    }
  return -1;
}

using Doubles = Contiguous<double>;

// Layers 2 .. l as arrays from Python; the view points into them.
struct Layers {
  std::vector<int64_t> dims;
  std::vector<const double*> weight_data{nullptr}, bias_data{nullptr};
  int64_t length = 0;  // of a noise path
  NoisyLayersView view;

  Layers(const std::vector<Doubles>& weights, const std::vector<Doubles>& biases, int activation,
         double noise_std, const Doubles& first) {
    require(!weights.empty() && weights.size() == biases.size(), "one bias per weight matrix");
    require(first.ndim() == 2 && first.shape(0) >= 1, "first must be (m, d_1)");
    require(activation >= 0 && activation <= int(Activation::kLeakyRelu), "unknown activation");
    require_noise<double>(noise_std);
    dims.push_back(first.shape(1));
    for (size_t i = 0; i < weights.size(); ++i) {
      length += dims.back();
      require(weights[i].ndim() == 2 && weights[i].shape(1) == dims.back() &&
                  biases[i].ndim() == 1 && biases[i].shape(0) == weights[i].shape(0),
              "weights must chain: (d_i, d_(i-1)) with biases (d_i,)");
      dims.push_back(weights[i].shape(0));
      weight_data.push_back(weights[i].data());
      bias_data.push_back(biases[i].data());
    }
    view = {int(dims.size()),       dims.data(), weight_data.data(), bias_data.data(),
            Activation(activation), noise_std,   first.data(),       first.shape(0)};
  }
  Layers(const Layers&) = delete;
};

// Lower and upper (G, N) sides of log p(t_l | group), and effective sample sizes: see PathTask.
py::tuple path_importance(const std::vector<Doubles>& weights, const std::vector<Doubles>& biases,
                          int activation, double noise_std, const Doubles& first,
                          const Doubles& points, const Indices& own, const Doubles& path,
                          const Indices& groups, const Doubles& uniforms, const Doubles& normals,
                          int num_threads) {
  require_threads(num_threads);
  const Layers layers(weights, biases, activation, noise_std, first);
  const int64_t length = layers.length;
  const int64_t d = layers.dims.back();
  require(groups.ndim() == 3 && groups.shape(2) == 2, "groups must be (G, N, 2)");
  const int64_t G = groups.shape(0), N = groups.shape(1);
  require(normals.ndim() == 3, "normals must be (N, K, L + d)");
  const int64_t K = normals.shape(1);
  require(K >= 4, "at least 4 proposals");
  require(points.ndim() == 2 && points.shape(0) == N && points.shape(1) == d, "points (N, d)");
  require(own.ndim() == 1 && own.shape(0) == N, "own (N,)");
  require(path.ndim() == 2 && path.shape(0) == N && path.shape(1) == length, "path (N, L)");
  require(uniforms.ndim() == 2 && uniforms.shape(0) == N && uniforms.shape(1) == K + 2,
          "uniforms (N, K + 2)");
  require(normals.shape(0) == N && normals.shape(2) == length + d, "normals (N, K, L + d)");
  const int64_t m = first.shape(0);
  for (int64_t i = 0; i < N; ++i) {
    const int64_t j = own.data()[i];
    require(0 <= j && j < m, "own must be rows of first");
    for (int64_t g = 0; g < G; ++g) {
      const int64_t* range = groups.data() + 2 * (g * N + i);
      require(0 <= range[0] && range[0] <= j && j < range[1] && range[1] <= m,
              "a group must be a range of inputs that contains the own one");
    }
  }
  Doubles lower({G, N}), upper({G, N}), effective({G, N});
  const PathTask task{layers.view,
                      N,
                      G,
                      K,
                      points.data(),
                      own.data(),
                      path.data(),
                      groups.data(),
                      uniforms.data(),
                      normals.data(),
                      lower.mutable_data(),
                      upper.mutable_data(),
                      effective.mutable_data()};
  const KernelTable& table = active_target();
  {
    const ReleasedGil released;
    run_path_task(task, table, num_threads);
  }
  return py::make_tuple(lower, upper, effective);
}

// Lower and upper (N,) sides of log p(t_l | own input), and effective sample sizes: see
// ReplicaTask.
py::tuple path_replicas(const std::vector<Doubles>& weights, const std::vector<Doubles>& biases,
                        int activation, double noise_std, const Doubles& first,
                        const Doubles& points, const Indices& own, const Doubles& path,
                        const Doubles& normals, const Indices& offsets, int64_t num_draws,
                        int num_threads) {
  require_threads(num_threads);
  const Layers layers(weights, biases, activation, noise_std, first);
  require(own.ndim() == 1 && offsets.ndim() == 1 && offsets.shape(0) == own.shape(0),
          "own and offsets must be (N,)");
  const int64_t N = own.shape(0);
  require(points.ndim() == 2 && points.shape(0) == N && points.shape(1) == layers.dims.back(),
          "points (N, d)");
  require(path.ndim() == 2 && path.shape(0) == N && path.shape(1) == layers.length, "path (N, L)");
  require(normals.ndim() == 2 && normals.shape(0) == layers.length, "normals (L, P)");
  require(1 <= num_draws && num_draws <= normals.shape(1), "1 <= num_draws <= P");
  for (int64_t i = 0; i < N; ++i) {
    require(0 <= own.data()[i] && own.data()[i] < first.shape(0), "own must be rows of first");
    require(0 <= offsets.data()[i] && offsets.data()[i] <= normals.shape(1) - num_draws,
            "offsets must leave num_draws columns");
  }
  Doubles lower(N), upper(N), effective(N);
  const ReplicaTask task{layers.view,
                         N,
                         num_draws,
                         normals.shape(1),
                         points.data(),
                         own.data(),
                         path.data(),
                         normals.data(),
                         offsets.data(),
                         lower.mutable_data(),
                         upper.mutable_data(),
                         effective.mutable_data()};
  const KernelTable& table = active_target();
  {
    const ReleasedGil released;
    run_replica_task(task, table, num_threads);
  }
  return py::make_tuple(lower, upper, effective);
}

// What this module was built with, for `noisyflow check`.
py::dict build_info() {
#if defined(__clang__)
#if defined(__apple_build_version__)
  std::string compiler = "Apple Clang ";
#else
  std::string compiler = "Clang ";
#endif
  compiler += PYBIND11_TOSTRING(__clang_major__) "." PYBIND11_TOSTRING(
      __clang_minor__) "." PYBIND11_TOSTRING(__clang_patchlevel__);
#else
  const std::string compiler = "GCC " __VERSION__;
#endif
  py::dict info;
  info["compiler"] = compiler;
  info["build_type"] = NOISYFLOW_BUILD_TYPE;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
      PYBIND11_VERSION_MINOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_PATCH);
  return info;
}

template <class T>
void define(py::module_& m) {
  m.def("log_density", &log_density<T>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("noise_std"),
        py::arg("weights").noconvert().none(true), py::arg("num_threads"));
  m.def("block_log_sums", &block_log_sums<T>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("noise_std"), py::arg("own"), py::arg("offsets"),
        py::arg("outer_offsets"), py::arg("weights").noconvert().none(true),
        py::arg("include_rest"), py::arg("num_threads"));
  m.def("covariance_log_density", &covariance_log_density<T>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("whitening").noconvert(),
        py::arg("weights").noconvert().none(true), py::arg("num_threads"));
  m.def("posterior_moments", &posterior_moments<T>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("noise_std"),
        py::arg("weights").noconvert().none(true), py::arg("unit"), py::arg("num_threads"));
  m.def("log_density_gradients", &log_density_gradients<T, false>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("noise_std"),
        py::arg("weights").noconvert().none(true), py::arg("log_density").noconvert(),
        py::arg("grad_output").noconvert(), py::arg("want_points"), py::arg("want_centers"),
        py::arg("want_weights"), py::arg("want_noise_std"), py::arg("max_lost_mass"),
        py::arg("num_threads"));
  m.def("gradient_pairs", &log_density_gradients<T, true>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("noise_std"),
        py::arg("weights").noconvert().none(true), py::arg("log_density").noconvert(),
        py::arg("grad_output").noconvert(), py::arg("want_points"), py::arg("want_centers"),
        py::arg("want_weights"), py::arg("want_noise_std"), py::arg("max_lost_mass"),
        py::arg("num_threads"));
  m.def("kd_order", &kd_order<T>, py::arg("centers").noconvert(), py::arg("leaf"),
        py::arg("num_threads"));
  m.def("first_unfit_factor", &first_unfit_factor<T>, py::arg("whitening").noconvert());
  m.def("sampled_squares", &sampled_squares<T>, py::arg("points").noconvert(),
        py::arg("centers").noconvert(), py::arg("num_x"), py::arg("num_y"));
  m.def("first_nonfinite", &first_nonfinite<T>, py::arg("array").noconvert());
}

}  // namespace
}  // namespace noisyflow

PYBIND11_MODULE(_core, m) {
  using namespace noisyflow;
  m.doc() = "Compiled kernels of noisyflow; the public functions are in the package.";
  define<float>(m);
  define<double>(m);
  define_prepared<float>(m, "Prepared32");
  define_prepared<double>(m, "Prepared64");
  m.def("path_importance", &path_importance, py::arg("weights"), py::arg("biases"),
        py::arg("activation"), py::arg("noise_std"), py::arg("first"), py::arg("points"),
        py::arg("own"), py::arg("path"), py::arg("groups"), py::arg("uniforms"), py::arg("normals"),
        py::arg("num_threads"));
  m.def("path_replicas", &path_replicas, py::arg("weights"), py::arg("biases"),
        py::arg("activation"), py::arg("noise_std"), py::arg("first"), py::arg("points"),
        py::arg("own"), py::arg("path"), py::arg("normals"), py::arg("offsets"),
        py::arg("num_draws"), py::arg("num_threads"));
  m.def("build_info", &build_info);
  m.def("available_targets", [] {
    std::vector<std::string> names;
    for (int i = 0; i < num_available_targets(); ++i) names.emplace_back(available_target(i).name);
    return names;
  });
  m.def("active_target", [] { return std::string(active_target().name); });
  m.def("force_target", [](const std::optional<std::string>& name) {
    force_target(name ? name->c_str() : nullptr);
  });
}
