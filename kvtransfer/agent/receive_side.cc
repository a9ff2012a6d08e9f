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
  SLUICE_RETURN_IF_ERROR(CheckSpec(spec));
  auto live = by_request_.find(spec.request);
  if (live != by_request_.end()) {
    const Transfer& transfer = transfers_.at(live->second);
    bool open = transfer.machine.open();
    bool same = transfer.spec.attempt == spec.attempt || Planted(HandoffMutant::kIgnoreAttempt);
    if (open && same) return transfer.id;
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
  handoff::ReceiverOptions options{core_->options.lease, core_->options.window_bytes};
  TransferId id = RandomId128<TransferId>();
  Key key = ++last_key_;
  auto [it, inserted] =
      transfers_.emplace(std::piecewise_construct, std::forward_as_tuple(key),
                         std::forward_as_tuple(id, spec, options, std::move(expected), now));
  by_id_.emplace(id, key);
  by_request_.insert_or_assign(spec.request, key);
  deadlines_.Set(key, it->second.machine.NextDeadline());
  return id;
}

void ReceiveSide::Cancel(const TransferId& id, absl::Status reason) {
  std::optional<Key> key = Find(id);
  if (!key.has_value()) return;
  if (reason.ok()) reason = absl::CancelledError("cancelled by the decode worker");
  Step(*key, handoff::Receiver::Abort{std::move(reason)}, nullptr, core_->clock->Now());
}

void ReceiveSide::OnMessage(const handoff::Frame& frame, PeerId origin, PayloadId payload,
                            uint64_t payload_bytes, absl::Time now) {
  Incoming incoming{Origin(frame, origin), frame.sender, payload};
  std::optional<Key> key = Find(frame.transfer);
  if (key.has_value()) {
    handoff::Receiver::Message message{frame.sender, frame.body, payload_bytes};
    if (!Step(*key, message, &incoming, now)) ++core_->stats.messages_refused;
  } else {
    const handoff::Tombstone* tombstone = tombstones_.Find(frame.transfer);
    std::optional<handoff::Body> answer = handoff::Nack{handoff::NackCode::kUnknown};
    if (tombstone != nullptr) answer = handoff::AnswerForClosed(*tombstone, frame.body);
    if (tombstone == nullptr || !tombstone->committed) ++core_->stats.messages_refused;
    if (Planted(HandoffMutant::kAcceptDuplicateFinal) && tombstone != nullptr &&
        tombstone->committed && std::holds_alternative<handoff::Final>(frame.body)) {
      core_->events.push_back(Received{frame.transfer, tombstone->request, tombstone->attempt,
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
  // Only a Bind brings an address, and only who knows a transfer of ours makes us connect.
  const auto* bind = std::get_if<handoff::Bind>(&frame.body);
  if (bind != nullptr && Knows(frame.transfer)) {
    absl::StatusOr<PeerId> endpoint = core_->peers.Ensure(frame.sender, bind->reply_address);
    if (endpoint.ok()) return *endpoint;
  }
  PeerId known = core_->peers.Endpoint(frame.sender);
  return known != PeerId() ? known : origin;
}

void ReceiveSide::Answer(const Incoming& incoming, const TransferId& transfer, handoff::Body body) {
  if (incoming.origin == PeerId()) return;  // silence ends the sender as well, only later
  core_->peers.SendTo(incoming.origin, incoming.from, transfer, std::move(body));
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
  deadlines_.Set(key, transfer.machine.NextDeadline());
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
  } else if (const auto* delivered = std::get_if<Machine::Delivered>(&action)) {
    core_->events.push_back(Received{transfer->id, transfer->spec.request, transfer->spec.attempt,
                                     delivered->first, transfer->machine.verified_bytes(),
                                     now - transfer->machine.first_offer_time(),
                                     now - transfer->machine.final_time()});
  } else {
    const auto& freed = std::get<Machine::Freed>(action);
    core_->events.push_back(ReceiveEnded{transfer->id, transfer->spec.request,
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
