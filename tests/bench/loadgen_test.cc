// The load generator: repeatable workloads, really shared prefixes, honest figures.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <string>

#include "bench/loadgen/plot.h"
#include "bench/loadgen/runner.h"
#include "bench/loadgen/scenario.h"
#include "bench/loadgen/summary.h"
#include "bench/loadgen/workload.h"
#include "common/clock.h"

namespace sluice::loadgen {
namespace {

std::string WriteTrace(const std::string& content) {
  const std::string path = testing::TempDir() + "/loadgen_trace.jsonl";
  std::ofstream(path) << content;
  return path;
}

TEST(RandomWorkload, RepeatsWithItsSeedAndDiffersWithAnother) {
  RandomWorkloadOptions options;
  options.num_requests = 5;
  options.prompt_tokens_spread = 0.5;
  const auto a = MakeRandomWorkload(options);
  const auto b = MakeRandomWorkload(options);
  options.seed = 2;
  const auto c = MakeRandomWorkload(options);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ((*a)[i].prompt, (*b)[i].prompt);
    EXPECT_NE((*a)[i].prompt, (*c)[i].prompt);
    EXPECT_GE((*a)[i].prompt.size(), 256u);
    EXPECT_LE((*a)[i].prompt.size(), 768u);
    for (const int32_t token : (*a)[i].prompt) {
      EXPECT_GE(token, options.tokens.low_token);
      EXPECT_LE(token, options.tokens.high_token);
    }
  }
}

TEST(RandomWorkload, SharedPrefixIsShared) {
  RandomWorkloadOptions options;
  options.num_requests = 3;
  options.prompt_tokens = 100;
  options.shared_prefix_tokens = 64;
  const auto workload = MakeRandomWorkload(options);
  ASSERT_TRUE(workload.ok());
  const auto prefix = [](const PlannedRequest& r) {
    return std::vector<int32_t>(r.prompt.begin(), r.prompt.begin() + 64);
  };
  EXPECT_EQ(prefix((*workload)[0]), prefix((*workload)[1]));
  EXPECT_NE((*workload)[0].prompt, (*workload)[1].prompt);
}

TEST(RandomWorkload, ArrivalsHaveTheAskedRate) {
  RandomWorkloadOptions options;
  options.num_requests = 4000;
  options.prompt_tokens = 1;
  options.requests_per_second = 50;
  const auto workload = MakeRandomWorkload(options);
  ASSERT_TRUE(workload.ok());
  EXPECT_NEAR(absl::ToDoubleSeconds(workload->back().arrival), 80, 8);
}

TEST(RandomWorkload, RefusesNonsense) {
  RandomWorkloadOptions options;
  options.prompt_tokens = 0;
  EXPECT_FALSE(MakeRandomWorkload(options).ok());
  options.prompt_tokens = 1;
  options.tokens = {10, 5};
  EXPECT_FALSE(MakeRandomWorkload(options).ok());
}

TEST(TraceWorkload, EqualIdsBecomeEqualTokens) {
  TraceWorkloadOptions options;
  options.path =
      WriteTrace(R"({"timestamp":0,"input_length":1024,"output_length":5,"hash_ids":[1,2]})"
                 "\n"
                 R"({"timestamp":2000,"input_length":1100,"output_length":7,"hash_ids":[1,3,4]})"
                 "\n");
  const auto trace = LoadTraceWorkload(options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2u);
  const auto& a = trace->requests[0];
  const auto& b = trace->requests[1];
  EXPECT_EQ(a.prompt.size(), 1024u);
  EXPECT_EQ(b.prompt.size(), 1100u);
  EXPECT_TRUE(std::equal(a.prompt.begin(), a.prompt.begin() + 512, b.prompt.begin()));
  EXPECT_FALSE(std::equal(a.prompt.begin() + 512, a.prompt.end(), b.prompt.begin() + 512));
  EXPECT_EQ(b.arrival, absl::Seconds(2));
  EXPECT_EQ(b.max_tokens, 7);
}

TEST(TraceWorkload, ScalesAndLeavesOut) {
  TraceWorkloadOptions options;
  options.path = WriteTrace(
      R"({"timestamp":100,"input_length":6400,"output_length":640,"hash_ids":[1,2,3,4,5,6,7,8,9,10,11,12,13]})"
      "\n"
      R"({"timestamp":200,"input_length":99999,"output_length":1,"hash_ids":[]})"
      "\n"
      R"({"timestamp":200,"input_length":10,"output_length":10})"
      "\n");
  options.length_scale = 0.1;
  options.time_scale = 0.5;
  options.max_prompt_tokens = 1000;
  EXPECT_EQ(LoadTraceWorkload(options)->num_cut, 0);
  options.max_output_tokens = 63;
  const auto trace = LoadTraceWorkload(options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->num_left_out, 1);
  EXPECT_EQ(trace->num_cut, 1);
  EXPECT_EQ(trace->requests[0].prompt.size(), 640u);
  EXPECT_EQ(trace->requests[0].max_tokens, 63);
  EXPECT_EQ(trace->requests[1].arrival, absl::Milliseconds(50));
}

// A slice of a trace: its first line, which is left out, came 10 s before the first that is sent.
TEST(TraceWorkload, BeginsWithItsFirstRequest) {
  TraceWorkloadOptions options;
  options.path = WriteTrace(R"({"timestamp":50000,"input_length":99999,"output_length":1})"
                            "\n"
                            R"({"timestamp":62000,"input_length":7,"output_length":1})"
                            "\n"
                            R"({"timestamp":60000,"input_length":5,"output_length":1})"
                            "\n");
  options.max_prompt_tokens = 1000;
  const auto trace = LoadTraceWorkload(options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[0].prompt.size(), 5u);
  EXPECT_EQ(trace->requests[0].arrival, absl::ZeroDuration());
  EXPECT_EQ(trace->requests[1].arrival, absl::Seconds(2));
}

TEST(TraceWorkload, NamesTheBadLine) {
  TraceWorkloadOptions options;
  for (const char* line :
       {"{", "[]", R"({"timestamp":0,"input_length":5})",
        R"({"timestamp":0,"input_length":-5,"output_length":1})",
        R"({"timestamp":0,"input_length":1e18,"output_length":1})",
        R"({"timestamp":0,"input_length":5,"output_length":1,"hash_ids":["x"]})"}) {
    options.path = WriteTrace(std::string(line) + "\n");
    const auto trace = LoadTraceWorkload(options);
    ASSERT_FALSE(trace.ok()) << line;
    EXPECT_NE(std::string(trace.status().message()).find(":1:"), std::string::npos)
        << trace.status();
  }
  options.path = "/nonexistent";
  EXPECT_EQ(LoadTraceWorkload(options).status().code(), absl::StatusCode::kNotFound);
}

// Answers after a fixed time with a fixed number of tokens; every third request is refused.
class FakeTarget : public Target {
 public:
  explicit FakeTarget(std::atomic<int>* in_flight, std::atomic<int>* most)
      : in_flight_(in_flight), most_(most) {}
  RequestRecord Run(const PlannedRequest& request, absl::Duration) override {
    const int now_running = in_flight_->fetch_add(1) + 1;
    int seen = most_->load();
    while (seen < now_running && !most_->compare_exchange_weak(seen, now_running)) {
    }
    RequestRecord record;
    record.sent = MonotonicNow();
    absl::SleepFor(absl::Milliseconds(5));
    in_flight_->fetch_sub(1);
    if (request.prompt.size() % 3 == 0) {
      record.first_token = absl::InfiniteFuture();
      record.status = absl::ResourceExhaustedError("queue full");
      return record;
    }
    record.first_token = record.sent + absl::Milliseconds(10);
    record.last_token = record.first_token + absl::Milliseconds(30);
    record.gaps.assign(3, absl::Milliseconds(10));
    record.output_tokens = 4;
    record.prompt_tokens = 100;
    record.cached_tokens = 25;
    return record;
  }

