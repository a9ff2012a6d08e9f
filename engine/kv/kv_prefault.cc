#include "engine/kv/kv_prefault.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"
#include "common/niceness.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace sluice {
namespace {

// One request to the kernel: a huge page.
constexpr size_t kPieceBytes = size_t{2} << 20;
constexpr int kLowestPriority = 19;

}  // namespace

KvPrefault::KvPrefault(absl::Span<uint8_t> memory, absl::Duration delay) : memory_(memory) {
  thread_ = std::thread([this, delay] {
    SetNicenessOfThisThread(kLowestPriority);
    Run(delay);
  });
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
  if (StopsWithin(delay)) return;
  for (size_t done = 0; done < memory_.size(); done += kPieceBytes) {
    if (StopsWithin(absl::ZeroDuration())) return;
    const size_t piece = std::min(kPieceBytes, memory_.size() - done);
    if (madvise(memory_.data() + done, piece, MADV_POPULATE_WRITE) == 0) continue;
    if (errno == EINVAL) return;  // an old kernel; the blocks are touched as they are used
    if (errno == EINTR || errno == EAGAIN) continue;  // likewise this piece
    SLUICE_LOG(Warning)
        << "KV cache: the system gave " << (done >> 20) << " of " << (memory_.size() >> 20)
        << " MiB (" << std::strerror(errno)
        << "); lower kv_cache or num_kv_blocks if workers are killed for want of memory";
    return;
  }
}

}  // namespace sluice
