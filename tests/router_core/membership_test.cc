#include "services/router/core/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;

class MembershipTest : public ::testing::Test {
 protected:
  CoreOptions options_;
  CoreHarness h_;

  // The router's answer to a registration: "" is a welcome.
  std::string Register(uint64_t session, WorkerInfo info) {
    h_.Play(WorkerRegistered{SessionId(session), std::move(info)});
    const std::vector<SendWelcome> welcomes = h_.Take<SendWelcome>();
    EXPECT_EQ(welcomes.size(), 1u);
    EXPECT_EQ(welcomes.at(0).to, SessionId(session));
    return welcomes.at(0).error;
  }
  std::string StateOf(const std::string& worker_id) {
    for (const WorkerSnapshot& worker : h_.core.Snapshot(h_.now).workers) {
      if (worker.worker_id == worker_id) return worker.state;
    }
    return "absent";
  }
};

TEST_F(MembershipTest, RefusesAnotherFingerprintAndSaysWhatDiffers) {
  EXPECT_EQ(Register(1, CoreHarness::Info("p", WorkerRole::kPrefill)), "");
  WorkerInfo other = CoreHarness::Info("d", WorkerRole::kDecode);
  other.fingerprint = "fp2";
  other.fingerprint_text = "dtype=f32 layers=4";
  const std::string error = Register(2, other);
  EXPECT_THAT(error, HasSubstr("worker d is incompatible with worker p"));
  EXPECT_THAT(error, HasSubstr("it has [dtype=f32], the cluster has [dtype=bf16]"));
  EXPECT_EQ(StateOf("d"), "absent");
  EXPECT_EQ(h_.core.counters().membership_events[static_cast<int>(WorkerRole::kDecode)]
                                                [static_cast<int>(MembershipEvent::kIncompatible)],
            1u);
  // Once the last worker of the old kind is gone, the new kind may come.
  h_.Play(WorkerLeft{SessionId(1), "gone"});
  EXPECT_EQ(Register(3, other), "");
}

TEST_F(MembershipTest, RefusesOtherModelProtocolAndNonsense) {
  EXPECT_EQ(Register(1, CoreHarness::Info("p", WorkerRole::kPrefill)), "");
  WorkerInfo info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.model = "another";
  EXPECT_THAT(Register(2, info), HasSubstr("serves model \"another\", worker p \"m\""));
  info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.protocol_version = "9";
  EXPECT_THAT(Register(3, info), HasSubstr("speaks fleet protocol \"9\""));
  info = CoreHarness::Info(std::string(300, 'd'), WorkerRole::kDecode);
  EXPECT_THAT(Register(9, info), HasSubstr("worker_id of 300 bytes; at most 256"));
  info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.max_num_seqs = 0;
  EXPECT_THAT(Register(4, info), HasSubstr("must be positive"));
  info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.kv_block_tokens = 32;
  EXPECT_THAT(Register(5, info), HasSubstr("KV blocks of 32 tokens"));
  EXPECT_THAT(Register(6, CoreHarness::Info("", WorkerRole::kDecode)), HasSubstr("worker_id"));
  EXPECT_EQ(h_.core.membership().members().size(), 1u);
}

TEST_F(MembershipTest, RefusesAModelThatIsNotTheConfiguredOne) {
  CoreOptions options;
  options.model = "deepseek";
  CoreHarness h(options);
  h.Play(WorkerRegistered{SessionId(1), CoreHarness::Info("p", WorkerRole::kPrefill)});
  EXPECT_THAT(h.Take<SendWelcome>().at(0).error, HasSubstr("this router \"deepseek\""));
}

TEST_F(MembershipTest, RefusesADecodeWorkerThatNobodyCanSendTo) {
  WorkerInfo info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.kv_address = "";
  EXPECT_THAT(Register(1, info), HasSubstr("worker d has no kv_address"));
  info.role = WorkerRole::kBoth;  // computes and decodes in one place
  EXPECT_EQ(Register(2, info), "");
}

