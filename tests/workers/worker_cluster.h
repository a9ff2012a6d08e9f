// A cluster in one process for tests: real workers (threads, agents, attach clients) over fake
// models and an in-memory channel, driven through a fake router. The test plays the router's part.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "metrics/metrics.h"
#include "services/rpc/fleet_codec.h"
#include "services/worker_runtime/worker.h"
#include "tests/support/fake_engine.h"
#include "tests/support/memory_channel.h"
#include "tests/workers/fake_router.h"

namespace sluice::testing {

struct ClusterOptions {
  int64_t num_kv_blocks = 64;
  int max_num_batched_tokens = 128;  // two blocks: longer prompts go in chunks
  int max_model_len = 1024;
  TransferOptions transfer;
};

class WorkerCluster {
 public:
  explicit WorkerCluster(ClusterOptions options = {});
  ~WorkerCluster();

  // Starts a worker and waits until it is attached to `router` (router() by default).
  worker::Worker& Add(const std::string& id, const std::string& role);
  // Destroys it: its router and peers see a process vanish.
  void Kill(const std::string& id);

  FakeRouter& router() { return *router_; }
  MemoryHub& hub() { return hub_; }
  worker::Worker& worker(const std::string& id) { return *members_.at(id).worker; }
  MetricsRegistry& metrics(const std::string& id) { return *members_.at(id).metrics; }

  // A request with everything set; greedy, `max_tokens` tokens.
  static rpc::SequenceAttempt MakeSequence(uint64_t request, int prompt_tokens, int max_tokens,
                                           uint32_t attempt = 1);
  // What the answer must be.
  Answer Oracle(const rpc::SequenceAttempt& sequence) const;

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
  static std::vector<TokenId> Ids(const Answer& answer);

  // Waits until the worker holds no request and no block but cached ones.
  void ExpectAllFreed(const std::string& id);
  // Waits until `count` requests live on the worker.
  void WaitForRequests(const std::string& id, int count);
  // Sum of the series of `name` whose labels contain `label` ("" for all).
  double Metric(const std::string& id, const std::string& name, const std::string& label = "");

 private:
  struct Member {
    std::unique_ptr<MetricsRegistry> metrics;
    std::unique_ptr<worker::Worker> worker;
  };

  const ClusterOptions options_;
  std::unique_ptr<FakeRouter> router_;
  MemoryHub hub_;
  std::map<std::string, Member> members_;
};

}  // namespace sluice::testing
