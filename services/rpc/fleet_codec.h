// The fleet protocol's messages as plain structs, and the translation to and from proto/sluice/v1/
// fleet.proto. Proto types stop here: router core and worker roles see only these structs.
// Pure functions, any thread.
//
// Decoding checks everything that comes from the wire: INVALID_ARGUMENT names the field. Durations,
// never times, cross the wire.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/sampling_params.h"

namespace google::protobuf {
class Duration;
}
namespace grpc {
class Status;
}
namespace sluice::v1 {
class Busy;
class Cancel;
class Grant;
class KvReady;
class OutputToken;
class Preempted;
class Prefill;
class RequestEnded;
class Reserve;
class Run;
class WorkerSampling;
}  // namespace sluice::v1

namespace sluice::rpc {

// Version of the router <-> worker protocol; Register carries it and both sides must agree.
inline constexpr absl::string_view kProtocolVersion = "sluice.v1/1";

// One attempt to answer one request: what Reserve, Prefill and Run carry.
struct SequenceAttempt {
  RequestId request;
  Attempt attempt;
  std::vector<TokenId> tokens;  // prompt, then the output tokens the client already has
  int num_output_tokens = 0;
  std::string tenant_salt;
  SamplingParams sampling;
  std::optional<absl::Duration> time_left;  // until the deadline; none: no deadline
};

// The right to send one attempt's KV to one decode worker.
struct GrantTerms {
  RequestId request;
  Attempt attempt;
  TransferId transfer;
  Incarnation incarnation;  // of the decode worker
  int cached_tokens = 0;    // a multiple of kBlockTokens; need not be sent
  absl::Duration lease;
  std::string kv_address;  // of the decode worker's channel; empty: as registered
};

struct PrefillOrder {
  SequenceAttempt sequence;
  GrantTerms grant;
  std::string kv_address;        // of the decode worker's channel
  std::string decode_worker_id;  // for people
  std::string fingerprint;       // of the decode worker's KV
};

struct CancelOrder {
  RequestId request;
  Attempt attempt;
  std::string reason;
};

struct BusyAnswer {
  RequestId request;
  Attempt attempt;
  std::string reason;
  absl::Duration retry_after;
};

// Durations on the worker that made an attempt's first token.
struct StageDurations {
  absl::Duration queue;
  absl::Duration compute;
};

struct OutputTokenEvent {
  RequestId request;
  Attempt attempt;
  int index = 0;  // of the whole answer, dense from 0
  SampledToken token;
  std::optional<StageDurations> stages;  // with the attempt's first token
  int cached_tokens = 0;                 // with the attempt's first token
};

struct KvReadyEvent {
  RequestId request;
  Attempt attempt;
  absl::Duration exposed_transfer;
};

enum class RequestEndReason { kStop, kLength, kCancelled, kFailed, kHandedOver };

struct RequestEndedEvent {
  RequestId request;
  Attempt attempt;
  RequestEndReason reason = RequestEndReason::kFailed;
  absl::Status status;  // with kFailed
  std::string stage;    // "prefill", "kv_transfer" or "decode"; with kFailed
};

// Infinite durations become the largest the wire can say. Negative ones decode as zero.
void Encode(absl::Duration duration, google::protobuf::Duration* proto);
absl::Duration Decode(const google::protobuf::Duration& proto);

// An unknown code becomes UNKNOWN; OK with a message stays OK.
absl::Status StatusFromWire(int code, absl::string_view message);
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

void Encode(const SamplingParams& sampling, v1::WorkerSampling* proto);
absl::StatusOr<SamplingParams> Decode(const v1::WorkerSampling& proto);

// Router to worker.
void Encode(const SequenceAttempt& sequence, v1::Reserve* proto);
void Encode(const SequenceAttempt& sequence, v1::Run* proto);
void Encode(const PrefillOrder& order, v1::Prefill* proto);
void Encode(const CancelOrder& order, v1::Cancel* proto);
absl::StatusOr<SequenceAttempt> Decode(const v1::Reserve& proto);
absl::StatusOr<SequenceAttempt> Decode(const v1::Run& proto);
absl::StatusOr<PrefillOrder> Decode(const v1::Prefill& proto);
absl::StatusOr<CancelOrder> Decode(const v1::Cancel& proto);

// The end of an attempt whose order does not decode, for the router that waits for an answer.
// Nothing when not even the attempt's identity decodes.
std::optional<RequestEndedEvent> RefusalOf(const v1::Reserve& proto, const absl::Status& why);
std::optional<RequestEndedEvent> RefusalOf(const v1::Run& proto, const absl::Status& why);
std::optional<RequestEndedEvent> RefusalOf(const v1::Prefill& proto, const absl::Status& why);

// Worker to router.
void Encode(const GrantTerms& grant, v1::Grant* proto);
void Encode(const BusyAnswer& busy, v1::Busy* proto);
void Encode(const OutputTokenEvent& event, v1::OutputToken* proto);
void Encode(const KvReadyEvent& event, v1::KvReady* proto);
void Encode(const RequestEndedEvent& event, v1::RequestEnded* proto);
void EncodePreempted(RequestId request, Attempt attempt, v1::Preempted* proto);
absl::StatusOr<GrantTerms> Decode(const v1::Grant& proto);
absl::StatusOr<BusyAnswer> Decode(const v1::Busy& proto);
absl::StatusOr<OutputTokenEvent> Decode(const v1::OutputToken& proto);
absl::StatusOr<KvReadyEvent> Decode(const v1::KvReady& proto);
absl::StatusOr<RequestEndedEvent> Decode(const v1::RequestEnded& proto);

}  // namespace sluice::rpc
