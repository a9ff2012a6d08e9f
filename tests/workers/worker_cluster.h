// A cluster in one process for tests: real workers (threads, agents, attach clients) over fake
// models and an in-memory channel, driven through a fake router. The test plays the router's part.
#pragma once

#include <functional>
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
#include "tests/workers/router_script.h"

namespace sluice::testing {

struct ClusterOptions {
  int64_t num_kv_blocks = 64;
  int max_num_batched_tokens = 128;  // two blocks: longer prompts go in chunks
  int max_model_len = 1024;
  TransferOptions transfer;
  absl::Duration heartbeat_limit = worker::WorkerOptions().heartbeat_limit;
  absl::Duration hang_limit = worker::WorkerOptions().hang_limit;
  // See FakeModel::set_before_forward; for every worker.
  std::function<void()> before_forward;
};

class WorkerCluster : public RouterScript {
 public:
  explicit WorkerCluster(ClusterOptions options = {});
  ~WorkerCluster();

  // Starts a worker and waits until it is attached and ready.
  worker::Worker& Add(const std::string& id, const std::string& role);
  // Destroys it: its router and peers see a process vanish.
  void Kill(const std::string& id);

  MemoryHub& hub() { return hub_; }
  worker::Worker& worker(const std::string& id) { return *members_.at(id).worker; }
  MetricsRegistry& metrics(const std::string& id) { return *members_.at(id).metrics; }

  // What the answer must be.
  Answer Oracle(const rpc::SequenceAttempt& sequence) const;

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
  MemoryHub hub_;
  std::map<std::string, Member> members_;
};

}  // namespace sluice::testing
