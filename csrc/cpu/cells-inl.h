// Cells of centers as polynomials: their shape and error, their moments, and how to evaluate them.
// docs/numerics.md, section 7, derives the error; spatial/polynomials.h says how coefficients lie.
// Rules of target files: as in log_density-inl.h.

#pragma once
#include "log_density-inl.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

// -- polynomials ---------------------------------------------------------------------------------

// C(order - 1 + d, d), the number of coefficients of d variables, at most kMaxCoefficients.
struct CoefficientCounts {
  int32_t at[kMaxCellDims + 1][kMaxOrder + 1];

  constexpr CoefficientCounts() : at() {
    for (int d = 0; d <= kMaxCellDims; ++d)
      for (int order = 0; order <= kMaxOrder; ++order) {
        const int64_t count = order == 0             ? 0
                              : order == 1 || d == 0 ? 1
                                                     : int64_t(at[d - 1][order]) + at[d][order - 1];
        at[d][order] = int32_t(count < kMaxCoefficients ? count : kMaxCoefficients);
      }
  }
};
constexpr CoefficientCounts kCoefficientCounts;

// A polynomial of total degree below N in two variables: rows of N, N - 1, .. 1 coefficients. All
// unrolled: rows are short, and as loops they would mostly be branches that are guessed wrong.
template <class T, int Q, int N>
__attribute__((noinline)) void triangle(const T* coefficients, const Vec<T> (*x)[Q], Vec<T>* out) {
  Vec<T> sum[Q];
#pragma GCC unroll 16
  for (int a = N - 1; a >= 0; --a) {
    const T* row = coefficients + a * N - a * (a - 1) / 2;
    Vec<T> inner[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) inner[q] = broadcast<T>(row[N - a - 1]);
#pragma GCC unroll 16
    for (int b = N - a - 2; b >= 0; --b)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) inner[q] = inner[q] * x[1][q] + row[b];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) sum[q] = a == N - 1 ? inner[q] : sum[q] * x[0][q] + inner[q];
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) out[q] = sum[q];
}

// The same for any order.
template <class T, int Q>
void any_triangle(const T* coefficients, const Vec<T> (*x)[Q], int order, Vec<T>* out) {
  constexpr int kUnrolled = 12;
  int rest = 0;  // rows before those that are unrolled
  const T* row = coefficients;
  for (; order - rest > kUnrolled; ++rest) row += order - rest;
  switch (order - rest) {
    case 1:
      triangle<T, Q, 1>(row, x, out);
      break;
    case 2:
      triangle<T, Q, 2>(row, x, out);
      break;
    case 3:
      triangle<T, Q, 3>(row, x, out);
      break;
    case 4:
      triangle<T, Q, 4>(row, x, out);
      break;
    case 5:
      triangle<T, Q, 5>(row, x, out);
      break;
    case 6:
      triangle<T, Q, 6>(row, x, out);
      break;
    case 7:
      triangle<T, Q, 7>(row, x, out);
      break;
    case 8:
      triangle<T, Q, 8>(row, x, out);
      break;
    case 9:
      triangle<T, Q, 9>(row, x, out);
      break;
    case 10:
      triangle<T, Q, 10>(row, x, out);
      break;
    case 11:
      triangle<T, Q, 11>(row, x, out);
      break;
    case 12:
      triangle<T, Q, 12>(row, x, out);
      break;
  }
  for (int a = rest - 1; a >= 0; --a) {
    row -= order - a;
    Vec<T> inner[Q];
    for (int q = 0; q < Q; ++q) inner[q] = broadcast<T>(row[order - a - 1]);
    for (int b = order - a - 2; b >= 0; --b)
      for (int q = 0; q < Q; ++q) inner[q] = inner[q] * x[1][q] + row[b];
    for (int q = 0; q < Q; ++q) out[q] = out[q] * x[0][q] + inner[q];
  }
}

