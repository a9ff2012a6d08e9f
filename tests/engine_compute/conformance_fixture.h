// One backend of an instruction family and a dtype, random matrices that are exact in bf16, and the
// double-precision sums to hold its results against.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "engine/device/bf16.h"
#include "engine/device/cpu/cpu_backend.h"
#include "engine/device/cpu/isa.h"

namespace sluice {

using Matrix = std::vector<std::vector<double>>;

struct ConformanceCase {
  Isa isa;
  DType dtype;
};

class Conformance : public testing::TestWithParam<ConformanceCase> {
 protected:
  Conformance() : backend_(GetParam().dtype, GetParam().isa, /*num_threads=*/2) {}

  bool bf16() const { return GetParam().dtype == DType::kBF16; }
  // Relative to the size of the sum's terms: rounding of the result (bf16), or of the sum (fp32).
  double OutputTolerance() const { return bf16() ? 1.0 / 128 : 1e-5; }
  static constexpr double kSumTolerance = 1e-5;

  double Value() { return Bf16ToFloat(FloatToBf16(static_cast<float>(normal_(random_)))); }
  Matrix Random(int64_t rows, int64_t columns, double scale = 1) {
    Matrix m(static_cast<size_t>(rows), std::vector<double>(static_cast<size_t>(columns)));
    for (auto& row : m) {
      for (double& value : row) {
        value = Bf16ToFloat(FloatToBf16(static_cast<float>(Value() * scale)));
      }
    }
    return m;
  }
  static std::vector<float> Flat(const Matrix& m) {
    std::vector<float> out;
    for (const auto& row : m) out.insert(out.end(), row.begin(), row.end());
    return out;
  }
  static MatrixSource Source(const Matrix& m) {
    return {static_cast<int64_t>(m.size()), static_cast<int64_t>(m[0].size()),
            [&m](int64_t row, float* out) {
              const auto& from = m[static_cast<size_t>(row)];
              std::copy(from.begin(), from.end(), out);
            }};
  }
  // `m` [rows, parts * columns] as activations with padded parts.
  Activations ToActivations(const Matrix& m, int64_t parts = 1) {
    const int64_t columns = static_cast<int64_t>(m[0].size()) / parts;
    Activations out(GetParam().dtype, columns, parts);
    out.ReserveRows(static_cast<int64_t>(m.size()));
    for (size_t r = 0; r < m.size(); ++r) {
      for (int64_t c = 0; c < columns * parts; ++c) {
        Put(out, static_cast<int64_t>(r), c / columns * out.part_stride() + c % columns,
            m[r][static_cast<size_t>(c)]);
      }
    }
    return out;
  }
  void Put(Activations& a, int64_t row, int64_t column, double value) {
    const int64_t at = row * a.stride() + column;
    if (bf16()) {
      static_cast<Bf16*>(a.data())[at] = FloatToBf16(static_cast<float>(value));
    } else {
      static_cast<float*>(a.data())[at] = static_cast<float>(value);
    }
  }
  double Get(const Activations& a, int64_t row, int64_t column) const {
    const int64_t at = row * a.stride() + column;
    return bf16() ? Bf16ToFloat(static_cast<const Bf16*>(a.data())[at])
                  : static_cast<const float*>(a.data())[at];
  }
  static double Dot(const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  }
  // Sum of |a_i b_i|: what rounding errors of a dot product are proportional to.
  static double Size(const std::vector<double>& a, const std::vector<double>& b) {
    double size = 0;
    for (size_t i = 0; i < a.size(); ++i) size += std::abs(a[i] * b[i]);
    return size;
  }
  static double Silu(double x) { return x / (1 + std::exp(-x)); }

  CpuBackend backend_;
  std::mt19937 random_{20240607};
  std::normal_distribution<double> normal_{0, 1};
};

}  // namespace sluice
