#include "services/router/grpc/write_watch.h"

#include <utility>
#include <vector>

namespace sluice::router {

void WriteWatch::Add(const std::shared_ptr<WatchedStream>& stream) {
  absl::MutexLock lock(&mu_);
  streams_[stream.get()] = stream;
}

void WriteWatch::Remove(const WatchedStream* stream) {
  absl::MutexLock lock(&mu_);
  streams_.erase(stream);
}

void WriteWatch::Check(absl::Time now, absl::Duration timeout) {
  std::vector<std::shared_ptr<WatchedStream>> alive;
  {
    absl::MutexLock lock(&mu_);
    alive.reserve(streams_.size());
    for (const auto& [_, stream] : streams_) {
      if (std::shared_ptr<WatchedStream> held = stream.lock()) alive.push_back(std::move(held));
    }
  }
  for (const auto& stream : alive) stream->EndIfStalled(now, timeout);
}

}  // namespace sluice::router
