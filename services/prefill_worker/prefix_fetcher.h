// Fetches the beginning of a prompt from the decode worker that is to have all of it: what an
// earlier attempt sent there before its prefill worker died, or the answers of a chat's earlier
// turns. The blocks go into a reservation of our own engine and become cached prefix, in which the
// prompt then finds them like any other. Engine thread only.
//
// Invariants:
//  1. A fetch is over when its reservation has been given back; then its prompt is returned, once.
//  2. The reservation is given back after ReceiveEnded (or when no transfer was opened), because
//     until then the network may write to its blocks. The fetch therefore lives on when its request
//     is gone.
#pragma once

#include <optional>
#include <string>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"
#include "services/prefill_worker/fetch_policy.h"
#include "services/worker_runtime/request_handler.h"

namespace sluice::worker {

// The decode worker and what it said it has.
struct PrefixSource {
  TransferId grant;
  Incarnation incarnation;
  std::string kv_address;
  int cached_tokens = 0;
};

class PrefixFetcher {
 public:
  explicit PrefixFetcher(const HandlerContext& context) : context_(context) {}

  // True: the prompt's beginning is being fetched, and `*prompt` was taken over until it comes back
  // from OnReserveAnswer or OnReceiveEnded. False: it is to be computed as it is.
  bool Begin(const PrefixSource& source, SequenceInput* prompt);
  // Its request is over: the fetch ends soon.
  void Cancel(const SequenceKey& key);

  // The prompt whose fetch is over by this event, well or not.
  std::optional<SequenceInput> OnReserveAnswer(const ReserveAnswer& answer);
  std::optional<SequenceInput> OnReceiveEnded(const ReceiveEnded& event);

  // Of the fetch of an attempt, which may be over.
  std::optional<RequestTimes> TimesOf(const SequenceKey& key) const;

  void OnComputed(int num_tokens, absl::Duration busy) { policy_.Computed(num_tokens, busy); }
  // Ends fetches that take longer than computing would.
  void OnTick(absl::Time now);
  absl::Time NextDeadline() const;

 private:
  struct Fetch {
    SequenceInput prompt;
    std::optional<TransferId> transfer;  // once it is known
    int begin = 0;                       // tokens [begin, end) are asked for
    int end = 0;
    absl::Time began;
    absl::Time give_up_at;
    bool cancelled = false;
  };
  using Fetches = absl::btree_map<SequenceKey, Fetch>;

  void Stop(const SequenceKey& key, Fetch& fetch, absl::Status why);
  std::optional<SequenceInput> End(Fetches::iterator it, const absl::Status& status,
                                   int verified_tokens);

  const HandlerContext context_;
  FetchPolicy policy_;
  Fetches fetches_;  // few: one a prompt, for less than a second
};

}  // namespace sluice::worker
