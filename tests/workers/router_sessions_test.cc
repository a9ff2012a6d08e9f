// Attaching to routers by name: with a resolver that does not answer, or finds nothing.
#include "services/worker_runtime/router_sessions.h"

#include <gmock/gmock.h>
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
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

// A name server in the middle of an outage.
class HangingResolver {
 public:
  Resolver AsResolver() {
    return [this](const std::string& host_port) -> absl::StatusOr<std::vector<std::string>> {
      {
        absl::MutexLock lock(&mu_);
        asked_.push_back(host_port);
      }
      outage_ends_.WaitForNotification();
      return absl::UnavailableError("outage");
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
  EXPECT_TRUE(Eventually([&] { return resolver.asked().size() == 2; }));

  std::thread stop([&] { sessions.Stop(); });
  EXPECT_TRUE(Eventually([&] { return !router.IsAttached("w"); }));
  resolver.EndOutage();
  stop.join();
  // Nobody is asked again.
  EXPECT_THAT(resolver.asked(), UnorderedElementsAre("first:1", "second:2"));
}

// Whichever comes first in the list, the other one's routers are dialled, and nothing that is known
// is given up while a name has not been resolved.
TEST(RouterSessions, ASlowLookupHoldsUpNoOtherName) {
  FakeRouter first, second;
  first.RefuseWith("not yet");  // dialled again and again, never attached
  absl::Notification outage_ends;
  absl::Mutex mu;
  std::vector<std::string> quick = {first.address()};
  int num_quick_lookups = 0;
  const auto lookups = [&] {
    absl::MutexLock lock(&mu);
    return num_quick_lookups;
  };
  RouterSessionsOptions options;
  options.routers = {"dns:slow-a:1", "dns:quick:1", "dns:slow-b:1"};
  options.resolve_interval = absl::Milliseconds(10);
  options.resolver = [&](const std::string& host_port) -> absl::StatusOr<std::vector<std::string>> {
    if (host_port != "quick:1") {
      outage_ends.WaitForNotification();
      return absl::UnavailableError("outage");
    }
    absl::MutexLock lock(&mu);
    ++num_quick_lookups;
    return quick;
  };
  WorkerIdentity identity;
  identity.worker_id = "w";
  identity.role = "decode";
  MetricsRegistry registry;
  WorkerMetrics metrics(&registry);
  LoadBoard board(RealClock().Now());
  EngineLoop loop(/*engine=*/nullptr, /*handler=*/nullptr, &board, &metrics, &RealClock());
  RouterSessions sessions(options, identity, &board, &metrics, &RealClock(), [] { return true; });
  sessions.Start(&loop);
  EXPECT_TRUE(Eventually([&] { return lookups() > 0; }));
  {
    absl::MutexLock lock(&mu);
    quick = {second.address()};
  }
  EXPECT_TRUE(second.WaitForWorker("w"));
  // Further lookups that no longer name the first.
  const int before = lookups();
  EXPECT_TRUE(Eventually([&] { return lookups() >= before + 3; }));
  first.RefuseWith("");
  EXPECT_TRUE(first.WaitForWorker("w"));
  outage_ends.Notify();
  sessions.Stop();
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

TEST(RouterSessions, WithoutASessionNamesTheRoutersAndWhyTheyAreNotFound) {
  RouterSessionsOptions options;
  options.routers = {"dns:lost:1"};
  options.resolver = [](const std::string&) { return absl::NotFoundError("no such name"); };
  MetricsRegistry registry;
  WorkerMetrics metrics(&registry);
  LoadBoard board(RealClock().Now());
  EngineLoop loop(/*engine=*/nullptr, /*handler=*/nullptr, &board, &metrics, &RealClock());
  RouterSessions sessions(options, WorkerIdentity(), &board, &metrics, &RealClock(),
                          [] { return true; });
  sessions.Start(&loop);
  EXPECT_TRUE(Eventually([&] {
    return sessions.NotAttachedReason() ==
           "not attached to any router (dns:lost:1); lost:1: no such name";
  }));
}

TEST(RouterNames, LogsAFailureOnceAndWhenItEnds) {
  absl::StatusOr<std::vector<std::string>> answer = absl::NotFoundError("no such name");
  RouterNames names([&](const std::string&) { return answer; });
  const auto log_of_lookup = [&] {
    ::testing::internal::CaptureStderr();
    names.LookUp("lost:1").IgnoreError();
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(log_of_lookup(), HasSubstr("router name lost:1 does not resolve: no such name"));
  EXPECT_EQ(log_of_lookup(), "");
  EXPECT_EQ(names.Failures(), "lost:1: no such name");
  answer = absl::UnavailableError("try again");
  EXPECT_THAT(log_of_lookup(), HasSubstr("does not resolve: try again"));
  answer = std::vector<std::string>{"10.0.0.1:1", "10.0.0.2:1"};
  EXPECT_THAT(log_of_lookup(), HasSubstr("router name lost:1 resolves, to 10.0.0.1:1, 10.0.0.2:1"));
  EXPECT_EQ(log_of_lookup(), "");
  EXPECT_EQ(names.Failures(), "");
  answer = std::vector<std::string>{};
  EXPECT_THAT(log_of_lookup(), HasSubstr("does not resolve: it has no address"));
}

TEST(RouterNames, ANameThatWorksFromTheBeginningIsNoNews) {
  RouterNames names([](const std::string&) { return std::vector<std::string>{"10.0.0.1:1"}; });
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(names.LookUp("router:1").ok());
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(RouterNames, TheSystemsResolverSaysWhy) {
  RouterNames names(nullptr);
  const auto local = names.LookUp("localhost:8002");
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_THAT(*local, Contains(AnyOf("127.0.0.1:8002", "[::1]:8002")));
  // Not even a legal name, so that no name server is asked.
  EXPECT_FALSE(names.LookUp(std::string(300, 'x') + ":8002").ok());
  EXPECT_NE(names.Failures(), "");
}

}  // namespace
}  // namespace sluice::worker
