// Requests that come while a role has no ready worker: how long they wait in the queue.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class MissingRoleTest : public ::testing::Test {
 protected:
  static CoreOptions OnePlace() {
    CoreOptions options;
    options.max_running_requests = 1;
    options.queue_timeout = absl::Seconds(10);
    return options;
  }
  explicit MissingRoleTest(CoreOptions options = OnePlace()) : h_(std::move(options)) {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Only these report; timers fire when they are due.
  void Pass(absl::Duration time, std::vector<SessionId> alive) {
    for (const absl::Time end = h_.now + time; h_.now < end;) {
      h_.now = std::min({end, h_.core.NextTimer(h_.now), h_.now + absl::Milliseconds(200)});
      h_.Play(Tick{});
      for (const SessionId session : alive) {
        h_.Play(LoadReported{session, CoreHarness::ReadyLoad()});
      }
    }
  }

  CoreHarness h_;
  SessionId p_, d_;
};

TEST_F(MissingRoleTest, OnceTheRoleIsBackTheQueuesOwnTimeCounts) {
  const AttemptKey running = h_.StartDecode(p_, d_);
  h_.Play(WorkerLeft{p_, "restarted"});
  const RequestId id = h_.Submit();
  Pass(absl::Seconds(1), {d_});
  p_ = h_.Join("p", WorkerRole::kPrefill);
  Pass(absl::Seconds(8), {p_, d_});
  ASSERT_FALSE(h_.HasEnded(id));
  h_.PlayEnd(d_, running, AttemptEndReason::kStop);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
}

TEST_F(MissingRoleTest, AndEndsIt) {
  h_.StartDecode(p_, d_);
  h_.Play(WorkerLeft{p_, "restarted"});
  const RequestId id = h_.Submit();
  Pass(absl::Seconds(1), {d_});
  p_ = h_.Join("p", WorkerRole::kPrefill);
  Pass(absl::Seconds(9), {p_, d_});
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h_.ends.at(id)[0].reject, RejectReason::kQueueTimeout);
}

TEST_F(MissingRoleTest, ARoleThatIsLostAgainIsWaitedForAnew) {
  h_.StartDecode(p_, d_);
  h_.Play(WorkerLeft{p_, "restarted"});
  const RequestId id = h_.Submit();
  Pass(absl::Seconds(1), {d_});
  p_ = h_.Join("p", WorkerRole::kPrefill);
  Pass(absl::Seconds(1), {p_, d_});
  h_.Play(WorkerLeft{p_, "gone"});
  Pass(CoreOptions().no_worker_timeout - absl::Milliseconds(1), {d_});
  ASSERT_FALSE(h_.HasEnded(id));
  Pass(absl::Milliseconds(1), {d_});
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(h_.Result(id).status.message()), HasSubstr("no ready prefill worker"));
}

TEST_F(MissingRoleTest, ASilentWorkersRoleIsWaitedFor) {
  Pass(absl::Seconds(10), {p_, d_});
  const absl::Duration unreachable_after = CoreOptions().worker_timeout / 2;
  Pass(unreachable_after, {d_});
  const RequestId id = h_.Submit();
  EXPECT_FALSE(h_.HasEnded(id));
  Pass(CoreOptions().no_worker_timeout - absl::Milliseconds(1), {d_});
  EXPECT_FALSE(h_.HasEnded(id));
  Pass(absl::Milliseconds(1), {d_});
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(h_.HasEnded(h_.Submit())) << "now at once";
}

TEST_F(MissingRoleTest, ASilentWorkerThatSpeaksAgainTakesIt) {
  Pass(absl::Seconds(10), {p_, d_});
  Pass(CoreOptions().worker_timeout / 2, {d_});
  h_.Submit();
  h_.Play(LoadReported{p_, CoreHarness::ReadyLoad()});
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
}

TEST_F(MissingRoleTest, ADrainingWorkersRoleIsWaitedFor) {
  Pass(absl::Seconds(10), {p_, d_});
  WorkerLoad draining = CoreHarness::ReadyLoad();
  draining.draining = true;
  h_.Play(LoadReported{p_, draining});
  const RequestId id = h_.Submit();
  EXPECT_FALSE(h_.HasEnded(id));
  h_.Join("q", WorkerRole::kPrefill);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
}

TEST_F(MissingRoleTest, AWorkerThatIsNoLongerReadyIsWaitedFor) {
  Pass(absl::Seconds(10), {p_, d_});
  WorkerLoad not_ready = CoreHarness::ReadyLoad();
  not_ready.ready = false;
  h_.Play(LoadReported{p_, not_ready});
  const RequestId id = h_.Submit();
  EXPECT_FALSE(h_.HasEnded(id));
}

}  // namespace
}  // namespace sluice::router
