#include "bench/router_bench/mock_fleet.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/random.h"
#include "services/rpc/attach_client.h"
#include "services/rpc/fleet_codec.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::bench {
namespace {

constexpr int kBlockTokens = 64;

class MockWorker final : public rpc::AttachHandler {
 public:
  MockWorker(const MockFleetOptions& options, int index, TokenLedger* ledger)
      : options_(options),
        worker_id_(absl::StrCat("mock-", index)),
        incarnation_(RandomUint64()),
        ledger_(ledger) {
    rpc::AttachOptions attach;
    attach.router_address = options.router_address;
    client_ = rpc::AttachClient::Start(std::move(attach), this);
  }
  ~MockWorker() override { client_->Stop(); }

  bool attached() const { return client_->attached(); }
  int num_sequences() const {
    absl::MutexLock lock(&mu_);
    return static_cast<int>(sequences_.size());
  }

  // One token for each sequence; only for those without any while `held`.
  void Step(bool held) {
    std::vector<v1::WorkerMessage> messages;
    rpc::SessionId session;
    {
      absl::MutexLock lock(&mu_);
      session = session_;
      v1::WorkerMessage tokens;
      for (Sequence& sequence : sequences_) {
        if (held && sequence.next_index > 0) continue;
        AddToken(&sequence, &tokens);
      }
      if (!tokens.has_tokens()) return;
      messages.push_back(std::move(tokens));
      const auto first_ended = std::partition(
          sequences_.begin(), sequences_.end(),
          [](const Sequence& sequence) { return sequence.next_index < sequence.max_tokens; });
      for (auto it = first_ended; it != sequences_.end(); ++it) messages.push_back(Ended(*it));
      sequences_.erase(first_ended, sequences_.end());
    }
    for (v1::WorkerMessage& message : messages) client_->Send(session, std::move(message));
  }

  // ---- rpc::AttachHandler

  v1::WorkerMessage OnConnect(rpc::SessionId) override {
    v1::WorkerMessage message;
    v1::Register* registration = message.mutable_register_();
    registration->set_worker_id(worker_id_);
    registration->set_incarnation(incarnation_);
    registration->set_role(v1::WORKER_ROLE_BOTH);
    registration->set_model(options_.model);
    registration->set_fingerprint("mock");
    registration->set_fingerprint_text("computes=nothing");
    registration->set_max_model_len(1 << 20);
    registration->set_max_num_seqs(options_.max_num_seqs);
    registration->set_num_kv_blocks(int64_t{1} << 30);
    registration->set_kv_block_tokens(kBlockTokens);
    registration->set_protocol_version(std::string(rpc::kProtocolVersion));
    registration->set_vocab_size(options_.vocab_size);
    return message;
  }

  void OnWelcome(rpc::SessionId session, const std::string&) override {
    absl::MutexLock lock(&mu_);
    session_ = session;
  }

  void OnMessage(rpc::SessionId session, const v1::RouterMessage& message) override {
    if (message.has_cancel()) return Cancel(session, message.cancel());
    if (!message.has_run() || message.run().tokens().ids_size() < 2) return;
    const v1::Run& run = message.run();
    Sequence sequence;
    sequence.request_id = run.request_id();
    sequence.attempt = run.attempt();
    sequence.stream = StreamOf(run.tokens().ids(0), run.tokens().ids(1));
    sequence.max_tokens = run.sampling().max_tokens();
    if (sequence.stream < 0 || sequence.stream >= ledger_->num_streams()) return;
    if (options_.step_interval > absl::ZeroDuration()) {
      absl::MutexLock lock(&mu_);
      sequences_.push_back(std::move(sequence));
      return;
    }
    v1::WorkerMessage tokens;
    while (sequence.next_index < sequence.max_tokens) AddToken(&sequence, &tokens);
    client_->Send(session, std::move(tokens));
    client_->Send(session, Ended(sequence));
  }

  v1::WorkerMessage OnHeartbeat(rpc::SessionId) override {
    v1::WorkerMessage message;
    v1::LoadReport* load = message.mutable_load();
    load->set_ready(true);
    load->set_running_requests(num_sequences());
    load->mutable_kv_blocks()->set_total(int64_t{1} << 30);
    load->mutable_kv_blocks()->set_free(int64_t{1} << 30);
    return message;
  }

  void OnDisconnect(rpc::SessionId, const absl::Status&) override {
    absl::MutexLock lock(&mu_);
    sequences_.clear();
  }

