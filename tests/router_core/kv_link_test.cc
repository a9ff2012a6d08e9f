// Transfers fail between two workers that are both well: who is brought together then.
#include <gtest/gtest.h>

#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

class KvLinkTest : public ::testing::Test {
 protected:
  KvLinkTest() {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    p2_ = h_.Join("p2", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // The reserved attempt is granted: where its Prefill went.
  SendPrefill Grant() {
    const SendReserve reserve = h_.Take<SendReserve>().at(0);
    h_.PlayGrant(reserve.to, reserve.sequence.key);
    return h_.Take<SendPrefill>().at(0);
  }
  void FailTransfer(const SendPrefill& prefill) {
    h_.PlayEnd(prefill.to, prefill.sequence.key, AttemptEndReason::kFailed,
               absl::UnavailableError("no route"), "kv_transfer");
  }
  void Finish(const SendPrefill& prefill) {
    h_.PlayToken(prefill.to, prefill.sequence.key, 0, 100);
    h_.PlayKv(d_, prefill.sequence.key);
    h_.PlayEnd(prefill.to, prefill.sequence.key, AttemptEndReason::kHandedOver);
    h_.PlayToken(d_, prefill.sequence.key, 1, 101);
    h_.PlayEnd(d_, prefill.sequence.key, AttemptEndReason::kStop);
  }

  CoreHarness h_;
  SessionId p_, p2_, d_;
};

// With one decode worker both ends of the failed transfer are left out for a round; afterwards the
// other prefill worker is asked, although the first is idle again.
TEST_F(KvLinkTest, TheNextRoundGoesAroundIt) {
  const RequestId id = h_.Submit();
  const SendPrefill first = Grant();
  ASSERT_EQ(first.to, p_);
  FailTransfer(first);
  h_.AdvanceAlive(absl::Milliseconds(200));
  const SendPrefill second = Grant();
  EXPECT_EQ(second.to, p2_);
  Finish(second);
  EXPECT_TRUE(h_.Result(id).status.ok());
}

TEST_F(KvLinkTest, OtherRequestsGoAroundItForAWhile) {
  h_.Submit();
  FailTransfer(Grant());
  h_.AdvanceAlive(absl::Milliseconds(200));
  Grant();
  h_.Submit();
  EXPECT_EQ(Grant().to, p2_);  // although p2 has work already
  h_.AdvanceAlive(CoreOptions().link_suspicion);
  h_.Submit();
  EXPECT_EQ(Grant().to, p_);
}

TEST_F(KvLinkTest, WhatArrivesEndsTheSuspicion) {
  h_.Submit();
  h_.Submit();
  std::vector<SendReserve> reserves = h_.Take<SendReserve>();
  std::vector<SendPrefill> prefills;
  for (const SendReserve& reserve : reserves) {
    h_.PlayGrant(d_, reserve.sequence.key);
    prefills.push_back(h_.Take<SendPrefill>().at(0));
  }
  ASSERT_EQ(prefills[0].to, p_);
  ASSERT_EQ(prefills[1].to, p2_);
  h_.Submit();
  const SendPrefill third = Grant();
  ASSERT_EQ(third.to, p_);
  FailTransfer(prefills[0]);
  h_.PlayToken(p_, third.sequence.key, 0, 100);
  h_.PlayKv(d_, third.sequence.key);
  h_.Submit();
  EXPECT_EQ(Grant().to, p_);
}

// A suspect way is better than none.
TEST_F(KvLinkTest, TheOnlyWayIsTriedAgainUntilItHolds) {
  h_.Play(WorkerLeft{p2_, "killed"});
  const RequestId id = h_.Submit();
  const absl::Time begin = h_.now;
  int failures = 0;
  while (!h_.HasEnded(id) && h_.now - begin < absl::Minutes(1)) {
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      h_.PlayGrant(d_, reserve.sequence.key);
      FailTransfer(h_.Take<SendPrefill>().at(0));
      ++failures;
    }
    h_.AdvanceAlive(absl::Milliseconds(10));
  }
  EXPECT_EQ(failures, CoreOptions().max_failures);
  // As long as the longest pause of the channel before it connects again.
  EXPECT_GT(h_.now - begin, absl::Seconds(2));
  EXPECT_LT(h_.now - begin, absl::Seconds(5));
}

// Transfers of p to d and of p2 to d2 fail after their first tokens, when nobody is left out any
// more: the other two ways are found.
TEST_F(KvLinkTest, TwoBrokenLinksLeaveTheOtherTwo) {
  h_.Join("d2", WorkerRole::kDecode);
  const auto is_broken = [&](SessionId prefill, SessionId decode) {
    return (prefill == p_) == (decode == d_);
  };
  const RequestId id = h_.Submit();
  int failures = 0;
  for (int i = 0; i < 200 && !h_.HasEnded(id); ++i) {
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      h_.PlayGrant(reserve.to, reserve.sequence.key);
      const SendPrefill prefill = h_.Take<SendPrefill>().at(0);
      h_.PlayToken(prefill.to, prefill.sequence.key, prefill.sequence.num_output_tokens, 100);
      if (is_broken(prefill.to, reserve.to)) {
        FailTransfer(prefill);
        ++failures;
      } else {
        h_.PlayKv(reserve.to, prefill.sequence.key);
        h_.PlayEnd(reserve.to, prefill.sequence.key, AttemptEndReason::kStop);
      }
    }
    h_.AdvanceAlive(absl::Milliseconds(10));
  }
  EXPECT_TRUE(h_.Result(id).status.ok()) << h_.Result(id).status;
  EXPECT_LE(failures, 2);
}

