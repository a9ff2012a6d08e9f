#include "kvtransfer/handoff/receiver.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvtransfer/handoff/mutants.h"

namespace sluice::handoff {
namespace {

size_t CellsOf(const Bind& bind) {
  return (bind.end_token - bind.begin_token + bind.block_tokens - 1) / bind.block_tokens;
}

}  // namespace

Receiver::Receiver(const ReceiverOptions& options, Bind expected, absl::Time now)
    : options_(options),
      expected_(std::move(expected)),
      coverage_(CellsOf(expected_)),
      slots_(coverage_.num_cells()),
      lease_end_(now + options.lease) {}

bool Receiver::Step(const Event& event, absl::Time now, std::vector<Action>* actions) {
  if (over()) return false;
  if (const auto* message = std::get_if<Message>(&event)) return OnMessage(*message, now, actions);
  if (const auto* done = std::get_if<ReceiveDone>(&event))
    return OnReceiveDone(*done, now, actions);
  if (const auto* abort = std::get_if<Abort>(&event)) {
    if (!open()) return false;
    BeginAbort(abort->reason, /*tell_sender=*/true, now, actions);
    return true;
  }
  if (const auto* dead = std::get_if<PeerDead>(&event)) {
    if (open()) BeginAbort(dead->reason, /*tell_sender=*/false, now, actions);
    return true;
  }
  if (open() && now >= lease_end_ && !Planted(HandoffMutant::kNeverEndLease)) {
    BeginAbort(absl::DeadlineExceededError("lease of the transfer ended: no word of the sender"),
               /*tell_sender=*/true, now, actions);
  } else if (open() && now >= stalled_at_) {
    BeginAbort(absl::DeadlineExceededError("no receive ended for the time of a lease"),
               /*tell_sender=*/true, now, actions);
  }
  if (Planted(HandoffMutant::kFreeByTimer) && state_ == State::kAborting && now >= close_peer_at_) {
    num_pending_ = 0;
    MaybeFree(actions);
    return true;
  }
  if (state_ == State::kAborting && now >= close_peer_at_) {
    close_peer_at_ = now + options_.lease;
    actions->push_back(ClosePeer{
        absl::DeadlineExceededError("a receive did not end after its transfer was aborted")});
  }
  return true;
}

bool Receiver::OnMessage(const Message& message, absl::Time now, std::vector<Action>* actions) {
  if (const auto* bind = std::get_if<Bind>(&message.body)) {
    return OnBind(message, *bind, now, actions);
  }
  if (const auto* cancel = std::get_if<Cancel>(&message.body)) {
    // Before Bind the capability alone counts; after it, only the bound incarnation may cancel.
    if (bound_.has_value() && !FromBound(message)) {
      return Refuse(NackCode::kStale, 0, actions);
    }
    cancel_ack_owed_ = bound_.has_value();
    if (open()) {
      BeginAbort(
          absl::Status(cancel->code, absl::StrCat("cancelled by the sender: ", cancel->reason)),
          /*tell_sender=*/false, now, actions);
    }
    return true;
  }
  if (std::holds_alternative<CancelAck>(message.body)) return true;
  if (!bound_.has_value() || !FromBound(message)) return Refuse(NackCode::kStale, 0, actions);
  if (!open()) return Refuse(NackCode::kExpired, 0, actions);
  if (const auto* offer = std::get_if<Offer>(&message.body)) {
    return OnOffer(*offer, message.payload_bytes, now, actions);
  }
  if (const auto* final = std::get_if<Final>(&message.body)) return OnFinal(*final, now, actions);
  return false;
}

bool Receiver::OnBind(const Message& message, const Bind& bind, absl::Time now,
                      std::vector<Action>* actions) {
  if (bound_.has_value() && !FromBound(message)) return Refuse(NackCode::kStale, 0, actions);
  if (bind.request != expected_.request || bind.attempt != expected_.attempt) {
    return Refuse(NackCode::kStale, 0, actions);
  }
  if (!open()) return Refuse(NackCode::kExpired, 0, actions);
  if (bind.fingerprint != expected_.fingerprint || bind.begin_token != expected_.begin_token ||
      bind.end_token != expected_.end_token || bind.block_tokens != expected_.block_tokens ||
      bind.block_bytes != expected_.block_bytes) {
    return Contradiction(NackCode::kLayout, 0, "Bind has another fingerprint or geometry", now,
                         actions);
  }
  lease_end_ = now + options_.lease;
  if (Planted(HandoffMutant::kIgnoreIncarnation)) bound_ = message.from;
  if (state_ == State::kReserved) {
    state_ = State::kBound;
    bound_ = message.from;
  }
  actions->push_back(SendAck{});
  return true;
}

bool Receiver::OnOffer(const Offer& offer, uint64_t payload_bytes, absl::Time now,
                       std::vector<Action>* actions) {
  lease_end_ = now + options_.lease;
  if (!OfferFits(offer, payload_bytes)) {
    return Contradiction(NackCode::kLayout, offer.seq, "an offer does not fit the transfer", now,
                         actions);
  }
  if (state_ == State::kBound) {
    state_ = State::kReceiving;
    first_offer_time_ = now;
  }
#ifdef SLUICE_MUTANTS
  counted_cells_ += NumCells(offer);
#endif
  Slot& slot = slots_[offer.seq];
  if (slot.offer.has_value() && *slot.offer != offer) {
    return Contradiction(NackCode::kConflict, offer.seq, "one sequence number, two contents", now,
                         actions);
  }
  if (slot.state == Slot::State::kVerified) {
    if (Planted(HandoffMutant::kReceiveVerifiedAgain)) {
      actions->push_back(TakePayload{offer.seq, FirstCell(offer), NumCells(offer)});
    }
    actions->push_back(SendAck{});  // the first Ack was lost
    return true;
  }
  if (slot.state == Slot::State::kReceiving) return true;  // a duplicate: the first one counts
  if (!coverage_.Claim(FirstCell(offer), NumCells(offer))) {
    return Contradiction(NackCode::kConflict, offer.seq, "tokens offered twice", now, actions);
  }
  slot.offer = offer;
  slot.state = Slot::State::kReceiving;
  if (num_pending_++ == 0) stalled_at_ = now + options_.lease;
  actions->push_back(TakePayload{offer.seq, FirstCell(offer), NumCells(offer)});
  return true;
}

bool Receiver::OnFinal(const Final& final, absl::Time now, std::vector<Action>* actions) {
  lease_end_ = now + options_.lease;
  if (final.end_token != expected_.end_token || final.num_offers == 0 ||
      final.num_offers > slots_.size()) {
    return Contradiction(NackCode::kLayout, 0, "Final does not fit the transfer", now, actions);
  }
  if (final_.has_value() && *final_ != final) {
    return Contradiction(NackCode::kConflict, 0, "two different Finals", now, actions);
  }
  if (!final_.has_value()) {
    final_ = final;
    final_time_ = now;
  }
  actions->push_back(SendAck{});  // tells what is missing
  MaybeDeliver(now, actions);
  return true;
}

bool Receiver::OnReceiveDone(const ReceiveDone& done, absl::Time now,
                             std::vector<Action>* actions) {
  if (done.seq >= slots_.size() || slots_[done.seq].state != Slot::State::kReceiving) return false;
  Slot& slot = slots_[done.seq];
  const Offer& offer = *slot.offer;
  stalled_at_ = --num_pending_ == 0 ? absl::InfiniteFuture() : now + options_.lease;
  bool failed = !done.status.ok() && !Planted(HandoffMutant::kIgnoreReceiveError);
  bool bad_sum =
      done.status.ok() && done.checksum != offer.checksum && !Planted(HandoffMutant::kSkipChecksum);
  if (bad_sum) ++checksum_failures_;
  if (failed || bad_sum || !open()) {
    slot.state = Slot::State::kEmpty;
    coverage_.Release(FirstCell(offer), NumCells(offer));
    if (!open()) {
      MaybeFree(actions);
      return true;
    }
    if (!bad_sum) return true;  // the sender offers it again
    if (++slot.bad_sums > 1) {
      BeginAbort(absl::DataLossError(absl::StrCat("payload ", done.seq,
                                                  " of the transfer arrived "
                                                  "damaged twice")),
                 /*tell_sender=*/true, now, actions);
      return true;
    }
    actions->push_back(SendControl{Nack{NackCode::kBadSum, done.seq}});
    return true;
  }
  lease_end_ = now + options_.lease;
  slot.state = Slot::State::kVerified;
  coverage_.Verify(FirstCell(offer), NumCells(offer));
  verified_bytes_ += offer.payload_bytes;
  while (cumulative_ < slots_.size() && slots_[cumulative_].state == Slot::State::kVerified) {
    ++cumulative_;
  }
  if (Covered()) state_ = State::kVerified;
  actions->push_back(SendAck{});
  MaybeDeliver(now, actions);
  return true;
}

bool Receiver::OfferFits(const Offer& offer, uint64_t payload_bytes) const {
  const Bind& e = expected_;
  if (offer.seq >= slots_.size() || offer.begin_token < e.begin_token ||
      offer.begin_token >= offer.end_token || offer.end_token > e.end_token) {
    return false;
  }
  if (offer.begin_token % e.block_tokens != 0) return false;
  if (offer.end_token % e.block_tokens != 0 && offer.end_token != e.end_token) return false;
  return offer.payload_bytes == payload_bytes &&
         offer.payload_bytes == NumCells(offer) * e.block_bytes;
}

bool Receiver::Refuse(NackCode code, uint32_t seq, std::vector<Action>* actions) {
  actions->push_back(SendControl{Nack{code, seq}, /*to_origin=*/true});
  return false;
}

bool Receiver::Contradiction(NackCode code, uint32_t seq, const char* what, absl::Time now,
                             std::vector<Action>* actions) {
  Refuse(code, seq, actions);
  BeginAbort(absl::FailedPreconditionError(
                 absl::StrCat("transfer refused (", NackCodeName(code), "): ", what)),
             /*tell_sender=*/false, now, actions);
  return false;
}

void Receiver::MaybeDeliver(absl::Time now, std::vector<Action>* actions) {
  if (Planted(HandoffMutant::kDeliverWithoutFinal) && state_ == State::kVerified) {
    if (!final_.has_value()) final_ = Final{cumulative_, expected_.end_token, FirstToken()};
  }
  if (state_ != State::kVerified || !final_.has_value()) return;
  if (cumulative_ != final_->num_offers && !Planted(HandoffMutant::kCountInsteadOfCoverage)) {
    Contradiction(NackCode::kConflict, 0, "Final counts other offers than arrived", now, actions);
    return;
  }
  // Every cell is verified and a cell is claimed once, so no receive of ours can be pending.
  state_ = State::kActive;
  actions->push_back(SendControl{Commit{}});
  actions->push_back(Delivered{final_->first});
  state_ = State::kClosed;
  actions->push_back(Freed{absl::OkStatus(), expected_.end_token});
}

void Receiver::BeginAbort(absl::Status reason, bool tell_sender, absl::Time now,
                          std::vector<Action>* actions) {
  state_ = State::kAborting;
  status_ = std::move(reason);
  close_peer_at_ = now + options_.lease;
  if (tell_sender && bound_.has_value()) {
    actions->push_back(
        SendControl{Cancel{Side::kSender, status_.code(), std::string(status_.message())}});
  }
  MaybeFree(actions);
  if (state_ == State::kAborting) actions->push_back(Aborted{VerifiedTokens()});
}

void Receiver::MaybeFree(std::vector<Action>* actions) {
  bool pending = num_pending_ > 0 && !Planted(HandoffMutant::kFreeBeforeReceiveEnded);
  if (state_ != State::kAborting || pending) return;
  state_ = State::kFreed;
  if (cancel_ack_owed_) actions->push_back(SendControl{CancelAck{Side::kSender}});
  actions->push_back(Freed{status_, VerifiedTokens()});
}

Ack Receiver::MakeAck() const {
  Ack ack;
  ack.cumulative = cumulative_;
  ack.window_bytes = options_.window_bytes;
  ack.lease_milliseconds = static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.lease));
  size_t num_bits = std::min(slots_.size() - cumulative_, kMaxBitmapBytes * 8);
  for (size_t bit = 0; bit < num_bits; ++bit) {
    if (slots_[cumulative_ + bit].state != Slot::State::kVerified) continue;
    ack.bitmap.resize(bit / 8 + 1);
    ack.bitmap[bit / 8] = static_cast<char>(ack.bitmap[bit / 8] | (1 << (bit % 8)));
  }
  return ack;
}

