// Dispatcher thread and fleet server with fake workers over real gRPC on loopback.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/clock.h"
#include "common/host_port.h"
#include "common/random.h"
#include "services/router/fleet/admin_address.h"
#include "services/router/fleet/dispatcher_thread.h"
#include "services/router/fleet/fleet_server.h"
#include "services/rpc/fleet_codec.h"
#include "tests/support/fake_fleet_worker.h"
#include "tests/support/recording_sink.h"

namespace sluice::router {
namespace {

using ::sluice::testing::FakeAnswer;
using ::sluice::testing::FakeFleetWorker;
using ::sluice::testing::FakeWorkerOptions;
using ::sluice::testing::RecordingSink;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);  // of a loaded test machine

template <typename Condition>
bool WaitFor(Condition condition) {
  const absl::Time give_up_at = MonotonicNow() + kPatience;
  while (!condition()) {
    if (MonotonicNow() > give_up_at) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class FleetTest : public ::testing::Test {
 protected:
  void SetUp() override { StartRouter({}, {}); }
  void TearDown() override {
    for (auto& worker : workers_) worker.reset();
    StopRouter();
  }

  void StartRouter(CoreOptions core, FleetServerOptions server) {
    StopRouter();
    core.protocol_version = std::string(rpc::kProtocolVersion);
    DispatcherOptions options;
    options.core = std::move(core);
    dispatcher_ = std::make_unique<DispatcherThread>(std::move(options), nullptr);
    server.router_id = "router under test";
    auto started = FleetServer::Start(server, dispatcher_.get());
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    dispatcher_->Start(server_.get());
  }
  void StopRouter() {
    if (dispatcher_ != nullptr) dispatcher_->Stop();
    server_.reset();
    dispatcher_.reset();
  }

  FakeWorkerOptions Options(const std::string& worker_id, WorkerRole role) {
    FakeWorkerOptions options;
    options.router_address = "127.0.0.1:" + std::to_string(server_->port());
    options.worker_id = worker_id;
    options.role = role;
    options.fabric = fabric_;
    return options;
  }
  FakeFleetWorker* AddWorker(const std::string& worker_id, WorkerRole role) {
    return AddWorker(Options(worker_id, role));
  }
  FakeFleetWorker* AddWorker(FakeWorkerOptions options) {
    workers_.push_back(FakeFleetWorker::Start(std::move(options)));
    return workers_.back().get();
  }
  bool WaitUntilReady() {
    return WaitFor([&] { return dispatcher_->NotReadyReason().empty(); });
  }
  std::string StateOf(const std::string& worker_id) {
    for (const WorkerSnapshot& worker : dispatcher_->Snapshot().workers) {
      if (worker.worker_id == worker_id) return worker.state;
    }
    return "absent";
  }

  struct Request {
    RequestId id;
    std::vector<TokenId> prompt;
    std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
  };
  Request Submit(int prompt_tokens, int max_tokens, absl::Duration timeout = absl::Minutes(1)) {
    Request request;
    request.id = RandomId128<RequestId>();
    GenerationSpec spec;
    spec.id = request.id;
    for (int i = 0; i < prompt_tokens; ++i) {
      request.prompt.push_back(static_cast<TokenId>(RandomUint64() % 1000));
    }
    spec.prompt = request.prompt;
    spec.sampling.max_tokens = max_tokens;
    spec.deadline = MonotonicNow() + timeout;
    dispatcher_->Submit(std::move(spec), request.sink);
    return request;
  }
  bool NothingHeld() {
    return WaitFor([&] {
      for (const auto& worker : workers_) {
        if (worker != nullptr && worker->num_sequences() > 0) return false;
      }
      const ClusterSnapshot snapshot = dispatcher_->Snapshot();
      return snapshot.requests_running == 0 && snapshot.requests_queued == 0;
    });
  }

  std::shared_ptr<::sluice::testing::FakeKvFabric> fabric_ = ::sluice::testing::MakeFakeKvFabric();
  std::unique_ptr<DispatcherThread> dispatcher_;
  std::unique_ptr<FleetServer> server_;
  std::vector<std::unique_ptr<FakeFleetWorker>> workers_;
};

TEST_F(FleetTest, DisaggregatedAnswers) {
  EXPECT_THAT(dispatcher_->NotReadyReason(), HasSubstr("no ready prefill worker"));
  AddWorker("p", WorkerRole::kPrefill);
  AddWorker("d", WorkerRole::kDecode);
  ASSERT_TRUE(WaitUntilReady());
  std::vector<Request> requests;
  for (int i = 0; i < 20; ++i) requests.push_back(Submit(10 + i, 1 + 3 * i));
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(requests[i].sink->WaitForEnd(kPatience));
    const GenerationResult result = requests[i].sink->result();
    EXPECT_EQ(result.end, GenerationEnd::kLength) << result.status;
    EXPECT_EQ(requests[i].sink->tokens(), FakeAnswer(requests[i].prompt, 1 + 3 * i));
    EXPECT_EQ(requests[i].sink->num_ends(), 1);
    EXPECT_TRUE(result.stages.contains("prefill"));
  }
  EXPECT_TRUE(NothingHeld());
  const ClusterSnapshot snapshot = dispatcher_->Snapshot();
  ASSERT_EQ(snapshot.workers.size(), 2u);
  EXPECT_EQ(snapshot.workers[0].model, "fake-model");
  EXPECT_EQ(snapshot.max_model_len, 4096);
}

TEST_F(FleetTest, AWorkerThatListensEverywhereIsShownWhereItsStreamComesFrom) {
  FakeWorkerOptions everywhere = Options("everywhere", WorkerRole::kBoth);
  everywhere.admin_address = "0.0.0.0:9003";
  AddWorker(everywhere);
  FakeWorkerOptions local = Options("local", WorkerRole::kBoth);
  local.admin_address = "10.1.2.3:9003";
  AddWorker(local);
  ASSERT_TRUE(WaitFor([&] { return dispatcher_->Snapshot().workers.size() == 2; }));
  for (const WorkerSnapshot& worker : dispatcher_->Snapshot().workers) {
    EXPECT_EQ(worker.address, worker.worker_id == "local" ? "10.1.2.3:9003" : "127.0.0.1:9003");
  }
}

TEST_F(FleetTest, SoIsOneThatIsReachedByIpv6) {
  FleetServerOptions server;
  server.host = "::1";
  if (!FleetServer::Start(server, dispatcher_.get()).ok()) GTEST_SKIP() << "no IPv6 here";
  StartRouter({}, server);
  FakeWorkerOptions everywhere = Options("everywhere", WorkerRole::kBoth);
  everywhere.router_address = JoinHostPort("::1", server_->port());
  everywhere.admin_address = "[::]:9003";
  AddWorker(everywhere);
  ASSERT_TRUE(WaitFor([&] { return dispatcher_->Snapshot().workers.size() == 1; }));
  EXPECT_EQ(dispatcher_->Snapshot().workers[0].address, "[::1]:9003");
}

TEST(AdminAddressTest, OnlyTheWildcardIsReplaced) {
  EXPECT_EQ(ReachableAdminAddress("0.0.0.0:9003", "ipv4:10.0.0.7:51034"), "10.0.0.7:9003");
  EXPECT_EQ(ReachableAdminAddress("[::]:9003", "ipv4:10.0.0.7:51034"), "10.0.0.7:9003");
  EXPECT_EQ(ReachableAdminAddress("0.0.0.0:9003", "ipv6:%5Bfd00::7%5D:51034"), "[fd00::7]:9003");
  EXPECT_EQ(ReachableAdminAddress("[::]:9003", "ipv6:[fd00::7]:51034"), "[fd00::7]:9003");
  EXPECT_EQ(ReachableAdminAddress("[::]:9003", "ipv6:%5B::ffff:10.0.0.7%5D:5"), "10.0.0.7:9003");
  for (const char* announced : {"127.0.0.1:9003", "[::1]:9003", "localhost:9003", "", "0.0.0.0"}) {
    EXPECT_EQ(ReachableAdminAddress(announced, "ipv4:10.0.0.7:51034"), announced);
  }
  for (const char* peer : {"", "unix:/run/x", "ipv4:", "ipv6:fd00::7:1"}) {
    EXPECT_EQ(ReachableAdminAddress("0.0.0.0:9003", peer), "0.0.0.0:9003");
  }
}

TEST_F(FleetTest, ColocatedAnswers) {
  AddWorker("b", WorkerRole::kBoth);
  ASSERT_TRUE(WaitUntilReady());
  const Request request = Submit(10, 30);
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->tokens(), FakeAnswer(request.prompt, 30));
}

TEST_F(FleetTest, BusyAndPreemptedRequestsStillAnswerExactly) {
  FakeWorkerOptions decode = Options("d", WorkerRole::kDecode);
  decode.busy_answers = 3;
  decode.preempt_after_tokens = 7;
  AddWorker("p", WorkerRole::kPrefill);
  FakeFleetWorker* d = AddWorker(decode);
  ASSERT_TRUE(WaitUntilReady());
  const Request request = Submit(10, 30);
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->result().end, GenerationEnd::kLength) << request.sink->result().status;
  EXPECT_EQ(request.sink->tokens(), FakeAnswer(request.prompt, 30));
  EXPECT_EQ(d->num_wrong_resumes(), 0);
}

