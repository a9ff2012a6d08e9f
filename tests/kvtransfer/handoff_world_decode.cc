#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/kvtransfer/handoff_world.h"

namespace sluice::testing {

void World::ReserveOnDecode(int r, uint32_t attempt) {
  Request& request = requests_[r];
  if (!request.active || request.attempt != attempt) return;
  Node* node = Alive(request.d, request.d_incarnation);
  if (node == nullptr) {
    EndAttempt(r, attempt, "decode worker does not answer");
    return;
  }
  int num_blocks = (request.num_tokens + kBlockTokens - 1) / kBlockTokens;
  int cached = 0;
  auto prefix = node->cache.find(r);
  if (prefix != node->cache.end()) {
    cached = std::min(static_cast<int>(prefix->second.blocks.size()), num_blocks - 1);
  }
  for (auto it = node->cache.begin();
       static_cast<int>(node->pool.num_free()) < num_blocks - cached && it != node->cache.end();) {
    bool in_use = it->first == r;
    for (const auto& [id, job] : node->receives) in_use |= job.request == it->first;
    for (const auto& [id, request] : node->lends) in_use |= request == it->first;
    if (in_use) {
      ++it;
      continue;
    }
    for (auto [block, by] : it->second.blocks) node->pool.Free(block);
    it = node->cache.erase(it);
  }
  if (static_cast<int>(node->pool.num_free()) < num_blocks - cached) {
    EndAttempt(r, attempt, "busy");
    return;
  }
  ReceiveJob job{r, attempt, cached, {}, false, std::nullopt};
  ReceiveSpec spec;
  spec.request = IdOf(r);
  spec.attempt = Attempt(attempt);
  spec.fingerprint = "model";
  spec.begin_token = cached * kBlockTokens;
  spec.end_token = request.num_tokens;
  spec.block_bytes = kBlockBytes;
  spec.block_tokens = kBlockTokens;
  for (int i = cached; i < num_blocks; ++i) {
    job.blocks.push_back(node->pool.Take());
    spec.blocks.push_back(node->pool.Span(job.blocks.back()));
  }
  absl::StatusOr<TransferId> transfer = node->agent->Reserve(spec);
  if (!transfer.ok()) Fail(network_.Now(), absl::StrCat("Reserve: ", transfer.status().ToString()));
  if (Chance(0.1)) {  // a duplicate of the router's call
    absl::StatusOr<TransferId> again = node->agent->Reserve(spec);
    if (!again.ok() || *again != *transfer) Fail(network_.Now(), "Reserve is not idempotent");
  }
  request.transfer = *transfer;
  if (request.d_address.empty()) request.d_address = node->channel->LocalAddress();
  node->receives[*transfer] = std::move(job);
  Trace("request ", r, " attempt ", attempt, " reserved on ", node->name, " from block ", cached);
  int p = request.p;
  After(RandomDelay(absl::Milliseconds(20)), [this, r, attempt, cached, p] {
    StartPrefill(r, attempt, cached * kBlockTokens, p, /*stray=*/false);
  });
  if (Chance(0.05)) {
    After(RandomDelay(absl::Milliseconds(200)), [this, r, attempt, cached, p] {
      StartPrefill(r, attempt, cached * kBlockTokens, 1 - p, /*stray=*/true);
    });
  }
  if (cancels_ && Chance(0.2)) {
    After(RandomDelay(absl::Milliseconds(300)), [this, r, attempt, id = *transfer] {
      Node* d = Alive(requests_[r].d, requests_[r].d_incarnation);
      if (requests_[r].attempt == attempt && d != nullptr) {
        d->agent->CancelReceive(id, absl::CancelledError("by test"));
      }
    });
  }
}

void World::OnReceived(Node* node, const Received& event) {
  auto it = node->receives.find(event.transfer);
  if (it == node->receives.end() || it->second.delivered) Fail(network_.Now(), "delivered twice");
  ReceiveJob& job = it->second;
  job.delivered = true;
  Trace("request ", job.request, " attempt ", job.attempt, " delivered on ", node->name);
  if (event.request != IdOf(job.request) || event.attempt.value != job.attempt ||
      event.first.token != job.request * 1000 + static_cast<int>(job.attempt)) {
    Fail(network_.Now(), "delivered with another request's first token");
  }
  if (!OriginOf(node, event.transfer, job, job.blocks.size()).has_value()) {
    Fail(network_.Now(), "foreign bytes in a delivered block");
  }
  delivered_.insert(event.transfer);
  for (int i = 0; i < job.begin_block; ++i) {
    auto [block, by] = node->cache.at(job.request).blocks.at(i);
    if (!HasContent(job.request, by, i, node->pool.Data(block))) {
      Fail(network_.Now(), "foreign bytes in the cached prefix");
    }
  }
  Request& request = requests_[job.request];
  if (request.attempt == job.attempt && request.active) {
    request.delivered = true;
    request.active = false;
  }
}

void World::OnReceiveAborted(Node* node, const ReceiveAborted& event) {
  auto it = node->receives.find(event.transfer);
  if (it == node->receives.end()) {
    if (!node->fetches.contains(event.transfer)) Fail(network_.Now(), "aborted after its end");
    return;
  }
  ReceiveJob& job = it->second;
  if (job.delivered || job.aborted_at.has_value()) Fail(network_.Now(), "aborted twice");
  job.aborted_at = event.verified_tokens;
  const size_t num_kept = NumVerified(job, event.verified_tokens);
  for (size_t i = 0; i < num_kept; ++i) {
    if (network_.MayWrite(node->pool.Span(job.blocks[i]))) {
      Fail(network_.Now(), "a verified block is still being received into");
    }
  }
  if (!OriginOf(node, event.transfer, job, num_kept).has_value()) {
    Fail(network_.Now(), "foreign bytes in a verified block of an aborted transfer");
  }
}

size_t World::NumVerified(const ReceiveJob& job, int verified_tokens) {
  const int num_verified = verified_tokens / kBlockTokens - job.begin_block;
  return static_cast<size_t>(std::clamp<int>(num_verified, 0, job.blocks.size()));
}

void World::OnReceiveEnded(Node* node, const ReceiveEnded& event) {
  auto it = node->receives.find(event.transfer);
  if (it == node->receives.end()) Fail(network_.Now(), "a receive ended twice");
  ReceiveJob job = std::move(it->second);
  node->receives.erase(it);
  Trace("request ", job.request, " attempt ", job.attempt, " receive ended on ", node->name, ": ",
        event.status.ToString(), ", verified ", event.verified_tokens);
  if (event.status.ok() != job.delivered) Fail(network_.Now(), "ended OK without delivery");
  size_t num_kept = NumVerified(job, event.verified_tokens);
  if (job.aborted_at.value_or(event.verified_tokens) != event.verified_tokens) {
    Fail(network_.Now(), "what was verified at the abort was not final");
  }
  std::optional<Origin> origin = OriginOf(node, event.transfer, job, num_kept);
  if (!origin.has_value()) {
    Fail(network_.Now(), "foreign bytes in a verified block of an aborted transfer");
  }
  CachedPrefix& cache = node->cache[job.request];
  for (size_t i = 0; i < job.blocks.size(); ++i) {
    int position = job.begin_block + static_cast<int>(i);
    if (i < num_kept && !job.delivered && static_cast<int>(cache.blocks.size()) == position) {
      cache.blocks.push_back({job.blocks[i], *origin});
    } else {
      node->pool.Free(job.blocks[i]);
    }
  }
  if (cache.blocks.empty()) node->cache.erase(job.request);
  if (!event.status.ok()) EndAttempt(job.request, job.attempt, "receive failed");
  if (options_.max_tombstones == kManyTombstones && Chance(0.1)) {
    After(RandomDelay(absl::Seconds(1)),
          [this, d = requests_[job.request].d, inc = node->incarnation, r = job.request,
           attempt = job.attempt] { ReserveAgain(d, inc, r, attempt); });
  }
}

void World::ReserveAgain(int d, Incarnation incarnation, int r, uint32_t attempt) {
  Node* node = Alive(d, incarnation);
  if (node == nullptr) return;
  std::vector<uint8_t> scratch(kBlockBytes);
  ReceiveSpec spec;
  spec.request = IdOf(r);
  spec.attempt = Attempt(attempt);
  spec.fingerprint = "model";
  spec.end_token = kBlockTokens;
  spec.block_bytes = kBlockBytes;
  spec.block_tokens = kBlockTokens;
  spec.blocks = {absl::MakeSpan(scratch)};
  if (node->agent->Reserve(spec).ok()) Fail(network_.Now(), "reserved for an attempt that is over");
}

std::optional<Origin> World::OriginOf(Node* node, TransferId transfer, const ReceiveJob& job,
                                      size_t num_blocks) {
  if (num_blocks == 0) return Origin();
  for (Incarnation sender : senders_[transfer]) {
    Origin origin{job.attempt, sender.value};
    bool all = true;
    for (size_t i = 0; i < num_blocks; ++i) {
      all &= HasContent(job.request, origin, job.begin_block + static_cast<int>(i),
                        node->pool.Data(job.blocks[i]));
    }
    if (all) return origin;
  }
  return std::nullopt;
}

}  // namespace sluice::testing
