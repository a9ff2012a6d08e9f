// A decode step allocates nothing once buffers have their size: the allocator would be a source of
// jitter in the one loop that sets inter-token latency.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/engine_compute/model_harness.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// GCC 12 takes the pair below, once inlined, for new matched with free.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = std::malloc(size);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace sluice {
namespace {

TEST(DecodeAllocation, NoneAfterWarmUp) {
  LoadedModel loaded = LoadModelForTest(GoldenDir("dev-v3"), DType::kBF16, "auto", 2, 16);
  ASSERT_NE(loaded.model, nullptr);
  TestSequence first = MakeSequence(std::vector<TokenId>(420, 7), 420);
  TestSequence second = MakeSequence(std::vector<TokenId>(80, 9), 80, /*first_block=*/8);
  std::vector<float> logits(static_cast<size_t>(2 * loaded.spec.vocab_size));
  const auto step = [&](int first_count, int second_count) {
    const SequenceSlice slices[] = {first.Slice(first_count, 1), second.Slice(second_count, 1)};
    loaded.model->Forward(slices, absl::MakeSpan(logits));
    first.computed += first_count;
    second.computed += second_count;
  };
  step(400, 60);
  step(1, 1);
  const int64_t before = allocations.load();
  ASSERT_GT(before, 0);
  for (int i = 0; i < 10; ++i) step(1, 1);
  EXPECT_EQ(allocations.load(), before);
}

}  // namespace
}  // namespace sluice
