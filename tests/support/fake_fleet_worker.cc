#include "tests/support/fake_fleet_worker.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <algorithm>
#include <deque>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/random.h"
#include "services/rpc/fleet_codec.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.grpc.pb.h"

namespace sluice::testing {
namespace {

using router::AttemptKey;
using router::WorkerRole;

constexpr TokenId kLowestToken = 100;
constexpr int kNumTokens = 200;

// Takes a sequence over from the prefill worker that computed it.
class KvReceiver {
 public:
  virtual ~KvReceiver() = default;
  // False: no such reservation any more.
  virtual bool Receive(const AttemptKey& key, TokenId first_token) = 0;
};

}  // namespace

class FakeKvFabric {
 public:
  void Expect(const std::string& transfer_id, KvReceiver* receiver) {
    absl::MutexLock lock(&mu_);
    receivers_[transfer_id] = receiver;
  }
  void Forget(KvReceiver* receiver) {
    absl::MutexLock lock(&mu_);
    for (auto it = receivers_.begin(); it != receivers_.end();) {
      it = it->second == receiver ? receivers_.erase(it) : std::next(it);
    }
  }
  bool Deliver(const std::string& transfer_id, const AttemptKey& key, TokenId first_token) {
    absl::MutexLock lock(&mu_);
    const auto it = receivers_.find(transfer_id);
    if (it == receivers_.end()) return false;
    KvReceiver* receiver = it->second;
    receivers_.erase(it);
    return receiver->Receive(key, first_token);
  }

 private:
  absl::Mutex mu_;  // taken before a worker's own
  std::map<std::string, KvReceiver*> receivers_ ABSL_GUARDED_BY(mu_);
};

std::shared_ptr<FakeKvFabric> MakeFakeKvFabric() { return std::make_shared<FakeKvFabric>(); }

TokenId FakeAnswerToken(absl::Span<const TokenId> prompt, int index) {
  uint64_t hash = 1469598103934665603u + static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15u;
  for (const TokenId token : prompt) hash = (hash ^ static_cast<uint32_t>(token)) * 1099511628211u;
  hash ^= hash >> 29;
  return kLowestToken + static_cast<TokenId>(hash % kNumTokens);
}

std::vector<TokenId> FakeAnswer(absl::Span<const TokenId> prompt, int max_tokens,
                                absl::Span<const TokenId> stop_token_ids) {
  std::vector<TokenId> answer;
  while (static_cast<int>(answer.size()) < max_tokens) {
    answer.push_back(FakeAnswerToken(prompt, static_cast<int>(answer.size())));
    if (std::find(stop_token_ids.begin(), stop_token_ids.end(), answer.back()) !=
        stop_token_ids.end()) {
      break;
    }
  }
  return answer;
}

namespace {

class FakeFleetWorkerImpl final : public FakeFleetWorker, public KvReceiver {
 public:
  explicit FakeFleetWorkerImpl(FakeWorkerOptions options)
      : options_(std::move(options)),
        started_at_(MonotonicNow()),
        stub_(v1::Fleet::NewStub(rpc::MakeChannel(options_.router_address))),
        stream_(stub_->Attach(&context_)) {
    if (options_.incarnation == 0) options_.incarnation = RandomUint64();
    outbox_.push_back(MakeRegister());
    reader_ = std::thread([this] { ReadLoop(); });
    writer_ = std::thread([this] { WriteLoop(); });
  }

  ~FakeFleetWorkerImpl() override {
    if (options_.fabric != nullptr) options_.fabric->Forget(this);
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
      read_paused_ = false;
    }
    context_.TryCancel();
    reader_.join();
    writer_.join();
    stream_->Finish();
  }

