#include "services/router/router_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/router/router_config.h"
#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RouterMetricsTest : public ::testing::Test {
 protected:
  void Play(Event event) {
    for (const Action& action : h_.core.Step(std::move(event), h_.now)) {
      if (const auto* emitted = std::get_if<EmitTokens>(&action)) metrics_.OnTokens(*emitted);
      if (const auto* ended = std::get_if<EndRequest>(&action)) metrics_.OnEnd(*ended);
    }
    metrics_.OnTick(h_.core, h_.now);
  }
  void PlayToken(SessionId from, AttemptKey key, int index) {
    ProducedToken token;
    token.key = key;
    token.index = index;
    Play(TokensProduced{from, {token}});
  }
  std::string Text() { return registry_.ExportText(); }

  CoreHarness h_;
  MetricsRegistry registry_;
  RouterMetrics metrics_{&registry_, "m"};
};

TEST_F(RouterMetricsTest, CountersExistAtZero) {
  const std::string text = Text();
  EXPECT_THAT(
      text,
      HasSubstr("sluice_requests_total{api=\"grpc\",model=\"m\",outcome=\"upstream_error\"} 0"));
  EXPECT_THAT(text, HasSubstr("sluice_request_rejections_total{reason=\"queue_full\"} 0"));
  EXPECT_THAT(text, HasSubstr("sluice_workers{role=\"decode\",state=\"ready\"} 0"));
  EXPECT_THAT(text, HasSubstr("sluice_stale_messages_total{reason=\"stale_attempt\"} 0"));
}

TEST_F(RouterMetricsTest, FollowARequestAndAWorker) {
  const SessionId b = h_.Join("b", WorkerRole::kBoth);
  GenerationSpec spec = h_.Spec(10, 2);
  spec.api = RequestApi::kGrpc;
  const AttemptKey key{spec.id, Attempt(1)};
  Play(RequestSubmitted{spec});
  EXPECT_THAT(Text(), HasSubstr("sluice_requests_in_flight{model=\"m\",phase=\"prefill\"} 1"));
  PlayToken(b, key, 0);
  EXPECT_THAT(Text(), HasSubstr("sluice_requests_in_flight{model=\"m\",phase=\"decode\"} 1"));
  PlayToken(b, key, 1);
  Play(AttemptEnded{b, key, AttemptEndReason::kLength, {}, ""});
  std::string text = Text();
  EXPECT_THAT(text, HasSubstr("sluice_requests_total{api=\"grpc\",model=\"m\",outcome=\"ok\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("sluice_requests_total{api=\"openai\",model=\"m\",outcome=\"ok\"} 0"));
  EXPECT_THAT(text, HasSubstr("sluice_requests_in_flight{model=\"m\",phase=\"decode\"} 0"));
  EXPECT_THAT(text, HasSubstr("sluice_output_tokens_total{model=\"m\"} 2"));
  EXPECT_THAT(text, HasSubstr("sluice_time_to_first_token_seconds_count{model=\"m\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_inter_token_latency_seconds_count{model=\"m\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_time_per_output_token_seconds_count{model=\"m\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_prompt_tokens_total{model=\"m\",source=\"computed\"} 10"));
  EXPECT_THAT(text, HasSubstr("sluice_route_decisions_total{decision=\"colocated\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_workers{role=\"both\",state=\"ready\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_worker_heartbeat_age_seconds{role=\"both\",worker=\"b\"} 0"));

  PlayToken(b, key, 2);
  Play(WorkerLeft{b, "gone"});
  text = Text();
  EXPECT_THAT(text, HasSubstr("sluice_stale_messages_total{reason=\"unknown_request\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_workers{role=\"both\",state=\"ready\"} 0"));
  EXPECT_THAT(text,
              HasSubstr("sluice_worker_membership_events_total{event=\"leave\",role=\"both\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("sluice_worker_heartbeat_age_seconds{")));
}

// Its client has tokens: it was not refused, it broke.
TEST_F(RouterMetricsTest, AnAnswerThatBreaksIsNoRefusal) {
  const SessionId b = h_.Join("b", WorkerRole::kBoth);
  const GenerationSpec lost = h_.Spec(10, 5);
  Play(RequestSubmitted{lost});
  PlayToken(b, {lost.id, Attempt(1)}, 0);
  Play(WorkerLeft{b, "gone"});
  h_.now += CoreOptions().no_worker_timeout + absl::Seconds(1);
  Play(Tick{});
  EXPECT_EQ(h_.core.num_running(), 0);

  const SessionId c = h_.Join("c", WorkerRole::kBoth);
  const GenerationSpec preempted = h_.Spec(10, 5);
  Play(RequestSubmitted{preempted});
  PlayToken(c, {preempted.id, Attempt(1)}, 0);
  for (int i = 1; i <= CoreOptions().max_preemptions + 1; ++i) {
    Play(AttemptPreempted{c, {preempted.id, Attempt(i)}});
  }
  EXPECT_EQ(h_.core.num_running(), 0);

  // Whole texts would bury what differs.
  const auto has = [text = Text()](const char* line) {
    return text.find(line) != std::string::npos;
  };
  EXPECT_TRUE(has("sluice_request_rejections_total{reason=\"no_decode\"} 0"));
  EXPECT_TRUE(has("sluice_request_rejections_total{reason=\"kv_exhausted\"} 0"));
  EXPECT_TRUE(has("sluice_route_decisions_total{decision=\"rejected\"} 0"));
  EXPECT_TRUE(has("{api=\"openai\",model=\"m\",outcome=\"rejected\"} 0"));
  EXPECT_TRUE(has("{api=\"openai\",model=\"m\",outcome=\"upstream_error\"} 2"));
}

TEST(RouterConfigTest, NamesTheModelAfterItsFolderAndChecksTimes) {
  RouterConfig config;
  EXPECT_THAT(std::string(FinishRouterConfig(&config).message()), HasSubstr("model is required"));
  config.model = "/models/deepseek-tiny/";
  ASSERT_TRUE(FinishRouterConfig(&config).ok());
  EXPECT_EQ(config.served_model_name, "deepseek-tiny");
  config.worker_timeout = absl::Milliseconds(300);
  EXPECT_THAT(std::string(FinishRouterConfig(&config).message()), HasSubstr("worker_timeout"));
}

TEST(RouterConfigTest, UnknownKeyIsRefusedWithTheNearest) {
  RouterConfig config;
  ConfigSchema schema("sluice-router", "");
  AddRouterConfig(&schema, &config);
  const auto status = schema.LoadFrom({"--max-queued-request", "3"}, {});
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.status().message()), HasSubstr("max-queued-requests"));
}

}  // namespace
}  // namespace sluice::router
