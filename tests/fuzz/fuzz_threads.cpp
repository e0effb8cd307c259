// Every kernel with 1, 2, 3 and 7 threads, alone and from several callers at once, without Python:
// for the thread sanitizer, which then knows every lock there is. tests/fuzz/run.sh builds it.
//
//     fuzz_threads CASES [SEED]
//
// Whatever the number of threads, an answer is the same bit for bit; the first difference is
// printed with its case, and ends the program with 1. A race ends it by the sanitizer's own report.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/parallel.h"
#include "../../csrc/spatial/center_tree.h"
#include "../../csrc/spatial/kd_order.h"

using namespace noisyflow;

namespace {

constexpr int kThreads[] = {2, 3, 7};
constexpr int kCallers = 3;

using Random = std::mt19937_64;

int64_t integer(Random& random, int64_t from, int64_t to) {
  return std::uniform_int_distribution<int64_t>(from, to)(random);
}

template <class T>
std::vector<T> normals(Random& random, int64_t count, double scale = 1) {
  std::normal_distribution<double> normal;
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) x = T(scale * normal(random));
  return out;
}

// Bits, so that NaN equals itself.
struct Bytes {
  std::vector<unsigned char> bytes;

  template <class T>
  void add(const std::vector<T>& values) {
    const auto* data = reinterpret_cast<const unsigned char*>(values.data());
    bytes.insert(bytes.end(), data, data + values.size() * sizeof(T));
  }
};

// What answer(threads) is with one thread it is with more, and beside others.
template <class Answer>
void check_same(const char* name, Answer answer) {
  const Bytes one = answer(1);
  auto require_same = [&](const Bytes& other, int threads) {
    if (one.bytes != other.bytes)
      throw std::runtime_error(std::string(name) + ": another answer with " +
                               std::to_string(threads) + " threads");
  };
  for (int threads : kThreads) require_same(answer(threads), threads);
  std::vector<Bytes> found(kCallers);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c)
    callers.emplace_back([&, c] { found[size_t(c)] = answer(kThreads[c]); });
  for (std::thread& caller : callers) caller.join();
  for (int c = 0; c < kCallers; ++c) require_same(found[size_t(c)], kThreads[c]);
}

template <class T>
struct Mixture {
  int64_t m, n, d;
  double noise_std;
  std::vector<T> points, centers, weights, shifts;
  PointsView<T> x;
  MixtureView<T> y;

  Mixture(Random& random, int64_t most_m, int64_t most_n, int64_t most_d)
      : m(integer(random, 1, most_m)),
        n(integer(random, 1, most_n)),
        d(integer(random, 1, most_d)),
        noise_std(std::exp2(double(integer(random, -6, 2)))),
        points(normals<T>(random, m * d)),
        centers(normals<T>(random, n * d)) {
    if (integer(random, 0, 1)) {
      for (int64_t j = 0; j < n; ++j) {
        weights.push_back(T(integer(random, 0, 3)) / T(n));
        const double w = double(weights.back());
        shifts.push_back(w > 0 ? T(-2 * noise_std * noise_std * std::log(w)) : kNever<T>);
      }
      weights[0] = T(1) / T(n);
      shifts[0] = T(-2 * noise_std * noise_std * std::log(double(weights[0])));
    }
    x = {points.data(), d, m};
    y = {centers.data(), d, n, d, noise_std, shifts.empty() ? nullptr : shifts.data()};
  }
  Mixture(const Mixture&) = delete;

  std::vector<T> log_density(const KernelTable& table, int threads) const {
    std::vector<T> out(static_cast<size_t>(m));
    Task<T> task{};
    task.points = x;
    task.mixture = y;
    task.out[kInner] = out.data();
    run_task(task, table, threads);
    return out;
  }
};

template <class T>
void check_log_density(Random& random, const KernelTable& table) {
  const bool is_expanded = integer(random, 0, 9) == 0;
  Mixture<T> mixture(random, 300, 300, 40);
  if (is_expanded) {
    mixture.m = mixture.x.m = 260;
    mixture.n = mixture.y.n = 1030;
    mixture.d = mixture.x.stride = mixture.y.stride = mixture.y.d = 17;
    mixture.noise_std = mixture.y.noise_std = 2;
    mixture.points = normals<T>(random, 260 * 17);
    mixture.centers = normals<T>(random, 1030 * 17);
    mixture.x.points = mixture.points.data();
    mixture.y.centers = mixture.centers.data();
    mixture.y.weight_shift = nullptr;
  }
  check_same("log_density", [&](int threads) {
    Bytes out;
    out.add(mixture.log_density(table, threads));
    return out;
  });
}

