// Reads the CPU's features, keeps the forced choice, and cuts a call into tasks.

#include "dispatch.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "scratch.h"

namespace noisyflow {
namespace {

constexpr int64_t kBlocksTogether = 8;  // of points, in one task over a tree

const std::vector<KernelTable>& tables() {
  // Never destroyed: threads may still compute while the process ends.
  static const auto* const found = [] {
    auto* const list = new std::vector<KernelTable>;
#if defined(NOISYFLOW_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      list->push_back(kernels_avx512());
    if (avx2) list->push_back(kernels_avx2());
#endif
#if defined(NOISYFLOW_ARM64)
    list->push_back(kernels_neon());  // every such CPU has it
#else
    list->push_back(kernels_baseline());
#endif
    return list;
  }();
  return *found;
}

const KernelTable& find_target(const char* name, const char* who) {
  std::string known;
  for (const KernelTable& table : tables()) {
    if (std::strcmp(table.name, name) == 0) return table;
    known += (known.empty() ? "'" : ", '") + std::string(table.name) + "'";
  }
  throw std::invalid_argument(std::string(who) + " must be one of " + known +
                              " on this CPU, got '" + name + "'");
}

std::atomic<const KernelTable*> forced{nullptr};

// Groups of at most `size` neighbouring points. They end with a block of own centers where that
// leaves at least half a group; where blocks are smaller than that, groups are full and mixed.
std::vector<PointGroup> cut_groups(const int64_t* own, int64_t m, const Membership* membership,
                                   int64_t size) {
  std::vector<PointGroup> groups;
  groups.reserve(size_t(2 * m / size + 1));
  for (int64_t begin = 0; begin < m;) {
    const Membership& block = membership[own[begin]];
    const int64_t most = std::min(m, begin + size);
    int64_t end = begin + 1;
    while (end < most && own[end] >= block.inner_begin && own[end] < block.inner_end) ++end;
    if (end - begin < size / 2) end = most;
    groups.push_back({begin, end});
    begin = end;
  }
  return groups;
}

// Groups of points in one task. A point's sum depends on nothing beyond its group, so neither the
// cut into tasks nor the number of threads can change a result. Small calls are cut finer, so that
// every thread has several tasks.
int64_t groups_per_task(int64_t num_groups, int num_threads) {
  return std::clamp<int64_t>(num_groups / (4 * int64_t(num_threads)), 1, kGroupsPerTask);
}

// -- the expanded form
// -----------------------------------------------------------------------------

constexpr int64_t kLeastExpandedDims = 17;     // below, the exponential is most of the work
constexpr int64_t kLeastExpandedPoints = 256;  // fewer do not pay for the norms of the centers
constexpr int64_t kLeastExpandedCenters = 1024;
constexpr int64_t kSampledRows = 64;

// The centers of a call.
template <class T>
struct Expansion {
  ExpandedCenters<T> form{};
  std::vector<T> origin;
  Scratch memory;
};

// Where the rows are sampled: every how many.
int64_t sampling(int64_t rows) { return std::max<int64_t>(1, rows / kSampledRows); }

// About the middle of the centers; 0 where that is as good: then coordinates are not rounded.
template <class T>
std::vector<T> find_origin(const MixtureView<T>& mixture) {
  const int64_t every = sampling(mixture.n), count = (mixture.n + every - 1) / every;
  std::vector<double> mean(size_t(mixture.d)), square(size_t(mixture.d));
  for (int64_t j = 0; j < mixture.n; j += every)
    for (int64_t k = 0; k < mixture.d; ++k) {
      const double y = double(mixture.centers[j * mixture.stride + k]);
      mean[size_t(k)] += y / double(count);
      square[size_t(k)] += y * y / double(count);
    }
  std::vector<T> origin(size_t(mixture.d));
  for (size_t k = 0; k < origin.size(); ++k)
    if (4 * mean[k] * mean[k] > square[k]) origin[k] = T(mean[k]);
  return origin;
}

// The spread (see ExpandedCenters) that few of the rows exceed, from a sample, for steps of
// kSteps[0], [1], ..
constexpr int kSteps[] = {32, 16, 8};
using Spreads = std::array<double, 3>;
template <class T>
Spreads usual_spreads(const T* rows, int64_t stride, int64_t count, const std::vector<T>& origin) {
  constexpr size_t kLeast = 8;
  std::array<std::vector<double>, 3> squares;
  for (int64_t i = 0; i < count; i += sampling(count)) {
    const T* row = rows + i * stride;
    double norms[3] = {}, sums[3] = {};
    for (size_t k = 0; k < origin.size(); k += kLeast) {
      double norm = 0;
      for (size_t at = k; at < std::min(k + kLeast, origin.size()); ++at) {
        const double y = double(row[at]) - double(origin[at]);
        norm += y * y;
      }
      for (size_t s = 0; s < 3; ++s) {
        norms[s] += norm;
        if ((k + kLeast) % size_t(kSteps[s]) != 0 && k + kLeast < origin.size()) continue;
        sums[s] += norms[s] * norms[s];
        norms[s] = 0;
      }
    }
    for (size_t s = 0; s < 3; ++s) squares[s].push_back(sums[s]);
  }
  Spreads spreads;
  for (size_t s = 0; s < 3; ++s) {
    const auto at = squares[s].begin() + std::ptrdiff_t(squares[s].size() * 49 / 50);
    std::nth_element(squares[s].begin(), at, squares[s].end());
    spreads[s] = 1.05 * std::sqrt(*at);
  }
  return spreads;
}

// The centers for the expanded form where it is accurate enough for most pairs; null elsewhere.
// What the sample misses is evaluated in differences: it matters for speed alone.
template <class T>
std::unique_ptr<Expansion<T>> expand(const Task<T>& task, const ExpansionKernel<T>& kernel,
                                     int num_threads) {
  const MixtureView<T>& mixture = task.mixture;
  const int64_t d = mixture.d, num_blocks = mixture.n / kernel.together;
  if (task.own || d < kLeastExpandedDims || task.points.m < kLeastExpandedPoints ||
      mixture.n < kLeastExpandedCenters || mixture.noise_std < kLeastExpandedNoise)
    return nullptr;
  auto expansion = std::make_unique<Expansion<T>>();
  ExpandedCenters<T>& form = expansion->form;
  const std::vector<T>& origin = expansion->origin = find_origin(mixture);
  const Spreads of_centers = usual_spreads(mixture.centers, mixture.stride, mixture.n, origin);
  const Spreads of_points =
      usual_spreads(task.points.points, task.points.stride, task.points.m, origin);
  const double variance = mixture.noise_std * mixture.noise_std;
  for (size_t s = 0; s < 3 && form.step == 0; ++s) {
    const double per_spread = double(kEpsilon<T>) / 2 * std::sqrt(kSteps[s] + 6.0) / (2 * variance);
    form.most = kernel.most_error / per_spread;
    if (of_centers[s] + of_points[s] <= form.most) form.step = kSteps[s];
  }
  if (form.step == 0) return nullptr;

  form.origin = origin.data();
  const bool is_moved = std::any_of(origin.begin(), origin.end(), [](T o) { return o != 0; });
  const int64_t num_norms = mixture.n * ((d + form.step - 1) / form.step);
  const int64_t num_moved = is_moved ? mixture.n * d : 0;
  expansion->memory = allocate((num_norms + num_blocks + num_moved) * int64_t(sizeof(T)));
  T* norms = static_cast<T*>(expansion->memory.get());
  T* spread = norms + num_norms;
  T* rows = is_moved ? spread + num_blocks : nullptr;
  form.norms = norms;
  form.spread = spread;
  form.rows = is_moved ? rows : mixture.centers;
  form.stride = is_moved ? d : mixture.stride;
  constexpr int64_t kBlocksTogether = 32;
  parallel_for((num_blocks + kBlocksTogether - 1) / kBlocksTogether, num_threads,
               [&](int, int64_t index) {
                 const int64_t first = index * kBlocksTogether;
                 kernel.expand(mixture, form, first, std::min(first + kBlocksTogether, num_blocks),
                               rows, norms, spread);
               });
  return expansion;
}

}  // namespace

int num_available_targets() { return int(tables().size()); }
const KernelTable& available_target(int index) { return tables()[size_t(index)]; }

const KernelTable& active_target() {
  if (const KernelTable* table = forced.load()) return *table;
  const char* wanted = std::getenv("NOISYFLOW_CPU_TARGET");
  return wanted && *wanted ? find_target(wanted, "NOISYFLOW_CPU_TARGET") : tables().front();
}

void force_target(const char* name) { forced = name ? &find_target(name, "CPU target") : nullptr; }

template <class T>
void run_task(const Task<T>& task, const KernelTable& table, int num_threads) {
  const int64_t m = task.points.m;
  if (m == 0) return;
  const int64_t d = task.mixture.d;
  const KernelChoice<T> kernel = choose_kernel<T>(table, d);

  const double work = double(m) * double(task.mixture.n) * double(d + 4);
  num_threads = worthwhile_threads(work, num_threads);

  Task<T> grouped = task;
  std::vector<PointGroup> groups;
  if (task.own) {
    groups = cut_groups(task.own, m, task.membership, kernel.group);
    grouped.groups = groups.data();
    grouped.num_groups = int64_t(groups.size());
  } else {
    grouped.num_groups = (m + kernel.group - 1) / kernel.group;
  }
  const ExpansionKernel<T>* expansion_kernel;
  if constexpr (sizeof(T) == 4)
    expansion_kernel = &table.expansion_f32;
  else
    expansion_kernel = &table.expansion_f64;
  const auto expansion = expand(task, *expansion_kernel, num_threads);
  grouped.expanded = expansion ? &expansion->form : nullptr;
  const int64_t step = groups_per_task(grouped.num_groups, num_threads);
  const int64_t num_tasks = (grouped.num_groups + step - 1) / step;
  num_threads = int(std::min<int64_t>(num_threads, num_tasks));
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel.scratch_bytes));
  parallel_for(num_tasks, num_threads, [&](int thread, int64_t index) {
    const int64_t last = std::min(grouped.num_groups, (index + 1) * step);
    kernel.evaluate(grouped, index * step, last, scratch[size_t(thread)].get());
  });
}

