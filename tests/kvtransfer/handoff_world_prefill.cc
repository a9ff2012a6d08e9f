#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/kvtransfer/handoff_world.h"

namespace sluice::testing {

void World::StartPrefill(int r, uint32_t attempt, int begin_token, int p, bool stray) {
  Request& request = requests_[r];
  if (!request.active || request.attempt != attempt) return;
  Node* node = Alive(p, stray ? nodes_[p]->incarnation : request.p_incarnation);
  int num_blocks = (request.num_tokens + kBlockTokens - 1) / kBlockTokens;
  if (node == nullptr || static_cast<int>(node->pool.num_free()) < num_blocks) {
    if (!stray) EndAttempt(r, attempt, "prefill worker is busy or silent");
    return;
  }
  SendSpec spec;
  spec.transfer = request.transfer;
  spec.request = IdOf(r);
  spec.attempt = Attempt(attempt);
  spec.peer_address = request.d_address;
  spec.peer_incarnation = request.d_incarnation;
  spec.fingerprint = "model";
  spec.begin_token = begin_token;
  spec.end_token = request.num_tokens;
  spec.block_bytes = kBlockBytes;
  spec.block_tokens = kBlockTokens;
  absl::Status status = node->agent->StartSend(spec);
  if (!status.ok()) Fail(network_.Now(), absl::StrCat("StartSend: ", status.ToString()));
  Trace("request ", r, " attempt ", attempt, " computed on ", node->name, stray ? ", astray" : "");
  SendJob job{r, attempt, stray, {}};
  for (int i = 0; i < num_blocks; ++i) job.blocks.push_back(node->pool.Take());
  node->sends[spec.transfer] = std::move(job);
  senders_[spec.transfer].push_back(node->incarnation);
  if (!Chance(0.7) || !StartFetch(node, p, r, attempt, begin_token / kBlockTokens)) {
    StartComputing(node, p, spec.transfer);
  }
  if (cancels_ && Chance(0.2)) {
    After(RandomDelay(absl::Milliseconds(400)),
          [this, p, inc = node->incarnation, id = spec.transfer] {
            Node* n = Alive(p, inc);
            if (n != nullptr) n->agent->CancelSend(id, absl::CancelledError("by test"));
          });
  }
}

void World::StartComputing(Node* node, int p, TransferId id) {
  After(RandomDelay(absl::Milliseconds(200)),
        [this, p, inc = node->incarnation, id] { ComputeChunk(p, inc, id, 0); });
}

bool World::StartFetch(Node* node, int p, int r, uint32_t attempt, int cached) {
  const Request& request = requests_[r];
  FetchJob job{r, attempt, p, 0, {}, {}, false};
  const Node* d = nodes_[request.d].get();
  if (d->incarnation == request.d_incarnation && d->cache.contains(r)) {
    for (const auto& [block, by] : d->cache.at(r).blocks) job.prefix.push_back(by);
    job.prefix.resize(std::min<size_t>(job.prefix.size(), static_cast<size_t>(cached)));
  }
  const int num_blocks = (request.num_tokens + kBlockTokens - 1) / kBlockTokens;
  const bool too_far = Chance(0.05) && cached < num_blocks - 1;
  const int end_block = too_far ? Pick(cached + 1, num_blocks - 1) : cached;
  if (end_block == 0) return false;
  job.begin_block = Pick(0, end_block - 1);
  if (static_cast<int>(node->pool.num_free()) < end_block - job.begin_block) return false;
  FetchSpec spec;
  spec.into.request = IdOf(r);
  spec.into.attempt = Attempt(attempt);
  spec.into.fingerprint = "model";
  spec.into.begin_token = job.begin_block * kBlockTokens;
  spec.into.end_token = end_block * kBlockTokens;
  spec.into.block_bytes = kBlockBytes;
  spec.into.block_tokens = kBlockTokens;
  for (int i = job.begin_block; i < end_block; ++i) {
    job.blocks.push_back(node->pool.Take());
    spec.into.blocks.push_back(node->pool.Span(job.blocks.back()));
  }
  spec.grant = request.transfer;
  if (Chance(0.1)) spec.grant.bytes[0] ^= 1;
  spec.peer_address = request.d_address;
  spec.peer_incarnation = request.d_incarnation;
  absl::StatusOr<TransferId> into = node->agent->Fetch(spec);
  if (!into.ok()) {  // this worker has fetched for the attempt before, for a stale message
    for (int block : job.blocks) node->pool.Free(block);
    return false;
  }
  Trace("request ", r, " attempt ", attempt, " fetches blocks ", job.begin_block, " to ", end_block,
        " for ", node->name, too_far ? ", too far" : "");
  node->fetches[*into] = std::move(job);
  if (cancels_ && Chance(0.2)) {
    After(RandomDelay(absl::Milliseconds(50)), [this, p, inc = node->incarnation, id = *into] {
      if (Node* n = Alive(p, inc)) n->agent->CancelReceive(id, absl::CancelledError("by test"));
    });
  }
  return true;
}

void World::OnFetchRequested(Node* node, const FetchRequested& event) {
  auto it = node->receives.find(event.grant);
  if (it == node->receives.end()) Fail(network_.Now(), "asked to serve a grant that is none");
  const ReceiveJob& job = it->second;
  if (node->lends.contains(event.send.transfer)) Fail(network_.Now(), "asked to serve twice");
  Trace("request ", job.request, " attempt ", job.attempt, " prefix lent by ", node->name);
  absl::Status status = node->agent->StartSend(event.send);
  // A fetch that was served once before, and is over, does not come again.
  if (!served_.insert(event.send.transfer).second) Fail(network_.Now(), "asked to serve again");
  if (!status.ok()) Fail(network_.Now(), absl::StrCat("lending: ", status.ToString()));
  node->lends[event.send.transfer] = job.request;
  if (Chance(0.1)) {  // the engine does not want to
    node->agent->CancelSend(event.send.transfer, absl::ResourceExhaustedError("by test"));
    return;
  }
  // Whatever the agent lets pass: it has said that these blocks are there.
  std::vector<absl::Span<const uint8_t>> spans;
  for (int i = event.send.begin_token / kBlockTokens; i < event.send.end_token / kBlockTokens;
       ++i) {
    spans.push_back(node->pool.Span(i < job.begin_block
                                        ? node->cache.at(job.request).blocks.at(i).first
                                        : job.blocks.at(i - job.begin_block)));
  }
  const TransferId into = event.send.transfer;
  status = node->agent->Offer(into, event.send.begin_token, event.send.end_token, spans);
  if (!status.ok()) Fail(network_.Now(), absl::StrCat("lending: ", status.ToString()));
  status = node->agent->FinishSend(into, FirstToken());
  if (!status.ok()) Fail(network_.Now(), absl::StrCat("lending: ", status.ToString()));
}

void World::OnFetchEnded(Node* node, const ReceiveEnded& event) {
  FetchJob job = std::move(node->fetches.at(event.transfer));
  node->fetches.erase(event.transfer);
  Trace("request ", job.request, " attempt ", job.attempt, " fetch ended on ", node->name, ": ",
        event.status.ToString(), ", verified ", event.verified_tokens);
  if (event.status.ok() != job.complete) Fail(network_.Now(), "a fetch ended OK by halves");
  for (size_t i = 0; i < job.blocks.size(); ++i) {
    const int position = job.begin_block + static_cast<int>(i);
    if ((position + 1) * kBlockTokens <= event.verified_tokens) {
      if (static_cast<size_t>(position) >= job.prefix.size()) {
        Fail(network_.Now(), "fetched what the decode worker has not");
      }
      if (!HasContent(job.request, job.prefix[position], position,
                      node->pool.Data(job.blocks[i]))) {
        Fail(network_.Now(), "foreign bytes in a fetched block");
      }
    }
    node->pool.Free(job.blocks[i]);
  }
  for (const auto& [id, send] : node->sends) {
    if (send.request != job.request || send.attempt != job.attempt) continue;
    StartComputing(node, job.p, id);
    return;
  }
}

void World::ComputeChunk(int p, Incarnation incarnation, TransferId id, int begin_block) {
  Node* node = nodes_[p].get();
  if (node->incarnation != incarnation) return;
  if (node->paused) {  // the engine stands still with its process, and goes on as a zombie
    After(absl::Milliseconds(100), [=, this] { ComputeChunk(p, incarnation, id, begin_block); });
    return;
  }
  auto it = node->sends.find(id);
  if (it == node->sends.end()) return;
  SendJob& job = it->second;
  int num_tokens = requests_[job.request].num_tokens;
  int num_blocks = static_cast<int>(job.blocks.size());
  int end_block = std::min(num_blocks, begin_block + Pick(1, 4));
  std::vector<absl::Span<const uint8_t>> spans;
  for (int i = begin_block; i < end_block; ++i) {
    FillContent(job.request, Origin{job.attempt, incarnation.value}, i,
                node->pool.Data(job.blocks[i]));
    spans.push_back(node->pool.Span(job.blocks[i]));
  }
  absl::Status status =
      node->agent->Offer(id, begin_block * kBlockTokens,
                         std::min(num_tokens, end_block * kBlockTokens), std::move(spans));
  if (absl::IsNotFound(status)) return;  // over; its end is on the way
  if (!status.ok()) Fail(network_.Now(), absl::StrCat("Offer: ", status.ToString()));
  if (end_block < num_blocks) {
    After(RandomDelay(absl::Milliseconds(100)),
          [=, this] { ComputeChunk(p, incarnation, id, end_block); });
    return;
  }
  FirstToken first;
  first.token = job.request * 1000 + static_cast<int>(job.attempt);
  status = node->agent->FinishSend(id, first);
  if (!status.ok()) Fail(network_.Now(), absl::StrCat("FinishSend: ", status.ToString()));
}

void World::OnSendEnded(Node* node, const SendEnded& event) {
  auto it = node->sends.find(event.transfer);
  if (it == node->sends.end()) Fail(network_.Now(), "a send ended twice");
  SendJob job = std::move(it->second);
  node->sends.erase(it);
  Trace("request ", job.request, " attempt ", job.attempt, " send ended on ", node->name, ": ",
        event.status.ToString());
  for (int block : job.blocks) node->pool.Free(block);
  bool delivered = delivered_.contains(event.transfer);
  if (event.status.ok() && !delivered) Fail(network_.Now(), "committed and not delivered");
  if (event.status.ok() && !committed_.insert(event.transfer).second) {
    Fail(network_.Now(), "committed twice");
  }
  // Its own decode worker, with no other sender about and every closed transfer remembered, knows
  // better.
  const Request& request = requests_[job.request];
  bool may_refuse = senders_[event.transfer].size() > 1 || request.attempt != job.attempt ||
                    nodes_[request.d]->incarnation != request.d_incarnation ||
                    options_.max_tombstones != kManyTombstones;
  if (delivered && !may_refuse && absl::StrContains(event.status.message(), "refused")) {
    Fail(network_.Now(), "refused after it was delivered");
  }
  if (!event.status.ok() && !job.stray) EndAttempt(job.request, job.attempt, "send failed");
}

}  // namespace sluice::testing
