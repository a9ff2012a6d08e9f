// The codec: what is written is read back; whatever else arrives is refused without harm.
#include "kvtransfer/handoff/messages.h"

#include <rapidcheck.h>
#include <xxhash.h>

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::handoff {
namespace {

TransferId SomeTransfer() {
  TransferId id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(i + 1);
  return id;
}

std::vector<Body> OneOfEach() {
  Bind bind;
  bind.attempt = Attempt(3);
  bind.begin_token = 64;
  bind.end_token = 1000;
  bind.block_tokens = 64;
  bind.block_bytes = 70272 * 64;
  bind.fingerprint = std::string("\0\1\xff", 3);
  bind.reply_address = "address";
  Final final;
  final.num_offers = 7;
  final.end_token = 1000;
  final.first = {-5, -0.25f, {{1, -1.5f}, {2, -2.5f}}};
  Fetch fetch;
  fetch.into.bytes.fill(7);
  fetch.begin_token = 64;
  fetch.end_token = 640;
  fetch.block_tokens = 64;
  fetch.block_bytes = 70272 * 64;
  fetch.fingerprint = std::string("\0\1\xff", 3);
  fetch.reply_address = "address";
  return {bind,
          Offer{4, 64, 128, 1 << 20, 0xfedcba9876543210u},
          Ack{3, "\x05\x80", 32 << 20, 5000},
          final,
          Commit{},
          Cancel{Side::kReceiver, absl::StatusCode::kDeadlineExceeded, "late"},
          CancelAck{Side::kSender},
          Nack{NackCode::kBadSum, 9},
          Heartbeat{},
          fetch};
}

TEST(Messages, ReadBackAsWritten) {
  for (const Body& body : OneOfEach()) {
    Frame frame{Incarnation(11), Incarnation(22), SomeTransfer(), body};
    absl::StatusOr<Frame> read = Decode(Encode(frame));
    ASSERT_TRUE(read.ok()) << BodyName(body) << ": " << read.status();
    EXPECT_EQ(*read, frame) << BodyName(body);
  }
}

TEST(Messages, AnyFlippedBitIsRefused) {
  for (const Body& body : OneOfEach()) {
    const std::string good = Encode({Incarnation(11), Incarnation(22), SomeTransfer(), body});
    for (size_t bit = 0; bit < good.size() * 8; ++bit) {
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
      EXPECT_FALSE(Decode(bad).ok()) << BodyName(body) << " bit " << bit;
    }
  }
}

TEST(Messages, EveryTruncationAndExtensionIsRefused) {
  for (const Body& body : OneOfEach()) {
    const std::string good = Encode({Incarnation(11), Incarnation(22), SomeTransfer(), body});
    for (size_t size = 0; size < good.size(); ++size)
      EXPECT_FALSE(Decode(good.substr(0, size)).ok());
    EXPECT_FALSE(Decode(good + "x").ok());
  }
}

TEST(Messages, ReasonsAreCutNotRefused) {
  Cancel cancel{Side::kSender, absl::StatusCode::kInternal, std::string(5000, 'r')};
  absl::StatusOr<Frame> read = Decode(Encode({Incarnation(1), Incarnation(2), {}, cancel}));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(std::get<Cancel>(read->body).reason.size(), kMaxReasonBytes);
}

// With a valid check, so that the parser itself is exercised and not only the check in front of it.
std::string Sealed(std::string bytes) {
  uint32_t check = static_cast<uint32_t>(XXH3_64bits(bytes.data(), bytes.size()));
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(check >> (8 * i)));
  return bytes;
}

TEST(Messages, ReasonsAreValidUtf8) {
  const auto read = [](const std::string& bytes) {
    return std::get<Cancel>(Decode(bytes)->body).reason;
  };
  const auto written = [](const std::string& reason) {
    return Encode({Incarnation(1),
                   Incarnation(2),
                   {},
                   Cancel{Side::kSender, absl::StatusCode::kInternal, reason}});
  };
  EXPECT_EQ(read(written("caf\xC3")), "caf\uFFFD");
  // Cut at a character's end.
  EXPECT_EQ(read(written(std::string(kMaxReasonBytes - 1, 'r') + "é")), std::string(255, 'r'));
  // A peer that does not keep to it.
  std::string bytes = written("reason");
  bytes.resize(bytes.size() - 4);
  bytes[bytes.size() - 1] = '\xFF';
  EXPECT_EQ(read(Sealed(bytes)), "reaso\uFFFD");
}

TEST(Messages, HostileBodiesNeverCrash) {
  std::mt19937_64 random(1);
  size_t accepted = 0;
  for (int round = 0; round < 200000; ++round) {
    const std::vector<Body> bodies = OneOfEach();
    std::string bytes =
        Encode({Incarnation(1), Incarnation(2), SomeTransfer(), bodies[random() % bodies.size()]});
    bytes.resize(bytes.size() - 4);
    for (int changes = static_cast<int>(random() % 4); changes >= 0; --changes) {
      switch (random() % 4) {
        case 0:
          bytes[5 + random() % (bytes.size() - 5)] = static_cast<char>(random());
          break;
        case 1:
          bytes[5 + random() % (bytes.size() - 5)] = '\xff';
          break;
        case 2:
          bytes.resize(6 + random() % bytes.size());
          break;
        default:
          bytes.append(random() % 40, static_cast<char>(random()));
      }
    }
    absl::StatusOr<Frame> read = Decode(Sealed(bytes));
    if (!read.ok()) continue;
    ++accepted;
    EXPECT_TRUE(Decode(Encode(*read)).ok());  // what is accepted is within bounds
  }
  EXPECT_GT(accepted, 1000u);
}

TEST(Messages, RandomBytesAreRefused) {
  rc::check([](const std::string& bytes) { RC_ASSERT(!Decode(bytes).ok()); });
}

TEST(Messages, RandomFieldsAreReadBack) {
  rc::check([](uint32_t cumulative, uint64_t window, uint32_t lease, std::string bitmap,
               uint64_t sender, uint64_t target) {
    bitmap.resize(std::min(bitmap.size(), kMaxBitmapBytes));
    Frame frame{Incarnation(sender), Incarnation(target), SomeTransfer(),
                Ack{cumulative, bitmap, window, lease}};
    absl::StatusOr<Frame> read = Decode(Encode(frame));
    RC_ASSERT(read.ok());
    RC_ASSERT(*read == frame);
  });
}

TEST(PayloadChecksum, DependsOnBytesTransferAndPosition) {
  const uint8_t data[] = {1, 2, 3, 4, 5, 6};
  auto sum = [&](const TransferId& transfer, uint32_t begin, size_t split) {
    PayloadChecksum checksum(transfer, begin);
    checksum.Update(data, split);
    checksum.Update(data + split, sizeof(data) - split);
    return checksum.Finish();
  };
  EXPECT_EQ(sum(SomeTransfer(), 64, 2), sum(SomeTransfer(), 64, 5));
  EXPECT_NE(sum(SomeTransfer(), 64, 2), sum(SomeTransfer(), 128, 2));
  EXPECT_NE(sum(SomeTransfer(), 64, 2), sum(TransferId(), 64, 2));
}

}  // namespace
}  // namespace sluice::handoff
