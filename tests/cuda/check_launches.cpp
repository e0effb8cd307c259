// Every launch of csrc/cuda on small problems, against the formulas in double; for sanitizers,
// which a program suits better than a module. Arrays are exactly as large as they must be.

#include <math.h>
#include <stdio.h>

#include <limits>
#include <random>
#include <vector>

#include "cuda/launch.h"

namespace {

using noisyflow::Membership;
using noisyflow::MixtureView;
using noisyflow::PointsView;
namespace cuda = noisyflow::cuda;

int failures = 0;

void check(bool claim, const char* what, int64_t d, int itemsize, double error) {
  if (claim) return;
  printf("FAILED: %s, d = %d, %d bytes, error %g\n", what, static_cast<int>(d), itemsize, error);
  ++failures;
}

template <class T>
struct Problem {
  int64_t m, n, d;
  double noise_std;
  std::vector<T> points, centers, shift;
  std::vector<double> log_terms;  // (m, n)
  std::vector<double> log_density;

  Problem(int64_t m, int64_t n, int64_t d, double noise_std, bool has_weights)
      : m(m), n(n), d(d), noise_std(noise_std), points(m * d), centers(n * d), log_terms(m * n) {
    std::mt19937 generator(static_cast<unsigned>(m + 31 * n + 1009 * d));
    std::uniform_real_distribution<double> uniform(-1, 1);
    std::normal_distribution<double> normal;
    for (T& y : centers) y = static_cast<T>(uniform(generator));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t k = 0; k < d; ++k)
        points[i * d + k] = static_cast<T>(centers[i % n * d + k] + noise_std * normal(generator));
    }
    std::vector<double> log_weights(n, -log(static_cast<double>(n)));
    if (has_weights) {
      shift.resize(n);
      for (int64_t j = 0; j < n; ++j) {
        const bool counts = j % 3 != 1;
        shift[j] = counts ? static_cast<T>(-2 * noise_std * noise_std * log((1.0 + j) / n / n))
                          : noisyflow::kNever<T>;
        log_weights[j] = counts ? -shift[j] / (2 * noise_std * noise_std) : -INFINITY;
      }
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const double normaliser = 0.5 * d * log(2 * M_PI * noise_std * noise_std);
        log_terms[i * n + j] =
            log_weights[j] - square(i, j) / (2 * noise_std * noise_std) - normaliser;
      }
      log_density.push_back(log_sum(i, 0, n, n, n));
    }
  }

  double square(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < d; ++k) {
      const double difference =
          static_cast<double>(points[i * d + k]) - static_cast<double>(centers[j * d + k]);
      sum += difference * difference;
    }
    return sum;
  }

  // Over [begin, end) without [hole_begin, hole_end).
  double log_sum(int64_t i, int64_t begin, int64_t end, int64_t hole_begin,
                 int64_t hole_end) const {
    double top = -INFINITY, sum = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = begin; j < end; ++j) {
        if (j >= hole_begin && j < hole_end) continue;
        const double term = log_terms[i * n + j];
        if (pass == 0) top = fmax(top, term);
        if (pass == 1 && top > -INFINITY) sum += exp(term - top);
      }
    }
    return top + log(sum);
  }

  PointsView<T> points_view() const { return {points.data(), d, m}; }
  MixtureView<T> mixture_view() const {
    return {centers.data(), d, n, d, noise_std, shift.empty() ? nullptr : shift.data()};
  }

  // A generous bound: what is looked for here are errors of memory.
  double allowed() const { return (d + 100) * 60 * std::numeric_limits<T>::epsilon(); }

  void compare(const char* what, const std::vector<T>& ours, const std::vector<double>& exact) {
    double error = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (ours[i] == exact[i]) continue;  // -inf, too
      const double e = fabs(ours[i] - exact[i]) / fmax(1, fabs(exact[i]));
      error = e <= error ? error : e;
    }
    check(error <= allowed(), what, d, sizeof(T), error);
  }
};

struct Workspace {
  std::vector<double> memory;
  cuda::Scratch scratch;

  Workspace(cuda::Kind kind, int itemsize, int64_t m, int64_t n, int64_t d) {
    const int64_t bytes = cuda::workspace_bytes(kind, itemsize, m, n, d);
    memory.assign((bytes + 7) / 8, NAN);
    scratch = {memory.data(), bytes, nullptr};
  }
};

template <class T>
void check_log_density(Problem<T> p, cuda::Path path) {
  Workspace w(cuda::Kind::kLogDensity, sizeof(T), p.m, p.n, p.d);
  std::vector<T> out(p.m, T(NAN));
  cuda::log_density<T>(p.points_view(), p.mixture_view(), out.data(), path, w.scratch);
  p.compare(path == cuda::Path::kTensor ? "tensor" : "log_density", out, p.log_density);
}

