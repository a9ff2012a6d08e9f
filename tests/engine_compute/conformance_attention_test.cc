// conformance_test.cc, of what reads and writes the KV cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/engine_compute/conformance_fixture.h"

namespace sluice {
namespace {

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

}  // namespace
}  // namespace sluice
