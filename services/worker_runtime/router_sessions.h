// This worker's sessions with all routers: registers with each, turns their messages into commands
// for the engine thread, and carries the roles' answers back. Thread-safe; nothing blocks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/monotonic_cond_var.h"
#include "services/rpc/attach_client.h"
#include "services/worker_runtime/engine_loop.h"
#include "services/worker_runtime/load_board.h"
#include "services/worker_runtime/router_link.h"
#include "services/worker_runtime/router_names.h"
#include "services/worker_runtime/worker_metrics.h"

namespace sluice::worker {

// What Register says about this worker.
struct WorkerIdentity {
  std::string worker_id;
  Incarnation incarnation;
  std::string role;  // prefill, decode, both
  std::string model;
  KvFingerprint fingerprint;
  int max_model_len = 0;
  int max_num_seqs = 0;
  int64_t num_kv_blocks = 0;
  std::string kv_address;
  std::string isa;
  std::string dtype;
  std::string admin_address;
  int64_t vocab_size = 0;
};

struct RouterSessionsOptions {
  // host:port, or dns:host:port to attach to every address the name has (a headless service).
  std::vector<std::string> routers;
  absl::Duration resolve_interval = absl::Seconds(5);
  Resolver resolver;          // null: the system's
  rpc::AttachOptions attach;  // router_address is filled in per router
};

class RouterSessions final : public RouterLink {
 public:
  // `loop`, `board`, `metrics` and `clock` outlive this. `healthy` says whether the worker's
  // threads move; it is called on the sessions' threads.
  RouterSessions(RouterSessionsOptions options, WorkerIdentity identity, LoadBoard* board,
                 WorkerMetrics* metrics, const Clock* clock, std::function<bool()> healthy);
  ~RouterSessions() override;  // stops

  // Dials. Commands go to `loop` from then on.
  void Start(EngineLoop* loop);
  // Sends what is queued, closes every stream and joins. Idempotent. A lookup under way is waited
  // for, at the very end.
  void Stop();
  void ReportLoadNow();
  int num_attached() const;
  // "" with at least one session; else says so, and which routers' names do not resolve.
  std::string NotAttachedReason() const;

  void SendGrant(rpc::SessionId session, const rpc::GrantTerms& grant) override;
  void SendBusy(rpc::SessionId session, const rpc::BusyAnswer& busy) override;
  void SendTokens(rpc::SessionId session,
                  const std::vector<rpc::OutputTokenEvent>& tokens) override;
  void SendKvReady(rpc::SessionId session, const rpc::KvReadyEvent& event) override;
  void SendEnded(rpc::SessionId session, const rpc::RequestEndedEvent& event) override;
  void SendPreempted(rpc::SessionId session, const SequenceKey& key) override;

 private:
  class Dialer;  // one address: an AttachClient and its callbacks

  // From the dialers, on their threads.
  v1::WorkerMessage MakeRegistration() const;
  v1::WorkerMessage MakeLoadReport(rpc::SessionId session);
  void Open(rpc::SessionId session, Dialer* dialer);
  void Close(rpc::SessionId session);
  void Dispatch(rpc::SessionId session, const v1::RouterMessage& message);

  void Send(rpc::SessionId session, v1::WorkerMessage message);
  void Post(rpc::SessionId session, RouterCommand command);
  // Dials new addresses and, once every name resolves, gives up dialling those that are gone.
  // Attached ones stay: their stream says when they end.
  void UpdateDialers();
  // Of one name, on a thread of its own: a lookup may take half a minute in an outage, and the
  // other names' routers shall not wait for it.
  void ResolveLoop(const std::string& name);

  // Constant after construction (loop_ after Start).
  const RouterSessionsOptions options_;
  const WorkerIdentity identity_;
  LoadBoard* const board_;
  WorkerMetrics* const metrics_;
  const Clock* const clock_;
  const std::function<bool()> healthy_;
  EngineLoop* loop_ = nullptr;

  // Order: mu_ before a client's own lock.
  mutable absl::Mutex mu_;
  absl::btree_map<std::string, std::unique_ptr<Dialer>> dialers_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<rpc::SessionId, Dialer*> sessions_ ABSL_GUARDED_BY(mu_);  // welcomed
  // What the last lookup of each name found.
  absl::btree_map<std::string, absl::StatusOr<std::vector<std::string>>> found_
      ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  MonotonicCondVar stop_;

  RouterNames names_;
  std::vector<std::thread> resolvers_;  // one a name
};

}  // namespace sluice::worker
