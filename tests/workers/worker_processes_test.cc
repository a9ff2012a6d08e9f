// The real programs with the real engine, the embedded model and UCX, as processes on this machine;
// the test is their router. Answers are held against the golden ones and against a worker of role
// both.

#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "tests/workers/router_script.h"
#include "tests/workers/worker_process.h"

namespace sluice::testing {
namespace {

using v1::RequestEnded;

const char kModel[] = SLUICE_SOURCE_DIR "/models/deepseek-tiny";
// For tests that kill workers and wait for the others to notice.
const std::vector<std::string> kAlert = {"--transfer.peer-timeout", "2s", "--transfer.lease", "5s"};
const char kGolden[] = SLUICE_SOURCE_DIR "/tests/golden/data/deepseek-tiny.json";

class WorkerProcesses : public ::testing::Test, public RouterScript {
 protected:
  std::unique_ptr<WorkerProcess> StartWorker(const std::string& id, const std::string& role,
                                             std::vector<std::string> more = {}) {
    // Patient with peers, since the machine that runs the tests may be busy with others.
    std::vector<std::string> arguments = {kModel,
                                          "--routers",
                                          router_.address(),
                                          "--worker-id",
                                          id,
                                          "--dtype",
                                          "f32",
                                          "--threads",
                                          "1",
                                          "--num-kv-blocks",
                                          "128",
                                          "--log-level",
                                          "warning",
                                          "--transfer.peer-timeout",
                                          "10s",
                                          "--transfer.lease",
                                          "20s"};
    if (role != "prefill") arguments.insert(arguments.end(), {"--role", role});
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto process = std::make_unique<WorkerProcess>(
        role == "prefill" ? SLUICE_PREFILL_WORKER : SLUICE_DECODE_WORKER, arguments);
    EXPECT_TRUE(router_.WaitForWorker(id, absl::Seconds(60)));
    return process;
  }

  // A long prompt of ordinary tokens, several chunks and blocks.
  static rpc::SequenceAttempt LongSequence(uint64_t request, int prompt_tokens, int max_tokens,
                                           uint32_t attempt = 1) {
    rpc::SequenceAttempt sequence = MakeSequence(request, prompt_tokens, max_tokens, attempt);
    for (TokenId& token : sequence.tokens) token = token * 37 + 5;
    return sequence;
  }

  // A long prompt takes many steps, so there is time to kill somebody.
  static std::vector<std::string> SmallChunks() {
    std::vector<std::string> arguments = kAlert;
    arguments.insert(arguments.end(), {"--scheduler.max-num-batched-tokens", "64"});
    return arguments;
  }

