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
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

template <typename Message>
bool IsOf(const Message& message, const rpc::SequenceAttempt& sequence) {
  return message.request_id() == sequence.request.ToWire() &&
         message.attempt() == sequence.attempt.value;
}

// Polls; what is waited for is published by other threads within milliseconds.
bool Eventually(const std::function<bool()>& condition) {
  for (const absl::Time end = MonotonicNow() + kPatience; MonotonicNow() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return condition();
}

}  // namespace

WorkerCluster::WorkerCluster(ClusterOptions options)
    : options_(std::move(options)), router_(std::make_unique<FakeRouter>()) {}

WorkerCluster::~WorkerCluster() {
  hub_.HoldReceives(false);
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
  options.routers.routers = {router_->address()};
  options.routers.attach.backoff_max = absl::Milliseconds(300);
  options.transfer = options_.transfer;
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
  Member& member = members_[id];
  member.metrics = std::make_unique<MetricsRegistry>();
  member.worker = worker::Worker::Start(std::move(options),
                                        MakeFakeEngine(scheduler, options_.num_kv_blocks).engine,
                                        std::move(parts), factory, member.metrics.get());
  EXPECT_TRUE(router_->WaitForWorker(id));
  EXPECT_TRUE(Eventually([&] { return member.worker->NotReadyReason().empty(); }));
  return *member.worker;
}

void WorkerCluster::Kill(const std::string& id) {
  Member member = std::move(members_.at(id));
  members_.erase(id);
  member.worker.reset();
}

rpc::SequenceAttempt WorkerCluster::MakeSequence(uint64_t request, int prompt_tokens,
                                                 int max_tokens, uint32_t attempt) {
  const SequenceKey key = MakeKey(request, attempt);
  rpc::SequenceAttempt sequence;
  sequence.request = key.request;
  sequence.attempt = key.attempt;
  sequence.tokens = MakeTokens(request, prompt_tokens);
  sequence.sampling.temperature = 0;
  sequence.sampling.max_tokens = max_tokens;
  return sequence;
}

Answer WorkerCluster::Oracle(const rpc::SequenceAttempt& sequence) const {
  SequenceInput input;
  input.tokens = sequence.tokens;
  input.num_output_tokens = sequence.num_output_tokens;
  input.sampling = sequence.sampling;
  return OracleAnswer(input, options_.max_model_len);
}

void WorkerCluster::SendReserve(const std::string& id, const rpc::SequenceAttempt& sequence) {
  v1::RouterMessage message;
  rpc::Encode(sequence, message.mutable_reserve());
  EXPECT_TRUE(router_->Send(id, message));
}

void WorkerCluster::SendRun(const std::string& id, const rpc::SequenceAttempt& sequence) {
  v1::RouterMessage message;
  rpc::Encode(sequence, message.mutable_run());
  EXPECT_TRUE(router_->Send(id, message));
}

void WorkerCluster::SendPrefill(const std::string& prefill_id, const std::string& decode_id,
                                const rpc::SequenceAttempt& sequence, const v1::Grant& grant) {
  const absl::StatusOr<rpc::GrantTerms> terms = rpc::Decode(grant);
  ASSERT_TRUE(terms.ok()) << terms.status();
  const v1::Register decode = router_->registration(decode_id);
  v1::RouterMessage message;
  rpc::Encode(
      rpc::PrefillOrder{sequence, *terms, decode.kv_address(), decode_id, decode.fingerprint()},
      message.mutable_prefill());
  EXPECT_TRUE(router_->Send(prefill_id, message));
}

void WorkerCluster::SendCancel(const std::string& id, const rpc::SequenceAttempt& sequence) {
  v1::RouterMessage message;
  rpc::Encode(rpc::CancelOrder{sequence.request, sequence.attempt, "test"},
              message.mutable_cancel());
  EXPECT_TRUE(router_->Send(id, message));
}

v1::Grant WorkerCluster::WaitForGrant(const std::string& id, const rpc::SequenceAttempt& sequence) {
  return router_
      ->WaitFor(
          "a grant",
          [&](const FakeRouter::Heard& heard) {
            return heard.worker_id == id && heard.message.has_grant() &&
                   IsOf(heard.message.grant(), sequence);
          },
          kPatience)
      .grant();
}

v1::RequestEnded WorkerCluster::WaitForEnd(const std::string& id,
                                           const rpc::SequenceAttempt& sequence) {
  return router_
      ->WaitFor(
          absl::StrCat("the end on ", id),
          [&](const FakeRouter::Heard& heard) {
            return heard.worker_id == id && heard.message.has_ended() &&
                   IsOf(heard.message.ended(), sequence);
          },
          kPatience)
      .ended();
}

void WorkerCluster::WaitForToken(const std::string& id, const rpc::SequenceAttempt& sequence,
                                 int index) {
  router_->WaitFor(
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

void WorkerCluster::RunDisaggregated(const std::string& prefill_id, const std::string& decode_id,
                                     const rpc::SequenceAttempt& sequence) {
  SendReserve(decode_id, sequence);
  SendPrefill(prefill_id, decode_id, sequence, WaitForGrant(decode_id, sequence));
  EXPECT_EQ(WaitForEnd(prefill_id, sequence).reason(), v1::RequestEnded::REASON_HANDED_OVER);
  WaitForEnd(decode_id, sequence);
}

std::vector<TokenId> WorkerCluster::Tokens(const rpc::SequenceAttempt& sequence) const {
  std::map<int, TokenId> by_index;
  for (const FakeRouter::Heard& heard : router_->heard()) {
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
