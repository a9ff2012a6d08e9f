// The workers attached to this router: who may join, who is ready, who is silent, and what this
// router has given each of them. Owned by the core, driven with its clock; no threads.
//
// Invariants:
//   1. No two members have the same worker_id.
//   2. All members have the same model and fingerprint: any prefill worker may be paired
//      with any decode worker.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/router/core/cluster_view.h"
#include "services/router/core/core_options.h"
#include "services/router/core/kv_links.h"
#include "services/router/core/messages.h"

namespace sluice::router {

class Membership {
 public:
  enum class State { kStarting, kReady, kDraining, kUnreachable };
  static constexpr size_t kMaxWorkerIdBytes = 256;  // it is a label of metrics and stands in logs

  struct Member {
    SessionId session;
    WorkerInfo info;
    WorkerLoad load;  // kv_blocks_added and kv_blocks_removed are not kept
    absl::Time last_heard;
    // What this router's requests hold there now.
    int assigned_requests = 0;
    int64_t assigned_prefill_tokens = 0;  // sent, first token not yet seen
    // Blocks of requests assigned since the last report, which does not show them yet.
    int64_t blocks_promised = 0;
  };

  explicit Membership(const CoreOptions& options)
      : options_(options), links_(options.link_suspicion) {}

  // Whether the worker may join. FAILED_PRECONDITION says what differs and from which worker;
  // RESOURCE_EXHAUSTED: too many workers. A member with the same worker_id is ignored here: the
  // newcomer replaces it.
  absl::Status Check(const WorkerInfo& info) const;
  // The member that `info` would replace.
  std::optional<SessionId> FindByWorkerId(const std::string& worker_id) const;
  // REQUIRES: Check(info).ok(), no member with info.worker_id.
  void Add(SessionId session, WorkerInfo info, absl::Time now);
  void Remove(SessionId session);

  // Null when not a member.
  const Member* Find(SessionId session) const;

  // Any message counts as a sign of life. False: not a member.
  bool Heard(SessionId session, absl::Time now);
  // REQUIRES: a member.
  void SetLoad(SessionId session, WorkerLoad load);
  void AddAssigned(SessionId session, int requests, int64_t prefill_tokens, int64_t blocks);

  State StateOf(const Member& member, absl::Time now) const;
  static const char* StateName(State state);

  // How a handoff went.
  void TransferFailed(KvLink link, absl::Time now) { links_.OnFailed(link, now); }
  void TransferArrived(KvLink link) { links_.OnArrived(link); }

  // Members that were silent for worker_timeout.
  std::vector<SessionId> Silent(absl::Time now) const;
  // When Silent or a member's state will change next if nobody speaks; InfiniteFuture without
  // members.
  absl::Time NextChange(absl::Time now) const;
  // Everybody was heard just now.
  void ForgiveSilence(absl::Time now);

  ClusterView View(absl::Time now) const;
  // MissingRole(View(now)) == "", at the price of a look at the members.
  bool HasEachRole(absl::Time now) const;
  // Smallest over ready members; 0 without any.
  int MaxModelLen(absl::Time now) const;
  const absl::btree_map<SessionId, Member>& members() const { return members_; }

 private:
  const CoreOptions& options_;
  absl::btree_map<SessionId, Member> members_;
  KvLinks links_;
};

}  // namespace sluice::router
