// Every operation of the backend against a plain double-precision reference, in every instruction
// family and both dtypes, over odd shapes. Inputs are bf16-exact, so that only the arithmetic
// differs. Here: rows and matrix products; attention and experts have files of their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/engine_compute/conformance_fixture.h"

namespace sluice {
namespace {

TEST_P(Conformance, Embed) {
  const Matrix table = Random(37, 33);
  const auto packed = backend_.PackTable(Source(table));
  const std::vector<TokenId> tokens = {36, 0, 5, 5};
  std::vector<float> out(4 * 33);
  backend_.Embed({.tokens = tokens, .table = packed.get(), .out = out.data()});
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], static_cast<float>(table[static_cast<size_t>(tokens[i / 33])][i % 33]));
  }
}

TEST_P(Conformance, RmsNorm) {
  for (int64_t columns : {1, 15, 16, 40, 129, 512}) {
    SCOPED_TRACE(columns);
    const int rows = 21;
    const Matrix x = Random(rows, columns, 3), weight = Random(1, columns);
    const std::vector<float> x_flat = Flat(x), w_flat = Flat(weight);
    std::vector<int32_t> index(rows);
    std::iota(index.rbegin(), index.rend(), 0);  // backwards
    Activations out(GetParam().dtype, columns);
    out.ReserveRows(rows);
    std::vector<float> out_f32(static_cast<size_t>(rows * columns));
    backend_.RmsNorm({.x = x_flat.data(),
                      .x_stride = columns,
                      .rows = rows,
                      .row_index = index.data(),
                      .weight = w_flat.data(),
                      .columns = columns,
                      .eps = 1e-6f,
                      .out = &out,
                      .out_f32 = out_f32.data()});
    for (int r = 0; r < rows; ++r) {
      const auto& row = x[static_cast<size_t>(index[static_cast<size_t>(r)])];
      const double factor = 1 / std::sqrt(Dot(row, row) / static_cast<double>(columns) + 1e-6);
      for (int64_t c = 0; c < columns; ++c) {
        const double expected =
            row[static_cast<size_t>(c)] * factor * weight[0][static_cast<size_t>(c)];
        ASSERT_NEAR(out_f32[static_cast<size_t>(r * columns + c)], expected,
                    1e-5 * (1 + std::abs(expected)));
        ASSERT_NEAR(Get(out, r, c), expected, OutputTolerance() * (1e-3 + std::abs(expected)));
      }
    }
  }
}

TEST_P(Conformance, Linear) {
  struct Shape {
    int rows;
    int64_t in, out;
  };
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{1, 40, 300}, Shape{2, 33, 17}, Shape{3, 64, 16}, Shape{7, 24, 96},
        Shape{16, 160, 31}, Shape{17, 72, 50}, Shape{33, 129, 65}, Shape{48, 32, 160},
        Shape{300, 96, 48},
        // Every tile shape of the AMX kernels, and what they leave over:
        // 1 to 5 row tiles, 1 to 7 panels, whole and cut.
        Shape{20, 64, 112}, Shape{32, 64, 64}, Shape{47, 64, 48}, Shape{49, 96, 20},
        Shape{64, 64, 80}, Shape{65, 32, 96}, Shape{79, 64, 16}, Shape{97, 64, 100}}) {
    SCOPED_TRACE(absl::StrCat(shape.rows, " x ", shape.in, " x ", shape.out));
    const Matrix x = Random(shape.rows, shape.in), w = Random(shape.out, shape.in);
    const Matrix before = Random(shape.rows, shape.out);
    const auto packed = backend_.Pack(Source(w));
    ASSERT_EQ(packed->rows(), shape.out);
    ASSERT_EQ(packed->columns(), shape.in);
    const Activations a = ToActivations(x);
    for (bool accumulate : {false, true}) {
      const int64_t stride = shape.out + 3;  // the gap must stay untouched
      std::vector<float> y(static_cast<size_t>(shape.rows * stride), 1234.5f);
      for (int r = 0; r < shape.rows; ++r) {
        for (int64_t c = 0; c < shape.out; ++c) {
          y[static_cast<size_t>(r * stride + c)] =
              static_cast<float>(before[static_cast<size_t>(r)][static_cast<size_t>(c)]);
        }
      }
      backend_.Linear({.x = &a,
                       .rows = shape.rows,
                       .weight = packed.get(),
                       .y = y.data(),
                       .y_stride = stride,
                       .accumulate = accumulate});
      for (int r = 0; r < shape.rows; ++r) {
        const auto& row = x[static_cast<size_t>(r)];
        for (int64_t c = 0; c < stride; ++c) {
          const float got = y[static_cast<size_t>(r * stride + c)];
          if (c >= shape.out) {
            ASSERT_EQ(got, 1234.5f);
            continue;
          }
          const auto& weight = w[static_cast<size_t>(c)];
          const double expected =
              Dot(row, weight) +
              (accumulate ? before[static_cast<size_t>(r)][static_cast<size_t>(c)] : 0);
          ASSERT_NEAR(got, expected, kSumTolerance * (1 + Size(row, weight))) << r << ", " << c;
        }
      }
    }
  }
}

