// When the engine thread counts as stuck, on a clock of the test's, with an engine that does what
// the test says.
#include "services/worker_runtime/engine_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "metrics/metrics.h"
#include "tests/workers/router_script.h"

namespace sluice::worker {
namespace {

using sluice::testing::Eventually;

constexpr absl::Duration kLimit = absl::Minutes(1);

class FakeClock : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixNanos(nanos_.load()); }
  void Advance(absl::Duration by) { nanos_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> nanos_{1'000'000'000};
};

class ScriptedEngine : public Engine {
 public:
  std::atomic<bool> has_work{false};
  std::function<StepResult()> step = [] { return StepResult(); };

  bool HasWork() const override { return has_work; }
  StepResult Step() override { return step(); }

  absl::Status AddPrefill(SequenceInput) override { return absl::OkStatus(); }
  absl::Status AddRun(SequenceInput) override { return absl::OkStatus(); }
  absl::StatusOr<Reservation> Reserve(SequenceInput) override { return Reservation(); }
  absl::Status Activate(SequenceKey, const SampledToken&) override { return absl::OkStatus(); }
  void AbandonReservation(SequenceKey, int) override {}
  int CachedTokens(const SequenceInput&) const override { return 0; }
  absl::StatusOr<PrefixPin> PinPrefix(SequenceKey, int, int) override { return PrefixPin(); }
  void Unpin(PinId) override {}
  void Release(SequenceKey) override {}
  bool Cancel(SequenceKey) override { return false; }
  EngineLoad Load() const override { return {}; }
  PrefixCacheChanges TakePrefixCacheChanges() override { return {}; }
  std::vector<Holder> Holders() const override { return {}; }
  absl::Span<uint8_t> BlockBytes(BlockId) override { return {}; }
  const ModelSpec& spec() const override { return spec_; }
  const KvLayout& layout() const override { return layout_; }
  const KvFingerprint& fingerprint() const override { return fingerprint_; }
  std::string isa() const override { return "none"; }
  int max_model_len() const override { return 1; }

 private:
  const ModelSpec spec_{};
  const KvLayout layout_{};
  const KvFingerprint fingerprint_{};
};

// Any command gives the engine work.
class WorkGivingHandler : public RequestHandler {
 public:
  explicit WorkGivingHandler(ScriptedEngine* engine) : engine_(engine) {}

  void OnReserve(rpc::SessionId, rpc::SequenceAttempt) override {}
  void OnPrefill(rpc::SessionId, rpc::PrefillOrder) override {}
  void OnRun(rpc::SessionId, rpc::SequenceAttempt) override { engine_->has_work = true; }
  void OnCancel(rpc::SessionId, const rpc::CancelOrder&) override {}
  void OnSessionLost(rpc::SessionId) override {}
  void OnReserveAnswer(ReserveAnswer) override {}
  void OnTransferEvent(const TransferEvent&) override {}
  void OnStep(const StepResult&, const StepInterval&) override {}
  void OnTick(absl::Time) override {}
  absl::Time NextDeadline() const override { return absl::InfiniteFuture(); }
  void BeginDrain() override {}
  void AbortAll(const absl::Status&) override {}
  int num_requests() const override { return 0; }
  std::optional<RequestTimes> TimesOf(const SequenceKey&) const override { return std::nullopt; }

 private:
  ScriptedEngine* const engine_;
};

class EngineLoopTest : public ::testing::Test {
 protected:
  void GiveWork() { ASSERT_TRUE(loop_.Post(RouterCommand(RunCommand()))); }
  bool Stuck() const { return loop_.StuckFor() >= kLimit; }

  FakeClock clock_;
  ScriptedEngine engine_;
  WorkGivingHandler handler_{&engine_};
  MetricsRegistry registry_;
  WorkerMetrics metrics_{&registry_};
  LoadBoard board_{clock_.Now()};
  EngineLoop loop_{&engine_, &handler_, &board_, &metrics_, &clock_};
};

TEST_F(EngineLoopTest, IsStuckInAStepThatDoesNotReturn) {
  absl::Notification in_step;
  absl::Notification go_on;
  engine_.step = [&] {
    in_step.Notify();
    go_on.WaitForNotification();
    engine_.has_work = false;
    return StepResult();
  };
  loop_.Start();
  GiveWork();
  in_step.WaitForNotification();
  clock_.Advance(kLimit / 2);
  EXPECT_FALSE(Stuck());
  clock_.Advance(kLimit / 2);
  EXPECT_TRUE(Stuck());
  go_on.Notify();
  EXPECT_TRUE(Eventually([&] { return !Stuck(); }));
  loop_.Stop();
}

TEST_F(EngineLoopTest, IsStuckWithWorkOfWhichNoStepDoesAny) {
  std::atomic<int> steps{0};
  engine_.step = [&] {
    ++steps;
    StepResult nothing;
    nothing.idle = true;
    return nothing;
  };
  loop_.Start();
  GiveWork();
  EXPECT_TRUE(Eventually([&] { return steps > 1; }));
  clock_.Advance(kLimit);
  const int before = steps;
  EXPECT_TRUE(Eventually([&] { return steps > before + 1; }));  // the thread moves
  EXPECT_LT(loop_.HeartbeatAge(), kLimit);
  EXPECT_TRUE(Stuck());
  loop_.Stop();
}

TEST_F(EngineLoopTest, IsNotStuckWhileItComputesOrHasNothingToDo) {
  std::atomic<int> steps{0};
  engine_.step = [&] {
    ++steps;
    return StepResult();
  };
  loop_.Start();
  // An idle thread moves every second, so the clock may be ahead of it for as long.
  clock_.Advance(10 * kLimit);
  EXPECT_TRUE(Eventually([&] { return !Stuck(); }));
  GiveWork();
  EXPECT_TRUE(Eventually([&] { return steps > 1; }));
  clock_.Advance(10 * kLimit);
  EXPECT_TRUE(Eventually([&] { return !Stuck(); }));
  loop_.Stop();
}

}  // namespace
}  // namespace sluice::worker
