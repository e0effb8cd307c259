// _cuda: device pointers and a stream in, kernels launched; nothing else.
// Pointers are integers (data_ptr of a tensor), strides are in elements. What is passed is checked
// and explained in Python (_device.py), which sees tensors.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../cuda/launch.h"
#include "released_gil.h"

namespace py = pybind11;

namespace noisyflow {
namespace {

using Address = std::uintptr_t;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// What every launch begins with.
struct Problem {
  int itemsize;
  Address points;
  int64_t point_stride, m;
  Address centers;
  int64_t center_stride, n, d;
  double noise_std;
  Address weight_shift;

  void check() const {
    require(itemsize == 4 || itemsize == 8, "itemsize must be 4 or 8");
    require(m >= 0 && n >= 1 && d >= 1, "expected m >= 0, n >= 1 and d >= 1");
    require(m <= INT32_MAX && n <= INT32_MAX, "m and n must be below 2^31");
    require((points || m == 0) && centers, "null pointer");
    require(points % itemsize == 0 && centers % itemsize == 0 && weight_shift % itemsize == 0,
            "pointers must be aligned to an element");
    require(std::isfinite(noise_std) && noise_std > 0, "noise_std must be positive");
  }
  template <class T>
  PointsView<T> points_view() const {
    return {at<const T>(points), point_stride, m};
  }
  template <class T>
  MixtureView<T> mixture_view() const {
    return {at<const T>(centers), center_stride, n, d, noise_std, at<const T>(weight_shift)};
  }
};

cuda::Kind to_kind(const std::string& kind) {
  if (kind == "log_density") return cuda::Kind::kLogDensity;
  if (kind == "block_log_sums") return cuda::Kind::kBlockLogSums;
  if (kind == "gradients") return cuda::Kind::kGradients;
  require(kind == "skipping", "kind must be log_density, block_log_sums, gradients or skipping");
  return cuda::Kind::kSkipping;
}

cuda::Scratch to_scratch(cuda::Kind kind, const Problem& p, Address memory, int64_t bytes,
                         Address stream) {
  require(bytes >= cuda::workspace_bytes(kind, p.itemsize, p.m, p.n, p.d), "workspace too small");
  require(memory % 16 == 0, "the workspace must be aligned to 16 bytes");
  return {at<void>(memory), bytes, at<void>(stream)};
}

// Calls f with a value of the element type, without the GIL.
template <class F>
void with_type(const Problem& problem, F f) {
  if (problem.m == 0) return;
  const ReleasedGil released;
  if (problem.itemsize == 4)
    f(float());
  else
    f(double());
}

#define NOISYFLOW_PROBLEM                                                         \
  int itemsize, Address points, int64_t point_stride, int64_t m, Address centers, \
      int64_t center_stride, int64_t n, int64_t d, double noise_std, Address weight_shift
#define NOISYFLOW_PROBLEM_VALUE \
  {itemsize, points, point_stride, m, centers, center_stride, n, d, noise_std, weight_shift}
#define NOISYFLOW_PROBLEM_ARGS                                                   \
  py::arg("itemsize"), py::arg("points"), py::arg("point_stride"), py::arg("m"), \
      py::arg("centers"), py::arg("center_stride"), py::arg("n"), py::arg("d"),  \
      py::arg("noise_std"), py::arg("weight_shift")
#define NOISYFLOW_SCRATCH Address workspace, int64_t workspace_bytes, Address stream
#define NOISYFLOW_SCRATCH_ARGS py::arg("workspace"), py::arg("workspace_bytes"), py::arg("stream")

void log_density(NOISYFLOW_PROBLEM, Address out, int path, NOISYFLOW_SCRATCH) {
  const Problem problem NOISYFLOW_PROBLEM_VALUE;
  problem.check();
  require(path >= 0 && path <= 2, "path must be 0, 1 or 2");
  const auto scratch =
      to_scratch(cuda::Kind::kLogDensity, problem, workspace, workspace_bytes, stream);
  with_type(problem, [&](auto zero) {
    using T = decltype(zero);
    cuda::log_density<T>(problem.points_view<T>(), problem.mixture_view<T>(), at<T>(out),
                         cuda::Path(path), scratch);
  });
}

void skipping_log_density(NOISYFLOW_PROBLEM, double max_lost_mass, Address out, NOISYFLOW_SCRATCH) {
  const Problem problem NOISYFLOW_PROBLEM_VALUE;
  problem.check();
  require(max_lost_mass > 0 && max_lost_mass < 1, "max_lost_mass must be in (0, 1)");
  const auto scratch =
      to_scratch(cuda::Kind::kSkipping, problem, workspace, workspace_bytes, stream);
  with_type(problem, [&](auto zero) {
    using T = decltype(zero);
    cuda::skipping_log_density<T>(problem.points_view<T>(), problem.mixture_view<T>(),
                                  max_lost_mass, at<T>(out), scratch);
  });
}

void block_log_sums(NOISYFLOW_PROBLEM, Address own, Address membership, bool include_rest,
                    Address out_own, Address out_inner, Address out_outer, Address out_rest,
                    NOISYFLOW_SCRATCH) {
  const Problem problem NOISYFLOW_PROBLEM_VALUE;
  problem.check();
  require(m == 0 || (own && membership && out_own && out_inner), "null pointer");
  require(m == 0 || !include_rest || (out_outer && out_rest), "null pointer");
  const auto scratch =
      to_scratch(cuda::Kind::kBlockLogSums, problem, workspace, workspace_bytes, stream);
  with_type(problem, [&](auto zero) {
    using T = decltype(zero);
    const cuda::Parts<T> parts{at<T>(out_own), at<T>(out_inner),
                               include_rest ? at<T>(out_outer) : nullptr,
                               include_rest ? at<T>(out_rest) : nullptr};
    cuda::block_log_sums<T>(problem.points_view<T>(), problem.mixture_view<T>(),
                            at<const int64_t>(own), at<const Membership>(membership), parts,
                            scratch);
  });
}

void gradients(NOISYFLOW_PROBLEM, Address log_density, Address grad_output, Address grad_points,
               Address grad_centers, Address weight_mass, Address noise_terms, NOISYFLOW_SCRATCH) {
  const Problem problem NOISYFLOW_PROBLEM_VALUE;
  problem.check();
  require(m >= 1, "gradients of no points: fill with zeros instead");
  require(log_density && grad_output, "null pointer");
  const auto scratch =
      to_scratch(cuda::Kind::kGradients, problem, workspace, workspace_bytes, stream);
  with_type(problem, [&](auto zero) {
    using T = decltype(zero);
    const cuda::Gradients<T> wanted{at<T>(grad_points), at<T>(grad_centers), at<T>(weight_mass),
                                    at<double>(noise_terms)};
    cuda::gradients<T>(problem.points_view<T>(), problem.mixture_view<T>(),
                       at<const T>(log_density), at<const T>(grad_output), wanted, scratch);
  });
}

py::dict device_info(int index) {
  const cuda::DeviceInfo info = cuda::device_info(index);
  py::dict out;
  out["name"] = info.name;
  out["major"] = info.major;
  out["minor"] = info.minor;
  out["total_memory"] = info.total_memory;
  out["multiprocessors"] = info.multiprocessors;
  return out;
}

}  // namespace

// The same bindings serve the module that tests build with the host's compiler.
#if defined(NOISYFLOW_HOST_SHIM)
PYBIND11_MODULE(_cuda_host, module) {
#else
PYBIND11_MODULE(_cuda, module) {
#endif
  module.def("compiled_architectures", &cuda::compiled_architectures);
  module.def("toolkit_version", &cuda::toolkit_version);
  module.def("driver_version", &cuda::driver_version);
  module.def("device_count", &cuda::device_count);
  module.def("device_info", &device_info, py::arg("index"));
  module.def(
      "workspace_bytes",
      [](const std::string& kind, int itemsize, int64_t m, int64_t n, int64_t d) {
        require(itemsize == 4 || itemsize == 8, "itemsize must be 4 or 8");
        return cuda::workspace_bytes(to_kind(kind), itemsize, m, n, d);
      },
      py::arg("kind"), py::arg("itemsize"), py::arg("m"), py::arg("n"), py::arg("d"));
  module.def("log_density", &log_density, NOISYFLOW_PROBLEM_ARGS, py::arg("out"), py::arg("path"),
             NOISYFLOW_SCRATCH_ARGS);
  module.def("tensor_error_bound", &cuda::tensor_error_bound, py::arg("d"),
             py::arg("largest_norm_squared_over_2s2"));
  module.def("skipping_log_density", &skipping_log_density, NOISYFLOW_PROBLEM_ARGS,
             py::arg("max_lost_mass"), py::arg("out"), NOISYFLOW_SCRATCH_ARGS);
  module.def("block_log_sums", &block_log_sums, NOISYFLOW_PROBLEM_ARGS, py::arg("own"),
             py::arg("membership"), py::arg("include_rest"), py::arg("out_own"),
             py::arg("out_inner"), py::arg("out_outer"), py::arg("out_rest"),
             NOISYFLOW_SCRATCH_ARGS);
  module.def("gradients", &gradients, NOISYFLOW_PROBLEM_ARGS, py::arg("log_density"),
             py::arg("grad_output"), py::arg("grad_points"), py::arg("grad_centers"),
             py::arg("weight_mass"), py::arg("noise_terms"), NOISYFLOW_SCRATCH_ARGS);
}

}  // namespace noisyflow
