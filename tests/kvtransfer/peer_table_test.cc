// Endpoints of a transfer agent: one for each life of a process, moved when its channel starts
// anew.
#include "kvtransfer/agent/peer_table.h"

#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Connects to everything but "nobody", and takes notes.
class NotedChannel : public KvChannel {
 public:
  std::string LocalAddress() const override { return "here"; }
  absl::StatusOr<PeerId> Connect(const std::string& address) override {
    if (address == "nobody") return absl::UnavailableError("nobody is there");
    return endpoints.try_emplace(address, PeerId(endpoints.size() + 1)).first->second;
  }
  void Disconnect(PeerId peer) override { disconnected.push_back(peer); }
  absl::Status Send(PeerId peer, std::string, std::vector<absl::Span<const uint8_t>>,
                    OperationId) override {
    sent_to.push_back(peer);
    return absl::OkStatus();
  }
  absl::Status Receive(PayloadId, std::vector<absl::Span<uint8_t>>, OperationId) override {
    return absl::NotFoundError("no payloads");
  }
  void Drop(PayloadId) override {}
  bool Poll(std::vector<ChannelEvent>*) override { return false; }
  void WaitForActivity(absl::Duration) override {}
  void Wake() override {}
  size_t max_header_bytes() const override { return 8192; }
  std::vector<PeerTransport> Transports() const override { return {}; }

  std::map<std::string, PeerId> endpoints;
  std::vector<PeerId> disconnected;
  std::vector<PeerId> sent_to;
};

class PeerTableTest : public ::testing::Test {
 protected:
  NotedChannel channel_;
  PeerTable table_{
      {absl::Milliseconds(200), absl::Seconds(2), /*max_peers=*/2}, Incarnation(1), &channel_};
  const absl::Time now_ = absl::UnixEpoch();
};

TEST_F(PeerTableTest, OneEndpointForEachAddress) {
  const PeerId endpoint = *table_.Ensure(Incarnation(7), "a");
  EXPECT_EQ(*table_.Ensure(Incarnation(7), "a"), endpoint);
  EXPECT_EQ(table_.Endpoint(Incarnation(7)), endpoint);
  EXPECT_EQ(table_.Endpoint(Incarnation(8)), PeerId());
  EXPECT_THAT(table_.Owners(endpoint), ElementsAre(Incarnation(7)));
  EXPECT_THAT(channel_.disconnected, IsEmpty());
}

TEST_F(PeerTableTest, ANewAddressMovesTheEndpointOfALivePeer) {
  const PeerId old = *table_.Ensure(Incarnation(7), "a");
  table_.Attach(Incarnation(7), now_);
  const PeerId moved = *table_.Ensure(Incarnation(7), "b");
  EXPECT_NE(moved, old);
  EXPECT_THAT(channel_.disconnected, ElementsAre(old));
  EXPECT_THAT(table_.Owners(old), IsEmpty());
  EXPECT_THAT(table_.Tick(now_), IsEmpty());
  EXPECT_THAT(channel_.sent_to, ElementsAre(moved)) << "heartbeats go on, through the new one";
}

TEST_F(PeerTableTest, AnAddressThatCannotBeReachedChangesNothing) {
  const PeerId endpoint = *table_.Ensure(Incarnation(7), "a");
  EXPECT_FALSE(table_.Ensure(Incarnation(7), "nobody").ok());
  EXPECT_EQ(table_.Endpoint(Incarnation(7)), endpoint);
  EXPECT_THAT(channel_.disconnected, IsEmpty());
}

TEST_F(PeerTableTest, AnEndpointLivesAsLongAsAnyOwner) {
  const PeerId endpoint = *table_.Ensure(Incarnation(7), "a");
  EXPECT_EQ(*table_.Ensure(Incarnation(8), "a"), endpoint);
  table_.Remove(Incarnation(8));
  EXPECT_THAT(channel_.disconnected, IsEmpty());
  table_.Remove(Incarnation(7));
  EXPECT_THAT(channel_.disconnected, ElementsAre(endpoint));
}

TEST_F(PeerTableTest, IdlePeersMakeRoomAndBusyOnesDoNot) {
  const PeerId idle = *table_.Ensure(Incarnation(7), "a");
  ASSERT_TRUE(table_.Ensure(Incarnation(8), "b").ok());
  table_.Attach(Incarnation(8), now_);
  ASSERT_TRUE(table_.Ensure(Incarnation(9), "c").ok());
  EXPECT_THAT(channel_.disconnected, ElementsAre(idle));
  table_.Attach(Incarnation(9), now_);
  EXPECT_EQ(table_.Ensure(Incarnation(10), "d").status().code(),
            absl::StatusCode::kResourceExhausted);
}

// The router's word about an address may be stale: what was sent over the wrong endpoint, which
// another peer uses, must still end with the peer.
TEST_F(PeerTableTest, APeerMovedAwayFromASharedEndpointEndsWithIt) {
  const PeerId shared = *table_.Ensure(Incarnation(7), "a");
  EXPECT_EQ(*table_.Ensure(Incarnation(8), "a"), shared);
  const PeerId own = *table_.Ensure(Incarnation(8), "b");
  EXPECT_THAT(channel_.disconnected, IsEmpty());
  EXPECT_THAT(table_.Endpoints(Incarnation(8)), ElementsAre(shared, own));
  EXPECT_THAT(table_.Owners(shared), ElementsAre(Incarnation(7), Incarnation(8)));
  table_.Remove(Incarnation(7));
  EXPECT_THAT(channel_.disconnected, IsEmpty());
  table_.Remove(Incarnation(8));
  EXPECT_THAT(channel_.disconnected, ElementsAre(shared, own));
}

}  // namespace
}  // namespace sluice
