// Chooses kernels, grids and scratch, and launches them.

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <type_traits>

#include "direct.cuh"
#include "gradients.cuh"
#include "launch.h"
#include "skipping.cuh"
#include "tensor_core.cuh"

namespace noisyflow {
namespace cuda {
namespace {

// -- errors --------------------------------------------------------------------------------------

[[noreturn]] void fail(const char* what, cudaError_t error) {
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    message += " (built for";
    for (const std::string& name : compiled_architectures()) message += " " + name;
    message += "; set NOISYFLOW_CUDA_ARCHITECTURES and build again)";
  }
  throw std::runtime_error(message);
}

void check(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not left behind for the next caller
  fail(what, error);
}

// An error that someone before has left behind is not this call's.
void forget_errors() { cudaGetLastError(); }

// After a launch. Errors of the kernels themselves show at a later call, as all of CUDA's do.
void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(kernel, error);
}

cudaStream_t to_stream(const Scratch& scratch) { return static_cast<cudaStream_t>(scratch.stream); }

// log of what multiplies the sum of 2^-exponents: nats.
template <class T>
double log_constant(const MixtureView<T>& mixture) {
  const double two_pi_variance = 2 * M_PI * mixture.noise_std * mixture.noise_std;
  return -0.5 * double(mixture.d) * std::log(two_pi_variance) -
         (mixture.weight_shift ? 0 : std::log(double(mixture.n)));
}

template <class T>
T minus_scale(const MixtureView<T>& mixture) {
  return T(-1.4426950408889634074 / (2 * mixture.noise_std * mixture.noise_std));
}

template <class T>
Nats nats(const MixtureView<T>& mixture) {
  const double scale = 1.4426950408889634074 / (2 * mixture.noise_std * mixture.noise_std);
  return {M_LN2 * scale / -double(minus_scale(mixture)), log_constant(mixture)};
}

unsigned blocks_of(int64_t count, int64_t size) { return unsigned((count + size - 1) / size); }

// -- shapes --------------------------------------------------------------------------------------

template <int N>
using Int = std::integral_constant<int, N>;

// Calls f with the number of coordinates that a row in registers has, at least d; 0: too many
// dimensions, the tiled kernels. Padding costs what the coordinates would.
template <class T, class F>
auto with_registers(int64_t d, F f) {
  if (d == 1) return f(Int<1>());
  if (d == 2) return f(Int<2>());
  if (d == 3) return f(Int<3>());
  if constexpr (sizeof(T) == 4) {  // in double 2^x takes longer than the tiled kernel loses
    if (d == 4) return f(Int<4>());
    if (d == 5) return f(Int<5>());
    if (d == 6) return f(Int<6>());
    if (d <= 8) return f(Int<8>());
    if (d <= 10) return f(Int<10>());
    if (d <= 12) return f(Int<12>());
    if (d <= 16) return f(Int<16>());
    if (d <= 20) return f(Int<20>());
  }
  return f(Int<0>());
}

// Rows of a thread and columns side by side: what registers allow (128 at D <= 5, then 168). More
// rows share a column's load: 3 % of the instructions at D = 3, R = 8, and 4 % at D = 20, R = 4.
template <class T, int D>
constexpr int kRowsEach = sizeof(T) == 8 ? 4
                          : D <= 6       ? 8
                                         : 4;
template <class T, int D>
constexpr int kUnroll = sizeof(T) == 4 && D <= 3 ? 8 : 4;

// Rows in a block.
template <class T, int D>
constexpr int64_t kBlockRows = D > 0 ? kThreads * kRowsEach<T, D> : TileShape<T>::kRows;

// Columns in parts of `each`, a multiple of a tile.
struct Split {
  int64_t each;
  unsigned parts;
};

// Enough blocks to fill a device several times over: few rows are made up for by splitting the
// columns. The same on every device, so that results are.
constexpr int64_t kWantedBlocks = 2048;  // 132 multiprocessors, 3 or 4 blocks each, 4 times

Split split_columns(int64_t row_blocks, int64_t columns, int64_t least_each,
                    int64_t wanted_blocks) {
  int64_t parts = (wanted_blocks + row_blocks - 1) / row_blocks;
  parts = std::max<int64_t>(std::min(parts, columns / least_each), 1);
  const int64_t each = ((columns + parts - 1) / parts + kTile - 1) / kTile * kTile;
  return {each, blocks_of(columns, each)};
}

// Every split has to find its own references: a batch of 64 done twice, and some more.
template <int D>
constexpr int64_t kLeastColumns = D > 0 ? 2048 : 512;

template <class T, int D>
Split split_centers(int64_t m, int64_t n) {
  return split_columns((m + kBlockRows<T, D> - 1) / kBlockRows<T, D>, n, kLeastColumns<D>,
                       kWantedBlocks);
}

// -- forward -------------------------------------------------------------------------------------

// One part of the mixture's sum for every point.
template <class T>
void log_sums(const PointsView<T>& points, const MixtureView<T>& mixture, const PartRanges& ranges,
              T* out, const Scratch& scratch) {
  auto* terms = static_cast<LogTerm<T>*>(scratch.memory);
  const unsigned parts = with_registers<T>(mixture.d, [&](auto registers) {
    constexpr int D = registers;
    const Split split = split_centers<T, D>(points.m, mixture.n);
    const dim3 grid(blocks_of(points.m, kBlockRows<T, D>), split.parts);
    if constexpr (D > 0) {
      const auto kernel = &log_sums_kernel<T, D, kRowsEach<T, D>, kUnroll<T, D>>;
      LAUNCH(kernel, grid, dim3(kThreads), 0, to_stream(scratch), points, mixture,
             minus_scale(mixture), split.each, ranges, terms);
      check_launch("log_sums_kernel");
    } else {
      const auto kernel = &tiled_log_sums_kernel<T>;
      LAUNCH(kernel, grid, dim3(kThreads), 0, to_stream(scratch), points, mixture,
             minus_scale(mixture), split.each, ranges, terms);
      check_launch("tiled_log_sums_kernel");
    }
    return split.parts;
  });
  LAUNCH(merge_kernel<T>, dim3(blocks_of(points.m, kThreads)), dim3(kThreads), 0,
         to_stream(scratch), terms, points.m, int(parts), nats(mixture), ranges.done, out);
  check_launch("merge_kernel");
}

// Whether tensor cores may be tried, and whether they are worth it: below that many rows,
// preparation counts. What they cannot do well enough they leave to the tiled kernel.
template <class T>
bool has_tensor_path(int64_t d) {
  return sizeof(T) == 4 && d > 20;
}
bool is_tensor_problem(int64_t m, int64_t n) { return m >= 256 && n >= 256; }

template <class T>
int64_t sums_bytes(int64_t m, int64_t n, int64_t d) {
  const int64_t bytes = with_registers<T>(d, [&](auto registers) {
    constexpr int D = registers;
    return int64_t(split_centers<T, D>(m, n).parts) * m * int64_t(sizeof(LogTerm<T>));
  });
  return (bytes + 15) / 16 * 16;
}

// -- gradients -----------------------------------------------------------------------------------

// As with_registers, for kernels that keep a row's moments, too.
template <class T, class F>
auto with_moment_registers(int64_t d, F f) {
  if (d == 1) return f(Int<1>());
  if (d == 2) return f(Int<2>());
  if (d == 3) return f(Int<3>());
  if constexpr (sizeof(T) == 4) {
    if (d == 4) return f(Int<4>());
    if (d == 5) return f(Int<5>());
    if (d == 6) return f(Int<6>());
    if (d <= 8) return f(Int<8>());
    if (d <= 10) return f(Int<10>());
    if (d <= 12) return f(Int<12>());
    if (d <= 16) return f(Int<16>());
  } else {  // the tiled kernel does 64 dimensions' sums at a time, however few there are
    if (d <= 6) return f(Int<6>());
    if (d <= 10) return f(Int<10>());
  }
  if (d <= 20) return f(Int<20>());
  return f(Int<0>());
}

template <class T, int D>
constexpr int kMomentRows = sizeof(T) == 4 ? (D <= 3    ? 8
                                              : D <= 8  ? 4
                                              : D <= 12 ? 3
                                                        : 2)
                                           : (D <= 3   ? 4
                                              : D <= 6 ? 2
                                                       : 1);
template <class T, int D>
constexpr int kMomentUnroll = sizeof(T) == 8 ? 2
                              : D == 1       ? 8
                              : D <= 8       ? 4
                                             : 2;

template <class T, int D>
Split split_moments(int64_t rows, int64_t columns) {
  constexpr int64_t kRows = D > 0 ? kThreads * kMomentRows<T, D> : TileShape<T>::kRows;
  return split_columns((rows + kRows - 1) / kRows, columns, kLeastColumns<D>,
                       D > 0 ? kWantedBlocks : kWantedBlocks / 4);
}

template <class T>
unsigned moment_splits(int64_t rows, int64_t columns, int64_t d) {
  return with_moment_registers<T>(d, [&](auto registers) {
    constexpr int D = registers;
    return split_moments<T, D>(rows, columns).parts;
  });
}

// The workspace of gradients, in one piece.
template <class T>
struct GradientScratch {
  double* sums;
  T *offsets, *factors, *tops;
  int* is_rare;
  int64_t bytes;

