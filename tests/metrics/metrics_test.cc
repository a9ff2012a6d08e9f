#include "metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The value of an exported series, written as in the text ("name{label=\"x\"}"); NaN when absent.
double Exported(MetricsRegistry& registry, const std::string& series) {
  const std::string text = registry.ExportText();
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits("} ", 1));
    const std::string name = parts.second.empty() ? "" : absl::StrCat(parts.first, "}");
    const std::pair<absl::string_view, absl::string_view> bare =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    double value = 0;
    if (name == series && absl::SimpleAtod(parts.second, &value)) return value;
    if (bare.first == series && absl::SimpleAtod(bare.second, &value)) return value;
  }
  return NAN;
}

TEST(MetricsTest, CountersExistAtZeroAndGrow) {
  MetricsRegistry registry;
  Counter* counter = registry.AddCounter("sluice_test_events_total", "Events.", {{"kind", "a"}});
  EXPECT_EQ(Exported(registry, "sluice_test_events_total{kind=\"a\"}"), 0);
  counter->Increment();
  counter->Increment(2.5);
  counter->Increment(-1);
  EXPECT_EQ(counter->Value(), 3.5);
  EXPECT_EQ(Exported(registry, "sluice_test_events_total{kind=\"a\"}"), 3.5);
}

TEST(MetricsTest, TextCarriesHelpTypeAndConstantLabels) {
  MetricsRegistry registry(MetricLabels{{"role", "prefill"}});
  registry.AddGauge("sluice_test_blocks", "KV blocks.", {{"state", "free"}})->Set(7);
  EXPECT_EQ(registry.ExportText(),
            "# HELP sluice_test_blocks KV blocks.\n# TYPE sluice_test_blocks gauge\n"
            "sluice_test_blocks{role=\"prefill\",state=\"free\"} 7\n");
}

TEST(MetricsTest, LabelValuesAreEscaped) {
  MetricsRegistry registry;
  registry.AddGauge("sluice_test_info", "Info.", {{"path", "a\"b\\c\nd"}});
  EXPECT_THAT(registry.ExportText(), HasSubstr("{path=\"a\\\"b\\\\c\\nd\"}"));
}

TEST(MetricsTest, AskingTwiceGivesTheSameObject) {
  MetricsRegistry registry;
  EXPECT_EQ(registry.AddGauge("sluice_test_x", "X."), registry.AddGauge("sluice_test_x", "X."));
  EXPECT_NE(registry.AddGauge("sluice_test_y", "Y.", {{"l", "1"}}),
            registry.AddGauge("sluice_test_y", "Y.", {{"l", "2"}}));
}

TEST(MetricsTest, GaugesGoBothWays) {
  MetricsRegistry registry;
  Gauge* gauge = registry.AddGauge("sluice_test_depth", "Depth.");
  gauge->Set(5);
  gauge->Add(-7);
  EXPECT_EQ(gauge->Value(), -2);
  EXPECT_EQ(Exported(registry, "sluice_test_depth"), -2);
}

TEST(MetricsTest, ARemovedGaugeIsGoneAndCanComeBack) {
  MetricsRegistry registry;
  registry.AddGauge("sluice_test_age_seconds", "Age.", {{"worker", "1"}})->Set(7);
  registry.AddGauge("sluice_test_age_seconds", "Age.", {{"worker", "2"}});
  registry.RemoveGauge("sluice_test_age_seconds", {{"worker", "1"}});
  EXPECT_THAT(registry.ExportText(), Not(HasSubstr("worker=\"1\"")));
  EXPECT_THAT(registry.ExportText(), HasSubstr("worker=\"2\""));
  registry.AddGauge("sluice_test_age_seconds", "Age.", {{"worker", "1"}});
  EXPECT_EQ(Exported(registry, "sluice_test_age_seconds{worker=\"1\"}"), 0) << "a new one";
  registry.RemoveGauge("sluice_test_age_seconds", {{"worker", "1"}});
  registry.RemoveGauge("sluice_test_age_seconds", {{"worker", "2"}});
  EXPECT_EQ(registry.ExportText(), "");
  registry.RemoveGauge("sluice_test_unheard_of", {});
}

TEST(MetricsTest, HistogramBoundsAreInclusiveAndCumulative) {
  MetricsRegistry registry;
  Histogram* histogram =
      registry.AddHistogram("sluice_test_wait_seconds", "Wait.", {0.1, 1}, {{"op", "x"}});
  for (const double value : {0.05, 0.1, 0.2, 1.0, 5.0, std::nan("")}) histogram->Observe(value);
  EXPECT_EQ(Exported(registry, "sluice_test_wait_seconds_bucket{op=\"x\",le=\"0.1\"}"), 2);
  EXPECT_EQ(Exported(registry, "sluice_test_wait_seconds_bucket{op=\"x\",le=\"1\"}"), 4);
  EXPECT_EQ(Exported(registry, "sluice_test_wait_seconds_bucket{op=\"x\",le=\"+Inf\"}"), 5);
  EXPECT_EQ(Exported(registry, "sluice_test_wait_seconds_count{op=\"x\"}"), 5);
  EXPECT_DOUBLE_EQ(Exported(registry, "sluice_test_wait_seconds_sum{op=\"x\"}"), 6.35);
}

