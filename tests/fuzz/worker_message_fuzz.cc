// A router's core under workers that send anything. Input: a script of submissions, cancellations,
// pauses, lost workers, and WorkerMessages as bytes; a message of an attempt without a request_id
// is given those of the last order its worker got, so that the script can also play along.
//   - each request ends once, gets no token after its end and no more than it asked for;
//   - whatever the workers said, the orders that the router sends are well-formed;
//   - when the workers fall silent, every request ends.
#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "services/router/core/router_core.h"
#include "services/router/fleet/wire.h"
#include "services/rpc/fleet_codec.h"
#include "sluice/v1/fleet.pb.h"
#include "tests/fuzz/byte_source.h"

namespace sluice::router {
namespace {

constexpr int kNumWorkers = 4;
constexpr int kMaxRequests = 64;
constexpr int kMaxSteps = 400;

struct WorkerSlot {
  SessionId session;
  bool registered = false;
  AttemptKey last_order;
};

struct RequestRecord {
  int max_tokens = 0;
  int num_tokens = 0;
  bool ended = false;
};

// The identity of a message of an attempt, where the script left it out.
template <typename Proto>
void FillIdentity(const AttemptKey& key, Proto* proto) {
  if (!proto->request_id().empty()) return;
  proto->set_request_id(std::string(key.request.ToWire()));
  if (proto->attempt() == 0) proto->set_attempt(key.attempt.value);
}

void FillIdentities(const AttemptKey& key, v1::WorkerMessage* message) {
  if (message->has_grant()) FillIdentity(key, message->mutable_grant());
  if (message->has_busy()) FillIdentity(key, message->mutable_busy());
  if (message->has_ended()) FillIdentity(key, message->mutable_ended());
  if (message->has_preempted()) FillIdentity(key, message->mutable_preempted());
  if (message->has_kv_ready()) FillIdentity(key, message->mutable_kv_ready());
  if (message->has_tokens()) {
    for (v1::OutputToken& token : *message->mutable_tokens()->mutable_tokens()) {
      FillIdentity(key, &token);
    }
  }
}

class Script {
 public:
  explicit Script(fuzz::ByteSource source) : source_(source), core_(Options()) {
    // Prefill and decode, or workers that do both.
    const bool disaggregated = source_.Bool();
    for (int i = 0; i < kNumWorkers; ++i) {
      const WorkerRole role = !disaggregated ? WorkerRole::kBoth
                              : i < 2        ? WorkerRole::kPrefill
                                             : WorkerRole::kDecode;
      Attach(&workers_[i]);
      WorkerInfo info;
      info.worker_id = absl::StrCat("worker ", i);
      info.incarnation = Incarnation(1);
      info.role = role;
      info.model = std::string("m");
      info.fingerprint = std::string("fp");
      info.max_model_len = 128;
      info.max_num_seqs = 4;
      info.num_kv_blocks = 16;
      info.kv_block_tokens = kBlockTokens;
      info.kv_address = std::string("address");
      workers_[i].registered = true;
      Play(WorkerRegistered{workers_[i].session, std::move(info)});
      WorkerLoad load;
      load.ready = true;
      load.blocks_total = load.blocks_free = 16;
      Play(LoadReported{workers_[i].session, load});
    }
    Submit();
  }

  void Run() {
    for (int step = 0; step < kMaxSteps && !source_.empty(); ++step) Step();
    for (int step = 0; core_.num_queued() + core_.num_running() > 0; ++step) {
      SLUICE_CHECK(step < 10000);
      now_ = std::max(now_ + absl::Milliseconds(1), core_.NextTimer(now_));
      Play(Tick{});
    }
    for (const auto& [id, request] : requests_) SLUICE_CHECK(request.ended);
  }

 private:
  static CoreOptions Options() {
    CoreOptions options;
    options.max_queued_requests = 4;
    options.max_running_requests = 4;
    options.max_held_tokens = 8;
    options.max_prefix_blocks_per_worker = 16;
    return options;
  }

  void Step() {
    const uint8_t op = source_.Byte();
    WorkerSlot* worker = &workers_[(op >> 3) % kNumWorkers];
    switch (op % 8) {
      case 4:
        Submit();
        break;
      case 5:
        Play(RequestCancelled{IdOf(source_.Below(kMaxRequests))});
        break;
      case 6:
        now_ += absl::Milliseconds(20 * source_.Byte());
        Play(Tick{});
        break;
      case 7:
        if (worker->registered) Play(WorkerLeft{worker->session, "lost"});
        Attach(worker);
        break;
      default:
        Receive(worker);
    }
  }

