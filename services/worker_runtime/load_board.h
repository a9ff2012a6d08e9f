// What a worker tells routers about its load: written by the engine thread and the transfer thread,
// read by each router session for its LoadReport. Thread-safe; nothing here blocks for long.
//
// Prefix-cache changes are kept per session, since each router has heard a different part: a new
// session is first told everything, in bounded pieces.
#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "kvtransfer/channel/kv_channel.h"
#include "services/rpc/attach_client.h"
#include "services/worker_runtime/block_report.h"

namespace sluice::v1 {
class LoadReport;
}

namespace sluice::worker {

// Tokens per second of work, over the last seconds of it. Work that brought nothing counts too.
class RateMeter {
 public:
  void Add(double tokens, absl::Duration busy);
  double TokensPerSecond() const { return seconds_ > 0 ? tokens_ / seconds_ : 0; }

 private:
  double tokens_ = 0;
  double seconds_ = 0;
};

// How far the engine thread has got in ending; what was queued before has been applied.
enum class EndingStage { kNone, kDraining, kAborted };

class LoadBoard {
 public:
  // `now` is the start of the uptime.
  explicit LoadBoard(absl::Time now) : started_(now) {}

  struct EngineState {
    EngineLoad load;
    double prefill_tokens_per_second = 0;
    double decode_tokens_per_second = 0;
    int num_requests = 0;
    EndingStage ending = EndingStage::kNone;
  };
  void PublishEngine(const EngineState& state, const PrefixCacheChanges& changes);
  void PublishBlocks(BlockReport report);
  void PublishTransports(std::vector<PeerTransport> endpoints);
  void SetDraining();

  void OpenSession(rpc::SessionId session);
  void CloseSession(rpc::SessionId session);

  // Takes the session's next piece of cache changes; everything else is the latest.
  void FillReport(rpc::SessionId session, bool ready, absl::Time now, v1::LoadReport* report);

  EngineState engine() const;
  BlockReport blocks() const;
  bool draining() const;

 private:
  struct SessionChanges {
    absl::flat_hash_set<BlockHash> added;
    absl::flat_hash_set<BlockHash> removed;
  };

  const absl::Time started_;

  mutable absl::Mutex mu_;
  EngineState engine_ ABSL_GUARDED_BY(mu_);
  BlockReport blocks_ ABSL_GUARDED_BY(mu_);
  std::vector<PeerTransport> transports_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  absl::flat_hash_set<BlockHash> cached_ ABSL_GUARDED_BY(mu_);  // bounded by the pool
  absl::flat_hash_map<rpc::SessionId, SessionChanges> sessions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::worker
