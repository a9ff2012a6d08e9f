#include "services/router/fleet/wire.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/rpc/fleet_codec.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::router {
namespace {

absl::StatusOr<WorkerInfo> DecodeRegister(const v1::Register& proto) {
  WorkerInfo info;
  switch (proto.role()) {
    case v1::WORKER_ROLE_PREFILL:
      info.role = WorkerRole::kPrefill;
      break;
    case v1::WORKER_ROLE_DECODE:
      info.role = WorkerRole::kDecode;
      break;
    case v1::WORKER_ROLE_BOTH:
      info.role = WorkerRole::kBoth;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("register.role is ", proto.role()));
  }
  info.worker_id = proto.worker_id();
  info.incarnation = Incarnation(proto.incarnation());
  info.model = proto.model();
  info.fingerprint = proto.fingerprint();
  info.fingerprint_text = proto.fingerprint_text();
  info.max_model_len = proto.max_model_len();
  info.max_num_seqs = proto.max_num_seqs();
  info.num_kv_blocks = proto.num_kv_blocks();
  info.kv_block_tokens = proto.kv_block_tokens();
  info.kv_address = proto.kv_address();
  info.isa = proto.isa();
  info.dtype = proto.dtype();
  info.admin_address = proto.admin_address();
  info.protocol_version = proto.protocol_version();
  return info;
}

absl::Status DecodeHashes(const google::protobuf::RepeatedPtrField<std::string>& proto,
                          const char* field, std::vector<BlockHash>* hashes) {
  hashes->resize(proto.size());
  for (int i = 0; i < proto.size(); ++i) {
    if (!BlockHash::FromWire(proto[i], &(*hashes)[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("load.", field, "[", i, "] has ", proto[i].size(), " bytes, not 16"));
    }
  }
  return absl::OkStatus();
}

// Policies divide by and compare rates: nonsense counts as unknown.
double Rate(double value) { return std::isfinite(value) && value > 0 ? value : 0; }

absl::StatusOr<WorkerLoad> DecodeLoad(const v1::LoadReport& proto) {
  WorkerLoad load;
  load.running_requests = std::max(0, proto.running_requests());
  load.waiting_requests = std::max(0, proto.waiting_requests());
  load.queued_prefill_tokens = std::max<int64_t>(0, proto.queued_prefill_tokens());
  const v1::KvBlockCounts& blocks = proto.kv_blocks();
  load.blocks_total = blocks.total();
  load.blocks_free = blocks.free();
  load.blocks_cached = blocks.cached();
  load.blocks_active = blocks.active();
  load.blocks_receiving = blocks.receiving();
  load.blocks_sending = blocks.sending();
  load.blocks_quarantined = blocks.quarantined();
  load.prefill_tokens_per_second = Rate(proto.prefill_tokens_per_second());
  load.decode_tokens_per_second = Rate(proto.decode_tokens_per_second());
  load.draining = proto.draining();
  load.ready = proto.ready();
  for (const v1::TransportStatus& transport : proto.transports()) {
    load.transports.push_back({transport.peer(), transport.direction(), transport.transport(),
                               transport.bytes(), transport.bytes_per_second()});
  }
  SLUICE_RETURN_IF_ERROR(
      DecodeHashes(proto.kv_blocks_added(), "kv_blocks_added", &load.kv_blocks_added));
  SLUICE_RETURN_IF_ERROR(
      DecodeHashes(proto.kv_blocks_removed(), "kv_blocks_removed", &load.kv_blocks_removed));
  load.uptime = rpc::Decode(proto.uptime());
  return load;
}

AttemptEndReason FromRpc(rpc::RequestEndReason reason) {
  switch (reason) {
    case rpc::RequestEndReason::kStop:
      return AttemptEndReason::kStop;
    case rpc::RequestEndReason::kLength:
      return AttemptEndReason::kLength;
    case rpc::RequestEndReason::kCancelled:
      return AttemptEndReason::kCancelled;
    case rpc::RequestEndReason::kHandedOver:
      return AttemptEndReason::kHandedOver;
    case rpc::RequestEndReason::kFailed:
      break;
  }
  return AttemptEndReason::kFailed;
}

absl::StatusOr<Event> DecodeTokens(SessionId session, const v1::TokenBatch& proto) {
  TokensProduced event{session, {}};
  event.tokens.reserve(proto.tokens_size());
  for (const v1::OutputToken& token_proto : proto.tokens()) {
    SLUICE_ASSIGN_OR_RETURN(rpc::OutputTokenEvent token, rpc::Decode(token_proto));
    ProducedToken produced;
    produced.key = {token.request, token.attempt};
    produced.index = token.index;
    produced.token = std::move(token.token);
    if (token.stages.has_value()) {
      produced.queue_time = token.stages->queue;
      produced.compute_time = token.stages->compute;
    }
    produced.cached_tokens = token.cached_tokens;
    event.tokens.push_back(std::move(produced));
  }
  return event;
}

rpc::SequenceAttempt ToRpc(SequenceStart sequence) {
  return {sequence.key.request,
          sequence.key.attempt,
          std::move(sequence.tokens),
          sequence.num_output_tokens,
          std::move(sequence.tenant_salt),
          std::move(sequence.sampling),
          sequence.time_left};
}

}  // namespace

