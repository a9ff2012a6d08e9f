// Two workers of each role, and requests that have got to some stage with them.
#pragma once

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/router_core/core_harness.h"

namespace sluice::router {

inline CoreOptions NoRecovery() {
  CoreOptions options;
  options.recovery = false;
  return options;
}

class RecoveryTest : public ::testing::Test {
 protected:
  explicit RecoveryTest(CoreOptions options = {}) : h_(std::move(options)) {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    p2_ = h_.Join("p2", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    d2_ = h_.Join("d2", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Grants what was reserved and takes the Prefill that follows.
  AttemptKey Grant() {
    const SendReserve reserve = h_.Take<SendReserve>().at(0);
    granted_by_ = reserve.to;
    h_.PlayGrant(reserve.to, reserve.sequence.key);
    return reserve.sequence.key;
  }
  RequestId SubmitAndDecode(int num_tokens) {
    const RequestId id = h_.Submit(10, 100);
    const AttemptKey key = Grant();
    h_.Take<SendPrefill>();
    h_.PlayToken(p_, key, 0, 100);
    if (num_tokens == 1) return id;
    h_.PlayKv(d_, key);
    h_.PlayEnd(p_, key, AttemptEndReason::kHandedOver);
    for (int i = 1; i < num_tokens; ++i) h_.PlayToken(d_, key, i, 100 + i);
    return id;
  }
  std::string Message(RequestId id) { return std::string(h_.Result(id).status.message()); }
  uint64_t Retries(Stage stage, RetryReason reason) {
    return h_.core.counters().retries[static_cast<int>(stage)][static_cast<int>(reason)];
  }

  CoreHarness h_;
  SessionId p_, p2_, d_, d2_;
  SessionId granted_by_;
};

class NoRecoveryTest : public RecoveryTest {
 protected:
  NoRecoveryTest() : RecoveryTest(NoRecovery()) {}
};

}  // namespace sluice::router
