// conformance_test.cc, of the choice of experts and what they compute.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/engine_compute/conformance_fixture.h"

namespace sluice {
namespace {

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

}  // namespace
}  // namespace sluice
