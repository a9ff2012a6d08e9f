// Requests that no decode worker had room for: who tries again when there may be some.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "services/router/core/waiting_lines.h"
#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class RoomLineTest : public ::testing::Test {
 protected:
  RoomLineTest() {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Whoever is asked for now is refused. The requests' ids.
  std::vector<RequestId> RefuseAll() {
    std::vector<RequestId> refused;
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      refused.push_back(reserve.sequence.key.request);
      h_.Play(AnsweredBusy{reserve.to, reserve.sequence.key, "full", absl::ZeroDuration()});
    }
    return refused;
  }
  // `count` new requests that are refused for so long that their pauses have become long.
  std::vector<RequestId> SubmitRefused(int count) {
    std::vector<RequestId> ids;
    for (int i = 0; i < count; ++i) {
      ids.push_back(h_.Submit());
      h_.now += absl::Milliseconds(1);
    }
    for (int i = 0; i < 50; ++i) {
      RefuseAll();
      h_.AdvanceAlive(absl::Milliseconds(10));
    }
    RefuseAll();
    EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty());
    return ids;
  }

  CoreHarness h_;
  SessionId p_, d_;
};

TEST_F(RoomLineTest, AnEndLetsTheFirstTryAndEachGrantTheNext) {
  const AttemptKey running = h_.StartDecode(p_, d_);
  const std::vector<RequestId> ids = SubmitRefused(3);
  h_.PlayEnd(d_, running, AttemptEndReason::kStop);
  for (int i = 0; i < 2; ++i) {
    const std::vector<SendReserve> asked = h_.Take<SendReserve>();
    ASSERT_THAT(asked, SizeIs(1)) << i;
    EXPECT_EQ(asked[0].sequence.key.request, ids[i]);
    h_.PlayGrant(d_, asked[0].sequence.key);
  }
  EXPECT_THAT(RefuseAll(), ElementsAre(ids[2]));
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty()) << "a refusal ends it";
}

TEST_F(RoomLineTest, AReportLetsTheFirstTry) {
  const std::vector<RequestId> ids = SubmitRefused(2);
  h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
  EXPECT_THAT(RefuseAll(), ElementsAre(ids[0]));
  h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
  EXPECT_THAT(RefuseAll(), ElementsAre(ids[0])) << "it keeps its place";
}

TEST_F(RoomLineTest, AnswersThatHaveBegunGoFirstAndKeepNewOnesOut) {
  const AttemptKey begun = h_.StartDecode(p_, d_);
  const AttemptKey other = h_.StartDecode(p_, d_);
  SubmitRefused(1);
  h_.Play(AttemptPreempted{d_, begun});
  EXPECT_THAT(RefuseAll(), ElementsAre(begun.request));
  h_.Submit();  // at once: its client has nothing to lose yet
  EXPECT_EQ(h_.core.num_queued(), 1);
  h_.PlayEnd(d_, other, AttemptEndReason::kStop);
  EXPECT_THAT(RefuseAll(), ElementsAre(begun.request));
}

TEST_F(RoomLineTest, AFullPrefillQueueIsNotAskedWithoutAPause) {
  const std::vector<RequestId> ids = SubmitRefused(2);
  h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
  std::multiset<RequestId> asked;
  for (std::vector<SendReserve> reserves; !(reserves = h_.Take<SendReserve>()).empty();) {
    for (const SendReserve& reserve : reserves) {
      asked.insert(reserve.sequence.key.request);
      ASSERT_LE(asked.size(), 4u) << "each once, and once more without p";
      h_.PlayGrant(d_, reserve.sequence.key);
    }
    for (const SendPrefill& prefill : h_.Take<SendPrefill>()) {
      h_.PlayEnd(prefill.to, prefill.sequence.key, AttemptEndReason::kFailed,
                 absl::ResourceExhaustedError("queue full"), "prefill");
    }
    for (const SendCancel& cancel : h_.Take<SendCancel>()) {
      h_.PlayEnd(cancel.to, cancel.key, AttemptEndReason::kCancelled);
    }
  }
  for (const RequestId& id : ids) EXPECT_TRUE(asked.contains(id));
}