TEST_F(FleetTest, RefusesAnIncompatibleWorkerByName) {
  AddWorker("p", WorkerRole::kPrefill);
  ASSERT_TRUE(WaitFor([&] { return StateOf("p") == "ready"; }));
  FakeWorkerOptions other = Options("d", WorkerRole::kDecode);
  other.fingerprint = "other";
  other.fingerprint_text = "model=fake dtype=bf16";
  FakeFleetWorker* d = AddWorker(other);
  ASSERT_TRUE(d->WaitForEnd(kPatience));
  EXPECT_THAT(d->refusal(), HasSubstr("worker d is incompatible with worker p: it has "
                                      "[dtype=bf16], the cluster has [dtype=none]"));
  EXPECT_EQ(StateOf("d"), "absent");
}

TEST_F(FleetTest, KilledDecodeWorkerIsReplacedWithoutLosingATokenOrRepeatingOne) {
  AddWorker("p", WorkerRole::kPrefill);
  for (const char* id : {"d1", "d2"}) {
    FakeWorkerOptions options = Options(id, WorkerRole::kDecode);
    options.decode_step = absl::Milliseconds(3);
    AddWorker(options);
  }
  for (const char* id : {"p", "d1", "d2"}) {
    ASSERT_TRUE(WaitFor([&] { return StateOf(id) == "ready"; })) << id;
  }
  std::vector<Request> requests;
  for (int i = 0; i < 10; ++i) requests.push_back(Submit(20, 200));
  for (const Request& request : requests) {
    ASSERT_TRUE(request.sink->WaitForTokens(20, kPatience));
  }
  workers_[1]->Kill();
  for (const Request& request : requests) {
    ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
    EXPECT_EQ(request.sink->result().end, GenerationEnd::kLength) << request.sink->result().status;
    EXPECT_EQ(request.sink->tokens(), FakeAnswer(request.prompt, 200));
  }
  EXPECT_EQ(StateOf("d1"), "absent");
  EXPECT_EQ(workers_[2]->num_wrong_resumes(), 0);
  EXPECT_TRUE(NothingHeld());
}