  GradientScratch(int64_t m, int64_t n, int64_t d, void* memory) {
    const int64_t for_points = moment_splits<T>(m, n, d) * m;
    const int64_t for_centers = moment_splits<T>(n, m, d) * n;
    sums = static_cast<double*>(memory);
    offsets = reinterpret_cast<T*>(sums + std::max(for_points, for_centers) * num_sums(d));
    factors = offsets + m;
    tops = factors + m;
    is_rare = reinterpret_cast<int*>(tops + m);
    bytes = reinterpret_cast<char*>(is_rare + 1) - static_cast<char*>(memory);
  }
};

// Returns the splits.
template <class T, int What>
unsigned launch_pass_of(const Pass<T>& pass, double* sums, cudaStream_t stream) {
  return with_moment_registers<T>(pass.d, [&](auto registers) {
    constexpr int D = registers;
    const Split split = split_moments<T, D>(pass.rows.count, pass.columns.count);
    if constexpr (D > 0) {
      constexpr int R = kMomentRows<T, D>;
      const dim3 grid(blocks_of(pass.rows.count, kThreads * R), split.parts);
      const auto kernel = &moments_kernel<T, D, R, kMomentUnroll<T, D>, What>;
      LAUNCH(kernel, grid, dim3(kThreads), 0, stream, pass, split.each, sums);
      check_launch("moments_kernel");
    } else {
      const dim3 grid(blocks_of(pass.rows.count, TileShape<T>::kRows), split.parts);
      const auto kernel = &tiled_moments_kernel<T, What>;
      LAUNCH(kernel, grid, dim3(kThreads), 0, stream, pass, split.each, sums);
      check_launch("tiled_moments_kernel");
    }
    return split.parts;
  });
}

template <class T>
unsigned launch_pass(const Pass<T>& pass, int what, double* sums, cudaStream_t stream) {
  switch (what) {
    case kMass:
      return launch_pass_of<T, kMass>(pass, sums, stream);
    case kMoments:
      return launch_pass_of<T, kMoments>(pass, sums, stream);
    case kSpread:
      return launch_pass_of<T, kSpread>(pass, sums, stream);
    default:
      return launch_pass_of<T, kSwapped>(pass, sums, stream);
  }
}

// -- skipping ------------------------------------------------------------------------------------

constexpr int kSkippingRows = 4;  // of a thread: 128 of a warp, in one box

// What has a box, and how the boxes of columns are split; D as in with_registers.
template <class T, int D>
struct SkippingTiles {
  static constexpr bool kHasRowBoxes = D == 0;
  static constexpr int kRows = D > 0 ? kWarp * kSkippingRows : TileShape<T>::kRows;
  static constexpr int kColumns = D > 0 ? kTile : TileShape<T>::kColumns;

