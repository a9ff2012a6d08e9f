// A worker without a model: it speaks fleet.proto to a real router over gRPC as prefill, decode or
// both, and its next token is a pure function of the prompt, so any test can tell what the answer
// must be, however often the request was planned anew. KV is handed over in process, by
// FakeKvFabric.
//
// It can misbehave on request: answer Busy, preempt, fail, die without a word, go silent, stop
// reading. Thread-safe; each worker has two threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "services/router/core/messages.h"

namespace sluice::testing {

// The answer's token at `index`: a hash of prompt and index in [lowest, lowest + 200).
TokenId FakeAnswerToken(absl::Span<const TokenId> prompt, int index);
// The whole answer: `max_tokens` tokens, or up to and with the first stop token.
std::vector<TokenId> FakeAnswer(absl::Span<const TokenId> prompt, int max_tokens,
                                absl::Span<const TokenId> stop_token_ids = {});

// Stands in for the KV transfer between the fake workers of one process. Must outlive them.
class FakeKvFabric;
std::shared_ptr<FakeKvFabric> MakeFakeKvFabric();

struct FakeWorkerOptions {
  std::string router_address;  // host:port of the fleet server
  std::string worker_id;
  router::WorkerRole role = router::WorkerRole::kBoth;
  std::shared_ptr<FakeKvFabric> fabric;  // required for prefill and decode

  uint64_t incarnation = 0;  // 0: random
  std::string model = "fake-model";
  std::string admin_address;  // as it is announced
  std::string fingerprint = "fake-fingerprint";
  std::string fingerprint_text = "model=fake dtype=none";
  int max_model_len = 4096;
  int max_num_seqs = 64;
  int64_t num_kv_blocks = 4096;
  absl::Duration report_interval = absl::Milliseconds(100);

  absl::Duration prefill_time = absl::Milliseconds(1);  // of a whole prompt
  absl::Duration decode_step = absl::Milliseconds(1);   // per token
  int busy_answers = 0;                                 // the first so many Reserves
  // Preempts each sequence once, after it has sent this many tokens in its first attempt; 0: never.
  int preempt_after_tokens = 0;
  // The answer's token at an index; null: FakeAnswerToken.
  std::function<TokenId(absl::Span<const TokenId> prompt, int index)> next_token;
};

class FakeFleetWorker {
 public:
  static std::unique_ptr<FakeFleetWorker> Start(FakeWorkerOptions options);
  virtual ~FakeFleetWorker() = default;  // leaves in order

  // True when the router welcomed it within `timeout`.
  virtual bool WaitForWelcome(absl::Duration timeout) = 0;
  // The router's reason for refusing it; "" so far.
  virtual std::string refusal() const = 0;
  // The stream has ended.
  virtual bool WaitForEnd(absl::Duration timeout) = 0;

  // Breaks the stream, as SIGKILL would: nothing is said, everything is forgotten.
  virtual void Kill() = 0;
  // Says nothing any more, or speaks again; what it had to say is said late.
  virtual void SetSilent(bool silent) = 0;
  // Does not take further messages from its stream.
  virtual void StopReading() = 0;
  virtual void SetDraining() = 0;

  // Reservations and sequences it holds.
  virtual int num_sequences() const = 0;
  virtual int num_cancels() const = 0;
  // Attempts that arrived with other tokens than its own answer would have.
  virtual int num_wrong_resumes() const = 0;
};

}  // namespace sluice::testing
