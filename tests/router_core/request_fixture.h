// A router core with a worker of each role, and requests that have got as far as Prefill.
#pragma once

#include <gtest/gtest.h>

#include "tests/router_core/core_harness.h"

namespace sluice::router {

class RequestTest : public ::testing::Test {
 protected:
  void JoinPair() {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Up to and with Prefill.
  AttemptKey StartPrefill(RequestId id) {
    const AttemptKey key = h_.Take<SendReserve>().at(0).sequence.key;
    EXPECT_EQ(key.request, id);
    h_.PlayGrant(d_, key);
    EXPECT_EQ(h_.Take<SendPrefill>().at(0).sequence.key, key);
    return key;
  }
  void ExpectNothingLeft() {
    EXPECT_EQ(h_.core.num_running(), 0);
    EXPECT_EQ(h_.core.num_queued(), 0);
    for (const auto& [session, member] : h_.core.membership().members()) {
      EXPECT_EQ(member.assigned_requests, 0) << member.info.worker_id;
      EXPECT_EQ(member.assigned_prefill_tokens, 0) << member.info.worker_id;
    }
    for (const auto& [id, ends] : h_.ends) EXPECT_EQ(ends.size(), 1u);
  }

  CoreHarness h_;
  SessionId p_, d_;
};

}  // namespace sluice::router
