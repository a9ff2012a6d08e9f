// Keeps the calling thread, and processes it starts, on one core for as long as it lives. Linux.
#pragma once

#include <sched.h>

namespace sluice::bench {

class OneCore {
 public:
  OneCore() {
    if (sched_getaffinity(0, sizeof(before_), &before_) != 0) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    is_set_ = sched_setaffinity(0, sizeof(one), &one) == 0;
  }
  ~OneCore() {
    if (is_set_) sched_setaffinity(0, sizeof(before_), &before_);
  }
  bool is_set() const { return is_set_; }  // false: the system refused
  OneCore(const OneCore&) = delete;
  OneCore& operator=(const OneCore&) = delete;

 private:
  cpu_set_t before_;
  bool is_set_ = false;
};

}  // namespace sluice::bench