template <class T>
TreeCounts run_tree_task(const TreeTask<T>& task, const KernelTable& table, bool point_by_point,
                         int64_t every, int num_threads) {
  const KernelChoice<T> kernel = choose_kernel<T>(table, task.tree.d);
  const int64_t parts = (task.points.num_blocks + kBlocksTogether - 1) / kBlocksTogether;
  const int64_t num_tasks = (parts + every - 1) / every;
  num_threads = int(std::min<int64_t>(num_threads, num_tasks));
  std::vector<Scratch> scratch;
  std::vector<TreeCounts> counts(size_t(std::max(num_threads, 1)));
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel.tree_scratch_bytes(task.tree)));
  parallel_for(num_tasks, num_threads, [&](int thread, int64_t index) {
    const int64_t first = index * every * kBlocksTogether;
    const int64_t last =
        every == 1 ? std::min(first + kBlocksTogether, task.points.num_blocks) : first + 1;
    (point_by_point ? kernel.evaluate_points : kernel.evaluate_blocks)(
        task, first, last, scratch[size_t(thread)].get(), counts[size_t(thread)]);
  });
  for (size_t thread = 1; thread < counts.size(); ++thread) {
    counts[0].pairs += counts[thread].pairs;
    counts[0].aggregated += counts[thread].aggregated;
    counts[0].terms += counts[thread].terms;
    counts[0].term_work += counts[thread].term_work;
    counts[0].boxes += counts[thread].boxes;
  }
  return counts[0];
}

