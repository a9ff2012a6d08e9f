#include "tests/kvtransfer/ucx_harness.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iostream>
#include <numeric>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gtest/gtest.h"

namespace sluice {
namespace {

constexpr char kPeerFlag[] = "--peer";
constexpr char kGreetsFlag[] = "--greets";
constexpr size_t kFloodWindow = 4;  // payloads of a flood in flight

absl::Span<uint8_t> trapped;

void StopInTheTrap(int) {
  raise(SIGSTOP);
  mprotect(trapped.data(), trapped.size(), PROT_READ);
}

// Memory whose first reader dies, or stops and then goes on.
absl::Span<const uint8_t> Trap(size_t size_bytes, bool stop) {
  void* memory = mmap(nullptr, size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  trapped = absl::MakeSpan(static_cast<uint8_t*>(memory), size_bytes);
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  signal(SIGSEGV, stop ? &StopInTheTrap : SIG_DFL);
  return trapped;
}

// What the other process does with one message after the other.
class ObedientPeer {
 public:
  ObedientPeer(const std::string& tls, bool greets) : node_(OptionsFor(tls)), greets_(greets) {}

  int Run() {
    std::cout << "ADDRESS " << absl::BytesToHexString(node_.channel->LocalAddress()) << std::endl;
    std::string line;
    std::getline(std::cin, line);
    absl::StatusOr<PeerId> parent = node_.channel->Connect(absl::HexStringToBytes(line));
    if (!parent.ok()) return 3;
    parent_ = *parent;
    if (greets_) {
      buffers_.push_back(Pattern(1 << 20, 7));  // UCX shakes hands before it offers as much
      Send("hello", {absl::MakeConstSpan(buffers_.back())});
      node_.PollFor(absl::Milliseconds(20));
      std::cout << "GREETED" << std::endl;
    }
    // No longer than any test waits, should the parent die.
    for (absl::Time end = MonotonicNow() + absl::Seconds(60); MonotonicNow() < end;) {
      node_.Poll();
      std::vector<ChannelEvent> messages = std::move(node_.messages);
      node_.messages.clear();
      for (const ChannelEvent& message : messages) {
        if (message.header == "exit") return 0;
        if (!Obey(message)) return 4;
      }
      if (flood_bytes_ > 0) Flood();
      node_.channel->WaitForActivity(absl::Milliseconds(100));
    }
    return 0;
  }

 private:
  bool Obey(const ChannelEvent& message) {
    uint64_t size_bytes = 0;
    size_t space = message.header.find(' ');
    bool has_size = space != std::string::npos &&
                    absl::SimpleAtoi(message.header.substr(space + 1), &size_bytes);
    if (message.header == "take") {
      buffers_.emplace_back(message.payload_bytes);
      OperationId id(++operation_);
      if (!node_.channel->Receive(message.payload, {absl::MakeSpan(buffers_.back())}, id).ok() ||
          !node_.WaitUntil([&] { return node_.received.contains(id); })) {
        return false;
      }
      uint64_t sum = std::accumulate(buffers_.back().begin(), buffers_.back().end(), uint64_t{0});
      Send(absl::StrCat("took ", sum), {});
    } else if (message.header == "drop") {
      node_.channel->Drop(message.payload);
      Send("dropped", {});
    } else if (has_size && absl::StrContains(message.header, "-sending")) {
      Send("data", {Trap(size_bytes, absl::StartsWith(message.header, "stop"))});
    } else if (has_size && absl::StartsWith(message.header, "flood")) {
      flood_bytes_ = size_bytes;
      buffers_.push_back(Pattern(size_bytes, 7));
    } else if (has_size) {
      buffers_.push_back(Pattern(size_bytes, 7));
      Send("data", {absl::MakeConstSpan(buffers_.back())});
      if (absl::StartsWith(message.header, "send-stop")) {
        // Long enough to send off what announces the data, even when the machine stalls.
        node_.PollFor(absl::Milliseconds(400));
        raise(SIGSTOP);
      }
    }
    return true;
  }

  void Flood() {
    while (flood_.size() >= kFloodWindow && node_.sent.contains(flood_.front())) flood_.pop_front();
    while (flood_.size() < kFloodWindow) {
      Send("data", {absl::MakeConstSpan(buffers_.back())});
      flood_.push_back(OperationId(operation_));
    }
  }

  void Send(std::string header, std::vector<absl::Span<const uint8_t>> payload) {
    node_.channel->Send(parent_, std::move(header), std::move(payload), OperationId(++operation_))
        .IgnoreError();
  }

  Node node_;
  const bool greets_;
  PeerId parent_;
  std::deque<std::vector<uint8_t>> buffers_;  // alive until the end
  std::deque<OperationId> flood_;
  uint64_t flood_bytes_ = 0;
  uint64_t operation_ = 0;
};

}  // namespace

std::vector<uint8_t> Pattern(size_t size_bytes, uint32_t seed) {
  std::vector<uint8_t> bytes(size_bytes);
  uint32_t state = seed * 2654435761u + 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

bool AllAre(const std::vector<uint8_t>& bytes, uint8_t value) {
  return std::all_of(bytes.begin(), bytes.end(), [value](uint8_t b) { return b == value; });
}

UcxOptions OptionsFor(const std::string& tls) {
  UcxOptions options;
  options.tls = tls;
  if (tls == "tcp") options.net_devices = "lo";
  return options;
}

Node::Node(const UcxOptions& options) {
  absl::StatusOr<std::unique_ptr<KvChannel>> created = CreateUcxChannel(options);
  if (!created.ok()) {
    ADD_FAILURE() << created.status();
    std::abort();
  }
  channel = *std::move(created);
}

void Node::Poll() {
  std::vector<ChannelEvent> events;
  channel->Poll(&events);
  for (ChannelEvent& event : events) {
    switch (event.kind) {
      case ChannelEvent::Kind::kMessage:
        messages.push_back(std::move(event));
        break;
      case ChannelEvent::Kind::kSendDone:
        sent[event.operation] = event.status;
        break;
      case ChannelEvent::Kind::kReceiveDone:
        received[event.operation] = event.status;
        break;
      case ChannelEvent::Kind::kPeerFailed:
        failed.push_back(event.status);
        break;
    }
  }
}

bool Node::WaitUntil(const std::function<bool()>& done, Node* other, absl::Duration patience) {
  absl::Time deadline = MonotonicNow() + patience;
  while (MonotonicNow() < deadline) {
    Poll();
    if (other != nullptr) other->Poll();
    if (done()) return true;
    if (other == nullptr) channel->WaitForActivity(absl::Milliseconds(20));
  }
  return false;
}

PeerProcess::PeerProcess(const std::string& tls, const std::string& parent_address, bool greets) {
  int to_child[2], from_child[2];
  if (pipe(to_child) != 0 || pipe(from_child) != 0) std::abort();
  pid_ = fork();
  if (pid_ == 0) {
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    close(to_child[1]);
    close(from_child[0]);
    execl("/proc/self/exe", "peer", kPeerFlag, tls.c_str(), greets ? kGreetsFlag : nullptr,
          nullptr);
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  FILE* out = fdopen(from_child[0], "r");
  char line[8192];
  while (fgets(line, sizeof(line), out) != nullptr) {
    if (std::strncmp(line, "ADDRESS ", 8) != 0) continue;  // UCX warns on stdout
    std::string hex(line + 8);
    hex.pop_back();
    address_ = absl::HexStringToBytes(hex);
    break;
  }
  out_ = out;
  std::string answer = absl::BytesToHexString(parent_address) + "\n";
  if (write(to_child[1], answer.data(), answer.size()) < 0) std::abort();
  close(to_child[1]);
  while (greets && fgets(line, sizeof(line), out) != nullptr &&
         std::strncmp(line, "GREETED", 7) != 0) {
  }
}

PeerProcess::~PeerProcess() {
  Kill();
  fclose(out_);
}

void PeerProcess::WaitUntilStopped() { waitpid(pid_, nullptr, WUNTRACED); }

bool PeerProcess::HasStopped() { return waitpid(pid_, nullptr, WUNTRACED | WNOHANG) == pid_; }

void PeerProcess::Signal(int signal) { kill(pid_, signal); }

void PeerProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = 0;
}

bool RunAsPeer(int argc, char** argv, int* exit_code) {
  if (argc < 3 || std::strcmp(argv[1], kPeerFlag) != 0) return false;
  signal(SIGPIPE, SIG_IGN);
  const bool greets = argc > 3 && std::strcmp(argv[3], kGreetsFlag) == 0;
  *exit_code = ObedientPeer(argv[2], greets).Run();
  return true;
}

}  // namespace sluice
