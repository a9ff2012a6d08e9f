// Prefix fetch, sans I/O: the two small states around the one message of it (Fetch in messages.h).
// Everything after the answer is an ordinary transfer in the other direction, with the ordinary
// sender and receiver. One owner each, one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice::handoff {

// The asking side: repeats the Fetch until the transfer it asks for is bound or over. It has no
// deadline of its own; the receiver's lease, which for a fetch is short, ends the waiting.
class FetchRequest {
 public:
  FetchRequest(Incarnation peer, TransferId grant, Fetch fetch, absl::Duration resend_interval,
               absl::Time now)
      : peer_(peer),
        grant_(grant),
        fetch_(std::move(fetch)),
        resend_interval_(resend_interval),
        send_at_(now) {}

  // True when the Fetch is due; the next one is then scheduled.
  bool TakeDue(absl::Time now) {
    if (now < send_at_) return false;
    send_at_ = now + resend_interval_;
    return true;
  }
  void Answered() { send_at_ = absl::InfiniteFuture(); }
  absl::Time NextDeadline() const { return send_at_; }

  // Who was asked, and nobody else, may answer.
  Incarnation peer() const { return peer_; }
  const TransferId& grant() const { return grant_; }
  const Fetch& fetch() const { return fetch_; }

 private:
  const Incarnation peer_;
  const TransferId grant_;
  const Fetch fetch_;
  const absl::Duration resend_interval_;
  absl::Time send_at_;
};

// The asked side: decides what a reservation gives to whom. One fetch is served per reservation,
// so what a peer can make us send and pin is bounded by what was reserved.
class FetchGate {
 public:
  enum class Verdict {
    kServe,   // for the first time
    kRepeat,  // being served, or served: nothing to do
    kRefuse,  // *why says so
  };
  // `reservation` is what the reservation's Bind must say: its begin_token is where the cached
  // prefix ends. `bound`: the life that fills the reservation, if one has said so.
  Verdict Judge(const Bind& reservation, std::optional<Incarnation> bound, Incarnation from,
                const Fetch& fetch, absl::Status* why);

 private:
  std::optional<TransferId> served_;
};

}  // namespace sluice::handoff