// The same, when the other decode worker is full, which was heard last.
TEST_F(RoomLineTest, AFullPrefillQueueBesideAFullPoolNeither) {
  h_.Join("d2", WorkerRole::kDecode);
  h_.sent.clear();
  h_.Submit();
  int num_asked = 0;
  for (std::vector<SendReserve> reserves; !(reserves = h_.Take<SendReserve>()).empty();) {
    for (const SendReserve& reserve : reserves) {
      ASSERT_LE(++num_asked, 4);
      if (reserve.to == d_) {
        h_.PlayGrant(d_, reserve.sequence.key);
      } else {
        h_.Play(AnsweredBusy{reserve.to, reserve.sequence.key, "full", absl::ZeroDuration()});
      }
    }
    for (const SendPrefill& prefill : h_.Take<SendPrefill>()) {
      h_.PlayEnd(prefill.to, prefill.sequence.key, AttemptEndReason::kFailed,
                 absl::ResourceExhaustedError("queue full"), "prefill");
    }
  }
  EXPECT_EQ(num_asked, 3) << "the first, who is full, and once more without p";
}

TEST_F(RoomLineTest, AFailureIsLeftAloneForThePause) {
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  h_.Join("p2", WorkerRole::kPrefill);
  h_.sent.clear();
  const RequestId id = h_.Submit();
  const SendReserve first = h_.Take<SendReserve>().at(0);
  ASSERT_EQ(first.to, d_);
  h_.PlayGrant(d_, first.sequence.key);
  h_.PlayEnd(h_.Take<SendPrefill>().at(0).to, first.sequence.key, AttemptEndReason::kFailed,
             absl::UnavailableError("the link is broken"), "kv_transfer");
  const SendReserve second = h_.Take<SendReserve>().at(0);
  ASSERT_EQ(second.to, d2);
  h_.Play(AnsweredBusy{d2, second.sequence.key, "full", absl::ZeroDuration()});
  h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty());
  h_.AdvanceAlive(CoreOptions().max_retry_pause);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
  EXPECT_FALSE(h_.HasEnded(id));
}

TEST_F(RoomLineTest, OnlyTheWorkerThatMayHaveRoomIsAsked) {
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  h_.sent.clear();
  const std::vector<RequestId> ids = SubmitRefused(1);
  h_.Play(LoadReported{d2, CoreHarness::ReadyLoad()});
  const std::vector<SendReserve> asked = h_.Take<SendReserve>();
  ASSERT_THAT(asked, SizeIs(1));
  EXPECT_EQ(asked[0].to, d2);
  h_.Play(AnsweredBusy{d2, asked[0].sequence.key, "full", absl::ZeroDuration()});
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty());
}

TEST_F(RoomLineTest, IfThatWorkerIsLostTheOthersAreAskedAtOnce) {
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  h_.sent.clear();
  SubmitRefused(1);
  h_.Play(LoadReported{d2, CoreHarness::ReadyLoad()});
  h_.Take<SendReserve>();
  h_.Play(WorkerLeft{d2, "killed"});
  const std::vector<SendReserve> asked = h_.Take<SendReserve>();
  ASSERT_THAT(asked, SizeIs(1));
  EXPECT_EQ(asked[0].to, d_);
}

TEST_F(RoomLineTest, IfThatWorkerIsSilentTheOthersAreAskedAndThenThePauseCounts) {
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  h_.sent.clear();
  SubmitRefused(1);
  h_.Play(LoadReported{d2, CoreHarness::ReadyLoad()});
  h_.Take<SendReserve>();
  h_.AdvanceAlive(CoreOptions().reserve_timeout);
  const std::vector<SendReserve> asked = h_.Take<SendReserve>();
  ASSERT_THAT(asked, SizeIs(1));
  EXPECT_EQ(asked[0].to, d_);
  h_.Play(AnsweredBusy{d_, asked[0].sequence.key, "full", absl::ZeroDuration()});
  h_.Play(Tick{});
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty());
}

