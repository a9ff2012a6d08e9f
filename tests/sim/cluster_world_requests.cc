#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/cluster_world.h"

namespace sluice::testing {
namespace {

RequestId IdOf(size_t r) {
  RequestId id;
  id.bytes[0] = static_cast<uint8_t>(r + 1);
  return id;
}
size_t NumberOf(const RequestId& id) { return id.bytes[0] - 1u; }

router::CoreOptions RouterOptions() {
  router::CoreOptions options;
  options.request_timeout = absl::Seconds(60);
  options.capacity_timeout = absl::Seconds(20);
  return options;
}

}  // namespace

void Cluster::StartRouter(int r) {
  Trace("router ", r, " starts");
  routers_[static_cast<size_t>(r)] = std::make_unique<SimRouter>(
      RouterOptions(), &network_,
      [this, r](router::Action action) { CarryOut(r, std::move(action)); });
}

void Cluster::CarryOut(int r, router::Action action) {
  if (const auto* emitted = std::get_if<router::EmitTokens>(&action)) {
    const size_t number = NumberOf(emitted->id);
    const std::string wrong = CheckTokens(*emitted, &requests_.at(number));
    if (!wrong.empty()) Fail(absl::StrCat("request ", number, ": ", wrong));
  } else if (const auto* ended = std::get_if<router::EndRequest>(&action)) {
    OnEnd(*ended);
  } else if (const auto* close = std::get_if<router::CloseSession>(&action)) {
    Trace("router ", r, " closes stream ", close->session.value, ": ", close->reason);
    streams_.CloseByRouter(close->session);
  } else {
    if (const auto* prefill = std::get_if<router::SendPrefill>(&action)) {
      ExpectNew(prefill->sequence.key);
    } else if (const auto* run = std::get_if<router::SendRun>(&action)) {
      ExpectNew(run->sequence.key);
    }
    std::visit(
        [this, &action](const auto& a) {
          if constexpr (requires { a.to; }) streams_.SendDown(a.to, std::move(action));
        },
        action);
  }
}

void Cluster::ExpectNew(const router::AttemptKey& key) {
  if (!computed_.insert(key).second) {
    Fail(absl::StrCat("attempt ", key.attempt.value, " of request ", NumberOf(key.request),
                      " is computed twice"));
  }
}

void Cluster::OnEnd(const router::EndRequest& ended) {
  const size_t r = NumberOf(ended.id);
  SimRequest& request = requests_.at(r);
  const absl::Time now = network_.Now();
  Trace("request ", r, " ends after ", request.num_emitted,
        " tokens: ", static_cast<int>(ended.result.end), " ", ended.result.status.ToString());
  const std::string wrong = CheckEnd(ended.result, request, history_, by_role_, now);
  if (!wrong.empty()) Fail(absl::StrCat("request ", r, ": ", wrong));
  request.ended = true;
  switch (ended.result.end) {
    case router::GenerationEnd::kCancelled:
      ++g_totals.cancelled;
      break;
    case router::GenerationEnd::kFailed:
      ++g_totals.failed;
      break;
    default:
      ++g_totals.completed;
  }
  ExpectFreed(r);
}

void Cluster::ExpectFreed(size_t r) {
  After(kFreedWithin, [this, r] {
    const SimRequest& request = requests_[r];
    const absl::Time now = network_.Now();
    if (history_.NumWorkerFaults(request.submitted_at, now) > 0 ||
        history_.TransfersDisturbed(request.submitted_at, now)) {
      return;
    }
    for (const auto& worker : workers_) {
      if (worker->Holds(request.spec.id)) {
        Fail(absl::StrCat("request ", r, " ended, but ", worker->options().name,
                          " holds blocks of it"));
      }
    }
  });
}

void Cluster::CountRetries(const SimRouter& router) {
  for (const auto& by_reason : router.core().counters().retries) {
    for (uint64_t count : by_reason) g_totals.retries += count;
  }
}

size_t Cluster::DrawRequest(testing::Chance* chance) {
  const size_t r = requests_.size();
  SimRequest request;
  request.spec.id = IdOf(r);
  // Some prompts begin alike: cached prefixes on both sides.
  request.spec.prompt = MakeTokens(chance->Once(0.4) ? 7 : chance->Bits(), chance->Pick(1, 300));
  request.spec.sampling.seed = chance->Bits();
  request.spec.sampling.temperature = chance->Once(0.5) ? 0 : 1;
  request.spec.sampling.max_tokens = chance->Once(0.1) ? chance->Pick(1, 200) : chance->Pick(1, 24);
  if (chance->Once(0.5)) request.spec.sampling.stop_token_ids = {3};
  request.router = chance->Pick(0, num_routers() - 1);
  requests_.push_back(std::move(request));
  return r;
}

size_t Cluster::DrawContinuation() {
  const size_t earlier = static_cast<size_t>(random_.Pick(0, kNumRequests - 1));
  const size_t r = DrawRequest(&random_);
  if (!requests_[earlier].wanted) return r;
  std::vector<TokenId>& prompt = requests_[r].spec.prompt;
  prompt = requests_[earlier].spec.prompt;
  for (const SampledToken& token : requests_[earlier].expected.tokens) {
    prompt.push_back(token.token);
  }
  for (TokenId token : MakeTokens(random_.Bits(), random_.Pick(1, 8))) prompt.push_back(token);
  if (prompt.size() >= kMaxModelLen) prompt.resize(kMaxModelLen - 1);
  return r;
}

void Cluster::Submit(size_t r, absl::Duration delay) {
  SimRequest& request = requests_[r];
  SequenceInput input;
  input.tokens = request.spec.prompt;
  input.sampling = request.spec.sampling;
  request.expected = OracleAnswer(input, kMaxModelLen);
  request.wanted = true;
  After(delay, [this, r] { SubmitNow(r); });
}

void Cluster::SubmitNow(size_t r) {
  SimRequest& request = requests_[r];
  // A client asks another router when its own is not there.
  for (int tries = 0; RouterAt(request.router) == nullptr && tries < num_routers(); ++tries) {
    request.router = (request.router + 1) % num_routers();
  }
  SimRouter* router = RouterAt(request.router);
  if (router == nullptr) {
    After(absl::Milliseconds(100), [this, r] { SubmitNow(r); });
    return;
  }
  Trace("request ", r, ": ", request.spec.prompt.size(), " tokens, at router ", request.router);
  request.submitted_at = network_.Now();
  router::GenerationSpec spec = request.spec;
  if (request.timeout.has_value()) spec.deadline = router->clock().Now() + *request.timeout;
  router->Deliver(router::RequestSubmitted{std::move(spec)});
}

void Cluster::LoseRequestsOf(int router, bool silent) {
  for (size_t r = 0, count = requests_.size(); r < count; ++r) {
    if (requests_[r].router != router || !requests_[r].submitted() || requests_[r].ended) continue;
    requests_[r].ended = true;
    ++g_totals.lost_with_router;
    if (!silent) ExpectFreed(r);
    if (requests_[r].cancelled || random_.Once(0.3)) continue;
    SimRequest again = requests_[r];
    const size_t number = requests_.size();
    again.spec.id = IdOf(number);
    again.router = (router + 1) % num_routers();
    again.submitted_at = absl::InfiniteFuture();
    again.num_emitted = 0;
    again.ended = false;
    requests_.push_back(std::move(again));
    Trace("request ", r, " was lost with router ", router, ", asked again as ", number);
    After(random_.UpTo(absl::Seconds(1)), [this, number] { SubmitNow(number); });
  }
}

void Cluster::Cancel(size_t r) {
  SimRequest& request = requests_[r];
  if (!request.submitted() || request.ended || request.cancelled) return;
  Trace("client of ", r, " leaves");
  request.cancelled = true;
  RouterAt(request.router)->Deliver(router::RequestCancelled{request.spec.id});
}

}  // namespace sluice::testing
