#include "services/worker_runtime/load_board.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "services/rpc/fleet_codec.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::worker {
namespace {

// 16 bytes each, every 200 ms: a large cache reaches a new router within seconds, without a burst.
constexpr size_t kMaxHashesPerReport = 8192;

// After this much computing, half of what the meter knows is new.
constexpr double kRateHalfLifeSeconds = 5;

// `v1::LoadReport`'s repeated bytes field.
template <typename Field>
void MoveHashes(absl::flat_hash_set<BlockHash>* hashes, Field* field) {
  for (auto it = hashes->begin();
       it != hashes->end() && field->size() < static_cast<int>(kMaxHashesPerReport);) {
    field->Add(std::string(it->ToWire()));
    hashes->erase(it++);
  }
}

void AddTransport(const PeerTransport& peer, const char* direction, uint64_t bytes,
                  absl::Duration busy, v1::LoadReport* report) {
  if (bytes == 0) return;
  v1::TransportStatus* status = report->add_transports();
  status->set_peer(peer.peer);
  status->set_direction(direction);
  status->set_transport(peer.transport);
  status->set_bytes(bytes);
  if (busy > absl::ZeroDuration()) {
    status->set_bytes_per_second(static_cast<double>(bytes) / absl::ToDoubleSeconds(busy));
  }
}

bool IsSameWay(const PeerTransport& a, const PeerTransport& b) {
  return a.peer == b.peer && a.transport == b.transport;
}

// One for each peer and transport, whatever the number of endpoints: a peer that was restarted has
// another one.
std::vector<PeerTransport> MergeEndpoints(std::vector<PeerTransport> endpoints) {
  std::vector<PeerTransport> merged;
  for (PeerTransport& endpoint : endpoints) {
    const auto same =
        std::find_if(merged.begin(), merged.end(),
                     [&endpoint](const PeerTransport& m) { return IsSameWay(m, endpoint); });
    if (same == merged.end()) {
      merged.push_back(std::move(endpoint));
      continue;
    }
    same->bytes_sent += endpoint.bytes_sent;
    same->bytes_received += endpoint.bytes_received;
    same->busy_sending += endpoint.busy_sending;
    same->busy_receiving += endpoint.busy_receiving;
  }
  return merged;
}

}  // namespace

void RateMeter::Add(double tokens, absl::Duration busy) {
  const double seconds = absl::ToDoubleSeconds(busy);
  if (tokens < 0 || seconds <= 0) return;
  const double keep = std::exp2(-seconds / kRateHalfLifeSeconds);
  tokens_ = tokens_ * keep + tokens;
  seconds_ = seconds_ * keep + seconds;
}

void LoadBoard::PublishEngine(const EngineState& state, const PrefixCacheChanges& changes) {
  absl::MutexLock lock(&mu_);
  engine_ = state;
  // Changes are net: a block that was added and evicted since is in `removed` only, or in neither.
  for (const BlockHash& hash : changes.added) {
    cached_.insert(hash);
    for (auto& [session, pending] : sessions_) {
      if (pending.removed.erase(hash) == 0) pending.added.insert(hash);
    }
  }
  for (const BlockHash& hash : changes.removed) {
    cached_.erase(hash);
    for (auto& [session, pending] : sessions_) {
      if (pending.added.erase(hash) == 0) pending.removed.insert(hash);
    }
  }
}

void LoadBoard::PublishBlocks(BlockReport report) {
  absl::MutexLock lock(&mu_);
  blocks_ = std::move(report);
}

BlockReport LoadBoard::blocks() const {
  absl::MutexLock lock(&mu_);
  return blocks_;
}

void LoadBoard::PublishTransports(std::vector<PeerTransport> endpoints) {
  std::vector<PeerTransport> transports = MergeEndpoints(std::move(endpoints));
  absl::MutexLock lock(&mu_);
  transports_ = std::move(transports);
}

void LoadBoard::SetDraining() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
}

void LoadBoard::OpenSession(rpc::SessionId session) {
  absl::MutexLock lock(&mu_);
  sessions_[session].added = cached_;
}

void LoadBoard::CloseSession(rpc::SessionId session) {
  absl::MutexLock lock(&mu_);
  sessions_.erase(session);
}

void LoadBoard::FillReport(rpc::SessionId session, bool ready, absl::Time now,
                           v1::LoadReport* report) {
  absl::MutexLock lock(&mu_);
  const EngineLoad& load = engine_.load;
  report->set_running_requests(load.running);
  report->set_waiting_requests(load.waiting);
  report->set_queued_prefill_tokens(load.queued_prefill_tokens);
  v1::KvBlockCounts* blocks = report->mutable_kv_blocks();
  blocks->set_total(load.blocks.total);
  blocks->set_free(load.blocks.free);
  blocks->set_cached(load.blocks.cached);
  blocks->set_active(load.blocks.active);
  blocks->set_receiving(load.blocks.receiving);
  blocks->set_sending(load.blocks.sending);
  blocks->set_quarantined(load.blocks.quarantined);
  report->set_prefill_tokens_per_second(engine_.prefill_tokens_per_second);
  report->set_decode_tokens_per_second(engine_.decode_tokens_per_second);
  report->set_draining(draining_);
  report->set_ready(ready && !draining_);
  for (const PeerTransport& peer : transports_) {
    AddTransport(peer, "send", peer.bytes_sent, peer.busy_sending, report);
    AddTransport(peer, "recv", peer.bytes_received, peer.busy_receiving, report);
  }
  rpc::Encode(now - started_, report->mutable_uptime());
  if (auto pending = sessions_.find(session); pending != sessions_.end()) {
    MoveHashes(&pending->second.added, report->mutable_kv_blocks_added());
    MoveHashes(&pending->second.removed, report->mutable_kv_blocks_removed());
  }
}

LoadBoard::EngineState LoadBoard::engine() const {
  absl::MutexLock lock(&mu_);
  return engine_;
}

bool LoadBoard::draining() const {
  absl::MutexLock lock(&mu_);
  return draining_;
}

}  // namespace sluice::worker
