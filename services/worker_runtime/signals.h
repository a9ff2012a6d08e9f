// Turns SIGTERM and SIGINT into calls: the first runs `on_first` on the watcher's thread, the
// second ends the process at once. Until a watcher exists the signals have their default effect.
#pragma once

#include <functional>
#include <memory>

namespace sluice::worker {

class SignalWatcher {
 public:
  // Blocks the signals in the calling thread and all it starts later, so call it first in main.
  // SIGPIPE is ignored from now on: a vanished peer is an error code, not the end of the process.
  static std::unique_ptr<SignalWatcher> Start(std::function<void(int signal)> on_first);
  virtual ~SignalWatcher() = default;  // stops watching
};

}  // namespace sluice::worker
