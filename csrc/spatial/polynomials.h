// Polynomials in d variables of total degree below an order: how their coefficients lie in memory,
// and how Taylor moments of a cell of Gaussians become them.
//
// Nested coefficients, for a Horner scheme: for the first variable's powers 0, 1, .. in turn, a
// polynomial in the other variables whose order is smaller by that power.
// Graded coefficients, for many variables and low orders: degree by degree, and within degree g for
// x_0, x_1, .. in turn: x_k times the monomials of degree g - 1 in x_k, x_k+1, .., which are the
// last ones of that degree.

#pragma once
#include <cstdint>
#include <vector>

namespace noisyflow {

// Number of coefficients, C(order - 1 + d, d) or 2^40 if that is less; d <= kMaxCellDims and
// order <= kMaxOrder.
int64_t num_coefficients(int64_t d, int order);

// Below this order polynomials are graded: where the inner two variables of the nested form, which
// are unrolled, hold few coefficients on average.
int graded_below(int64_t d);

// Instructions per vector of points, about.
double polynomial_work(int64_t d, int order);

// All coefficients of orders 2, 4, .. max_order.
int64_t num_ladder_coefficients(int64_t d, int max_order);

// From the moments of a cell, M_a = sum_j w_j u_j^a for multi-indices |a| < order, to the monomial
// coefficients of sum_a M_a / a! He_a(x), He being the probabilists' Hermite polynomials: the
// cell's sum of exp(-|x - u_j|^2 / 2), divided by exp(-|x|^2 / 2) and truncated.
class HermiteToMonomials {
 public:
  HermiteToMonomials(int64_t d, int max_order);

  // moments: nested for max_order. Writes the ladder of orders 2, 4, .. max_order.
  template <class T>
  void write_ladder(const double* moments, T* out) const;

 private:
  // In place: coefficient[to] += factor * coefficient[from], in this order.
  struct Step {
    int32_t to, from;
    double factor;
  };
  struct Rung {
    std::vector<int32_t> places;  // of its coefficients among those of max_order
    std::vector<int32_t> graded;  // the nested place of each graded coefficient; empty: nested
    std::vector<double> inverse_factorials;  // 1 / a!
    std::vector<Step> steps;
  };
  std::vector<Rung> rungs_;
};

}  // namespace noisyflow
