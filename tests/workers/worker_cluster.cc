#include "tests/workers/worker_cluster.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/random.h"
#include "services/decode_worker/decode_handler.h"
#include "services/decode_worker/run_handler.h"
#include "services/prefill_worker/prefill_handler.h"

namespace sluice::testing {

WorkerCluster::WorkerCluster(ClusterOptions options) : options_(std::move(options)) {}

WorkerCluster::~WorkerCluster() {
  hub_.HoldReceives(false);
  hub_.HoldPolls(false);
  while (!members_.empty()) Kill(members_.begin()->first);
}

worker::Worker& WorkerCluster::Add(const std::string& id, const std::string& role) {
  SchedulerOptions scheduler;
  scheduler.max_num_batched_tokens = options_.max_num_batched_tokens;
  scheduler.max_num_seqs = 16;
  scheduler.max_model_len = options_.max_model_len;

  worker::WorkerOptions options;
  options.worker_id = id;
  options.role = role;
  options.served_model_name = "fake";
  options.dtype = "bf16";
  options.max_num_seqs = scheduler.max_num_seqs;
  options.routers.routers = {router_.address()};
  options.routers.attach.backoff_max = absl::Milliseconds(300);
  options.transfer = options_.transfer;
  options.heartbeat_limit = options_.heartbeat_limit;
  options.hang_limit = options_.hang_limit;
  options.incarnation = Incarnation(RandomUint64());
  options.on_fatal = [](const std::string&) { std::abort(); };

  worker::TransferParts parts;
  if (role != "both") {
    parts.channel = hub_.NewChannel();
    parts.agent = TransferAgent::Create(options.transfer, options.incarnation, parts.channel.get(),
                                        &RealClock());
  }
  const worker::HandlerFactory factory = role == "prefill"  ? worker::MakePrefillHandler
                                         : role == "decode" ? worker::MakeDecodeHandler
                                                            : worker::MakeRunHandler;
  FakeEngine fake = MakeFakeEngine(scheduler, options_.num_kv_blocks);
  fake.model->set_before_forward(options_.before_forward);
  Member& member = members_[id];
  member.metrics = std::make_unique<MetricsRegistry>();
  member.worker = worker::Worker::Start(std::move(options), std::move(fake.engine),
                                        std::move(parts), factory, member.metrics.get());
  EXPECT_TRUE(router_.WaitForWorker(id));
  EXPECT_TRUE(Eventually([&] { return member.worker->NotReadyReason().empty(); }));
  return *member.worker;
}

void WorkerCluster::Kill(const std::string& id) {
  Member member = std::move(members_.at(id));
  members_.erase(id);
  member.worker.reset();
}

Answer WorkerCluster::Oracle(const rpc::SequenceAttempt& sequence) const {
  SequenceInput input;
  input.tokens = sequence.tokens;
  input.num_output_tokens = sequence.num_output_tokens;
  input.sampling = sequence.sampling;
  return OracleAnswer(input, options_.max_model_len);
}

std::vector<TokenId> WorkerCluster::Ids(const Answer& answer) {
  std::vector<TokenId> ids;
  for (const SampledToken& token : answer.tokens) ids.push_back(token.token);
  return ids;
}

void WorkerCluster::ExpectAllFreed(const std::string& id) {
  const auto held = [&](const char* state) {
    return Metric(id, "sluice_kv_blocks", absl::StrCat("state=\"", state, "\""));
  };
  EXPECT_TRUE(Eventually([&] {
    return worker(id).num_requests() == 0 && held("active") == 0 && held("receiving") == 0 &&
           held("sending") == 0 && held("quarantined") == 0;
  })) << id
      << " still holds " << worker(id).num_requests() << " requests; blocks: active "
      << held("active") << ", receiving " << held("receiving") << ", sending " << held("sending")
      << ", quarantined " << held("quarantined");
  EXPECT_EQ(Metric(id, "sluice_kv_blocks"), static_cast<double>(options_.num_kv_blocks));
}

void WorkerCluster::WaitForRequests(const std::string& id, int count) {
  EXPECT_TRUE(Eventually([&] { return worker(id).num_requests() == count; }))
      << id << " has " << worker(id).num_requests() << " requests, not " << count;
}

double WorkerCluster::Metric(const std::string& id, const std::string& name,
                             const std::string& label) {
  double sum = 0;
  for (const absl::string_view line : absl::StrSplit(metrics(id).ExportText(), '\n')) {
    const bool series = absl::StartsWith(line, absl::StrCat(name, "{")) ||
                        absl::StartsWith(line, absl::StrCat(name, " "));
    if (!series || !absl::StrContains(line, label)) continue;
    double value = 0;
    const std::vector<absl::string_view> parts = absl::StrSplit(line, ' ');
    if (absl::SimpleAtod(parts.back(), &value)) sum += value;
  }
  return sum;
}

}  // namespace sluice::testing
