#include "services/decode_worker/decode_handler.h"

#include <algorithm>
#include <utility>

#include "common/block_hash.h"
#include "common/clock.h"
#include "services/decode_worker/token_stream.h"

namespace sluice::worker {
namespace {

constexpr char kStageTransfer[] = "kv_transfer";
constexpr char kStageDecode[] = "decode";

// Blocks free up as running answers end; asking much sooner finds the same pool.
constexpr absl::Duration kRetryAfter = absl::Milliseconds(100);
// The transfer thread says at once what an attempt that is torn down has verified, unless it is
// starved; then the new attempt does without.
constexpr absl::Duration kMaxHold = absl::Milliseconds(500);

SampledToken ToSampledToken(const FirstToken& first) {
  SampledToken token{first.token, first.logprob, {}};
  for (const auto& [id, logprob] : first.top) token.top.push_back({id, logprob});
  return token;
}

}  // namespace

DecodeHandler::DecodeHandler(const HandlerContext& context)
    : HandlerBase(context), lender_(context) {}

std::unique_ptr<RequestHandler> MakeDecodeHandler(const HandlerContext& context) {
  return std::make_unique<DecodeHandler>(context);
}

void DecodeHandler::OnReserve(rpc::SessionId session, rpc::SequenceAttempt sequence) {
  const SequenceKey key{sequence.request, sequence.attempt};
  DecodeRecord* duplicate = nullptr;
  if (!Admit(key, &duplicate)) {
    // The grant may have been lost with a message; it is the same capability as before.
    if (duplicate != nullptr && duplicate->session == session && !duplicate->ending &&
        duplicate->state == DecodeRecord::State::kGranted) {
      SendGrant(*duplicate);
    }
    return;
  }
  if (const HeldReserve* held = held_.Find(key.request);
      held != nullptr && held->sequence.attempt >= key.attempt) {
    context_.metrics->Ignored(IgnoredReason::kDuplicate);
    return;
  }
  const absl::Time now = context_.clock->Now();
  if (MayBringPrefix(key.request)) {
    held_.Hold({session, std::move(sequence), now, now + kMaxHold});
    return;
  }
  Reserve(session, std::move(sequence));
}

bool DecodeHandler::MayBringPrefix(const RequestId& request) const {
  return !table_
              .KeysWhere([&](const DecodeRecord& record) {
                return record.key.request == request && !record.let_go;
              })
              .empty();
}

void DecodeHandler::ResumeHeld(const RequestId& request) {
  if (held_.Find(request) == nullptr) return;
  HeldReserve held = held_.Take(request);
  if (held.sequence.time_left) {
    *held.sequence.time_left = std::max(
        absl::ZeroDuration(), *held.sequence.time_left - (context_.clock->Now() - held.arrived));
  }
  Reserve(held.session, std::move(held.sequence));
}

void DecodeHandler::Reserve(rpc::SessionId session, rpc::SequenceAttempt sequence) {
  const SequenceKey key{sequence.request, sequence.attempt};
  if (draining_) {
    SendBusy(session, key, absl::UnavailableError("draining"));
    return;
  }

  DecodeRecord record = MakeRecord(session, sequence);
  const int num_tokens = static_cast<int>(sequence.tokens.size());
  absl::StatusOr<Reservation> reservation =
      context_.engine->Reserve(MakeInput(std::move(sequence)));
  if (!reservation.ok()) {
    if (absl::IsResourceExhausted(reservation.status())) {
      SendBusy(session, key, reservation.status());
    } else {
      Refuse(session, key, reservation.status(), kStageDecode);
    }
    return;
  }
  record.cached_tokens = reservation->cached_tokens;
  context_.metrics->PrefixLookup(num_tokens, record.cached_tokens);

  ReceiveSpec spec;
  spec.request = key.request;
  spec.attempt = key.attempt;
  spec.fingerprint = context_.engine->fingerprint().digest;
  spec.begin_token = record.cached_tokens;
  spec.end_token = num_tokens;
  spec.block_bytes = static_cast<uint64_t>(context_.engine->layout().block_bytes());
  spec.block_tokens = kBlockTokens;
  for (const BlockId block : reservation->blocks) {
    spec.blocks.push_back(context_.engine->BlockBytes(block));
  }
  table_.Insert(std::move(record));
  context_.transfers->Reserve(std::move(spec));
}

void DecodeHandler::OnReserveAnswer(ReserveAnswer answer) {
  DecodeRecord* record = table_.Find({answer.request, answer.attempt});
  if (record == nullptr || record->state != DecodeRecord::State::kReserving) return;
  if (!answer.transfer.ok()) {
    context_.engine->AbandonReservation(record->key, 0);
    Finish(*record, record->ending ? Ending(*record->ending)
                                   : Ending::Failed(answer.transfer.status(), kStageTransfer));
    ResumeHeld(answer.request);
    return;
  }
  record->transfer = *answer.transfer;
  record->kv_address = std::move(answer.kv_address);
  record->state = DecodeRecord::State::kGranted;
  if (record->ending) {
    TearDown(*record);  // what arrived while the capability was being minted
  } else {
    SendGrant(*record);
  }
}

void DecodeHandler::OnTransferEvent(const TransferEvent& event) {
  if (const auto* received = std::get_if<Received>(&event)) OnReceived(*received);
  if (const auto* aborted = std::get_if<ReceiveAborted>(&event)) OnReceiveAborted(*aborted);
  if (const auto* ended = std::get_if<ReceiveEnded>(&event)) OnReceiveEnded(*ended);
  if (const auto* sent = std::get_if<SendEnded>(&event)) lender_.OnSendEnded(*sent);
  if (const auto* fetch = std::get_if<FetchRequested>(&event)) {
    const DecodeRecord* record = table_.Find({fetch->send.request, fetch->send.attempt});
    lender_.Lend(*fetch, record != nullptr && record->transfer == fetch->grant &&
                             record->state == DecodeRecord::State::kGranted && !record->ending);
  }
}

void DecodeHandler::OnReceived(const Received& event) {
  DecodeRecord* record = table_.Find({event.request, event.attempt});
  if (record == nullptr || record->transfer != event.transfer ||
      record->state != DecodeRecord::State::kGranted || record->ending) {
    return;  // being torn down: ReceiveEnded gives the blocks back
  }
  if (absl::Status activated = context_.engine->Activate(record->key, ToSampledToken(event.first));
      !activated.ok()) {
    // Verified KV that the engine will not take: keep it as prefix when the receive is closed.
    TearDownOnce(*record, Ending::Failed(std::move(activated), kStageDecode));
    return;
  }
  if (Planted(WorkerMutant::kActivateForgotten)) return;
  record->state = DecodeRecord::State::kActive;
  record->activated_at = MonotonicNow();
  context_.routers->SendKvReady(record->session,
                                {record->key.request, record->key.attempt, event.exposed});
}

void DecodeHandler::OnReceiveAborted(const ReceiveAborted& event) {
  DecodeRecord* record = table_.Find({event.request, event.attempt});
  if (record == nullptr || record->transfer != event.transfer) return;
  context_.engine->QuarantineReservation(record->key, event.verified_tokens);
  record->let_go = true;
  ResumeHeld(event.request);
}

void DecodeHandler::OnReceiveEnded(const ReceiveEnded& event) {
  DecodeRecord* record = table_.Find({event.request, event.attempt});
  if (record == nullptr || record->transfer != event.transfer ||
      record->state != DecodeRecord::State::kGranted) {
    return;  // active, or ended since: the blocks are the engine's
  }
  context_.engine->AbandonReservation(record->key, event.verified_tokens);
  lender_.Cancel(record->key, absl::CancelledError("the reservation is over"));
  if (record->ending) {
    Finish(*record, Ending(*record->ending));
  } else {
    absl::Status why = event.status;
    if (why.ok()) why = absl::InternalError("the transfer ended without a result");
    Finish(*record, Ending::Failed(std::move(why), kStageTransfer));
  }
  ResumeHeld(event.request);
}

void DecodeHandler::OnCancel(rpc::SessionId session, const rpc::CancelOrder& order) {
  const HeldReserve* held = held_.Find(order.request);
  if (held != nullptr && held->session == session && held->sequence.attempt == order.attempt) {
    held_.Take(order.request);
    table_.Remember({order.request, order.attempt});
    Report(session, {order.request, order.attempt}, Ending::Cancelled());
    return;
  }
  HandlerBase::OnCancel(session, order);
}

void DecodeHandler::OnSessionLost(rpc::SessionId session) {
  held_.DropSession(session);
  HandlerBase::OnSessionLost(session);
}

void DecodeHandler::OnTick(absl::Time now) {
  HandlerBase::OnTick(now);
  for (const RequestId& request : held_.Due(now)) ResumeHeld(request);
}

absl::Time DecodeHandler::NextDeadline() const {
  return std::min(held_.NextDeadline(), HandlerBase::NextDeadline());
}

std::optional<RequestTimes> DecodeHandler::TimesOf(const SequenceKey& key) const {
  const std::optional<RequestTimes> times = HandlerBase::TimesOf(key);
  return times.has_value() ? times : lender_.TimesOf(key);
}

void DecodeHandler::OnStep(const StepResult& result, const StepInterval& interval) {
  TokensByRouter tokens;
  for (const TokenProduced& produced : result.tokens) {
    DecodeRecord* record = table_.Find(produced.key);
    if (record == nullptr) continue;
    rpc::OutputTokenEvent event{produced.key.request, produced.key.attempt, produced.index,
                                produced.token};
    if (!std::exchange(record->has_token, true)) {
      event.stages =
          rpc::StageDurations{interval.begin - record->activated_at, interval.end - interval.begin};
    }
    tokens[record->session].push_back(std::move(event));
  }
  SendTokens(tokens);
  for (const SequenceEnded& ended : result.ended) {
    DecodeRecord* record = table_.Find(ended.key);
    if (record == nullptr) continue;
    if (ended.reason == EndReason::kPreempted) {
      context_.routers->SendPreempted(record->session, record->key);
      table_.Erase(*record);
    } else {
      Finish(*record, EndingOf(ended));
    }
  }
}

void DecodeHandler::TearDown(DecodeRecord& record) {
  switch (record.state) {
    case DecodeRecord::State::kReserving:
      return;  // continued by OnReserveAnswer
    case DecodeRecord::State::kGranted: {
      const absl::Status& why = record.ending->status;
      lender_.Cancel(record.key, absl::CancelledError("the reservation is over"));
      context_.engine->QuarantineReservation(record.key, 0);
      if (Planted(WorkerMutant::kFreeBeforeReceiveEnded)) {
        context_.engine->AbandonReservation(record.key, 0);
      }
      context_.transfers->CancelReceive(record.transfer,
                                        why.ok() ? absl::CancelledError("cancelled") : why);
      return;  // continued by OnReceiveEnded
    }
    case DecodeRecord::State::kActive:
      context_.engine->Cancel(record.key);
      Finish(record, Ending(*record.ending));
  }
}

std::string DecodeHandler::StageOf(const DecodeRecord& record) const {
  return record.state == DecodeRecord::State::kActive ? kStageDecode : kStageTransfer;
}

void DecodeHandler::SendGrant(const DecodeRecord& record) {
  rpc::GrantTerms grant;
  grant.request = record.key.request;
  grant.attempt = record.key.attempt;
  grant.transfer = record.transfer;
  grant.incarnation = context_.self;
  grant.cached_tokens = record.cached_tokens;
  grant.lease = context_.lease;
  grant.kv_address = record.kv_address;
  context_.routers->SendGrant(record.session, grant);
}

void DecodeHandler::SendBusy(rpc::SessionId session, const SequenceKey& key,
                             const absl::Status& why) {
  // Not remembered as ended: the router may ask again with the same attempt.
  context_.routers->SendBusy(session,
                             {key.request, key.attempt, std::string(why.message()), kRetryAfter});
}

}  // namespace sluice::worker
