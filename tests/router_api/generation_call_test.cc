// A running request: choices, seeds, stop strings that cancel, failures, cancellation.
#include "services/router/api/generation_call.h"

#include <gmock/gmock.h>

#include "absl/synchronization/notification.h"
#include "tests/router_api/api_fixture.h"

namespace sluice::router {
namespace {

using testing::ElementsAre;

// Collects what a front would send; used on the call's thread, read after Wait.
class Recorder : public ResponseWriter {
 public:
  void OnDelta(const ChoiceDelta& delta) override {
    absl::MutexLock lock(&mu_);
    deltas_.push_back(delta);
  }
  void OnComplete(const RequestSummary& summary) override {
    absl::MutexLock lock(&mu_);
    summary_ = summary;
    ended_ = true;
  }
  void OnError(const ApiError& error) override {
    absl::MutexLock lock(&mu_);
    error_ = error;
    ended_ = true;
  }
  bool WaitForEnd() {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&ended_), absl::Seconds(10));
  }
  bool WaitForDeltas(size_t count) {
    const auto enough = [this, count]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return deltas_.size() >= count; };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(10));
  }
  std::string Text(int choice) {
    absl::MutexLock lock(&mu_);
    std::string text;
    for (const ChoiceDelta& delta : deltas_) {
      if (delta.index == choice) text += delta.text;
    }
    return text;
  }
  std::vector<ChoiceDelta> deltas() {
    absl::MutexLock lock(&mu_);
    return deltas_;
  }
  const RequestSummary& summary() const { return summary_; }
  const std::optional<ApiError>& error() const { return error_; }

 private:
  absl::Mutex mu_;
  std::vector<ChoiceDelta> deltas_;
  bool ended_ = false;
  RequestSummary summary_;
  std::optional<ApiError> error_;
};

// A front of one thread, which nobody else may help.
class ThreadExecutor : public CallExecutor {
 public:
  void Post(std::weak_ptr<GenerationCall> call) override {
    Run([call = std::move(call)] {
      if (const auto alive = call.lock()) alive->HandleEvents();
    });
  }
  bool TryRun(GenerationCall*) override { return false; }

  void Run(std::function<void()> task) { EXPECT_TRUE(pool_.Post(std::move(task))); }

 private:
  TaskPool pool_{"test-front", 1, 1000};
};

class GenerationCallTest : public ApiFixture {
 protected:
  std::shared_ptr<GenerationCall> Start(const CompletionRequest& request) {
    absl::StatusOr<GenerationPlan> plan = PlanCompletion(*context_, request);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return GenerationCall::Start(context_.get(), *std::move(plan), &recorder_, front_);
  }
  static CompletionRequest Prompt(const std::string& text) {
    CompletionRequest request;
    request.prompts = {text};
    request.sampling.max_tokens = 100;
    return request;
  }
  // A failed expectation must not leave the call to a recorder that is gone.
  void TearDown() override {
    absl::Notification idle;
    front_->Run([&] { idle.Notify(); });
    idle.WaitForNotification();
  }

  Recorder recorder_;
  const std::shared_ptr<ThreadExecutor> front_ = std::make_shared<ThreadExecutor>();
};

TEST_F(GenerationCallTest, AnswersAndSums) {
  AnswerWith("Hello, world.");
  CompletionRequest request = Prompt("Say it");
  const auto call = Start(request);
  ASSERT_TRUE(recorder_.WaitForEnd());
  EXPECT_EQ(recorder_.Text(0), "Hello, world.");
  const RequestSummary& summary = recorder_.summary();
  EXPECT_EQ(summary.prompt_tokens, static_cast<int64_t>(call->plan().prompts[0].size()));
  EXPECT_EQ(summary.completion_tokens, static_cast<int64_t>(Ids("Hello, world.").size()) + 1);
  EXPECT_EQ(summary.cached_tokens, 2);
  EXPECT_EQ(summary.stages.count("prefill"), 1u);
  EXPECT_GE(summary.total, summary.time_to_first_token);
  const auto deltas = recorder_.deltas();
  EXPECT_TRUE(deltas.front().first);
  EXPECT_EQ(deltas.back().finish, FinishReason::kStop);
  EXPECT_EQ(std::count_if(deltas.begin(), deltas.end(),
                          [](const ChoiceDelta& d) { return d.finish != FinishReason::kNone; }),
            1);
}

TEST_F(GenerationCallTest, ChoicesHaveConsecutiveSeedsPerPrompt) {
  CompletionRequest request;
  request.prompts = {std::string("a"), std::string("b")};
  request.sampling.max_tokens = 4;
  request.sampling.n = 2;
  request.sampling.seed = 100;
  const auto call = Start(request);
  std::vector<uint64_t> seeds;
  for (int i = 0; i < 4; ++i) {
    const auto generation = dispatcher_.NextGeneration();
    seeds.push_back(generation.spec().sampling.seed);
    EXPECT_EQ(generation.spec().prompt, call->plan().prompts[i / 2]);
    generation.Tokens(Ids(i / 2 == 0 ? "x" : "y"));
    generation.End(GenerationEnd::kLength, 3);
  }
  // The same prompt alone would give the same answers.
  EXPECT_THAT(seeds, ElementsAre(100, 101, 100, 101));
  ASSERT_TRUE(recorder_.WaitForEnd());
  EXPECT_EQ(recorder_.Text(1), "x");
  EXPECT_EQ(recorder_.Text(3), "y");
  EXPECT_EQ(recorder_.summary().prompt_tokens, call->plan().num_prompt_tokens());
  EXPECT_EQ(recorder_.summary().completion_tokens, 4);
  // Never more than the prompt, and once a prompt.
  EXPECT_EQ(recorder_.summary().cached_tokens, call->plan().num_prompt_tokens());
}