// Instructions, about: a vector of pairs, polynomials, a box. Being wrong about them costs time,
// never digits; bench_skipping.py --suite floor shows how much.
template <class T>
double tree_work(const TreeCounts& counts, int64_t d, int lanes, bool point_by_point) {
  const double whole = 2.0 * double(d) + (sizeof(T) == 4 ? 9 : 15);
  const double pair = point_by_point ? std::max(1.4 * whole, 2.5 * whole - 30) : whole;
  const double box = point_by_point ? 10.0 * double(d) + 280 : 12.0 * double(d) + 300;
  return double(counts.pairs) / lanes * pair + double(counts.term_work) +
         double(counts.boxes) * box;
}

// The work of every pair for so many points, blocks being full.
template <class T>
double every_pair_work(const TreeView<T>& tree, double num_points, int lanes) {
  return 0.97 * num_points / lanes * double(tree.n) *
         (2.0 * double(tree.d) + (sizeof(T) == 4 ? 9 : 15));
}

template <class T>
bool is_tree_hopeless(const TreeTask<T>& task, const KernelTable& table, const PointsView<T>& x) {
  constexpr int64_t kSampledPoints = 24;
  const TreeView<T>& tree = task.tree;
  // Blocks may be less work than points; where ordering is cheap beside every pair, see.
  constexpr int64_t kCheapToOrder = 40000;
  if (tree.d < 8 || tree.cells || tree.n >= kCheapToOrder) return false;
  const int lanes = choose_kernel<T>(table, tree.d).group / 2;
  const int64_t m = std::min(kSampledPoints, x.m);
  std::vector<T> rows, out(static_cast<size_t>(m));
  std::vector<int32_t> order(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) {
    const T* row = x.points + i * x.m / m * x.stride;
    rows.insert(rows.end(), row, row + tree.d);
    order[size_t(i)] = int32_t(i);
  }
  const int64_t begins[] = {0, m};
  TreeTask<T> sample = task;
  sample.points = {rows.data(), order.data(), begins, 1};
  sample.own = nullptr;
  sample.out = out.data();
  const TreeCounts counts = run_tree_task(sample, table, true, 1, 1);
  return tree_work<T>(counts, tree.d, lanes, true) > every_pair_work(tree, double(m), lanes);
}