  static RequestId IdOf(int index) {
    RequestId id;
    id.bytes[0] = static_cast<uint8_t>(index + 1);
    return id;
  }

  void Submit() {
    if (requests_.size() >= kMaxRequests) return;
    GenerationSpec spec;
    spec.id = IdOf(static_cast<int>(requests_.size()));
    for (int i = source_.Below(100); i >= 0; --i) spec.prompt.push_back(i + 1);
    spec.sampling.max_tokens = 1 + source_.Below(20);
    requests_[spec.id].max_tokens = spec.sampling.max_tokens;
    Play(RequestSubmitted{std::move(spec)});
  }

  void Attach(WorkerSlot* worker) { *worker = {SessionId(++last_session_), false, {}}; }

  // As FleetSession: Register comes first and once; what cannot be read ends the stream.
  void Receive(WorkerSlot* worker) {
    const uint16_t size_bytes = source_.Uint16();
    v1::WorkerMessage message;
    if (!message.ParseFromString(std::string(source_.Raw(size_bytes)))) return;
    FillIdentities(worker->last_order, &message);
    absl::StatusOr<Event> event = DecodeWorkerMessage(worker->session, message);
    if (!event.ok() || message.has_register_() == worker->registered) {
      if (worker->registered) Play(WorkerLeft{worker->session, "protocol error"});
      Attach(worker);
      return;
    }
    worker->registered = true;
    Play(*std::move(event));
  }

  void Play(Event event) {
    for (Action& action : core_.Step(std::move(event), now_)) Carry(std::move(action));
  }

  void Carry(Action action) {
    if (const auto* emitted = std::get_if<EmitTokens>(&action)) {
      RequestRecord& request = requests_.at(emitted->id);
      request.num_tokens += static_cast<int>(emitted->tokens.size());
      SLUICE_CHECK(!request.ended && request.num_tokens <= request.max_tokens);
    } else if (const auto* ended = std::get_if<EndRequest>(&action)) {
      RequestRecord& request = requests_.at(ended->id);
      SLUICE_CHECK(!request.ended);
      const bool ended_well =
          ended->result.end == GenerationEnd::kStop || ended->result.end == GenerationEnd::kLength;
      SLUICE_CHECK(ended->result.status.ok() == ended_well);
      request.ended = true;
    } else if (const auto* closed = std::get_if<CloseSession>(&action)) {
      for (WorkerSlot& worker : workers_) {
        if (worker.session == closed->session) Attach(&worker);
      }
    } else if (!std::holds_alternative<WorkerChanged>(action)) {
      CheckOrder(std::move(action));
    }
  }

  // What the router sends, the worker that gets it accepts.
  void CheckOrder(Action action) {
    const SessionId to = Destination(action);
    v1::RouterMessage message;
    EncodeAction({"router", Incarnation(1)}, std::move(action), &message);
    AttemptKey key;
    auto accept = [&key](const auto& sequence) {
      SLUICE_CHECK(sequence.ok());
      key = {sequence->request, sequence->attempt};
    };
    if (message.has_reserve()) accept(rpc::Decode(message.reserve()));
    if (message.has_run()) accept(rpc::Decode(message.run()));
    if (message.has_cancel()) accept(rpc::Decode(message.cancel()));
    if (message.has_prefill()) {
      const auto order = rpc::Decode(message.prefill());
      SLUICE_CHECK(order.ok());
      key = {order->sequence.request, order->sequence.attempt};
    }
    if (message.has_welcome()) return;
    // Cancels answer grants for requests that nobody made, too.
    SLUICE_CHECK(message.has_cancel() || requests_.contains(key.request));
    if (!requests_.contains(key.request)) return;
    for (WorkerSlot& worker : workers_) {
      if (worker.session == to) worker.last_order = key;
    }
  }

  fuzz::ByteSource source_;
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::array<WorkerSlot, kNumWorkers> workers_;
  std::map<RequestId, RequestRecord> requests_;
  uint64_t last_session_ = 0;
  RouterCore core_;
};

}  // namespace
}  // namespace sluice::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::router::Script(sluice::fuzz::ByteSource(data, size)).Run();
  return 0;
}
