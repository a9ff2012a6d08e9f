#include "kvtransfer/handoff/sender.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvtransfer/handoff/mutants.h"

namespace sluice::handoff {
namespace {

// A lease is the receiver's to give, within reason.
constexpr absl::Duration kMaxLease = absl::Hours(1);
// So that a receiver's short lease does not make us talk without pause.
constexpr absl::Duration kMinKeepAliveInterval = absl::Milliseconds(10);

absl::Status RefusalStatus(NackCode code) {
  std::string text = absl::StrCat("transfer refused by the receiver: ", NackCodeName(code));
  switch (code) {
    case NackCode::kUnknown:
      return absl::NotFoundError(text);
    case NackCode::kLayout:
      return absl::FailedPreconditionError(text);
    case NackCode::kConflict:
      return absl::InternalError(text);
    default:
      return absl::AbortedError(text);
  }
}

}  // namespace

Sender::Sender(const SenderOptions& options, Bind bind, absl::Time now)
    : options_(options),
      bind_(std::move(bind)),
      peer_lease_(options.lease),
      resend_at_(now),
      lease_end_(now + options.lease) {}

bool Sender::Step(const Event& event, absl::Time now, std::vector<Action>* actions) {
  if (state_ == State::kEnded) return false;
  if (std::holds_alternative<Start>(event)) {
    actions->push_back(SendControl{bind_});
    resend_at_ = now + options_.resend_interval;
    return true;
  }
  if (const auto* add = std::get_if<Add>(&event)) {
    if (!open() || first_.has_value()) return false;
    Chunk chunk;
    chunk.offer.seq = num_offers();
    chunk.offer.begin_token = add->begin_token;
    chunk.offer.end_token = add->end_token;
    chunk.offer.payload_bytes = add->payload_bytes;
    chunks_.push_back(chunk);
    return true;
  }
  if (const auto* sum = std::get_if<Checksummed>(&event)) {
    if (!open() || sum->seq >= num_offers()) return false;
    chunks_[sum->seq].offer.checksum = sum->checksum;
    chunks_[sum->seq].ready = true;
    return true;
  }
  if (const auto* finish = std::get_if<Finish>(&event)) {
    if (!open() || first_.has_value()) return false;
    first_ = finish->first;
    MaybeSendFinal(now, actions);
    return true;
  }
  if (const auto* done = std::get_if<SendDone>(&event)) return OnSendDone(*done, now, actions);
  if (const auto* abort = std::get_if<Abort>(&event)) {
    if (!open()) return false;
    BeginAbort(abort->reason, /*answered=*/false, now, actions);
    return true;
  }
  if (const auto* dead = std::get_if<PeerDead>(&event)) {
    if (open()) {
      BeginAbort(dead->reason, /*answered=*/true, now, actions);
    } else {
      answered_ = true;  // no answer will come; sends that hang are being ended by the channel
      MaybeEnd(now, actions);
    }
    return true;
  }
  if (const auto* ack = std::get_if<Ack>(&event)) return OnAck(*ack, now, actions);
  if (std::holds_alternative<Commit>(event)) return OnCommit(now, actions);
  if (const auto* nack = std::get_if<Nack>(&event)) return OnNack(*nack, now, actions);
  if (const auto* cancel = std::get_if<Cancel>(&event)) {
    actions->push_back(SendControl{CancelAck{Side::kReceiver}});
    if (open()) {
      BeginAbort(
          absl::Status(cancel->code, absl::StrCat("cancelled by the receiver: ", cancel->reason)),
          /*answered=*/true, now, actions);
    } else if (state_ == State::kAborting) {
      answered_ = true;
      MaybeEnd(now, actions);
    }
    return true;
  }
  if (std::holds_alternative<CancelAck>(event)) {
    if (state_ != State::kAborting) return false;
    answered_ = true;
    MaybeEnd(now, actions);
    return true;
  }
  OnTick(now, actions);
  return true;
}

bool Sender::OnAck(const Ack& ack, absl::Time now, std::vector<Action>* actions) {
  // Only what was sent can have arrived: anything else is not an answer to us.
  if (!open() || ack.cumulative > next_new_) return false;
  peer_lease_ = std::min(kMaxLease, absl::Milliseconds(ack.lease_milliseconds));
  lease_end_ = now + peer_lease_;
  peer_window_bytes_ = ack.window_bytes;
  uint64_t acked_bytes = acked_bytes_;
  for (uint32_t seq = first_unacked_; seq < ack.cumulative; ++seq) MarkAcked(seq);
  for (size_t bit = 0; bit < ack.bitmap.size() * 8; ++bit) {
    size_t seq = ack.cumulative + bit;
    if (seq >= next_new_) break;
    if ((static_cast<uint8_t>(ack.bitmap[bit / 8]) >> (bit % 8)) & 1) {
      MarkAcked(static_cast<uint32_t>(seq));
    }
  }
  if (outstanding_bytes_ == 0) {
    stalled_at_ = absl::InfiniteFuture();
  } else if (acked_bytes_ != acked_bytes) {
    stalled_at_ = now + options_.lease;
  }
  if (state_ == State::kQueued) {
    state_ = State::kSending;
    resend_at_ = now + KeepAliveInterval();  // Bind becomes the keep-alive
    MaybeSendFinal(now, actions);
  }
  return true;
}

bool Sender::OnNack(const Nack& nack, absl::Time now, std::vector<Action>* actions) {
  if (nack.code == NackCode::kBadSum) {
    if (!sendable() || nack.seq >= next_new_) return false;
    lease_end_ = now + options_.lease;
    const Chunk& chunk = chunks_[nack.seq];
    // While the channel holds it, SendDone schedules the resend.
    if (!chunk.acked && !chunk.pending) SetRetry(nack.seq, now);
    return true;
  }
  if (state_ == State::kAborting) {
    answered_ = true;  // the receiver has no such transfer: as good as a CancelAck
    MaybeEnd(now, actions);
    return true;
  }
  if (!open()) return false;
  BeginAbort(RefusalStatus(nack.code), /*answered=*/true, now, actions);
  return true;
}

bool Sender::OnCommit(absl::Time now, std::vector<Action>* actions) {
  if (state_ == State::kFinalSent) {
    state_ = State::kCommitted;
    status_ = absl::OkStatus();
    for (uint32_t seq = 0; seq < num_offers(); ++seq) MarkAcked(seq);
    close_peer_at_ = now + options_.lease;
    MaybeEnd(now, actions);
    return true;
  }
  if (state_ == State::kAborting) {  // our Cancel came too late; it still was an answer
    answered_ = true;
    MaybeEnd(now, actions);
    return true;
  }
  return state_ == State::kCommitted;
}

bool Sender::OnSendDone(const SendDone& done, absl::Time now, std::vector<Action>* actions) {
  if (done.seq >= num_offers() || !chunks_[done.seq].pending) return false;
  Chunk& chunk = chunks_[done.seq];
  chunk.pending = false;
  --num_pending_;
  if (Planted(HandoffMutant::kSendDoneAsAck) && done.status.ok()) {
    MarkAcked(done.seq);
    if (first_unacked_ == num_offers()) OnCommit(now, actions);
  }
  if (open() && !chunk.acked) SetRetry(done.seq, now + options_.resend_interval);
  MaybeEnd(now, actions);
  return true;
}

void Sender::OnTick(absl::Time now, std::vector<Action>* actions) {
  if (open() && now >= lease_end_) {
    // The receiver was silent for a whole lease; it is told once and not waited for.
    BeginAbort(absl::DeadlineExceededError("lease of the transfer ended without an answer"),
               /*answered=*/false, now, actions);
    answered_ = true;
  }
  if (open() && now >= stalled_at_) {
    // The receiver answers, but the payload does not get through.
    BeginAbort(absl::DeadlineExceededError("no payload was acknowledged for the time of a lease"),
               /*answered=*/false, now, actions);
  }
  if (state_ == State::kAborting && now >= lease_end_) answered_ = true;
  MaybeEnd(now, actions);
  if (state_ == State::kEnded) return;
  if (now >= close_peer_at_ && num_pending_ > 0) {
    close_peer_at_ = now + options_.lease;
    actions->push_back(
        ClosePeer{absl::DeadlineExceededError("a send did not end after its transfer was over")});
  }
  if (now < resend_at_) return;
  resend_at_ = now + options_.resend_interval;
  switch (state_) {
    case State::kQueued:
      ++resends_;
      actions->push_back(SendControl{bind_});
      break;
    case State::kSending:
      resend_at_ = now + KeepAliveInterval();
      actions->push_back(SendControl{bind_});
      break;
    case State::kFinalSent:
      ++resends_;
      actions->push_back(SendControl{Final{num_offers(), bind_.end_token, *first_}});
      break;
    case State::kAborting:
      if (answered_) {
        resend_at_ = absl::InfiniteFuture();
        break;
      }
      ++resends_;
      actions->push_back(
          SendControl{Cancel{Side::kReceiver, status_.code(), std::string(status_.message())}});
      break;
    default:
      resend_at_ = absl::InfiniteFuture();
  }
}

std::optional<Offer> Sender::NextOffer(absl::Time now) {
  if (!HasOffer(now)) return std::nullopt;
  uint32_t seq;
  if (!retries_.empty() && retries_.begin()->first <= now) {
    seq = retries_.begin()->second;
    SetRetry(seq, absl::InfiniteFuture());
    ++resends_;
  } else {
    seq = next_new_++;
    chunks_[seq].sent = true;
    if (outstanding_bytes_ == 0) stalled_at_ = now + options_.lease;
    outstanding_bytes_ += chunks_[seq].offer.payload_bytes;
  }
  chunks_[seq].pending = true;
  ++num_pending_;
  return chunks_[seq].offer;
}

bool Sender::HasOffer(absl::Time now) const {
  if (!sendable()) return false;
  if (!retries_.empty() && retries_.begin()->first <= now) return true;
  return next_new_ < num_offers() && chunks_[next_new_].ready &&
         WindowAllows(chunks_[next_new_].offer.payload_bytes);
}

absl::Duration Sender::KeepAliveInterval() const {
  return std::max(std::min(options_.lease, peer_lease_) / 4, kMinKeepAliveInterval);
}

bool Sender::WindowAllows(uint64_t bytes) const {
  uint64_t window = std::min(options_.window_bytes, peer_window_bytes_);
  // A message larger than the window goes alone.
  return window > 0 && (outstanding_bytes_ == 0 || outstanding_bytes_ + bytes <= window);
}

absl::Time Sender::NextDeadline() const {
  if (state_ == State::kEnded) return absl::InfiniteFuture();
  absl::Time next = resend_at_;
  if (open() || (state_ == State::kAborting && !answered_)) next = std::min(next, lease_end_);
  if (open()) next = std::min(next, stalled_at_);
  if (sendable() && !retries_.empty()) next = std::min(next, retries_.begin()->first);
  if (num_pending_ > 0) next = std::min(next, close_peer_at_);
  return next;
}

void Sender::MarkAcked(uint32_t seq) {
  Chunk& chunk = chunks_[seq];
  if (!chunk.acked && chunk.sent) {
    chunk.acked = true;
    outstanding_bytes_ -= chunk.offer.payload_bytes;
    acked_bytes_ += chunk.offer.payload_bytes;
    SetRetry(seq, absl::InfiniteFuture());
  }
  while (first_unacked_ < num_offers() && chunks_[first_unacked_].acked) ++first_unacked_;
}

void Sender::SetRetry(uint32_t seq, absl::Time at) {
  Chunk& chunk = chunks_[seq];
  if (chunk.retry_at != absl::InfiniteFuture()) retries_.erase({chunk.retry_at, seq});
  chunk.retry_at = at;
  if (at != absl::InfiniteFuture()) retries_.insert({at, seq});
}

void Sender::MaybeSendFinal(absl::Time now, std::vector<Action>* actions) {
  if (state_ != State::kSending || !first_.has_value()) return;
  state_ = State::kFinalSent;
  resend_at_ = now + options_.resend_interval;
  actions->push_back(SendControl{Final{num_offers(), bind_.end_token, *first_}});
}

void Sender::BeginAbort(absl::Status reason, bool answered, absl::Time now,
                        std::vector<Action>* actions) {
  // Before the first Ack nothing was offered, so nothing of ours can be in use: Cancel is a
  // courtesy that frees the reservation before its lease does.
  answered_ = answered || state_ == State::kQueued;
  state_ = State::kAborting;
  status_ = std::move(reason);
  retries_.clear();
  lease_end_ = std::min(lease_end_, now + options_.lease);
  resend_at_ = now + options_.resend_interval;
  close_peer_at_ = now + options_.lease;
  if (!answered) {
    actions->push_back(
        SendControl{Cancel{Side::kReceiver, status_.code(), std::string(status_.message())}});
  }
  MaybeEnd(now, actions);
}

void Sender::MaybeEnd(absl::Time, std::vector<Action>* actions) {
  bool over = state_ == State::kCommitted || (state_ == State::kAborting && answered_);
  bool pending = num_pending_ > 0 && !Planted(HandoffMutant::kUnpinBeforeSendEnded);
  if (!over || pending) return;
  state_ = State::kEnded;
  actions->push_back(Ended{status_});
}

}  // namespace sluice::handoff
