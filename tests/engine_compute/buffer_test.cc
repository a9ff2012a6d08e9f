#include "engine/device/buffer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace sluice {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Below and above the size from which memory comes from the kernel.
constexpr size_t kSizes[] = {1, 64, 1000, kMiB, 2 * kMiB - 1, 2 * kMiB, 3 * kMiB + 4097, 9 * kMiB};

bool IsZero(const Buffer& buffer) {
  const auto* bytes = buffer.as<uint8_t>();
  for (size_t i = 0; i < buffer.size_bytes(); ++i) {
    if (bytes[i] != 0) return false;
  }
  return true;
}

TEST(Buffer, IsAlignedAndZeroAtEverySize) {
  for (const size_t size : kSizes) {
    const Buffer buffer(size);
    EXPECT_GE(buffer.size_bytes(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0U);
    EXPECT_TRUE(IsZero(buffer)) << size;
  }
}

TEST(Buffer, IsZeroAgainWhenItGrowsAndKeepsWhatFits) {
  Buffer buffer;
  for (const size_t size : kSizes) {
    const bool grows = size > buffer.size_bytes();
    buffer.Reserve(size);
    if (grows) {
      EXPECT_TRUE(IsZero(buffer)) << size;
    }
    std::memset(buffer.data(), 0x5a, buffer.size_bytes());
    buffer.Reserve(size);
    buffer.Reserve(1);
    EXPECT_EQ(buffer.as<uint8_t>()[size - 1], 0x5a);
  }
}

TEST(Buffer, MovesWithItsMemory) {
  for (const size_t size : {size_t{100}, 5 * kMiB}) {
    Buffer first(size);
    first.as<uint8_t>()[size - 1] = 7;
    const void* const data = first.data();
    Buffer second(std::move(first));
    EXPECT_EQ(second.data(), data);
    Buffer third(3 * kMiB);
    third = std::move(second);
    EXPECT_EQ(third.as<uint8_t>()[size - 1], 7);
  }
}

int NumMappings() {
  std::ifstream maps("/proc/self/maps");
  int lines = 0;
  for (std::string line; std::getline(maps, line);) ++lines;
  return lines;
}

// Linux gives a process 65,530 mappings; DeepSeek-V3 has some 31,000 matrices of experts, all of
// whole huge pages.
TEST(Buffer, ManyLargeOnesAreFewMappings) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer maps memory of its own for each";
#endif
  const int before = NumMappings();
  std::vector<Buffer> matrices;
  for (int i = 0; i < 1000; ++i) {
    matrices.emplace_back(static_cast<size_t>(i % 2 == 0 ? 28 : 14) * kMiB);
    if (i % 10 == 0) matrices.back().as<uint8_t>()[0] = 1;
  }
  EXPECT_LT(NumMappings() - before, 100);
}

}  // namespace
}  // namespace sluice
