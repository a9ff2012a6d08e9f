#include "tests/sim/sim_request.h"

#include "absl/strings/str_cat.h"

namespace sluice::testing {
namespace {

bool HasCause(const absl::Status& status, const SimRequest& request, const FaultHistory& history,
              const WorkersByRole& workers, absl::Time now) {
  const absl::Time begin = request.submitted_at;
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:  // no worker of a role
      return history.RouterDisturbed(request.router, begin, now) ||
             history.AllDisturbed(workers.prefill, begin, now) ||
             history.AllDisturbed(workers.decode, begin, now);
    case absl::StatusCode::kInternal:  // it lost two workers, or its handoff failed again and again
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDataLoss:
      return history.NumWorkerFaults(begin, now) >= 2 || history.TransfersDisturbed(begin, now);
    case absl::StatusCode::kResourceExhausted:  // no blocks for longer than capacity_timeout
      return !history.Calm(begin, now);
    case absl::StatusCode::kDeadlineExceeded:  // its own; or the router's clock jumped that far
      return request.timeout.has_value() || history.RouterDisturbed(request.router, begin, now);
    default:
      return false;  // not in the table of a failing worker (docs/errors.md)
  }
}

}  // namespace

std::string CheckTokens(const router::EmitTokens& emitted, SimRequest* request) {
  if (request->ended) return "tokens after the end";
  for (const SampledToken& token : emitted.tokens) {
    const auto& expected = request->expected.tokens;
    if (request->num_emitted >= expected.size() ||
        expected[request->num_emitted].token != token.token) {
      return absl::StrCat("token ", request->num_emitted, " is ", token.token,
                          ", undisturbed: ", ToString(request->expected));
    }
    ++request->num_emitted;
  }
  return "";
}

std::string CheckEnd(const router::GenerationResult& result, const SimRequest& request,
                     const FaultHistory& history, const WorkersByRole& workers, absl::Time now) {
  if (request.ended) return "a second end";
  switch (result.end) {
    case router::GenerationEnd::kStop:
    case router::GenerationEnd::kLength: {
      const bool stopped = result.end == router::GenerationEnd::kStop;
      const bool same = request.num_emitted == request.expected.tokens.size() &&
                        stopped == (request.expected.reason == EndReason::kStop);
      return same ? "" : "an end unlike the undisturbed run";
    }
    case router::GenerationEnd::kCancelled:
      return request.cancelled ? "" : "cancelled by nobody";
    case router::GenerationEnd::kFailed:
      if (HasCause(result.status, request, history, workers, now)) return "";
      return absl::StrCat("an error without a cause: ", result.status.ToString());
  }
  return "an end that does not exist";
}

}  // namespace sluice::testing