  // In boxes. Every split looks at all boxes once, for the nearest.
  static Split split(int64_t m, int64_t n) {
    constexpr int64_t kLeast = 128;
    const int64_t row_blocks = blocks_of(m, kRows), tiles = blocks_of(n, kColumns);
    int64_t parts = (2 * kWantedBlocks + row_blocks - 1) / row_blocks;
    parts = std::max<int64_t>(std::min(parts, tiles / kLeast), 1);
    const int64_t each = ((tiles + parts - 1) / parts + kLeast - 1) / kLeast * kLeast;
    return {each, blocks_of(tiles, each)};
  }

  static int64_t bytes(int64_t m, int64_t n, int64_t d) {
    const int64_t boxes = blocks_of(n, kColumns) + (kHasRowBoxes ? blocks_of(m, kRows) : 0);
    return 2 * d * boxes * int64_t(sizeof(T)) +
           int64_t(split(m, n).parts) * m * int64_t(sizeof(LogTerm<T>));
  }
};

template <class T>
int64_t bytes_for(Kind kind, int64_t m, int64_t n, int64_t d) {
  if (kind == Kind::kGradients) return GradientScratch<T>(m, n, d, nullptr).bytes;
  if (kind == Kind::kSkipping)
    return with_registers<T>(
        d, [&](auto registers) { return SkippingTiles<T, registers>::bytes(m, n, d); });
  const bool has_tensor = kind == Kind::kLogDensity && has_tensor_path<T>(d);
  return sums_bytes<T>(m, n, d) + (has_tensor ? tensor_workspace_bytes(m, n, d) : 0);
}

}  // namespace

// -- the machine ---------------------------------------------------------------------------------