 private:
  std::atomic<int>* const in_flight_;
  std::atomic<int>* const most_;
};

TEST(Runner, ClosedLoopKeepsTheConcurrencyAndCountsEverything) {
  std::vector<PlannedRequest> workload(30);
  for (size_t i = 0; i < workload.size(); ++i) workload[i].prompt.resize(i + 1);
  std::atomic<int> in_flight{0}, most{0};
  RunOptions options;
  options.concurrency = 4;
  int last_progress = 0;
  options.on_progress = [&](int finished, int total) {
    EXPECT_EQ(total, 30);
    last_progress = finished;
  };
  const RunResult run = RunWorkload(
      workload, [&] { return std::make_unique<FakeTarget>(&in_flight, &most); }, options);
  EXPECT_LE(most.load(), 4);
  EXPECT_GE(most.load(), 2);
  EXPECT_EQ(last_progress, 30);
  const Summary summary = Summarize("x", 1, run, Slo{.ttft_ms = 50, .tpot_ms = 9});
  EXPECT_EQ(summary.requests, 30);
  EXPECT_EQ(summary.failed, 10);
  EXPECT_EQ(summary.rejected, 10);
  EXPECT_DOUBLE_EQ(summary.ttft_ms.p99, 10);
  EXPECT_DOUBLE_EQ(summary.tpot_ms.p50, 10);
  EXPECT_DOUBLE_EQ(summary.cached_share, 0.25);
  EXPECT_EQ(summary.good_share, 0) << "10 ms per token is above the limit of 9";
}

// Has its first token after 50 ms and is done.
class SlowTarget : public Target {
 public:
  RequestRecord Run(const PlannedRequest&, absl::Duration) override {
    RequestRecord record;
    record.sent = MonotonicNow();
    absl::SleepFor(absl::Milliseconds(50));
    record.first_token = record.last_token = MonotonicNow();
    record.output_tokens = 1;
    return record;
  }
};

// Ten requests come at once and are answered one after the other: the last one waited for nine.
TEST(Runner, AnOpenLoopCountsTheTimeBeforeALateRequestIsSent) {
  const std::vector<PlannedRequest> workload(10);
  RunOptions options;
  options.open_loop = true;
  options.concurrency = 1;
  const auto targets = [] { return std::make_unique<SlowTarget>(); };
  const Summary summary =
      Summarize("x", 1, RunWorkload(workload, targets, options), Slo{.ttft_ms = 40});
  EXPECT_GE(summary.ttft_ms.p99, 450);
  EXPECT_GE(summary.e2e_ms.p99, 450);
  EXPECT_GE(summary.worst_send_delay_ms, 440);
  EXPECT_EQ(summary.good_share, 0);

  options.open_loop = false;
  EXPECT_LT(Summarize("x", 1, RunWorkload(workload, targets, options), Slo()).ttft_ms.p50, 450)
      << "a closed loop has no time at which a request is due";
}

// The second half of its requests fails after 100 ms, the first is answered at once.
class FailingTarget : public Target {
 public:
  RequestRecord Run(const PlannedRequest& request, absl::Duration) override {
    RequestRecord record;
    record.sent = record.first_token = record.last_token = MonotonicNow();
    if (request.max_tokens > 0) return record;
    absl::SleepFor(absl::Milliseconds(100));
    record.first_token = absl::InfiniteFuture();
    record.status = absl::UnavailableError("gone");
    return record;
  }
};

TEST(Runner, ARunLastsUntilItsLastFailure) {
  std::vector<PlannedRequest> workload(4);
  workload[0].max_tokens = workload[1].max_tokens = 1;
  RunOptions options;
  options.concurrency = 1;
  const RunResult run = RunWorkload(
      workload, [] { return std::make_unique<FailingTarget>(); }, options);
  EXPECT_GE(run.duration, absl::Milliseconds(200));
  EXPECT_LE(Summarize("x", 1, run, Slo()).request_throughput, 10);
}

TEST(Percentiles, NearestRank) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Percentiles p = PercentilesOf(values);
  EXPECT_EQ(p.p50, 50);
  EXPECT_EQ(p.p95, 95);
  EXPECT_EQ(p.p99, 99);
  EXPECT_EQ(p.mean, 50.5);
  EXPECT_EQ(PercentilesOf({}).p99, 0);
  EXPECT_EQ(PercentilesOf({7}).p50, 7);
}

