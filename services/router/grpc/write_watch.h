// Ends streams whose client has stopped reading. gRPC itself waits for such a client for as long as
// its connection lives, even with the last few bytes and the status of an answer that is complete.
// Any thread.
#pragma once

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace sluice::router {

class WatchedStream {
 public:
  virtual ~WatchedStream() = default;
  // Resets the stream if what it hands to gRPC has not moved since a call that is `timeout` ago.
  virtual void EndIfStalled(absl::Time now, absl::Duration timeout) = 0;
};

class WriteWatch {
 public:
  void Add(const std::shared_ptr<WatchedStream>& stream);
  void Remove(const WatchedStream* stream);
  // A stalled stream is found `timeout` to `timeout` and two calls after it stalled.
  void Check(absl::Time now, absl::Duration timeout);

 private:
  absl::Mutex mu_;
  absl::flat_hash_map<const WatchedStream*, std::weak_ptr<WatchedStream>> streams_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::router
