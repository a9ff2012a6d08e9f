// When the mock workers sent each token of each stream, so that the load generator can tell how
// long the router had it. Written by the mock fleet's threads, read by the load generator's: one
// process, one clock. Times are CLOCK_MONOTONIC nanoseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace sluice::bench {

int64_t NowNanoseconds();

class TokenLedger {
 public:
  explicit TokenLedger(int num_streams) : streams_(static_cast<size_t>(num_streams)) {}

  int num_streams() const { return static_cast<int>(streams_.size()); }

  // REQUIRES: 0 <= stream < num_streams().
  void MarkSent(int stream, int64_t index, int64_t now_ns) {
    Slot(stream, index).store(now_ns, std::memory_order_relaxed);
  }
  // A token that came more than kDepth tokens late reads the time of a later one.
  int64_t SentAt(int stream, int64_t index) {
    return Slot(stream, index).load(std::memory_order_relaxed);
  }

 private:
  static constexpr int kDepth = 64;
  struct Stream {
    std::atomic<int64_t> sent_ns[kDepth] = {};  // by index modulo kDepth
  };
  std::atomic<int64_t>& Slot(int stream, int64_t index) {
    return streams_[static_cast<size_t>(stream)].sent_ns[index % kDepth];
  }

  std::vector<Stream> streams_;
};

// A stream is named by the first two tokens of its prompt.
inline constexpr int kMaxStreams = 1 << 16;
inline constexpr int kStreamTokenBase = 256;  // the lowest id used; ids go up to 511
inline int FirstStreamToken(int stream) { return kStreamTokenBase + (stream >> 8); }
inline int SecondStreamToken(int stream) { return kStreamTokenBase + (stream & 255); }
inline int StreamOf(int first, int second) {
  return ((first - kStreamTokenBase) << 8) + (second - kStreamTokenBase);
}

}  // namespace sluice::bench
