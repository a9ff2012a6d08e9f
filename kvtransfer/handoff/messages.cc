#include "kvtransfer/handoff/messages.h"

#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // XXH3 with the widest vectors that the processor has
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "common/log.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace sluice::handoff {
namespace {

constexpr size_t kCheckBytes = 4;

uint32_t FrameCheck(absl::string_view bytes) {
  return static_cast<uint32_t>(XXH3_64bits(bytes.data(), bytes.size()));
}

class Writer {
 public:
  template <typename T>
  void Number(T value) {
    static_assert(std::is_unsigned_v<T>);
    for (size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<char>(value >> (8 * i)));
  }
  void Float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    Number(bits);
  }
  void Raw(absl::string_view value) { bytes_.append(value.data(), value.size()); }
  void String(absl::string_view value) {
    Number(static_cast<uint16_t>(value.size()));
    Raw(value);
  }
  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
};

// Reads past the end yield zeros and set failed(); the caller looks at it once.
class Reader {
 public:
  explicit Reader(absl::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  T Number() {
    static_assert(std::is_unsigned_v<T>);
    absl::string_view raw = Raw(sizeof(T));
    T value = 0;
    for (size_t i = 0; i < raw.size(); ++i) {
      value = static_cast<T>(
          value | static_cast<T>(static_cast<T>(static_cast<uint8_t>(raw[i])) << (8 * i)));
    }
    return value;
  }
  float Float() {
    uint32_t bits = Number<uint32_t>();
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  absl::string_view Raw(size_t size_bytes) {
    if (size_bytes > bytes_.size()) {
      failed_ = true;
      bytes_ = {};
      return {};
    }
    absl::string_view raw = bytes_.substr(0, size_bytes);
    bytes_.remove_prefix(size_bytes);
    return raw;
  }
  std::string String(size_t max_bytes) {
    size_t size_bytes = Number<uint16_t>();
    if (size_bytes > max_bytes) {
      failed_ = true;
      return {};
    }
    return std::string(Raw(size_bytes));
  }
  template <typename E>
  E Enum(uint8_t low, uint8_t high) {
    uint8_t value = Number<uint8_t>();
    if (value < low || value > high) {
      failed_ = true;
      value = low;
    }
    return static_cast<E>(value);
  }
  bool failed() const { return failed_; }
  bool at_end() const { return bytes_.empty(); }
  size_t remaining() const { return bytes_.size(); }

 private:
  absl::string_view bytes_;
  bool failed_ = false;
};

void CheckBound(size_t size, size_t bound, const char* what) {
  if (size <= bound) return;
  SLUICE_LOG(Error) << "handoff message: " << what << " of " << size << " exceeds " << bound;
  std::abort();
}

void WriteBody(const Bind& body, Writer* writer) {
  CheckBound(body.fingerprint.size(), kMaxFingerprintBytes, "fingerprint");
  CheckBound(body.reply_address.size(), kMaxAddressBytes, "address");
  writer->Raw(body.request.ToWire());
  writer->Number(body.attempt.value);
  writer->Number(body.begin_token);
  writer->Number(body.end_token);
  writer->Number(body.block_tokens);
  writer->Number(body.block_bytes);
  writer->String(body.fingerprint);
  writer->String(body.reply_address);
}
void WriteBody(const Offer& body, Writer* writer) {
  writer->Number(body.seq);
  writer->Number(body.begin_token);
  writer->Number(body.end_token);
  writer->Number(body.payload_bytes);
  writer->Number(body.checksum);
}
void WriteBody(const Ack& body, Writer* writer) {
  CheckBound(body.bitmap.size(), kMaxBitmapBytes, "bitmap");
  writer->Number(body.cumulative);
  writer->Number(body.window_bytes);
  writer->Number(body.lease_milliseconds);
  writer->String(body.bitmap);
}
void WriteBody(const Final& body, Writer* writer) {
  CheckBound(body.first.top.size(), kMaxTopTokens, "top logprobs");
  writer->Number(body.num_offers);
  writer->Number(body.end_token);
  writer->Number(static_cast<uint32_t>(body.first.token));
  writer->Float(body.first.logprob);
  writer->Number(static_cast<uint16_t>(body.first.top.size()));
  for (const auto& [token, logprob] : body.first.top) {
    writer->Number(static_cast<uint32_t>(token));
    writer->Float(logprob);
  }
}
void WriteBody(const Commit&, Writer*) {}
void WriteBody(const Cancel& body, Writer* writer) {
  writer->Number(static_cast<uint8_t>(body.to));
  writer->Number(static_cast<uint8_t>(body.code));
  writer->String(BoundedUtf8(body.reason, kMaxReasonBytes));
}
void WriteBody(const CancelAck& body, Writer* writer) {
  writer->Number(static_cast<uint8_t>(body.to));
}
void WriteBody(const Nack& body, Writer* writer) {
  writer->Number(static_cast<uint8_t>(body.code));
  writer->Number(body.seq);
}
void WriteBody(const Heartbeat&, Writer*) {}
void WriteBody(const Fetch& body, Writer* writer) {
  CheckBound(body.fingerprint.size(), kMaxFingerprintBytes, "fingerprint");
  CheckBound(body.reply_address.size(), kMaxAddressBytes, "address");
  writer->Raw(body.into.ToWire());
  writer->Number(body.begin_token);
  writer->Number(body.end_token);
  writer->Number(body.block_tokens);
  writer->Number(body.block_bytes);
  writer->String(body.fingerprint);
  writer->String(body.reply_address);
}

template <typename Id>
Id ReadId(Reader* reader) {
  Id id;
  Id::FromWire(reader->Raw(id.bytes.size()), &id);
  return id;
}

Bind ReadBind(Reader* reader) {
  Bind body;
  body.request = ReadId<RequestId>(reader);
  body.attempt = Attempt(reader->Number<uint32_t>());
  body.begin_token = reader->Number<uint32_t>();
  body.end_token = reader->Number<uint32_t>();
  body.block_tokens = reader->Number<uint32_t>();
  body.block_bytes = reader->Number<uint64_t>();
  body.fingerprint = reader->String(kMaxFingerprintBytes);
  body.reply_address = reader->String(kMaxAddressBytes);
  return body;
}
Offer ReadOffer(Reader* reader) {
  Offer body;
  body.seq = reader->Number<uint32_t>();
  body.begin_token = reader->Number<uint32_t>();
  body.end_token = reader->Number<uint32_t>();
  body.payload_bytes = reader->Number<uint64_t>();
  body.checksum = reader->Number<uint64_t>();
  return body;
}
Ack ReadAck(Reader* reader) {
  Ack body;
  body.cumulative = reader->Number<uint32_t>();
  body.window_bytes = reader->Number<uint64_t>();
  body.lease_milliseconds = reader->Number<uint32_t>();
  body.bitmap = reader->String(kMaxBitmapBytes);
  return body;
}
absl::StatusOr<Final> ReadFinal(Reader* reader) {
  Final body;
  body.num_offers = reader->Number<uint32_t>();
  body.end_token = reader->Number<uint32_t>();
  body.first.token = static_cast<TokenId>(reader->Number<uint32_t>());
  body.first.logprob = reader->Float();
  size_t num_top = reader->Number<uint16_t>();
  if (num_top > kMaxTopTokens || num_top * 8 > reader->remaining()) {
    return absl::InvalidArgumentError("more top logprobs than bytes");
  }
  body.first.top.reserve(num_top);
  for (size_t i = 0; i < num_top; ++i) {
    TokenId token = static_cast<TokenId>(reader->Number<uint32_t>());
    body.first.top.emplace_back(token, reader->Float());
  }
  return body;
}
Cancel ReadCancel(Reader* reader) {
  Cancel body;
  body.to = reader->Enum<Side>(0, 1);
  body.code = reader->Enum<absl::StatusCode>(1, 16);
  // It ends up in messages to the router, whose strings must be valid.
  body.reason = BoundedUtf8(reader->String(kMaxReasonBytes), kMaxReasonBytes);
  return body;
}
Fetch ReadFetch(Reader* reader) {
  Fetch body;
  body.into = ReadId<TransferId>(reader);
  body.begin_token = reader->Number<uint32_t>();
  body.end_token = reader->Number<uint32_t>();
  body.block_tokens = reader->Number<uint32_t>();
  body.block_bytes = reader->Number<uint64_t>();
  body.fingerprint = reader->String(kMaxFingerprintBytes);
  body.reply_address = reader->String(kMaxAddressBytes);
  return body;
}

absl::StatusOr<Body> ReadBody(uint8_t type, Reader* reader) {
  switch (type) {
    case 1:
      return ReadBind(reader);
    case 2:
      return ReadOffer(reader);
    case 3:
      return ReadAck(reader);
    case 4: {
      SLUICE_ASSIGN_OR_RETURN(Final body, ReadFinal(reader));
      return body;
    }
    case 5:
      return Commit{};
    case 6:
      return ReadCancel(reader);
    case 7:
      return CancelAck{reader->Enum<Side>(0, 1)};
    case 8: {
      NackCode code = reader->Enum<NackCode>(1, 6);
      return Nack{code, reader->Number<uint32_t>()};
    }
    case 9:
      return Heartbeat{};
    case 10:
      return ReadFetch(reader);
    default:
      return absl::InvalidArgumentError(absl::StrCat("unknown message type ", type));
  }
}

}  // namespace

const char* NackCodeName(NackCode code) {
  switch (code) {
    case NackCode::kUnknown:
      return "UNKNOWN";
    case NackCode::kStale:
      return "STALE";
    case NackCode::kExpired:
      return "EXPIRED";
    case NackCode::kBadSum:
      return "BAD_SUM";
    case NackCode::kLayout:
      return "LAYOUT";
    case NackCode::kConflict:
      return "CONFLICT";
  }
  return "?";
}

const char* BodyName(const Body& body) {
  static constexpr const char* kNames[] = {"Bind",   "Offer",     "Ack",  "Final",     "Commit",
                                           "Cancel", "CancelAck", "Nack", "Heartbeat", "Fetch"};
  static_assert(std::size(kNames) == std::variant_size_v<Body>);
  return kNames[body.index()];
}

const std::string* ReplyAddress(const Body& body) {
  if (const auto* bind = std::get_if<Bind>(&body)) return &bind->reply_address;
  if (const auto* fetch = std::get_if<Fetch>(&body)) return &fetch->reply_address;
  return nullptr;
}

std::string Encode(const Frame& frame) {
  Writer writer;
  writer.Number(kMagic);
  writer.Number(kProtocolVersion);
  writer.Number(static_cast<uint8_t>(frame.body.index() + 1));  // the type: place in Body, from 1
  writer.Number(uint16_t{0});
  writer.Number(frame.sender.value);
  writer.Number(frame.target.value);
  writer.Raw(frame.transfer.ToWire());
  std::visit([&writer](const auto& body) { WriteBody(body, &writer); }, frame.body);
  writer.Number(FrameCheck(writer.bytes()));
  return std::move(writer.bytes());
}

absl::StatusOr<Frame> Decode(absl::string_view bytes) {
  if (bytes.size() < kCheckBytes) return absl::InvalidArgumentError("frame too short");
  absl::string_view checked = bytes.substr(0, bytes.size() - kCheckBytes);
  Reader check(bytes.substr(checked.size()));
  Reader reader(checked);
  if (reader.Number<uint32_t>() != kMagic) return absl::InvalidArgumentError("not a handoff frame");
  if (uint8_t version = reader.Number<uint8_t>(); version != kProtocolVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("protocol version ", version, ", expected ", kProtocolVersion));
  }
  if (check.Number<uint32_t>() != FrameCheck(checked)) {
    return absl::InvalidArgumentError("frame damaged");
  }
  uint8_t type = reader.Number<uint8_t>();
  if (reader.Number<uint16_t>() != 0) return absl::InvalidArgumentError("reserved bits set");
  Frame frame;
  frame.sender = Incarnation(reader.Number<uint64_t>());
  frame.target = Incarnation(reader.Number<uint64_t>());
  frame.transfer = ReadId<TransferId>(&reader);
  SLUICE_ASSIGN_OR_RETURN(frame.body, ReadBody(type, &reader));
  if (reader.failed()) return absl::InvalidArgumentError("frame cut short or field out of range");
  if (!reader.at_end()) return absl::InvalidArgumentError("frame has bytes left over");
  return frame;
}

PayloadChecksum::PayloadChecksum(const TransferId& transfer, uint32_t begin_token)
    : state_(XXH3_createState()) {
  if (state_ == nullptr) std::abort();  // out of memory for 600 bytes
  uint64_t seed;
  std::memcpy(&seed, transfer.bytes.data(), sizeof(seed));
  XXH3_64bits_reset_withSeed(state_, seed ^ begin_token);
}

PayloadChecksum::~PayloadChecksum() { XXH3_freeState(state_); }

void PayloadChecksum::Update(const uint8_t* data, size_t size_bytes) {
  XXH3_64bits_update(state_, data, size_bytes);
}

uint64_t PayloadChecksum::Finish() const { return XXH3_64bits_digest(state_); }

}  // namespace sluice::handoff