// A polynomial of total degree below `order` in `dims` variables, nested as in polynomials.h.
template <class T, int Q>
void nested_horner(const T* coefficients, const Vec<T> (*x)[Q], int dims, int order, Vec<T>* out) {
  if (dims == 2) return any_triangle<T, Q>(coefficients, x, order, out);
  Vec<T> inner[Q];
  // From the highest power of the first variable down; its rows lie at the end.
  const T* row = coefficients + kCoefficientCounts.at[dims][order];
  for (int a = order - 1; a >= 0; --a) {
    row -= kCoefficientCounts.at[dims - 1][order - a];
    if (dims == 1)
      for (int q = 0; q < Q; ++q) inner[q] = broadcast<T>(row[0]);
    else
      nested_horner<T, Q>(row, x + 1, dims - 1, order - a, inner);
    for (int q = 0; q < Q; ++q) out[q] = a == order - 1 ? inner[q] : out[q] * x[0][q] + inner[q];
  }
}

// A polynomial of total degree below `order`, graded as in polynomials.h. The monomials of the last
// degree are not formed: their coefficients are summed before the last factor.
template <class T, int Q>
void graded_sum(const T* coefficients, const Vec<T> (*x)[Q], int dims, int order, Vec<T>* out) {
  Vec<T> monomials[kMaxMonomials][Q], sum[Q];
  int32_t starts[kMaxCellDims], next[kMaxCellDims];
  for (int q = 0; q < Q; ++q) {
    monomials[0][q] = broadcast<T>(T(1));
    sum[q] = broadcast<T>(coefficients[0]);
  }
  for (int k = 0; k < dims; ++k) starts[k] = 0;
  int32_t begin = 0, end = 1;  // of the degree before
  const T* c = coefficients + 1;
  for (int degree = 1; degree < order; ++degree) {
    int32_t at = end;
    for (int k = 0; k < dims; ++k) {
      const bool is_last = degree == order - 1;
      next[k] = at - end;
      Vec<T> part[Q], factor[Q];
      for (int q = 0; q < Q; ++q) {
        part[q] = Vec<T>{};
        factor[q] = x[k][q];
      }
      if (is_last) {
        for (int32_t i = begin + starts[k]; i < end; ++i, ++c)
          for (int q = 0; q < Q; ++q) part[q] += monomials[i][q] * *c;
        for (int q = 0; q < Q; ++q) sum[q] += part[q] * factor[q];
      } else {
        for (int32_t i = begin + starts[k]; i < end; ++i, ++c, ++at)
          for (int q = 0; q < Q; ++q) {
            const Vec<T> monomial = monomials[i][q] * factor[q];
            monomials[at][q] = monomial;
            part[q] += monomial * *c;
          }
        for (int q = 0; q < Q; ++q) sum[q] += part[q];
      }
    }
    for (int k = 0; k < dims; ++k) starts[k] = next[k];
    begin = end;
    end = at;
  }
  for (int q = 0; q < Q; ++q) out[q] = sum[q];
}

// The rows of kLanes centers in vectors, minus the centroid; rows beyond the last repeat it.
template <class D, class T>
void center_columns(const T* rows, int64_t count, int64_t d, const T* centroid, Vec<D>* u) {
  for (int l = 0; l < kLanes<D>; ++l) {
    const T* row = rows + (l < count ? l : count - 1) * d;
    for (int64_t k = 0; k < d; ++k) u[k][l] = D(row[k]) - D(centroid[k]);
  }
}

// Their weights; 0 beyond the last.
template <class D, class T>
Vec<D> center_weights(const T* weight_shift, int64_t count, double noise_std) {
  Vec<D> weights = Vec<D>{};
  for (int l = 0; l < kLanes<D> && l < count; ++l)
    weights[l] =
        weight_shift ? D(exp(-double(weight_shift[l]) / (2 * noise_std * noise_std))) : D(1);
  return weights;
}

