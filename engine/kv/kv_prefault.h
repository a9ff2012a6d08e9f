// Takes a KV store's memory from the system soon after start, on a thread that pauses when others
// want its core. The kernel zeroes a page, of a huge one 2 MiB, when it is touched first, and a
// hypervisor may have to find it: up to 10 ms that the transfer or step which is first to use a
// block would wait. And memory that is missing is missed then, not under load.
//
// The bytes stay as they are, whoever writes there meanwhile: this only asks the kernel for its
// pages. Does nothing where the kernel does not know the request (Linux before 5.14).
#pragma once

#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/monotonic_cond_var.h"

namespace sluice {

class KvPrefault {
 public:
  // `memory` begins at a page and outlives this. Begins after `delay`; returns at once.
  KvPrefault(absl::Span<uint8_t> memory, absl::Duration delay);
  ~KvPrefault();  // stops after the 2 MiB it is at
  KvPrefault(const KvPrefault&) = delete;
  KvPrefault& operator=(const KvPrefault&) = delete;

 private:
  void Run(absl::Duration delay);
  // Waits as long, 0: not at all. Whether to stop.
  bool StopsWithin(absl::Duration timeout);

  const absl::Span<uint8_t> memory_;
  absl::Mutex mu_;
  MonotonicCondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // ends by itself when all is touched
};

}  // namespace sluice
