// The endpoints of a UCX channel: connecting, noticing that the other side connected anew, failing,
// closing, and which way each one's payload goes. Owned by the channel; its thread.
#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvtransfer/channel/kv_channel.h"
#include "kvtransfer/channel/ucx_address.h"

namespace sluice {

class UcxPeers {
 public:
  // Before every header: who sends it, through which of its endpoints to us (they are numbered
  // upwards), and which endpoint of ours that one was made in answer to (0: none).
  struct Prefix {
    uint64_t channel_id = 0;
    uint64_t generation = 0;
    uint64_t answers = 0;
  };
  // Payloads pending in one direction, and since when.
  struct Activity {
    int num_pending = 0;
    absl::Time since;
    absl::Duration busy;
    uint64_t bytes = 0;
    void Begin();
    void End();
  };
  struct Peer {
    UcxPeers* owner = nullptr;
    PeerId id;
    uint64_t remote_id = 0;
    uint64_t answers = 0;
    uint64_t remote_generation = 0;  // 0: not heard of yet
    std::string name;
    ucp_ep_h endpoint = nullptr;  // null: closing, or its worker is gone
    // Over TCP: UCX has taken a message for it, or is not asked any longer.
    bool connected = false;
    absl::Time connecting_until;
    bool failed = false;
    bool described = false;
    std::string lanes;
    std::string transport;
    Activity sending;
    Activity receiving;
  };
  using OnFailed = std::function<void(PeerId, absl::Status)>;

  // `on_failed` is called once for each endpoint that fails, from within UCX's progress too.
  UcxPeers(std::string expect_transport, OnFailed on_failed)
      : expect_transport_(std::move(expect_transport)), on_failed_(std::move(on_failed)) {}

  // Cheap and idempotent per channel. UNAVAILABLE for a while after connecting to it has failed.
  absl::StatusOr<PeerId> Connect(ucp_worker_h worker, const UcxAddress& address);
  Peer* Find(PeerId id);
  // Forced: no flush, which a dead peer would never answer. UCX ends what is pending, if it can,
  // within the grace.
  void Close(PeerId id, absl::Duration grace);
  // Endpoints whose grace is over; they are forgotten.
  std::vector<PeerId> TakeClosed(absl::Time now);
  absl::Time NextClosed() const;
  // The worker is about to be destroyed: every endpoint fails.
  void FailAll(const absl::Status& status);
  std::vector<PeerId> ids() const;

  // The endpoint that a message can be answered through; 0: none.
  PeerId Heard(const Prefix& prefix);
  // Looks once which way the payload goes; fails an endpoint that goes the wrong way.
  void CheckTransport(Peer* peer);
  std::vector<PeerTransport> Transports();

 private:
  // What is known of another channel, connected or not. A generation above the known one that does
  // not answer our endpoint means: the peer gave up its endpoint and made a new one. Ours belongs
  // to the old one then, and over shared memory nothing else would tell.
  struct Remote {
    PeerId peer;
    uint64_t heard = 0;    // highest generation heard
    uint64_t burnt = 0;    // generations up to here belong to endpoints that we gave up
    int num_failures = 0;  // in a row, to connect
    absl::Time retry_at = absl::InfinitePast();
  };
  struct Closing {
    std::unique_ptr<Peer> peer;  // UCX may still name it in a callback
    void* request = nullptr;
    absl::Time until;
  };

  static void OnEndpointError(void* peer, ucp_ep_h endpoint, ucs_status_t status);
  Remote& RemoteOf(uint64_t channel_id);
  void Fail(Peer* peer, absl::Status status);
  void CountFailure(uint64_t remote_id, const std::string& name, const absl::Status& status);
  void Describe(Peer* peer);

  const std::string expect_transport_;
  const OnFailed on_failed_;
  absl::flat_hash_map<PeerId, std::unique_ptr<Peer>> peers_;
  absl::flat_hash_map<uint64_t, Remote> remotes_;  // by channel id
  std::deque<Closing> closing_;                    // in order of their end
  uint64_t last_peer_ = 0;
};

}  // namespace sluice
