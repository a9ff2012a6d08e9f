#include "engine/kv/kv_prefault.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/clock.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace sluice {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSize = (size_t{8} << 20) + 3 * kPage;  // ends within a piece

class KvPrefaultTest : public testing::Test {
 protected:
  KvPrefaultTest()
      : base_(static_cast<uint8_t*>(
            mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    madvise(base_, kSize, MADV_NOHUGEPAGE);  // so that a page says nothing of its neighbours
  }
  ~KvPrefaultTest() override { munmap(base_, kSize); }
  void SetUp() override {
    ASSERT_NE(base_, MAP_FAILED);
    if (madvise(base_, kPage, MADV_POPULATE_WRITE) != 0) GTEST_SKIP() << "an old kernel";
  }

  absl::Span<uint8_t> memory() { return absl::MakeSpan(base_, kSize); }

  size_t NumResidentPages() const {
    std::vector<unsigned char> resident(kSize / kPage);
    EXPECT_EQ(mincore(base_, kSize, resident.data()), 0);
    size_t pages = 0;
    for (const unsigned char page : resident) pages += page & 1;
    return pages;
  }
  bool AwaitAllResident() const {
    const absl::Time give_up_at = MonotonicNow() + absl::Seconds(60);
    while (NumResidentPages() < kSize / kPage) {
      if (MonotonicNow() > give_up_at) return false;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return true;
  }

  uint8_t* const base_;
};

TEST_F(KvPrefaultTest, TakesAllMemory) {
  EXPECT_LT(NumResidentPages(), 2u);
  KvPrefault prefault(memory(), absl::ZeroDuration());
  EXPECT_TRUE(AwaitAllResident());
}

TEST_F(KvPrefaultTest, LeavesTheBytesAlone) {
  std::memset(base_, 0x5a, kSize / 2);
  {
    KvPrefault prefault(memory(), absl::ZeroDuration());
    for (size_t i = kSize / 2; i < kSize; i += 1000) base_[i] = 0x77;  // meanwhile
    ASSERT_TRUE(AwaitAllResident());
  }
  std::vector<uint8_t> expected(kSize, 0);
  std::memset(expected.data(), 0x5a, kSize / 2);
  for (size_t i = kSize / 2; i < kSize; i += 1000) expected[i] = 0x77;
  EXPECT_EQ(std::memcmp(base_, expected.data(), kSize), 0);
}

TEST_F(KvPrefaultTest, StopsBeforeItIsDone) {
  // A machine that stands still between the two lines may let it finish; not every time.
  for (int i = 0; i < 100; ++i) {
    { KvPrefault prefault(memory(), absl::ZeroDuration()); }
    if (NumResidentPages() < kSize / kPage) return;
    madvise(base_, kSize, MADV_DONTNEED);
  }
  FAIL() << "all of the memory was taken every time";
}

TEST_F(KvPrefaultTest, EndsWhileItWaitsToBegin) {
  { KvPrefault prefault(memory(), absl::Hours(1)); }
  EXPECT_LT(NumResidentPages(), 2u);
}

}  // namespace
}  // namespace sluice