std::vector<std::string> compiled_architectures() {
  std::vector<std::string> names;
#if defined(NOISYFLOW_CUDA_ARCHITECTURES)
  const std::string all = NOISYFLOW_CUDA_ARCHITECTURES;  // "80-real,90-real,90-virtual"
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find(',', begin), all.size());
    const std::string entry = all.substr(begin, end - begin);
    const std::string number = entry.substr(0, entry.find('-'));
    if (entry.find("-virtual") == std::string::npos) names.push_back("sm_" + number);
    if (entry.find("-real") == std::string::npos) names.push_back("compute_" + number);
    begin = end + 1;
  }
#endif
  return names;
}

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return version;
}

int device_count() {
  int count = 0;
  check("cudaGetDeviceCount", cudaGetDeviceCount(&count));
  return count;
}

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  check("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, index));
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          int64_t(properties.totalGlobalMem)};
}

// -- launches ------------------------------------------------------------------------------------

int64_t workspace_bytes(Kind kind, int itemsize, int64_t m, int64_t n, int64_t d) {
  if (m == 0) return 0;
  return itemsize == 4 ? bytes_for<float>(kind, m, n, d) : bytes_for<double>(kind, m, n, d);
}

template <class T>
void log_density(const PointsView<T>& points, const MixtureView<T>& mixture, T* out, Path path,
                 const Scratch& scratch) {
  forget_errors();
  PartRanges ranges{nullptr, nullptr, kInner};
  if constexpr (sizeof(T) == 4) {
    const bool is_wanted =
        path == Path::kTensor || (path == Path::kChoose && is_tensor_problem(points.m, mixture.n));
    if (is_wanted && has_tensor_path<T>(mixture.d)) {
      char* const memory =
          static_cast<char*>(scratch.memory) + sums_bytes<T>(points.m, mixture.n, mixture.d);
      ranges.done = launch_tensor_log_density(points, mixture, log_constant(mixture), out, memory,
                                              to_stream(scratch), check_launch);
    }
  }
  log_sums(points, mixture, ranges, out, scratch);
}

double tensor_error_bound(int64_t d, double largest) {
  return tensor_sum_error(int((d + 15) / 16)) * largest;
}

template <class T>
void skipping_log_density(const PointsView<T>& points, const MixtureView<T>& mixture,
                          double max_lost_mass, T* out, const Scratch& scratch) {
  forget_errors();
  const cudaStream_t stream = to_stream(scratch);
  const int64_t m = points.m, n = mixture.n, d = mixture.d;
  // As TreeScale on the CPU; 0.01: the rounding of the sum.
  const T log2_allowed = T((mixture.weight_shift ? 0 : std::log2(double(n))) -
                           std::log2(max_lost_mass) + std::log2(1 + max_lost_mass) + 0.01);
  with_registers<T>(d, [&](auto registers) {
    using Tiles = SkippingTiles<T, registers>;
    const unsigned row_tiles = blocks_of(m, Tiles::kRows), tiles = blocks_of(n, Tiles::kColumns);
    T* const boxes = static_cast<T*>(scratch.memory);
    T* const row_boxes = boxes + 2 * d * tiles;
    auto* const terms = reinterpret_cast<LogTerm<T>*>(
        row_boxes + (Tiles::kHasRowBoxes ? 2 * d * int64_t(row_tiles) : 0));
    LAUNCH(boxes_kernel<T>, dim3(tiles), dim3(kWarp), 0, stream,
           MatrixView<T>{mixture.centers, mixture.stride, n}, d, Tiles::kColumns, tiles, boxes);
    check_launch("boxes_kernel");
    const Split split = Tiles::split(m, n);
    const dim3 grid(row_tiles, split.parts);
    if constexpr (Tiles::kHasRowBoxes) {
      LAUNCH(boxes_kernel<T>, dim3(row_tiles), dim3(kWarp), 0, stream,
             MatrixView<T>{points.points, points.stride, m}, d, Tiles::kRows, row_tiles, row_boxes);
      check_launch("boxes_kernel");
      LAUNCH(tiled_skipping_kernel<T>, grid, dim3(kThreads), 0, stream, points, mixture,
             minus_scale(mixture), log2_allowed, row_boxes, int(row_tiles), boxes, int(tiles),
             int(split.each), terms);
      check_launch("tiled_skipping_kernel");
    } else {
      const auto kernel = &skipping_kernel<T, registers, kSkippingRows, 4>;
      LAUNCH(kernel, grid, dim3(kWarp), 0, stream, points, mixture, minus_scale(mixture),
             log2_allowed, boxes, int(tiles), int(split.each), terms);
      check_launch("skipping_kernel");
    }
    LAUNCH(merge_kernel<T>, dim3(blocks_of(m, kThreads)), dim3(kThreads), 0, stream, terms, m,
           int(split.parts), nats(mixture), nullptr, out);
    check_launch("merge_kernel");
  });
}