  bool WaitForWelcome(absl::Duration timeout) override {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&welcomed_), timeout);
  }
  std::string refusal() const override {
    absl::MutexLock lock(&mu_);
    return refusal_;
  }
  bool WaitForEnd(absl::Duration timeout) override {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&read_ended_), timeout);
  }
  void Kill() override {
    if (options_.fabric != nullptr) options_.fabric->Forget(this);
    absl::MutexLock lock(&mu_);
    sequences_.clear();
    outbox_.clear();
    stopping_ = true;
    context_.TryCancel();
  }
  void SetSilent(bool silent) override {
    absl::MutexLock lock(&mu_);
    silent_ = silent;
  }
  void StopReading() override {
    absl::MutexLock lock(&mu_);
    read_paused_ = true;
  }
  void SetDraining() override {
    absl::MutexLock lock(&mu_);
    draining_ = true;
  }
  int num_sequences() const override {
    absl::MutexLock lock(&mu_);
    return static_cast<int>(sequences_.size());
  }
  int num_cancels() const override {
    absl::MutexLock lock(&mu_);
    return num_cancels_;
  }
  int num_wrong_resumes() const override {
    absl::MutexLock lock(&mu_);
    return num_wrong_resumes_;
  }

  bool Receive(const AttemptKey& key, TokenId first_token) override {
    absl::MutexLock lock(&mu_);
    const auto it = sequences_.find(key);
    if (it == sequences_.end()) return false;
    v1::WorkerMessage ready;
    rpc::Encode(rpc::KvReadyEvent{key.request, key.attempt, absl::Milliseconds(1)},
                ready.mutable_kv_ready());
    outbox_.push_back(std::move(ready));
    Sequence& sequence = it->second;
    ++sequence.next_index;
    if (EndIfComplete(key, sequence, first_token)) return true;
    sequence.due = MonotonicNow() + options_.decode_step;
    return true;
  }

 private:
  struct Sequence {
    std::vector<TokenId> prompt;
    SamplingParams sampling;
    int base_index = 0;
    int next_index = 0;
    absl::Time due = absl::InfiniteFuture();  // of the next token; never while only reserved
    absl::Time arrived;
    // Of a prefill: where the KV goes.
    bool is_prefill = false;
    std::string transfer_id;
  };

  v1::WorkerMessage MakeRegister() const {
    v1::WorkerMessage message;
    v1::Register* proto = message.mutable_register_();
    proto->set_worker_id(options_.worker_id);
    proto->set_incarnation(options_.incarnation);
    proto->set_role(options_.role == WorkerRole::kPrefill  ? v1::WORKER_ROLE_PREFILL
                    : options_.role == WorkerRole::kDecode ? v1::WORKER_ROLE_DECODE
                                                           : v1::WORKER_ROLE_BOTH);
    proto->set_model(options_.model);
    proto->set_admin_address(options_.admin_address);
    proto->set_fingerprint(options_.fingerprint);
    proto->set_fingerprint_text(options_.fingerprint_text);
    proto->set_max_model_len(options_.max_model_len);
    proto->set_max_num_seqs(options_.max_num_seqs);
    proto->set_num_kv_blocks(options_.num_kv_blocks);
    proto->set_kv_block_tokens(64);
    proto->set_kv_address("fake");
    proto->set_isa("fake");
    proto->set_dtype("none");
    proto->set_protocol_version(std::string(rpc::kProtocolVersion));
    return message;
  }

  v1::WorkerMessage MakeReport() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::WorkerMessage message;
    v1::LoadReport* load = message.mutable_load();
    const int num_sequences = static_cast<int>(sequences_.size());
    load->set_running_requests(num_sequences);
    load->set_ready(true);
    load->set_draining(draining_);
    load->mutable_kv_blocks()->set_total(options_.num_kv_blocks);
    load->mutable_kv_blocks()->set_free(options_.num_kv_blocks - num_sequences);
    load->mutable_kv_blocks()->set_active(num_sequences);
    rpc::Encode(MonotonicNow() - started_at_, load->mutable_uptime());
    return message;
  }

  // ---- Reading

  void ReadLoop() {
    v1::RouterMessage message;
    while (WaitUntilReadable() && stream_->Read(&message)) Handle(message);
    absl::MutexLock lock(&mu_);
    read_ended_ = true;
    stopping_ = true;
  }

  bool WaitUntilReadable() {
    absl::MutexLock lock(&mu_);
    const auto readable = [this]()
                              ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_ || !read_paused_; };
    mu_.Await(absl::Condition(&readable));
    return !stopping_;
  }

  void Handle(const v1::RouterMessage& message) {
    switch (message.message_case()) {
      case v1::RouterMessage::kWelcome: {
        absl::MutexLock lock(&mu_);
        refusal_ = message.welcome().error();
        welcomed_ = refusal_.empty();
        break;
      }
      case v1::RouterMessage::kReserve:
        if (auto sequence = rpc::Decode(message.reserve()); sequence.ok()) OnReserve(*sequence);
        break;
      case v1::RouterMessage::kPrefill:
        if (auto order = rpc::Decode(message.prefill()); order.ok()) {
          absl::MutexLock lock(&mu_);
          Sequence& sequence = Add(order->sequence);
          sequence.is_prefill = true;
          sequence.transfer_id = std::string(order->grant.transfer.ToWire());
          sequence.due = MonotonicNow() + options_.prefill_time;
        }
        break;
      case v1::RouterMessage::kRun:
        if (auto run = rpc::Decode(message.run()); run.ok()) {
          absl::MutexLock lock(&mu_);
          Add(*run).due = MonotonicNow() + options_.prefill_time;
        }
        break;
      case v1::RouterMessage::kCancel:
        if (auto cancel = rpc::Decode(message.cancel()); cancel.ok()) {
          absl::MutexLock lock(&mu_);
          ++num_cancels_;
          sequences_.erase({cancel->request, cancel->attempt});
          End({cancel->request, cancel->attempt}, rpc::RequestEndReason::kCancelled);
        }
        break;
      default:
        break;
    }
  }

  void OnReserve(const rpc::SequenceAttempt& attempt) {
    const TransferId transfer = RandomId128<TransferId>();
    v1::WorkerMessage answer;
    {
      absl::MutexLock lock(&mu_);
      if (num_busy_ < options_.busy_answers) {
        ++num_busy_;
        rpc::Encode(rpc::BusyAnswer{attempt.request, attempt.attempt, "fake worker is busy",
                                    absl::Milliseconds(10)},
                    answer.mutable_busy());
        outbox_.push_back(std::move(answer));
        return;
      }
      Add(attempt);
    }
    options_.fabric->Expect(std::string(transfer.ToWire()), this);
    rpc::GrantTerms grant;
    grant.request = attempt.request;
    grant.attempt = attempt.attempt;
    grant.transfer = transfer;
    grant.incarnation = Incarnation(options_.incarnation);
    grant.lease = absl::Seconds(10);
    rpc::Encode(grant, answer.mutable_grant());
    absl::MutexLock lock(&mu_);
    outbox_.push_back(std::move(answer));
  }

  Sequence& Add(const rpc::SequenceAttempt& attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Sequence& sequence = sequences_[{attempt.request, attempt.attempt}];
    const auto end_of_prompt = attempt.tokens.end() - attempt.num_output_tokens;
    sequence.prompt.assign(attempt.tokens.begin(), end_of_prompt);
    sequence.sampling = attempt.sampling;
    sequence.base_index = sequence.next_index = attempt.num_output_tokens;
    sequence.arrived = MonotonicNow();
    for (int i = 0; i < attempt.num_output_tokens; ++i) {
      if (*(end_of_prompt + i) != NextToken(sequence, i)) {
        ++num_wrong_resumes_;
        break;
      }
    }
    return sequence;
  }

  // ---- Working and writing

  void WriteLoop() {
    absl::Time next_report = MonotonicNow();
    while (true) {
      std::deque<v1::WorkerMessage> messages;
      std::vector<AttemptKey> hand_over;
      {
        absl::MutexLock lock(&mu_);
        const auto has_mail = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
          return stopping_ || (!outbox_.empty() && !silent_);
        };
        mu_.AwaitWithTimeout(absl::Condition(&has_mail),
                             std::min(next_report, NextDue()) - MonotonicNow());
        if (stopping_) return;
        const absl::Time now = MonotonicNow();
        if (now >= next_report) {
          next_report = now + options_.report_interval;
          if (welcomed_ && !silent_) outbox_.push_back(MakeReport());
        }
        Work(now, &hand_over);
        if (!silent_) messages.swap(outbox_);
      }
      for (const AttemptKey& key : hand_over) HandOver(key);
      for (const v1::WorkerMessage& message : messages) {
        if (!stream_->Write(message)) return;
      }
    }
  }

  absl::Time NextDue() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    absl::Time next = absl::InfiniteFuture();
    for (const auto& [key, sequence] : sequences_) next = std::min(next, sequence.due);
    return next;
  }

  TokenId NextToken(const Sequence& sequence, int index) const {
    return options_.next_token ? options_.next_token(sequence.prompt, index)
                               : FakeAnswerToken(sequence.prompt, index);
  }

  // One token of each sequence that is due, in one message as of one engine step.
  void Work(absl::Time now, std::vector<AttemptKey>* hand_over) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::WorkerMessage batch;
    std::vector<std::pair<AttemptKey, TokenId>> produced;
    for (auto& [key, sequence] : sequences_) {
      if (now < sequence.due) continue;
      rpc::OutputTokenEvent event;
      event.request = key.request;
      event.attempt = key.attempt;
      event.index = sequence.next_index;
      event.token.token = NextToken(sequence, sequence.next_index);
      if (sequence.next_index == sequence.base_index) {
        event.stages = {absl::ZeroDuration(), now - sequence.arrived};
      }
      rpc::Encode(event, batch.mutable_tokens()->add_tokens());
      produced.emplace_back(key, event.token.token);
    }
    if (produced.empty()) return;
    outbox_.push_back(std::move(batch));
    for (const auto& [key, token] : produced) {
      Sequence& sequence = sequences_.at(key);
      if (sequence.is_prefill) {
        sequence.due = absl::InfiniteFuture();
        hand_over->push_back(key);
        continue;
      }
      ++sequence.next_index;
      if (EndIfComplete(key, sequence, token)) continue;
      if (options_.preempt_after_tokens > 0 && key.attempt == Attempt(1) &&
          sequence.next_index >= options_.preempt_after_tokens) {
        v1::WorkerMessage preempted;
        rpc::EncodePreempted(key.request, key.attempt, preempted.mutable_preempted());
        outbox_.push_back(std::move(preempted));
        sequences_.erase(key);
        continue;
      }
      sequence.due = now + options_.decode_step;
    }
  }

  // The decode worker takes the sequence, or is gone.
  void HandOver(const AttemptKey& key) {
    std::string transfer_id;
    TokenId first_token = 0;
    {
      absl::MutexLock lock(&mu_);
      const auto it = sequences_.find(key);
      if (it == sequences_.end()) return;
      transfer_id = it->second.transfer_id;
      first_token = NextToken(it->second, it->second.base_index);
    }
    const bool taken = options_.fabric->Deliver(transfer_id, key, first_token);
    absl::MutexLock lock(&mu_);
    if (sequences_.erase(key) == 0) return;  // cancelled meanwhile
    End(key, taken ? rpc::RequestEndReason::kHandedOver : rpc::RequestEndReason::kFailed,
        absl::AbortedError("the decode worker does not know the transfer"), "kv_transfer");
  }

  // `token` was the latest one.
  bool EndIfComplete(const AttemptKey& key, const Sequence& sequence, TokenId token)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const std::vector<TokenId>& stops = sequence.sampling.stop_token_ids;
    const bool stopped = std::find(stops.begin(), stops.end(), token) != stops.end();
    if (!stopped && sequence.next_index < sequence.sampling.max_tokens) return false;
    End(key, stopped ? rpc::RequestEndReason::kStop : rpc::RequestEndReason::kLength);
    sequences_.erase(key);
    return true;
  }

  void End(const AttemptKey& key, rpc::RequestEndReason reason, absl::Status status = {},
           std::string stage = "") ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::WorkerMessage message;
    if (reason != rpc::RequestEndReason::kFailed) status = absl::OkStatus();
    rpc::Encode(rpc::RequestEndedEvent{key.request, key.attempt, reason, std::move(status),
                                       std::move(stage)},
                message.mutable_ended());
    outbox_.push_back(std::move(message));
  }

  // Constant after construction.
  FakeWorkerOptions options_;
  const absl::Time started_at_;
  grpc::ClientContext context_;
  const std::unique_ptr<v1::Fleet::Stub> stub_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::RouterMessage>> stream_;

  mutable absl::Mutex mu_;
  std::map<AttemptKey, Sequence> sequences_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::WorkerMessage> outbox_ ABSL_GUARDED_BY(mu_);
  std::string refusal_ ABSL_GUARDED_BY(mu_);
  bool welcomed_ ABSL_GUARDED_BY(mu_) = false;
  bool read_ended_ ABSL_GUARDED_BY(mu_) = false;
  bool read_paused_ ABSL_GUARDED_BY(mu_) = false;
  bool silent_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  int num_busy_ ABSL_GUARDED_BY(mu_) = 0;
  int num_cancels_ ABSL_GUARDED_BY(mu_) = 0;
  int num_wrong_resumes_ ABSL_GUARDED_BY(mu_) = 0;

  std::thread reader_;
  std::thread writer_;
};

}  // namespace

std::unique_ptr<FakeFleetWorker> FakeFleetWorker::Start(FakeWorkerOptions options) {
  return std::make_unique<FakeFleetWorkerImpl>(std::move(options));
}

}  // namespace sluice::testing