template <class T>
void cell_shape(const T* rows, int64_t count, int64_t d, double noise_std, const T* weight_shift,
                T* centroid, Cell* cell) {
  constexpr int kLanesD = kLanes<double>;
  Vec<double> u[kMaxCellDims], means[kMaxCellDims], weights = Vec<double>{};
  for (int64_t k = 0; k < d; ++k) means[k] = Vec<double>{};
  for (int64_t i = 0; i < count; i += kLanesD) {
    const Vec<double> w =
        center_weights<double>(weight_shift ? weight_shift + i : nullptr, count - i, noise_std);
    center_columns<double>(rows + i * d, count - i, d, rows, u);  // from the first: small numbers
    weights += w;
    for (int64_t k = 0; k < d; ++k) means[k] += w * u[k];
  }
  double weight = 0, drift = 0;
  for (int l = 0; l < kLanesD; ++l) weight += weights[l];
  cell->weight = weight;
  // Lighter cells would be lost beside the offset, which knows nothing of weights.
  if (!(weight > (sizeof(T) == 4 ? 1e-25 : 1e-250))) {
    cell->weight = 0;
    return;
  }
  cell->log2_weight = log2(weight);
  const double per_variance = 1 / (noise_std * noise_std);
  for (int64_t k = 0; k < d; ++k) {
    double mean = 0;
    for (int l = 0; l < kLanesD; ++l) mean += means[k][l];
    mean = double(rows[k]) + mean / weight;
    centroid[k] = T(mean);
    drift += (mean - double(centroid[k])) * (mean - double(centroid[k])) * per_variance;
  }
  // The centroid is rounded: what that moves Jensen's bound is at most drift (1 + |x|^2), which the
  // evaluation allows for, if it is small.
  drift = sqrt(drift);

  Vec<double> largest = Vec<double>{}, powers[kMaxOrder / 2];
  for (int p = 0; p < kMaxOrder / 2; ++p) powers[p] = Vec<double>{};
  for (int64_t i = 0; i < count; i += kLanesD) {
    center_columns<double>(rows + i * d, count - i, d, centroid, u);
    Vec<double> square = Vec<double>{};
    for (int64_t k = 0; k < d; ++k) square += u[k] * u[k];
    square *= per_variance * (1 + 1e-6);
    Vec<double> power =
        center_weights<double>(weight_shift ? weight_shift + i : nullptr, count - i, noise_std);
    largest = power > 0 && square > largest ? square : largest;
    for (int p = 0; p < kMaxOrder / 2; ++p) {
      power *= square;
      powers[p] += power;
    }
  }
  double most = 0, log2_root = 0;  // of sqrt(p!)
  for (int l = 0; l < kLanesD; ++l) most = largest[l] > most ? largest[l] : most;
  cell->radius = drift < 1e-3 ? sqrt(most) : double(INFINITY);
  for (int p = 0; p < kMaxOrder / 2; ++p) {
    double mean = 0;
    for (int l = 0; l < kLanesD; ++l) mean += powers[p][l];
    mean /= weight;
    if (p == 0) cell->mean_square = mean + drift;
    log2_root += 0.5 * log2(double(2 * p + 1) * double(2 * p + 2));
    cell->bits[p] = float(log2_root - log2(mean) - 0.13);  // log2(1.0865) = 0.1197
  }
}

// Moments of two variables, w u^a v^b for a + b < N, for V vectors of centers: as triangle().
template <class T, int V, int N>
__attribute__((noinline)) void triangle_moments(const Vec<T> (*u)[V], const Vec<T>* weights,
                                                Vec<T>* sums) {
  Vec<T> outer[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) outer[v] = weights[v];
#pragma GCC unroll 16
  for (int a = 0; a < N; ++a) {
    Vec<T>* row = sums + a * N - a * (a - 1) / 2;
    Vec<T> product[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) product[v] = outer[v];
#pragma GCC unroll 16
    for (int b = 0; b < N - a; ++b) {
      Vec<T> sum = product[0];
#pragma GCC unroll 8
      for (int v = 1; v < V; ++v) sum += product[v];
      row[b] += sum;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) product[v] *= u[1][v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) outer[v] *= u[0][v];
  }
}

