#include "tests/workers/router_script.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "tests/support/fake_engine.h"

namespace sluice::testing {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

template <typename Message>
bool IsOf(const Message& message, const rpc::SequenceAttempt& sequence) {
  return message.request_id() == sequence.request.ToWire() &&
         message.attempt() == sequence.attempt.value;
}

}  // namespace

// Polls; what is waited for is published by other threads within milliseconds.
bool Eventually(const std::function<bool()>& condition) {
  for (const absl::Time end = MonotonicNow() + kPatience; MonotonicNow() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return condition();
}

rpc::SequenceAttempt RouterScript::MakeSequence(uint64_t request, int prompt_tokens, int max_tokens,
                                                uint32_t attempt) {
  const SequenceKey key = MakeKey(request, attempt);
  rpc::SequenceAttempt sequence;
  sequence.request = key.request;
  sequence.attempt = key.attempt;
  sequence.tokens = MakeTokens(request, prompt_tokens);
  sequence.sampling.temperature = 0;
  sequence.sampling.max_tokens = max_tokens;
  return sequence;
}

void RouterScript::SendReserve(const std::string& id, const rpc::SequenceAttempt& sequence) {
  v1::RouterMessage message;
  rpc::Encode(sequence, message.mutable_reserve());
  EXPECT_TRUE(router_.Send(id, message));
}

void RouterScript::SendRun(const std::string& id, const rpc::SequenceAttempt& sequence) {
  v1::RouterMessage message;
  rpc::Encode(sequence, message.mutable_run());
  EXPECT_TRUE(router_.Send(id, message));
}

void RouterScript::SendPrefill(const std::string& prefill_id, const std::string& decode_id,
                               const rpc::SequenceAttempt& sequence, const v1::Grant& grant) {
  const absl::StatusOr<rpc::GrantTerms> terms = rpc::Decode(grant);
  ASSERT_TRUE(terms.ok()) << terms.status();
  const v1::Register decode = router_.registration(decode_id);
  v1::RouterMessage message;
  rpc::Encode(
      rpc::PrefillOrder{sequence, *terms, decode.kv_address(), decode_id, decode.fingerprint()},
      message.mutable_prefill());
  EXPECT_TRUE(router_.Send(prefill_id, message));
}

void RouterScript::SendCancel(const std::string& id, const rpc::SequenceAttempt& sequence) {
  v1::RouterMessage message;
  rpc::Encode(rpc::CancelOrder{sequence.request, sequence.attempt, "test"},
              message.mutable_cancel());
  EXPECT_TRUE(router_.Send(id, message));
}

v1::Grant RouterScript::WaitForGrant(const std::string& id, const rpc::SequenceAttempt& sequence) {
  return router_
      .WaitFor(
          "a grant",
          [&](const FakeRouter::Heard& heard) {
            return heard.worker_id == id && heard.message.has_grant() &&
                   IsOf(heard.message.grant(), sequence);
          },
          kPatience)
      .grant();
}

v1::RequestEnded RouterScript::WaitForEnd(const std::string& id,
                                          const rpc::SequenceAttempt& sequence) {
  return router_
      .WaitFor(
          absl::StrCat("the end on ", id),
          [&](const FakeRouter::Heard& heard) {
            return heard.worker_id == id && heard.message.has_ended() &&
                   IsOf(heard.message.ended(), sequence);
          },
          kPatience)
      .ended();
}

void RouterScript::WaitForToken(const std::string& id, const rpc::SequenceAttempt& sequence,
                                int index) {
  router_.WaitFor(
      absl::StrCat("token ", index),
      [&](const FakeRouter::Heard& heard) {
        if (heard.worker_id != id) return false;
        for (const v1::OutputToken& token : heard.message.tokens().tokens()) {
          if (IsOf(token, sequence) && token.index() == index) return true;
        }
        return false;
      },
      kPatience);
}

void RouterScript::RunDisaggregated(const std::string& prefill_id, const std::string& decode_id,
                                    const rpc::SequenceAttempt& sequence) {
  SendReserve(decode_id, sequence);
  SendPrefill(prefill_id, decode_id, sequence, WaitForGrant(decode_id, sequence));
  const v1::RequestEnded ended = WaitForEnd(prefill_id, sequence);
  EXPECT_EQ(ended.reason(), v1::RequestEnded::REASON_HANDED_OVER) << ended.ShortDebugString();
  WaitForEnd(decode_id, sequence);
}

std::vector<TokenId> RouterScript::Tokens(const rpc::SequenceAttempt& sequence) const {
  std::map<int, TokenId> by_index;
  for (const FakeRouter::Heard& heard : router_.heard()) {
    for (const v1::OutputToken& token : heard.message.tokens().tokens()) {
      if (!IsOf(token, sequence)) continue;
      EXPECT_TRUE(by_index.emplace(token.index(), token.token_id()).second)
          << "token " << token.index() << " came twice";
    }
  }
  std::vector<TokenId> tokens;
  int expected = sequence.num_output_tokens;
  for (const auto& [index, token] : by_index) {
    EXPECT_EQ(index, expected++) << "a token is missing";
    tokens.push_back(token);
  }
  return tokens;
}

}  // namespace sluice::testing