// A worker that nobody reaches seems to have room; the one that is full will have some.
TEST_F(KvLinkTest, AFullWorkerIsWaitedForRatherThanOneThatIsCutOff) {
  h_.Play(WorkerLeft{p2_, "killed"});
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  const RequestId id = h_.Submit();
  int failures = 0;
  for (int i = 0; i < 100; ++i) {
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      if (reserve.to == d2) {
        h_.Play(AnsweredBusy{d2, reserve.sequence.key, "full", absl::Milliseconds(10)});
      } else {
        h_.PlayGrant(d_, reserve.sequence.key);
        FailTransfer(h_.Take<SendPrefill>().at(0));
        ++failures;
      }
    }
    h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});  // there is room, it says
    h_.AdvanceAlive(absl::Milliseconds(15));
  }
  ASSERT_FALSE(h_.HasEnded(id));
  EXPECT_EQ(failures, 1);  // until the suspicion is over
}

TEST(KvLinksTest, AFailureAfterTheSuspicionDoublesIt) {
  KvLinks links(absl::Seconds(2));
  const KvLink link = {SessionId(1), SessionId(2)};
  absl::Time now = absl::UnixEpoch();
  for (const int seconds : {2, 4, 8, 8}) {
    links.OnFailed(link, now);
    links.OnFailed(link, now + absl::Seconds(1));  // one more of the same accident
    EXPECT_EQ(links.Suspect(now + absl::Seconds(seconds) - absl::Milliseconds(1)).size(), 1u);
    now += absl::Seconds(seconds);
    EXPECT_TRUE(links.Suspect(now).empty());
  }
  links.OnArrived(link);
  links.OnFailed(link, now);
  EXPECT_TRUE(links.Suspect(now + absl::Seconds(2)).empty());
}

TEST(KvLinksTest, WhoLeavesIsForgotten) {
  KvLinks links(absl::Seconds(2));
  const absl::Time now = absl::UnixEpoch();
  links.OnFailed({SessionId(1), SessionId(2)}, now);
  links.OnFailed({SessionId(3), SessionId(1)}, now);
  links.OnFailed({SessionId(3), SessionId(4)}, now);
  links.Forget(SessionId(1));
  EXPECT_EQ(links.Suspect(now).size(), 1u);
}

}  // namespace
}  // namespace sluice::router