template <class T>
TreePlan choose_path(const TreeTask<T>& task, const KernelTable& table) {
  constexpr int64_t kSampledBlocks = 12;
  const int64_t d = task.tree.d;
  const int group = choose_kernel<T>(table, d).group, lanes = group / 2;
  const int64_t tasks = (task.points.num_blocks + kBlocksTogether - 1) / kBlocksTogether;
  const int64_t sampled = std::clamp<int64_t>(task.points.num_blocks / 100, 3, kSampledBlocks);
  const int64_t every = std::max<int64_t>(2, tasks / sampled);
  int64_t num_sampled = 0;
  for (int64_t t = 0; t < tasks; t += every)
    num_sampled +=
        task.points.begins[t * kBlocksTogether + 1] - task.points.begins[t * kBlocksTogether];
  TreePlan best{TreePath::kEveryPair, num_sampled, {}, 0};
  double least =
      every_pair_work(task.tree, double((tasks + every - 1) / every) * double(group), lanes);
  for (const TreePath path : {TreePath::kBlocks, TreePath::kPointByPoint}) {
    const bool point_by_point = path == TreePath::kPointByPoint;
    // Cells are for blocks; and in few dimensions blocks are always better.
    if (point_by_point && (task.tree.cells || d < 3)) continue;
    const auto start = std::chrono::steady_clock::now();
    const TreeCounts counts = run_tree_task(task, table, point_by_point, every, 1);
    const double work = tree_work<T>(counts, d, lanes, point_by_point);
    if (work >= least) continue;
    least = work;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = {path, num_sampled, counts, elapsed.count()};
  }
  return best;
}

template TreeCounts run_tree_task<float>(const TreeTask<float>&, const KernelTable&, bool, int64_t,
                                         int);
template TreeCounts run_tree_task<double>(const TreeTask<double>&, const KernelTable&, bool,
                                          int64_t, int);
template bool is_tree_hopeless<float>(const TreeTask<float>&, const KernelTable&,
                                      const PointsView<float>&);
template bool is_tree_hopeless<double>(const TreeTask<double>&, const KernelTable&,
                                       const PointsView<double>&);
template TreePlan choose_path<float>(const TreeTask<float>&, const KernelTable&);
template TreePlan choose_path<double>(const TreeTask<double>&, const KernelTable&);

template <class T>
void run_covariance_task(const CovarianceTask<T>& task, const KernelTable& table, int num_threads) {
  constexpr int64_t kPackedTogether = 256;
  const int64_t m = task.points.m, n = task.centers.m, d = task.d;
  if (m == 0) return;
  const CovarianceKernel<T>* kernel;
  if constexpr (sizeof(T) == 4)
    kernel = &table.covariance_f32;
  else
    kernel = &table.covariance_f64;

  const double work = double(m) * double(n) * (double(d * (d + 5)) / 4 + 4);
  num_threads = worthwhile_threads(work, num_threads);
  const int64_t size = kernel->component_size(d);
  const int64_t padded = (n + kernel->together - 1) / kernel->together * kernel->together;
  const Scratch components = allocate(padded * size * int64_t(sizeof(T)));
  T* packed = static_cast<T*>(components.get());
  parallel_for((padded + kPackedTogether - 1) / kPackedTogether, num_threads,
               [&](int, int64_t index) {
                 const int64_t begin = index * kPackedTogether;
                 kernel->pack(task, begin, std::min(begin + kPackedTogether, padded), packed);
               });

  const int64_t num_groups = (m + kernel->group - 1) / kernel->group;
  const int64_t step = kernel->group * groups_per_task(num_groups, num_threads);
  const int64_t num_tasks = (m + step - 1) / step;
  num_threads = int(std::min<int64_t>(num_threads, num_tasks));
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel->scratch_bytes));
  parallel_for(num_tasks, num_threads, [&](int thread, int64_t index) {
    const int64_t first = index * step;
    kernel->evaluate(task, packed, first, std::min(first + step, m), scratch[size_t(thread)].get());
  });
}