TEST_P(Conformance, HeadLinear) {
  const int rows = 19, heads = 3;
  for (const auto& [in, out] :
       std::vector<std::pair<int64_t, int64_t>>{{16, 40}, {12, 33}, {144, 12}}) {
    SCOPED_TRACE(absl::StrCat(in, " to ", out));
    const Matrix x = Random(rows, heads * in);
    std::vector<Matrix> w;
    std::vector<std::unique_ptr<PackedMatrix>> packed;
    for (int h = 0; h < heads; ++h) w.push_back(Random(out, in));
    for (int h = 0; h < heads; ++h)
      packed.push_back(backend_.Pack(Source(w[static_cast<size_t>(h)])));
    const Activations a = ToActivations(x, heads);
    Activations y(GetParam().dtype, heads * out);  // heads side by side, unpadded
    y.ReserveRows(rows);
    backend_.HeadLinear({.x = &a, .rows = rows, .weights = packed, .y = &y, .y_head_stride = out});
    for (int r = 0; r < rows; ++r) {
      for (int h = 0; h < heads; ++h) {
        const auto begin = x[static_cast<size_t>(r)].begin() + h * in;
        const std::vector<double> part(begin, begin + in);
        for (int64_t c = 0; c < out; ++c) {
          const auto& weight = w[static_cast<size_t>(h)][static_cast<size_t>(c)];
          ASSERT_NEAR(Get(y, r, h * out + c), Dot(part, weight),
                      OutputTolerance() * std::abs(Dot(part, weight)) +
                          kSumTolerance * (1 + Size(part, weight)));
        }
      }
    }
  }
}

std::vector<ConformanceCase> Cases() {
  std::vector<ConformanceCase> cases;
  for (Isa isa : AvailableIsas()) {
    for (DType dtype : {DType::kF32, DType::kBF16}) cases.push_back({isa, dtype});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, Conformance, testing::ValuesIn(Cases()), [](const auto& info) {
  return absl::StrCat(IsaName(info.param.isa), "_", DTypeName(info.param.dtype));
});

TEST(Isa, NamesAndRefusals) {
  EXPECT_EQ(*ChooseIsa(""), AvailableIsas().back());
  EXPECT_EQ(*ChooseIsa("auto"), AvailableIsas().back());
  EXPECT_EQ(*ChooseIsa("portable"), Isa::kPortable);
  EXPECT_EQ(ChooseIsa("sse9").status().code(), absl::StatusCode::kInvalidArgument);
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    const auto chosen = ChooseIsa(IsaName(isa));
    if (IsaAvailable(isa)) {
      EXPECT_EQ(*chosen, isa);
    } else {
      EXPECT_EQ(chosen.status().code(), absl::StatusCode::kFailedPrecondition);
    }
  }
}

}  // namespace
}  // namespace sluice