TEST(Presets, StayWithinTheModel) {
  ScenarioOptions options;
  options.max_model_len = 4096;
  for (const char* name : {"ttft", "concurrency", "cached"}) {
    const auto scenario = PresetScenario(name, options);
    ASSERT_TRUE(scenario.ok()) << scenario.status();
    ASSERT_FALSE(scenario->runs.empty());
    for (const ScenarioRun& run : scenario->runs) {
      for (const PlannedRequest& request : run.workload) {
        EXPECT_LE(request.prompt.size() + static_cast<size_t>(request.max_tokens), 4096u);
      }
    }
  }
  EXPECT_EQ(PresetScenario("nonsense", options).status().code(), absl::StatusCode::kNotFound);
}

TEST(Plot, IsOneSvgWithEveryRun) {
  std::vector<Summary> runs(3);
  for (int i = 0; i < 3; ++i) runs[i].x = 16 << i;
  runs[1].ttft_ms.p50 = 12;
  const std::string svg = PlotSvg(runs, "a < b", "prompt tokens");
  EXPECT_EQ(svg.rfind("<svg", 0), 0u);
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  for (const char* x : {">16<", ">32<", ">64<"}) EXPECT_NE(svg.find(x), std::string::npos) << x;
}

}  // namespace
}  // namespace sluice::loadgen
