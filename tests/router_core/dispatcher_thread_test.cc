// The dispatcher's turns: who gets them, that there is only one at a time, and that nothing brought
// meanwhile is lost. Workers are threads of the test that bring messages as gRPC's threads do.
#include "services/router/fleet/dispatcher_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/clock.h"
#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);  // of a loaded test machine
constexpr int kTokens = 20;

// Fails the test when two are inside at the same time.
class OneAtATime {
 public:
  OneAtATime() { EXPECT_FALSE(inside_.exchange(true)) << "two turns at a time"; }
  ~OneAtATime() { inside_ = false; }

 private:
  static inline std::atomic<bool> inside_{false};
};

class Observer final : public DispatcherObserver {
 public:
  void OnTokens(const EmitTokens&) override { OneAtATime turn; }
  void OnEnd(const EndRequest&) override { OneAtATime turn; }
  void OnRouted(absl::Duration) override { ++num_routed; }
  void OnTick(const RouterCore&, absl::Time) override { OneAtATime turn; }

  std::atomic<int> num_routed{0};
};

// Keeps the orders for each worker until its thread takes them.
class Port final : public FleetPort {
 public:
  void Send(Action action) override {
    OneAtATime turn;
    const auto* run = std::get_if<SendRun>(&action);
    if (run == nullptr) return;
    absl::MutexLock lock(&mu_);
    runs_[run->to].push_back(run->sequence.key);
  }
  void Handled(SessionId) override {}
  void Tick(absl::Time) override { OneAtATime turn; }

  // Waits for an order; nullopt once closed, or when none comes.
  std::optional<AttemptKey> NextRun(SessionId session) {
    absl::MutexLock lock(&mu_);
    const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return closed_ || !runs_[session].empty();
    };
    mu_.AwaitWithTimeout(absl::Condition(&ready), kPatience);
    if (runs_[session].empty()) return std::nullopt;
    const AttemptKey key = runs_[session].front();
    runs_[session].pop_front();
    return key;
  }
  void Close() {
    absl::MutexLock lock(&mu_);
    closed_ = true;
  }

 private:
  absl::Mutex mu_;
  std::map<SessionId, std::deque<AttemptKey>> runs_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

class Sink final : public GenerationSink {
 public:
  void OnTokens(absl::Span<const SampledToken> tokens) override {
    if (on_tokens) on_tokens();
    absl::MutexLock lock(&mu_);
    for (const SampledToken& token : tokens) tokens_.push_back(token.token);
    thread_ = std::this_thread::get_id();
    unflushed_ = true;
  }
  void OnEnd(const GenerationResult& result) override {
    absl::MutexLock lock(&mu_);
    end_ = result.end;
    unflushed_ = true;
  }
  void Flush(bool) override {
    absl::MutexLock lock(&mu_);
    unflushed_ = false;
  }

  bool WaitForEnd() {
    const auto ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return end_ && !unflushed_; };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&ended), kPatience);
  }
  bool WaitForFlushedTokens(size_t count) {
    const auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return tokens_.size() >= count && !unflushed_;
    };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
  }
  std::vector<TokenId> tokens() {
    absl::MutexLock lock(&mu_);
    return tokens_;
  }
  std::optional<GenerationEnd> end() {
    absl::MutexLock lock(&mu_);
    return end_;
  }
  // Whose turn brought the latest tokens.
  std::thread::id thread() {
    absl::MutexLock lock(&mu_);
    return thread_;
  }

  std::function<void()> on_tokens;  // in the turn; set before there are any

 private:
  absl::Mutex mu_;
  std::vector<TokenId> tokens_ ABSL_GUARDED_BY(mu_);
  std::optional<GenerationEnd> end_ ABSL_GUARDED_BY(mu_);
  std::thread::id thread_ ABSL_GUARDED_BY(mu_);
  bool unflushed_ ABSL_GUARDED_BY(mu_) = false;
};

class DispatcherThreadTest : public ::testing::Test {
 protected:
  DispatcherThreadTest() { dispatcher_.Start(&port_); }
  ~DispatcherThreadTest() override { dispatcher_.Stop(); }

  SessionId Join(const std::string& worker_id) {
    const SessionId session(++last_session_);
    dispatcher_.OnWorkerEvent(
        session, WorkerRegistered{session, CoreHarness::Info(worker_id, WorkerRole::kBoth)});
    dispatcher_.OnWorkerEvent(session, LoadReported{session, CoreHarness::ReadyLoad()});
    // A request that met no ready worker would be refused.
    const absl::Time give_up_at = MonotonicNow() + kPatience;
    while (!dispatcher_.NotReadyReason().empty() && MonotonicNow() < give_up_at) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    EXPECT_EQ(dispatcher_.NotReadyReason(), "");
    return session;
  }
  GenerationSpec Spec() {
    GenerationSpec spec;
    const int number = ++last_request_;
    spec.id.bytes[0] = static_cast<uint8_t>(number);
    spec.id.bytes[1] = static_cast<uint8_t>(number >> 8);
    spec.prompt = {1, 2, 3};
    spec.sampling.max_tokens = kTokens;
    return spec;
  }
  void BringToken(SessionId session, AttemptKey key, int index) {
    ProducedToken token;
    token.key = key;
    token.index = index;
    token.token.token = index;
    dispatcher_.OnWorkerEvent(session, TokensProduced{session, {token}});
  }
  void Answer(SessionId session, AttemptKey key) {
    for (int i = 0; i < kTokens; ++i) BringToken(session, key, i);
    dispatcher_.OnWorkerEvent(session,
                              AttemptEnded{session, key, AttemptEndReason::kLength, {}, ""});
  }

