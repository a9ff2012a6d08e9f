// A dispatcher without workers: tests script what each generation answers, or drive it by hand.
// Thread-safe. Sinks are called on its own thread, as the real one does.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/router/core/dispatcher.h"

namespace sluice::router {

class FakeDispatcher : public Dispatcher {
 public:
  // One submitted generation; a handle that may be copied and used on any thread.
  class Generation {
   public:
    Generation(FakeDispatcher* dispatcher, GenerationSpec spec)
        : dispatcher_(dispatcher), spec_(std::move(spec)) {}

    const GenerationSpec& spec() const { return spec_; }
    void Tokens(const std::vector<TokenId>& ids) const;
    void Sampled(const std::vector<SampledToken>& tokens) const;
    void End(GenerationEnd end, int cached_tokens = 0) const;
    void Fail(absl::Status status, std::optional<absl::Duration> retry_after = std::nullopt) const;

   private:
    FakeDispatcher* dispatcher_;
    GenerationSpec spec_;
  };

  FakeDispatcher();
  ~FakeDispatcher() override;

  // Runs for each submitted generation, on the dispatcher's thread; without one, generations wait
  // for NextGeneration. Set before the first Submit.
  void SetScript(std::function<void(const Generation&)> script);
  // Waits for a generation that no script took. Fails the test's process after 10 s.
  Generation NextGeneration();
  // False if it was not cancelled within `timeout`.
  bool WaitForCancel(RequestId id, absl::Duration timeout);
  int num_submitted() const;
  int num_unfinished() const;

  // From now on as if each turn reached many sinks: none is served on the dispatcher's thread.
  void SetCrowded() { crowded_ = true; }
  void SetNotReadyReason(const std::string& reason);
  void SetSnapshot(const ClusterSnapshot& snapshot);

  void Submit(GenerationSpec spec, std::shared_ptr<GenerationSink> sink) override;
  void Cancel(RequestId id) override;
  void Stop(RequestId id) override;
  ClusterSnapshot Snapshot() const override;
  std::string NotReadyReason() const override;

 private:
  void Post(std::function<void()> task);
  void Finish(RequestId id, const GenerationResult& result);
  void EndEarly(RequestId id, GenerationEnd end);

  std::atomic<bool> crowded_{false};

  mutable absl::Mutex mu_;
  std::function<void(const Generation&)> script_ ABSL_GUARDED_BY(mu_);
  std::deque<Generation> waiting_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<RequestId, std::shared_ptr<GenerationSink>> sinks_ ABSL_GUARDED_BY(mu_);
  std::vector<RequestId> cancelled_ ABSL_GUARDED_BY(mu_);
  int num_submitted_ ABSL_GUARDED_BY(mu_) = 0;
  std::string not_ready_reason_ ABSL_GUARDED_BY(mu_);
  ClusterSnapshot snapshot_ ABSL_GUARDED_BY(mu_);
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace sluice::router
