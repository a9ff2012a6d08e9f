// Attaching to routers by name, with a resolver that does not answer.
#include "services/worker_runtime/router_sessions.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "metrics/metrics.h"
#include "tests/workers/fake_router.h"
#include "tests/workers/router_script.h"

namespace sluice::worker {
namespace {

using sluice::testing::Eventually;
using sluice::testing::FakeRouter;

// A name server in the middle of an outage.
class HangingResolver {
 public:
  RouterSessionsOptions::Resolver AsResolver() {
    return [this](const std::string& host_port) {
      {
        absl::MutexLock lock(&mu_);
        asked_.push_back(host_port);
      }
      outage_ends_.WaitForNotification();
      return std::vector<std::string>();
    };
  }
  void EndOutage() { outage_ends_.Notify(); }
  std::vector<std::string> asked() const {
    absl::MutexLock lock(&mu_);
    return asked_;
  }

 private:
  absl::Notification outage_ends_;
  mutable absl::Mutex mu_;
  std::vector<std::string> asked_ ABSL_GUARDED_BY(mu_);
};

TEST(RouterSessions, StopSaysGoodbyeWhileTheResolverHangs) {
  FakeRouter router;
  HangingResolver resolver;
  RouterSessionsOptions options;
  options.routers = {router.address(), "dns:first:1", "dns:second:2"};
  options.resolver = resolver.AsResolver();
  WorkerIdentity identity;
  identity.worker_id = "w";
  identity.role = "decode";
  MetricsRegistry registry;
  WorkerMetrics metrics(&registry);
  LoadBoard board(RealClock().Now());
  EngineLoop loop(/*engine=*/nullptr, /*handler=*/nullptr, &board, &metrics, &RealClock());
  RouterSessions sessions(options, identity, &board, &metrics, &RealClock(), [] { return true; });
  sessions.Start(&loop);
  ASSERT_TRUE(router.WaitForWorker("w"));
  EXPECT_TRUE(Eventually([&] { return resolver.asked().size() == 1; }));

  std::thread stop([&] { sessions.Stop(); });
  EXPECT_TRUE(Eventually([&] { return !router.IsAttached("w"); }));
  resolver.EndOutage();
  stop.join();
  // The other name is no longer of interest.
  EXPECT_EQ(resolver.asked(), std::vector<std::string>{"first:1"});
}

// The router waits for an answer to each order; one that cannot be read is answered too, and the
// session goes on.
TEST(RouterSessions, AnUndecodableOrderIsRefusedNotForgotten) {
  sluice::testing::RouterScript script;
  RouterSessionsOptions options;
  options.routers = {script.router().address()};
  WorkerIdentity identity;
  identity.worker_id = "w";
  identity.role = "both";
  MetricsRegistry registry;
  WorkerMetrics metrics(&registry);
  LoadBoard board(RealClock().Now());
  EngineLoop loop(/*engine=*/nullptr, /*handler=*/nullptr, &board, &metrics, &RealClock());
  RouterSessions sessions(options, identity, &board, &metrics, &RealClock(), [] { return true; });
  sessions.Start(&loop);
  ASSERT_TRUE(script.router().WaitForWorker("w"));

  rpc::SequenceAttempt sequence = script.MakeSequence(1, 5, 8);
  sequence.sampling.top_p = 0;
  v1::RouterMessage nameless;
  rpc::Encode(sequence, nameless.mutable_run());
  nameless.mutable_run()->set_request_id("short");
  EXPECT_TRUE(script.router().Send("w", nameless));
  script.SendRun("w", sequence);
  const v1::RequestEnded run_end = script.WaitForEnd("w", sequence);
  EXPECT_EQ(run_end.reason(), v1::RequestEnded::REASON_FAILED);
  EXPECT_EQ(run_end.status_code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_NE(run_end.message().find("top_p"), std::string::npos) << run_end.message();

  rpc::SequenceAttempt reserved = script.MakeSequence(2, 5, 8);
  reserved.sampling.repetition_penalty = 0;
  script.SendReserve("w", reserved);
  EXPECT_EQ(script.WaitForEnd("w", reserved).status_code(), run_end.status_code());

  rpc::PrefillOrder order;
  const rpc::SequenceAttempt prefilled = script.MakeSequence(3, 5, 8);
  order.sequence = prefilled;  // and a grant of nobody
  v1::RouterMessage prefill;
  rpc::Encode(order, prefill.mutable_prefill());
  EXPECT_TRUE(script.router().Send("w", prefill));
  EXPECT_EQ(script.WaitForEnd("w", prefilled).status_code(), run_end.status_code());
  EXPECT_EQ(script.router().num_registrations(), 1);
  sessions.Stop();
}

}  // namespace
}  // namespace sluice::worker