  std::atomic<uint64_t> last_session_{0};
  std::atomic<int> last_request_{0};
  Observer observer_;
  Port port_;
  DispatcherThread dispatcher_{DispatcherOptions(), &observer_};
};

TEST_F(DispatcherThreadTest, TurnsOfManyThreadsLoseNothing) {
  constexpr int kWorkers = 3, kClients = 2, kRequests = 60;
  std::vector<std::thread> workers, clients;
  for (int i = 0; i < kWorkers; ++i) {
    const SessionId session = Join(absl::StrCat("w", i));
    workers.emplace_back([this, session] {
      while (const auto key = port_.NextRun(session)) Answer(session, *key);
    });
  }
  std::atomic<int> num_good{0};
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      std::vector<TokenId> expected;
      for (int t = 0; t < kTokens; ++t) expected.push_back(t);
      for (int r = 0; r < kRequests; ++r) {
        const auto sink = std::make_shared<Sink>();
        dispatcher_.Submit(Spec(), sink);
        if (!sink->WaitForEnd()) return;
        if (sink->tokens() == expected && sink->end() == GenerationEnd::kLength) ++num_good;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  port_.Close();
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(num_good, kClients * kRequests);
  EXPECT_GE(observer_.num_routed, kClients * kRequests);
}

TEST_F(DispatcherThreadTest, OnAQuietRouterWhoBringsATokenDeliversIt) {
  const SessionId session = Join("w");
  const auto sink = std::make_shared<Sink>();
  dispatcher_.Submit(Spec(), sink);
  const auto key = port_.NextRun(session);
  ASSERT_TRUE(key.has_value());
  int num_own = 0;
  for (int i = 0; i < kTokens; ++i) {
    BringToken(session, *key, i);
    ASSERT_TRUE(sink->WaitForFlushedTokens(static_cast<size_t>(i) + 1));
    if (sink->thread() == std::this_thread::get_id()) ++num_own;
  }
  EXPECT_GT(num_own, 0);  // a few may meet a tick
}

TEST_F(DispatcherThreadTest, WhoBringsATokenDuringATurnDoesNotWaitForItsEnd) {
  const SessionId session = Join("w");
  const auto slow = std::make_shared<Sink>();
  absl::Notification in_turn, release;
  slow->on_tokens = [&] {
    if (in_turn.HasBeenNotified()) return;
    in_turn.Notify();
    release.WaitForNotification();
  };
  const auto other = std::make_shared<Sink>();
  dispatcher_.Submit(Spec(), slow);
  const auto slow_key = port_.NextRun(session);
  dispatcher_.Submit(Spec(), other);
  const auto other_key = port_.NextRun(session);
  ASSERT_TRUE(slow_key.has_value() && other_key.has_value());
  std::thread first([&] { BringToken(session, *slow_key, 0); });
  in_turn.WaitForNotification();
  BringToken(session, *other_key, 0);  // returns, though the turn lasts
  dispatcher_.Cancel(slow_key->request);
  EXPECT_TRUE(other->tokens().empty());
  release.Notify();
  first.join();
  EXPECT_TRUE(other->WaitForFlushedTokens(1));
  EXPECT_NE(other->thread(), std::this_thread::get_id());
  EXPECT_TRUE(slow->WaitForEnd());
  EXPECT_EQ(slow->end(), GenerationEnd::kCancelled);
}

TEST_F(DispatcherThreadTest, AnAnnouncedDrainStillAccepts) {
  const SessionId session = Join("w");
  dispatcher_.AnnounceDrain();
  EXPECT_EQ(dispatcher_.NotReadyReason(), "draining");
  const auto late = std::make_shared<Sink>();
  dispatcher_.Submit(Spec(), late);
  const auto key = port_.NextRun(session);
  ASSERT_TRUE(key.has_value());

  dispatcher_.StartDrain();
  const auto too_late = std::make_shared<Sink>();
  dispatcher_.Submit(Spec(), too_late);
  EXPECT_TRUE(too_late->WaitForEnd());
  EXPECT_EQ(too_late->end(), GenerationEnd::kFailed);
  Answer(session, *key);
  EXPECT_TRUE(late->WaitForEnd());
  EXPECT_EQ(late->end(), GenerationEnd::kLength);
}

TEST_F(DispatcherThreadTest, StopEndsWhatRuns) {
  const SessionId session = Join("w");
  const auto running = std::make_shared<Sink>();
  dispatcher_.Submit(Spec(), running);
  const auto key = port_.NextRun(session);
  ASSERT_TRUE(key.has_value());
  dispatcher_.Stop();
  EXPECT_TRUE(running->WaitForEnd());
  EXPECT_EQ(running->end(), GenerationEnd::kFailed);
  BringToken(session, *key, 0);
  EXPECT_TRUE(running->tokens().empty());
  const auto late = std::make_shared<Sink>();
  dispatcher_.Submit(Spec(), late);
  EXPECT_TRUE(late->WaitForEnd());
  EXPECT_EQ(late->end(), GenerationEnd::kFailed);
}

}  // namespace
}  // namespace sluice::router
