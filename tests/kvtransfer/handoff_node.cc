#include "tests/kvtransfer/handoff_node.h"

#include <algorithm>
#include <cstring>

#include "tests/sim/seed_runner.h"

namespace sluice::testing {

void Fail(absl::Time now, const std::string& what) {
  FailSimulation(now - absl::UnixEpoch() - absl::Hours(1), what);
}

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void FillContent(int request, Origin origin, int block, uint8_t* data) {
  for (size_t i = 0; i < kBlockBytes; i += 8) {
    uint64_t word =
        Mix((uint64_t{static_cast<uint32_t>(request)} << 48) ^ (uint64_t{origin.attempt} << 24) ^
            (origin.incarnation << 36) ^ (static_cast<uint64_t>(block) << 12) ^ i);
    std::memcpy(data + i, &word, 8);
  }
}

bool HasContent(int request, Origin origin, int block, const uint8_t* data) {
  uint8_t expected[kBlockBytes];
  FillContent(request, origin, block, expected);
  return std::memcmp(expected, data, kBlockBytes) == 0;
}

int Pool::Take() {
  int block = free_.back();
  free_.pop_back();
  const uint8_t* data = Data(block);
  if (!std::all_of(data, data + kBlockBytes, [](uint8_t b) { return b == kPoison; })) {
    Fail(network_->Now(), "a free block was written to");
  }
  return block;
}

void Pool::Free(int block) {
  if (network_->MayWrite(Span(block))) Fail(network_->Now(), "freed under a pending receive");
  if (network_->MayRead(Span(block))) Fail(network_->Now(), "unpinned under a pending send");
  std::memset(Data(block), kPoison, kBlockBytes);
  free_.push_back(block);
}

}  // namespace sluice::testing
