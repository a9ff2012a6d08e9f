#include "kvtransfer/agent/receive_side.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "kvtransfer/handoff/mutants.h"

namespace sluice {
namespace {

using handoff::HandoffMutant;
using handoff::Planted;

absl::Status CheckSpec(const ReceiveSpec& spec) {
  if (spec.block_tokens <= 0 || spec.block_bytes == 0 || spec.begin_token < 0 ||
      spec.begin_token % spec.block_tokens != 0 || spec.end_token <= spec.begin_token ||
      spec.blocks.size() !=
          static_cast<size_t>((spec.end_token - spec.begin_token + spec.block_tokens - 1) /
                              spec.block_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("reservation of tokens [", spec.begin_token, ", ", spec.end_token, ") in ",
                     spec.blocks.size(), " blocks of ", spec.block_tokens, " tokens, ",
                     spec.block_bytes, " bytes"));
  }
  for (const absl::Span<uint8_t>& block : spec.blocks) {
    if (block.size() != spec.block_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("reservation with a block of ", block.size(),
                                                     " bytes instead of ", spec.block_bytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TransferId> ReceiveSide::Reserve(const ReceiveSpec& spec) {
  SLUICE_ASSIGN_OR_RETURN(const Key key, Open(spec, core_->options.lease));
  return transfers_.at(key).id;
}

absl::StatusOr<TransferId> ReceiveSide::Fetch(const FetchSpec& spec) {
  const ReceiveSpec& into = spec.into;
  if (into.block_tokens <= 0 || into.end_token % into.block_tokens != 0) {
    return absl::InvalidArgumentError("only full blocks can be fetched");
  }
  handoff::Fetch fetch;
  fetch.begin_token = static_cast<uint32_t>(into.begin_token);
  fetch.end_token = static_cast<uint32_t>(into.end_token);
  fetch.block_tokens = static_cast<uint32_t>(into.block_tokens);
  fetch.block_bytes = into.block_bytes;
  fetch.fingerprint = into.fingerprint;
  fetch.reply_address = core_->channel->LocalAddress();
  if (fetch.fingerprint.size() > handoff::kMaxFingerprintBytes ||
      fetch.reply_address.size() > handoff::kMaxAddressBytes) {
    return absl::FailedPreconditionError("fingerprint or channel address too long for a message");
  }
  SLUICE_RETURN_IF_ERROR(core_->peers.Ensure(spec.peer_incarnation, spec.peer_address).status());
  SLUICE_ASSIGN_OR_RETURN(const Key key, Open(into, core_->options.fetch_patience));
  Transfer& transfer = transfers_.at(key);
  if (transfer.asked.has_value()) return transfer.id;
  fetch.into = transfer.id;
  const absl::Time now = core_->clock->Now();
  transfer.asked.emplace(spec.peer_incarnation, spec.grant, std::move(fetch),
                         core_->options.resend_interval, now);
  SendDueFetch(&transfer, now);
  deadlines_.Set(key, NextDeadlineOf(transfer));
  return transfer.id;
}

absl::StatusOr<ReceiveSide::Key> ReceiveSide::Open(const ReceiveSpec& spec, absl::Duration lease) {
  SLUICE_RETURN_IF_ERROR(CheckSpec(spec));
  auto live = by_request_.find(spec.request);
  if (live != by_request_.end()) {
    const Transfer& transfer = transfers_.at(live->second);
    bool open = transfer.machine.open();
    bool same = transfer.spec.attempt == spec.attempt || Planted(HandoffMutant::kIgnoreAttempt);
    if (open && same) return live->second;
    if (spec.attempt <= transfer.spec.attempt) {
      return absl::FailedPreconditionError(
          absl::StrCat("attempt ", spec.attempt.value, " of the request is over: attempt ",
                       transfer.spec.attempt.value, " is the current one"));
    }
  }
  if (std::optional<Attempt> last = tombstones_.LastAttempt(spec.request);
      last.has_value() && spec.attempt <= *last && !Planted(HandoffMutant::kReserveEndedAttempt)) {
    return absl::FailedPreconditionError(
        absl::StrCat("attempt ", spec.attempt.value, " of the request is over"));
  }
  if (num_transfers() >= core_->options.max_transfers) {
    return absl::ResourceExhaustedError(absl::StrCat(num_transfers(), " receives are in flight"));
  }
  absl::Time now = core_->clock->Now();
  if (live != by_request_.end()) {
    Step(live->second,
         handoff::Receiver::Abort{
             absl::AbortedError(absl::StrCat("superseded by attempt ", spec.attempt.value))},
         nullptr, now);
  }
  handoff::Bind expected;
  expected.request = spec.request;
  expected.attempt = spec.attempt;
  expected.begin_token = static_cast<uint32_t>(spec.begin_token);
  expected.end_token = static_cast<uint32_t>(spec.end_token);
  expected.block_tokens = static_cast<uint32_t>(spec.block_tokens);
  expected.block_bytes = spec.block_bytes;
  expected.fingerprint = spec.fingerprint;
  handoff::ReceiverOptions options{lease, core_->options.window_bytes};
  TransferId id = RandomId128<TransferId>();
  Key key = ++last_key_;
  auto [it, inserted] =
      transfers_.emplace(std::piecewise_construct, std::forward_as_tuple(key),
                         std::forward_as_tuple(id, spec, options, std::move(expected), now));
  by_id_.emplace(id, key);
  by_request_.insert_or_assign(spec.request, key);
  deadlines_.Set(key, NextDeadlineOf(it->second));
  return key;
}

void ReceiveSide::Cancel(const TransferId& id, absl::Status reason) {
  std::optional<Key> key = Find(id);
  if (!key.has_value()) return;
  if (reason.ok()) reason = absl::CancelledError("cancelled by the receiver");
  Step(*key, handoff::Receiver::Abort{std::move(reason)}, nullptr, core_->clock->Now());
}

void ReceiveSide::OnMessage(const handoff::Frame& frame, PeerId origin, PayloadId payload,
                            uint64_t payload_bytes, absl::Time now) {
  Incoming incoming{Origin(frame, origin), frame.sender, payload};
  std::optional<Key> key = Find(frame.transfer);
  if (key.has_value()) {
    const std::optional<handoff::FetchRequest>& asked = transfers_.at(*key).asked;
    handoff::Receiver::Message message{frame.sender, frame.body, payload_bytes};
    if (asked.has_value() && asked->peer() != frame.sender) {
      ++core_->stats.messages_refused;
      Answer(incoming, frame.transfer, handoff::Nack{handoff::NackCode::kStale});
    } else if (!Step(*key, message, &incoming, now)) {
      ++core_->stats.messages_refused;
    }
  } else {
    const handoff::Tombstone* tombstone = tombstones_.Find(frame.transfer);
    std::optional<handoff::Body> answer = handoff::Nack{handoff::NackCode::kUnknown};
    if (tombstone != nullptr) answer = handoff::AnswerForClosed(*tombstone, frame.body);
    if (tombstone == nullptr || !tombstone->committed) ++core_->stats.messages_refused;
    if (Planted(HandoffMutant::kAcceptDuplicateFinal) && tombstone != nullptr &&
        tombstone->committed && std::holds_alternative<handoff::Final>(frame.body)) {
      core_->events.emplace_back(Received{frame.transfer, tombstone->request, tombstone->attempt,
                                          std::get<handoff::Final>(frame.body).first});
    }
    if (answer.has_value()) Answer(incoming, frame.transfer, *std::move(answer));
  }
  if (incoming.payload != PayloadId()) core_->channel->Drop(incoming.payload);
  for (const auto& [operation, status] : std::exchange(refused_by_channel_, {})) {
    OnReceiveDone(operation, status, now);
  }
}

PeerId ReceiveSide::Origin(const handoff::Frame& frame, PeerId origin) {
  // Only a Bind or a Fetch brings an address, and only who knows a transfer of ours makes us
  // connect.
  if (const std::string* address = handoff::ReplyAddress(frame.body);
      address != nullptr && Knows(frame.transfer)) {
    absl::StatusOr<PeerId> endpoint = core_->peers.Ensure(frame.sender, *address);
    if (endpoint.ok()) return *endpoint;
  }
  PeerId known = core_->peers.Endpoint(frame.sender);
  return known != PeerId() ? known : origin;
}

void ReceiveSide::Answer(const Incoming& incoming, const TransferId& transfer, handoff::Body body) {
  if (incoming.origin == PeerId()) return;  // silence ends the sender as well, only later
  core_->peers.SendTo(incoming.origin, incoming.from, transfer, std::move(body));
}

void ReceiveSide::OnFetch(const handoff::Frame& frame, const handoff::Fetch& fetch, PeerId origin) {
  std::optional<Key> key = Find(frame.transfer);
  if (Planted(HandoffMutant::kFetchAnyGrant) && !key.has_value() && !transfers_.empty()) {
    key = transfers_.begin()->first;
  }
  absl::Status why = absl::AbortedError("there is no such reservation any more");
  handoff::FetchGate::Verdict verdict = handoff::FetchGate::Verdict::kRefuse;
  const PeerId answer_through = Origin(frame, origin);
  if (key.has_value() && transfers_.at(*key).machine.open()) {
    Transfer& transfer = transfers_.at(*key);
    verdict =
        transfer.gate.Judge(transfer.expected, transfer.machine.bound(), frame.sender, fetch, &why);
    if (verdict == handoff::FetchGate::Verdict::kServe) {
      SendSpec send;
      send.transfer = fetch.into;
      send.request = transfer.spec.request;
      send.attempt = transfer.spec.attempt;
      send.peer_address = fetch.reply_address;
      send.peer_incarnation = frame.sender;
      send.fingerprint = fetch.fingerprint;
      send.begin_token = static_cast<int>(fetch.begin_token);
      send.end_token = static_cast<int>(fetch.end_token);
      send.block_bytes = fetch.block_bytes;
      send.block_tokens = static_cast<int>(fetch.block_tokens);
      core_->events.emplace_back(FetchRequested{frame.transfer, std::move(send)});
    }
  }
  if (verdict != handoff::FetchGate::Verdict::kRefuse) return;
  ++core_->stats.messages_refused;
  if (answer_through == PeerId()) return;  // silence ends the fetch as well, only later
  core_->peers.SendTo(
      answer_through, frame.sender, fetch.into,
      handoff::Cancel{handoff::Side::kReceiver, why.code(), std::string(why.message())});
}

void ReceiveSide::SendDueFetch(Transfer* transfer, absl::Time now) {
  if (!transfer->asked.has_value() || !transfer->asked->TakeDue(now)) return;
  core_->peers.Send(transfer->asked->peer(), transfer->asked->grant(), transfer->asked->fetch());
}

absl::Time ReceiveSide::NextDeadlineOf(const Transfer& transfer) const {
  const absl::Time deadline = transfer.machine.NextDeadline();
  if (!transfer.asked.has_value()) return deadline;
  return std::min(deadline, transfer.asked->NextDeadline());
}

void ReceiveSide::OnReceiveDone(OperationId id, const absl::Status& status, absl::Time now) {
  auto it = operations_.find(id);
  if (it == operations_.end()) return;
  Operation operation = it->second;
  operations_.erase(it);
  auto transfer = transfers_.find(operation.key);
  if (transfer == transfers_.end()) return;
  handoff::Receiver::ReceiveDone done{operation.seq, status, 0};
  if (status.ok()) {
    // Bytes are a sign of life too: the sender's heartbeats may queue behind them for long.
    if (transfer->second.attached) core_->peers.Heard(*transfer->second.machine.bound(), now);
    handoff::PayloadChecksum checksum(transfer->second.id, operation.begin_token);
    for (size_t i = 0; i < operation.num_cells; ++i) {
      absl::Span<uint8_t> block = transfer->second.spec.blocks[operation.first_cell + i];
      checksum.Update(block.data(), block.size());
    }
    done.checksum = checksum.Finish();
  }
  Step(operation.key, done, nullptr, now);
}

void ReceiveSide::OnPeerDead(Incarnation peer, const absl::Status& reason, absl::Time now) {
  std::vector<Key> affected;
  for (auto& [key, transfer] : transfers_) {
    if (!transfer.attached || transfer.machine.bound() != peer) continue;
    transfer.attached = false;
    affected.push_back(key);
  }
  for (Key key : affected) Step(key, handoff::Receiver::PeerDead{reason}, nullptr, now);
}

void ReceiveSide::Tick(absl::Time now) {
  for (Key key : deadlines_.Due(now)) Step(key, handoff::Receiver::Tick{}, nullptr, now);
}

void ReceiveSide::FlushAcks() {
  for (Key key : acks_due_) {
    auto it = transfers_.find(key);
    if (it == transfers_.end()) continue;
    Transfer& transfer = it->second;
    transfer.ack_due = false;
    if (!transfer.attached || !transfer.machine.open()) continue;
    core_->peers.Send(*transfer.machine.bound(), transfer.id, transfer.machine.MakeAck());
  }
  acks_due_.clear();
}

absl::Time ReceiveSide::NextDeadline() const {
  return acks_due_.empty() ? deadlines_.Earliest() : absl::InfinitePast();
}

std::optional<ReceiveSide::Key> ReceiveSide::Find(const TransferId& transfer) const {
  auto it = by_id_.find(transfer);
  if (it == by_id_.end()) return std::nullopt;
  return it->second;
}

bool ReceiveSide::Step(Key key, const handoff::Receiver::Event& event, Incoming* incoming,
                       absl::Time now) {
  auto it = transfers_.find(key);
  if (it == transfers_.end()) return false;
  Transfer& transfer = it->second;
  std::vector<handoff::Receiver::Action> actions;
  uint64_t checksum_failures = transfer.machine.checksum_failures();
  bool accepted = transfer.machine.Step(event, now, &actions);
  if (transfer.asked.has_value()) {
    if (transfer.machine.state() == handoff::Receiver::State::kReserved) {
      SendDueFetch(&transfer, now);
    } else {
      transfer.asked->Answered();
    }
  }
  core_->stats.checksum_failures += transfer.machine.checksum_failures() - checksum_failures;
  if (!transfer.attached && transfer.machine.state() == handoff::Receiver::State::kBound &&
      core_->peers.Endpoint(*transfer.machine.bound()) != PeerId()) {
    transfer.attached = true;
    core_->peers.Attach(*transfer.machine.bound(), now);
  }
  for (const handoff::Receiver::Action& action : actions) {
    Apply(key, &transfer, action, incoming, now);
  }
  if (transfer.machine.over()) {
    if (transfer.attached) core_->peers.Detach(*transfer.machine.bound());
    tombstones_.Add(transfer.id, {transfer.spec.request, transfer.spec.attempt,
                                  transfer.machine.state() == handoff::Receiver::State::kClosed});
    deadlines_.Set(key, absl::InfiniteFuture());
    by_id_.erase(transfer.id);
    auto live = by_request_.find(transfer.spec.request);
    if (live != by_request_.end() && live->second == key) by_request_.erase(live);
    transfers_.erase(it);
    return accepted;
  }
  deadlines_.Set(key, NextDeadlineOf(transfer));
  return accepted;
}

void ReceiveSide::Apply(Key key, Transfer* transfer, const handoff::Receiver::Action& action,
                        Incoming* incoming, absl::Time now) {
  using Machine = handoff::Receiver;
  if (const auto* control = std::get_if<Machine::SendControl>(&action)) {
    if (control->to_origin && incoming != nullptr) {
      Answer(*incoming, transfer->id, control->body);
    } else if (transfer->attached) {
      core_->peers.Send(*transfer->machine.bound(), transfer->id, control->body);
    }
  } else if (std::holds_alternative<Machine::SendAck>(action)) {
    if (transfer->ack_due) return;
    transfer->ack_due = true;
    acks_due_.push_back(key);
  } else if (const auto* take = std::get_if<Machine::TakePayload>(&action)) {
    Take(key, transfer, *take, incoming);
  } else if (const auto* close = std::get_if<Machine::ClosePeer>(&action)) {
    core_->Condemn(*transfer->machine.bound(), close->reason);
  } else if (const auto* aborted = std::get_if<Machine::Aborted>(&action)) {
    core_->events.emplace_back(ReceiveAborted{transfer->id, transfer->spec.request,
                                              transfer->spec.attempt,
                                              static_cast<int>(aborted->verified_tokens)});
  } else if (const auto* delivered = std::get_if<Machine::Delivered>(&action)) {
    core_->events.emplace_back(
        Received{transfer->id, transfer->spec.request, transfer->spec.attempt, delivered->first,
                 transfer->machine.verified_bytes(), now - transfer->machine.first_offer_time(),
                 now - transfer->machine.final_time(), transfer->asked.has_value()});
  } else {
    const auto& freed = std::get<Machine::Freed>(action);
    core_->events.emplace_back(ReceiveEnded{transfer->id, transfer->spec.request,
                                            transfer->spec.attempt, freed.status,
                                            static_cast<int>(freed.verified_tokens)});
  }
}

void ReceiveSide::Take(Key key, Transfer* transfer, const handoff::Receiver::TakePayload& take,
                       Incoming* incoming) {
  const ReceiveSpec& spec = transfer->spec;
  OperationId id = core_->NewOperation();
  Operation operation{key, take.seq, 0, take.first_cell, take.num_cells};
  operation.begin_token =
      static_cast<uint32_t>(spec.begin_token) +
      static_cast<uint32_t>(take.first_cell) * static_cast<uint32_t>(spec.block_tokens);
  operations_.emplace(id, operation);
  std::vector<absl::Span<uint8_t>> destination(
      spec.blocks.begin() + take.first_cell,
      spec.blocks.begin() + take.first_cell + take.num_cells);
  PayloadId payload = std::exchange(incoming->payload, PayloadId());
  absl::Status status = core_->channel->Receive(payload, std::move(destination), id);
  if (!status.ok()) refused_by_channel_.emplace_back(id, std::move(status));
}

}  // namespace sluice
