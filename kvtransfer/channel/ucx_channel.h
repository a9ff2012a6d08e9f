// KvChannel over UCX active messages: eager up to eager_max_bytes, rendezvous above, so that only
// the receiver places bytes. Shared memory within a host, RDMA or TCP between hosts, as UCX finds
// them and the options allow. docs/handoff.md, "What UCX does", has what was measured and why each
// setting is what it is.
//
// Where UCX cannot go on (a receive that never ends, a queue that a dead process left blocked) the
// channel starts anew: its endpoints fail, what is pending ends, and its address changes.
//
// UCX over TCP trusts whoever reaches its port: for isolated networks only.
// One thread owns the channel after Create; only Wake may be called from others.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kvtransfer/channel/kv_channel.h"

namespace sluice {

struct UcxOptions {
  // What peers call us, for people. Empty: host:pid.
  std::string name;
  // Transports UCX may use, as UCX_TLS: "all", "tcp", "shm,tcp", "rc,tcp". Empty: UCX_TLS of the
  // environment, or all.
  std::string tls;
  // Network devices, as UCX_NET_DEVICES: "eth0", "mlx5_0:1". Empty: of the environment, or all. Set
  // it: UCX over TCP listens on all of them.
  std::string net_devices;
  // "shm", "tcp" or "rdma": an endpoint whose payload goes another way fails with
  // FAILED_PRECONDITION, so that a slow path is found at the first message. Empty: anything goes.
  std::string expect_transport;
  uint64_t eager_max_bytes = 32 << 10;
};

// FAILED_PRECONDITION when UCX has no usable transport under these options.
absl::StatusOr<std::unique_ptr<KvChannel>> CreateUcxChannel(const UcxOptions& options);

}  // namespace sluice
