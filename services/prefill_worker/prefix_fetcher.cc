#include "services/prefill_worker/prefix_fetcher.h"

#include <algorithm>
#include <utility>

#include "common/block_hash.h"
#include "common/log.h"
#include "services/worker_runtime/worker_metrics.h"

namespace sluice::worker {

bool PrefixFetcher::Begin(const PrefixSource& source, SequenceInput* prompt) {
  if (context_.fetch_patience <= absl::ZeroDuration()) return false;
  SequenceInput prefix;
  prefix.key = prompt->key;
  prefix.tenant_salt = prompt->tenant_salt;
  prefix.sampling.max_tokens = 1;  // nothing is generated: no growth is promised
  prefix.tokens.assign(prompt->tokens.begin(), prompt->tokens.begin() + source.cached_tokens);
  const absl::Time now = context_.clock->Now();
  const int own = context_.engine->CachedTokens(*prompt);
  if (!policy_.Worthwhile(source.cached_tokens - own, now)) return false;

  Fetch fetch;
  fetch.end = source.cached_tokens;
  FetchSpec spec;
  spec.into.request = prefix.key.request;
  spec.into.attempt = prefix.key.attempt;
  const absl::StatusOr<Reservation> reservation = context_.engine->Reserve(std::move(prefix));
  if (!reservation.ok()) return false;  // no room: other prompts wait, and so must this
  fetch.begin = reservation->cached_tokens;
  spec.into.fingerprint = context_.engine->fingerprint().digest;
  spec.into.begin_token = fetch.begin;
  spec.into.end_token = fetch.end;
  spec.into.block_bytes = static_cast<uint64_t>(context_.engine->layout().block_bytes());
  spec.into.block_tokens = kBlockTokens;
  for (const BlockId block : reservation->blocks) {
    spec.into.blocks.push_back(context_.engine->BlockBytes(block));
  }
  spec.grant = source.grant;
  spec.peer_address = source.kv_address;
  spec.peer_incarnation = source.incarnation;
  fetch.began = now;
  fetch.give_up_at = now + policy_.Allowance(fetch.end - fetch.begin, context_.fetch_patience);
  fetch.prompt = std::move(*prompt);
  fetches_.emplace(fetch.prompt.key, std::move(fetch));
  context_.transfers->Fetch(std::move(spec));
  return true;
}

void PrefixFetcher::Cancel(const SequenceKey& key) {
  const auto it = fetches_.find(key);
  if (it == fetches_.end() || it->second.cancelled) return;
  it->second.cancelled = true;
  Stop(key, it->second, absl::CancelledError("the request is over"));
}

void PrefixFetcher::Stop(const SequenceKey& key, Fetch& fetch, absl::Status why) {
  fetch.give_up_at = absl::InfiniteFuture();
  context_.engine->QuarantineReservation(key, fetch.begin);
  // Without an id yet: continued by OnReserveAnswer.
  if (fetch.transfer) context_.transfers->CancelReceive(*fetch.transfer, std::move(why));
}

std::optional<SequenceInput> PrefixFetcher::OnReserveAnswer(const ReserveAnswer& answer) {
  const auto it = fetches_.find({answer.request, answer.attempt});
  if (it == fetches_.end()) return std::nullopt;
  Fetch& fetch = it->second;
  if (!answer.transfer.ok()) return End(it, answer.transfer.status(), fetch.begin);
  fetch.transfer = *answer.transfer;
  if (fetch.give_up_at == absl::InfiniteFuture()) {
    Stop(it->first, fetch, absl::CancelledError("no longer wanted"));
  }
  return std::nullopt;
}

std::optional<SequenceInput> PrefixFetcher::OnReceiveEnded(const ReceiveEnded& event) {
  const auto it = fetches_.find({event.request, event.attempt});
  if (it == fetches_.end() || it->second.transfer != event.transfer) return std::nullopt;
  return End(it, event.status, event.verified_tokens);
}

std::optional<SequenceInput> PrefixFetcher::End(Fetches::iterator it, const absl::Status& status,
                                                int verified_tokens) {
  context_.engine->AbandonReservation(it->first, verified_tokens);
  Fetch fetch = std::move(it->second);
  fetches_.erase(it);
  const int num_fetched = std::max(0, verified_tokens / kBlockTokens * kBlockTokens - fetch.begin);
  const absl::Time now = context_.clock->Now();
  // A refusal or a request that went away says nothing about the way here.
  if (status.ok() || absl::IsDeadlineExceeded(status)) {
    policy_.Fetched(num_fetched, now - fetch.began, now);
  }
  context_.metrics->PrefixFetched(status.ok()       ? FetchResult::kOk
                                  : num_fetched > 0 ? FetchResult::kPartial
                                                    : FetchResult::kFailed,
                                  num_fetched);
  if (!status.ok()) {
    SLUICE_LOG(Info) << "request " << fetch.prompt.key.request << "/" << fetch.prompt.key.attempt
                     << ": " << num_fetched << " of " << fetch.end - fetch.begin
                     << " prompt tokens fetched: " << status.message();
  }
  return std::move(fetch.prompt);
}

std::optional<RequestTimes> PrefixFetcher::TimesOf(const SequenceKey& key) const {
  const auto it = fetches_.find(key);
  if (it == fetches_.end()) return std::nullopt;
  return RequestTimes{it->second.began, absl::InfiniteFuture(), /*ending=*/true};
}

void PrefixFetcher::OnTick(absl::Time now) {
  for (auto& [key, fetch] : fetches_) {
    if (fetch.give_up_at > now) continue;
    Stop(key, fetch, absl::DeadlineExceededError("computing the prompt would have been faster"));
  }
}

absl::Time PrefixFetcher::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [key, fetch] : fetches_) next = std::min(next, fetch.give_up_at);
  return next;
}

}  // namespace sluice::worker