template <class T>
void check_block_sums(Random& random, const KernelTable& table) {
  const Mixture<T> mixture(random, 300, 300, 20);
  const int64_t size = integer(random, 1, mixture.n);
  std::vector<Membership> members;
  for (int64_t j = 0; j < mixture.n; ++j) {
    const int64_t begin = j / size * size, end = std::min(begin + size, mixture.n);
    members.push_back({int32_t(begin), int32_t(end), int32_t(begin), int32_t(end)});
  }
  std::vector<int64_t> own;
  for (int64_t i = 0; i < mixture.m; ++i) own.push_back(i * mixture.n / mixture.m);
  check_same("block_log_sums", [&](int threads) {
    std::vector<T> parts[kNumParts];
    Task<T> task{};
    task.points = mixture.x;
    task.mixture = mixture.y;
    task.own = own.data();
    task.membership = members.data();
    task.include_rest = true;
    for (int part = 0; part < kNumParts; ++part) {
      parts[part].resize(own.size());
      task.out[part] = parts[part].data();
    }
    run_task(task, table, threads);
    Bytes out;
    for (const std::vector<T>& part : parts) out.add(part);
    return out;
  });
}

// One tree, asked by all callers; and trees that are built beside one another.
template <class T>
void check_tree(Random& random, const KernelTable& table) {
  const Mixture<T> mixture(random, 600, 2000, 6);
  const TreeOptions options{integer(random, 0, 1) == 1, 1e-6};
  const CenterTree<T> tree(mixture.y, options, table, 1);
  check_same("tree", [&](int threads) {
    const int group = choose_kernel<T>(table, mixture.d).group;
    const KdOrder<T> order(mixture.points.data(), mixture.d, mixture.m, mixture.d, group, threads);
    const std::vector<int64_t> begins = order.leaf_begins();
    std::vector<T> densities(static_cast<size_t>(mixture.m));
    const TreeTask<T> task{
        tree.view(),
        {order.rows.data(), order.order.data(), begins.data(), int64_t(begins.size()) - 1},
        nullptr,
        mixture.noise_std,
        1e-6,
        densities.data()};
    choose_path(task, table);
    Bytes out;
    for (const bool point_by_point : {false, true}) {
      if (point_by_point && options.has_cells) continue;  // cells are for blocks
      const TreeCounts counts = run_tree_task(task, table, point_by_point, 1, threads);
      out.add(std::vector<int64_t>{counts.pairs, counts.boxes, counts.terms});
      out.add(densities);
    }
    const CenterTree<T> other(mixture.y, options, table, threads);
    const TreeView<T> view = other.view();
    out.add(std::vector<int32_t>(view.order, view.order + view.n));
    out.add(std::vector<int64_t>{other.num_cells(), other.num_bytes()});
    return out;
  });
}

template <class T>
void check_gradients(Random& random, const KernelTable& table) {
  const Mixture<T> mixture(random, 300, 300, 40);
  const int64_t m = mixture.m, n = mixture.n, d = mixture.d;
  const std::vector<T> densities = mixture.log_density(table, 1);
  const std::vector<T> gains = normals<T>(random, m);
  const double lost = integer(random, 0, 1) ? 1e-6 : 0;
  check_same("gradients", [&](int threads) {
    std::vector<T> of_points(size_t(m * d)), of_centers(size_t(n * d)), of_weights(size_t(n), 0);
    std::vector<double> of_noise(1);
    run_gradient_task<T>(
        {mixture.x, mixture.y, mixture.weights.empty() ? nullptr : mixture.weights.data(),
         densities.data(), gains.data(), lost, of_points.data(), of_centers.data(),
         of_weights.data(), of_noise.data()},
        table, threads);
    Bytes out;
    for (const auto& part : {of_points, of_centers, of_weights}) out.add(part);
    out.add(of_noise);
    return out;
  });
}

template <class T>
void check_moments(Random& random, const KernelTable& table) {
  const Mixture<T> mixture(random, 200, 200, 12);
  const int64_t m = mixture.m, d = mixture.d;
  check_same("posterior_moments", [&](int threads) {
    std::vector<T> densities(static_cast<size_t>(m)), mean(size_t(m * d)),
        square(size_t(m * d * d));
    run_posterior_task<T>({mixture.x, mixture.y, 1.0, densities.data(), mean.data(), square.data()},
                          table, threads);
    Bytes out;
    for (const auto& part : {densities, mean, square}) out.add(part);
    return out;
  });
}

template <class T>
void check_covariance(Random& random, const KernelTable& table) {
  const Mixture<T> mixture(random, 200, 600, 10);
  const int64_t d = mixture.d;
  std::vector<T> factors = normals<T>(random, mixture.n * d * d, 0.2);
  for (int64_t j = 0; j < mixture.n; ++j)
    for (int64_t r = 0; r < d; ++r)
      for (int64_t k = r; k < d; ++k) factors[size_t((j * d + r) * d + k)] = T(r == k);
  check_same("covariance_log_density", [&](int threads) {
    std::vector<T> densities(static_cast<size_t>(mixture.m));
    CovarianceTask<T> task{};
    task.points = mixture.x;
    task.centers = {mixture.centers.data(), d, mixture.n};
    task.d = d;
    task.whitening = factors.data();
    task.out = densities.data();
    run_covariance_task(task, table, threads);
    Bytes out;
    out.add(densities);
    return out;
  });
}

