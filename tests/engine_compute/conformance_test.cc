// Every operation of the backend against a plain double-precision reference, in every instruction
// family and both dtypes, over odd shapes. Inputs are bf16-exact, so that only the arithmetic
// differs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/device/bf16.h"
#include "engine/device/cpu/cpu_backend.h"
#include "engine/device/cpu/isa.h"

namespace sluice {
namespace {

using Matrix = std::vector<std::vector<double>>;

struct Case {
  Isa isa;
  DType dtype;
};

class Conformance : public testing::TestWithParam<Case> {
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

TEST_P(Conformance, RopeWriteKv) {
  const int rows = 11, heads = 2;
  const int64_t nope = 12, rope = 8, latent = 20, row_dim = latent + rope, block_tokens = 64;
  const int64_t head = nope + rope;
  const Matrix q = Random(rows, heads * head), kv = Random(rows, row_dim), norm = Random(1, latent);
  Matrix angle = Random(rows, rope / 2, 2);
  std::vector<float> cos, sin;
  for (const auto& row : angle) {
    for (double a : row) {
      cos.push_back(static_cast<float>(std::cos(a)));
      sin.push_back(static_cast<float>(std::sin(a)));
    }
  }
  const auto rotated = [&](int r, const std::vector<double>& x, int64_t first) {
    std::vector<double> out;
    for (int64_t i = 0; i < rope / 2; ++i) {
      const double a = angle[static_cast<size_t>(r)][static_cast<size_t>(i)];
      const double even = x[static_cast<size_t>(first + 2 * i)],
                   odd = x[static_cast<size_t>(first + 2 * i + 1)];
      out.push_back(even * std::cos(a) - odd * std::sin(a));
      out.push_back(even * std::sin(a) + odd * std::cos(a));
    }
    return out;
  };
  const int64_t element = DTypeBytes(GetParam().dtype);
  const int64_t block_bytes =
      2 * block_tokens * row_dim * element;  // two layers; this is the first
  std::vector<uint8_t> cache(static_cast<size_t>(3 * block_bytes));
  std::vector<int64_t> slots;
  for (int r = 0; r < rows; ++r) slots.push_back(60 + r * 7);
  Activations q_nope(GetParam().dtype, nope, heads), q_full(GetParam().dtype, row_dim, heads);
  q_nope.ReserveRows(rows);
  q_full.ReserveRows(rows);
  const std::vector<float> q_flat = Flat(q), kv_flat = Flat(kv), norm_flat = Flat(norm);
  backend_.RopeWriteKv({.rows = rows,
                        .q = q_flat.data(),
                        .q_stride = heads * head,
                        .kv = kv_flat.data(),
                        .kv_stride = row_dim,
                        .kv_norm = norm_flat.data(),
                        .eps = 1e-6f,
                        .cos = cos.data(),
                        .sin = sin.data(),
                        .heads = heads,
                        .nope_dim = nope,
                        .rope_dim = rope,
                        .latent_dim = latent,
                        .slots = slots,
                        .kv_cache = {cache.data(), block_bytes, block_tokens, row_dim},
                        .q_nope = &q_nope,
                        .q_full = &q_full});
  for (int r = 0; r < rows; ++r) {
    const auto& q_row = q[static_cast<size_t>(r)];
    const auto& kv_row = kv[static_cast<size_t>(r)];
    for (int h = 0; h < heads; ++h) {
      const auto turned = rotated(r, q_row, h * head + nope);
      for (int64_t i = 0; i < nope; ++i) {
        ASSERT_EQ(Get(q_nope, r, h * q_nope.part_stride() + i),
                  q_row[static_cast<size_t>(h * head + i)]);
      }
      for (int64_t i = 0; i < rope; ++i) {
        ASSERT_NEAR(Get(q_full, r, h * q_full.part_stride() + latent + i),
                    turned[static_cast<size_t>(i)], OutputTolerance() * 4);
      }
    }
    const std::vector<double> c(kv_row.begin(), kv_row.begin() + latent);
    const double factor = 1 / std::sqrt(Dot(c, c) / static_cast<double>(latent) + 1e-6);
    const auto turned = rotated(r, kv_row, latent);
    const int64_t slot = slots[static_cast<size_t>(r)];
    const uint8_t* row =
        cache.data() + slot / block_tokens * block_bytes + slot % block_tokens * row_dim * element;
    for (int64_t i = 0; i < row_dim; ++i) {
      const double got = bf16() ? Bf16ToFloat(reinterpret_cast<const Bf16*>(row)[i])
                                : reinterpret_cast<const float*>(row)[i];
      const double expected =
          i < latent ? c[static_cast<size_t>(i)] * factor * norm[0][static_cast<size_t>(i)]
                     : turned[static_cast<size_t>(i - latent)];
      ASSERT_NEAR(got, expected, OutputTolerance() * (0.01 + std::abs(expected)) + 1e-5);
    }
  }
}

TEST_P(Conformance, MlaAttention) {
  struct Shape {
    int heads;
    int64_t latent, rope;
    int start, count;
  };
  const int64_t block_tokens = 64;
  for (const Shape& s :
       {Shape{4, 32, 8, 0, 1}, Shape{3, 144, 32, 5, 30}, Shape{4, 512, 64, 300, 1},
        Shape{4, 512, 64, 200, 120}, Shape{80, 64, 32, 255, 2}, Shape{1, 24, 4, 1000, 1},
        // One to four row tiles, full and cut token tiles, and an odd group of 32 columns.
        Shape{16, 512, 64, 255, 1}, Shape{16, 96, 32, 270, 3}, Shape{40, 160, 32, 17, 1},
        Shape{128, 512, 64, 40, 1}, Shape{15, 64, 64, 63, 4}}) {
    SCOPED_TRACE(absl::StrCat(s.heads, " heads, latent ", s.latent, ", ", s.count, " tokens from ",
                              s.start));
    const int64_t row_dim = s.latent + s.rope;
    const int length = s.start + s.count;
    const double scale = 1 / std::sqrt(static_cast<double>(row_dim));
    const Matrix q = Random(s.count, s.heads * row_dim, 1.5), keys = Random(length, row_dim);
    // Blocks in reverse, and foreign bytes (NaN) wherever no token is.
    std::vector<BlockId> table;
    const int num_blocks = (length + 63) / 64;
    for (int b = 0; b < num_blocks; ++b) table.push_back(BlockId(num_blocks - 1 - b));
    const int64_t element = DTypeBytes(GetParam().dtype);
    const int64_t block_bytes = block_tokens * row_dim * element;
    std::vector<uint8_t> cache(static_cast<size_t>(num_blocks * block_bytes + 4096), 0xff);
    for (int t = 0; t < length; ++t) {
      uint8_t* row = cache.data() + table[static_cast<size_t>(t / 64)].value * block_bytes +
                     t % 64 * row_dim * element;
      for (int64_t i = 0; i < row_dim; ++i) {
        const float value =
            static_cast<float>(keys[static_cast<size_t>(t)][static_cast<size_t>(i)]);
        if (bf16()) {
          reinterpret_cast<Bf16*>(row)[i] = FloatToBf16(value);
        } else {
          reinterpret_cast<float*>(row)[i] = value;
        }
      }
    }
    const Activations queries = ToActivations(q, s.heads);
    Activations out(GetParam().dtype, s.latent, s.heads);
    out.ReserveRows(s.count);
    const AttentionSequence sequence{0, s.count, s.start, table};
    backend_.MlaAttention({.q = &queries,
                           .heads = s.heads,
                           .latent_dim = s.latent,
                           .scale = static_cast<float>(scale),
                           .kv_cache = {cache.data(), block_bytes, block_tokens, row_dim},
                           .sequences = {&sequence, 1},
                           .out = &out});
    for (int t = 0; t < s.count; ++t) {
      for (int h = 0; h < s.heads; ++h) {
        const auto begin = q[static_cast<size_t>(t)].begin() + h * row_dim;
        const std::vector<double> query(begin, begin + row_dim);
        std::vector<double> p;
        for (int k = 0; k <= s.start + t; ++k)
          p.push_back(Dot(query, keys[static_cast<size_t>(k)]) * scale);
        const double max = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& x : p) sum += x = std::exp(x - max);
        for (int64_t i = 0; i < s.latent; ++i) {
          double expected = 0;
          for (size_t k = 0; k < p.size(); ++k)
            expected += p[k] / sum * keys[k][static_cast<size_t>(i)];
          ASSERT_NEAR(Get(out, t, h * out.part_stride() + i), expected, bf16() ? 0.012 : 2e-5)
              << "token " << t << ", head " << h << ", column " << i;
        }
      }
    }
  }
}

// Scores are logits' softmax or sigmoid; the choice itself is checked against gates written out
// here.
TEST_P(Conformance, Gate) {
  for (GateKind kind : {GateKind::kSoftmaxGreedy, GateKind::kSoftmaxGroupLimited,
                        GateKind::kSigmoidGreedy, GateKind::kSigmoidNoAuxTc}) {
    SCOPED_TRACE(static_cast<int>(kind));
    const bool softmax = kind == GateKind::kSoftmaxGreedy || kind == GateKind::kSoftmaxGroupLimited;
    const bool grouped =
        kind == GateKind::kSoftmaxGroupLimited || kind == GateKind::kSigmoidNoAuxTc;
    ModelSpec spec;
    spec.gate = kind;
    spec.n_routed_experts = 24;
    spec.n_group = grouped ? 4 : 1;
    spec.topk_group = grouped ? 2 : 1;
    spec.num_experts_per_tok = 5;
    spec.norm_topk_prob = !softmax;
    spec.routed_scaling_factor = 2.5;
    const int rows = 40;
    const int64_t hidden = 37;
    const Matrix x = Random(rows, hidden), w = Random(24, hidden, 0.3);
    std::vector<float> bias;
    // Mostly negative: a masked group must not win by being zero.
    for (int e = 0; e < 24; ++e) bias.push_back(static_cast<float>(Value() * 0.3 - 1.5));
    const auto packed = backend_.PackF32(Source(w));
    std::vector<int32_t> chosen(rows * 5);
    std::vector<float> weights(rows * 5);
    const std::vector<float> x_flat = Flat(x);
    backend_.Gate({.x = x_flat.data(),
                   .rows = rows,
                   .weight = packed.get(),
                   .bias = kind == GateKind::kSigmoidNoAuxTc ? bias.data() : nullptr,
                   .spec = &spec,
                   .experts = chosen.data(),
                   .weights = weights.data()});
    for (int r = 0; r < rows; ++r) {
      std::vector<double> score, rank;
      for (const auto& row : w) score.push_back(Dot(x[static_cast<size_t>(r)], row));
      if (softmax) {
        double sum = 0;
        for (double& s : score) sum += s = std::exp(s);
        for (double& s : score) s /= sum;
      } else {
        for (double& s : score) s = 1 / (1 + std::exp(-s));
      }
      for (size_t e = 0; e < 24; ++e) {
        rank.push_back(score[e] + (kind == GateKind::kSigmoidNoAuxTc ? bias[e] : 0));
      }
      if (grouped) {
        std::vector<std::pair<double, int>> groups;
        for (int g = 0; g < 4; ++g) {
          std::vector<double> members(rank.begin() + g * 6, rank.begin() + g * 6 + 6);
          std::sort(members.rbegin(), members.rend());
          groups.emplace_back(softmax ? members[0] : members[0] + members[1], -g);
        }
        std::sort(groups.rbegin(), groups.rend());
        for (size_t g = 2; g < 4; ++g) {
          const int first = -groups[g].second * 6;
          std::fill_n(rank.begin() + first, 6, -1e30);
        }
      }
      std::vector<int> order(24);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return rank[static_cast<size_t>(a)] > rank[static_cast<size_t>(b)];
      });
      order.resize(5);
      std::sort(order.begin(), order.end());
      double sum = 0;
      for (int e : order) sum += score[static_cast<size_t>(e)];
      for (size_t j = 0; j < 5; ++j) {
        ASSERT_EQ(chosen[static_cast<size_t>(r) * 5 + j], order[j]);
        const double weight = score[static_cast<size_t>(order[j])] / (softmax ? 1 : sum) * 2.5;
        ASSERT_NEAR(weights[static_cast<size_t>(r) * 5 + j], weight, 1e-5);
      }
    }
  }
}