TEST_F(MembershipTest, ANewIncarnationReplacesTheOldOne) {
  const SessionId old = h_.Join("d", WorkerRole::kDecode);
  h_.Take<SendWelcome>();
  WorkerInfo info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.incarnation = Incarnation(2);
  info.fingerprint = "a new build";  // alone in the cluster, it may differ from its former self
  EXPECT_EQ(Register(77, info), "");
  const std::vector<CloseSession> closed = h_.Take<CloseSession>();
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].session, old);
  EXPECT_THAT(closed[0].reason, HasSubstr("restarted"));
  EXPECT_EQ(h_.core.membership().members().size(), 1u);
  // What the old stream still delivers is of nobody.
  h_.Play(LoadReported{old, CoreHarness::ReadyLoad()});
  EXPECT_EQ(h_.Stale(StaleReason::kUnknownSession), 1u);
  EXPECT_EQ(StateOf("d"), "starting");
}

TEST_F(MembershipTest, StatesFollowReportsAndSilence) {
  EXPECT_EQ(Register(1, CoreHarness::Info("b", WorkerRole::kBoth)), "");
  EXPECT_EQ(StateOf("b"), "starting");
  EXPECT_EQ(h_.core.NotReadyReason(h_.now), "no ready prefill worker and no ready decode worker");
  h_.Play(LoadReported{SessionId(1), CoreHarness::ReadyLoad()});
  EXPECT_EQ(StateOf("b"), "ready");
  EXPECT_EQ(h_.core.NotReadyReason(h_.now), "");
  h_.Advance(options_.worker_timeout / 2 - absl::Milliseconds(1));
  EXPECT_EQ(StateOf("b"), "ready");
  h_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(StateOf("b"), "unreachable");
  h_.Play(LoadReported{SessionId(1), CoreHarness::ReadyLoad()});
  EXPECT_EQ(StateOf("b"), "ready");
  WorkerLoad draining = CoreHarness::ReadyLoad();
  draining.draining = true;
  h_.Play(LoadReported{SessionId(1), draining});
  EXPECT_EQ(StateOf("b"), "draining");
  h_.Advance(options_.worker_timeout);
  EXPECT_EQ(StateOf("b"), "absent");
  EXPECT_EQ(h_.Take<CloseSession>().size(), 1u);
  EXPECT_EQ(h_.core.counters().membership_events[static_cast<int>(WorkerRole::kBoth)]
                                                [static_cast<int>(MembershipEvent::kExpire)],
            1u);
}

TEST_F(MembershipTest, TheRoutersOwnPauseIsNotTheWorkersSilence) {
  h_.Join("b", WorkerRole::kBoth);
  h_.now += absl::Seconds(10);
  h_.Play(RouterResumed{});
  h_.Play(Tick{});
  EXPECT_EQ(StateOf("b"), "ready");
}

TEST_F(MembershipTest, MaxModelLenIsTheSmallestOfReadyWorkers) {
  WorkerInfo info = CoreHarness::Info("a", WorkerRole::kBoth);
  EXPECT_EQ(h_.core.Snapshot(h_.now).max_model_len, 0);
  h_.Join(info);
  info.worker_id = "b";
  info.max_model_len = 500;
  h_.Join(info);
  EXPECT_EQ(h_.core.Snapshot(h_.now).max_model_len, 500);
}

TEST_F(MembershipTest, NumberOfWorkersIsBounded) {
  CoreOptions options;
  options.max_workers = 1;
  CoreHarness h(options);
  h.Join("a", WorkerRole::kBoth);
  h.Take<SendWelcome>();
  h.Join("b", WorkerRole::kBoth);
  EXPECT_THAT(h.Take<SendWelcome>().at(0).error, HasSubstr("1 workers already"));
}

}  // namespace
}  // namespace sluice::router
