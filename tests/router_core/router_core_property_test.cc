// The core against a cluster of mock workers under random schedules: messages of different workers
// overtake each other, workers answer Busy, fail, preempt, die, go silent and come back, requests
// are cancelled. Whatever happens, each sink must see dense tokens of the right answer, each once
// and in order, then exactly one end; and nothing may be left over at the core or at a living
// worker.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>
#include <set>

#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

// The model: the next token is a pure function of the prompt's first token and the index.
TokenId Answer(TokenId prompt, int index) { return prompt * 1000 + index; }

struct Sequence {
  SequenceStart start;
  SessionId prefill_from;  // decode: none until handed over
  bool reserved = false;   // decode: waiting for KV
  int next = 0;            // index to send next
};

// One mock worker: it holds sequences and a queue of messages on the way to the router, which keeps
// their order.
struct MockWorker {
  SessionId session;
  WorkerInfo info;
  bool stream_open = true;
  bool silent = false;
  std::map<AttemptKey, Sequence> sequences;
  std::deque<Event> outbox;
};

constexpr int kNumRetryReasons = static_cast<int>(RetryReason::kNumReasons);

// Over all seeds: that the schedules reach what they are meant to reach.
struct Totals {
  int submitted = 0;
  int completed = 0;
  uint64_t retries[kNumRetryReasons] = {};
};

class RandomCluster {
 public:
  RandomCluster(uint64_t seed, bool faults)
      : random_(seed), had_faults_(faults), faults_(faults), h_(Options()) {
    for (int i = 0; i < 2; ++i) AddWorker("p" + std::to_string(i), WorkerRole::kPrefill);
    for (int i = 0; i < 3; ++i) AddWorker("d" + std::to_string(i), WorkerRole::kDecode);
    if (Chance(0.5)) AddWorker("b0", WorkerRole::kBoth);
  }

  void Run(Totals* totals) {
    for (int step = 0; step < 3000; ++step) RandomStep(/*submitting=*/true);
    // Then without new faults until all is quiet.
    faults_ = false;
    for (auto& [id, worker] : workers_) worker.silent = false;
    for (int step = 0; step < 200'000 && !Quiet(); ++step) RandomStep(/*submitting=*/false);
    Check(totals);
  }

 private:
  static CoreOptions Options() {
    CoreOptions options;
    options.max_running_requests = 12;
    options.max_queued_requests = 6;
    options.queue_timeout = absl::Seconds(5);
    options.capacity_timeout = absl::Seconds(5);
    options.no_worker_timeout = absl::Seconds(3);
    options.reserve_timeout = absl::Seconds(1);
    options.max_held_tokens = 16;
    return options;
  }

  int Below(int n) { return static_cast<int>(random_() % n); }
  bool Chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }

  void AddWorker(const std::string& id, WorkerRole role) {
    MockWorker& worker = workers_[id];
    worker = MockWorker();
    worker.session = SessionId(++last_session_);
    worker.info = CoreHarness::Info(id, role);
    worker.info.incarnation = Incarnation(last_session_);
    worker.info.max_num_seqs = 4;
    worker.outbox.push_back(WorkerRegistered{worker.session, worker.info});
    worker.outbox.push_back(LoadReported{worker.session, CoreHarness::ReadyLoad()});
  }

  MockWorker& RandomWorker() { return std::next(workers_.begin(), Below(workers_.size()))->second; }
  MockWorker* BySession(SessionId session) {
    for (auto& [id, worker] : workers_) {
      if (worker.session == session) return &worker;
    }
    return nullptr;
  }

  void RandomStep(bool submitting) {
    const double dice = std::uniform_real_distribution<double>(0, 1)(random_);
    if (submitting && dice < 0.02) {
      Submit();
    } else if (submitting && dice < 0.024 && !prompts_.empty()) {
      h_.Play(RequestCancelled{std::next(prompts_.begin(), Below(prompts_.size()))->first});
    } else if (faults_ && dice < 0.029) {
      Fault(RandomWorker());
    } else if (dice < 0.15) {
      Tick();
    } else if (dice < 0.55) {
      Deliver(RandomWorker());
    } else {
      Work(RandomWorker());
    }
    CarryOut();
  }

  void Submit() {
    GenerationSpec spec = h_.Spec(1 + Below(50), 1 + Below(20));
    spec.prompt[0] = static_cast<TokenId>(prompts_.size() + 1);
    if (Chance(0.1)) spec.deadline = h_.now + absl::Milliseconds(Below(3000));
    prompts_[spec.id] = spec.prompt[0];
    max_tokens_[spec.id] = spec.sampling.max_tokens;
    h_.Submit(std::move(spec));
  }

  void Tick() {
    h_.now += absl::Milliseconds(Below(25));
    for (auto& [id, worker] : workers_) {
      if (worker.stream_open && !worker.silent && Chance(0.2)) {
        worker.outbox.push_back(LoadReported{worker.session, CoreHarness::ReadyLoad()});
      }
    }
    h_.Play(sluice::router::Tick{});
    const Membership& membership = h_.core.membership();
    EXPECT_EQ(membership.HasEachRole(h_.now), MissingRole(membership.View(h_.now)).empty());
  }

