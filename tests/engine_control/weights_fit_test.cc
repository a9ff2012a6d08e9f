#include "engine/runtime/weights_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kGB = 1'000'000'000;

TEST(WeightsFit, SaysHowMuchIsWantedAndThere) {
  EXPECT_TRUE(CheckWeightsFit(10 * kGB, 10 * kGB).ok());
  const absl::Status refused = CheckWeightsFit(1342 * kGB, 20 * kGB);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("1342.0 GB"), HasSubstr("20.0 GB")));
}

TEST(WeightsFit, TheWidthOfTheNumbersCounts) {
  ModelSpec spec;
  spec.vocab_size = 1000;
  spec.hidden_size = 100;
  spec.num_hidden_layers = 0;
  // The embedding, the vocabulary's projection and the last norm.
  EXPECT_EQ(WeightBytes(spec, DType::kBF16), 2 * (2 * 1000 * 100 + 100));
  EXPECT_EQ(WeightBytes(spec, DType::kF32), 4 * (2 * 1000 * 100 + 100));
}

}  // namespace
}  // namespace sluice
