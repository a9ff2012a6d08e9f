// Endpoints of a transfer agent: one for each life of a process.
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
  absl::Status Send(PeerId, std::string, std::vector<absl::Span<const uint8_t>>,
                    OperationId) override {
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

TEST_F(PeerTableTest, KnowsThatAPeerHasMoved) {
  EXPECT_FALSE(table_.HasMoved(Incarnation(7), "a"));
  const PeerId old = *table_.Ensure(Incarnation(7), "a");
  EXPECT_FALSE(table_.HasMoved(Incarnation(7), "a"));
  EXPECT_TRUE(table_.HasMoved(Incarnation(7), "b"));
  table_.Remove(Incarnation(7));
  EXPECT_FALSE(table_.HasMoved(Incarnation(7), "b"));
  EXPECT_NE(*table_.Ensure(Incarnation(7), "b"), old);
  EXPECT_THAT(channel_.disconnected, ElementsAre(old));
}

TEST_F(PeerTableTest, AnEndpointLivesAsLongAsAnyOwner) {
  const PeerId endpoint = *table_.Ensure(Incarnation(7), "a");
  EXPECT_EQ(*table_.Ensure(Incarnation(8), "a"), endpoint);
  EXPECT_THAT(table_.Owners(endpoint), ElementsAre(Incarnation(7), Incarnation(8)));
  table_.Remove(Incarnation(7));
  EXPECT_THAT(channel_.disconnected, IsEmpty());
  table_.Remove(Incarnation(8));
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

}  // namespace
}  // namespace sluice