  void Fault(MockWorker& worker) {
    switch (Below(3)) {
      case 0:  // killed and restarted under its name; what it had sent may still arrive first
        if (worker.stream_open) {
          if (Chance(0.5)) worker.outbox.clear();
          for (Event& event : worker.outbox) lost_streams_.push_back(std::move(event));
          lost_streams_.push_back(WorkerLeft{worker.session, "killed"});
          AddWorker(worker.info.worker_id, worker.info.role);
        }
        break;
      case 1:
        worker.silent = true;
        break;
      case 2:
        worker.silent = false;
        break;
    }
  }

  void Deliver(MockWorker& worker) {
    if (!lost_streams_.empty() && Chance(0.3)) {
      h_.Play(std::move(lost_streams_.front()));
      lost_streams_.pop_front();
      return;
    }
    if (worker.silent) return;
    for (int n = 1 + Below(4); n > 0 && !worker.outbox.empty(); --n) {
      h_.Play(std::move(worker.outbox.front()));
      worker.outbox.pop_front();
    }
  }

  // What the core sent is received by the workers at once, in order.
  void CarryOut() {
    std::vector<Action> sent = std::exchange(h_.sent, {});
    for (Action& action : sent) {
      if (auto* reserve = std::get_if<SendReserve>(&action)) {
        if (MockWorker* worker = BySession(reserve->to)) OnReserve(*worker, *reserve);
      } else if (auto* prefill = std::get_if<SendPrefill>(&action)) {
        if (MockWorker* worker = BySession(prefill->to)) {
          Sequence& sequence = worker->sequences[prefill->sequence.key];
          sequence.start = prefill->sequence;
          sequence.next = prefill->sequence.num_output_tokens;
          decode_of_[prefill->sequence.key] = prefill->decode_worker_id;
          CheckResume(prefill->sequence);
        }
      } else if (auto* run = std::get_if<SendRun>(&action)) {
        if (MockWorker* worker = BySession(run->to)) {
          Sequence& sequence = worker->sequences[run->sequence.key];
          sequence.start = run->sequence;
          sequence.next = run->sequence.num_output_tokens;
          CheckResume(run->sequence);
        }
      } else if (auto* cancel = std::get_if<SendCancel>(&action)) {
        if (MockWorker* worker = BySession(cancel->to)) {
          worker->sequences.erase(cancel->key);
          worker->outbox.push_back(
              AttemptEnded{worker->session, cancel->key, AttemptEndReason::kCancelled, {}, ""});
        }
      } else if (auto* close = std::get_if<CloseSession>(&action)) {
        if (MockWorker* worker = BySession(close->session)) {
          AddWorker(worker->info.worker_id, worker->info.role);  // it dials again
        }
      }
    }
  }

  void OnReserve(MockWorker& worker, const SendReserve& reserve) {
    CheckResume(reserve.sequence);
    const AttemptKey key = reserve.sequence.key;
    if (faults_ && Chance(0.2)) {
      worker.outbox.push_back(
          AnsweredBusy{worker.session, key, "full", absl::Milliseconds(Below(50))});
      return;
    }
    Sequence& sequence = worker.sequences[key];
    sequence.start = reserve.sequence;
    sequence.reserved = true;
    sequence.next = reserve.sequence.num_output_tokens + 1;
    if (faults_ && Chance(0.02)) return;  // never answers
    Grant grant;
    grant.incarnation = worker.info.incarnation;
    worker.outbox.push_back(Granted{worker.session, key, grant});
  }

  // The tokens that an attempt starts with are those the client has.
  void CheckResume(const SequenceStart& start) {
    const RequestId id = start.key.request;
    const auto& emitted = h_.emitted_tokens[id];
    ASSERT_EQ(start.num_output_tokens, static_cast<int>(emitted.size()));
    ASSERT_TRUE(
        std::equal(emitted.begin(), emitted.end(), start.tokens.end() - start.num_output_tokens));
    ASSERT_LT(start.num_output_tokens, max_tokens_[id]);
  }

