// Thousands of random scripts against one engine over a fake model; see engine_script.h. A failure
// prints its seed: EngineScript(seed).Run() repeats it.
#include <gtest/gtest.h>

#include "tests/engine_control/engine_script.h"

namespace sluice::testing {
namespace {

TEST(EngineProperty, RandomScriptsKeepEveryInvariant) {
  constexpr uint64_t kNumScripts = 2000;
  EngineScript::Coverage total;
  for (uint64_t seed = 1; seed <= kNumScripts; ++seed) {
    EngineScript script(seed);
    const std::string failure = script.Run();
    ASSERT_EQ(failure, "");
    const EngineScript::Coverage& coverage = script.coverage();
    total.preemptions += coverage.preemptions;
    total.handed_back += coverage.handed_back;
    total.cached_tokens += coverage.cached_tokens;
    total.cancelled += coverage.cancelled;
    total.abandoned += coverage.abandoned;
    total.refused += coverage.refused;
    total.answers += coverage.answers;
    total.stalls += coverage.stalls;
    total.pins += coverage.pins;
  }
  // The scripts do reach what they are for.
  EXPECT_GT(total.preemptions, 500);
  EXPECT_GT(total.handed_back, 100);
  EXPECT_GT(total.cached_tokens, 10000);
  EXPECT_GT(total.cancelled, 500);
  EXPECT_GT(total.abandoned, 500);
  EXPECT_GT(total.refused, 500);
  EXPECT_GT(total.answers, 5000);
  EXPECT_GT(total.stalls, 100);
  EXPECT_GT(total.pins, 200);
}

}  // namespace
}  // namespace sluice::testing
