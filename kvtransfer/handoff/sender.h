// The sending half of one transfer, sans I/O: Step takes what happened and says what to do; nothing
// here sleeps, sends or reads a clock. One owner, one thread.
//
//            first Ack            Finish, all offered        Commit
//   QUEUED ------------> SENDING ------------> FINAL_SENT ------------> COMMITTED --> ENDED
//      \____________________\_______________________\_____> ABORTING ________________/
//
// ENDED, and with it the release of the blocks, needs two things: an answer of the receiver
// (Commit, CancelAck, a refusal) or the end of the lease (no word from it, or no progress, for that
// long), and that none of our own channel sends is pending. Time alone never releases a block: when
// a send hangs after the end, ClosePeer makes the channel end it.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice::handoff {

struct SenderOptions {
  absl::Duration lease = absl::Seconds(5);
  absl::Duration resend_interval = absl::Milliseconds(300);
  uint64_t window_bytes = 32 << 20;
};

class Sender {
 public:
  enum class State { kQueued, kSending, kFinalSent, kCommitted, kAborting, kEnded };

  // What can happen, besides the receiver's messages. Start is the first event of all.
  struct Start {};
  // The next seq exists; it can be sent once its checksum is known.
  struct Add {
    uint32_t begin_token = 0;
    uint32_t end_token = 0;
    uint64_t payload_bytes = 0;
  };
  struct Checksummed {
    uint32_t seq = 0;
    uint64_t checksum = 0;
  };
  // Nothing more will be added.
  struct Finish {
    FirstToken first;
  };
  // The channel gave back an offer that was taken with NextOffer.
  struct SendDone {
    uint32_t seq = 0;
    absl::Status status;
  };
  // The owner wants no more of it.
  struct Abort {
    absl::Status reason;
  };
  // The receiver's endpoint is closed.
  struct PeerDead {
    absl::Status reason;
  };
  struct Tick {};
  using Event = std::variant<Start, Add, Checksummed, Finish, SendDone, Abort, PeerDead, Tick, Ack,
                             Commit, Nack, Cancel, CancelAck>;

  // What to do about it. Actions appear in the order in which they must be done.
  struct SendControl {
    Body body;
  };
  // A send does not end: close the endpoint.
  struct ClosePeer {
    absl::Status reason;
  };
  // The last action of all. OK: committed.
  struct Ended {
    absl::Status status;
  };
  using Action = std::variant<SendControl, ClosePeer, Ended>;

  // `bind` is what identifies us to the receiver.
  Sender(const SenderOptions& options, Bind bind, absl::Time now);

  // False: the event makes no sense in this state (a message that should not be there) and was
  // ignored.
  bool Step(const Event& event, absl::Time now, std::vector<Action>* actions);

  // The next offer to send within the window, resends first. The owner sends it and reports
  // SendDone.
  std::optional<Offer> NextOffer(absl::Time now);
  bool HasOffer(absl::Time now) const;

  // When a Tick (or a NextOffer) is due at the latest.
  absl::Time NextDeadline() const;

  State state() const { return state_; }
  // Neither committed nor aborted.
  bool open() const {
    return state_ == State::kQueued || state_ == State::kSending || state_ == State::kFinalSent;
  }
  uint32_t num_offers() const { return static_cast<uint32_t>(chunks_.size()); }
  uint64_t acked_bytes() const { return acked_bytes_; }
  uint64_t resends() const { return resends_; }

 private:
  struct Chunk {
    Offer offer;
    bool ready = false;    // checksum known
    bool sent = false;     // counted in outstanding_bytes_ until acked
    bool pending = false;  // the channel holds it
    bool acked = false;
    absl::Time retry_at = absl::InfiniteFuture();  // its key in retries_
  };

  bool OnAck(const Ack& ack, absl::Time now, std::vector<Action>* actions);
  bool OnNack(const Nack& nack, absl::Time now, std::vector<Action>* actions);
  bool OnCommit(absl::Time now, std::vector<Action>* actions);
  bool OnSendDone(const SendDone& done, absl::Time now, std::vector<Action>* actions);
  void OnTick(absl::Time now, std::vector<Action>* actions);
  void MarkAcked(uint32_t seq);
  void SetRetry(uint32_t seq, absl::Time at);
  void MaybeSendFinal(absl::Time now, std::vector<Action>* actions);
  // `answered`: the receiver knows, or can not be told.
  void BeginAbort(absl::Status reason, bool answered, absl::Time now, std::vector<Action>* actions);
  void MaybeEnd(absl::Time now, std::vector<Action>* actions);
  bool sendable() const { return state_ == State::kSending || state_ == State::kFinalSent; }
  bool WindowAllows(uint64_t bytes) const;
  // A quarter of the shorter of both leases: three may be lost.
  absl::Duration KeepAliveInterval() const;

  const SenderOptions options_;
  const Bind bind_;

  State state_ = State::kQueued;
  std::vector<Chunk> chunks_;                          // by seq
  std::set<std::pair<absl::Time, uint32_t>> retries_;  // sent, not pending, not acked
  uint32_t next_new_ = 0;                              // first seq that was never sent
  uint32_t first_unacked_ = 0;
  uint32_t num_pending_ = 0;
  uint64_t outstanding_bytes_ = 0;  // sent and not acked
  uint64_t acked_bytes_ = 0;
  uint64_t peer_window_bytes_ = 0;
  uint64_t resends_ = 0;
  std::optional<FirstToken> first_;  // set by Finish
  absl::Status status_;              // how it ends
  bool answered_ = false;            // while aborting: no CancelAck is awaited
  absl::Duration peer_lease_;        // of the last Ack; the receiver's may differ from ours
  absl::Time resend_at_;             // of Bind, Final or Cancel
  absl::Time lease_end_;             // renewed by every Ack
  // Renewed by what an Ack acknowledges; infinite while nothing is out.
  absl::Time stalled_at_ = absl::InfiniteFuture();
  absl::Time close_peer_at_ = absl::InfiniteFuture();
};

}  // namespace sluice::handoff