template <class T>
void block_log_sums(const PointsView<T>& points, const MixtureView<T>& mixture, const int64_t* own,
                    const Membership* membership, const Parts<T>& out, const Scratch& scratch) {
  forget_errors();
  LAUNCH(own_kernel<T>, dim3(blocks_of(points.m, kThreads)), dim3(kThreads), 0, to_stream(scratch),
         points, mixture, own, nats(mixture), out.own);
  check_launch("own_kernel");
  log_sums(points, mixture, PartRanges{own, membership, kInner}, out.inner, scratch);
  if (!out.rest) return;
  log_sums(points, mixture, PartRanges{own, membership, kOuter}, out.outer, scratch);
  log_sums(points, mixture, PartRanges{own, membership, kRest}, out.rest, scratch);
}

template <class T>
void gradients(const PointsView<T>& points, const MixtureView<T>& mixture, const T* log_density,
               const T* grad_output, const Gradients<T>& out, const Scratch& scratch) {
  const int64_t m = points.m, n = mixture.n, d = mixture.d;
  const GradientScratch<T> at(m, n, d, scratch.memory);
  const cudaStream_t stream = to_stream(scratch);
  const dim3 block(kThreads);
  const MatrixView<T> x{points.points, points.stride, m};
  const MatrixView<T> y{mixture.centers, mixture.stride, n};

  forget_errors();
  check("cudaMemsetAsync", cudaMemsetAsync(at.is_rare, 0, sizeof(int), stream));
  LAUNCH(offsets_kernel<T>, dim3(blocks_of(m, kThreads)), block, 0, stream, log_density, m,
         nats(mixture), at.offsets, at.is_rare);
  check_launch("offsets_kernel");

  const Pass<T> over_points{
      x, y, d, mixture.weight_shift, at.offsets, at.factors, minus_scale(mixture)};
  const int what = out.noise_terms ? kSpread : out.points ? kMoments : kMass;
  unsigned splits = launch_pass(over_points, what, at.sums, stream);
  LAUNCH(rare_points_kernel<T>, dim3(unsigned(m)), block, 0, stream, over_points, at.is_rare,
         at.tops, at.sums);
  check_launch("rare_points_kernel");
  LAUNCH(finish_points_kernel<T>, dim3(blocks_of(m, kThreads)), block, 0, stream, at.sums,
         int(splits), m, d, mixture.noise_std, grad_output, at.factors, out.points,
         out.noise_terms);
  check_launch("finish_points_kernel");
  if (!out.centers && !out.weight_mass) return;

  Pass<T> over_centers = over_points;
  over_centers.rows = y;
  over_centers.columns = x;
  splits = launch_pass(over_centers, kSwapped, at.sums, stream);
  LAUNCH(rare_centers_kernel<T>, dim3(unsigned(n)), block, 0, stream, over_centers, at.is_rare,
         at.tops, at.sums);
  check_launch("rare_centers_kernel");
  if (out.weight_mass && mixture.weight_shift) {
    LAUNCH(light_centers_kernel<T>, dim3(unsigned(n)), block, 0, stream, over_centers, at.tops,
           int(splits), at.sums);
    check_launch("light_centers_kernel");
  }
  LAUNCH(finish_centers_kernel<T>, dim3(blocks_of(n, kThreads)), block, 0, stream, at.sums,
         int(splits), n, d, mixture.noise_std, mixture.weight_shift, minus_scale(mixture),
         out.centers, out.weight_mass);
  check_launch("finish_centers_kernel");
}

#define NOISYFLOW_INSTANTIATE(T)                                                                 \
  template void log_density<T>(const PointsView<T>&, const MixtureView<T>&, T*, Path,            \
                               const Scratch&);                                                  \
  template void skipping_log_density<T>(const PointsView<T>&, const MixtureView<T>&, double, T*, \
                                        const Scratch&);                                         \
  template void block_log_sums<T>(const PointsView<T>&, const MixtureView<T>&, const int64_t*,   \
                                  const Membership*, const Parts<T>&, const Scratch&);           \
  template void gradients<T>(const PointsView<T>&, const MixtureView<T>&, const T*, const T*,    \
                             const Gradients<T>&, const Scratch&);
NOISYFLOW_INSTANTIATE(float)
NOISYFLOW_INSTANTIATE(double)

}  // namespace cuda
}  // namespace noisyflow
