#include "kvtransfer/handoff/fetch.h"

#include "absl/strings/str_cat.h"
#include "kvtransfer/handoff/mutants.h"

namespace sluice::handoff {

FetchGate::Verdict FetchGate::Judge(const Bind& reservation, std::optional<Incarnation> bound,
                                    Incarnation from, const Fetch& fetch, absl::Status* why) {
  if (bound.has_value() && *bound != from) {
    *why = absl::AbortedError("another prefill worker fills this reservation");
    return Verdict::kRefuse;
  }
  if (served_.has_value() && !Planted(HandoffMutant::kServeFetchAgain)) {
    if (*served_ == fetch.into) return Verdict::kRepeat;
    *why = absl::AlreadyExistsError("the prefix of this reservation was fetched before");
    return Verdict::kRefuse;
  }
  if (fetch.fingerprint != reservation.fingerprint ||
      fetch.block_tokens != reservation.block_tokens ||
      fetch.block_bytes != reservation.block_bytes) {
    *why = absl::FailedPreconditionError("Fetch has another fingerprint or geometry");
    return Verdict::kRefuse;
  }
  // Behind the prefix lie blocks that are being filled.
  const bool in_prefix =
      fetch.begin_token < fetch.end_token && fetch.begin_token % reservation.block_tokens == 0 &&
      fetch.end_token % reservation.block_tokens == 0 && fetch.end_token <= reservation.begin_token;
  if (!in_prefix && !Planted(HandoffMutant::kFetchAnyRange)) {
    *why = absl::OutOfRangeError(absl::StrCat("Fetch of tokens [", fetch.begin_token, ", ",
                                              fetch.end_token, "), but the cached prefix has ",
                                              reservation.begin_token));
    return Verdict::kRefuse;
  }
  served_ = fetch.into;
  return Verdict::kServe;
}

}  // namespace sluice::handoff
