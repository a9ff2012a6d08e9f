// A GenerationSink that keeps what it gets and lets a test wait for the end.
#pragma once

#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/router/core/dispatcher.h"

namespace sluice::testing {

class RecordingSink : public router::GenerationSink {
 public:
  void OnTokens(absl::Span<const SampledToken> tokens) override {
    absl::MutexLock lock(&mu_);
    for (const SampledToken& token : tokens) tokens_.push_back(token.token);
  }
  void OnEnd(const router::GenerationResult& result) override {
    absl::MutexLock lock(&mu_);
    result_ = result;
    ++num_ends_;
  }
  void Flush(bool) override {}

  // False when it has not ended within `timeout`.
  bool WaitForEnd(absl::Duration timeout) const {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(
                                    +[](const int* ends) { return *ends > 0; }, &num_ends_),
                                timeout);
  }
  // False also when it has ended with fewer.
  bool WaitForTokens(size_t count, absl::Duration timeout) const {
    absl::MutexLock lock(&mu_);
    const auto over = [this, count]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return tokens_.size() >= count || num_ends_ > 0;
    };
    mu_.AwaitWithTimeout(absl::Condition(&over), timeout);
    return tokens_.size() >= count;
  }
  std::vector<TokenId> tokens() const {
    absl::MutexLock lock(&mu_);
    return tokens_;
  }
  router::GenerationResult result() const {
    absl::MutexLock lock(&mu_);
    return result_;
  }
  int num_ends() const {
    absl::MutexLock lock(&mu_);
    return num_ends_;
  }

 private:
  mutable absl::Mutex mu_;
  std::vector<TokenId> tokens_ ABSL_GUARDED_BY(mu_);
  router::GenerationResult result_ ABSL_GUARDED_BY(mu_);
  int num_ends_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace sluice::testing
