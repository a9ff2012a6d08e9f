#include "kvtransfer/agent/send_side.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/handoff/mutants.h"

namespace sluice {
namespace {

// One Poll's share: while one message's checksum is computed, those before it move.
constexpr uint64_t kChecksumBytesPerPoll = 1 << 20;
// So that one can move while the next is checksummed.
constexpr uint32_t kMinAheadMessages = 2;
constexpr int kMessagesPerPoll = 64;
constexpr size_t kMaxBlocksPerMessage = 256;

absl::Status CheckSpec(const SendSpec& spec) {
  if (spec.block_tokens <= 0 || spec.block_bytes == 0 || spec.begin_token < 0 ||
      spec.begin_token % spec.block_tokens != 0 || spec.end_token <= spec.begin_token) {
    return absl::InvalidArgumentError(
        absl::StrCat("send of tokens [", spec.begin_token, ", ", spec.end_token, ") in blocks of ",
                     spec.block_tokens, " tokens, ", spec.block_bytes, " bytes"));
  }
  if (spec.fingerprint.size() > handoff::kMaxFingerprintBytes) {
    return absl::InvalidArgumentError("fingerprint too long");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SendSide::Start(const SendSpec& spec) {
  SLUICE_RETURN_IF_ERROR(CheckSpec(spec));
  if (by_id_.contains(spec.transfer)) {
    return absl::AlreadyExistsError("transfer is being sent already");
  }
  if (num_transfers() >= core_->options.max_transfers) {
    return absl::ResourceExhaustedError(absl::StrCat(num_transfers(), " sends are in flight"));
  }
  handoff::Bind bind;
  bind.request = spec.request;
  bind.attempt = spec.attempt;
  bind.begin_token = static_cast<uint32_t>(spec.begin_token);
  bind.end_token = static_cast<uint32_t>(spec.end_token);
  bind.block_tokens = static_cast<uint32_t>(spec.block_tokens);
  bind.block_bytes = spec.block_bytes;
  bind.fingerprint = spec.fingerprint;
  bind.reply_address = core_->channel->LocalAddress();
  if (bind.reply_address.size() > handoff::kMaxAddressBytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the channel's address has ", bind.reply_address.size(), " bytes: restrict its devices"));
  }
  SLUICE_RETURN_IF_ERROR(core_->peers.Ensure(spec.peer_incarnation, spec.peer_address).status());

  absl::Time now = core_->clock->Now();
  handoff::SenderOptions options{core_->options.lease, core_->options.resend_interval,
                                 core_->options.window_bytes};
  size_t num_blocks = static_cast<size_t>(
      (spec.end_token - spec.begin_token + spec.block_tokens - 1) / spec.block_tokens);
  Key key = ++last_key_;
  transfers_.emplace(std::piecewise_construct, std::forward_as_tuple(key),
                     std::forward_as_tuple(spec, options, std::move(bind), num_blocks, now));
  by_id_.emplace(spec.transfer, key);
  core_->peers.Attach(spec.peer_incarnation, now);
  Step(key, handoff::Sender::Start{}, now);
  return absl::OkStatus();
}

absl::Status SendSide::Offer(const TransferId& id, int begin, int end,
                             std::vector<absl::Span<const uint8_t>> blocks) {
  std::optional<Key> key = Find(id);
  if (!key.has_value()) return absl::NotFoundError("no such send");
  Transfer& transfer = transfers_.at(*key);
  if (!transfer.machine.open()) return absl::NotFoundError("send is over");
  const SendSpec& spec = transfer.spec;
  const int block_tokens = spec.block_tokens;
  bool aligned =
      begin >= 0 && begin % block_tokens == 0 && (end % block_tokens == 0 || end == spec.end_token);
  if (!aligned || begin >= end || end > spec.end_token ||
      blocks.size() != static_cast<size_t>((end - begin + block_tokens - 1) / block_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("offer of tokens [", begin, ", ", end, ") in ", blocks.size(), " blocks"));
  }
  for (const absl::Span<const uint8_t>& block : blocks) {
    if (block.size() != spec.block_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("offer of a block of ", block.size(),
                                                     " bytes instead of ", spec.block_bytes));
    }
  }
  if (transfer.finished) return absl::FailedPreconditionError("send is finished");
  if (end <= spec.begin_token) return absl::OkStatus();
  if (begin < spec.begin_token) {
    int num_skipped = (spec.begin_token - begin) / block_tokens;
    if (handoff::Planted(handoff::HandoffMutant::kAlignFromFront)) {
      blocks.erase(blocks.end() - num_skipped, blocks.end());
    } else {
      blocks.erase(blocks.begin(), blocks.begin() + num_skipped);
    }
    begin = spec.begin_token;
  }
  size_t first_cell = static_cast<size_t>((begin - spec.begin_token) / block_tokens);
  if (!transfer.offered.Claim(first_cell, blocks.size())) {
    return absl::AlreadyExistsError(absl::StrCat("tokens [", begin, ", ", end, ") offered twice"));
  }
  transfer.offered.Verify(first_cell, blocks.size());

  const size_t blocks_per_message = std::clamp<size_t>(
      core_->options.target_message_bytes / spec.block_bytes, 1, kMaxBlocksPerMessage);
  absl::Time now = core_->clock->Now();
  if (!transfer.first_offer.has_value()) transfer.first_offer = now;
  for (size_t i = 0; i < blocks.size(); i += blocks_per_message) {
    size_t count = std::min(blocks_per_message, blocks.size() - i);
    Message message;
    message.blocks.assign(blocks.begin() + i, blocks.begin() + i + count);
    message.begin_token = static_cast<uint32_t>(begin + static_cast<int>(i) * block_tokens);
    message.payload_bytes = count * spec.block_bytes;
    int end_token = std::min(end, begin + static_cast<int>(i + count) * block_tokens);
    handoff::Sender::Add add{message.begin_token, static_cast<uint32_t>(end_token),
                             message.payload_bytes};
    transfer.messages.push_back(std::move(message));
    Step(*key, add, now);
  }
  QueueChecksum(*key, &transfer);
  return absl::OkStatus();
}

absl::Status SendSide::Finish(const TransferId& id, const FirstToken& first) {
  std::optional<Key> key = Find(id);
  if (!key.has_value()) return absl::NotFoundError("no such send");
  Transfer& transfer = transfers_.at(*key);
  if (!transfer.machine.open()) return absl::NotFoundError("send is over");
  if (transfer.finished) return absl::FailedPreconditionError("send is finished");
  if (!transfer.offered.complete()) {
    return absl::FailedPreconditionError(
        absl::StrCat("only the first ", transfer.offered.verified_prefix(), " of ",
                     transfer.offered.num_cells(), " blocks were offered"));
  }
  if (first.top.size() > handoff::kMaxTopTokens) {
    return absl::InvalidArgumentError(absl::StrCat(first.top.size(), " top logprobs"));
  }
  transfer.finished = true;
  // At once, before what still waits for its turn: the receiver learns when prefill has ended.
  Step(*key, handoff::Sender::Finish{first}, core_->clock->Now());
  return absl::OkStatus();
}

void SendSide::Cancel(const TransferId& id, absl::Status reason) {
  std::optional<Key> key = Find(id);
  if (!key.has_value()) return;
  if (reason.ok()) reason = absl::CancelledError("cancelled by the sender");
  Step(*key, handoff::Sender::Abort{std::move(reason)}, core_->clock->Now());
}

bool SendSide::OnMessage(const handoff::Frame& frame, absl::Time now) {
  std::optional<Key> key = Find(frame.transfer);
  if (!key.has_value()) return false;
  // A transfer is a conversation of two lives: another incarnation has no say in it.
  if (frame.sender != transfers_.at(*key).spec.peer_incarnation) {
    ++core_->stats.messages_refused;
    return true;
  }
  auto step = [&](const handoff::Sender::Event& event) {
    if (!Step(*key, event, now)) ++core_->stats.messages_refused;
    return true;
  };
  if (const auto* ack = std::get_if<handoff::Ack>(&frame.body)) return step(*ack);
  if (const auto* commit = std::get_if<handoff::Commit>(&frame.body)) return step(*commit);
  if (const auto* nack = std::get_if<handoff::Nack>(&frame.body)) return step(*nack);
  if (const auto* cancel = std::get_if<handoff::Cancel>(&frame.body)) return step(*cancel);
  if (const auto* answer = std::get_if<handoff::CancelAck>(&frame.body)) return step(*answer);
  return false;
}

void SendSide::OnSendDone(OperationId id, const absl::Status& status, absl::Time now) {
  auto it = operations_.find(id);
  if (it == operations_.end()) return;
  Operation operation = it->second;
  operations_.erase(it);
  if (auto found = transfers_.find(operation.key); found != transfers_.end()) {
    Transfer& transfer = found->second;
    Message& message = transfer.messages[operation.seq];
    if (std::exchange(message.ahead, false)) {
      --transfer.num_ahead;
      transfer.ahead_bytes -= message.payload_bytes;
      QueueChecksum(operation.key, &transfer);
    }
  }
  Step(operation.key, handoff::Sender::SendDone{operation.seq, status}, now);
}

void SendSide::OnPeerDead(Incarnation peer, const absl::Status& reason, absl::Time now) {
  std::vector<Key> affected;
  for (auto& [key, transfer] : transfers_) {
    if (transfer.spec.peer_incarnation != peer || !transfer.attached) continue;
    transfer.attached = false;
    affected.push_back(key);
  }
  for (Key key : affected) Step(key, handoff::Sender::PeerDead{reason}, now);
}

void SendSide::Tick(absl::Time now) {
  for (Key key : deadlines_.Due(now)) Step(key, handoff::Sender::Tick{}, now);
}

bool SendSide::Pump(absl::Time now) {
  bool moved = PumpChecksums(now);
  for (int i = 0; i < kMessagesPerPoll && !ready_.empty(); ++i) {
    Key key = ready_.front();
    ready_.pop_front();
    auto it = transfers_.find(key);
    if (it == transfers_.end()) continue;
    it->second.ready = false;
    moved |= SendNext(key, now);
  }
  return moved;
}

bool SendSide::PumpChecksums(absl::Time now) {
  bool moved = false;
  uint64_t bytes = 0;
  while (!unchecksummed_.empty() && bytes < kChecksumBytesPerPoll) {
    Key key = unchecksummed_.front();
    unchecksummed_.pop_front();
    auto it = transfers_.find(key);
    if (it == transfers_.end()) continue;
    Transfer& transfer = it->second;
    transfer.unchecksummed = false;
    uint32_t seq = transfer.num_checksummed++;
    Message& message = transfer.messages[seq];
    message.ahead = true;
    ++transfer.num_ahead;
    transfer.ahead_bytes += message.payload_bytes;
    handoff::PayloadChecksum checksum(transfer.spec.transfer, message.begin_token);
    for (const absl::Span<const uint8_t>& block : message.blocks) {
      checksum.Update(block.data(), block.size());
    }
    bytes += message.payload_bytes;
    moved = true;
    QueueChecksum(key, &transfer);
    Step(key, handoff::Sender::Checksummed{seq, checksum.Finish()}, now);
  }
  return moved;
}

void SendSide::QueueChecksum(Key key, Transfer* transfer) {
  const bool may_run_ahead =
      transfer->num_ahead < kMinAheadMessages || transfer->ahead_bytes < core_->options.ahead_bytes;
  if (!may_run_ahead || transfer->num_checksummed == transfer->messages.size()) return;
  if (std::exchange(transfer->unchecksummed, true)) return;
  unchecksummed_.push_back(key);
}

bool SendSide::SendNext(Key key, absl::Time now) {
  Transfer& transfer = transfers_.at(key);
  std::optional<handoff::Offer> offer = transfer.machine.NextOffer(now);
  if (!offer.has_value()) return false;
  OperationId operation = core_->NewOperation();
  operations_.emplace(operation, Operation{key, offer->seq});
  PeerId endpoint = core_->peers.Endpoint(transfer.spec.peer_incarnation);
  absl::Status status = absl::UnavailableError("peer is gone");
  if (endpoint != PeerId() && transfer.attached) {
    status = core_->channel->Send(endpoint,
                                  handoff::Encode({core_->self, transfer.spec.peer_incarnation,
                                                   transfer.spec.transfer, *offer}),
                                  transfer.messages[offer->seq].blocks, operation);
  }
  if (!status.ok()) {
    OnSendDone(operation, status, now);
    return true;
  }
  // Back to the end of the line: one message each.
  Step(key, handoff::Sender::Tick{}, now);
  return true;
}

absl::Time SendSide::NextDeadline() const {
  if (!ready_.empty() || !unchecksummed_.empty()) return absl::InfinitePast();
  return deadlines_.Earliest();
}

uint64_t SendSide::resends() const {
  uint64_t resends = ended_resends_;
  for (const auto& [key, transfer] : transfers_) resends += transfer.machine.resends();
  return resends;
}

std::optional<SendSide::Key> SendSide::Find(const TransferId& transfer) const {
  auto it = by_id_.find(transfer);
  if (it == by_id_.end()) return std::nullopt;
  return it->second;
}

bool SendSide::Step(Key key, const handoff::Sender::Event& event, absl::Time now) {
  auto it = transfers_.find(key);
  if (it == transfers_.end()) return false;
  Transfer& transfer = it->second;
  std::vector<handoff::Sender::Action> actions;
  bool accepted = transfer.machine.Step(event, now, &actions);
  for (const handoff::Sender::Action& action : actions) Apply(key, &transfer, action, now);
  if (transfer.machine.state() == handoff::Sender::State::kEnded) {
    if (transfer.attached) core_->peers.Detach(transfer.spec.peer_incarnation);
    ended_resends_ += transfer.machine.resends();
    deadlines_.Set(key, absl::InfiniteFuture());
    by_id_.erase(transfer.spec.transfer);
    transfers_.erase(it);
    return accepted;
  }
  deadlines_.Set(key, transfer.machine.NextDeadline());
  if (!transfer.ready && transfer.machine.HasOffer(now)) {
    transfer.ready = true;
    ready_.push_back(key);
  }
  return accepted;
}

void SendSide::Apply(Key, Transfer* transfer, const handoff::Sender::Action& action,
                     absl::Time now) {
  const SendSpec& spec = transfer->spec;
  if (const auto* control = std::get_if<handoff::Sender::SendControl>(&action)) {
    if (transfer->attached) {
      core_->peers.Send(spec.peer_incarnation, spec.transfer, control->body);
    }
  } else if (const auto* close = std::get_if<handoff::Sender::ClosePeer>(&action)) {
    core_->Condemn(spec.peer_incarnation, close->reason);
  } else {
    const auto& ended = std::get<handoff::Sender::Ended>(action);
    core_->events.emplace_back(SendEnded{spec.transfer, spec.request, spec.attempt, ended.status,
                                         transfer->machine.acked_bytes(),
                                         now - transfer->first_offer.value_or(now)});
  }
}

}  // namespace sluice
