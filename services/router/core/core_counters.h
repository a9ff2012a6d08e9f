// What the core counted since it was made; the dispatcher copies it into metrics. Plain values.
#pragma once

#include <cstdint>

namespace sluice::router {

// Why a message of a worker was dropped.
enum class StaleReason {
  kUnknownSession,  // of a stream that is not registered (any more)
  kUnknownRequest,  // ended already
  kStaleAttempt,    // the request was planned anew
  kWrongWorker,     // not a worker of this attempt, or not in this state
  kDuplicateToken,  // an index the client has
  kNumReasons,
};
inline constexpr const char* kStaleReasonNames[] = {
    "unknown_session", "unknown_request", "stale_attempt", "wrong_worker", "duplicate_token"};

enum class MembershipEvent { kJoin, kLeave, kExpire, kIncompatible, kNumEvents };
inline constexpr const char* kMembershipEventNames[] = {"join", "leave", "expire", "incompatible"};
inline constexpr int kNumRoles = 3;  // WorkerRole

// Why a request was planned anew.
enum class RetryReason { kWorkerLost, kFailed, kPreempted, kTimeout, kNumReasons };
inline constexpr const char* kRetryReasonNames[] = {"worker_lost", "failed", "preempted",
                                                    "timeout"};

// Where a request is. The first four are where it can fail on a worker.
enum class Stage { kReserve, kPrefill, kKvTransfer, kDecode, kAdmission, kNumStages };
inline constexpr const char* kStageNames[] = {"reserve", "prefill", "kv_transfer", "decode",
                                              "admission"};

enum class RouteDecision { kDisaggregated, kColocated, kRejected, kNumDecisions };
inline constexpr const char* kRouteDecisionNames[] = {"disaggregated", "colocated", "rejected"};

struct CoreCounters {
  uint64_t stale_messages[static_cast<int>(StaleReason::kNumReasons)] = {};
  uint64_t membership_events[kNumRoles][static_cast<int>(MembershipEvent::kNumEvents)] = {};
  uint64_t retries[static_cast<int>(Stage::kNumStages)]
                  [static_cast<int>(RetryReason::kNumReasons)] = {};
  uint64_t route_decisions[static_cast<int>(RouteDecision::kNumDecisions)] = {};

  uint64_t num_routes() const {
    uint64_t sum = 0;
    for (const uint64_t count : route_decisions) sum += count;
    return sum;
  }
  void CountStale(StaleReason reason) { ++stale_messages[static_cast<int>(reason)]; }
  void CountRetry(Stage stage, RetryReason reason) {
    ++retries[static_cast<int>(stage)][static_cast<int>(reason)];
  }
  void CountRoute(RouteDecision decision) { ++route_decisions[static_cast<int>(decision)]; }
};

}  // namespace sluice::router