TEST_F(GenerationCallTest, StopStringCancelsTheGeneration) {
  CompletionRequest request = Prompt("Go");
  request.sampling.stop = {"STOP"};
  const auto call = Start(request);
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("before STOP after"));
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
  generation.Tokens(Ids("never seen"));
  ASSERT_TRUE(recorder_.WaitForEnd());
  EXPECT_FALSE(recorder_.error().has_value());
  EXPECT_EQ(recorder_.Text(0), "before ");
  EXPECT_EQ(recorder_.deltas().back().finish, FinishReason::kStop);
  EXPECT_LT(recorder_.summary().completion_tokens,
            static_cast<int64_t>(Ids("before STOP after").size()) + 1);
}

TEST_F(GenerationCallTest, EchoComesFirst) {
  AnswerWith("tail");
  CompletionRequest request = Prompt("head ");
  request.echo = true;
  const auto call = Start(request);
  ASSERT_TRUE(recorder_.WaitForEnd());
  EXPECT_EQ(recorder_.Text(0), "head tail");
}

TEST_F(GenerationCallTest, FirstDeltaComesWithTheFirstTokenEvenWithoutText) {
  const auto call = Start(Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  const std::vector<TokenId> fox = Ids("🦊");
  ASSERT_GT(fox.size(), 1u);
  generation.Tokens({fox[0]});
  ASSERT_TRUE(recorder_.WaitForDeltas(1));
  EXPECT_TRUE(recorder_.deltas()[0].first);
  EXPECT_EQ(recorder_.deltas()[0].text, "");
  generation.End(GenerationEnd::kLength);
  ASSERT_TRUE(recorder_.WaitForEnd());
  EXPECT_EQ(recorder_.deltas().back().finish, FinishReason::kLength);
}

TEST_F(GenerationCallTest, OneFailureEndsAllChoices) {
  CompletionRequest request = Prompt("Go");
  request.sampling.n = 2;
  const auto call = Start(request);
  const auto first = dispatcher_.NextGeneration();
  const auto second = dispatcher_.NextGeneration();
  first.Fail(absl::ResourceExhaustedError("admission queue is full"), absl::Seconds(3));
  ASSERT_TRUE(recorder_.WaitForEnd());
  ASSERT_TRUE(recorder_.error().has_value());
  EXPECT_EQ(recorder_.error()->kind, ErrorKind::kQueueFull);
  EXPECT_EQ(recorder_.error()->RetryAfter(), absl::Seconds(3));
  EXPECT_FALSE(recorder_.error()->tokens_sent);
  EXPECT_TRUE(dispatcher_.WaitForCancel(second.spec().id, absl::Seconds(1)));
}

TEST_F(GenerationCallTest, FailureAfterTokensIsMarked) {
  const auto call = Start(Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("some"));
  ASSERT_TRUE(recorder_.WaitForDeltas(1));
  generation.Fail(absl::InternalError("decode worker d-1 lost at step decode"));
  ASSERT_TRUE(recorder_.WaitForEnd());
  ASSERT_TRUE(recorder_.error().has_value());
  EXPECT_EQ(recorder_.error()->kind, ErrorKind::kWorkerLost);
  EXPECT_TRUE(recorder_.error()->tokens_sent);
  EXPECT_FALSE(recorder_.error()->should_retry());
}

TEST_F(GenerationCallTest, UnaskedCancellationIsAnError) {
  const auto call = Start(Prompt("Go"));
  dispatcher_.NextGeneration().End(GenerationEnd::kCancelled);
  ASSERT_TRUE(recorder_.WaitForEnd());
  ASSERT_TRUE(recorder_.error().has_value());
  EXPECT_EQ(recorder_.error()->kind, ErrorKind::kNoCapacity);
}

TEST_F(GenerationCallTest, CancelSilencesTheWriter) {
  CompletionRequest request = Prompt("Go");
  request.sampling.n = 2;
  const auto call = Start(request);
  const auto first = dispatcher_.NextGeneration();
  const auto second = dispatcher_.NextGeneration();
  absl::Notification cancelled;
  front_->Run([&] {
    call->Cancel();
    cancelled.Notify();
  });
  cancelled.WaitForNotification();
  EXPECT_TRUE(dispatcher_.WaitForCancel(first.spec().id, absl::Seconds(1)));
  EXPECT_TRUE(dispatcher_.WaitForCancel(second.spec().id, absl::Seconds(1)));
  first.Tokens(Ids("late"));
  TearDown();
  EXPECT_TRUE(recorder_.deltas().empty());
  EXPECT_FALSE(recorder_.error().has_value());
}

TEST_F(GenerationCallTest, TokensThatWaitMergeIntoOneDelta) {
  const auto call = Start(Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  absl::Notification release;
  front_->Run([&] { release.WaitForNotification(); });
  const std::string text = "one two three four five six";
  for (TokenId id : Ids(text)) generation.Tokens({id});
  generation.End(GenerationEnd::kLength);
  while (dispatcher_.num_unfinished() > 0) absl::SleepFor(absl::Milliseconds(1));
  absl::SleepFor(absl::Milliseconds(5));  // OnEnd itself comes just after
  release.Notify();
  ASSERT_TRUE(recorder_.WaitForEnd());
  EXPECT_EQ(recorder_.deltas().size(), 1u);
  EXPECT_EQ(recorder_.Text(0), text);
}

}  // namespace
}  // namespace sluice::router
