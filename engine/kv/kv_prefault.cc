#include "engine/kv/kv_prefault.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "common/clock.h"
#include "common/log.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace sluice {
namespace {

// One request to the kernel: a huge page.
constexpr size_t kPieceBytes = size_t{2} << 20;
// Where others wanted its core meanwhile, a piece is followed by a pause three times as long. Not
// by a low priority: while a piece is taken the kernel holds a lock that every mmap of the process
// needs, and kept from its core by others this thread held it for up to 1.6 s.
constexpr int kPauseRatio = 3;
constexpr absl::Duration kLongestPause = absl::Milliseconds(100);

// How often this thread had to leave its core to another one.
int64_t NumPreemptions() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nivcsw;
}

}  // namespace

KvPrefault::KvPrefault(absl::Span<uint8_t> memory, absl::Duration delay) : memory_(memory) {
  thread_ = std::thread([this, delay] { Run(delay); });
  pthread_setname_np(thread_.native_handle(), "kv-prefault");
}

KvPrefault::~KvPrefault() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  stop_.Signal();
  thread_.join();
}

bool KvPrefault::StopsWithin(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  return stop_.Await(&mu_, absl::Condition(&stopping_), timeout);
}

void KvPrefault::Run(absl::Duration delay) {
  absl::Duration pause = delay;
  for (size_t done = 0; done < memory_.size(); done += kPieceBytes) {
    if (StopsWithin(pause)) return;
    const absl::Time begin = MonotonicNow();
    const int64_t preemptions_before = NumPreemptions();
    const size_t piece = std::min(kPieceBytes, memory_.size() - done);
    const int error = madvise(memory_.data() + done, piece, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
    pause = NumPreemptions() == preemptions_before
                ? absl::ZeroDuration()
                : std::min(kPauseRatio * (MonotonicNow() - begin), kLongestPause);
    if (error == 0) continue;
    if (error == EINVAL) return;  // an old kernel; the blocks are touched as they are used
    if (error == EINTR || error == EAGAIN) continue;  // likewise this piece
    SLUICE_LOG(Warning)
        << "KV cache: the system gave " << (done >> 20) << " of " << (memory_.size() >> 20)
        << " MiB (" << std::strerror(error)
        << "); lower kv_cache or num_kv_blocks if workers are killed for want of memory";
    return;
  }
}

}  // namespace sluice
