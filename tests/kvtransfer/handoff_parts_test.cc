// The small parts of the handoff: coverage, tombstones, liveness.
#include <rapidcheck.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/handoff/coverage.h"
#include "kvtransfer/handoff/liveness.h"
#include "kvtransfer/handoff/tombstones.h"

namespace sluice::handoff {
namespace {

TEST(Coverage, EachCellOnce) {
  Coverage coverage(5);
  EXPECT_TRUE(coverage.Claim(0, 2));
  EXPECT_FALSE(coverage.Claim(1, 2));  // and cell 2 is still empty:
  EXPECT_TRUE(coverage.Claim(2, 1));
  coverage.Release(0, 2);
  EXPECT_TRUE(coverage.Claim(0, 2));
  coverage.Verify(0, 2);
  EXPECT_FALSE(coverage.Claim(0, 1));
  coverage.Release(0, 2);  // verified cells stay
  EXPECT_FALSE(coverage.Claim(0, 1));
  EXPECT_EQ(coverage.verified_prefix(), 2u);
  EXPECT_FALSE(coverage.Claim(4, 2));
  EXPECT_FALSE(coverage.Claim(6, 0));
  EXPECT_FALSE(coverage.Claim(1, SIZE_MAX));
}

TEST(Coverage, PrefixAndCompletenessFollowTheModel) {
  rc::check([](const std::vector<std::pair<uint8_t, uint8_t>>& steps) {
    constexpr size_t kCells = 12;
    Coverage coverage(kCells);
    std::vector<int> model(kCells);  // 0 empty, 1 claimed, 2 verified
    for (auto [what, where] : steps) {
      size_t first = where % kCells, count = 1 + where / kCells % 3;
      bool inside = first + count <= kCells;
      if (what % 3 == 0) {
        bool empty = inside;
        for (size_t i = first; inside && i < first + count; ++i) empty &= model[i] == 0;
        RC_ASSERT(coverage.Claim(first, count) == empty);
        for (size_t i = first; empty && i < first + count; ++i) model[i] = 1;
      } else if (inside) {
        bool verify = what % 3 == 1;
        verify ? coverage.Verify(first, count) : coverage.Release(first, count);
        for (size_t i = first; i < first + count; ++i) {
          if (model[i] == 1) model[i] = verify ? 2 : 0;
        }
      }
      size_t prefix = 0;
      while (prefix < kCells && model[prefix] == 2) ++prefix;
      RC_ASSERT(coverage.verified_prefix() == prefix);
      RC_ASSERT(coverage.complete() == (prefix == kCells));
    }
  });
}

TransferId Transfer(uint8_t n) {
  TransferId id;
  id.bytes[0] = n;
  return id;
}
RequestId Request(uint8_t n) {
  RequestId id;
  id.bytes[0] = n;
  return id;
}

TEST(Tombstones, AreBoundedAndForgetTheOldest) {
  Tombstones tombstones(2);
  tombstones.Add(Transfer(1), {Request(1), Attempt(1), false});
  tombstones.Add(Transfer(2), {Request(1), Attempt(3), false});
  tombstones.Add(Transfer(2), {Request(9), Attempt(9), false});  // the first word counts
  EXPECT_EQ(tombstones.LastAttempt(Request(1)), Attempt(3));
  tombstones.Add(Transfer(3), {Request(2), Attempt(1), true});
  EXPECT_EQ(tombstones.size(), 2u);
  EXPECT_EQ(tombstones.Find(Transfer(1)), nullptr);
  EXPECT_EQ(tombstones.LastAttempt(Request(1)), Attempt(3));
  tombstones.Add(Transfer(4), {Request(2), Attempt(2), true});
  EXPECT_EQ(tombstones.LastAttempt(Request(1)), std::nullopt);
  ASSERT_NE(tombstones.Find(Transfer(4)), nullptr);
  EXPECT_EQ(tombstones.LastAttempt(Request(9)), std::nullopt);
}

TEST(Tombstones, AnswerStragglers) {
  const Tombstone committed{Request(1), Attempt(1), true};
  const Tombstone aborted{Request(1), Attempt(1), false};
  for (const Body& body : {Body(Bind{}), Body(Offer{}), Body(Final{})}) {
    EXPECT_EQ(AnswerForClosed(committed, body), Body(Commit{}));
    EXPECT_EQ(AnswerForClosed(aborted, body), Body(Nack{NackCode::kExpired}));
  }
  EXPECT_EQ(AnswerForClosed(aborted, Cancel{Side::kReceiver}), Body(CancelAck{Side::kSender}));
  EXPECT_EQ(AnswerForClosed(aborted, CancelAck{Side::kReceiver}), std::nullopt);
}

TEST(Liveness, BeatsAndJudgesOnlyWithTransfers) {
  Liveness liveness(absl::Milliseconds(200), absl::Seconds(1));
  absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(liveness.NextDeadline(), absl::InfiniteFuture());
  EXPECT_FALSE(liveness.TakeHeartbeat(now));
  EXPECT_FALSE(liveness.Dead(now));
  liveness.Attach(now);
  liveness.Attach(now);
  EXPECT_TRUE(liveness.TakeHeartbeat(now));
  EXPECT_FALSE(liveness.TakeHeartbeat(now + absl::Milliseconds(199)));
  EXPECT_EQ(liveness.NextDeadline(), now + absl::Milliseconds(200));
  EXPECT_TRUE(liveness.TakeHeartbeat(now + absl::Milliseconds(200)));
  EXPECT_FALSE(liveness.Dead(now + absl::Milliseconds(999)));
  EXPECT_TRUE(liveness.Dead(now + absl::Seconds(1)));
  liveness.Heard(now + absl::Milliseconds(500));
  EXPECT_FALSE(liveness.Dead(now + absl::Seconds(1)));
  liveness.Forgive(absl::Seconds(10));  // we slept
  EXPECT_FALSE(liveness.Dead(now + absl::Seconds(11)));
  EXPECT_TRUE(liveness.Dead(now + absl::Seconds(11.5)));
  liveness.Detach();
  EXPECT_TRUE(liveness.active());
  liveness.Detach();
  EXPECT_FALSE(liveness.Dead(now + absl::Seconds(100)));
  EXPECT_EQ(liveness.NextDeadline(), absl::InfiniteFuture());
}

}  // namespace
}  // namespace sluice::handoff