template void run_covariance_task<float>(const CovarianceTask<float>&, const KernelTable&, int);
template void run_covariance_task<double>(const CovarianceTask<double>&, const KernelTable&, int);

template <class T>
void run_posterior_task(const PosteriorTask<T>& task, const KernelTable& table, int num_threads) {
  const int64_t m = task.points.m, d = task.mixture.d;
  const PosteriorKernel<T>* kernel;
  if constexpr (sizeof(T) == 4)
    kernel = &table.posterior_f32;
  else
    kernel = &table.posterior_f64;

  const double work = double(m) * double(task.mixture.n) * (double(d * (d + 7)) / 2 + 8);
  num_threads = worthwhile_threads(work, num_threads);
  const int64_t num_groups = (m + kernel->group - 1) / kernel->group;
  const int64_t step = kernel->group * groups_per_task(num_groups, num_threads);
  const int64_t num_tasks = (m + step - 1) / step;
  num_threads = int(std::min<int64_t>(num_threads, num_tasks));
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel->scratch_bytes(d)));
  parallel_for(num_tasks, num_threads, [&](int thread, int64_t index) {
    const int64_t first = index * step;
    kernel->evaluate(task, first, std::min(first + step, m), scratch[size_t(thread)].get());
  });
}

template void run_posterior_task<float>(const PosteriorTask<float>&, const KernelTable&, int);
template void run_posterior_task<double>(const PosteriorTask<double>&, const KernelTable&, int);

void run_path_task(const PathTask& task, const KernelTable& table, int num_threads) {
  if (task.num_points == 0) return;
  const PathKernel& kernel = table.path;
  const int64_t step = kernel.points_per_chunk;
  const int64_t num_chunks = (task.num_points + step - 1) / step;
  num_threads = int(std::min<int64_t>(num_threads, num_chunks));
  int64_t largest_group = 1;
  for (int64_t i = 0; i < task.num_groups * task.num_points; ++i)
    largest_group = std::max(largest_group, task.groups[2 * i + 1] - task.groups[2 * i]);

  const Scratch linear = allocate(kernel.linear_bytes(task));
  const int64_t bytes = kernel.scratch_bytes(task, largest_group);
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread) scratch.push_back(allocate(bytes));
  const int64_t vectors = (task.layers.m + kernel.inputs_per_vector - 1) / kernel.inputs_per_vector;
  parallel_for(vectors, num_threads, [&](int thread, int64_t vector) {
    kernel.linearise(task, vector, linear.get(), scratch[size_t(thread)].get());
  });
  parallel_for(num_chunks, num_threads, [&](int thread, int64_t chunk) {
    const int64_t last = std::min(task.num_points, (chunk + 1) * step);
    kernel.evaluate(task, linear.get(), chunk * step, last, largest_group,
                    scratch[size_t(thread)].get());
  });
}

void run_replica_task(const ReplicaTask& task, const KernelTable& table, int num_threads) {
  constexpr int64_t kPointsTogether = 16;
  const ReplicaKernel& kernel = table.replicas;
  const int64_t num_chunks = (task.num_points + kPointsTogether - 1) / kPointsTogether;
  num_threads = int(std::min<int64_t>(num_threads, std::max<int64_t>(num_chunks, 1)));
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel.scratch_bytes(task)));
  parallel_for(num_chunks, num_threads, [&](int thread, int64_t chunk) {
    const int64_t last = std::min(task.num_points, (chunk + 1) * kPointsTogether);
    kernel.evaluate(task, chunk * kPointsTogether, last, scratch[size_t(thread)].get());
  });
}

template void run_task<float>(const Task<float>&, const KernelTable&, int);
template void run_task<double>(const Task<double>&, const KernelTable&, int);

}  // namespace noisyflow