TEST_F(FleetTest, KilledPrefillWorkerIsReplacedAndTheReservationFreed) {
  FakeWorkerOptions slow = Options("p1", WorkerRole::kPrefill);
  slow.prefill_time = absl::Minutes(1);
  AddWorker(slow);
  AddWorker("d", WorkerRole::kDecode);
  ASSERT_TRUE(WaitUntilReady());
  const Request request = Submit(20, 50);
  ASSERT_TRUE(WaitFor([&] { return workers_[0]->num_sequences() == 1; }));
  AddWorker("p2", WorkerRole::kPrefill);
  ASSERT_TRUE(WaitFor([&] { return StateOf("p2") == "ready"; }));
  workers_[0]->Kill();
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->tokens(), FakeAnswer(request.prompt, 50));
  EXPECT_EQ(workers_[1]->num_cancels(), 1);
  EXPECT_TRUE(NothingHeld());
}

TEST_F(FleetTest, WithoutRecoveryALostWorkerEndsItsRequestsByName) {
  CoreOptions core;
  core.recovery = false;
  StartRouter(core, {});
  FakeWorkerOptions options = Options("b", WorkerRole::kBoth);
  options.decode_step = absl::Milliseconds(5);
  AddWorker(options);
  ASSERT_TRUE(WaitUntilReady());
  const Request request = Submit(10, 1000);
  ASSERT_TRUE(request.sink->WaitForTokens(3, kPatience));
  workers_[0]->Kill();
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->result().status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(request.sink->result().status.message()),
              HasSubstr("worker b was lost (stage decode)"));
}