// sums[place of a] += w u^a for V vectors of centers.
template <class T, int V>
void add_moments(const Vec<T> (*u)[V], int dims, int order, const Vec<T>* weights, Vec<T>* sums) {
  Vec<T> product[V];
  for (int v = 0; v < V; ++v) product[v] = weights[v];
  // Two variables: rows too long for the unrolled triangle first.
  for (; dims == 2 && order > 10; --order) {
    Vec<T> row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = product[v];
    for (int b = 0; b < order; ++b) {
      Vec<T> sum = row[0];
#pragma GCC unroll 8
      for (int v = 1; v < V; ++v) sum += row[v];
      sums[b] += sum;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) row[v] *= u[1][v];
    }
    sums += order;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) product[v] *= u[0][v];
  }
  if (dims == 2) {
    switch (order) {
      case 1:
        return triangle_moments<T, V, 1>(u, product, sums);
      case 2:
        return triangle_moments<T, V, 2>(u, product, sums);
      case 3:
        return triangle_moments<T, V, 3>(u, product, sums);
      case 4:
        return triangle_moments<T, V, 4>(u, product, sums);
      case 5:
        return triangle_moments<T, V, 5>(u, product, sums);
      case 6:
        return triangle_moments<T, V, 6>(u, product, sums);
      case 7:
        return triangle_moments<T, V, 7>(u, product, sums);
      case 8:
        return triangle_moments<T, V, 8>(u, product, sums);
      case 9:
        return triangle_moments<T, V, 9>(u, product, sums);
      default:
        return triangle_moments<T, V, 10>(u, product, sums);
    }
  }
  for (int a = 0; a < order; ++a) {
    if (dims == 1) {
      Vec<T> sum = product[0];
      for (int v = 1; v < V; ++v) sum += product[v];
      *sums++ += sum;
    } else {
      add_moments<T, V>(u + 1, dims - 1, order - a, product, sums);
      sums += kCoefficientCounts.at[dims - 1][order - a];
    }
    for (int v = 0; v < V; ++v) product[v] *= u[0][v];
  }
}

// scratch: num_coefficients vectors.
template <class T>
void cell_moments(const T* rows, int64_t count, int64_t d, double noise_std, const T* weight_shift,
                  const T* centroid, int order, double* moments, void* scratch) {
  constexpr int V = 4;
  constexpr int64_t kStep = V * kLanes<T>;
  constexpr int64_t kBatch = 32 * kStep;  // float sums of more terms would lose digits
  Vec<T> u[kMaxCellDims][V], column[kMaxCellDims], weights[V];
  auto* sums = static_cast<Vec<T>*>(scratch);
  const int64_t size = kCoefficientCounts.at[d][order];
  const T per_noise = T(1 / noise_std);
  for (int64_t p = 0; p < size; ++p) moments[p] = 0;
  for (int64_t begin = 0; begin < count; begin += kBatch) {
    const int64_t end = begin + kBatch < count ? begin + kBatch : count;
    for (int64_t p = 0; p < size; ++p) sums[p] = Vec<T>{};
    for (int64_t i = begin; i < end; i += kStep) {
      for (int v = 0; v < V; ++v) {
        const int64_t at = i + v * kLanes<T>, first = at < end ? at : end - 1;
        weights[v] =
            center_weights<T>(weight_shift ? weight_shift + first : nullptr, end - at, noise_std);
        center_columns<T>(rows + first * d, end - first, d, centroid, column);
        for (int64_t k = 0; k < d; ++k) u[k][v] = column[k] * per_noise;
      }
      add_moments<T, V>(u, int(d), order, weights, sums);
    }
    for (int64_t p = 0; p < size; ++p)
      for (int l = 0; l < kLanes<T>; ++l) moments[p] += double(sums[p][l]);
  }
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
