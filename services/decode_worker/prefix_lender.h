// Lends the cached prefix of reservations to the prefill workers that fill them: pins the blocks in
// the engine, sends them, and unpins when the transfer thread no longer reads them, whatever has
// become of the reservation meanwhile. Engine thread only.
#pragma once

#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "services/worker_runtime/request_handler.h"

namespace sluice::worker {

class PrefixLender {
 public:
  explicit PrefixLender(const HandlerContext& context) : context_(context) {}

  // Sends what was asked for. `wanted` false: the reservation is over, the asker is told so. A
  // transfer that is lent already is left alone.
  void Lend(const FetchRequested& request, bool wanted);
  // The attempt is over: nobody needs its prefix any more.
  void Cancel(const SequenceKey& key, const absl::Status& why);
  // True if it was a lent prefix whose send has ended.
  bool OnSendEnded(const SendEnded& event);
  // Of what is lent for this attempt, which may be over.
  std::optional<RequestTimes> TimesOf(const SequenceKey& key) const;

 private:
  struct Loan {
    SequenceKey key;
    PinId pin;  // none: refused
    absl::Time began;
  };

  const HandlerContext context_;
  absl::flat_hash_map<TransferId, Loan> loans_;  // at most one a reservation, until its send ends
};

}  // namespace sluice::worker