TEST_F(FleetTest, SilentWorkerIsDroppedAndItsLateTokensWithIt) {
  AddWorker("p", WorkerRole::kPrefill);
  for (const char* id : {"d1", "d2"}) {
    FakeWorkerOptions options = Options(id, WorkerRole::kDecode);
    options.decode_step = absl::Milliseconds(10);
    AddWorker(options);
  }
  ASSERT_TRUE(WaitFor([&] { return StateOf("d1") == "ready" && StateOf("d2") == "ready"; }));
  const Request request = Submit(20, 300);
  ASSERT_TRUE(request.sink->WaitForTokens(20, kPatience));
  FakeFleetWorker* silent =
      workers_[1]->num_sequences() > 0 ? workers_[1].get() : workers_[2].get();
  silent->SetSilent(true);
  ASSERT_TRUE(silent->WaitForEnd(kPatience));  // the router closed the stream
  silent->SetSilent(false);
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->result().end, GenerationEnd::kLength) << request.sink->result().status;
  EXPECT_EQ(request.sink->tokens(), FakeAnswer(request.prompt, 300));
  EXPECT_EQ(dispatcher_->Snapshot().workers.size(), 2u);
}

TEST_F(FleetTest, WorkerThatDoesNotReadIsCutOff) {
  CoreOptions core;
  core.max_running_requests = 10'000;
  core.reserve_timeout = absl::Minutes(1);
  FleetServerOptions server;
  server.max_queued_bytes = 1 << 20;
  StartRouter(core, server);
  AddWorker("p", WorkerRole::kPrefill);
  FakeFleetWorker* d = AddWorker("d", WorkerRole::kDecode);
  ASSERT_TRUE(WaitUntilReady());
  d->StopReading();
  // Each Reserve carries a prompt of several KiB: more than the sockets and the queue hold.
  std::vector<Request> requests;
  for (int i = 0; i < 3000 && StateOf("d") != "absent"; ++i) {
    requests.push_back(Submit(3000, 10));
    if (i % 100 == 0) absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_TRUE(WaitFor([&] { return StateOf("d") == "absent"; }));
  int failed = 0;
  for (const Request& request : requests) {
    ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
    EXPECT_EQ(request.sink->num_ends(), 1);
    if (!request.sink->result().status.ok()) ++failed;
  }
  EXPECT_GT(failed, 0);  // some Reserves were in its sockets, the others nowhere to be answered
}

TEST_F(FleetTest, AnOrderThatNoMessageCarriesFailsAlone) {
  FleetServerOptions server;
  server.max_message_bytes = 2 << 10;
  StartRouter({}, server);
  AddWorker("b", WorkerRole::kBoth);
  ASSERT_TRUE(WaitUntilReady());
  const Request small = Submit(100, 5);
  const Request large = Submit(4000, 5);
  ASSERT_TRUE(large.sink->WaitForEnd(kPatience));
  EXPECT_EQ(large.sink->result().end, GenerationEnd::kFailed);
  EXPECT_THAT(std::string(large.sink->result().status.message()), HasSubstr("a message carries"));
  ASSERT_TRUE(small.sink->WaitForEnd(kPatience));
  EXPECT_EQ(small.sink->result().end, GenerationEnd::kLength) << small.sink->result().status;
  EXPECT_EQ(StateOf("b"), "ready");
}

TEST_F(FleetTest, RestartedWorkerReplacesItself) {
  AddWorker("b", WorkerRole::kBoth);
  ASSERT_TRUE(WaitUntilReady());
  FakeWorkerOptions restarted = Options("b", WorkerRole::kBoth);
  restarted.num_kv_blocks = 77;
  FakeFleetWorker* second = AddWorker(restarted);
  ASSERT_TRUE(second->WaitForWelcome(kPatience));
  EXPECT_TRUE(workers_[0]->WaitForEnd(kPatience));
  ASSERT_TRUE(WaitFor([&] {
    const ClusterSnapshot snapshot = dispatcher_->Snapshot();
    return snapshot.workers.size() == 1 && snapshot.workers[0].blocks_total == 77 &&
           snapshot.workers[0].state == "ready";
  }));
  const Request request = Submit(5, 5);
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->result().end, GenerationEnd::kLength);
}