void check_paths(Random& random, const KernelTable& table) {
  const int64_t dims[] = {integer(random, 1, 5), integer(random, 1, 5), integer(random, 1, 4)};
  const int64_t d = dims[2], length = dims[0] + dims[1];
  const int64_t m = integer(random, 1, 30), N = integer(random, 1, 60), K = integer(random, 4, 20);
  const std::vector<double> first = normals<double>(random, m * dims[0]);
  const std::vector<double> w1 = normals<double>(random, dims[1] * dims[0]);
  const std::vector<double> w2 = normals<double>(random, d * dims[1]);
  const std::vector<double> b1 = normals<double>(random, dims[1]), b2 = normals<double>(random, d);
  const double* const weights[] = {nullptr, w1.data(), w2.data()};
  const double* const biases[] = {nullptr, b1.data(), b2.data()};
  const NoisyLayersView layers{
      3, dims, weights, biases, Activation(integer(random, 0, 4)), 0.2, first.data(), m};
  const std::vector<double> points = normals<double>(random, N * d);
  const std::vector<double> path = normals<double>(random, N * length);
  std::vector<int64_t> own, groups, offsets;
  for (int64_t i = 0; i < N; ++i) {
    own.push_back(integer(random, 0, m - 1));
    groups.insert(groups.end(), {own.back(), own.back() + 1});
    offsets.push_back(integer(random, 0, 5));
  }
  for (int64_t i = 0; i < N; ++i) groups.insert(groups.end(), {0, m});
  std::vector<double> uniforms;
  for (int64_t i = 0; i < N * (K + 2); ++i)
    uniforms.push_back(std::uniform_real_distribution<double>()(random));
  const std::vector<double> draws = normals<double>(random, N * K * (length + d));
  check_same("path_importance", [&](int threads) {
    std::vector<double> low(size_t(2 * N)), high(size_t(2 * N)), effective(size_t(2 * N));
    run_path_task({layers, N, 2, K, points.data(), own.data(), path.data(), groups.data(),
                   uniforms.data(), draws.data(), low.data(), high.data(), effective.data()},
                  table, threads);
    Bytes out;
    for (const auto& part : {low, high, effective}) out.add(part);
    return out;
  });
  const std::vector<double> columns = normals<double>(random, length * (K + 5));
  check_same("path_replicas", [&](int threads) {
    std::vector<double> low(static_cast<size_t>(N)), high(low), effective(low);
    run_replica_task({layers, N, K, K + 5, points.data(), own.data(), path.data(), columns.data(),
                      offsets.data(), low.data(), high.data(), effective.data()},
                     table, threads);
    Bytes out;
    for (const auto& part : {low, high, effective}) out.add(part);
    return out;
  });
}

// Targets are forced while others ask for them; an exception in one thread reaches its caller.
void check_dispatch(Random& random) {
  const std::string name =
      available_target(int(integer(random, 0, num_available_targets() - 1))).name;
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c)
    callers.emplace_back([&, c] {
      for (int k = 0; k < 20; ++k) {
        force_target(c == 0 ? name.c_str() : nullptr);
        if (std::strlen(active_target().name) == 0) std::abort();
      }
    });
  for (std::thread& caller : callers) caller.join();
  force_target(nullptr);
  const int64_t bad = integer(random, 0, 40);
  for (int threads : {1, 2, 3, 7}) {
    bool is_caught = false;
    try {
      parallel_for(41, threads, [&](int, int64_t task) {
        if (task == bad) throw std::runtime_error("planned");
      });
    } catch (const std::runtime_error&) {
      is_caught = true;
    }
    if (!is_caught) throw std::runtime_error("an exception was lost");
  }
}

template <class T>
void run_case(Random& random, const KernelTable& table, int64_t kind) {
  switch (kind) {
    case 0:
      return check_log_density<T>(random, table);
    case 1:
      return check_block_sums<T>(random, table);
    case 2:
      return check_tree<T>(random, table);
    case 3:
      return check_gradients<T>(random, table);
    case 4:
      return check_moments<T>(random, table);
    case 5:
      return check_covariance<T>(random, table);
    case 6:
      return check_paths(random, table);
    default:
      return check_dispatch(random);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 100;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  for (int64_t c = 0; c < cases; ++c) {
    std::seed_seq seeds{seed, uint64_t(c)};
    Random random(seeds);
    const KernelTable& table =
        available_target(int(integer(random, 0, num_available_targets() - 1)));
    const int64_t kind = integer(random, 0, 7);
    try {
      if (integer(random, 0, 1))
        run_case<float>(random, table, kind);
      else
        run_case<double>(random, table, kind);
    } catch (const std::exception& error) {
      std::printf("FAILED: case %lld, seed %llu, %s: %s\n", static_cast<long long>(c),
                  static_cast<unsigned long long>(seed), table.name, error.what());
      return 1;
    }
  }
  std::printf("%lld cases of 1, 2, 3 and 7 threads, 3 callers: no difference\n",
              static_cast<long long>(cases));
  return 0;
}
