#include "services/worker_runtime/load_board.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "sluice/v1/fleet.pb.h"

namespace sluice::worker {
namespace {

PeerTransport Endpoint(uint64_t id, const std::string& peer, const std::string& transport,
                       uint64_t bytes_sent) {
  PeerTransport endpoint;
  endpoint.id = PeerId(id);
  endpoint.peer = peer;
  endpoint.transport = transport;
  endpoint.bytes_sent = bytes_sent;
  endpoint.busy_sending = absl::Seconds(1);
  return endpoint;
}

TEST(LoadBoardTest, APeerIsOneRowWhateverItsEndpoints) {
  LoadBoard board(absl::UnixEpoch());
  board.PublishTransports({Endpoint(1, "decode-0", "shm", 100), Endpoint(2, "decode-1", "shm", 7),
                           Endpoint(3, "decode-0", "shm", 300),  // restarted
                           Endpoint(4, "decode-0", "tcp", 5)});
  v1::LoadReport report;
  board.FillReport(rpc::SessionId(1), /*ready=*/true, absl::UnixEpoch(), &report);
  ASSERT_EQ(report.transports_size(), 3);
  EXPECT_EQ(report.transports(0).peer(), "decode-0");
  EXPECT_EQ(report.transports(0).bytes(), 400u);
  EXPECT_EQ(report.transports(0).bytes_per_second(), 200);
  EXPECT_EQ(report.transports(1).peer(), "decode-1");
  EXPECT_EQ(report.transports(1).bytes(), 7u);
  EXPECT_EQ(report.transports(2).transport(), "tcp");
}

}  // namespace
}  // namespace sluice::worker
