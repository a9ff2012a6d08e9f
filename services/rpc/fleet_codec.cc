#include "services/rpc/fleet_codec.h"

#include <grpcpp/support/status.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"
#include "common/sampling_ranges.h"
#include "common/status_macros.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::rpc {
namespace {

// google.protobuf.Duration's limit: about 10,000 years.
constexpr int64_t kMaxWireSeconds = 315'576'000'000;

// Every message of an attempt names it by request_id and attempt; attempts start at 1.
template <typename Proto>
absl::Status DecodeIdentity(const Proto& proto, RequestId* request, Attempt* attempt) {
  if (!RequestId::FromWire(proto.request_id(), request)) {
    return absl::InvalidArgumentError(
        absl::StrCat("request_id has ", proto.request_id().size(), " bytes, not 16"));
  }
  if (proto.attempt() == 0) return absl::InvalidArgumentError("attempt is 0");
  *attempt = Attempt(proto.attempt());
  return absl::OkStatus();
}

template <typename Proto>
void EncodeIdentity(RequestId request, Attempt attempt, Proto* proto) {
  proto->set_request_id(std::string(request.ToWire()));
  proto->set_attempt(attempt.value);
}

// Reserve, Run and Prefill share these fields.
template <typename Proto>
void EncodeSequence(const SequenceAttempt& sequence, Proto* proto) {
  EncodeIdentity(sequence.request, sequence.attempt, proto);
  v1::SequenceTokens* tokens = proto->mutable_tokens();
  tokens->mutable_ids()->Assign(sequence.tokens.begin(), sequence.tokens.end());
  tokens->set_num_output_tokens(sequence.num_output_tokens);
  tokens->set_tenant_salt(sequence.tenant_salt);
  Encode(sequence.sampling, proto->mutable_sampling());
  if (sequence.time_left) Encode(*sequence.time_left, proto->mutable_time_left());
}

template <typename Proto>
absl::StatusOr<SequenceAttempt> DecodeSequence(const Proto& proto) {
  SequenceAttempt sequence;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &sequence.request, &sequence.attempt));
  const v1::SequenceTokens& tokens = proto.tokens();
  if (tokens.ids().empty()) return absl::InvalidArgumentError("tokens.ids is empty");
  if (tokens.num_output_tokens() < 0 || tokens.num_output_tokens() >= tokens.ids_size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokens.num_output_tokens is ",
                                                   tokens.num_output_tokens(), " of ",
                                                   tokens.ids_size(), " tokens"));
  }
  sequence.tokens.assign(tokens.ids().begin(), tokens.ids().end());
  sequence.num_output_tokens = tokens.num_output_tokens();
  sequence.tenant_salt = tokens.tenant_salt();
  SLUICE_ASSIGN_OR_RETURN(sequence.sampling, Decode(proto.sampling()));
  if (sequence.sampling.max_tokens <= sequence.num_output_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.max_tokens is ",
                                                   sequence.sampling.max_tokens, " and ",
                                                   sequence.num_output_tokens, " exist already"));
  }
  if (proto.has_time_left()) sequence.time_left = Decode(proto.time_left());
  return sequence;
}

template <typename Proto>
std::optional<RequestEndedEvent> RefusalOfOrder(const Proto& proto, const absl::Status& why) {
  RequestEndedEvent event;
  if (!DecodeIdentity(proto, &event.request, &event.attempt).ok()) return std::nullopt;
  event.reason = RequestEndReason::kFailed;
  event.status = why;
  return event;
}

v1::RequestEnded::Reason ToWire(RequestEndReason reason) {
  switch (reason) {
    case RequestEndReason::kStop:
      return v1::RequestEnded::REASON_STOP;
    case RequestEndReason::kLength:
      return v1::RequestEnded::REASON_LENGTH;
    case RequestEndReason::kCancelled:
      return v1::RequestEnded::REASON_CANCELLED;
    case RequestEndReason::kFailed:
      return v1::RequestEnded::REASON_FAILED;
    case RequestEndReason::kHandedOver:
      return v1::RequestEnded::REASON_HANDED_OVER;
  }
  return v1::RequestEnded::REASON_UNSPECIFIED;
}

}  // namespace

void Encode(absl::Duration duration, google::protobuf::Duration* proto) {
  const absl::Duration limit = absl::Seconds(kMaxWireSeconds);
  duration = std::clamp(duration, -limit, limit);
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  proto->set_seconds(seconds);
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

absl::Duration Decode(const google::protobuf::Duration& proto) {
  const int64_t seconds = std::clamp<int64_t>(proto.seconds(), 0, kMaxWireSeconds);
  const absl::Duration duration = absl::Seconds(seconds) + absl::Nanoseconds(proto.nanos());
  return std::max(duration, absl::ZeroDuration());
}

absl::Status StatusFromWire(int code, absl::string_view message) {
  if (code == 0) return absl::OkStatus();
  const bool known = code > 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      message);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return StatusFromWire(static_cast<int>(status.error_code()), status.error_message());
}

