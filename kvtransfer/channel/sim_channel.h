// A network in one process, on virtual time, with seeded faults: it delays, drops, duplicates,
// reorders, damages, cuts links one way, and crashes or pauses processes. The same seed gives the
// same run.
//
// Rendezvous is modelled faithfully where it matters: the bytes of a large payload are read from
// the sender's spans when the receive completes, not when Send is called, so a source that is
// reused too early or a destination that is freed too early shows in the data. Every pending
// operation of a live channel ends by an event, as KvChannel promises; over a cut or after a silent
// crash it may take a Disconnect. One thread drives everything.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "kvtransfer/channel/kv_channel.h"

namespace sluice {

class SimChannel;

// How the network behaves. Probabilities are per message, transfer or crash.
struct SimFaults {
  uint64_t eager_bytes = 32 << 10;  // up to here a payload is copied by Send
  absl::Duration min_delay = absl::Microseconds(50);
  absl::Duration max_delay = absl::Milliseconds(2);
  double slow = 0;  // delayed by up to max_slow_delay instead: reorders
  absl::Duration max_slow_delay = absl::Milliseconds(800);
  double drop = 0;
  double duplicate = 0;
  double damage_header = 0;  // one flipped bit
  double damage_payload = 0;
  double fail_receive = 0;    // a receive ends with an error, after some of the bytes were written
  double hang_receive = 0;    // a receive ends only when its endpoint is given up
  double report_crash = 0.5;  // peers get kPeerFailed; otherwise only silence
  bool read_needs_sender = true;  // false: as RDMA, a paused sender's memory is still readable
};

class SimNetwork : public Clock {
 public:
  explicit SimNetwork(uint64_t seed);
  ~SimNetwork() override;

  // A new process on the network. The network outlives its channels.
  std::unique_ptr<SimChannel> NewChannel(const std::string& name);

  absl::Time Now() const override { return now_; }
  // When the network next does something; infinite when idle.
  absl::Time NextEventTime() const;
  // Moves time forward, delivering what is due. Events at one instant keep their order.
  void AdvanceTo(absl::Time time);

  void set_faults(const SimFaults& faults) { faults_ = faults; }
  // From now on messages and reads from one process to another are lost (reads wait), until healed.
  void Cut(const SimChannel* from, const SimChannel* to);
  void HealAllLinks();
  // A paused process neither serves reads nor gets reports; its driver must not poll it either.
  void SetPaused(const SimChannel* channel, bool paused);

  // For invariants: whether an operation that has not ended can still read from / write to that
  // memory.
  bool MayRead(absl::Span<const uint8_t> memory) const;
  bool MayWrite(absl::Span<const uint8_t> memory) const;

 private:
  friend class SimChannel;
  struct Announcement;  // a payload on its way

  double Chance() { return static_cast<double>(random_() >> 11) * 0x1.0p-53; }  // [0, 1)
  absl::Duration Delay();
  void At(absl::Time time, std::function<void()> action);
  SimChannel* Find(const std::string& address) const;
  bool IsCut(const std::string& from, const std::string& to) const {
    return cuts_.contains({from, to});
  }
  bool IsPaused(const std::string& address) const { return paused_.contains(address); }

  void Deliver(const std::string& from, const std::string& to, std::string header,
               std::shared_ptr<Announcement> payload);
  void StartReceive(std::shared_ptr<Announcement> payload, SimChannel* receiver,
                    std::vector<absl::Span<uint8_t>> destination, OperationId operation);
  void TryComplete(const std::string& receiver, OperationId operation);
  void EndSend(const std::shared_ptr<Announcement>& payload, absl::Status status);
  void OnGone(SimChannel* channel);

  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::mt19937_64 random_;
  SimFaults faults_;
  std::multimap<absl::Time, std::function<void()>> schedule_;
  std::map<std::string, SimChannel*> channels_;  // by address; live ones
  std::set<std::pair<std::string, std::string>> cuts_;
  std::set<std::string> paused_;
  uint64_t last_channel_ = 0;
};

// Destroying a channel is a crash of its process: its memory is not touched afterwards.
class SimChannel : public KvChannel {
 public:
  ~SimChannel() override;

  std::string LocalAddress() const override { return address_; }
  absl::StatusOr<PeerId> Connect(const std::string& address) override;
  void Disconnect(PeerId peer) override;
  absl::Status Send(PeerId peer, std::string header, std::vector<absl::Span<const uint8_t>> payload,
                    OperationId operation) override;
  absl::Status Receive(PayloadId payload, std::vector<absl::Span<uint8_t>> destination,
                       OperationId operation) override;
  void Drop(PayloadId payload) override;
  bool Poll(std::vector<ChannelEvent>* events) override;
  // Time is virtual: the driver moves it, so there is nothing to sleep on.
  void WaitForActivity(absl::Duration) override {}
  void Wake() override {}
  size_t max_header_bytes() const override { return 8192; }
  std::vector<PeerTransport> Transports() const override;

  bool has_events() const { return !events_.empty(); }
  // For invariants: the memory that pending operations of this process may still write, or read.
  std::vector<absl::Span<uint8_t>> PendingDestinations() const;
  std::vector<absl::Span<const uint8_t>> PendingSources() const;

 private:
  friend class SimNetwork;
  struct PendingReceive {
    std::shared_ptr<SimNetwork::Announcement> payload;
    std::vector<absl::Span<uint8_t>> destination;
  };
  struct PendingSend {
    std::string to;
    std::shared_ptr<SimNetwork::Announcement> payload;
  };
  struct Endpoint {
    std::string address;
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
  };

  SimChannel(SimNetwork* network, std::string address)
      : network_(network), address_(std::move(address)) {}
  PeerId EndpointTo(const std::string& address) const;
  void FinishReceive(OperationId operation, absl::Status status);
  void FinishSend(OperationId operation, absl::Status status);

  SimNetwork* const network_;
  const std::string address_;
  std::map<PeerId, Endpoint> endpoints_;
  std::map<PayloadId, std::shared_ptr<SimNetwork::Announcement>> announced_;
  std::map<OperationId, PendingReceive> receives_;
  std::map<OperationId, PendingSend> sends_;  // rendezvous only; eager payloads were copied
  std::vector<ChannelEvent> events_;
  uint64_t last_peer_ = 0;
  uint64_t last_payload_ = 0;
};

}  // namespace sluice
