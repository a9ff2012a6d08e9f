// What goes into the router's core and what comes out of it: plain values, no protocol buffers, no
// threads. services/router/fleet translates them from and to fleet.proto.
//
// A worker's stream is a session. A worker that reconnects gets a new session, so whatever an old
// stream still delivers names a session nobody knows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/block_hash.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "services/router/core/core_counters.h"
#include "services/router/core/dispatcher.h"

namespace sluice::router {

using SessionId = StrongId<struct SessionIdTag, uint64_t>;

enum class WorkerRole { kPrefill, kDecode, kBoth };
const char* WorkerRoleName(WorkerRole role);  // "prefill", "decode", "both"

// What a worker says about itself once, when it attaches.
struct WorkerInfo {
  std::string worker_id;  // unique name, for people
  Incarnation incarnation;
  WorkerRole role = WorkerRole::kBoth;
  std::string model;
  std::string fingerprint;       // raw bytes: equal means exchangeable KV and identical results
  std::string fingerprint_text;  // the same as key=value text, to say what differs
  int max_model_len = 0;         // tokens, prompt and answer
  int max_num_seqs = 0;
  int64_t num_kv_blocks = 0;
  int kv_block_tokens = 0;
  std::string kv_address;  // of its transfer channel; opaque here
  std::string isa;
  std::string dtype;
  std::string admin_address;
  std::string protocol_version;
};

// What a worker says about itself every 200 ms.
struct WorkerLoad {
  int running_requests = 0;
  int waiting_requests = 0;
  int64_t queued_prefill_tokens = 0;
  int64_t blocks_total = 0, blocks_free = 0, blocks_cached = 0, blocks_active = 0,
          blocks_receiving = 0, blocks_sending = 0, blocks_quarantined = 0;
  double prefill_tokens_per_second = 0;  // 0: not known yet
  double decode_tokens_per_second = 0;
  bool draining = false;
  bool ready = false;
  std::vector<WorkerSnapshot::Transport> transports;
  std::vector<BlockHash> kv_blocks_added;
  std::vector<BlockHash> kv_blocks_removed;
  absl::Duration uptime;
};

// One try at a request on one choice of workers.
struct AttemptKey {
  RequestId request;
  Attempt attempt;
  friend auto operator<=>(const AttemptKey&, const AttemptKey&) = default;
};

// A decode worker's promise of blocks, and the capability to fill them.
struct Grant {
  TransferId transfer_id;
  Incarnation incarnation;
  int cached_tokens = 0;
  absl::Duration lease;
  std::string kv_address;  // empty: as registered
};

using TokenList = absl::InlinedVector<SampledToken, 1>;  // most steps bring one

struct ProducedToken {
  AttemptKey key;
  int index = 0;  // of the answer, dense from 0, tokens of earlier attempts counted
  SampledToken token;
  // With the attempt's first token: durations on the worker that made it, and the prompt tokens
  // that it did not have to compute.
  absl::Duration queue_time;
  absl::Duration compute_time;
  int cached_tokens = 0;
};

enum class AttemptEndReason { kStop, kLength, kCancelled, kFailed, kHandedOver };

// ---- Events: into the core.

struct WorkerRegistered {
  SessionId session;
  WorkerInfo info;
};
struct WorkerLeft {
  SessionId session;
  std::string reason;
};
struct LoadReported {
  SessionId session;
  WorkerLoad load;
};
struct Granted {
  SessionId session;
  AttemptKey key;
  Grant grant;
};
struct AnsweredBusy {
  SessionId session;
  AttemptKey key;
  std::string reason;
  absl::Duration retry_after;
};
struct TokensProduced {
  SessionId session;
  std::vector<ProducedToken> tokens;
};
struct AttemptEnded {
  SessionId session;
  AttemptKey key;
  AttemptEndReason reason = AttemptEndReason::kFailed;
  absl::Status status;  // with kFailed; never OK then
  std::string stage;    // with kFailed: prefill, kv_transfer, decode
};
struct AttemptPreempted {
  SessionId session;
  AttemptKey key;
};
struct KvArrived {
  SessionId session;
  AttemptKey key;
  absl::Duration exposed_transfer;
};
struct RequestSubmitted {
  GenerationSpec spec;
};
struct RequestCancelled {
  RequestId id;
  bool satisfied = false;  // the front has all it wants (a stop string): it ends well
};
// No new requests from now on; those accepted go on.
struct DrainStarted {};
// The router itself did not run for a while: the workers' silence during it proves nothing.
struct RouterResumed {};
// Time has passed. Timers run on this event only, so that a backlog of messages is always read
// before anybody is declared silent.
struct Tick {};

using Event = std::variant<WorkerRegistered, WorkerLeft, LoadReported, Granted, AnsweredBusy,
                           TokensProduced, AttemptEnded, AttemptPreempted, KvArrived,
                           RequestSubmitted, RequestCancelled, DrainStarted, RouterResumed, Tick>;

// ---- Actions: out of the core, in order.

// A sequence as one attempt starts it: prompt, then the tokens the client already has.
struct SequenceStart {
  AttemptKey key;
  std::vector<TokenId> tokens;
  int num_output_tokens = 0;  // how many of `tokens` are output
  std::string tenant_salt;
  SamplingParams sampling;
  std::optional<absl::Duration> time_left;  // until the deadline; none: no deadline
};

struct SendReserve {
  SessionId to;
  SequenceStart sequence;
};
struct SendPrefill {
  SessionId to;
  SequenceStart sequence;
  Grant grant;
  std::string decode_kv_address;
  std::string decode_worker_id;
  std::string fingerprint;
};
struct SendRun {
  SessionId to;
  SequenceStart sequence;
};
struct SendCancel {
  SessionId to;
  AttemptKey key;
  std::string reason;
};
struct SendWelcome {
  SessionId to;
  std::string error;  // not empty: refused; the stream closes after it
};
struct CloseSession {
  SessionId session;
  std::string reason;
};

struct EmitTokens {
  RequestId id;
  TokenList tokens;
  bool first = false;             // of the request
  absl::Duration since_previous;  // since the previous tokens; of the first: since Submit
  // Only of the first after a worker was lost or failed in the middle of the answer: since the
  // router noticed that (of several in a row: the last). since_previous is then the pause that the
  // client saw.
  std::optional<absl::Duration> since_failure;
};

enum class RejectReason {
  kNone,
  kQueueFull,
  kQueueTimeout,
  kNoPrefill,
  kNoDecode,
  kTooLong,
  kKvExhausted,
  kDraining,
};

struct EndRequest {
  RequestId id;
  GenerationResult result;
  // For metrics.
  RequestApi api = RequestApi::kOpenAi;
  RejectReason reject = RejectReason::kNone;
  absl::Duration duration;  // since Submit
  int prompt_tokens = 0;
  int output_tokens = 0;
  std::optional<absl::Duration> time_per_output_token;  // after the first; two tokens at least
  std::optional<double> prefix_match_ratio;  // of its prompt, as expected of the prefill worker
};

// Of the membership, for the log.
struct WorkerChanged {
  MembershipEvent event = MembershipEvent::kJoin;
  std::string worker_id;
  WorkerRole role = WorkerRole::kBoth;
  std::string reason;    // empty for a join
  int num_requests = 0;  // that it had; each goes on elsewhere or ends
};

using Action = std::variant<SendReserve, SendPrefill, SendRun, SendCancel, SendWelcome,
                            CloseSession, EmitTokens, EndRequest, WorkerChanged>;

}  // namespace sluice::router
