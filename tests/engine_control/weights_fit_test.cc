#include "engine/runtime/weights_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kGB = 1'000'000'000;

std::string Refusal(int64_t weight_bytes, int num_processes, int64_t available_bytes) {
  return std::string(CheckWeightsFit(weight_bytes, num_processes, available_bytes).message());
}

TEST(WeightsFit, EachProcessHasItsOwn) {
  EXPECT_TRUE(CheckWeightsFit(10 * kGB, 1, 10 * kGB).ok());
  EXPECT_TRUE(CheckWeightsFit(10 * kGB, 2, 20 * kGB).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(CheckWeightsFit(10 * kGB, 1, 10 * kGB - 1)));
  EXPECT_TRUE(absl::IsResourceExhausted(CheckWeightsFit(10 * kGB, 3, 29 * kGB)));
}

TEST(WeightsFit, SaysHowMuchIsWanted) {
  EXPECT_THAT(Refusal(1342 * kGB, 1, 20 * kGB),
              AllOf(HasSubstr("1342.0 GB"), HasSubstr("20.0 GB")));
  EXPECT_THAT(Refusal(9 * kGB, 2, 17 * kGB), AllOf(HasSubstr("9.0 GB"), HasSubstr("2 workers")));
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
