#include "engine/sampling/row_max.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace sluice {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(RowMax, FindsTheFirstGreatestInRowsOfAnyLength) {
  std::mt19937 random(7);
  for (size_t size = 1; size < 1100; ++size) {
    std::vector<float> row(size);
    // Few different values: many ties, also between blocks.
    for (float& value : row) value = static_cast<float>(random() % 5) - 2;
    const auto expected = std::max_element(row.begin(), row.end());
    const RowMax max = FindRowMax(row);
    ASSERT_EQ(max.value, *expected) << size;
    ASSERT_EQ(max.index, static_cast<size_t>(expected - row.begin())) << size;
    ASSERT_FALSE(max.has_nan);
  }
}

TEST(RowMax, SeesOneNanAnywhereAndStillFindsTheGreatest) {
  for (const size_t size : {1u, 15u, 16u, 255u, 256u, 257u, 4096u}) {
    for (size_t place = 0; place < size; place += 1 + size / 100) {
      std::vector<float> row(size, 1.0f);
      row[place] = kNan;
      if (size > 1) row[(place + 1) % size] = 2.0f;
      const RowMax max = FindRowMax(row);
      ASSERT_TRUE(max.has_nan) << size << " " << place;
      if (size > 1) {
        ASSERT_EQ(max.index, (place + 1) % size);
      }
    }
  }
}

TEST(RowMax, KnowsInfinities) {
  std::vector<float> row(300, -kInfinity);
  EXPECT_EQ(FindRowMax(row).value, -kInfinity);
  EXPECT_FALSE(FindRowMax(row).has_nan);
  row[290] = -3;
  EXPECT_EQ(FindRowMax(row).index, 290u);
  row[100] = kInfinity;
  EXPECT_EQ(FindRowMax(row).index, 100u);
  EXPECT_EQ(FindRowMax(row).value, kInfinity);
  EXPECT_EQ(FindRowMax({}).value, -kInfinity);
}

}  // namespace
}  // namespace sluice