TEST_P(Conformance, GateTiesGoToTheLowestId) {
  ModelSpec spec;
  spec.gate = GateKind::kSigmoidNoAuxTc;
  spec.n_routed_experts = 8;
  spec.n_group = 4;
  spec.topk_group = 2;
  spec.num_experts_per_tok = 3;
  spec.norm_topk_prob = true;
  const auto packed = backend_.PackF32(Source(Matrix(8, std::vector<double>(4, 0.5))));
  const std::vector<float> x(4, 1), bias(8, -2);
  int32_t chosen[3];
  float weights[3];
  backend_.Gate({.x = x.data(),
                 .rows = 1,
                 .weight = packed.get(),
                 .bias = bias.data(),
                 .spec = &spec,
                 .experts = chosen,
                 .weights = weights});
  for (int j = 0; j < 3; ++j) {
    EXPECT_EQ(chosen[j], j);
    EXPECT_NEAR(weights[j], 1.0 / 3, 1e-6);
  }
}

TEST_P(Conformance, FeedForward) {
  struct Shape {
    int rows;
    int64_t hidden, routed, shared;  // intermediate sizes; 0: none
    int experts, top_k;
  };
  for (const Shape& s :
       {Shape{1, 64, 24, 24, 8, 3}, Shape{1, 33, 0, 70, 0, 0}, Shape{37, 160, 72, 72, 8, 4},
        Shape{50, 40, 17, 0, 5, 2}, Shape{70, 96, 0, 160, 0, 0}}) {
    SCOPED_TRACE(absl::StrCat(s.rows, " rows, hidden ", s.hidden, ", routed ", s.routed,
                              ", shared ", s.shared));
    struct Network {
      Matrix gate, up, down;
    };
    const auto make = [&](int64_t intermediate) {
      const double scale = 1 / std::sqrt(static_cast<double>(s.hidden));
      return Network{Random(intermediate, s.hidden, scale), Random(intermediate, s.hidden, scale),
                     Random(s.hidden, intermediate, scale)};
    };
    const auto pack = [&](const Network& n) {
      return FeedForwardWeights{backend_.PackGateUp(Source(n.gate), Source(n.up)),
                                backend_.Pack(Source(n.down))};
    };
    std::vector<Network> experts;
    std::vector<FeedForwardWeights> packed;
    for (int e = 0; e < s.experts; ++e) experts.push_back(make(s.routed));
    for (const Network& n : experts) packed.push_back(pack(n));
    const Network shared = make(std::max<int64_t>(s.shared, 1));
    const FeedForwardWeights shared_packed = pack(shared);
    const Matrix x = Random(s.rows, s.hidden), before = Random(s.rows, s.hidden);
    std::vector<int32_t> chosen;
    std::vector<float> weights;
    for (int r = 0; r < s.rows; ++r) {
      std::vector<int32_t> ids(static_cast<size_t>(s.experts));
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), random_);
      ids.resize(static_cast<size_t>(s.top_k));
      std::sort(ids.begin(), ids.end());
      chosen.insert(chosen.end(), ids.begin(), ids.end());
      for (int j = 0; j < s.top_k; ++j) weights.push_back(static_cast<float>(Value()));
    }
    const Activations a = ToActivations(x);
    std::vector<float> y = Flat(before);
    backend_.FeedForward({.x = &a,
                          .rows = s.rows,
                          .experts = packed,
                          .experts_per_token = s.top_k,
                          .chosen = chosen.data(),
                          .weights = weights.data(),
                          .shared = s.shared > 0 ? &shared_packed : nullptr,
                          .y = y.data()});
    const auto apply = [&](const Network& n, const std::vector<double>& row) {
      std::vector<double> hidden, out;
      for (size_t i = 0; i < n.gate.size(); ++i)
        hidden.push_back(Silu(Dot(n.gate[i], row)) * Dot(n.up[i], row));
      for (const auto& weight : n.down) out.push_back(Dot(weight, hidden));
      return out;
    };
    for (int r = 0; r < s.rows; ++r) {
      const size_t row = static_cast<size_t>(r);
      std::vector<double> expected = before[row];
      for (int j = 0; j < s.top_k; ++j) {
        const size_t at = row * static_cast<size_t>(s.top_k) + static_cast<size_t>(j);
        const auto out = apply(experts[static_cast<size_t>(chosen[at])], x[row]);
        for (size_t c = 0; c < out.size(); ++c) expected[c] += weights[at] * out[c];
      }
      if (s.shared > 0) {
        const auto out = apply(shared, x[row]);
        for (size_t c = 0; c < out.size(); ++c) expected[c] += out[c];
      }
      for (size_t c = 0; c < expected.size(); ++c) {
        ASSERT_NEAR(y[row * static_cast<size_t>(s.hidden) + c], expected[c], bf16() ? 0.02 : 3e-5)
            << "row " << r << ", column " << c;
      }
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
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