void Encode(const SamplingParams& sampling, v1::WorkerSampling* proto) {
  proto->set_temperature(sampling.temperature);
  proto->set_top_p(sampling.top_p);
  proto->set_top_k(sampling.top_k);
  proto->set_min_p(sampling.min_p);
  proto->set_seed(sampling.seed);
  proto->set_presence_penalty(sampling.presence_penalty);
  proto->set_frequency_penalty(sampling.frequency_penalty);
  proto->set_repetition_penalty(sampling.repetition_penalty);
  for (const auto& [token, bias] : sampling.logit_bias)
    (*proto->mutable_logit_bias())[token] = bias;
  proto->mutable_stop_token_ids()->Assign(sampling.stop_token_ids.begin(),
                                          sampling.stop_token_ids.end());
  proto->set_min_tokens(sampling.min_tokens);
  proto->set_max_tokens(sampling.max_tokens);
  proto->set_num_top_logprobs(sampling.num_top_logprobs);
}

absl::StatusOr<SamplingParams> Decode(const v1::WorkerSampling& proto) {
  SamplingParams sampling;
  sampling.temperature = proto.temperature();
  sampling.top_p = proto.top_p();
  sampling.top_k = proto.top_k();
  sampling.min_p = proto.min_p();
  sampling.seed = proto.seed();
  sampling.presence_penalty = proto.presence_penalty();
  sampling.frequency_penalty = proto.frequency_penalty();
  sampling.repetition_penalty = proto.repetition_penalty();
  sampling.logit_bias.assign(proto.logit_bias().begin(), proto.logit_bias().end());
  // A map has no order on the wire; results must not depend on it.
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end());
  sampling.stop_token_ids.assign(proto.stop_token_ids().begin(), proto.stop_token_ids().end());
  sampling.min_tokens = proto.min_tokens();
  sampling.max_tokens = proto.max_tokens();
  sampling.num_top_logprobs = proto.num_top_logprobs();

  const absl::Status in_range = CheckSamplingRanges(sampling);
  if (!in_range.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.", in_range.message()));
  }
  if (sampling.max_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.max_tokens is ", sampling.max_tokens));
  }
  return sampling;
}

void Encode(const SequenceAttempt& sequence, v1::Reserve* proto) {
  EncodeSequence(sequence, proto);
}
void Encode(const SequenceAttempt& sequence, v1::Run* proto) { EncodeSequence(sequence, proto); }

void Encode(const PrefillOrder& order, v1::Prefill* proto) {
  EncodeSequence(order.sequence, proto);
  Encode(order.grant, proto->mutable_grant());
  proto->set_kv_address(order.kv_address);
  proto->set_decode_worker_id(order.decode_worker_id);
  proto->set_fingerprint(order.fingerprint);
}

void Encode(const CancelOrder& order, v1::Cancel* proto) {
  EncodeIdentity(order.request, order.attempt, proto);
  proto->set_reason(order.reason);
}

absl::StatusOr<SequenceAttempt> Decode(const v1::Reserve& proto) { return DecodeSequence(proto); }
absl::StatusOr<SequenceAttempt> Decode(const v1::Run& proto) { return DecodeSequence(proto); }

absl::StatusOr<PrefillOrder> Decode(const v1::Prefill& proto) {
  PrefillOrder order;
  SLUICE_ASSIGN_OR_RETURN(order.sequence, DecodeSequence(proto));
  SLUICE_ASSIGN_OR_RETURN(order.grant, Decode(proto.grant()));
  if (order.grant.request != order.sequence.request ||
      order.grant.attempt != order.sequence.attempt) {
    return absl::InvalidArgumentError("grant is for another attempt");
  }
  if (order.grant.cached_tokens > static_cast<int>(order.sequence.tokens.size())) {
    return absl::InvalidArgumentError("grant.cached_tokens exceeds the sequence");
  }
  if (proto.kv_address().empty()) return absl::InvalidArgumentError("kv_address is empty");
  order.kv_address = proto.kv_address();
  order.decode_worker_id = proto.decode_worker_id();
  order.fingerprint = proto.fingerprint();
  return order;
}

absl::StatusOr<CancelOrder> Decode(const v1::Cancel& proto) {
  CancelOrder order;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &order.request, &order.attempt));
  order.reason = proto.reason();
  return order;
}

std::optional<RequestEndedEvent> RefusalOf(const v1::Reserve& proto, const absl::Status& why) {
  return RefusalOfOrder(proto, why);
}
std::optional<RequestEndedEvent> RefusalOf(const v1::Run& proto, const absl::Status& why) {
  return RefusalOfOrder(proto, why);
}
std::optional<RequestEndedEvent> RefusalOf(const v1::Prefill& proto, const absl::Status& why) {
  return RefusalOfOrder(proto, why);
}

void Encode(const GrantTerms& grant, v1::Grant* proto) {
  EncodeIdentity(grant.request, grant.attempt, proto);
  proto->set_transfer_id(std::string(grant.transfer.ToWire()));
  proto->set_incarnation(grant.incarnation.value);
  proto->set_cached_tokens(grant.cached_tokens);
  Encode(grant.lease, proto->mutable_lease());
  proto->set_kv_address(grant.kv_address);
}