absl::StatusOr<Event> DecodeWorkerMessage(SessionId session, const v1::WorkerMessage& message) {
  switch (message.message_case()) {
    case v1::WorkerMessage::kRegister: {
      SLUICE_ASSIGN_OR_RETURN(WorkerInfo info, DecodeRegister(message.register_()));
      return WorkerRegistered{session, std::move(info)};
    }
    case v1::WorkerMessage::kLoad: {
      SLUICE_ASSIGN_OR_RETURN(WorkerLoad load, DecodeLoad(message.load()));
      return LoadReported{session, std::move(load)};
    }
    case v1::WorkerMessage::kGrant: {
      SLUICE_ASSIGN_OR_RETURN(rpc::GrantTerms terms, rpc::Decode(message.grant()));
      return Granted{session,
                     {terms.request, terms.attempt},
                     {terms.transfer, terms.incarnation, terms.cached_tokens, terms.lease,
                      std::move(terms.kv_address)}};
    }
    case v1::WorkerMessage::kBusy: {
      SLUICE_ASSIGN_OR_RETURN(rpc::BusyAnswer busy, rpc::Decode(message.busy()));
      return AnsweredBusy{
          session, {busy.request, busy.attempt}, std::move(busy.reason), busy.retry_after};
    }
    case v1::WorkerMessage::kTokens:
      return DecodeTokens(session, message.tokens());
    case v1::WorkerMessage::kEnded: {
      SLUICE_ASSIGN_OR_RETURN(rpc::RequestEndedEvent ended, rpc::Decode(message.ended()));
      AttemptEnded event{session,
                         {ended.request, ended.attempt},
                         FromRpc(ended.reason),
                         std::move(ended.status),
                         std::move(ended.stage)};
      if (event.reason == AttemptEndReason::kFailed && event.status.ok()) {
        event.status = absl::UnknownError("the worker gave no reason");
      }
      return event;
    }
    case v1::WorkerMessage::kPreempted: {
      AttemptPreempted event{session, {}};
      if (!RequestId::FromWire(message.preempted().request_id(), &event.key.request)) {
        return absl::InvalidArgumentError("preempted.request_id is not 16 bytes");
      }
      event.key.attempt = Attempt(message.preempted().attempt());
      return event;
    }
    case v1::WorkerMessage::kKvReady: {
      SLUICE_ASSIGN_OR_RETURN(rpc::KvReadyEvent ready, rpc::Decode(message.kv_ready()));
      return KvArrived{session, {ready.request, ready.attempt}, ready.exposed_transfer};
    }
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("the message is empty or of an unknown kind");
}

void EncodeAction(const RouterIdentity& identity, Action action, v1::RouterMessage* message) {
  std::visit(
      [&](auto&& a) {
        using T = std::decay_t<decltype(a)>;
        if constexpr (std::is_same_v<T, SendReserve>) {
          rpc::Encode(ToRpc(std::move(a.sequence)), message->mutable_reserve());
        } else if constexpr (std::is_same_v<T, SendRun>) {
          rpc::Encode(ToRpc(std::move(a.sequence)), message->mutable_run());
        } else if constexpr (std::is_same_v<T, SendPrefill>) {
          rpc::PrefillOrder order;
          order.grant = {a.sequence.key.request, a.sequence.key.attempt, a.grant.transfer_id,
                         a.grant.incarnation,    a.grant.cached_tokens,  a.grant.lease};
          order.sequence = ToRpc(std::move(a.sequence));
          order.kv_address = std::move(a.decode_kv_address);
          order.decode_worker_id = std::move(a.decode_worker_id);
          order.fingerprint = std::move(a.fingerprint);
          rpc::Encode(order, message->mutable_prefill());
        } else if constexpr (std::is_same_v<T, SendCancel>) {
          rpc::Encode(rpc::CancelOrder{a.key.request, a.key.attempt, std::move(a.reason)},
                      message->mutable_cancel());
        } else if constexpr (std::is_same_v<T, SendWelcome>) {
          v1::Welcome* welcome = message->mutable_welcome();
          welcome->set_router_id(identity.router_id);
          welcome->set_incarnation(identity.incarnation.value);
          welcome->set_error(std::move(a.error));
        }
      },
      std::move(action));
}

SessionId Destination(const Action& action) {
  return std::visit(
      [](const auto& a) {
        using T = std::decay_t<decltype(a)>;
        if constexpr (std::is_same_v<T, CloseSession>) {
          return a.session;
        } else if constexpr (std::is_same_v<T, EmitTokens> || std::is_same_v<T, EndRequest> ||
                             std::is_same_v<T, WorkerChanged>) {
          return SessionId();
        } else {
          return a.to;
        }
      },
      action);
}

}  // namespace sluice::router
