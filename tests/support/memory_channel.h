// KvChannels that pass messages within one process, for tests with real threads and real time. A
// payload is copied from the sender's spans when it is received, so early reuse of a source shows
// in the data. Transfers can be held in the middle, and channels as a whole. Each channel belongs
// to one thread, as KvChannel says; the hub is thread-safe and outlives its channels.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "kvtransfer/channel/kv_channel.h"

namespace sluice::testing {

class MemoryChannel;

class MemoryHub {
 public:
  std::unique_ptr<KvChannel> NewChannel();

  // While held, receives do not end (the payload is "on the wire").
  void HoldReceives(bool held);
  int num_held_receives() const;

  // While held, no Poll returns: a driver that hangs, or a write that blocks.
  void HoldPolls(bool held);
  int num_held_polls() const;

 private:
  friend class MemoryChannel;

  struct Announcement {
    std::string from;
    OperationId send_operation;
    std::vector<absl::Span<const uint8_t>> source;
    std::string to;
  };
  struct HeldReceive {
    Announcement announcement;
    std::vector<absl::Span<uint8_t>> destination;
    OperationId operation;
  };

  void Finish(const HeldReceive& receive, bool sender_lives) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Push(const std::string& to, ChannelEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool polls_return_ ABSL_GUARDED_BY(mu_) = true;
  int num_held_polls_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, MemoryChannel*> channels_ ABSL_GUARDED_BY(mu_);
  std::map<PayloadId, Announcement> announced_ ABSL_GUARDED_BY(mu_);
  std::vector<HeldReceive> held_receives_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::testing