template <class T>
void check_skipping(Problem<T> p) {
  Workspace w(cuda::Kind::kSkipping, sizeof(T), p.m, p.n, p.d);
  std::vector<T> out(p.m, T(NAN));
  cuda::skipping_log_density<T>(p.points_view(), p.mixture_view(), 1e-9, out.data(), w.scratch);
  p.compare("skipping", out, p.log_density);
}

template <class T>
void check_blocks(Problem<T> p) {
  const int64_t size = 20, outer = 60;
  std::vector<Membership> membership;
  for (int64_t j = 0; j < p.n; ++j) {
    const auto end = [&](int64_t of) {
      return static_cast<int32_t>(std::min(j / of * of + of, p.n));
    };
    membership.push_back({static_cast<int32_t>(j / size * size), end(size),
                          static_cast<int32_t>(j / outer * outer), end(outer)});
  }
  std::vector<int64_t> own;
  std::vector<double> exact[4];
  for (int64_t i = 0; i < p.m; ++i) {
    const int64_t j = i % p.n;
    own.push_back(j);
    const Membership b = membership[j];
    exact[0].push_back(p.log_terms[i * p.n + j]);
    exact[1].push_back(p.log_sum(i, b.inner_begin, b.inner_end, j, j + 1));
    exact[2].push_back(p.log_sum(i, b.outer_begin, b.outer_end, b.inner_begin, b.inner_end));
    exact[3].push_back(p.log_sum(i, 0, p.n, b.outer_begin, b.outer_end));
  }
  Workspace w(cuda::Kind::kBlockLogSums, sizeof(T), p.m, p.n, p.d);
  std::vector<T> out[4];
  for (auto& part : out) part.assign(p.m, T(NAN));
  cuda::block_log_sums<T>(p.points_view(), p.mixture_view(), own.data(), membership.data(),
                          {out[0].data(), out[1].data(), out[2].data(), out[3].data()}, w.scratch);
  const char* const names[] = {"own", "inner", "outer", "rest"};
  for (int part = 0; part < 4; ++part) p.compare(names[part], out[part], exact[part]);
}

template <class T>
void check_gradients(Problem<T> p) {
  std::vector<T> log_density(p.log_density.begin(), p.log_density.end()), grad_output;
  for (int64_t i = 0; i < p.m; ++i) grad_output.push_back(static_cast<T>(1 + i % 3));
  std::vector<double> points(p.m * p.d), centers(p.n * p.d), mass(p.n), noise(p.m);
  const double variance = p.noise_std * p.noise_std;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      const double share = grad_output[i] * exp(p.log_terms[i * p.n + j] - p.log_density[i]);
      for (int64_t k = 0; k < p.d; ++k) {
        const double pull = share / variance *
                            (static_cast<double>(p.centers[j * p.d + k]) - p.points[i * p.d + k]);
        points[i * p.d + k] += pull;
        centers[j * p.d + k] -= pull;
      }
      const double normaliser = 0.5 * p.d * log(2 * M_PI * variance);
      mass[j] +=
          grad_output[i] * exp(-p.square(i, j) / (2 * variance) - normaliser - p.log_density[i]);
      noise[i] += share * (p.square(i, j) / variance - p.d) / p.noise_std;
    }
  }
  Workspace w(cuda::Kind::kGradients, sizeof(T), p.m, p.n, p.d);
  std::vector<T> out_points(p.m * p.d, T(NAN)), out_centers(p.n * p.d, T(NAN)), out_mass(p.n);
  std::vector<double> out_noise(p.m, NAN);
  cuda::gradients<T>(p.points_view(), p.mixture_view(), log_density.data(), grad_output.data(),
                     {out_points.data(), out_centers.data(), out_mass.data(), out_noise.data()},
                     w.scratch);
  p.compare("gradient of points", out_points, points);
  p.compare("gradient of centers", out_centers, centers);
  p.compare("gradient of weights", out_mass, mass);
  p.compare("gradient of noise_std", std::vector<T>(out_noise.begin(), out_noise.end()), noise);
}

template <class T>
void check_all() {
  for (int64_t d : {1, 3, 10, 40}) {
    for (bool has_weights : {false, true}) {
      check_log_density(Problem<T>(70, 300, d, 0.5, has_weights), cuda::Path::kDirect);
    }
    check_skipping(Problem<T>(70, 300, d, 0.05, true));
    check_blocks(Problem<T>(70, 150, d, 0.5, false));
    check_gradients(Problem<T>(70, 150, d, 0.5, true));
  }
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  check_log_density(Problem<float>(20, 140, 40, 0.5, true), cuda::Path::kTensor);
  check_log_density(Problem<float>(20, 70, 70, 0.2, false), cuda::Path::kTensor);
  return failures != 0;
}