  // Blocks by the worker's latest load report; cached ones do not count as held.
  int64_t Held(const std::string& id) {
    const v1::KvBlockCounts blocks = router_.last_load(id).kv_blocks();
    return blocks.total() - blocks.free() - blocks.cached();
  }
  void ExpectAllFreed(const std::string& id) {
    EXPECT_TRUE(Eventually([&] {
      return router_.last_load(id).kv_blocks().total() == 128 && Held(id) == 0;
    })) << id
        << ": " << router_.last_load(id).kv_blocks().ShortDebugString();
  }
};

TEST_F(WorkerProcesses, HandoffOverUcxGivesTheGoldenAnswers) {
  const auto prefill = StartWorker("p", "prefill");
  const auto decode = StartWorker("d", "decode");
  std::ifstream file(kGolden);
  const nlohmann::json golden = nlohmann::json::parse(file);
  uint64_t request = 0;
  for (const auto& prompt : golden["prompts"]) {
    rpc::SequenceAttempt sequence = MakeSequence(++request, 1, 1);
    sequence.tokens = prompt["ids"].get<std::vector<TokenId>>();
    const auto expected = prompt["greedy"].get<std::vector<TokenId>>();
    sequence.sampling.max_tokens = static_cast<int>(expected.size());
    RunDisaggregated("p", "d", sequence);
    EXPECT_EQ(Tokens(sequence), expected) << prompt["name"];
  }
  ASSERT_GT(request, 0U);
  ExpectAllFreed("p");
  ExpectAllFreed("d");
  // What UCX chose is known to both ends.
  EXPECT_TRUE(Eventually([&] {
    return router_.last_load("p").transports_size() > 0 &&
           router_.last_load("d").transports_size() > 0;
  }));
  const v1::LoadReport load = router_.last_load("d");
  for (const auto& transport : load.transports()) {
    EXPECT_TRUE(transport.transport() == "shm" || transport.transport() == "tcp")
        << transport.ShortDebugString();
    EXPECT_EQ(transport.peer(), "p");
  }
}

TEST_F(WorkerProcesses, LongPromptsAndSamplingEqualTheColocatedWorker) {
  const auto prefill = StartWorker("p", "prefill", {"--scheduler.max-num-batched-tokens", "128"});
  const auto decode = StartWorker("d", "decode");
  const auto both = StartWorker("b", "both", {"--scheduler.max-num-batched-tokens", "300"});
  for (const int prompt_tokens : {64, 450, 1000}) {
    const auto request = static_cast<uint64_t>(prompt_tokens);
    rpc::SequenceAttempt apart = LongSequence(request, prompt_tokens, 24, /*attempt=*/1);
    apart.sampling.temperature = 0.8F;
    apart.sampling.top_p = 0.95F;
    apart.sampling.seed = 1234;
    rpc::SequenceAttempt together = apart;
    together.attempt = Attempt(2);
    RunDisaggregated("p", "d", apart);
    SendRun("b", together);
    WaitForEnd("b", together);
    EXPECT_EQ(Tokens(apart), Tokens(together)) << prompt_tokens << " prompt tokens";
    EXPECT_EQ(Tokens(apart).size(), 24U);
  }
}

TEST_F(WorkerProcesses, SigtermDrainsAndExitsCleanly) {
  const auto prefill = StartWorker("p", "prefill");
  const auto decode = StartWorker("d", "decode");
  const rpc::SequenceAttempt sequence = LongSequence(1, 200, 200);
  SendReserve("d", sequence);
  SendPrefill("p", "d", sequence, WaitForGrant("d", sequence));
  WaitForToken("d", sequence, 1);
  prefill->Signal(SIGTERM);
  decode->Signal(SIGTERM);
  EXPECT_EQ(prefill->Wait(absl::Seconds(20)), 0);
  EXPECT_EQ(decode->Wait(absl::Seconds(20)), 0);
  EXPECT_EQ(WaitForEnd("d", sequence).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_EQ(Tokens(sequence).size(), 200U);
}

TEST_F(WorkerProcesses, APortFileThatCannotBeWrittenEndsTheProgram) {
  WorkerProcess worker(SLUICE_DECODE_WORKER,
                       {kModel, "--routers", router_.address(), "--dtype", "f32", "--threads", "1",
                        "--num-kv-blocks", "128", "--port-file", "/nonexistent/ports.json"});
  EXPECT_EQ(worker.Wait(absl::Seconds(60)), 1);
}

TEST_F(WorkerProcesses, SecondSignalEndsTheProcessAtOnce) {
  const auto decode = StartWorker("d", "decode");
  const rpc::SequenceAttempt sequence = LongSequence(1, 200, 20);
  SendReserve("d", sequence);
  WaitForGrant("d", sequence);  // something to wait for
  decode->Signal(SIGTERM);
  EXPECT_EQ(decode->Wait(absl::Seconds(1)), -1);
  decode->Signal(SIGINT);
  EXPECT_EQ(decode->Wait(absl::Seconds(10)), 128 + SIGINT);
}

TEST_F(WorkerProcesses, KilledPrefillWorkerLeavesNothingBehind) {
  auto prefill = StartWorker("p", "prefill", SmallChunks());
  const auto decode = StartWorker("d", "decode", kAlert);
  const rpc::SequenceAttempt sequence = LongSequence(1, 1600, 20);
  SendReserve("d", sequence);
  SendPrefill("p", "d", sequence, WaitForGrant("d", sequence));
  EXPECT_TRUE(Eventually([&] { return router_.last_load("p").kv_blocks().active() > 0; }));
  const absl::Time killed = MonotonicNow();
  prefill->Signal(SIGKILL);
  const RequestEnded ended = WaitForEnd("d", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.stage(), "kv_transfer");
  EXPECT_LT(MonotonicNow() - killed, absl::Seconds(8));
  ExpectAllFreed("d");
  // Another one takes over, from what was verified.
  prefill.reset();
  const auto second = StartWorker("p2", "prefill");
  rpc::SequenceAttempt again = sequence;
  again.attempt = Attempt(2);
  RunDisaggregated("p2", "d", again);
  EXPECT_EQ(Tokens(again).size(), 20U);
}

TEST_F(WorkerProcesses, KilledDecodeWorkerFreesThePrefillWorker) {
  const auto prefill = StartWorker("p", "prefill", SmallChunks());
  const auto decode = StartWorker("d", "decode", kAlert);
  const rpc::SequenceAttempt sequence = LongSequence(1, 1600, 20);
  SendReserve("d", sequence);
  SendPrefill("p", "d", sequence, WaitForGrant("d", sequence));
  EXPECT_TRUE(Eventually([&] { return router_.last_load("p").kv_blocks().active() > 0; }));
  decode->Signal(SIGKILL);
  const RequestEnded ended = WaitForEnd("p", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.stage(), "kv_transfer");
  ExpectAllFreed("p");
}

}  // namespace
}  // namespace sluice::testing
