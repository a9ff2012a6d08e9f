#include "bench/loadgen/runner.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "common/clock.h"

namespace sluice::loadgen {

RunResult RunWorkload(const std::vector<PlannedRequest>& workload, const TargetFactory& targets,
                      const RunOptions& options) {
  RunResult result;
  result.records.resize(workload.size());
  const int num_threads =
      std::max(1, std::min(options.concurrency, static_cast<int>(workload.size())));
  std::atomic<size_t> next{0};
  std::atomic<int> finished{0};
  absl::Mutex mu;
  absl::Duration worst_delay;
  int running = num_threads;
  const absl::Time start = MonotonicNow();

  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(num_threads));
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&] {
      const std::unique_ptr<Target> target = targets();
      for (size_t index; (index = next.fetch_add(1)) < workload.size();) {
        const PlannedRequest& request = workload[index];
        const absl::Time due = start + request.arrival;
        if (options.open_loop) {
          absl::SleepFor(due - MonotonicNow());
          const absl::Duration delay = MonotonicNow() - due;
          absl::MutexLock lock(&mu);
          worst_delay = std::max(worst_delay, delay);
        }
        RequestRecord& record = result.records[index];
        record = target->Run(request, options.request_timeout);
        record.due = options.open_loop ? due : record.sent;
        record.ended = MonotonicNow();
        finished.fetch_add(1);
      }
      absl::MutexLock lock(&mu);
      --running;
    });
  }
  {
    absl::MutexLock lock(&mu);
    const auto all_done = [&running] { return running == 0; };
    while (!mu.AwaitWithTimeout(absl::Condition(&all_done), absl::Milliseconds(200))) {
      if (options.on_progress)
        options.on_progress(finished.load(), static_cast<int>(workload.size()));
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (options.on_progress) options.on_progress(finished.load(), static_cast<int>(workload.size()));

  absl::Time last = start;
  absl::Time first = absl::InfiniteFuture();
  for (const RequestRecord& record : result.records) {
    first = std::min(first, record.sent);
    last = std::max(last, record.ended);
  }
  result.duration = std::max(absl::ZeroDuration(), last - first);
  result.worst_send_delay = worst_delay;
  return result;
}

}  // namespace sluice::loadgen
