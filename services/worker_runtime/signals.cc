#include "services/worker_runtime/signals.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/log.h"

namespace sluice::worker {
namespace {

constexpr absl::Duration kSameSignal = absl::Milliseconds(300);

class SignalWatcherImpl final : public SignalWatcher {
 public:
  SignalWatcherImpl(int signal_fd, std::function<void(int)> on_first)
      : on_first_(std::move(on_first)),
        signal_fd_(signal_fd),
        stop_fd_(eventfd(0, EFD_CLOEXEC)),
        thread_([this] { Run(); }) {}

  ~SignalWatcherImpl() override {
    const uint64_t one = 1;
    (void)!write(stop_fd_, &one, sizeof(one));
    thread_.join();
    close(stop_fd_);
    close(signal_fd_);
  }

 private:
  void Run() {
    absl::Time first = absl::InfiniteFuture();
    while (true) {
      pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
      if (poll(fds, 2, -1) < 0) continue;
      if (fds[1].revents != 0) return;
      signalfd_siginfo info;
      if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
      const int signal = static_cast<int>(info.ssi_signo);
      const absl::Time now = MonotonicNow();
      if (first != absl::InfiniteFuture()) {
        // A terminal and a supervisor may both deliver one Ctrl-C.
        if (now - first < kSameSignal) continue;
        SLUICE_LOG(Warning) << "second signal: leaving at once";
        _exit(128 + signal);
      }
      first = now;
      on_first_(signal);
    }
  }

  const std::function<void(int)> on_first_;
  const int signal_fd_;
  const int stop_fd_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<SignalWatcher> SignalWatcher::Start(std::function<void(int)> on_first) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return std::make_unique<SignalWatcherImpl>(signalfd(-1, &set, SFD_CLOEXEC), std::move(on_first));
}

}  // namespace sluice::worker