 private:
  struct Sequence {
    std::string request_id;
    uint32_t attempt = 0;
    int stream = 0;
    int next_index = 0;
    int max_tokens = 0;
  };

  void AddToken(Sequence* sequence, v1::WorkerMessage* message) {
    v1::OutputToken* token = message->mutable_tokens()->add_tokens();
    token->set_request_id(sequence->request_id);
    token->set_attempt(sequence->attempt);
    token->set_index(sequence->next_index);
    token->set_token_id(options_.answer_token);
    ledger_->MarkSent(sequence->stream, sequence->next_index, NowNanoseconds());
    ++sequence->next_index;
  }

  static v1::WorkerMessage Ended(const Sequence& sequence) {
    v1::WorkerMessage message;
    v1::RequestEnded* ended = message.mutable_ended();
    ended->set_request_id(sequence.request_id);
    ended->set_attempt(sequence.attempt);
    ended->set_reason(v1::RequestEnded::REASON_LENGTH);
    return message;
  }

  void Cancel(rpc::SessionId session, const v1::Cancel& cancel) {
    {
      absl::MutexLock lock(&mu_);
      std::erase_if(sequences_, [&](const Sequence& sequence) {
        return sequence.request_id == cancel.request_id() && sequence.attempt == cancel.attempt();
      });
    }
    v1::WorkerMessage message;
    message.mutable_ended()->set_request_id(cancel.request_id());
    message.mutable_ended()->set_attempt(cancel.attempt());
    message.mutable_ended()->set_reason(v1::RequestEnded::REASON_CANCELLED);
    client_->Send(session, std::move(message));
  }

  // Constant after construction.
  const MockFleetOptions& options_;
  const std::string worker_id_;
  const uint64_t incarnation_;
  TokenLedger* const ledger_;

  mutable absl::Mutex mu_;
  rpc::SessionId session_ ABSL_GUARDED_BY(mu_);
  std::vector<Sequence> sequences_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<rpc::AttachClient> client_;
};

class MockFleetImpl final : public MockFleet {
 public:
  MockFleetImpl(MockFleetOptions options, TokenLedger* ledger) : options_(std::move(options)) {
    for (int i = 0; i < options_.num_workers; ++i) {
      workers_.push_back(std::make_unique<MockWorker>(options_, i, ledger));
    }
  }

  ~MockFleetImpl() override {
    stopping_ = true;
    if (stepper_.joinable()) stepper_.join();
  }

  absl::Status AwaitAttached() {
    const absl::Time give_up_at = MonotonicNow() + options_.attach_timeout;
    const auto attached = [](const auto& worker) { return worker->attached(); };
    while (!std::all_of(workers_.begin(), workers_.end(), attached)) {
      if (MonotonicNow() >= give_up_at) {
        return absl::DeadlineExceededError(
            absl::StrCat("the mock workers could not attach to ", options_.router_address,
                         " within ", absl::FormatDuration(options_.attach_timeout)));
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    if (options_.step_interval > absl::ZeroDuration()) {
      stepper_ = std::thread([this] { StepLoop(); });
    }
    return absl::OkStatus();
  }

  void SetHeld(bool held) override { held_ = held; }

  int num_sequences() const override {
    int sum = 0;
    for (const auto& worker : workers_) sum += worker->num_sequences();
    return sum;
  }

 private:
  void StepLoop() {
    const absl::Duration turn = options_.step_interval / options_.num_workers;
    absl::Time next = MonotonicNow();
    for (size_t i = 0; !stopping_; i = (i + 1) % workers_.size()) {
      // A late stepper skips turns instead of sending bursts.
      const absl::Time now = MonotonicNow();
      next = std::max(next + turn, now - turn);
      absl::SleepFor(next - now);
      workers_[i]->Step(held_);
    }
  }

  const MockFleetOptions options_;
  std::vector<std::unique_ptr<MockWorker>> workers_;
  std::atomic<bool> held_{false};
  std::atomic<bool> stopping_{false};
  std::thread stepper_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MockFleet>> MockFleet::Start(const MockFleetOptions& options,
                                                            TokenLedger* ledger) {
  auto fleet = std::make_unique<MockFleetImpl>(options, ledger);
  if (absl::Status status = fleet->AwaitAttached(); !status.ok()) return status;
  return fleet;
}

}  // namespace sluice::bench