TEST(MetricsTest, CallbacksRunBeforeEachExport) {
  MetricsRegistry registry;
  Gauge* gauge = registry.AddGauge("sluice_test_reads", "Reads.");
  registry.OnCollect([gauge] { gauge->Add(1); });
  EXPECT_EQ(Exported(registry, "sluice_test_reads"), 1);
  EXPECT_EQ(Exported(registry, "sluice_test_reads"), 2);
}

TEST(MetricsTest, NothingIsLostBetweenThreads) {
  constexpr int kThreads = 4;
  constexpr int kPerThread = 5000;
  MetricsRegistry registry;
  Counter* counter = registry.AddCounter("sluice_test_hits_total", "Hits.");
  Histogram* histogram = registry.AddHistogram("sluice_test_hit_tokens", "Hits.", {1, 2, 3});
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kPerThread; ++i) {
        counter->Increment();
        histogram->Observe(t);
        if (i % 1000 == 0) registry.ExportText();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter->Value(), kThreads * kPerThread);
  EXPECT_EQ(Exported(registry, "sluice_test_hit_tokens_count"), kThreads * kPerThread);
  EXPECT_EQ(Exported(registry, "sluice_test_hit_tokens_sum"), kPerThread * (0 + 1 + 2 + 3));
}

TEST(MetricsDeathTest, MisuseAborts) {
  MetricsRegistry registry(MetricLabels{{"role", "router"}});
  registry.AddGauge("sluice_test_x", "X.", {{"a", ""}});
  registry.AddHistogram("sluice_test_seconds", "S.", {1, 2});
  EXPECT_DEATH(registry.AddCounter("sluice_test_events", "E."), "end in _total");
  EXPECT_DEATH(registry.AddGauge("sluice_test_events_total", "E."), "end in _total");
  EXPECT_DEATH(registry.AddGauge("Bad-Name", "E."), "not a metric name");
  EXPECT_DEATH(registry.AddHistogram("sluice_test_x", "X.", {1}, {{"a", ""}}), "two types");
  EXPECT_DEATH(registry.AddGauge("sluice_test_x", "Y.", {{"a", ""}}), "two types or helps");
  EXPECT_DEATH(registry.AddGauge("sluice_test_x", "X.", {{"b", ""}}), "label names");
  EXPECT_DEATH(registry.AddGauge("sluice_test_z", "Z.", {{"role", ""}}), "label 'role'");
  EXPECT_DEATH(registry.AddHistogram("sluice_test_seconds", "S.", {1, 3}), "two sets of buckets");
  EXPECT_DEATH(registry.AddHistogram("sluice_test_w_seconds", "S.", {2, 1}), "must rise");
}

TEST(BucketsTest, RiseAndHaveTheDocumentedEnds) {
  const std::pair<const std::vector<double>*, std::pair<double, double>> sets[] = {
      {&TtftBuckets(), {0.01, 120}},
      {&ItlBuckets(), {0.001, 2.5}},
      {&E2eBuckets(), {0.1, 1800}},
      {&StageBuckets(), {0.0001, 60}},
      {&TransferBuckets(), {0.0005, 30}},
      {&TokenBuckets(), {1, 1048576}},
      {&ByteBuckets(), {65536, 17179869184.0}}};
  for (const auto& [set, ends] : sets) {
    EXPECT_TRUE(std::is_sorted(set->begin(), set->end()));
    EXPECT_EQ(set->front(), ends.first);
    EXPECT_EQ(set->back(), ends.second);
  }
}

TEST(ProcessMetricsTest, AgreeWithTheKernel) {
  MetricsRegistry registry;
  AddProcessMetrics(&registry, "1.2.3");
  EXPECT_EQ(Exported(registry, "sluice_build_info{version=\"1.2.3\"}"), 1);
  const double before = Exported(registry, "process_cpu_seconds_total");
  EXPECT_GE(before, 0);
  for (const std::clock_t start = std::clock(); std::clock() - start < CLOCKS_PER_SEC / 20;) {
  }
  const double used = Exported(registry, "process_cpu_seconds_total") - before;
  EXPECT_GE(used, 0.045);
  EXPECT_LT(used, 5);
  EXPECT_GT(Exported(registry, "process_resident_memory_bytes"), 1 << 20);
  EXPECT_GE(Exported(registry, "process_virtual_memory_bytes"),
            Exported(registry, "process_resident_memory_bytes"));
  EXPECT_NEAR(Exported(registry, "process_start_time_seconds"),
              static_cast<double>(std::time(nullptr)), 120);
  EXPECT_GT(Exported(registry, "process_max_fds"), 10);

  const double fds = Exported(registry, "process_open_fds");
  const double threads = Exported(registry, "process_threads");
  FILE* file = std::fopen("/dev/null", "r");
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(Exported(registry, "process_open_fds"), fds + 1);
  std::fclose(file);
  std::thread([&] { EXPECT_EQ(Exported(registry, "process_threads"), threads + 1); }).join();
}

}  // namespace
}  // namespace sluice
