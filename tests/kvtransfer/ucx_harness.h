// Channels under test: one in this process with its events sorted into boxes, and one in another
// process that obeys and can be stopped and killed. A test's main() must hand its arguments to
// RunAsPeer first.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvtransfer/channel/ucx_channel.h"

namespace sluice {

inline constexpr absl::Duration kPatience = absl::Seconds(20);

std::vector<uint8_t> Pattern(size_t size_bytes, uint32_t seed);
bool AllAre(const std::vector<uint8_t>& bytes, uint8_t value);
UcxOptions OptionsFor(const std::string& tls);

// A channel with its events sorted into boxes.
class Node {
 public:
  explicit Node(const UcxOptions& options);
  void Poll();
  // Polls (this and `other`) until done() holds; false after `patience`.
  bool WaitUntil(const std::function<bool()>& done, Node* other = nullptr,
                 absl::Duration patience = kPatience);
  bool WaitForMessages(size_t count, Node* other = nullptr) {
    return WaitUntil([&] { return messages.size() >= count; }, other);
  }
  void PollFor(absl::Duration duration) {
    WaitUntil([] { return false; }, nullptr, duration);
  }

  std::unique_ptr<KvChannel> channel;
  std::vector<ChannelEvent> messages;
  std::map<OperationId, absl::Status> sent;
  std::map<OperationId, absl::Status> received;
  std::vector<absl::Status> failed;
};

// Another process with a channel that obeys headers: "take" receives the payload and answers with a
// digest, "drop" refuses it, "hold" ignores it, "send N" sends N bytes, "send-stop N" sends them
// and stops itself, "flood N" sends N bytes again and again, "die-sending N" dies and "stop-sending
// N" stops while UCX copies the first of N bytes, "exit".
class PeerProcess {
 public:
  // `greets`: it says "hello" before it is spoken to; the constructor returns once it has tried.
  PeerProcess(const std::string& tls, const std::string& parent_address, bool greets = false);
  ~PeerProcess();
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  void WaitUntilStopped();
  bool HasStopped();
  void Signal(int signal);
  void Kill();
  const std::string& address() const { return address_; }

 private:
  pid_t pid_ = 0;
  FILE* out_ = nullptr;
  std::string address_;
};

// If the arguments say so, plays the other process, sets *exit_code and returns true.
bool RunAsPeer(int argc, char** argv, int* exit_code);

}  // namespace sluice
