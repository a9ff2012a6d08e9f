#include "tests/support/fake_dispatcher.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace sluice::router {

void FakeDispatcher::Generation::Tokens(const std::vector<TokenId>& ids) const {
  std::vector<SampledToken> tokens;
  for (TokenId id : ids) tokens.push_back(SampledToken{id, -0.5f, {}});
  Sampled(tokens);
}

void FakeDispatcher::Generation::Sampled(const std::vector<SampledToken>& tokens) const {
  dispatcher_->Post([dispatcher = dispatcher_, id = spec_.id, tokens] {
    std::shared_ptr<GenerationSink> sink;
    {
      absl::MutexLock lock(&dispatcher->mu_);
      const auto found = dispatcher->sinks_.find(id);
      if (found == dispatcher->sinks_.end()) return;  // ended
      sink = found->second;
    }
    sink->OnTokens(tokens);
    sink->Flush(/*alone=*/!dispatcher->crowded_);
  });
}

void FakeDispatcher::Generation::End(GenerationEnd end, int cached_tokens) const {
  GenerationResult result;
  result.end = end;
  result.cached_tokens = cached_tokens;
  result.stages["prefill"] = absl::Milliseconds(3);
  dispatcher_->Post(
      [dispatcher = dispatcher_, id = spec_.id, result] { dispatcher->Finish(id, result); });
}

void FakeDispatcher::Generation::Fail(absl::Status status,
                                      std::optional<absl::Duration> retry_after) const {
  GenerationResult result;
  result.end = GenerationEnd::kFailed;
  result.status = std::move(status);
  result.retry_after = retry_after;
  dispatcher_->Post(
      [dispatcher = dispatcher_, id = spec_.id, result] { dispatcher->Finish(id, result); });
}

FakeDispatcher::FakeDispatcher() {
  thread_ = std::thread([this] {
    while (true) {
      std::function<void()> task;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(
            +[](FakeDispatcher* self) ABSL_EXCLUSIVE_LOCKS_REQUIRED(self->mu_) {
              return self->stopping_ || !self->tasks_.empty();
            },
            this));
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  });
}

FakeDispatcher::~FakeDispatcher() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void FakeDispatcher::SetScript(std::function<void(const Generation&)> script) {
  absl::MutexLock lock(&mu_);
  script_ = std::move(script);
}

FakeDispatcher::Generation FakeDispatcher::NextGeneration() {
  absl::MutexLock lock(&mu_);
  const bool came = mu_.AwaitWithTimeout(
      absl::Condition(
          +[](std::deque<Generation>* waiting) { return !waiting->empty(); }, &waiting_),
      absl::Seconds(10));
  if (!came) {
    std::fprintf(stderr, "FakeDispatcher: no generation was submitted within 10 s\n");
    std::abort();
  }
  Generation generation = std::move(waiting_.front());
  waiting_.pop_front();
  return generation;
}

bool FakeDispatcher::WaitForCancel(RequestId id, absl::Duration timeout) {
  const auto cancelled = [this, id]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return std::find(cancelled_.begin(), cancelled_.end(), id) != cancelled_.end();
  };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&cancelled), timeout);
}

int FakeDispatcher::num_submitted() const {
  absl::MutexLock lock(&mu_);
  return num_submitted_;
}

int FakeDispatcher::num_unfinished() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(sinks_.size());
}

void FakeDispatcher::SetNotReadyReason(const std::string& reason) {
  absl::MutexLock lock(&mu_);
  not_ready_reason_ = reason;
}

void FakeDispatcher::SetSnapshot(const ClusterSnapshot& snapshot) {
  absl::MutexLock lock(&mu_);
  snapshot_ = snapshot;
}

void FakeDispatcher::Submit(GenerationSpec spec, std::shared_ptr<GenerationSink> sink) {
  absl::MutexLock lock(&mu_);
  ++num_submitted_;
  sinks_[spec.id] = std::move(sink);
  Generation generation(this, std::move(spec));
  if (script_ == nullptr) {
    waiting_.push_back(std::move(generation));
    return;
  }
  tasks_.push_back([script = script_, generation] { script(generation); });
}

void FakeDispatcher::Cancel(RequestId id) { EndEarly(id, GenerationEnd::kCancelled); }

void FakeDispatcher::Stop(RequestId id) { EndEarly(id, GenerationEnd::kStop); }

void FakeDispatcher::EndEarly(RequestId id, GenerationEnd end) {
  {
    absl::MutexLock lock(&mu_);
    cancelled_.push_back(id);
  }
  GenerationResult result;
  result.end = end;
  Post([this, id, result] { Finish(id, result); });
}

ClusterSnapshot FakeDispatcher::Snapshot() const {
  absl::MutexLock lock(&mu_);
  return snapshot_;
}

std::string FakeDispatcher::NotReadyReason() const {
  absl::MutexLock lock(&mu_);
  return not_ready_reason_;
}

void FakeDispatcher::Post(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
}

void FakeDispatcher::Finish(RequestId id, const GenerationResult& result) {
  std::shared_ptr<GenerationSink> sink;
  {
    absl::MutexLock lock(&mu_);
    const auto found = sinks_.find(id);
    if (found == sinks_.end()) return;
    sink = std::move(found->second);
    sinks_.erase(found);
  }
  sink->OnEnd(result);
  sink->Flush(/*alone=*/!crowded_);
}

}  // namespace sluice::router
