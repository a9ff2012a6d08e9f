// The handoff protocol on the wire: what the sender and the receiver of one transfer say to each
// other. KV goes from a prefill worker to a decode worker; with Fetch a prefill worker asks for the
// other direction, and the parts are reversed. docs/handoff.md explains the conversation. Pure
// values, any thread.
//
// A frame is the header of one channel message, little-endian:
//   magic u32, version u8, type u8, reserved u16 = 0, sender incarnation u64,
//   target incarnation u64, transfer id [16], body of the type,
//   check u32: low half of XXH3-64 over everything before it
// The check finds damage, not malice: whoever knows a transfer id may speak for the transfer.
// Decode trusts nothing: every length is checked against its bound and the bytes at hand before
// use.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"

struct XXH3_state_s;  // libxxhash's, kept out of this header

namespace sluice {

// What a prefill worker tells the decode worker with its last message.
struct FirstToken {
  TokenId token = 0;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;  // best first

  friend bool operator==(const FirstToken&, const FirstToken&) = default;
};

}  // namespace sluice

namespace sluice::handoff {

inline constexpr uint32_t kMagic = 0x564b4c53;  // "SLKV"
inline constexpr uint8_t kProtocolVersion = 1;

// Bounds of the variable parts. Encode cuts reasons and aborts on anything else that is longer.
inline constexpr size_t kMaxFingerprintBytes = 128;
inline constexpr size_t kMaxAddressBytes = 4096;
inline constexpr size_t kMaxReasonBytes = 256;
inline constexpr size_t kMaxTopTokens = 256;
inline constexpr size_t kMaxBitmapBytes = 256;

// Which of the addressee's two machines a message is for. Only Cancel and CancelAck go both ways.
enum class Side : uint8_t { kSender = 0, kReceiver = 1 };

enum class NackCode : uint8_t {
  kUnknown = 1,   // no such transfer, not even a closed one
  kStale = 2,     // other incarnation, request or attempt than the transfer's
  kExpired = 3,   // the transfer was closed without being committed
  kBadSum = 4,    // payload of `seq` differs from its checksum: send it once more
  kLayout = 5,    // fingerprint or geometry differs
  kConflict = 6,  // `seq` or its tokens were offered before with other contents
};
const char* NackCodeName(NackCode code);

// Sender to receiver: I am the one who fills this transfer. Repeated as the transfer's keep-alive.
struct Bind {
  RequestId request;
  Attempt attempt;
  uint32_t begin_token = 0;
  uint32_t end_token = 0;
  uint32_t block_tokens = 0;
  uint64_t block_bytes = 0;
  std::string fingerprint;
  std::string reply_address;  // of the sender's channel
  friend bool operator==(const Bind&, const Bind&) = default;
};

// Sender to receiver, with the payload: blocks of tokens [begin_token, end_token).
struct Offer {
  uint32_t seq = 0;  // dense from 0
  uint32_t begin_token = 0;
  uint32_t end_token = 0;
  uint64_t payload_bytes = 0;
  uint64_t checksum = 0;  // PayloadChecksum
  friend bool operator==(const Offer&, const Offer&) = default;
};

// Receiver to sender: everything below `cumulative` is verified; bit i of `bitmap` (least
// significant bit first) says the same of seq cumulative + i.
struct Ack {
  uint32_t cumulative = 0;
  std::string bitmap;
  uint64_t window_bytes = 0;  // how much may be on its way unacknowledged
  uint32_t lease_milliseconds = 0;
  friend bool operator==(const Ack&, const Ack&) = default;
};

// Sender to receiver: there were `num_offers` offers, up to end_token.
struct Final {
  uint32_t num_offers = 0;
  uint32_t end_token = 0;
  FirstToken first;
  friend bool operator==(const Final&, const Final&) = default;
};

// Receiver to sender: the transfer is mine now, the source may be unpinned.
struct Commit {
  friend bool operator==(const Commit&, const Commit&) = default;
};

struct Cancel {
  Side to = Side::kSender;
  absl::StatusCode code = absl::StatusCode::kCancelled;
  std::string reason;
  friend bool operator==(const Cancel&, const Cancel&) = default;
};

// From a receiver it means: no receive of mine is pending for this transfer, nor ever will be.
struct CancelAck {
  Side to = Side::kSender;
  friend bool operator==(const CancelAck&, const CancelAck&) = default;
};

struct Nack {
  NackCode code = NackCode::kUnknown;
  uint32_t seq = 0;
  friend bool operator==(const Nack&, const Nack&) = default;
};

// Between processes with a live transfer; the transfer id is zero.
struct Heartbeat {
  friend bool operator==(const Heartbeat&, const Heartbeat&) = default;
};

// Prefill worker to decode worker, before the prompt is computed: send me blocks of the prefix that
// you have cached for this reservation. The frame's transfer is the reservation's grant; the blocks
// travel in a transfer of their own, `into`, which the asker has minted and receives. Repeated
// until answered, by a Bind or a Cancel of `into`.
struct Fetch {
  TransferId into;
  uint32_t begin_token = 0;
  uint32_t end_token = 0;
  uint32_t block_tokens = 0;
  uint64_t block_bytes = 0;
  std::string fingerprint;
  std::string reply_address;  // of the asker's channel
  friend bool operator==(const Fetch&, const Fetch&) = default;
};

using Body =
    std::variant<Bind, Offer, Ack, Final, Commit, Cancel, CancelAck, Nack, Heartbeat, Fetch>;
const char* BodyName(const Body& body);
// Where its sender is reached, if the message says so; null otherwise.
const std::string* ReplyAddress(const Body& body);

struct Frame {
  Incarnation sender;
  Incarnation target;
  TransferId transfer;
  Body body;
  friend bool operator==(const Frame&, const Frame&) = default;
};

std::string Encode(const Frame& frame);
// INVALID_ARGUMENT says what is wrong with the bytes.
absl::StatusOr<Frame> Decode(absl::string_view bytes);

// XXH3-64 over a payload in logical order, seeded with the transfer and the position, so that a
// payload that was mixed up with another one fails too. Update per block, then Finish.
class PayloadChecksum {
 public:
  PayloadChecksum(const TransferId& transfer, uint32_t begin_token);
  ~PayloadChecksum();
  PayloadChecksum(const PayloadChecksum&) = delete;
  PayloadChecksum& operator=(const PayloadChecksum&) = delete;
  void Update(const uint8_t* data, size_t size_bytes);
  uint64_t Finish() const;

 private:
  XXH3_state_s* const state_;
};

}  // namespace sluice::handoff
