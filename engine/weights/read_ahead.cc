#include "engine/weights/read_ahead.h"

#include <algorithm>

namespace sluice {
namespace {

// Linux reads no more for one hint than its read-ahead window or the device's largest request, and
// drops the rest without a word. 128 KiB is the usual window. A hint waits while the device's queue
// is full, which is what keeps us at its pace.
constexpr uint64_t kPieceBytes = uint64_t{128} << 10;

}  // namespace

ReadAhead::ReadAhead(const Checkpoint* checkpoint) : checkpoint_(*checkpoint) {
  thread_ = std::thread([this] { Run(); });
}

ReadAhead::~ReadAhead() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void ReadAhead::Want(absl::string_view prefix) {
  const std::vector<FileRange> ranges = checkpoint_.RangesOf(prefix);
  absl::MutexLock lock(&mu_);
  wanted_.insert(wanted_.end(), ranges.begin(), ranges.end());
}

void ReadAhead::Run() {
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || !wanted_.empty();
  };
  while (true) {
    FileRange range;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&has_work));
      if (stopping_) return;
      range = wanted_.front();
      wanted_.pop_front();
    }
    for (uint64_t at = range.begin; at < range.end && !stopping_; at += kPieceBytes) {
      range.file->WillRead(at, std::min(range.end, at + kPieceBytes));
    }
  }
}

}  // namespace sluice