absl::Time Receiver::NextDeadline() const {
  if (over()) return absl::InfiniteFuture();
  if (open() && Planted(HandoffMutant::kNeverEndLease)) return stalled_at_;
  return open() ? std::min(lease_end_, stalled_at_) : close_peer_at_;
}

bool Receiver::FromBound(const Message& message) const {
  return *bound_ == message.from || Planted(HandoffMutant::kIgnoreIncarnation);
}

bool Receiver::Covered() const {
#ifdef SLUICE_MUTANTS
  if (Planted(HandoffMutant::kCountInsteadOfCoverage)) {
    return counted_cells_ >= coverage_.num_cells() && num_pending_ == 0;
  }
#endif
  return coverage_.complete();
}

uint32_t Receiver::VerifiedTokens() const {
  uint64_t tokens =
      expected_.begin_token + uint64_t{coverage_.verified_prefix()} * expected_.block_tokens;
  return static_cast<uint32_t>(std::min<uint64_t>(tokens, expected_.end_token));
}

size_t Receiver::FirstCell(const Offer& offer) const {
  return (offer.begin_token - expected_.begin_token) / expected_.block_tokens;
}

size_t Receiver::NumCells(const Offer& offer) const {
  return (offer.end_token - offer.begin_token + expected_.block_tokens - 1) /
         expected_.block_tokens;
}

}  // namespace sluice::handoff
