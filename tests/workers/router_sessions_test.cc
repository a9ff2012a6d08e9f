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

}  // namespace
}  // namespace sluice::worker
