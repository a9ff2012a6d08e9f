#include "services/router/grpc/grpc_request.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <utility>

#include "absl/time/time.h"

namespace sluice::router {
namespace {

using google::protobuf::Duration;

void SetDuration(absl::Duration from, Duration* to) {
  absl::Duration rest;
  to->set_seconds(absl::IDivDuration(from, absl::Seconds(1), &rest));
  to->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

template <typename Repeated>
std::vector<int64_t> ToIntegers(const Repeated& ids) {
  return std::vector<int64_t>(ids.begin(), ids.end());
}

SamplingRequest FromProto(const v1::SamplingParams& proto) {
  SamplingRequest request;
  if (proto.has_temperature()) request.temperature = proto.temperature();
  if (proto.has_top_p()) request.top_p = proto.top_p();
  if (proto.has_top_k()) request.top_k = proto.top_k();
  if (proto.has_min_p()) request.min_p = proto.min_p();
  if (proto.has_seed()) request.seed = proto.seed();
  if (proto.has_presence_penalty()) request.presence_penalty = proto.presence_penalty();
  if (proto.has_frequency_penalty()) request.frequency_penalty = proto.frequency_penalty();
  if (proto.has_repetition_penalty()) request.repetition_penalty = proto.repetition_penalty();
  for (const auto& [id, bias] : proto.logit_bias()) request.logit_bias.emplace_back(id, bias);
  // A proto map has no order; the engine adds in the order given.
  std::sort(request.logit_bias.begin(), request.logit_bias.end());
  request.stop.assign(proto.stop().begin(), proto.stop().end());
  request.stop_token_ids = ToIntegers(proto.stop_token_ids());
  if (proto.has_min_tokens()) request.min_tokens = proto.min_tokens();
  if (proto.has_max_tokens()) request.max_tokens = proto.max_tokens();
  if (proto.has_n()) request.n = proto.n();
  if (proto.has_top_logprobs()) request.top_logprobs = proto.top_logprobs();
  request.logprobs = proto.logprobs();
  request.ignore_eos = proto.ignore_eos();
  if (proto.has_skip_special_tokens()) request.skip_special_tokens = proto.skip_special_tokens();
  request.include_stop_str_in_output = proto.include_stop_str_in_output();
  return request;
}

template <typename Messages>
std::vector<ChatMessage> ToMessages(const Messages& messages) {
  std::vector<ChatMessage> result;
  for (const v1::ChatMessage& proto : messages) {
    ChatMessage message;
    message.role = proto.role();
    message.content = proto.content();
    message.reasoning_content = proto.reasoning_content();
    result.push_back(std::move(message));
  }
  return result;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void SetBytes(absl::string_view from, std::string* to) { to->assign(from.data(), from.size()); }

template <typename Response>
void FillCommon(const Tokenizer& tokenizer, const GenerationPlan& plan, const ChoiceDelta& delta,
                Response* proto) {
  proto->set_request_id(plan.request_id);
  proto->set_index(delta.index);
  proto->set_text_delta(delta.text);
  proto->set_finished(ToProto(delta.finish));
  for (const SampledToken& token : delta.tokens) {
    if (plan.output.return_token_ids) proto->add_token_ids(token.token);
    if (plan.output.num_top_logprobs < 0) continue;
    v1::TokenLogprob* logprob = proto->add_logprobs();
    logprob->set_token_id(token.token);
    logprob->set_logprob(token.logprob);
    SetBytes(tokenizer.TokenBytes(token.token), logprob->mutable_token());
    for (const TokenLogprob& top : token.top) {
      v1::TopLogprob* entry = logprob->add_top();
      entry->set_token_id(top.token);
      entry->set_logprob(top.logprob);
      SetBytes(tokenizer.TokenBytes(top.token), entry->mutable_token());
    }
  }
}

void AppendField(uint32_t number, const std::string& bytes, std::string* message) {
  google::protobuf::io::StringOutputStream stream(message);
  google::protobuf::io::CodedOutputStream out(&stream);
  constexpr uint32_t kLengthDelimited = 2;
  out.WriteTag(number << 3 | kLengthDelimited);
  out.WriteVarint32(static_cast<uint32_t>(bytes.size()));
  out.WriteString(bytes);
}

// google.rpc.Status{code = 1, message = 2, details = 3: [Any{google.rpc.RetryInfo{retry_delay =
// 1}}]}, written by hand: the package with google/rpc/*.proto is not among our dependencies.
std::string RetryDetails(int code, const std::string& message, absl::Duration retry_after) {
  Duration delay;
  SetDuration(retry_after, &delay);
  std::string retry_info;
  AppendField(1, delay.SerializeAsString(), &retry_info);
  google::protobuf::Any any;
  any.set_type_url("type.googleapis.com/google.rpc.RetryInfo");
  any.set_value(retry_info);
  std::string status;
  {
    google::protobuf::io::StringOutputStream stream(&status);
    google::protobuf::io::CodedOutputStream out(&stream);
    out.WriteTag(1 << 3);
    out.WriteVarint32(static_cast<uint32_t>(code));
  }
  AppendField(2, message, &status);
  AppendField(3, any.SerializeAsString(), &status);
  return status;
}

}  // namespace

CompletionRequest FromProto(const v1::GenerateRequest& proto) {
  CompletionRequest request;
  request.model = proto.model();
  request.sampling = FromProto(proto.sampling());
  request.return_token_ids = proto.return_token_ids();
  request.api = RequestApi::kGrpc;
  request.tenant = proto.tenant();
  request.echo = proto.echo();
  if (proto.prompt_case() == v1::GenerateRequest::kText) {
    request.prompts.emplace_back(proto.text());
  } else if (proto.prompt_case() == v1::GenerateRequest::kTokenIds) {
    request.prompts.emplace_back(ToIntegers(proto.token_ids().ids()));
  }
  return request;
}

ChatRequest FromProto(const v1::ChatRequest& proto) {
  ChatRequest request;
  request.model = proto.model();
  request.sampling = FromProto(proto.sampling());
  request.return_token_ids = proto.return_token_ids();
  request.api = RequestApi::kGrpc;
  request.tenant = proto.tenant();
  request.messages = ToMessages(proto.messages());
  if (proto.has_thinking()) request.thinking = proto.thinking();
  return request;
}

TokenizeRequest FromProto(const v1::TokenizeRequest& proto) {
  TokenizeRequest request;
  request.model = proto.model();
  if (proto.input_case() == v1::TokenizeRequest::kChat) {
    request.input = ToMessages(proto.chat().messages());
  } else {
    request.input = proto.text();
  }
  if (proto.has_add_special_tokens()) request.add_special_tokens = proto.add_special_tokens();
  return request;
}

DetokenizeRequest FromProto(const v1::DetokenizeRequest& proto) {
  DetokenizeRequest request;
  request.model = proto.model();
  request.tokens = ToIntegers(proto.token_ids());
  return request;
}

void FillResponse(const Tokenizer& tokenizer, const GenerationPlan& plan, const ChoiceDelta& delta,
                  v1::GenerateResponse* proto) {
  FillCommon(tokenizer, plan, delta, proto);
}

void FillResponse(const Tokenizer& tokenizer, const GenerationPlan& plan, const ChoiceDelta& delta,
                  v1::ChatResponse* proto) {
  FillCommon(tokenizer, plan, delta, proto);
  proto->set_reasoning_delta(delta.reasoning);
}

void FillUsage(const RequestSummary& summary, v1::Usage* usage, v1::Timings* timings) {
  usage->set_prompt_tokens(static_cast<int32_t>(summary.prompt_tokens));
  usage->set_completion_tokens(static_cast<int32_t>(summary.completion_tokens));
  usage->set_cached_tokens(static_cast<int32_t>(summary.cached_tokens));
  usage->set_reasoning_tokens(static_cast<int32_t>(summary.reasoning_tokens));
  SetDuration(summary.time_to_first_token, timings->mutable_time_to_first_token());
  SetDuration(summary.total, timings->mutable_total());
  for (const auto& [stage, duration] : summary.stages) {
    SetDuration(duration, &(*timings->mutable_stages())[stage]);
  }
}

void FillStatus(const ClusterSnapshot& snapshot, v1::GetStatusResponse* proto) {
  proto->set_requests_queued(snapshot.requests_queued);
  proto->set_requests_running(snapshot.requests_running);
  SetDuration(snapshot.uptime, proto->mutable_uptime());
  for (const WorkerSnapshot& worker : snapshot.workers) {
    v1::WorkerStatus* status = proto->add_workers();
    status->set_worker_id(worker.worker_id);
    status->set_role(worker.role);
    status->set_state(worker.state);
    status->set_model(worker.model);
    status->set_running_requests(worker.running);
    status->set_waiting_requests(worker.waiting);
    status->set_queued_tokens(worker.queued_tokens);
    v1::KvBlockCounts* blocks = status->mutable_kv_blocks();
    blocks->set_total(worker.blocks_total);
    blocks->set_free(worker.blocks_free);
    blocks->set_cached(worker.blocks_cached);
    blocks->set_active(worker.blocks_active);
    blocks->set_receiving(worker.blocks_receiving);
    blocks->set_sending(worker.blocks_sending);
    blocks->set_quarantined(worker.blocks_quarantined);
    for (const WorkerSnapshot::Transport& transport : worker.transports) {
      v1::TransportStatus* entry = status->add_transports();
      entry->set_peer(transport.peer);
      entry->set_direction(transport.direction);
      entry->set_transport(transport.transport);
      entry->set_bytes(transport.bytes);
      entry->set_bytes_per_second(transport.bytes_per_second);
    }
    SetDuration(worker.heartbeat_age, status->mutable_heartbeat_age());
    SetDuration(worker.uptime, status->mutable_uptime());
    status->set_address(worker.address);
    status->set_isa(worker.isa);
    status->set_dtype(worker.dtype);
    status->set_output_tokens_per_second(worker.output_tokens_per_second);
    status->set_prompt_tokens_per_second(worker.prompt_tokens_per_second);
  }
}

grpc::Status ToGrpcStatus(const ApiError& error) {
  // Abseil's codes are gRPC's, number for number.
  const auto code = static_cast<grpc::StatusCode>(error.grpc_code());
  const auto retry_after = error.RetryAfter();
  if (!retry_after.has_value()) return grpc::Status(code, error.message);
  return grpc::Status(code, error.message, RetryDetails(code, error.message, *retry_after));
}

void AddErrorTrailers(const ApiError& error, grpc::CallbackServerContext* rpc) {
  rpc->AddTrailingMetadata("sluice-error-code", error.row().code);
  if (!error.param.empty()) rpc->AddTrailingMetadata("sluice-error-param", error.param);
}

}  // namespace sluice::router
