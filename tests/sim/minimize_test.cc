// The minimiser over predicates that say what the answer must be; over a simulation it is tested by
// handoff_mutants and cluster_mutants.
#include "tests/sim/minimize.h"

#include <algorithm>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Selection FirstEntries(int count) {
  Selection all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

bool Contains(const Selection& selection, const Selection& wanted) {
  return std::includes(selection.begin(), selection.end(), wanted.begin(), wanted.end());
}

TEST(Minimize, FindsTheEntriesThatFailTogether) {
  for (const Selection& guilty :
       {Selection{0}, Selection{63}, Selection{3, 4, 50}, Selection{0, 21, 42, 63}}) {
    EXPECT_EQ(Minimize(FirstEntries(64), [&](const Selection& s) { return Contains(s, guilty); }),
              guilty);
  }
}

TEST(Minimize, LeavesNothingWhenNothingIsNeeded) {
  EXPECT_THAT(Minimize(FirstEntries(10), [](const Selection&) { return true; }), IsEmpty());
  EXPECT_THAT(Minimize({}, [](const Selection&) { return true; }), IsEmpty());
}

TEST(Minimize, KeepsAllWhenAllIsNeeded) {
  EXPECT_EQ(Minimize(FirstEntries(7), [](const Selection& s) { return s.size() == 7; }),
            FirstEntries(7));
}

// Faults that hide each other: with 5 it fails only if 6 is there as well.
TEST(Minimize, LeavesNoSingleEntryThatCouldGo) {
  const auto fails = [](const Selection& s) {
    const bool trigger = Contains(s, {2});
    return trigger && (!Contains(s, {5}) || Contains(s, {6}));
  };
  ASSERT_TRUE(fails(FirstEntries(9)));
  EXPECT_THAT(Minimize(FirstEntries(9), fails), ElementsAre(2));
}

TEST(Minimize, StopsAtItsBoundWithAFailingScript) {
  int num_runs = 0;
  const auto fails = [&](const Selection& s) {
    ++num_runs;
    return Contains(s, {1, 100, 200, 300, 400});
  };
  const Selection found = Minimize(FirstEntries(500), fails, {.max_runs = 20});
  EXPECT_EQ(num_runs, 20);
  EXPECT_TRUE(Contains(found, {1, 100, 200, 300, 400}));
  EXPECT_LT(found.size(), 500u);
}

}  // namespace
}  // namespace sluice::testing
