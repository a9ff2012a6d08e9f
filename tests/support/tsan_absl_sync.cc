// Teaches ThreadSanitizer what the packaged Abseil does. libabsl is compiled without
// instrumentation, so its mutexes would order nothing in the sanitizer's eyes and everything they
// guard would look like a race. The functions below take the library's place (the executable's
// symbols win over those of a shared library, for gRPC's own calls too), do the real work through
// dlsym, and add the happens-before edges: release before unlocking, acquire after locking.
//
// Conditions are evaluated inside the library, by whichever thread holds the lock, where no edge
// can be added in time; accesses during those calls are left unchecked.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace {

#define SLUICE_STRING_INNER(x) #x
#define SLUICE_STRING(x) SLUICE_STRING_INNER(x)
// Mangled prefix of Abseil's inline namespace, "_ZN4absl7debian3" or "_ZN4absl12lts_20220623".
std::string AbslSymbol(bool is_const, const char* rest) {
  const std::string space = SLUICE_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  return std::string(is_const ? "_ZNK4absl" : "_ZN4absl") + std::to_string(space.size()) + space +
         rest;
}

template <typename Function>
Function* Real(const char* rest, bool is_const = false) {
  const std::string symbol = AbslSymbol(is_const, rest);
  void* found = dlsym(RTLD_NEXT, symbol.c_str());
  if (found == nullptr) {
    std::fprintf(stderr, "tsan_absl_sync: %s is not in the Abseil of this machine\n",
                 symbol.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(found);
}

// Accesses of this thread are unchecked while one lives.
struct Unchecked {
  Unchecked() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unchecked() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

void Acquire(const void* sync) { __tsan_acquire(const_cast<void*>(sync)); }
void Release(const void* sync) { __tsan_release(const_cast<void*>(sync)); }

// The call that may evaluate conditions.
template <typename Function, typename... Args>
auto CallUnchecked(Function* real, Args... args) {
  const Unchecked unchecked;
  return real(args...);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

// Taking the lock, whatever the outcome of a condition or deadline: it is held afterwards.
#define SLUICE_TAKES(signature, mangled, type, ...)  \
  signature {                                        \
    static auto* const real = Real<type>(mangled);   \
    struct AcquireAtEnd {                            \
      const void* sync;                              \
      ~AcquireAtEnd() { Acquire(sync); }             \
    } const at_end{this};                            \
    return CallUnchecked(real, this, ##__VA_ARGS__); \
  }
// Taking it with a moment in which it is free.
#define SLUICE_RETAKES(signature, mangled, type, ...) \
  signature {                                         \
    static auto* const real = Real<type>(mangled);    \
    Release(this);                                    \
    struct AcquireAtEnd {                             \
      const void* sync;                               \
      ~AcquireAtEnd() { Acquire(sync); }              \
    } const at_end{this};                             \
    return CallUnchecked(real, this, ##__VA_ARGS__);  \
  }
#define SLUICE_TRIES(signature, mangled)                   \
  signature {                                              \
    static auto* const real = Real<bool(Mutex*)>(mangled); \
    const bool taken = real(this);                         \
    if (taken) Acquire(this);                              \
    return taken;                                          \
  }
#define SLUICE_GIVES(signature, mangled)                   \
  signature {                                              \
    static auto* const real = Real<void(Mutex*)>(mangled); \
    Release(this);                                         \
    CallUnchecked(real, this);                             \
  }

using ConditionPtr = const Condition*;

SLUICE_TAKES(void Mutex::Lock(), "5Mutex4LockEv", void(Mutex*))
SLUICE_TAKES(void Mutex::ReaderLock(), "5Mutex10ReaderLockEv", void(Mutex*))
SLUICE_TRIES(bool Mutex::TryLock(), "5Mutex7TryLockEv")
SLUICE_TRIES(bool Mutex::ReaderTryLock(), "5Mutex13ReaderTryLockEv")
SLUICE_GIVES(void Mutex::Unlock(), "5Mutex6UnlockEv")
SLUICE_GIVES(void Mutex::ReaderUnlock(), "5Mutex12ReaderUnlockEv")

SLUICE_TAKES(void Mutex::LockWhen(const Condition& cond), "5Mutex8LockWhenERKNS0_9ConditionE",
             void(Mutex*, ConditionPtr), &cond)
SLUICE_TAKES(bool Mutex::LockWhenWithTimeout(const Condition& cond, Duration timeout),
             "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE",
             bool(Mutex*, ConditionPtr, Duration), &cond, timeout)
SLUICE_TAKES(bool Mutex::LockWhenWithDeadline(const Condition& cond, Time deadline),
             "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE",
             bool(Mutex*, ConditionPtr, Time), &cond, deadline)
SLUICE_TAKES(void Mutex::ReaderLockWhen(const Condition& cond),
             "5Mutex14ReaderLockWhenERKNS0_9ConditionE", void(Mutex*, ConditionPtr), &cond)
SLUICE_RETAKES(void Mutex::Await(const Condition& cond), "5Mutex5AwaitERKNS0_9ConditionE",
               void(Mutex*, ConditionPtr), &cond)
SLUICE_RETAKES(bool Mutex::AwaitWithTimeout(const Condition& cond, Duration timeout),
               "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE",
               bool(Mutex*, ConditionPtr, Duration), &cond, timeout)
SLUICE_RETAKES(bool Mutex::AwaitWithDeadline(const Condition& cond, Time deadline),
               "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE",
               bool(Mutex*, ConditionPtr, Time), &cond, deadline)

void CondVar::Wait(Mutex* mu) {
  static auto* const real = Real<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  Release(mu);
  CallUnchecked(real, this, mu);
  Acquire(mu);
}

bool CondVar::WaitWithTimeout(Mutex* mu, Duration timeout) {
  static auto* const real = Real<bool(CondVar*, Mutex*, Duration)>(
      "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  Release(mu);
  const bool timed_out = CallUnchecked(real, this, mu, timeout);
  Acquire(mu);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mu, Time deadline) {
  static auto* const real =
      Real<bool(CondVar*, Mutex*, Time)>("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  Release(mu);
  const bool timed_out = CallUnchecked(real, this, mu, deadline);
  Acquire(mu);
  return timed_out;
}

void Notification::Notify() {
  static auto* const real = Real<void(Notification*)>("12Notification6NotifyEv");
  Release(&notified_yet_);
  CallUnchecked(real, this);
}

void Notification::WaitForNotification() const {
  static auto* const real =
      Real<void(const Notification*)>("12Notification19WaitForNotificationEv", true);
  CallUnchecked(real, this);
  Acquire(&notified_yet_);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const real = Real<bool(const Notification*, Duration)>(
      "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE", true);
  const bool notified = CallUnchecked(real, this, timeout);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  static auto* const real = Real<bool(const Notification*, Time)>(
      "12Notification31WaitForNotificationWithDeadlineENS0_4TimeE", true);
  const bool notified = CallUnchecked(real, this, deadline);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
