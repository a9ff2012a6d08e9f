// Drives a RouterCore by hand: workers join, requests are submitted, messages are played, and what
// the core did can be read back. Time moves only when a test says so.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "services/router/core/router_core.h"

namespace sluice::router {

class CoreHarness {
 public:
  explicit CoreHarness(CoreOptions options = {}) : core(std::move(options)) {}

  static WorkerInfo Info(const std::string& worker_id, WorkerRole role) {
    WorkerInfo info;
    info.worker_id = worker_id;
    info.incarnation = Incarnation(1);
    info.role = role;
    info.model = std::string("m");  // GCC 12 warns of assigning the literal, wrongly
    info.fingerprint = "fp";
    info.fingerprint_text = "dtype=bf16 layers=4";
    info.max_model_len = 1000;
    info.max_num_seqs = 8;
    info.num_kv_blocks = 100;
    info.kv_block_tokens = 64;
    info.kv_address = "address of " + worker_id;
    return info;
  }
  static WorkerLoad ReadyLoad() {
    WorkerLoad load;
    load.ready = true;
    load.blocks_total = load.blocks_free = 100;
    return load;
  }

  // Registers a worker that is ready at once.
  SessionId Join(const std::string& worker_id, WorkerRole role) {
    return Join(Info(worker_id, role));
  }
  SessionId Join(WorkerInfo info) {
    const SessionId session(++last_session_);
    Play(WorkerRegistered{session, std::move(info)});
    Play(LoadReported{session, ReadyLoad()});
    return session;
  }

  GenerationSpec Spec(int prompt_tokens, int max_tokens) {
    GenerationSpec spec;
    spec.id.bytes[0] = static_cast<uint8_t>(++last_request_);
    spec.id.bytes[1] = static_cast<uint8_t>(last_request_ >> 8);
    for (int i = 0; i < prompt_tokens; ++i) spec.prompt.push_back(i + 1);
    spec.sampling.max_tokens = max_tokens;
    return spec;
  }
  RequestId Submit(int prompt_tokens = 10, int max_tokens = 100) {
    return Submit(Spec(prompt_tokens, max_tokens));
  }
  RequestId Submit(GenerationSpec spec) {
    const RequestId id = spec.id;
    Play(RequestSubmitted{std::move(spec)});
    return id;
  }

  void Play(Event event) {
    for (Action& action : core.Step(std::move(event), now)) {
      if (auto* emitted = std::get_if<EmitTokens>(&action)) {
        for (const SampledToken& token : emitted->tokens) {
          emitted_tokens[emitted->id].push_back(token.token);
        }
        all_emitted.push_back(*emitted);
      } else if (auto* ended = std::get_if<EndRequest>(&action)) {
        ends[ended->id].push_back(*ended);
      } else if (auto* change = std::get_if<WorkerChanged>(&action)) {
        changes.push_back(*change);
      } else {
        sent.push_back(std::move(action));
      }
    }
  }
  void Advance(absl::Duration duration) {
    now += duration;
    Play(Tick{});
  }
  // Lets the workers report so that none is silent, then moves on.
  void AdvanceAlive(absl::Duration duration) {
    for (absl::Duration step = absl::Milliseconds(200); duration > absl::ZeroDuration();
         duration -= step) {
      now += std::min(step, duration);
      Play(RouterResumed{});
      Play(Tick{});
    }
  }

  // The sent messages of one kind since the last Take, in order; forgets those.
  template <typename T>
  std::vector<T> Take() {
    std::vector<T> taken;
    std::vector<Action> rest;
    for (Action& action : sent) {
      if (auto* match = std::get_if<T>(&action)) {
        taken.push_back(std::move(*match));
      } else {
        rest.push_back(std::move(action));
      }
    }
    sent = std::move(rest);
    return taken;
  }

  void PlayGrant(SessionId decode, AttemptKey key) {
    Grant grant;
    grant.transfer_id.bytes[0] = 7;
    grant.incarnation = Incarnation(1);
    Play(Granted{decode, key, grant});
  }
  void PlayToken(SessionId from, AttemptKey key, int index, TokenId token) {
    ProducedToken produced;
    produced.key = key;
    produced.index = index;
    produced.token.token = token;
    Play(TokensProduced{from, {produced}});
  }
  void PlayKv(SessionId decode, AttemptKey key) {
    Play(KvArrived{decode, key, absl::Milliseconds(3)});
  }
  void PlayEnd(SessionId from, AttemptKey key, AttemptEndReason reason,
               absl::Status status = absl::OkStatus(), std::string stage = "") {
    Play(AttemptEnded{from, key, reason, std::move(status), std::move(stage)});
  }

  // A new request that decodes there until it is ended; forgets what was sent.
  AttemptKey StartDecode(SessionId prefill, SessionId decode) {
    Submit();
    const AttemptKey key = Take<SendReserve>().at(0).sequence.key;
    PlayGrant(decode, key);
    PlayToken(prefill, key, 0, 100);
    PlayKv(decode, key);
    PlayEnd(prefill, key, AttemptEndReason::kHandedOver);
    PlayToken(decode, key, 1, 101);
    sent.clear();
    return key;
  }

  bool HasEnded(RequestId id) const { return ends.contains(id); }
  const GenerationResult& Result(RequestId id) const { return ends.at(id).front().result; }
  uint64_t Stale(StaleReason reason) const {
    return core.counters().stale_messages[static_cast<int>(reason)];
  }

  std::vector<EmitTokens> all_emitted;
  absl::Time now = absl::UnixEpoch() + absl::Hours(1);
  RouterCore core;
  std::vector<Action> sent;  // to workers
  std::vector<WorkerChanged> changes;
  std::map<RequestId, std::vector<TokenId>> emitted_tokens;
  std::map<RequestId, std::vector<EndRequest>> ends;

 private:
  uint64_t last_session_ = 0;
  int last_request_ = 0;
};

}  // namespace sluice::router