  void Work(MockWorker& worker) {
    if (worker.sequences.empty()) return;
    auto it = std::next(worker.sequences.begin(), Below(worker.sequences.size()));
    const AttemptKey key = it->first;
    Sequence& sequence = it->second;
    if (sequence.reserved) return;
    if (faults_ && Chance(0.01)) {
      worker.outbox.push_back(AttemptEnded{worker.session, key, AttemptEndReason::kFailed,
                                           absl::InternalError("mock failure"), "decode"});
      worker.sequences.erase(it);
      return;
    }
    if (faults_ && worker.info.role == WorkerRole::kDecode && Chance(0.01)) {
      worker.outbox.push_back(AttemptPreempted{worker.session, key});
      worker.sequences.erase(it);
      return;
    }
    if (worker.info.role == WorkerRole::kPrefill) {
      SendToken(worker, key, sequence.next);
      MockWorker* decode = nullptr;
      if (auto to = workers_.find(decode_of_[key]); to != workers_.end()) decode = &to->second;
      if (decode != nullptr && decode->sequences.contains(key)) {
        Sequence& received = decode->sequences[key];
        received.reserved = false;
        decode->outbox.push_back(KvArrived{decode->session, key, absl::Milliseconds(1)});
        EndIfComplete(*decode, key);
        worker.outbox.push_back(
            AttemptEnded{worker.session, key, AttemptEndReason::kHandedOver, {}, ""});
      } else {
        worker.outbox.push_back(AttemptEnded{worker.session, key, AttemptEndReason::kFailed,
                                             absl::AbortedError("peer is gone"), "kv_transfer"});
      }
      worker.sequences.erase(key);
      return;
    }
    SendToken(worker, key, sequence.next++);
    if (faults_ && Chance(0.05)) SendToken(worker, key, sequence.next - 1);  // a duplicate
    EndIfComplete(worker, key);
  }

  void SendToken(MockWorker& worker, AttemptKey key, int index) {
    ProducedToken token;
    token.key = key;
    token.index = index;
    token.token.token = Answer(prompts_[key.request], index);
    worker.outbox.push_back(TokensProduced{worker.session, {token}});
  }

  void EndIfComplete(MockWorker& worker, AttemptKey key) {
    if (worker.sequences[key].next < max_tokens_[key.request]) return;
    worker.outbox.push_back(AttemptEnded{worker.session, key, AttemptEndReason::kLength, {}, ""});
    worker.sequences.erase(key);
  }

  bool Quiet() {
    for (const auto& [id, worker] : workers_) {
      if (!worker.outbox.empty()) return false;
    }
    return lost_streams_.empty() && h_.core.num_running() == 0 && h_.core.num_queued() == 0;
  }

  void Check(Totals* totals) {
    ASSERT_EQ(h_.core.num_running(), 0);
    ASSERT_EQ(h_.core.num_queued(), 0);
    int completed = 0;
    for (const auto& [id, prompt] : prompts_) {
      ASSERT_EQ(h_.ends[id].size(), 1u) << "ends of request " << prompt;
      const std::vector<TokenId>& tokens = h_.emitted_tokens[id];
      for (size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(tokens[i], Answer(prompt, i));
      const GenerationResult& result = h_.Result(id);
      if (result.end == GenerationEnd::kLength) {
        ++completed;
        ASSERT_EQ(static_cast<int>(tokens.size()), max_tokens_[id]);
      } else {
        ASSERT_FALSE(result.status.ok());
        ASSERT_TRUE(had_faults_ || result.status.code() != absl::StatusCode::kInternal)
            << result.status;
      }
    }
    totals->completed += completed;
    totals->submitted += static_cast<int>(prompts_.size());
    for (int reason = 0; reason < kNumRetryReasons; ++reason) {
      for (const auto& by_reason : h_.core.counters().retries) {
        totals->retries[reason] += by_reason[reason];
      }
    }
    for (const auto& [session, member] : h_.core.membership().members()) {
      ASSERT_EQ(member.assigned_requests, 0) << member.info.worker_id;
      ASSERT_EQ(member.assigned_prefill_tokens, 0) << member.info.worker_id;
    }
    for (const auto& [id, worker] : workers_) {
      ASSERT_TRUE(worker.sequences.empty()) << id << " still holds something";
    }
  }

  std::mt19937_64 random_;
  const bool had_faults_;
  bool faults_;
  CoreHarness h_;
  uint64_t last_session_ = 100;
  std::map<std::string, MockWorker> workers_;
  std::deque<Event> lost_streams_;  // of dead workers, still on the way
  std::map<RequestId, TokenId> prompts_;
  std::map<RequestId, int> max_tokens_;
  std::map<AttemptKey, std::string> decode_of_;
};

TEST(RouterCorePropertyTest, WithoutFaults) {
  Totals totals;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomCluster(seed, /*faults=*/false).Run(&totals);
    if (testing::Test::HasFatalFailure()) return;
  }
  // The rest was cancelled, past its deadline, or met a full queue.
  EXPECT_GT(totals.completed, totals.submitted * 3 / 4);
}

TEST(RouterCorePropertyTest, WithFaults) {
  Totals totals;
  for (uint64_t seed = 1000; seed < 1300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomCluster(seed, /*faults=*/true).Run(&totals);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(totals.completed, totals.submitted / 3);
  for (int reason = 0; reason < kNumRetryReasons; ++reason) {
    EXPECT_GT(totals.retries[reason], 100u) << kRetryReasonNames[reason];
  }
  RecordProperty("completed", totals.completed);
  RecordProperty("submitted", totals.submitted);
}

}  // namespace
}  // namespace sluice::router
