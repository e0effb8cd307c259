#include "polynomials.h"

#include <cstddef>

#include "../core/views.h"

namespace noisyflow {

namespace {

// C(order - 1 + d, d) for d <= kMaxCellDims and order <= kMaxOrder, cut off at kFar.
struct Counts {
  static constexpr int64_t kFar = int64_t(1) << 40;
  int64_t at[kMaxCellDims + 1][kMaxOrder + 1];

  constexpr Counts() : at() {
    for (int d = 0; d <= kMaxCellDims; ++d)
      for (int order = 0; order <= kMaxOrder; ++order) {
        const int64_t count = order == 0             ? 0
                              : order == 1 || d == 0 ? 1
                                                     : at[d - 1][order] + at[d][order - 1];
        at[d][order] = count < kFar ? count : kFar;
      }
  }
};
constexpr Counts kCounts;

}  // namespace

int64_t num_coefficients(int64_t d, int order) { return kCounts.at[d][order]; }

int graded_below(int64_t d) {
  if (d < 4) return 0;
  int order = 2;
  while (order + 2 <= kMaxOrder && (order + d + 1) * (order + d) < 6 * d * (d - 1) &&
         num_coefficients(d, order + 1) <= kMaxMonomials)
    order += 2;
  return order + 1;
}

double polynomial_work(int64_t d, int order) {
  const double count = double(num_coefficients(d, order));
  if (order < graded_below(d)) return 2.5 * count + 20 * double(order) * double(d);
  // A triangle of two variables costs a branch that is guessed wrong and a call.
  return 1.5 * count + (d < 3 ? 0 : 25 * double(num_coefficients(d - 2, order)));
}

int64_t num_ladder_coefficients(int64_t d, int max_order) {
  int64_t count = 0;
  for (int order = 2; order <= max_order; order += 2) count += num_coefficients(d, order);
  return count;
}

namespace {

// Calls visit(powers) for all multi-indices of total degree below order, in nested order.
template <class Visit>
void for_each_index(int64_t d, int order, Visit visit) {
  std::vector<int> powers(std::size_t(d), 0);
  int degree = 0;
  for (;;) {
    visit(powers);
    std::size_t k = powers.size() - 1;
    for (; degree + 1 == order; --k) {  // no room: the last power back to 0, the one before up
      while (k > 0 && powers[k] == 0) --k;
      degree -= powers[k];
      powers[k] = 0;
      if (k == 0) return;
    }
    ++powers[k];
    ++degree;
  }
}

// The nested sums of num_coefficients() telescope.
int32_t place_of(const std::vector<int>& powers, int order) {
  int64_t place = 0, d = int64_t(powers.size());
  for (int64_t k = 0; k < d; ++k) {
    const int left = order - powers[std::size_t(k)];
    place += kCounts.at[d - k][order] - kCounts.at[d - k][left];
    order = left;
  }
  return int32_t(place);
}

// The nested place of every graded coefficient.
std::vector<int32_t> graded_places(int64_t d, int order) {
  std::vector<int32_t> places;
  std::vector<std::vector<int>> before{std::vector<int>(std::size_t(d), 0)};  // of one degree less
  std::vector<std::size_t> starts(std::size_t(d), 0);  // of those without x_0 .. x_k-1
  places.push_back(place_of(before[0], order));
  for (int degree = 1; degree < order; ++degree) {
    std::vector<std::vector<int>> now;
    std::vector<std::size_t> next;
    for (int64_t k = 0; k < d; ++k) {
      next.push_back(now.size());
      for (std::size_t i = starts[std::size_t(k)]; i < before.size(); ++i) {
        now.push_back(before[i]);
        ++now.back()[std::size_t(k)];
        places.push_back(place_of(now.back(), order));
      }
    }
    before.swap(now);
    starts.swap(next);
  }
  return places;
}

}  // namespace

HermiteToMonomials::HermiteToMonomials(int64_t d, int max_order) {
  // He_{a+1} = x He_a - a He_{a-1}
  const int p = max_order;
  std::vector<std::vector<double>> hermite(std::size_t(p), std::vector<double>(std::size_t(p), 0));
  hermite[0][0] = 1;
  for (int a = 1; a < p; ++a)
    for (int b = 0; b < p; ++b)
      hermite[std::size_t(a)][std::size_t(b)] =
          (b > 0 ? hermite[std::size_t(a - 1)][std::size_t(b - 1)] : 0) -
          (a > 1 ? (a - 1) * hermite[std::size_t(a - 2)][std::size_t(b)] : 0);
  for (int order = 2; order <= max_order; order += 2) {
    Rung rung;
    for_each_index(d, order, [&](const std::vector<int>& powers) {
      rung.places.push_back(place_of(powers, max_order));
      double factorial = 1;
      for (int power : powers)
        for (int a = 2; a <= power; ++a) factorial *= a;
      rung.inverse_factorials.push_back(1 / factorial);
    });
    // He_a is monic: its leading coefficient stays where it is, the others go to lower powers,
    // which come earlier, so that a coefficient has been passed on before it is added to.
    for (int64_t k = 0; k < d; ++k)
      for_each_index(d, order, [&](std::vector<int> powers) {
        const int32_t from = place_of(powers, order);
        const int a = powers[std::size_t(k)];
        for (int b = a - 2; b >= 0; b -= 2) {
          powers[std::size_t(k)] = b;
          rung.steps.push_back(
              {place_of(powers, order), from, hermite[std::size_t(a)][std::size_t(b)]});
        }
      });
    if (order < graded_below(d)) rung.graded = graded_places(d, order);
    rungs_.push_back(std::move(rung));
  }
}

template <class T>
void HermiteToMonomials::write_ladder(const double* moments, T* out) const {
  std::vector<double> work;
  for (const Rung& rung : rungs_) {
    work.clear();
    for (std::size_t i = 0; i < rung.places.size(); ++i)
      work.push_back(moments[rung.places[i]] * rung.inverse_factorials[i]);
    for (const Step& step : rung.steps)
      work[std::size_t(step.to)] += step.factor * work[std::size_t(step.from)];
    if (rung.graded.empty())
      for (double coefficient : work) *out++ = T(coefficient);
    else
      for (int32_t place : rung.graded) *out++ = T(work[std::size_t(place)]);
  }
}

template void HermiteToMonomials::write_ladder<float>(const double*, float*) const;
template void HermiteToMonomials::write_ladder<double>(const double*, double*) const;

}  // namespace noisyflow
