// The receiving half of one transfer, sans I/O: Step takes what happened and says what to do;
// nothing here sleeps, sends or reads a clock. One owner, one thread.
//
// clang-format off
//            Bind         first Offer             coverage full            Final agrees
//   RESERVED -----> BOUND -----------> RECEIVING --------------> VERIFIED ------------> ACTIVE
//       \_______________\___________________\________________________\                     v
//                                                FREED <-- ABORTING <-+                CLOSED
// clang-format on
//
// The memory goes back to the owner with Freed only: at FREED when no receive of ours is pending,
// at CLOSED when every cell is verified (then none can be). Timers only start an abort; they never
// free. When a receive hangs after an abort, ClosePeer makes the channel end it.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvtransfer/handoff/coverage.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice::handoff {

struct ReceiverOptions {
  absl::Duration lease = absl::Seconds(5);
  uint64_t window_bytes = 32 << 20;
};

class Receiver {
 public:
  enum class State {
    kReserved,
    kBound,
    kReceiving,
    kVerified,
    kActive,
    kClosed,
    kAborting,
    kFreed
  };

  // A message of the sender; payload_bytes is what the channel announced with it.
  struct Message {
    Incarnation from;
    Body body;
    uint64_t payload_bytes = 0;
  };
  // A receive ended that TakePayload had started. `checksum` of what arrived, if status is OK.
  struct ReceiveDone {
    uint32_t seq = 0;
    absl::Status status;
    uint64_t checksum = 0;
  };
  // The owner wants no more of it.
  struct Abort {
    absl::Status reason;
  };
  // The sender's endpoint is closed.
  struct PeerDead {
    absl::Status reason;
  };
  struct Tick {};
  using Event = std::variant<Message, ReceiveDone, Abort, PeerDead, Tick>;

  // To the bound sender, or (to_origin) to whoever sent the message that is being answered.
  struct SendControl {
    Body body;
    bool to_origin = false;
  };
  // An acknowledgement is due; it may be merged with later ones. See MakeAck.
  struct SendAck {};
  // Receive the payload into cells [first_cell, first_cell + num_cells), then report ReceiveDone.
  // An announced payload that no TakePayload takes must be dropped.
  struct TakePayload {
    uint32_t seq = 0;
    size_t first_cell = 0;
    size_t num_cells = 0;
  };
  // Complete and verified.
  struct Delivered {
    FirstToken first;
  };
  // A receive does not end: close the endpoint.
  struct ClosePeer {
    absl::Status reason;
  };
  // Given up, and receives are still pending: Freed follows when they have ended. What was verified
  // is final now, because verified cells are never received into again.
  struct Aborted {
    uint32_t verified_tokens = 0;
  };
  // The last action of all: the memory is the owner's again.
  struct Freed {
    absl::Status status;
    uint32_t verified_tokens = 0;
  };
  using Action =
      std::variant<SendControl, SendAck, TakePayload, Delivered, ClosePeer, Aborted, Freed>;

  // `expected` is what a Bind must say (its reply_address aside). REQUIRES: begin_token <
  // end_token, begin_token a multiple of block_tokens.
  Receiver(const ReceiverOptions& options, Bind expected, absl::Time now);

  // False: the event was refused (stale, malformed, contradictory); the actions may hold the
  // answer.
  bool Step(const Event& event, absl::Time now, std::vector<Action>* actions);

  Ack MakeAck() const;
  absl::Time NextDeadline() const;

  State state() const { return state_; }
  // Neither delivered nor aborted.
  bool open() const { return state_ < State::kActive; }
  bool over() const { return state_ == State::kClosed || state_ == State::kFreed; }
  std::optional<Incarnation> bound() const { return bound_; }
  uint64_t verified_bytes() const { return verified_bytes_; }
  uint64_t checksum_failures() const { return checksum_failures_; }
  absl::Time first_offer_time() const { return first_offer_time_; }
  absl::Time final_time() const { return final_time_; }

 private:
  struct Slot {  // of one seq
    enum class State { kEmpty, kReceiving, kVerified } state = State::kEmpty;
    std::optional<Offer> offer;  // the first one seen: later ones must equal it
    uint32_t bad_sums = 0;
  };

  bool OnMessage(const Message& message, absl::Time now, std::vector<Action>* actions);
  bool OnBind(const Message& message, const Bind& bind, absl::Time now,
              std::vector<Action>* actions);
  bool OnOffer(const Offer& offer, uint64_t payload_bytes, absl::Time now,
               std::vector<Action>* actions);
  bool OnFinal(const Final& final, absl::Time now, std::vector<Action>* actions);
  bool OnReceiveDone(const ReceiveDone& done, absl::Time now, std::vector<Action>* actions);
  bool OfferFits(const Offer& offer, uint64_t payload_bytes) const;
  bool Refuse(NackCode code, uint32_t seq, std::vector<Action>* actions);
  // A contradiction inside the transfer: answer and give up.
  bool Contradiction(NackCode code, uint32_t seq, const char* what, absl::Time now,
                     std::vector<Action>* actions);
  void MaybeDeliver(absl::Time now, std::vector<Action>* actions);
  void BeginAbort(absl::Status reason, bool tell_sender, absl::Time now,
                  std::vector<Action>* actions);
  void MaybeFree(std::vector<Action>* actions);
  uint32_t VerifiedTokens() const;
  size_t FirstCell(const Offer& offer) const;
  size_t NumCells(const Offer& offer) const;
  // REQUIRES: bound.
  bool FromBound(const Message& message) const;
  bool Covered() const;

  const ReceiverOptions options_;
  const Bind expected_;

  State state_ = State::kReserved;
  std::optional<Incarnation> bound_;
  Coverage coverage_;
  std::vector<Slot> slots_;  // by seq; an offer has at least one cell, so num_cells slots suffice
  uint32_t cumulative_ = 0;  // slots below are verified
  uint32_t num_pending_ = 0;
  uint64_t verified_bytes_ = 0;
  uint64_t checksum_failures_ = 0;
#ifdef SLUICE_MUTANTS
  size_t counted_cells_ = 0;
#endif
  std::optional<Final> final_;
  absl::Status status_;
  bool cancel_ack_owed_ = false;
  absl::Time first_offer_time_ = absl::InfiniteFuture();
  absl::Time final_time_ = absl::InfiniteFuture();
  absl::Time lease_end_;  // renewed by every valid message
  // Renewed by receives that end; infinite while none is pending.
  absl::Time stalled_at_ = absl::InfiniteFuture();
  absl::Time close_peer_at_ = absl::InfiniteFuture();
};

}  // namespace sluice::handoff