TEST_F(FleetTest, CancelFreesTheWorkers) {
  AddWorker("p", WorkerRole::kPrefill);
  FakeWorkerOptions options = Options("d", WorkerRole::kDecode);
  options.decode_step = absl::Milliseconds(5);
  AddWorker(options);
  ASSERT_TRUE(WaitUntilReady());
  std::vector<Request> requests;
  for (int i = 0; i < 20; ++i) {
    requests.push_back(Submit(10, 1000));
    if (i % 2 == 0) {
      ASSERT_TRUE(requests.back().sink->WaitForTokens(i, kPatience));
    }
    dispatcher_->Cancel(requests.back().id);
    dispatcher_->Cancel(requests.back().id);
  }
  for (const Request& request : requests) {
    ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
    EXPECT_EQ(request.sink->result().end, GenerationEnd::kCancelled);
    EXPECT_EQ(request.sink->num_ends(), 1);
  }
  EXPECT_TRUE(NothingHeld());
}

TEST_F(FleetTest, DeadlineEndsARunningRequest) {
  FakeWorkerOptions options = Options("b", WorkerRole::kBoth);
  options.decode_step = absl::Milliseconds(20);
  AddWorker(options);
  ASSERT_TRUE(WaitUntilReady());
  const Request request = Submit(10, 4000, absl::Milliseconds(300));
  ASSERT_TRUE(request.sink->WaitForEnd(kPatience));
  EXPECT_EQ(request.sink->result().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(NothingHeld());
}

TEST_F(FleetTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  FakeWorkerOptions options = Options("b", WorkerRole::kBoth);
  options.decode_step = absl::Milliseconds(2);
  AddWorker(options);
  ASSERT_TRUE(WaitUntilReady());
  const Request running = Submit(10, 100);
  ASSERT_TRUE(running.sink->WaitForTokens(1, kPatience));
  EXPECT_FALSE(dispatcher_->WaitUntilIdle(absl::ZeroDuration()));
  dispatcher_->StartDrain();
  EXPECT_EQ(dispatcher_->NotReadyReason(), "draining");
  const Request late = Submit(10, 1);
  ASSERT_TRUE(late.sink->WaitForEnd(kPatience));
  EXPECT_EQ(late.sink->result().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(dispatcher_->WaitUntilIdle(kPatience));
  EXPECT_EQ(running.sink->tokens(), FakeAnswer(running.prompt, 100));
}

TEST_F(FleetTest, StoppingTheRouterEndsWhatRuns) {
  FakeWorkerOptions options = Options("b", WorkerRole::kBoth);
  options.decode_step = absl::Milliseconds(20);
  AddWorker(options);
  ASSERT_TRUE(WaitUntilReady());
  const Request running = Submit(10, 4000);
  ASSERT_TRUE(running.sink->WaitForTokens(1, kPatience));
  StopRouter();
  EXPECT_EQ(running.sink->num_ends(), 1);
  EXPECT_EQ(running.sink->result().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(workers_[0]->WaitForEnd(kPatience));
}

TEST_F(FleetTest, PortInUseIsNamed) {
  FleetServerOptions options;
  options.port = server_->port();
  const auto second = FleetServer::Start(options, dispatcher_.get());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(options.port)));
}

}  // namespace
}  // namespace sluice::router
