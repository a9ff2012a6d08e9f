// The router's part of the protocol, step by step, for tests: sends the requests of a script over a
// fake router and waits for what workers answer. Test thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "services/rpc/fleet_codec.h"
#include "tests/workers/fake_router.h"

namespace sluice::testing {

// Polls: for what other threads or processes publish soon. False after a minute.
bool Eventually(const std::function<bool()>& condition);

class RouterScript {
 public:
  FakeRouter& router() { return router_; }

  // A request with everything set; greedy, `max_tokens` tokens.
  static rpc::SequenceAttempt MakeSequence(uint64_t request, int prompt_tokens, int max_tokens,
                                           uint32_t attempt = 1);

  void SendReserve(const std::string& id, const rpc::SequenceAttempt& sequence);
  void SendRun(const std::string& id, const rpc::SequenceAttempt& sequence);
  void SendPrefill(const std::string& prefill_id, const std::string& decode_id,
                   const rpc::SequenceAttempt& sequence, const v1::Grant& grant);
  void SendCancel(const std::string& id, const rpc::SequenceAttempt& sequence);

  v1::Grant WaitForGrant(const std::string& id, const rpc::SequenceAttempt& sequence);
  v1::RequestEnded WaitForEnd(const std::string& id, const rpc::SequenceAttempt& sequence);
  // Waits until token `index` of the attempt came from worker `id`.
  void WaitForToken(const std::string& id, const rpc::SequenceAttempt& sequence, int index);
  // Reserve, Prefill, and the ends of both sides.
  void RunDisaggregated(const std::string& prefill_id, const std::string& decode_id,
                        const rpc::SequenceAttempt& sequence);

  // All tokens of the attempt heard so far, by index; a token that came twice fails the test.
  std::vector<TokenId> Tokens(const rpc::SequenceAttempt& sequence) const;

 protected:
  FakeRouter router_;
};

}  // namespace sluice::testing