absl::StatusOr<GrantTerms> Decode(const v1::Grant& proto) {
  GrantTerms grant;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &grant.request, &grant.attempt));
  if (!TransferId::FromWire(proto.transfer_id(), &grant.transfer)) {
    return absl::InvalidArgumentError(
        absl::StrCat("transfer_id has ", proto.transfer_id().size(), " bytes, not 16"));
  }
  grant.incarnation = Incarnation(proto.incarnation());
  if (proto.cached_tokens() < 0 || proto.cached_tokens() % kBlockTokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cached_tokens is ", proto.cached_tokens()));
  }
  grant.cached_tokens = proto.cached_tokens();
  grant.lease = Decode(proto.lease());
  grant.kv_address = proto.kv_address();
  return grant;
}

void Encode(const BusyAnswer& busy, v1::Busy* proto) {
  EncodeIdentity(busy.request, busy.attempt, proto);
  proto->set_reason(busy.reason);
  Encode(busy.retry_after, proto->mutable_retry_after());
}

absl::StatusOr<BusyAnswer> Decode(const v1::Busy& proto) {
  BusyAnswer busy;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &busy.request, &busy.attempt));
  busy.reason = proto.reason();
  busy.retry_after = Decode(proto.retry_after());
  return busy;
}

void Encode(const OutputTokenEvent& event, v1::OutputToken* proto) {
  EncodeIdentity(event.request, event.attempt, proto);
  proto->set_index(event.index);
  proto->set_token_id(event.token.token);
  proto->set_logprob(event.token.logprob);
  for (const TokenLogprob& alternative : event.token.top) {
    v1::TopLogprob* top = proto->add_top();
    top->set_token_id(alternative.token);
    top->set_logprob(alternative.logprob);
  }
  if (event.stages) {
    Encode(event.stages->queue, proto->mutable_stages()->mutable_queue());
    Encode(event.stages->compute, proto->mutable_stages()->mutable_compute());
  }
  proto->set_cached_tokens(event.cached_tokens);
}

absl::StatusOr<OutputTokenEvent> Decode(const v1::OutputToken& proto) {
  OutputTokenEvent event;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &event.request, &event.attempt));
  if (proto.index() < 0) return absl::InvalidArgumentError("index is negative");
  event.index = proto.index();
  event.token.token = proto.token_id();
  event.token.logprob = proto.logprob();
  for (const v1::TopLogprob& top : proto.top()) {
    event.token.top.push_back({top.token_id(), top.logprob()});
  }
  if (proto.has_stages()) {
    event.stages = StageDurations{Decode(proto.stages().queue()), Decode(proto.stages().compute())};
  }
  event.cached_tokens = proto.cached_tokens();
  return event;
}

void Encode(const KvReadyEvent& event, v1::KvReady* proto) {
  EncodeIdentity(event.request, event.attempt, proto);
  Encode(event.exposed_transfer, proto->mutable_exposed_transfer());
}

absl::StatusOr<KvReadyEvent> Decode(const v1::KvReady& proto) {
  KvReadyEvent event;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &event.request, &event.attempt));
  event.exposed_transfer = Decode(proto.exposed_transfer());
  return event;
}

void Encode(const RequestEndedEvent& event, v1::RequestEnded* proto) {
  EncodeIdentity(event.request, event.attempt, proto);
  proto->set_reason(ToWire(event.reason));
  proto->set_status_code(static_cast<int>(event.status.code()));
  proto->set_message(std::string(event.status.message()));
  proto->set_stage(event.stage);
}

absl::StatusOr<RequestEndedEvent> Decode(const v1::RequestEnded& proto) {
  RequestEndedEvent event;
  SLUICE_RETURN_IF_ERROR(DecodeIdentity(proto, &event.request, &event.attempt));
  switch (proto.reason()) {
    case v1::RequestEnded::REASON_STOP:
      event.reason = RequestEndReason::kStop;
      break;
    case v1::RequestEnded::REASON_LENGTH:
      event.reason = RequestEndReason::kLength;
      break;
    case v1::RequestEnded::REASON_CANCELLED:
      event.reason = RequestEndReason::kCancelled;
      break;
    case v1::RequestEnded::REASON_HANDED_OVER:
      event.reason = RequestEndReason::kHandedOver;
      break;
    default:
      // A reason of a later version still ends the attempt here.
      event.reason = RequestEndReason::kFailed;
  }
  event.status = StatusFromWire(proto.status_code(), proto.message());
  if (event.reason == RequestEndReason::kFailed && event.status.ok()) {
    event.status = absl::UnknownError("the worker gave no status");
  }
  event.stage = proto.stage();
  return event;
}

void EncodePreempted(RequestId request, Attempt attempt, v1::Preempted* proto) {
  EncodeIdentity(request, attempt, proto);
}

}  // namespace sluice::rpc
