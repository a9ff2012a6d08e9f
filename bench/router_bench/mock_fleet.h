// Workers of role `both` that speak the fleet protocol over the production client and compute
// nothing: an answer is max_tokens times one token, at once or one token a step. The tokens of all
// sequences of a worker go out in one TokenBatch, as an engine's step sends them, and the workers'
// steps are spread evenly over the interval. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/router_bench/token_ledger.h"
#include "common/ids.h"

namespace sluice::bench {

struct MockFleetOptions {
  std::string router_address;  // host:port of the fleet server
  std::string model;           // served name
  int64_t vocab_size = 0;
  TokenId answer_token = 0;
  int num_workers = 4;
  int max_num_seqs = 1024;       // of each worker
  absl::Duration step_interval;  // zero: whole answers at once
  absl::Duration attach_timeout = absl::Seconds(10);
};

class MockFleet {
 public:
  // Returns when every worker is attached. `ledger` must outlive the fleet.
  static absl::StatusOr<std::unique_ptr<MockFleet>> Start(const MockFleetOptions& options,
                                                          TokenLedger* ledger);
  virtual ~MockFleet() = default;  // leaves the router

  // While held, a sequence stops after its first token.
  virtual void SetHeld(bool held) = 0;
  // Sequences that have not ended.
  virtual int num_sequences() const = 0;
};

}  // namespace sluice::bench