TEST_F(RoomLineTest, AWorkerThatFailsAReserveIsNotOfferedToTheNext) {
  SubmitRefused(3);
  h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  h_.PlayEnd(d_, reserve.sequence.key, AttemptEndReason::kFailed,
             absl::InternalError("receives are in flight"), "reserve");
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty());
}

TEST_F(RoomLineTest, WhoeverIsTooLongForTheWorkerIsPassedOver) {
  WorkerInfo info = CoreHarness::Info("small", WorkerRole::kDecode);
  info.max_model_len = 12;
  const SessionId small = h_.Join(info);
  h_.sent.clear();
  h_.Submit(500);
  const RequestId short_id = h_.Submit(5);
  for (int i = 0; i < 20; ++i) {
    RefuseAll();
    h_.AdvanceAlive(absl::Milliseconds(10));
  }
  RefuseAll();
  h_.Play(LoadReported{small, CoreHarness::ReadyLoad()});
  EXPECT_THAT(RefuseAll(), ElementsAre(short_id));
}

TEST_F(RoomLineTest, APrefillWorkerHasNoRoomToOffer) {
  SubmitRefused(1);
  h_.Play(LoadReported{p_, CoreHarness::ReadyLoad()});
  h_.PlayEnd(p_, {RequestId(), Attempt(1)}, AttemptEndReason::kHandedOver);
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty());
}

TEST_F(RoomLineTest, WhoeverLeavesTheLineIsNotTried) {
  const std::vector<RequestId> ids = SubmitRefused(2);
  h_.Play(RequestCancelled{ids[0], false});
  h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
  EXPECT_THAT(RefuseAll(), ElementsAre(ids[1]));
}

// Chances do not make the pause longer, nor put it off.
TEST_F(RoomLineTest, TheTimerStays) {
  const RequestId id = h_.Submit();
  RefuseAll();
  for (int i = 0; i < 10; ++i) {
    h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
    EXPECT_THAT(RefuseAll(), ElementsAre(id));
  }
  h_.Advance(CoreOptions().min_retry_pause);
  EXPECT_THAT(RefuseAll(), ElementsAre(id));
}

TEST_F(RoomLineTest, ARoleThatIsGoneAtTheGrantIsWaitedFor) {
  const RequestId id = h_.Submit();
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  h_.Play(WorkerLeft{p_, "restarted"});
  h_.PlayGrant(d_, reserve.sequence.key);
  h_.AdvanceAlive(CoreOptions().no_worker_timeout / 2);
  ASSERT_FALSE(h_.HasEnded(id));
  h_.Take<SendReserve>();
  h_.Join("p", WorkerRole::kPrefill);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
}

TEST(WaitingLinesTest, OrderAndPlaces) {
  const auto id = [](int number) {
    RequestId made;
    made.bytes[0] = static_cast<uint8_t>(number);
    return made;
  };
  const absl::Time t = absl::UnixEpoch();
  WaitingLines lines;
  EXPECT_THAT(lines.FirstForRoom(1), IsEmpty());
  lines.Place(id(1), WaitsFor::kRoom, /*has_begun=*/false, t);
  lines.Place(id(2), WaitsFor::kRoom, /*has_begun=*/true, t + absl::Seconds(2));
  lines.Place(id(3), WaitsFor::kRoom, /*has_begun=*/true, t + absl::Seconds(1));
  EXPECT_THAT(lines.FirstForRoom(1), ElementsAre(id(3)));
  lines.Place(id(3), WaitsFor::kRole, /*has_begun=*/true, t);
  EXPECT_THAT(lines.FirstForRoom(1), ElementsAre(id(2)));
  lines.Place(id(2), WaitsFor::kTime, /*has_begun=*/true, t);
  EXPECT_THAT(lines.FirstForRoom(1), ElementsAre(id(1)));
  lines.Place(id(1), WaitsFor::kRole, /*has_begun=*/false, t);
  EXPECT_THAT(lines.FirstForRoom(1), IsEmpty());
  EXPECT_THAT(lines.RoleLine(), ElementsAre(id(3), id(1)));
}

}  // namespace
}  // namespace sluice::router
