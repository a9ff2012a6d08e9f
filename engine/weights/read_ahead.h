// Brings tensors from the disk into the system's page cache before they are asked for, on a thread
// of its own, so that loading takes as long as the slower of reading and packing and not as long as
// both. Owned by whoever loads; one thread calls it.
#pragma once

#include <atomic>
#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/weights/checkpoint.h"

namespace sluice {

class ReadAhead {
 public:
  // `checkpoint` outlives the reader.
  explicit ReadAhead(const Checkpoint* checkpoint);
  ~ReadAhead();  // drops what was not read yet
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // Every tensor whose name begins with `prefix`, in the order of their files, after all that was
  // wanted before. Returns at once. The caller bounds the memory: what is cached and not used yet.
  void Want(absl::string_view prefix);

 private:
  void Run();

  const Checkpoint& checkpoint_;
  std::atomic<bool> stopping_{false};
  absl::Mutex mu_;
  std::deque<FileRange> wanted_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sluice
